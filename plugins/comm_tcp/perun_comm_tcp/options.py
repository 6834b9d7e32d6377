"""What can be configured about the transport."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class TCPOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the TCP transport; all have a default."""

    backlog: Annotated[int, Meta(ge=1, le=65535)] = 128
    """Connections the operating system keeps waiting until they are accepted."""

    keepalive: Annotated[int, Meta(ge=0, le=3600)] = 15
    """Seconds of silence until the other end is probed; a dead one is noticed after twice that time. 0: never probe."""

    linger: Annotated[float, Meta(ge=0, le=60)] = 1.0
    """Seconds a closed connection may take to hand over what was written before it is cut."""

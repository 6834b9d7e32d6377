"""What a session spends on peers at most, and who goes first when that is reached (PROTOCOL.md 4.8 rule 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from msgspec import Struct

from ..wire.messages import DEFAULT_MESSAGE_LIMIT


class PeerLimits(Struct, frozen=True, kw_only=True):
    """Bounds of one session's peer connections. Times are seconds, sizes bytes.

    Memory for bytes of strangers is at most `max_connections` × `message_limit` plus the transport's buffers; before
    its handshake a connection holds at most `handshake_bytes`.
    """

    max_connections: int = 256
    """Connections at once, dialled ones included."""
    max_per_host: int = 64
    """Accepted connections at once from one network address."""
    max_half_open: int = 64
    """Accepted connections at once that have not finished their handshake."""
    dial_timeout: float = 10.0
    """Finding a peer's address and connecting (API.md 2.2.1)."""
    handshake_timeout: float = 10.0
    """The exchange of addresses, in both directions (API.md 2.2.1)."""
    handshake_bytes: int = 1024
    """What may arrive before the first envelope is complete; the handshake itself has 45 bytes."""
    message_limit: int = DEFAULT_MESSAGE_LIMIT
    """Longest envelope, sent or received."""
    message_timeout: float = 30.0
    """How long one envelope may take to arrive, from its first byte on."""
    send_timeout: float = 10.0
    """How long one envelope may wait for a peer that does not read; then the connection is closed."""
    send_queue_bytes: int = 4 * DEFAULT_MESSAGE_LIMIT
    """What may wait to be written to one peer."""
    grace: float = 0.25
    """How long a connection that the tie-break may still take away is watched before it is written to, and how long a
    replaced one is still read (PROTOCOL.md 4.3)."""


class Admitted(Protocol):
    """What admission looks at. `carried`: a message went over it."""

    @property
    def host(self) -> str: ...
    @property
    def dialed(self) -> bool: ...
    @property
    def shaken(self) -> bool: ...
    @property
    def carried(self) -> bool: ...
    @property
    def closing(self) -> bool: ...


A = TypeVar("A", bound=Admitted)


class Refused(Exception):
    """There is no room for a new connection, and nobody has to make any."""


def make_room(host: str, admitted: Iterable[A], limits: PeerLimits) -> A | None:
    """Which of the `admitted` (oldest first) is closed so that one from `host` can be accepted; None: nobody has to.

    A stranger who keeps connections open without using them must not keep peers out. Hence those go first that have
    not finished their handshake, then those that never carried a message, the oldest first; never one that we dialled
    or that is in use.
    Raises: Refused.
    """
    everybody = tuple(admitted)
    if len(everybody) >= 2 * limits.max_connections:
        raise Refused("too many connections are still closing")
    live = [one for one in everybody if not one.closing]
    accepted = [one for one in live if not one.dialed]
    from_host = [one for one in accepted if one.host == host]
    half_open = [one for one in accepted if not one.shaken]
    if len(from_host) >= limits.max_per_host:
        candidates = from_host
    elif len(live) >= limits.max_connections:
        candidates = accepted
    elif len(half_open) >= limits.max_half_open:
        candidates = half_open
    else:
        return None
    unused = [one for one in candidates if not one.carried]
    if not unused:
        raise Refused("every connection is in use")
    return next((one for one in unused if not one.shaken), unused[0])

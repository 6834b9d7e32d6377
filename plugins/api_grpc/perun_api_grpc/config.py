"""Options of the frontend, the table ``plugins.api_grpc`` of the node's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class GrpcConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server treats its connections. The defaults suit the original clients."""

    max_message_bytes: Positive = 4 * 1024 * 1024
    """Largest request that is read; larger ones are refused with RESOURCE_EXHAUSTED."""

    max_concurrent_streams: Positive = 1024
    """Calls a client may have open on one connection; further ones wait at the client."""

    max_concurrent_calls: Positive = 8192
    """Calls of all clients together; further ones are refused with RESOURCE_EXHAUSTED."""

    keepalive_seconds: Seconds = 60.0
    """Silence after which a client is asked for a sign of life, so that vanished ones free their subscriptions."""

    keepalive_timeout_seconds: Seconds = 20.0
    """How long the sign of life may take before the connection counts as lost."""

    drain_seconds: Annotated[float, Meta(ge=0, le=60)] = 2.0
    """How long calls may take to end when the node shuts down."""

"""Port of peer transports: they move bytes. Handshake, identities and limits are the core's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Protocol

from msgspec import Struct


class Authentication(StrEnum):
    """What a transport proves about the other end; reported, never assumed."""

    NONE = "none"
    ENCRYPTED = "encrypted"
    MUTUAL = "mutual"


class Connection(Protocol):
    """One bidirectional byte stream."""

    @property
    def remote(self) -> str:
        """Network address of the other end, for logs and per-host limits (host part before the last colon)."""
        ...

    @property
    def authentication(self) -> Authentication:
        """What this transport proved about the other end."""
        ...

    async def read(self) -> bytes:
        """Some bytes, at least one, as they arrive; empty at a clean end. Raises: ConnectionLost."""
        ...

    async def write(self, data: bytes) -> None:
        """Hand `data` to the transport, in order, waiting while its buffer is full (back-pressure).

        Returning says nothing about arrival. After cancellation the connection must be closed.
        Raises: ConnectionLost.
        """
        ...

    async def close(self) -> None:
        """End the connection gracefully (the other end reads its clean end); idempotent, bounded, never raises."""
        ...


class Listener(Protocol):
    """An open listening address."""

    async def close(self) -> None:
        """Stop listening; the address is free when this returns. Connections stay. Idempotent, never raises."""
        ...


class Comm(Protocol):
    """A peer transport, for example TCP."""

    @property
    def type(self) -> str:
        """The comm type users write in peer IDs and session files, for example ``tcp``."""
        ...

    def check_address(self, address: str) -> None:
        """Whether `address` can be listened on or dialled. Pure. Raises: AddressInvalid."""
        ...

    async def listen(self, address: str, accept: Callable[[Connection], Awaitable[None]]) -> Listener:
        """Listen on `address`; every connection runs `accept` in a task of its own, closed when it returns.

        An error in `accept` ends that connection only.
        Raises: AddressInvalid, AddressInUse, CommError.
        """
        ...

    async def dial(self, address: str, *, timeout: float) -> Connection:
        """Connect within `timeout` seconds. Raises: AddressInvalid, PeerUnreachable."""
        ...


class CommContext(Struct, frozen=True):
    """What a peer transport is opened with; nothing beyond its own options so far."""

"""Port of persistence: small ordered tables of bytes with atomic, durable batches.

A *namespace* is one independent store: one for the node, one per session. Records are opaque bytes to the backend; the
core owns their formats and versions (`perun_core.protocol.records`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from msgspec import Struct


class Table(StrEnum):
    """The tables of a namespace. Keys are ordered bytewise within their table."""

    META = "meta"
    """Facts about the namespace itself: schema version, owner, generation."""
    PROPOSALS = "proposals"
    """Openings that are not yet channels, by proposal ID."""
    CHANNELS = "channels"
    """Channels that are not withdrawn, by channel ID: parameters, peers, phase, current and staged transaction."""
    ARCHIVE = "archive"
    """Closed channels, same records; kept, never watched."""
    SIGNED = "signed"
    """The signing guard: one record for every (channel, version) signed; written with `PutNew` only."""
    USED = "used"
    """Channel IDs that ever existed, open or closed."""
    TRANSACTIONS = "transactions"
    """On-chain transactions by account and nonce."""
    CURSORS = "cursors"
    """How far the chain's events were processed."""
    CURRENCIES = "currencies"
    """Token and asset pairs registered at run time."""
    PEERS = "peers"
    """Peers added at run time."""


class Put(Struct, frozen=True):
    """Set `key` to `value`, whatever was there."""

    table: Table
    key: bytes
    value: bytes


class PutNew(Struct, frozen=True):
    """Set `key` to `value` unless another value is there, which refuses the whole batch. Same value: no effect."""

    table: Table
    key: bytes
    value: bytes


class Delete(Struct, frozen=True):
    """Remove `key`; no effect when it is absent."""

    table: Table
    key: bytes


Op = Put | PutNew | Delete


class StoreContext(Struct, frozen=True):
    """What a store backend is opened with."""

    path: Path
    """Directory of the namespace; created (mode 0700) when missing. Its name is the operator's choice."""


class Store(Protocol):
    """One open namespace. The opener owns it exclusively until the context manager that gave it ends."""

    async def commit(self, batch: Sequence[Op]) -> None:
        """Make `batch` durable, all of it or nothing, in order.

        When: before any effect that depends on it leaves the process. Returning means: survives kill -9 and power
        loss. Concurrent calls may share one physical commit; they become durable in the order of the calls. Never
        called with an empty batch. A cancelled call may still take effect.
        Raises: StoreConflict (a `PutNew` met another value; nothing was written), StoreFull, StoreFenced (another
        owner took over: stop signing), StoreBroken.
        """
        ...

    async def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under `key`, including every batch whose commit returned. Raises: StoreBroken."""
        ...

    async def scan(
        self, table: Table, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` (key, value) pairs whose key starts with `prefix` and is greater than `after`, in key order.

        Sees every batch whose commit returned. Raises: StoreBroken.
        """
        ...

"""Port of persistence: small ordered tables of bytes with atomic, durable batches.

A *namespace* is one independent store: one for the node, one per session. Records are opaque bytes to the backend; the
core owns their formats and versions (`perun_core.protocol.records`).

What was signed must never be forgotten, and a namespace put back from an older copy has forgotten. So every namespace
has an *identity* and a *generation*, a number that only grows. The backend keeps both in the namespace and once more in
a place that a copy of the namespace does not contain, the *fence*. When they disagree the namespace is *in doubt*: it
can be read and written, but no new mark of the signing guard is taken until the one who knows better (a peer, the
chain, the operator) has been asked and `Store.trust` was called.
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
    """Closed channels, same records; kept. Watched only as long as a reorg may undo their settlement (`CURSORS`)."""
    SIGNED = "signed"
    """The signing guard: one record for every (channel, version) signed; written with `PutNew` only."""
    USED = "used"
    """Channel IDs that ever existed, open or closed."""
    TRANSACTIONS = "transactions"
    """On-chain transactions by account and nonce."""
    CURSORS = "cursors"
    """How far the chain's events were processed, and from which block on an archived channel is watched."""
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
    snapshot: bool = False
    """Look at the namespace as it is now, whoever owns it: reads answer for one moment, the one of the opening, and
    delay no commit of the owner; `commit`, `distrust` and `trust` raise StoreBroken; identity and generation stay.
    Opening raises StoreBroken when there is no namespace at `path`; nothing is created."""


class Doubt(StrEnum):
    """Why a namespace may lack something that was acknowledged."""

    OLDER = "older"
    """Its generation is behind its fence: an older copy was put back."""
    OTHER = "other"
    """The fence belongs to another namespace: this one was put in its place."""
    UNFENCED = "unfenced"
    """It had a fence, which is gone or older than the namespace: it was copied or moved, or the fence was removed."""
    GONE = "gone"
    """There was a namespace here; what is here now is new and empty."""
    TAKEN_OVER = "taken over"
    """A copy of it elsewhere was trusted, and signs since."""
    RESTORED = "restored"
    """`perunnode restore` wrote it from a backup, or from a rescue file."""
    REPORTED = "reported"
    """Somebody who knows has proof: a peer with a newer state, or the chain."""


class StoreStatus(Struct, frozen=True):
    """What a namespace is, and whether it is to be believed."""

    identity: str
    """Drawn when the namespace was made, kept by every copy of it. Never empty."""
    generation: int
    """Grows at every opening by its owner (the fencing token), and while it is open after some commits."""
    doubt: Doubt | None = None
    """None: nothing speaks against it. Kept durably until `Store.trust` clears it, through any number of openings."""
    reason: str = ""
    """What was found, in words for the operator; empty when there is no doubt."""
    trusted: tuple[bytes, ...] = ()
    """While in doubt: prefixes of guard keys for which `Store.trust` was called."""

    def may_sign(self, key: bytes) -> bool:
        """Whether a new mark under `key` would be taken into the signing guard."""
        return self.doubt is None or key.startswith(self.trusted)


class Store(Protocol):
    """One open namespace. The opener owns it exclusively until the context manager that gave it ends.

    Opening raises: StoreLocked (somebody else owns it), StoreTooNew (nothing was touched), StoreFull, StoreBroken (the
    text names the file). A namespace in doubt opens; `status` tells.
    """

    def status(self) -> StoreStatus:
        """Identity, generation and doubt as of now; never waits, also works after the store was fenced."""
        ...

    async def distrust(self, doubt: Doubt, reason: str) -> None:
        """Put the namespace in doubt, durably, from this moment on; forgets what `trust` said before.

        Returning means that no mark of the signing guard is taken any more. The first doubt is kept
        when there is one, except that `Doubt.RESTORED` takes the place of `Doubt.GONE`.
        Raises: StoreFull, StoreFenced, StoreBroken.
        """
        ...

    async def trust(self, prefix: bytes = b"") -> None:
        """Declare records complete again, durably: the guard takes marks whose key starts with `prefix`.

        When: after the records were reconciled with somebody who cannot have been rolled back with us. Keys of the
        guard start with the channel's ID, so a channel's ID releases that channel alone; the empty prefix ends the
        doubt. No effect on a namespace that is not in doubt. Where the namespace is a copy and the original can be
        found, the original is fenced first, so that only one of them signs.
        Raises: StoreLocked (the original is open now), StoreFull, StoreFenced, StoreBroken.
        """
        ...

    async def commit(self, batch: Sequence[Op]) -> None:
        """Make `batch` durable, all of it or nothing, in order.

        When: before any effect that depends on it leaves the process. Returning means: survives kill -9 and power
        loss. Concurrent calls may share one physical commit; they become durable in the order of the calls. Never
        called with an empty batch. A cancelled call may still take effect.
        While the namespace is in doubt a batch with a `PutNew` into `Table.SIGNED` that no `trust` covers is refused,
        alone; `Put` stays possible, so that marks can be restored.
        Raises: StoreConflict (a `PutNew` met another value; nothing was written), StoreFull, StoreFenced (the
        namespace is in doubt and the batch asks for a mark: nothing was written; or another owner took over: this and
        every later commit is refused, stop signing), StoreBroken.
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

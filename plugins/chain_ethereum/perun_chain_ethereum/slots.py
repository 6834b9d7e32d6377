"""What is remembered about an account's transactions: one durable slot per nonce, and what sessions share in memory.

The law of the queue: **a goal keeps its nonce until that nonce is used up on chain.** Whatever is sent for the goal
meanwhile, with a higher fee or as an empty transfer that gives the goal up, has the same nonce, so that at most one of
it can ever be mined.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from msgspec import Struct

from perun_core.errors import ChainError
from perun_core.ports.store import Delete, Put, Store, Table
from perun_core.values import Address, Bytes32

from .fees import Offer

SLOT_FORMAT: Final = 2


class Attempt(Struct, frozen=True):
    """One transaction that was signed for a slot. `gives_up` marks the empty transfer that only uses up the nonce."""

    hash: bytes
    gives_up: bool = False


class Slot(Struct, frozen=True):
    """A nonce of the account and what was sent with it (`Table.TRANSACTIONS`, MessagePack)."""

    format: int
    chain_id: int
    account: bytes
    nonce: int
    goal: str
    """What the transaction is to bring about; at most one slot per goal."""
    tx_type: str
    to: bytes | None
    value: bytes
    """Wei, 32 bytes big-endian."""
    data: bytes
    gas: int
    time: int
    """Block time at which the first attempt was made, Unix seconds."""
    deadline: int | None
    """Block time by which it should be mined."""
    attempts: tuple[Attempt, ...]
    """Oldest first; any of them may be mined."""
    raw: bytes
    """The newest attempt, signed, ready to be broadcast again."""
    max_fee: int
    max_priority_fee: int
    block: int
    """Number of the head when the newest attempt was made."""

    @property
    def newest(self) -> Attempt:
        """The attempt that is broadcast."""
        return self.attempts[-1]

    @property
    def tx_id(self) -> str:
        """The newest attempt's hash as users see it."""
        return "0x" + self.newest.hash.hex()

    @property
    def tx_hash(self) -> Bytes32:
        """The newest attempt's hash."""
        return Bytes32(self.newest.hash)

    @property
    def offer(self) -> Offer:
        """What the newest attempt offers per gas."""
        return Offer(max_fee=self.max_fee, tip=self.max_priority_fee)

    @property
    def wei(self) -> int:
        """The value that is sent."""
        return int.from_bytes(self.value, "big")

    @property
    def cost(self) -> int:
        """The most wei that the account may have to pay."""
        return self.wei + self.gas * self.max_fee


class SlotStore:
    """The slots of one account and chain in a session's store."""

    def __init__(self, store: Store, account: Address, chain_id: int) -> None:
        self._store = store
        self._prefix = bytes(account) + chain_id.to_bytes(8, "big")

    async def load(self) -> dict[int, Slot]:
        """All slots by nonce. Raises: StoreError, ChainError when a record cannot be read."""
        slots: dict[int, Slot] = {}
        after: bytes | None = None
        while rows := await self._store.scan(Table.TRANSACTIONS, self._prefix, after=after):
            for after, value in rows:  # noqa: B007 - the last key is where the next page begins
                slot = _decoded(value)
                slots[slot.nonce] = slot
        return slots

    async def save(self, slot: Slot) -> None:
        """Make `slot` durable; before any of it is broadcast. Raises: StoreError."""
        await self._store.commit([Put(Table.TRANSACTIONS, self._key(slot), msgspec.msgpack.encode(slot))])

    async def delete(self, slot: Slot) -> None:
        """Forget `slot`. Raises: StoreError."""
        await self._store.commit([Delete(Table.TRANSACTIONS, self._key(slot))])

    def _key(self, slot: Slot) -> bytes:
        """Account, chain, nonce: the order of the keys is the order of the nonces."""
        return self._prefix + slot.nonce.to_bytes(8, "big")


def _decoded(value: bytes) -> Slot:
    try:
        slot = msgspec.msgpack.decode(value, type=Slot)
    except msgspec.DecodeError as error:
        raise ChainError("a stored transaction record cannot be read") from error
    if slot.format != SLOT_FORMAT or not slot.attempts:
        raise ChainError(f"a stored transaction record has format {slot.format}, which is not spoken")
    return slot


class AccountBook:
    """What the sessions of one process that send from the same account know together; in memory only.

    Every session keeps its slots in its own store. The book makes all of them visible to whoever chooses a nonce, and
    keeps those of a session that was closed, so that nobody else's transaction waits behind them for ever.
    """

    _NAME: Final = "chain_ethereum"

    def __init__(self) -> None:
        self._members: list[tuple[dict[int, Slot], Collection[int]]] = []
        self._goals: dict[str, tuple[asyncio.Lock, int]] = {}
        self.left: dict[int, Slot] = {}
        """Slots of sessions that were closed, by nonce."""

    @classmethod
    def of(cls, shared: MutableMapping[str, object] | None) -> AccountBook:
        """The book kept in what the node shares per account, made there if need be; a private one for None."""
        if shared is None:
            return cls()
        book = shared.setdefault(cls._NAME, cls())
        if not isinstance(book, cls):
            raise ChainError("what the node shares for the account is not this backend's")
        return book

    def join(self, slots: dict[int, Slot], settled: Collection[int]) -> None:
        """Show a session's live `slots`, and the nonces it regards as used up for good, to the others."""
        self._members.append((slots, settled))
        for nonce in slots:
            self.left.pop(nonce, None)

    def leave(self, slots: dict[int, Slot]) -> None:
        """The session is closing: from now on others keep an eye on its slots. Idempotent."""
        if any(member is slots for member, _ in self._members):
            self._members = [entry for entry in self._members if entry[0] is not slots]
            self.left.update(slots)

    def slots(self) -> Iterator[Slot]:
        """Everything that may be on its way from the account."""
        for member, _ in self._members:
            yield from member.values()
        yield from self.left.values()

    def is_looked_after(self, nonce: int) -> bool:
        """Whether an open session has `nonce` under way, or would take it up again after a reorg."""
        return any(nonce in member or nonce in settled for member, settled in self._members)

    def is_used(self, nonce: int) -> bool:
        """Whether `nonce` may not be given to a new transaction."""
        return nonce in self.left or self.is_looked_after(nonce)

    def deadline(self, nonce: int) -> int | None:
        """The earliest deadline among the slots from `nonce` on: whoever waits behind it hurries it."""
        return min((s.deadline for s in self.slots() if s.nonce >= nonce and s.deadline is not None), default=None)

    @asynccontextmanager
    async def pursuing(self, goal: str) -> AsyncIterator[None]:
        """Hold while checking for `goal` and bringing it about: one caller at a time per goal."""
        lock, users = self._goals.get(goal, (asyncio.Lock(), 0))
        self._goals[goal] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._goals.pop(goal)
            if users > 1:
                self._goals[goal] = (lock, users - 1)

"""Keeping an account's transactions moving until their nonces are used up on chain, whoever still waits for them.

One task looks at all open slots with every head: what is mined ends them once it is final; what the node lost is
broadcast again; what cannot pay the base fee or is left out of blocks is replaced with a higher offer; what has become
pointless or impossible is replaced with an empty transfer; gaps in front are filled. Successes are kept for a window of
blocks and taken up again when a reorg removes them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from eth_typing import BlockNumber
from msgspec import Struct
from msgspec.structs import replace

from perun_core.errors import ChainError, KeyManagerError, StoreError
from perun_core.values import Bytes32

from . import fees
from .connection import CallReverted, Connection, Head, NodeRefused, Receipt
from .dispatch import GAS_TRANSFER, Dispatch, Quote, cannot_be_paid, is_taken, is_too_cheap
from .fees import Urgency
from .heads import HeadFeed
from .slots import AccountBook, Attempt, Slot, SlotStore

logger: Final = logging.getLogger(__name__)

SIGHTINGS: Final = 2
"""How often a used-up nonce has to be seen without a receipt of ours before it counts as somebody else's: nodes behind
one address may know different amounts of the chain."""

RECEIPT_INTERVAL: Final = 1.0
"""Longest pause in seconds between two looks at the transactions that are under way."""

CONCLUSIONS: Final = ("conclude", "concludeFinal")
"""What settles a channel with the deposits that are there."""

CONCLUSION_PAUSE: Final = 3
"""Blocks that others get to bring back deposits before a conclusion that the same reorg removed is broadcast again."""

IDLE_INTERVAL: Final = 30.0
"""The same while all of them are mined and only watched for reorgs."""


class Mined(Struct, frozen=True):
    """Which attempt of a slot was mined, and where."""

    slot: Slot
    attempt: Attempt
    receipt: Receipt


class Ticket(Struct):
    """A slot as a caller knows it, and where its end will be told: None when nothing of ours was mined."""

    slot: Slot
    outcome: asyncio.Future[Mined | None]


class Pursuit:
    """The slots of one session and account, from the moment they are recorded until they are deep in the chain."""

    def __init__(
        self,
        connection: Connection,
        heads: HeadFeed,
        *,
        dispatch: Dispatch,
        store: SlotStore,
        lock: asyncio.Lock,
        book: AccountBook,
        finality_depth: int,
        reorg_window: int,
    ) -> None:
        """`lock` and `book` are shared by everybody in this process who sends from the account."""
        self._connection = connection
        self._heads = heads
        self._dispatch = dispatch
        self._store = store
        self._lock = lock
        self._book = book
        self._confirmations = finality_depth - 1
        self._window = reorg_window
        self._slots: dict[int, Slot] = {}
        self._settled: dict[int, Mined] = {}
        self._unplaced: set[int] = set()
        """Settled nonces whose block has not been compared with a head yet."""
        self._outcomes: dict[int, asyncio.Future[Mined | None]] = {}
        self._held: dict[int, int | None] = {}
        """Nonces of conclusions that a reorg removed, and the block since which they wait; None until the next look."""
        self._sightings: dict[int, int] = {}
        self._complaints: dict[int, set[str]] = {}
        self._last: Head | None = None
        self._kick = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Take up what an earlier run left open. Raises: StoreError, ChainError when a record cannot be read."""
        for slot in (await self._store.load()).values():
            self._add(slot)
        self._book.join(self._slots, self._settled)
        self.wake()

    async def close(self) -> None:
        """Stop; what is under way stays recorded. Callers that still wait get NotReachable. Idempotent."""
        self._closed = True
        self._book.leave(self._slots)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for outcome in self._outcomes.values():
            outcome.cancel()

    # ---------------------------------------------------------------------------------------------------------- slots

    def ticket(self, goal: str) -> Ticket | None:
        """The slot that is under way for `goal`."""
        slot = next((slot for slot in self._slots.values() if slot.goal == goal), None)
        return None if slot is None else Ticket(slot, self._outcomes[slot.nonce])

    def current(self, slot: Slot) -> Slot:
        """`slot` as it is now, if it is still under way."""
        return self._slots.get(slot.nonce, slot)

    async def hurry(self, slot: Slot, deadline: int) -> None:
        """Have `slot` mined by `deadline`, unless it is in more of a hurry already. Raises: StoreError."""
        if slot.deadline is None or deadline < slot.deadline:
            self._slots[slot.nonce] = replace(slot, deadline=deadline)
            await self._store.save(self._slots[slot.nonce])
        self.wake()

    def standing(self, goal: str) -> frozenset[tuple[int, Bytes32 | None]]:
        """What was done for `goal`: nonces with the block they were mined in, None while they are under way.

        As long as it stays the same, what was seen on chain about the goal is not changed by transactions of ours.
        """
        mined = {(nonce, m.receipt.block_hash) for nonce, m in self._settled.items() if m.slot.goal == goal}
        return frozenset(mined | {(nonce, None) for nonce, slot in self._slots.items() if slot.goal == goal})

    async def has_moved(self, goal: str) -> bool:
        """Whether a success for `goal` is no longer in its block, so that the goal has to be looked at anew.

        What a reorg removed is under way again then; what it moved may just have reached the goal a second time.
        """
        moved = False
        for nonce, mined in tuple(self._settled.items()):
            if mined.slot.goal != goal:
                continue
            receipt = await self._connection.receipt(Bytes32(mined.attempt.hash))
            if receipt is None or receipt.block_hash != mined.receipt.block_hash:
                moved = True
                self._replace_settled(nonce, mined, receipt)
        return moved

    async def record(self, slot: Slot) -> asyncio.Future[Mined | None]:
        """Make a new slot durable, then known. Raises: StoreError."""
        await self._store.save(slot)
        return self._add(slot)

    async def drop(self, slot: Slot) -> None:
        """Forget a slot that can have no effect any more, durably before anybody builds on it. Raises: StoreError."""
        await self._store.delete(slot)
        self._end(slot, None)

    def _add(self, slot: Slot) -> asyncio.Future[Mined | None]:
        self._slots[slot.nonce] = slot
        outcome: asyncio.Future[Mined | None] = asyncio.get_running_loop().create_future()
        self._outcomes[slot.nonce] = outcome
        return outcome

    def _end(self, slot: Slot, mined: Mined | None) -> None:
        del self._slots[slot.nonce]
        self._held.pop(slot.nonce, None)
        self._sightings.pop(slot.nonce, None)
        self._complaints.pop(slot.nonce, None)
        outcome = self._outcomes.pop(slot.nonce)
        if not outcome.done():
            outcome.set_result(mined)

    def _reopen(self, mined: Mined) -> None:
        logger.warning("a reorg removed transaction %s; it is broadcast again", mined.slot.tx_id)
        del self._settled[mined.slot.nonce]
        if mined.slot.tx_type in CONCLUSIONS:
            self._held[mined.slot.nonce] = None
        self._add(mined.slot)
        self.wake()

    # -------------------------------------------------------------------------------------------------------- looking

    def wake(self, *, at_next_head: bool = False) -> None:
        """Have the slots looked at now; the task that does so lives as long as there are any.

        `at_next_head`: nothing is to be seen before the next head, which is awaited where the node tells heads.
        """
        if not (at_next_head and self._connection.pushes_heads):
            self._kick.set()
        if not self._closed and (self._task is None or self._task.done()) and (self._slots or self._settled):
            self._task = asyncio.create_task(self._run(), name="chain transactions")

    async def _run(self) -> None:
        while self._slots or self._settled:
            self._kick.clear()
            try:
                await self._look()
            except (ChainError, StoreError, KeyManagerError) as error:
                logger.warning("transactions of %s have to wait: %s", self._dispatch.account.checksum, error)
                await asyncio.sleep(RECEIPT_INTERVAL)
            except Exception:
                # Every transaction of the account depends on this task, whatever a node answers.
                logger.exception("transactions of %s have to wait", self._dispatch.account.checksum)
                await asyncio.sleep(RECEIPT_INTERVAL)
            else:
                await self._news()

    async def _news(self) -> None:
        """Wait for the next head or somebody's kick, at most for an interval."""
        if not (self._slots or self._settled):
            return
        interval = RECEIPT_INTERVAL if self._slots else IDLE_INTERVAL
        news = asyncio.create_task(self._heads.wait(interval, after=self._last))
        waits = [asyncio.create_task(self._kick.wait()), news]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _look(self) -> None:
        """One look at everything under way: what is mined, what is lost, what needs a higher offer."""
        head = self._heads.latest or await self._connection.head()
        await self._watch_settled(head)
        if not self._slots:
            return
        mined = await self._connection.nonce(self._dispatch.account, "latest")
        for nonce in [nonce for nonce in self._book.left if nonce < mined]:
            del self._book.left[nonce]
        # A nonce that is free again tells of a reorg before its heads do.
        await self._recheck([settled for nonce, settled in self._settled.items() if nonce >= mined])
        for nonce in sorted(nonce for nonce in self._slots if nonce < mined):
            if nonce in self._slots:
                await self._conclude(self._slots[nonce])
        waiting = sorted(nonce for nonce in self._slots if nonce >= mined)
        if waiting:
            await self._keep_moving(waiting, mined, head)

    async def _conclude(self, slot: Slot) -> None:
        """The slot's nonce is used up: end it once what used it up is final."""
        for attempt in reversed(slot.attempts):
            receipt = await self._connection.receipt(Bytes32(attempt.hash))
            if receipt is not None:
                if await self._is_final(receipt, attempt):
                    await self._finish(Mined(slot, attempt, receipt))
                return
        if not await self._is_used_up(slot.nonce):
            return
        self._sightings[slot.nonce] = self._sightings.get(slot.nonce, 0) + 1
        if self._sightings[slot.nonce] >= SIGHTINGS:
            logger.warning("%s: another transaction was mined with nonce %d", slot.goal, slot.nonce)
            await self.drop(slot)

    async def _is_final(self, receipt: Receipt, attempt: Attempt) -> bool:
        """Whether the block is deep enough, and was part of the chain before and after its depth was measured."""
        if self._confirmations == 0:
            return True
        head = await self._connection.head()
        if head.ref.number - receipt.block < self._confirmations:
            return False
        again = await self._connection.receipt(Bytes32(attempt.hash))
        return again is not None and again.block_hash == receipt.block_hash

    async def _is_used_up(self, nonce: int) -> bool:
        """Whether `nonce` is used up at the configured depth."""
        if self._confirmations == 0:
            return True
        final = (await self._connection.head()).ref.number - self._confirmations
        return await self._connection.nonce(self._dispatch.account, BlockNumber(max(final, 0))) > nonce

    async def _finish(self, mined: Mined) -> None:
        """Tell who waits. A success is kept for a while, in case a reorg removes it; nothing else is repeated."""
        slot = mined.slot
        if mined.receipt.succeeded and not mined.attempt.gives_up and self._window > self._confirmations:
            self._settled[slot.nonce] = mined
            self._unplaced.add(slot.nonce)
        else:
            await self._store.delete(slot)
        self._end(slot, mined)

    async def _watch_settled(self, head: Head) -> None:
        """Forget what is deep enough; take up again what a reorg removed.

        What is known to be below the last head is below this one too if this one follows it. If not, the newest of
        them answers for all, because it has them among its ancestors.
        """
        for nonce, mined in tuple(self._settled.items()):
            if head.ref.number - mined.receipt.block >= self._window:
                await self._store.delete(mined.slot)
                del self._settled[nonce]
        self._unplaced &= self._settled.keys()
        before = self._last
        placed = [mined for nonce, mined in self._settled.items() if nonce not in self._unplaced]
        if placed and (before is None or before.ref.hash not in (head.ref.hash, head.parent)):
            newest = max(placed, key=lambda mined: mined.receipt.block).receipt
            if not await self._is_below(newest, head):
                await self._recheck(placed)
        for nonce in sorted(self._unplaced):
            mined = self._settled[nonce]
            if mined.receipt.block <= head.ref.number:
                self._unplaced.discard(nonce)
                if not await self._is_below(mined.receipt, head):
                    await self._recheck([mined])
        self._last = head

    async def _is_below(self, receipt: Receipt, head: Head) -> bool:
        """Whether the receipt's block is `head` or one of its ancestors."""
        if receipt.block_hash in (head.ref.hash, head.parent):
            return True
        return await self._connection.block_hash(receipt.block) == receipt.block_hash

    async def _recheck(self, settled: list[Mined]) -> None:
        for mined in sorted(settled, key=lambda mined: mined.slot.nonce):
            nonce = mined.slot.nonce
            receipt = await self._connection.receipt(Bytes32(mined.attempt.hash))
            self._replace_settled(nonce, mined, receipt)

    def _replace_settled(self, nonce: int, mined: Mined, receipt: Receipt | None) -> None:
        """A settled transaction was found elsewhere, or nowhere, unless somebody has found that out already."""
        if self._settled.get(nonce) is not mined:
            return
        if receipt is None:
            self._reopen(mined)
        else:
            self._settled[nonce] = replace(mined, receipt=receipt)
            self._unplaced.add(nonce)

    # ------------------------------------------------------------------------------------------------- keeping moving

    async def _keep_moving(self, waiting: list[int], mined: int, head: Head) -> None:
        pending = await self._connection.nonce(self._dispatch.account, "pending")
        await self._close_gaps(waiting, mined, pending, head)
        for nonce in waiting:
            slot = self._slots.get(nonce)
            if slot is None:
                continue
            if nonce >= pending and await self._connection.transaction(slot.tx_hash) is None:
                if self._is_held(slot, head, waiting):
                    return  # what comes behind it cannot be mined before it
                priced_out = head.base_fee is not None and fees.is_priced_out(slot.max_fee, head.base_fee)
                if priced_out:  # some nodes take it and keep nothing of it: only a higher offer helps
                    await self._replace(slot, head, first=nonce == mined)
                else:
                    await self._rebroadcast(slot, head, first=nonce == mined)
            elif self._needs_more(slot, head, first=nonce == mined):
                await self._replace(slot, head, first=nonce == mined)

    def _is_held(self, slot: Slot, head: Head, waiting: list[int]) -> bool:
        """Whether a conclusion that a reorg removed has to wait for deposits that the same reorg may have removed.

        Mined before them it would settle the channel without them, for ever. Their owners broadcast them at once. When
        something behind it has a deadline, that comes first.
        """
        if slot.nonce not in self._held:
            return False
        since = self._held[slot.nonce]
        if since is None:
            since = self._held[slot.nonce] = head.ref.number
        urgent = any(self._slots[nonce].deadline is not None for nonce in waiting if nonce in self._slots)
        return not urgent and head.ref.number < since + CONCLUSION_PAUSE

    async def _rebroadcast(self, slot: Slot, head: Head, *, first: bool) -> None:
        """The node has lost the transaction, or never got it. `first`: see `_replace`."""
        if first and not slot.newest.gives_up and await self._dispatch.would_fail(slot):
            await self._replace(slot, head, gives_up=True)
            return
        logger.info("%s: broadcasting transaction %s again", slot.goal, slot.tx_id)
        try:
            await self._dispatch.broadcast(slot)
        except (NodeRefused, CallReverted) as error:
            if is_taken(error):
                return  # mined or in the pool by now, which the next look tells
            self._complain(slot, f"is refused: {error}")
            if is_too_cheap(error):
                await self._replace(slot, head, boost=1)
            elif cannot_be_paid(error) or isinstance(error, CallReverted):
                await self._replace(slot, head, gives_up=True)

    def _complain(self, slot: Slot, text: str) -> None:
        """Say once about a slot what every look at it finds anew."""
        said = self._complaints.setdefault(slot.nonce, set())
        level = logging.DEBUG if text in said else logging.WARNING
        said.add(text)
        logger.log(level, "%s: transaction %s %s", slot.goal, slot.tx_id, text)

    def _needs_more(self, slot: Slot, head: Head, *, first: bool) -> bool:
        """Whether the offer is too low for the next block, or the slot at the front was left out for too long."""
        left_out = head.ref.number - slot.block
        if head.base_fee is None or left_out < 1:
            return False
        if fees.is_priced_out(slot.max_fee, head.base_fee):
            return True
        return first and left_out >= fees.PATIENCE[self._dispatch.urgency(slot, head)]

    async def _replace(
        self, slot: Slot, head: Head, *, first: bool = False, boost: int = 0, gives_up: bool = False
    ) -> None:
        """Sign the slot's transaction anew with a higher offer, as far as limits and balance allow.

        What would fail by now (`first`: nothing of ours is in front that could change that) becomes an empty transfer.
        """
        if head.base_fee is None:
            return
        gives_up = gives_up or slot.newest.gives_up or (first and await self._dispatch.would_fail(slot))
        urgency = self._dispatch.urgency(slot, head)
        wanted = fees.offer(base_fee=head.base_fee, tip=await self._dispatch.tip(), urgency=urgency, boost=boost)
        priced_out = fees.is_priced_out(slot.max_fee, head.base_fee)
        if urgency is Urgency.CALM and not (priced_out or boost or gives_up) and wanted.tip <= slot.max_priority_fee:
            return  # it offers what is asked for; something else keeps it out, and nobody is in a hurry
        gas, wei = (GAS_TRANSFER, 0) if gives_up else (slot.gas, slot.wei)
        limit = await self._dispatch.limit(slot, urgency, gas=gas, wei=wei)
        offer = fees.raised(slot.offer, wanted, limit)
        if offer is None or offer.max_fee <= head.base_fee:
            self._complain(slot, f"cannot be offered enough (limit {limit} wei per gas)")
            return
        raised = await self._dispatch.signed(slot, Quote(offer, head), gives_up=gives_up)
        if self._slots.get(slot.nonce) is not slot:
            return  # it changed meanwhile; the next look decides anew
        logger.info("%s: %s replaces %s at nonce %d", slot.goal, raised.tx_id, slot.tx_id, slot.nonce)
        self._slots[slot.nonce] = raised
        try:
            await self._store.save(raised)
        except StoreError:
            # What is not durable must not be broadcast, not even by the next look.
            self._slots[slot.nonce] = slot
            raise
        try:
            await self._dispatch.broadcast(raised)
        except (NodeRefused, CallReverted) as error:
            self._complain(raised, f"is refused: {error}")

    async def _close_gaps(self, waiting: list[int], mined: int, pending: int, head: Head) -> None:
        """Nonces in front of ours that nobody looks after: those of closed sessions, and those that nobody knows."""
        for nonce in range(mined, waiting[-1]):
            if self._book.is_looked_after(nonce):
                continue
            behind = self._slots.get(next(own for own in waiting if own > nonce))
            if behind is None:
                continue
            left = self._book.left.get(nonce)
            if left is not None and await self._connection.transaction(left.tx_hash) is None:
                logger.info("broadcasting transaction %s of a closed session again", left.tx_id)
                try:
                    await self._dispatch.broadcast(left)
                    continue
                except (NodeRefused, CallReverted) as error:
                    logger.warning("transaction %s of a closed session is refused: %s", left.tx_id, error)
            late = head.ref.number - behind.block >= fees.PATIENCE[self._dispatch.urgency(behind, head)]
            if late and (left is not None or nonce >= pending):
                await self._fill(nonce, behind, head)

    async def _fill(self, nonce: int, behind: Slot, head: Head) -> None:
        """Use `nonce` up with an empty transfer, for the sake of `behind`."""
        async with self._lock:
            if self._book.is_looked_after(nonce) or head.base_fee is None:
                return
            left = self._book.left.get(nonce)
            urgency = self._dispatch.urgency(behind, head)
            wanted = fees.offer(base_fee=head.base_fee, tip=await self._dispatch.tip(), urgency=urgency)
            slot = replace(
                behind,
                nonce=nonce,
                goal=f"fill {nonce}",
                tx_type="",
                to=bytes(self._dispatch.account),
                value=bytes(32),
                data=b"",
                gas=GAS_TRANSFER,
                attempts=(),
            )
            limit = await self._dispatch.limit(slot, urgency, gas=GAS_TRANSFER, wei=0)
            offer = fees.limited(wanted, limit, base_fee=head.base_fee)
            if left is not None:
                offer = fees.raised(left.offer, wanted, limit)
            if offer is None:
                return
            slot = await self._dispatch.signed(slot, Quote(offer, head), gives_up=True)
            logger.warning("nonce %d of %s is filled with %s", nonce, self._dispatch.account.checksum, slot.tx_id)
            await self.record(slot)
            self._book.left.pop(nonce, None)
            try:
                await self._dispatch.broadcast(slot)
            except (NodeRefused, CallReverted) as error:
                logger.warning("filling nonce %d is refused: %s", nonce, error)

"""The on-chain transactions of one account: a persisted queue that neither loses a transaction nor sends one twice.

The order of one transaction is: estimate → (under the account's lock) nonce → sign → record durably → broadcast → wait.
A task of its own then keeps every open slot moving, whoever still waits for it, until its nonce is used up on chain:
what the node lost is broadcast again, what cannot pay the base fee or is left out of blocks is replaced with a higher
offer, what has become pointless or impossible is replaced with an empty transfer, and gaps in front are filled. A
caller that gives up, a lost connection or a restart changes nothing: the next call with the same goal joins the slot.
The law of `slots` makes all of this safe: a goal keeps its nonce until that nonce is used up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from eth_typing import BlockNumber
from msgspec import Struct
from msgspec.structs import replace

from perun_core.errors import (
    ChainError,
    InsufficientFunds,
    KeyManagerError,
    NotReachable,
    StoreError,
    TxReverted,
    TxTimedOut,
)
from perun_core.ports.chain import Sent, TxSigner
from perun_core.ports.keymgr import UnsignedTx
from perun_core.ports.store import Store
from perun_core.values import Address, Bytes32, keccak256

from . import fees
from .connection import CallReverted, Connection, Head, Log, NodeRefused, Receipt
from .fees import Limits, Offer, Urgency
from .heads import HeadFeed
from .slots import SLOT_FORMAT, AccountBook, Attempt, Slot, SlotStore

logger: Final = logging.getLogger(__name__)

GAS_MARGIN: Final = (5, 4)
GAS_SLACK: Final = 40_000
"""The gas limit is the estimate times the fraction plus the slack: another transaction that is mined in between may
empty two storage words (an allowance, a balance), and writing an empty one costs 17,100 gas more (EIP-2200, 2929)."""

GAS_CAP: Final = 2**24
"""Highest gas limit of a transaction (EIP-7825)."""

GAS_TRANSFER: Final = 21_000
"""What an empty transfer uses."""

SEND_ATTEMPTS: Final = 8
"""How often a transaction is made anew when its nonce turns out to be taken or its fee too low for the node."""

ROUNDS: Final = 8
"""How often a goal is pursued anew when its nonce was used by somebody else."""

SIGHTINGS: Final = 2
"""How often a used-up nonce has to be seen without a receipt of ours before it counts as somebody else's: nodes behind
one address may know different amounts of the chain."""

RECEIPT_INTERVAL: Final = 1.0
"""Longest pause in seconds between two looks at the transactions that are under way."""

IDLE_INTERVAL: Final = 30.0
"""The same while all of them are mined and only watched for reorgs."""


class Inclusion(Struct, frozen=True):
    """A transaction of ours that is mined, successful and final."""

    tx_id: str
    block: int
    contract: Address | None
    """What it created, if anything."""
    logs: tuple[Log, ...]


class Request(Struct, frozen=True):
    """A transaction to be made. `value` is wei; `tx_type` a word of API.md 2.1.2; `to` None creates a contract."""

    tx_type: str
    to: Address | None
    data: bytes
    value: int = 0
    prepare: Callable[[], Awaitable[None]] | None = None
    """Reaches what must be there before the transaction can succeed; called only when it is about to be sent."""


Make = Callable[[], Awaitable[Request | None]]
"""Looks whether a goal is reached at the latest block: None, or the transaction that brings it about."""


class _Mined(Struct, frozen=True):
    """Which attempt of a slot was mined, and where."""

    slot: Slot
    attempt: Attempt
    receipt: Receipt


class _Quote(Struct, frozen=True):
    """An offer, and the head it was made for."""

    offer: Offer
    head: Head


class _Ticket(Struct):
    """A slot as a caller knows it, and where its end will be told: None when nothing of ours was mined."""

    slot: Slot
    outcome: asyncio.Future[_Mined | None]


class AccountTransactions:
    """Sends the transactions of `signer`'s account on the chain of `connection`. Calls may run concurrently."""

    def __init__(
        self,
        connection: Connection,
        heads: HeadFeed,
        *,
        signer: TxSigner,
        store: Store,
        lock: asyncio.Lock,
        book: AccountBook,
        timeout: float,
        finality_depth: int,
        limits: Limits,
        reorg_window: int,
    ) -> None:
        """`lock` and `book` are shared by everybody in this process who sends from the account.

        `timeout` is in seconds; `reorg_window` is the number of blocks for which a mined transaction is kept, to be
        broadcast again when a reorg removes it.
        """
        self._connection = connection
        self._heads = heads
        self._signer = signer
        self._store = SlotStore(store, signer.address, connection.chain_id)
        self._lock = lock
        self._book = book
        self._timeout = timeout
        self._confirmations = finality_depth - 1
        self._limits = limits
        self._window = reorg_window
        self._slots: dict[int, Slot] = {}
        self._settled: dict[int, _Mined] = {}
        self._outcomes: dict[int, asyncio.Future[_Mined | None]] = {}
        self._sightings: dict[int, int] = {}
        self._last: Head | None = None
        self._kick = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def account(self) -> Address:
        """The account that signs and pays."""
        return self._signer.address

    async def start(self) -> None:
        """Take up what an earlier run left open. Raises: StoreError, ChainError when a record cannot be read."""
        for slot in (await self._store.load()).values():
            self._add(slot)
        self._book.join(self._slots, self._settled)
        self._wake()

    async def close(self) -> None:
        """Stop; what is under way stays recorded. Callers that still wait get NotReachable. Idempotent."""
        self._closed = True
        self._book.leave(self._slots)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for outcome in self._outcomes.values():
            outcome.cancel()

    # ---------------------------------------------------------------------------------------------------- for callers

    async def bring_about(
        self, goal: str, make: Make, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Inclusion | None:
        """Reach `goal` with at most one effect; the transaction of ours that did it, None when nobody had to send.

        A transaction under way for the goal is joined. Otherwise `make` decides, again after every one that was
        reverted or whose nonce somebody else used. `deadline` is the block time by which it should be mined.
        Raises: TxReverted (also when the estimate says so) unless the goal is reached nevertheless, InsufficientFunds,
        TxTimedOut, NotReachable, KeyManagerError, StoreError.
        """
        async with self._book.pursuing(goal):
            done: Inclusion | None = None
            failure: TxReverted | None = None
            for _ in range(ROUNDS):
                ticket = await self._join(goal, deadline)
                joined = ticket is not None
                if ticket is None:
                    request = await make()
                    if request is None:
                        return done
                    if failure is not None:
                        raise failure
                    ticket = await self._resume(goal)
                    if ticket is None:
                        if request.prepare is not None:
                            await request.prepare()
                        ticket = await self._send(goal, request, deadline)
                if sent is not None:
                    await sent(ticket.slot.tx_id)
                try:
                    inclusion = await self._outcome(ticket)
                except TxReverted as error:
                    logger.warning("%s: %s", goal, error)
                    failure = None if joined else error
                    continue
                if inclusion is not None and not joined:
                    return inclusion
                done = inclusion or done
        raise ChainError(f"{goal}: other transactions of the account {self.account.checksum} were always faster")

    async def take_over(self, goal: str) -> Inclusion | None:
        """Wait for a transaction that is under way for `goal`; None when there is none, or it had no effect.

        Raises: TxTimedOut, NotReachable.
        """
        async with self._book.pursuing(goal):
            ticket = await self._join(goal, None)
            try:
                return None if ticket is None else await self._outcome(ticket)
            except TxReverted as error:
                logger.warning("%s: %s", goal, error)
                return None

    def pursuing(self, goal: str) -> AbstractAsyncContextManager[None]:
        """Hold to keep others who send from the account from pursuing `goal`; not for goals of `bring_about`."""
        return self._book.pursuing(goal)

    async def fees(self) -> Offer:
        """What a transaction without a deadline that is sent now offers, without the operator's limits.

        Raises: ChainError when the chain has no EIP-1559 fees.
        """
        _, base_fee = await self._head()
        return fees.offer(base_fee=base_fee, tip=await self._connection.tip(), urgency=Urgency.CALM)

    async def _join(self, goal: str, deadline: int | None) -> _Ticket | None:
        """The slot that is under way for `goal`, in as much of a hurry as the caller is."""
        slot = next((slot for slot in self._slots.values() if slot.goal == goal), None)
        if slot is None:
            return None
        ticket = _Ticket(slot, self._outcomes[slot.nonce])
        if deadline is not None and (slot.deadline is None or deadline < slot.deadline):
            self._slots[slot.nonce] = replace(slot, deadline=deadline)
            await self._store.save(self._slots[slot.nonce])
        self._wake()
        return ticket

    async def _resume(self, goal: str) -> _Ticket | None:
        """A transaction for `goal` that had been successful, in case a reorg has removed it since."""
        for mined in tuple(self._settled.values()):
            gone = mined.slot.goal == goal and await self._connection.receipt(Bytes32(mined.attempt.hash)) is None
            if gone and self._settled.get(mined.slot.nonce) is mined:
                self._reopen(mined)
            if gone and mined.slot.nonce in self._slots:
                return _Ticket(mined.slot, self._outcomes[mined.slot.nonce])
        return None

    async def _outcome(self, ticket: _Ticket) -> Inclusion | None:
        """Wait until the slot's nonce is used up; None when it was not by what the caller wanted.

        Raises: TxReverted, TxTimedOut, NotReachable when the backend is closed.
        """
        slot = ticket.slot
        try:
            async with asyncio.timeout(self._timeout):
                mined = await asyncio.shield(ticket.outcome)
        except TimeoutError as error:
            raise TxTimedOut(slot.tx_type, self._slots.get(slot.nonce, slot).tx_id) from error
        except asyncio.CancelledError:
            if ticket.outcome.cancelled():
                raise NotReachable("the chain backend was closed") from None
            raise
        if mined is None or mined.attempt.gives_up:
            return None
        tx_id = "0x" + mined.attempt.hash.hex()
        if not mined.receipt.succeeded:
            raise TxReverted(slot.tx_type, await self._why(mined), tx_id)
        return Inclusion(tx_id, mined.receipt.block, mined.receipt.contract, mined.receipt.logs)

    async def _why(self, mined: _Mined) -> str:
        """The contract's reason for failing, found by repeating the transaction on the block before; "" if unknown."""
        receipt = mined.receipt
        try:
            sent = await self._connection.transaction(Bytes32(mined.attempt.hash))
            if sent is None:
                return ""
            if receipt.gas_used >= sent.gas:
                return "out of gas"
            await self._connection.call(
                sent.to, sent.data, block=BlockNumber(receipt.block - 1), sender=self.account, value=sent.value
            )
        except CallReverted as error:
            return error.reason
        except ChainError:
            return ""
        return "the state it was made for had changed in its own block"

    # -------------------------------------------------------------------------------------------------------- sending

    async def _send(self, goal: str, request: Request, deadline: int | None) -> _Ticket:
        """Sign, record and broadcast with the next free nonce. Nothing is left behind when the node refuses."""
        gas = await self._gas(request)
        taken: set[int] = set()
        boost = 0
        for _ in range(SEND_ATTEMPTS):
            quote = await self._quote(request.tx_type, deadline, boost)
            async with self._lock:
                await self._check_balance(request.value + gas * quote.offer.max_fee, with_slots=True)
                slot = await self._signed(
                    Slot(
                        format=SLOT_FORMAT,
                        chain_id=self._connection.chain_id,
                        account=bytes(self.account),
                        nonce=await self._next_nonce(taken),
                        goal=goal,
                        tx_type=request.tx_type,
                        to=None if request.to is None else bytes(request.to),
                        value=request.value.to_bytes(32, "big"),
                        data=request.data,
                        gas=gas,
                        time=quote.head.ref.timestamp,
                        deadline=deadline,
                        attempts=(),
                        raw=b"",
                        max_fee=0,
                        max_priority_fee=0,
                        block=0,
                    ),
                    quote,
                )
                outcome = await self._record(slot)
                try:
                    await self._broadcast(slot)
                    return _Ticket(slot, outcome)
                except (NodeRefused, CallReverted) as error:
                    refusal = error
                    if not _is_definite(error):
                        # The node may have the transaction nevertheless, so the slot has to be pursued.
                        logger.warning("%s: broadcasting %s: %s", goal, slot.tx_id, error)
                        return _Ticket(slot, outcome)
                    await self._drop(slot)
                finally:
                    self._wake()
            if _is_taken(refusal):
                taken.add(slot.nonce)
            elif _is_too_cheap(refusal):
                boost += 1
            else:
                raise _refused(request.tx_type, refusal) from refusal
        raise ChainError(f"{request.tx_type}: the chain node takes no transaction of {self.account.checksum}")

    async def _gas(self, request: Request) -> int:
        """The gas limit. Raises: TxReverted, InsufficientFunds, ChainError when no block could hold it."""
        if request.value > 0:
            await self._check_balance(request.value)
        try:
            estimate = await self._connection.estimate_gas(
                request.to, request.data, sender=self.account, value=request.value
            )
        except CallReverted as error:
            raise TxReverted(request.tx_type, error.reason) from error
        except NodeRefused as error:
            if "insufficient funds" in error.message.lower():
                raise InsufficientFunds(f"{self.account.checksum} cannot pay: {error.message}") from error
            raise
        if estimate > GAS_CAP:
            raise ChainError(f"{request.tx_type}: a transaction may not use {estimate} gas")
        numerator, denominator = GAS_MARGIN
        return min(estimate * numerator // denominator + GAS_SLACK, GAS_CAP)

    async def _check_balance(self, needed: int, *, with_slots: bool = False) -> None:
        """`with_slots`: beside everything that is on its way. Raises: InsufficientFunds."""
        reserved = sum(slot.cost for slot in self._book.slots()) if with_slots else 0
        balance = await self._connection.balance(self.account)
        if balance < needed + reserved and reserved:
            # What is mined by now is no longer to be paid.
            mined = await self._connection.nonce(self.account, "latest")
            reserved = sum(slot.cost for slot in self._book.slots() if slot.nonce >= mined)
            balance = await self._connection.balance(self.account)
        if balance < needed + reserved:
            raise InsufficientFunds(f"{self.account.checksum} has {balance} wei, but {needed + reserved} are needed")

    async def _head(self) -> tuple[Head, int]:
        """The latest head and its base fee. Raises: ChainError when the chain has none."""
        head = await self._connection.head()
        if head.base_fee is None:
            raise ChainError("the chain has no base fee (EIP-1559)")
        return head, head.base_fee

    async def _quote(self, tx_type: str, deadline: int | None, boost: int) -> _Quote:
        """An offer within the limits; waits for the base fee to fall where they do not allow one.

        Raises: ChainError when it does not fall in time.
        """
        tip = await self._connection.tip()
        made: int | None = None
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    head, base_fee = await self._head()
                    now = head.ref.timestamp
                    made = now if made is None else made
                    urgency = fees.urgency(made=made, now=now, deadline=deadline)
                    wanted = fees.offer(base_fee=base_fee, tip=tip, urgency=urgency, boost=boost)
                    offer = fees.limited(wanted, self._limits.at(urgency), base_fee=base_fee)
                    if offer is not None:
                        return _Quote(offer, head)
                    await self._heads.wait(RECEIPT_INTERVAL)
        except TimeoutError as error:
            raise ChainError(f"{tx_type}: the base fee stays above the configured limit") from error

    async def _next_nonce(self, taken: set[int]) -> int:
        """The lowest nonce that neither the node nor anybody in this process has under way."""
        nonce = await self._connection.nonce(self.account, "pending")
        while nonce in taken or self._book.is_used(nonce):
            nonce += 1
        return nonce

    async def _signed(self, slot: Slot, quote: _Quote, *, gives_up: bool = False) -> Slot:
        """`slot` with one more attempt, at the quoted offer; `gives_up` makes it an empty transfer to ourselves."""
        offer = quote.offer
        to = self.account if gives_up else None if slot.to is None else Address(slot.to)
        raw = await self._signer.sign(
            UnsignedTx(
                chain_id=slot.chain_id,
                nonce=slot.nonce,
                max_priority_fee=offer.tip,
                max_fee=offer.max_fee,
                gas=GAS_TRANSFER if gives_up else slot.gas,
                to=to,
                value=0 if gives_up else slot.wei,
                data=b"" if gives_up else slot.data,
            )
        )
        return replace(
            slot,
            attempts=(*slot.attempts, Attempt(bytes(keccak256(raw)), gives_up)),
            raw=raw,
            max_fee=offer.max_fee,
            max_priority_fee=offer.tip,
            block=quote.head.ref.number,
        )

    async def _broadcast(self, slot: Slot) -> None:
        """Raises: NotReachable, NodeRefused, CallReverted; no error when the node has the transaction already."""
        try:
            await self._connection.send_raw(slot.raw)
        except (NodeRefused, CallReverted) as error:
            if "already" not in str(error).lower() and await self._connection.transaction(slot.tx_hash) is None:
                raise

    # ---------------------------------------------------------------------------------------------------------- slots

    async def _record(self, slot: Slot) -> asyncio.Future[_Mined | None]:
        """Make a new slot durable, then known. Raises: StoreError."""
        await self._store.save(slot)
        return self._add(slot)

    def _add(self, slot: Slot) -> asyncio.Future[_Mined | None]:
        self._slots[slot.nonce] = slot
        outcome: asyncio.Future[_Mined | None] = asyncio.get_running_loop().create_future()
        self._outcomes[slot.nonce] = outcome
        return outcome

    async def _drop(self, slot: Slot) -> None:
        """Forget a slot that can have no effect any more, durably before anybody builds on it. Raises: StoreError."""
        await self._store.delete(slot)
        self._end(slot, None)

    def _end(self, slot: Slot, mined: _Mined | None) -> None:
        del self._slots[slot.nonce]
        self._sightings.pop(slot.nonce, None)
        outcome = self._outcomes.pop(slot.nonce)
        if not outcome.done():
            outcome.set_result(mined)

    def _reopen(self, mined: _Mined) -> None:
        logger.warning("a reorg removed transaction %s; it is broadcast again", mined.slot.tx_id)
        del self._settled[mined.slot.nonce]
        self._add(mined.slot)
        self._wake()

    # -------------------------------------------------------------------------------------------------------- pursuing

    def _wake(self) -> None:
        """Have the slots looked at now; the task that does so lives as long as there are any."""
        self._kick.set()
        if not self._closed and (self._task is None or self._task.done()) and (self._slots or self._settled):
            self._task = asyncio.create_task(self._run(), name="chain transactions")

    async def _run(self) -> None:
        while self._slots or self._settled:
            self._kick.clear()
            try:
                await self._look()
            except (ChainError, StoreError, KeyManagerError) as error:
                logger.warning("transactions of %s have to wait: %s", self.account.checksum, error)
            except Exception:
                # Every transaction of the account depends on this task, whatever a node answers.
                logger.exception("transactions of %s have to wait", self.account.checksum)
            if self._slots or self._settled:
                await self._news()

    async def _news(self) -> None:
        """Wait for the next head or somebody's kick, at most for an interval."""
        interval = RECEIPT_INTERVAL if self._slots else IDLE_INTERVAL
        waits = [asyncio.create_task(self._kick.wait()), asyncio.create_task(self._heads.wait(interval))]
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
        mined = await self._connection.nonce(self.account, "latest")
        for nonce in [nonce for nonce in self._book.left if nonce < mined]:
            del self._book.left[nonce]
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
                    await self._finish(_Mined(slot, attempt, receipt))
                return
        if not await self._is_used_up(slot.nonce):
            return
        self._sightings[slot.nonce] = self._sightings.get(slot.nonce, 0) + 1
        if self._sightings[slot.nonce] >= SIGHTINGS:
            logger.warning("%s: another transaction was mined with nonce %d", slot.goal, slot.nonce)
            await self._drop(slot)

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
        return await self._connection.nonce(self.account, BlockNumber(max(final, 0))) > nonce

    async def _finish(self, mined: _Mined) -> None:
        """Tell who waits. A success is kept for a while, in case a reorg removes it; nothing else is repeated."""
        slot = mined.slot
        if mined.receipt.succeeded and not mined.attempt.gives_up and self._window > self._confirmations:
            self._settled[slot.nonce] = mined
        else:
            await self._store.delete(slot)
        self._end(slot, mined)

    async def _watch_settled(self, head: Head) -> None:
        """Forget what is deep enough; take up again what a reorg removed."""
        for nonce, mined in tuple(self._settled.items()):
            if head.ref.number - mined.receipt.block >= self._window:
                await self._store.delete(mined.slot)
                del self._settled[nonce]
        before = self._last
        continuous = before is not None and before.ref.hash in (head.ref.hash, head.parent)
        if self._settled and not continuous:
            # The newest of them has all others among its ancestors.
            newest = max(self._settled.values(), key=lambda mined: mined.receipt.block).receipt
            if await self._connection.block_hash(newest.block) != newest.block_hash:
                await self._recheck_settled()
        self._last = head

    async def _recheck_settled(self) -> None:
        for nonce, mined in sorted(self._settled.items()):
            receipt = await self._connection.receipt(Bytes32(mined.attempt.hash))
            if self._settled.get(nonce) is not mined:
                continue
            if receipt is None:
                self._reopen(mined)
            else:
                self._settled[nonce] = replace(mined, receipt=receipt)

    async def _keep_moving(self, waiting: list[int], mined: int, head: Head) -> None:
        pending = await self._connection.nonce(self.account, "pending")
        await self._close_gaps(waiting, mined, pending, head)
        for nonce in waiting:
            slot = self._slots.get(nonce)
            if slot is None:
                continue
            if nonce >= pending and await self._connection.transaction(slot.tx_hash) is None:
                await self._rebroadcast(slot, head, first=nonce == mined)
            elif self._needs_more(slot, head, first=nonce == mined):
                await self._replace(slot, head, first=nonce == mined)

    async def _rebroadcast(self, slot: Slot, head: Head, *, first: bool) -> None:
        """The node has lost the transaction, or never got it. `first`: see `_replace`."""
        if first and not slot.newest.gives_up and await self._would_fail(slot):
            await self._replace(slot, head, gives_up=True)
            return
        logger.info("%s: broadcasting transaction %s again", slot.goal, slot.tx_id)
        try:
            await self._broadcast(slot)
        except (NodeRefused, CallReverted) as error:
            if _is_taken(error):
                return  # mined or in the pool by now, which the next look tells
            logger.warning("%s: transaction %s is refused: %s", slot.goal, slot.tx_id, error)
            if _is_too_cheap(error):
                await self._replace(slot, head, boost=1)
            elif _cannot_be_paid(error) or isinstance(error, CallReverted):
                await self._replace(slot, head, gives_up=True)

    def _urgency(self, slot: Slot, head: Head) -> Urgency:
        return fees.urgency(made=slot.time, now=head.ref.timestamp, deadline=self._book.deadline(slot.nonce))

    def _needs_more(self, slot: Slot, head: Head, *, first: bool) -> bool:
        """Whether the offer is too low for the next block, or the slot at the front was left out for too long."""
        left_out = head.ref.number - slot.block
        if head.base_fee is None or left_out < 1:
            return False
        if fees.is_priced_out(slot.max_fee, head.base_fee):
            return True
        return first and left_out >= fees.PATIENCE[self._urgency(slot, head)]

    async def _replace(
        self, slot: Slot, head: Head, *, first: bool = False, boost: int = 0, gives_up: bool = False
    ) -> None:
        """Sign the slot's transaction anew with a higher offer, as far as limits and balance allow.

        What would fail by now (`first`: nothing of ours is in front that could change that) becomes an empty transfer.
        """
        if head.base_fee is None:
            return
        gives_up = gives_up or slot.newest.gives_up or (first and await self._would_fail(slot))
        urgency = self._urgency(slot, head)
        wanted = fees.offer(
            base_fee=head.base_fee, tip=await self._connection.tip(), urgency=urgency, boost=boost
        )
        priced_out = fees.is_priced_out(slot.max_fee, head.base_fee)
        if urgency is Urgency.CALM and not (priced_out or boost or gives_up) and wanted.tip <= slot.max_priority_fee:
            return  # it offers what is asked for; something else keeps it out, and nobody is in a hurry
        gas, wei = (GAS_TRANSFER, 0) if gives_up else (slot.gas, slot.wei)
        limit = await self._limit(slot, urgency, gas=gas, wei=wei)
        offer = fees.raised(slot.offer, wanted, limit)
        if offer is None:
            logger.warning("%s: transaction %s cannot be offered more (limit %s)", slot.goal, slot.tx_id, limit)
            return
        raised = await self._signed(slot, _Quote(offer, head), gives_up=gives_up)
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
            await self._broadcast(raised)
        except (NodeRefused, CallReverted) as error:
            logger.warning("%s: transaction %s is refused: %s", raised.goal, raised.tx_id, error)

    async def _limit(self, slot: Slot, urgency: Urgency, *, gas: int, wei: int) -> int | None:
        """The highest fee per gas: what the operator allows, and what the account can pay beside everything else."""
        mined = await self._connection.nonce(self.account, "latest")
        balance = await self._connection.balance(self.account)
        others = sum(other.cost for other in self._book.slots() if other.nonce >= mined and other.nonce != slot.nonce)
        payable = max(balance - others - wei, 0) // gas
        allowed = self._limits.at(urgency)
        return payable if allowed is None else min(payable, allowed)

    async def _would_fail(self, slot: Slot) -> bool:
        to = None if slot.to is None else Address(slot.to)
        try:
            await self._connection.estimate_gas(to, slot.data, sender=self.account, value=slot.wei)
        except CallReverted:
            return True
        except NodeRefused as error:
            return _cannot_be_paid(error)
        return False

    async def _close_gaps(self, waiting: list[int], mined: int, pending: int, head: Head) -> None:
        """Nonces in front of ours that nobody looks after: those of closed sessions, and those that nobody knows."""
        for nonce in range(mined, waiting[-1]):
            if self._book.is_open(nonce):
                continue
            behind = self._slots.get(next(own for own in waiting if own > nonce))
            if behind is None:
                continue
            left = self._book.left.get(nonce)
            if left is not None and await self._connection.transaction(left.tx_hash) is None:
                logger.info("broadcasting transaction %s of a closed session again", left.tx_id)
                try:
                    await self._broadcast(left)
                    continue
                except (NodeRefused, CallReverted) as error:
                    logger.warning("transaction %s of a closed session is refused: %s", left.tx_id, error)
            late = head.ref.number - behind.block >= fees.PATIENCE[self._urgency(behind, head)]
            if late and (left is not None or nonce >= pending):
                await self._fill(nonce, behind, head)

    async def _fill(self, nonce: int, behind: Slot, head: Head) -> None:
        """Use `nonce` up with an empty transfer, for the sake of `behind`."""
        async with self._lock:
            if self._book.is_open(nonce) or head.base_fee is None:
                return
            left = self._book.left.get(nonce)
            urgency = self._urgency(behind, head)
            wanted = fees.offer(base_fee=head.base_fee, tip=await self._connection.tip(), urgency=urgency)
            slot = replace(
                behind,
                nonce=nonce,
                goal=f"fill {nonce}",
                tx_type="",
                to=bytes(self.account),
                value=bytes(32),
                data=b"",
                gas=GAS_TRANSFER,
                attempts=(),
            )
            limit = await self._limit(slot, urgency, gas=GAS_TRANSFER, wei=0)
            offer = fees.limited(wanted, limit, base_fee=head.base_fee)
            if left is not None:
                offer = fees.raised(left.offer, wanted, limit)
            if offer is None:
                return
            slot = await self._signed(slot, _Quote(offer, head), gives_up=True)
            logger.warning("nonce %d of %s is filled with %s", nonce, self.account.checksum, slot.tx_id)
            await self._record(slot)
            self._book.left.pop(nonce, None)
            try:
                await self._broadcast(slot)
            except (NodeRefused, CallReverted) as error:
                logger.warning("filling nonce %d is refused: %s", nonce, error)


def _is_taken(error: ChainError) -> bool:
    """The nonce is used up, or something that offers at least as much waits with it."""
    text = str(error).lower()
    return "nonce too low" in text or "replacement" in text


def _is_too_cheap(error: ChainError) -> bool:
    text = str(error).lower()
    return "less than block base fee" in text or "underpriced" in text or "fee cap" in text


def _cannot_be_paid(error: ChainError) -> bool:
    return "insufficient funds" in str(error).lower()


DEFINITE: Final = (
    "insufficient funds",
    "nonce too",
    "underpriced",
    "base fee",
    "fee cap",
    "gas limit",
    "gas too low",
    "intrinsic gas",
    "chain id",
    "chainid",
    "chain-id",
    "sender",
    "signature",
    "oversized",
    "not supported",
    "allowance",
)
"""What a refusal says when the transaction is certainly not on its way. Any other may be about a part of the way."""


def _is_definite(error: ChainError) -> bool:
    text = str(error).lower()
    return isinstance(error, CallReverted) or any(words in text for words in DEFINITE)


def _refused(tx_type: str, error: NodeRefused | CallReverted) -> ChainError:
    if isinstance(error, CallReverted):
        return TxReverted(tx_type, error.reason)
    if _cannot_be_paid(error):
        return InsufficientFunds(error.message)
    return ChainError(f"{tx_type}: {error}")

"""The on-chain transactions of one account: a persisted queue that neither loses a transaction nor sends one twice.

The order of one transaction is: estimate → the node's view of nonce and balance → (under the account's lock) nonce →
sign → record durably → broadcast → wait.
From the record on `pursuit` keeps it moving: a caller that gives up, a lost connection or a restart changes nothing,
and the next call with the same goal joins what is under way. The law of `slots` makes this safe: a goal keeps its nonce
until that nonce is used up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from eth_typing import BlockNumber
from msgspec import Struct

from perun_core.errors import ChainError, NotReachable, TxReverted, TxTimedOut
from perun_core.ports.chain import Sent, TxSigner
from perun_core.ports.store import Store
from perun_core.values import Address, Bytes32

from .connection import CallReverted, Connection, Log, NodeRefused
from .dispatch import Dispatch, Request, is_definite, is_taken, is_too_cheap, refused
from .fees import Limits, Offer
from .heads import HeadFeed
from .pursuit import Mined, Pursuit, Ticket
from .slots import SLOT_FORMAT, AccountBook, Slot, SlotStore

logger: Final = logging.getLogger(__name__)

SEND_ATTEMPTS: Final = 8
"""How often a transaction is made anew when its nonce turns out to be taken or its fee too low for the node."""

ROUNDS: Final = 8
"""How often a goal is pursued anew when its nonce was used by somebody else."""


class Inclusion(Struct, frozen=True):
    """A transaction of ours that is mined, successful and final."""

    tx_id: str
    block: int
    contract: Address | None
    """What it created, if anything."""
    logs: tuple[Log, ...]


Make = Callable[[], Awaitable[Request | None]]
"""Looks whether a goal is reached at the latest block: None, or the transaction that brings it about."""


Standing = frozenset[tuple[int, Bytes32 | None]]
"""See `Pursuit.standing`."""


class _Changed(Exception):
    """What was done for a goal is not what it was when the goal was looked at."""


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
        self._lock = lock
        self._book = book
        self._timeout = timeout
        self._dispatch = Dispatch(connection, heads, signer=signer, book=book, limits=limits, timeout=timeout)
        self._pursuit = Pursuit(
            connection,
            heads,
            dispatch=self._dispatch,
            store=SlotStore(store, signer.address, connection.chain_id),
            lock=lock,
            book=book,
            finality_depth=finality_depth,
            reorg_window=reorg_window,
        )

    @property
    def account(self) -> Address:
        """The account that signs and pays."""
        return self._dispatch.account

    async def start(self) -> None:
        """Take up what an earlier run left open. Raises: StoreError, ChainError when a record cannot be read."""
        await self._pursuit.start()

    async def close(self) -> None:
        """Stop; what is under way stays recorded. Callers that still wait get NotReachable. Idempotent."""
        await self._pursuit.close()

    async def fees(self) -> Offer:
        """What a transaction without a deadline offers now. Raises: ChainError when the chain has no EIP-1559 fees."""
        return await self._dispatch.fees()

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
                work: Ticket | Request | None = await self._join(goal, deadline)
                joined = work is not None
                standing = self._pursuit.standing(goal)
                if work is None:
                    work = await make()
                    if work is None:
                        return done
                    if failure is not None:
                        raise failure
                    if await self._pursuit.has_moved(goal):
                        continue
                try:
                    inclusion = await self._carry_out(goal, work, standing, deadline, sent)
                except _Changed:
                    continue
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

    async def _join(self, goal: str, deadline: int | None) -> Ticket | None:
        """The slot that is under way for `goal`, in as much of a hurry as the caller is."""
        ticket = self._pursuit.ticket(goal)
        if ticket is not None and deadline is not None:
            await self._pursuit.hurry(ticket.slot, deadline)
        return ticket

    async def _outcome(self, ticket: Ticket) -> Inclusion | None:
        """Wait until the slot's nonce is used up; None when it was not by what the caller wanted.

        Raises: TxReverted, TxTimedOut, NotReachable when the backend is closed.
        """
        slot = ticket.slot
        try:
            async with asyncio.timeout(self._timeout):
                mined = await asyncio.shield(ticket.outcome)
        except TimeoutError as error:
            raise TxTimedOut(slot.tx_type, self._pursuit.current(slot).tx_id) from error
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

    async def _why(self, mined: Mined) -> str:
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

    async def _carry_out(
        self, goal: str, work: Ticket | Request, standing: Standing, deadline: int | None, sent: Sent | None
    ) -> Inclusion | None:
        """Wait for what is under way, or send what is not. Raises: see `_send` and `_outcome`."""
        if isinstance(work, Ticket):
            ticket = work
        else:
            if work.prepare is not None:
                await work.prepare()
            ticket = await self._send(goal, work, standing, deadline)
        if sent is not None:
            await sent(ticket.slot.tx_id)
        return await self._outcome(ticket)

    async def _send(self, goal: str, request: Request, standing: Standing, deadline: int | None) -> Ticket:
        """Sign, record and broadcast with the next free nonce. Nothing is left behind when the node refuses.

        The node is asked before the account is locked; under the lock, what it said is put together with what this
        process has under way, so that others wait only for signature, record and broadcast.
        Raises: _Changed when a reorg was noticed since `standing`, because the goal may be reached by now.
        """
        gas = await self._dispatch.gas(request)
        taken: set[int] = set()
        boost = 0
        for _ in range(SEND_ATTEMPTS):
            quote = await self._dispatch.quote(request.tx_type, deadline, boost)
            free, purse = await asyncio.gather(self._connection.nonce(self.account, "pending"), self._dispatch.purse())
            async with self._lock:
                await self._dispatch.check_purse(purse, request.value + gas * quote.offer.max_fee)
                slot = await self._dispatch.signed(
                    Slot(
                        format=SLOT_FORMAT,
                        chain_id=self._connection.chain_id,
                        account=bytes(self.account),
                        nonce=self._next_nonce(free, taken),
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
                if self._pursuit.standing(goal) != standing:
                    raise _Changed
                outcome = await self._pursuit.record(slot)
                arrived = False
                try:
                    await self._dispatch.broadcast(slot)
                    arrived = True
                    return Ticket(slot, outcome)
                except (NodeRefused, CallReverted) as error:
                    refusal = error
                    if not is_definite(error):
                        # The node may have the transaction nevertheless, so the slot has to be pursued.
                        logger.warning("%s: broadcasting %s: %s", goal, slot.tx_id, error)
                        return Ticket(slot, outcome)
                    await self._pursuit.drop(slot)
                finally:
                    self._pursuit.wake(at_next_head=arrived)
            if is_taken(refusal):
                taken.add(slot.nonce)
            elif is_too_cheap(refusal):
                boost += 1
            else:
                raise refused(request.tx_type, refusal) from refusal
        raise ChainError(f"{request.tx_type}: the chain node takes no transaction of {self.account.checksum}")

    def _next_nonce(self, free: int, taken: set[int]) -> int:
        """The lowest nonce from `free` on, the node's view, that nobody in this process has under way.

        A view from before the lock may be old: a nonce that was used up meanwhile is refused, and `taken` then.
        """
        while free in taken or self._book.is_used(free):
            free += 1
        return free

"""A session whose chain steps are done by a remote funder, and whose channels a remote watcher guards too.

The session keeps its own view of the chain: it believes what it reads there, not what the service says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

from ..channel import Dispute, Params, Transaction
from ..errors import ApiError, ChainError, ChainUnreachable, NotReachable, PeerNotFunded, TxTimedOut
from ..ports.chain import BlockEvents, BlockRef, Chain
from ..ports.fundwatch import Funder, RemoteWatcher
from ..protocol.effects import (
    ChainStep,
    ConcludeFinal,
    ConcludeState,
    FundChannel,
    RegisterState,
    WithdrawHoldings,
)
from ..protocol.events import (
    ChainConcluded,
    ChainFailed,
    ChainFunded,
    ChainRegistered,
    ChainStands,
    ChainUndone,
    ChainWithdrawn,
)
from ..values import Address, Bytes32, ChannelID
from .chainsteps import StepContext, StepResult, chain_error, run_step

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds before a funder that does not answer is asked again."""


async def run_remote_step(step: ChainStep, context: StepContext, channel_id: ChannelID) -> StepResult:
    """Like `run_step`, with every transaction made by the context's funder; waiting and reading stay here."""
    funder = context.funder
    assert funder is not None

    async def withdraw(params: Params, tx: Transaction, *, secondary: bool = False) -> None:
        await funder.withdraw(params, tx, context.own_index, secondary=secondary)

    try:
        match step:
            case FundChannel(params, state, True):
                await _patiently(lambda: funder.fund(params, state, context.own_index), context)
                return ChainFunded()
            case RegisterState(params, tx):
                await _patiently(lambda: funder.register(params, tx, context.own_index), context)
                assert tx.state is not None
                version = tx.state.version
                return ChainRegistered(
                    await _seen(context, channel_id, lambda seen: seen.registered and seen.version >= version)
                )
            case ConcludeState(params, state):
                await _patiently(lambda: withdraw(params, Transaction(state)), context)
            case ConcludeFinal(params, tx, secondary):
                await _patiently(lambda: withdraw(params, tx, secondary=secondary), context)
            case WithdrawHoldings(params, state):
                await _patiently(lambda: withdraw(params, Transaction(state)), context)
                return ChainWithdrawn()
            case _:
                return await run_step(step, context, channel_id)
        return ChainConcluded((await _seen(context, channel_id, lambda seen: seen.concluded)).version)
    except ChainError as error:
        return ChainFailed(chain_error(error, url=context.chain_url, tx_timeout=context.tx_timeout_text))
    except ApiError as error:
        log.warning("channel %s: %s failed: %s", channel_id.hex(), type(step).__name__, error)
        overtaken = await _overtaken(step, context, channel_id)
        if overtaken is not None:
            return overtaken
        if error.code == PeerNotFunded.code:
            return ChainFailed(PeerNotFunded(context.peer_alias))
        refused = error.code in (201, 203, 204)  # said before anything was tried
        return ChainFailed(error, deposited=not refused)


async def _overtaken(step: ChainStep, context: StepContext, channel_id: ChannelID) -> StepResult | None:
    """What the chain did instead of `step`, when it cannot be done any more; None when it can be tried again."""
    try:
        dispute, head = await context.chain.dispute(channel_id), await context.chain.head()
    except ChainError:
        return None
    match step:
        case RegisterState() if dispute.registered and not dispute.concluded and head.timestamp >= dispute.timeout:
            return ChainStands(dispute)
        case WithdrawHoldings() if not dispute.concluded:
            return ChainUndone(dispute)
        case _:
            return None


async def _patiently(call: Callable[[], Awaitable[None]], context: StepContext) -> None:
    """`call`, repeated while the service does not answer, for as long as a transaction may take. Raises: ApiError."""
    loop = asyncio.get_running_loop()
    until = loop.time() + context.tx_timeout
    while True:
        try:
            return await call()
        except NotReachable as error:
            if loop.time() >= until:
                raise ChainUnreachable(context.funding_url, str(error)) from error
        await asyncio.sleep(PAUSE)


async def _seen(context: StepContext, channel_id: ChannelID, enough: Callable[[Dispute], bool]) -> Dispute:
    """What the contract stores once `enough` holds on our own chain connection. Raises: ChainError."""
    try:
        async with asyncio.timeout(context.tx_timeout):
            async for _ in context.chain.blocks():
                dispute = await context.chain.dispute(channel_id)
                if enough(dispute):
                    return dispute
    except TimeoutError as error:
        raise TxTimedOut("register", "") from error
    raise NotReachable("the chain's blocks ended")


class WatchedLedger(Protocol):
    """What a watcher needs of a chain."""

    @property
    def reorg_window(self) -> int:
        """As `Chain.reorg_window`."""
        ...

    async def head(self) -> BlockRef:
        """As `Chain.head`."""
        ...

    async def holdings(self, holder: Address, funding_id: Bytes32) -> int:
        """As `Chain.holdings`."""
        ...

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        """As `Chain.dispute`."""
        ...

    def events(self, cursor: int | None) -> AsyncIterator[BlockEvents]:
        """As `Chain.events`."""
        ...

    async def register(self, params: Params, tx: Transaction, *, deadline: int | None = None) -> Dispute:
        """As `Chain.register`."""
        ...


class SharedRefuting:
    """The ledger of a session's watcher when others can register too.

    A remote watcher that holds the state gets the first half of the time that is left; then the funder is asked; what
    neither achieves is done with the session's own account. Money first: at the end somebody must have refuted.
    """

    def __init__(self, chain: Chain, funder: Funder | None, guard: RemoteWatcher | None, own: Callable[[Params], int]):
        self._chain = chain
        self._funder = funder
        self._guard = guard
        self._own = own
        """Index of our participant."""

    @property
    def reorg_window(self) -> int:
        return self._chain.reorg_window

    async def head(self) -> BlockRef:
        return await self._chain.head()

    async def holdings(self, holder: Address, funding_id: Bytes32) -> int:
        return await self._chain.holdings(holder, funding_id)

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        return await self._chain.dispute(channel_id)

    def events(self, cursor: int | None) -> AsyncIterator[BlockEvents]:
        return self._chain.events(cursor)

    async def register(self, params: Params, tx: Transaction, *, deadline: int | None = None) -> Dispute:
        """Raises: ChainError."""
        assert tx.state is not None
        channel_id, version = tx.state.id, tx.state.version
        if self._guard is not None and deadline is not None and self._guard.holds(channel_id, version):
            dispute = await self._left_to_guard(channel_id, version, deadline)
            if dispute is not None:
                return dispute
            log.warning("channel %s: the remote watcher did not refute, doing it here", channel_id.hex())
        if self._funder is not None:
            try:
                await self._funder.register(params, tx, self._own(params))
                dispute = await self._chain.dispute(channel_id)
                if dispute.concluded or dispute.version >= version:
                    return dispute
            except (ApiError, ChainError) as error:
                log.error("channel %s: the funder did not register: %s; trying here", channel_id.hex(), error)
        return await self._chain.register(params, tx, deadline=deadline)

    async def _left_to_guard(self, channel_id: ChannelID, version: int, deadline: int) -> Dispute | None:
        begun: int | None = None
        async for block in self._chain.blocks():
            begun = block.timestamp if begun is None else begun
            dispute = await self._chain.dispute(channel_id)
            if dispute.concluded or dispute.version >= version:
                return dispute
            if block.timestamp >= begun + (deadline - begun) // 2:
                break
        return None

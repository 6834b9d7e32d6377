"""The chain steps of a channel, each one async function from a step to the event it leads to.

Every step checks on chain first whether its goal is reached, so that it may be repeated after any failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from msgspec import Struct

from ..errors import (
    ApiError,
    ChainError,
    ChainUnreachable,
    InsufficientFunds,
    KeyManagerError,
    NotReachable,
    PeerNotFunded,
    PortError,
    StoreError,
    TransactionTimedOut,
    TxReverted,
    TxTimedOut,
    UnknownInternal,
)
from ..ports.chain import BlockRef, Chain
from ..profile import Profile
from ..protocol.effects import (
    AwaitConcludable,
    ChainStep,
    ConcludeFinal,
    ConcludeState,
    FundChannel,
    RegisterState,
    WithdrawHoldings,
)
from ..protocol.events import ChainConcluded, ChainFailed, ChainFunded, ChainMatured, ChainRegistered, ChainWithdrawn
from ..values import Address, Bytes32, ChannelID, Sig

log = logging.getLogger(__name__)

SECONDARY_BLOCKS = 3
"""New blocks the other side gets to conclude before we pay for it: 2 and the finality depth of 1."""

OUTAGE_PAUSE = 1.0
"""Seconds before a deposit is tried again while the chain does not answer."""

PATIENCE = 2
"""Blocks that money on its way to our account gets before a deposit counts as impossible."""

Share = tuple[int, Address, int, int]
"""A deposit that is due: asset index, asset holder, participant index, amount in base units."""

StepResult = ChainFunded | ChainRegistered | ChainMatured | ChainConcluded | ChainWithdrawn | ChainFailed


class StepContext(Struct, frozen=True):
    """What the steps of one channel need."""

    chain: Chain
    profile: Profile
    chain_url: str
    tx_timeout: float
    """Seconds until an unmined transaction, or a lost chain, is reported."""
    tx_timeout_text: str
    peer_alias: str
    own_index: int
    token_of: Callable[[Address], Address | None]
    """Token of an asset holder; None for ETH."""
    receiver: Address
    authorise: Callable[[ChannelID, Address, int], Awaitable[Sig]]
    """Our signature on the withdrawal of an amount from a holder to `receiver`, after it is marked durably."""


def chain_error(error: PortError, *, url: str, tx_timeout: str) -> ApiError:
    """The API's error for a failure of the chain or of what its steps use (API.md 2.1.5)."""
    match error:
        case TxTimedOut():
            return TransactionTimedOut(error.tx_type, error.tx_id, tx_timeout)
        case NotReachable():
            return ChainUnreachable(url, str(error))
        case _:
            return UnknownInternal(str(error))


async def run_step(step: ChainStep, context: StepContext, channel_id: ChannelID) -> StepResult:
    """Do `step` to its end; failures of the chain, the store and the keys become `ChainFailed`."""
    try:
        match step:
            case FundChannel():
                return await _fund(step, context, channel_id)
            case RegisterState(params, tx):
                return ChainRegistered(await context.chain.register(params, tx))
            case AwaitConcludable(at):
                return await _await_concludable(at, context, channel_id)
            case ConcludeState():
                return await _conclude(step, context, channel_id)
            case ConcludeFinal():
                return await _conclude_final(step, context, channel_id)
            case WithdrawHoldings():
                return await _withdraw(step, context, channel_id)
    except (ChainError, StoreError, KeyManagerError) as error:
        log.warning("channel %s: %s failed: %s", channel_id.hex(), type(step).__name__, error)
        return ChainFailed(chain_error(error, url=context.chain_url, tx_timeout=context.tx_timeout_text))


async def _fund(step: FundChannel, context: StepContext, channel_id: ChannelID) -> StepResult:
    """Deposit our share, then wait for everybody's until the challenge duration has passed in block time (7.2)."""
    chain, own = context.chain, context.own_index
    try:
        deadline = (await chain.head()).timestamp + step.params.challenge_duration
    except ChainError as error:  # nothing was tried yet, so there is nothing to bring back by a dispute
        api_error = chain_error(error, url=context.chain_url, tx_timeout=context.tx_timeout_text)
        return ChainFailed(api_error, deposited=not step.deposit)
    wanted = [
        (index, asset.holder, part, amount)
        for index, asset in enumerate(step.state.allocation.assets)
        for part, amount in enumerate(step.state.balances[index])
        if amount
    ]
    sent = False

    async def broadcast(tx_hash: str) -> None:
        nonlocal sent
        sent = True

    if step.deposit:
        try:
            for _, holder, part, amount in wanted:
                if part == own:
                    funding_id = context.profile.funding_id(channel_id, step.params.parts[own])
                    await _deposit(context, holder, funding_id, amount, deadline=deadline, sent=broadcast)
        except (InsufficientFunds, TxReverted) as error:  # the chain has nothing of this deposit and never will
            return ChainFailed(UnknownInternal(f"own account cannot fund the channel: {error}"), deposited=sent)
        except (ChainError, KeyManagerError, StoreError) as error:
            # It may be on its way although nobody confirmed it: the channel has to bring it back.
            return ChainFailed(chain_error(error, url=context.chain_url, tx_timeout=context.tx_timeout_text))
    at_risk = sent or not step.deposit
    missing = wanted
    async for block in _blocks(context):
        try:
            missing = await _still_missing(missing, step, context, channel_id)
        except NotReachable:
            continue  # a short outage is no reason to give a channel up that may be funded already
        if not missing:
            return ChainFunded()
        if block.timestamp >= deadline:
            break
    if any(part != own for _, _, part, _ in missing):
        return ChainFailed(PeerNotFunded(context.peer_alias), deposited=at_risk)
    return ChainFailed(UnknownInternal("own deposit was not confirmed in time"), deposited=at_risk)


async def _blocks(context: StepContext) -> AsyncIterator[BlockRef]:
    """New heads. Raises: NotReachable when the chain says nothing for as long as a transaction may take."""
    blocks = context.chain.blocks()
    while True:
        try:
            async with asyncio.timeout(context.tx_timeout):
                block = await anext(blocks)
        except TimeoutError:
            block = await context.chain.head()
            blocks = context.chain.blocks()
        except StopAsyncIteration:
            raise NotReachable("the chain's blocks ended") from None
        yield block


async def _still_missing(
    wanted: list[Share], step: FundChannel, context: StepContext, channel_id: ChannelID
) -> list[Share]:
    """The deposits of `wanted` that the chain does not show yet. Raises: ChainError."""
    missing = []
    for share in wanted:
        _, holder, part, amount = share
        funding_id = context.profile.funding_id(channel_id, step.params.parts[part])
        if await context.chain.holdings(holder, funding_id) < amount:
            missing.append(share)
    return missing


async def _deposit(
    context: StepContext,
    holder: Address,
    funding_id: Bytes32,
    amount: int,
    *,
    deadline: int,
    sent: Callable[[str], Awaitable[None]],
) -> None:
    """One deposit, never begun after `deadline` in block time (O-22); repeating it cannot deposit twice.

    Money on its way to our account gets a few blocks to arrive, a lost chain gets the time a transaction may take.
    Raises: ChainError.
    """
    short, lost_at = 0, None
    while True:
        try:
            if (await context.chain.head()).timestamp >= deadline:
                return
            await context.chain.deposit(
                holder, context.token_of(holder), funding_id, amount, sent=sent, deadline=deadline
            )
            return
        except InsufficientFunds:
            if short == PATIENCE:
                raise
            short += 1
            await _next_block(context)
        except NotReachable:
            now = asyncio.get_running_loop().time()
            lost_at = now if lost_at is None else lost_at
            if now - lost_at > context.tx_timeout:
                raise
            await asyncio.sleep(OUTAGE_PAUSE)


async def _next_block(context: StepContext) -> None:
    heads = 0
    async for _ in _blocks(context):
        heads += 1
        if heads == 2:  # the first one is the head we know
            return


async def _await_concludable(at: int, context: StepContext, channel_id: ChannelID) -> StepResult:
    async for block in context.chain.blocks():
        if block.timestamp < at:
            continue
        dispute = await context.chain.dispute(channel_id)
        if dispute.concluded or block.timestamp >= dispute.concludable_at:
            return ChainMatured(dispute)
        at = dispute.concludable_at
    raise NotReachable("the chain's blocks ended")


async def _conclude(step: ConcludeState, context: StepContext, channel_id: ChannelID) -> StepResult:
    """Both sides know the moment when a dispute is over: participant 1 lets 0 pay for it, so that neither's reverts."""
    concluded = await _concluded_by_peer(context, channel_id) if context.own_index else None
    return concluded or ChainConcluded((await context.chain.conclude(step.params, step.state)).version)


async def _conclude_final(step: ConcludeFinal, context: StepContext, channel_id: ChannelID) -> StepResult:
    concluded = await _concluded_by_peer(context, channel_id) if step.secondary else None
    return concluded or ChainConcluded((await context.chain.conclude_final(step.params, step.tx)).version)


async def _concluded_by_peer(context: StepContext, channel_id: ChannelID) -> ChainConcluded | None:
    """What the other side concluded within SECONDARY_BLOCKS new blocks; None when it is on us. Raises: ChainError."""
    waited = 0
    async for _ in context.chain.blocks():
        dispute = await context.chain.dispute(channel_id)
        if dispute.concluded:
            return ChainConcluded(dispute.version)
        if waited == SECONDARY_BLOCKS:
            break
        waited += 1
    return None


async def _withdraw(step: WithdrawHoldings, context: StepContext, channel_id: ChannelID) -> StepResult:
    participant = step.params.parts[context.own_index]
    for asset in step.state.allocation.assets:
        holder = asset.holder

        async def authorise(amount: int, holder: Address = holder) -> Sig:
            return await context.authorise(channel_id, holder, amount)

        amount = await context.chain.withdraw(holder, channel_id, participant, context.receiver, authorise)
        log.info("channel %s: withdrew %d base units from %s", channel_id.hex(), amount, holder.checksum)
    return ChainWithdrawn()

"""The chain steps of a channel, each one async function from a step to the event it leads to.

Every step checks on chain first whether its goal is reached, so that it may be repeated after any failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from msgspec import Struct

from ..channel import DisputePhase, Params, State
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
from ..ports.fundwatch import Funder
from ..profile import Profile
from ..protocol.effects import (
    AwaitConcludable,
    ChainStep,
    ConcludeFinal,
    ConcludeState,
    FindRegistered,
    FundChannel,
    ProgressState,
    RegisterState,
    WithdrawHoldings,
)
from ..protocol.events import (
    ChainConcluded,
    ChainFailed,
    ChainFound,
    ChainFunded,
    ChainMatured,
    ChainRegistered,
    ChainStands,
    ChainUndone,
    ChainWithdrawn,
)
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

StepResult = (
    ChainFunded
    | ChainRegistered
    | ChainMatured
    | ChainStands
    | ChainFound
    | ChainUndone
    | ChainConcluded
    | ChainWithdrawn
    | ChainFailed
)


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
    funder: Funder | None = None
    """Makes the transactions of `remote.run_remote_step`."""
    funding_url: str = ""


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
            case RegisterState():
                return await _register(step, context, channel_id)
            case FindRegistered():
                return await _find(step, context, channel_id)
            case ProgressState():
                return await _progress(step, context, channel_id)
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


async def _register(step: RegisterState, context: StepContext, channel_id: ChannelID) -> StepResult:
    """Register, or learn that the time for it is over: then what is registered stands. Raises: ChainError."""
    chain = context.chain
    try:
        return ChainRegistered(await chain.register(step.params, step.tx, deadline=step.deadline))
    except ChainError:
        dispute = await chain.dispute(channel_id)
        if not dispute.registered or dispute.concluded:
            raise
        if dispute.phase is DisputePhase.DISPUTE and (await chain.head()).timestamp < dispute.timeout:
            raise
        held = step.tx.state
        log.error(
            "channel %s: version %d stands on chain although we hold %s: the time for registering is over",
            channel_id.hex(),
            dispute.version,
            "none" if held is None else held.version,
        )
        return ChainStands(dispute)


async def _progress(step: ProgressState, context: StepContext, channel_id: ChannelID) -> StepResult:
    """Progress, or learn that somebody else was faster or the time is over. Raises: ChainError."""
    chain = context.chain
    try:
        return ChainRegistered(
            await chain.progress(step.params, step.old, step.new, step.actor, step.sig, deadline=step.deadline)
        )
    except ChainError:
        dispute = await chain.dispute(channel_id)
        if not dispute.registered:
            return ChainUndone(dispute)
        moved_on = dispute.concluded or dispute.state_hash != context.profile.state_hash(step.old)
        is_forced = dispute.phase is DisputePhase.FORCE_EXEC
        if not moved_on and not (is_forced and (await chain.head()).timestamp >= dispute.timeout):
            raise
        log.warning("channel %s: version %d was not progressed in time", channel_id.hex(), step.old.version)
        return ChainRegistered(dispute) if dispute.concluded else ChainStands(dispute)


async def _find(step: FindRegistered, context: StepContext, channel_id: ChannelID) -> StepResult:
    """Take a state that we do not hold from the chain. Raises: ChainError."""
    dispute = step.dispute
    tx = await context.chain.registered_state(step.params, dispute)
    log.error(
        "channel %s: version %d is registered, which we do not hold; it was taken from the chain to be concluded",
        channel_id.hex(),
        dispute.version,
    )
    return ChainFound(dispute, tx)


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
    if concluded is not None:
        return concluded
    await _until_deposits_are_back(step.params, step.state, context, channel_id)
    return ChainConcluded((await context.chain.conclude(step.params, step.state)).version)


async def _conclude_final(step: ConcludeFinal, context: StepContext, channel_id: ChannelID) -> StepResult:
    concluded = await _concluded_by_peer(context, channel_id) if step.secondary else None
    if concluded is not None:
        return concluded
    assert step.tx.state is not None
    await _until_deposits_are_back(step.params, step.tx.state, context, channel_id)
    return ChainConcluded((await context.chain.conclude_final(step.params, step.tx)).version)


async def _until_deposits_are_back(params: Params, state: State, context: StepContext, channel_id: ChannelID) -> None:
    """Wait until the holders have what `state` divides, or the reorg window has passed. Raises: ChainError.

    Whoever concludes while a deposit is missing settles the channel without it for ever (CHAIN.md 1.5.1). Once anybody
    has paid, every deposit was there; only a reorg can have taken one back, and whoever made it brings it back.
    """
    if state.version == 0:  # the dispute about a channel that was never funded
        return
    if await _is_funded(params, state, context, channel_id):  # asked before there is a block: a lost chain is told
        return
    waited = 0
    async for _ in _blocks(context):
        if await _is_funded(params, state, context, channel_id):
            return
        if (await context.chain.dispute(channel_id)).concluded:
            return
        if waited == 0:
            log.error("channel %s: a reorg took deposits back; concluding waits for them", channel_id.hex())
        if waited >= context.chain.reorg_window:
            log.error("channel %s: deposits did not come back; it is concluded without them", channel_id.hex())
            return
        waited += 1


async def _is_funded(params: Params, state: State, context: StepContext, channel_id: ChannelID) -> bool:
    for asset, missing in zip(state.allocation.assets, state.allocation.sums(), strict=True):
        for part in params.parts:
            if missing > 0:
                missing -= await context.chain.holdings(asset.holder, context.profile.funding_id(channel_id, part))
        if missing > 0:
            return False
    return True


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

        try:
            amount = await context.chain.withdraw(holder, channel_id, participant, context.receiver, authorise)
        except TxReverted:
            dispute = await context.chain.dispute(channel_id)
            if dispute.concluded:
                raise
            log.warning("channel %s: a reorg took the conclusion back", channel_id.hex())
            return ChainUndone(dispute)
        log.info("channel %s: withdrew %d base units from %s", channel_id.hex(), amount, holder.checksum)
    return ChainWithdrawn()

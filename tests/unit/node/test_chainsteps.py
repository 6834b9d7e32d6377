"""The chain steps of a channel, on a chain whose blocks and failures the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from perun_core.channel import Allocation, Asset, Dispute, DisputePhase, Params, State, Transaction
from perun_core.errors import (
    ChainUnreachable,
    InsufficientFunds,
    NotReachable,
    PeerNotFunded,
    SigningFailed,
    StoreFull,
    TransactionTimedOut,
    TxReverted,
    TxTimedOut,
    UnknownInternal,
)
from perun_core.node import chainsteps
from perun_core.node.chainsteps import PATIENCE, SECONDARY_BLOCKS, StepContext, StepResult, run_step
from perun_core.ports.chain import Chain
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import (
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
from perun_core.protocol.events import (
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
from perun_core.testing.chain import MemoryChain
from perun_core.testing.conversation import ADDRESSES, KEYS, sign_with
from perun_core.values import Address, Bytes32, ChannelID, Sig

ACCOUNT, RECEIVER = Address(b"\x0a" * 20), Address(b"\x0b" * 20)
ETH, PRN, TOKEN = Address(b"\xe0" * 20), Address(b"\xe1" * 20), Address(b"\xe2" * 20)
DURATION = 60


@dataclass
class Bed:
    """A channel with 100 and 200 wei, and 7 and 0 tokens; we are participant 0 with account `ACCOUNT`."""

    chain: MemoryChain = field(default_factory=lambda: MemoryChain(PROFILE, ACCOUNT, wei=10_000))
    params: Params = field(default_factory=lambda: Params(DURATION, ADDRESSES, None, 1, True, False))
    authorised: list[int] = field(default_factory=list)
    refusal: Exception | None = None

    def __post_init__(self) -> None:
        self.chain.balances[(ACCOUNT, TOKEN)] = 50
        self.id = ChannelID(PROFILE.channel_id(self.params))
        self.state = State(self.id, 0, Allocation((Asset(ETH), Asset(PRN)), ((100, 200), (7, 0))))

    def signed(self, state: State) -> Transaction:
        digest = PROFILE.state_hash(state)
        return Transaction(state, tuple(sign_with(key, digest) for key in KEYS))

    def funding_id(self, part: int) -> Bytes32:
        return PROFILE.funding_id(self.id, ADDRESSES[part])

    def peer_deposits(self, amount: int = 200) -> None:
        self.chain.give_holdings(ETH, self.funding_id(1), amount)

    async def authorise(self, channel_id: ChannelID, holder: Address, amount: int) -> Sig:
        if self.refusal is not None:
            raise self.refusal
        self.authorised.append(amount)
        return sign_with(KEYS[0], PROFILE.withdrawal_hash(channel_id, ADDRESSES[0], RECEIVER, amount))

    def step(self, step: ChainStep, *, own_index: int = 0) -> Awaitable[StepResult]:
        chain: Chain = self.chain
        context = StepContext(
            chain=chain,
            profile=PROFILE,
            chain_url="ws://chain",
            tx_timeout=0.05,
            tx_timeout_text="1m0s",
            peer_alias="bob",
            own_index=own_index,
            token_of=lambda holder: TOKEN if holder == PRN else None,
            receiver=RECEIVER,
            authorise=self.authorise,
        )
        return asyncio.ensure_future(run_step(step, context, self.id))

    def fund(self, *, deposit: bool = True) -> Awaitable[StepResult]:
        return self.step(FundChannel(self.params, self.state, deposit=deposit))

    async def funded(self) -> Bed:
        funding = self.fund()
        self.peer_deposits()
        assert isinstance(await funding, ChainFunded)
        return self


@pytest.fixture
async def bed() -> Bed:
    return Bed()


async def let_it_work() -> None:
    """Everything that can go on without a new block does."""
    for _ in range(50):
        await asyncio.sleep(0)


# ---- funding ---------------------------------------------------------------------------------------------------------


async def test_every_share_of_ours_is_deposited_and_the_peer_s_awaited(bed: Bed) -> None:
    funding = asyncio.ensure_future(bed.fund())
    await let_it_work()
    assert await bed.chain.holdings(ETH, bed.funding_id(0)) == 100
    assert await bed.chain.holdings(PRN, bed.funding_id(0)) == 7
    assert not funding.done() and bed.chain.calls == ["deposit", "deposit"]
    bed.peer_deposits(199)
    await let_it_work()
    assert not funding.done()
    bed.peer_deposits(1)
    assert await funding == ChainFunded()


async def test_a_peer_that_does_not_deposit_within_the_challenge_duration_is_named(bed: Bed) -> None:
    funding = asyncio.ensure_future(bed.fund())
    await let_it_work()
    bed.chain.mine(DURATION - 3)
    await let_it_work()
    assert not funding.done()
    bed.chain.mine(3)
    result = await funding
    assert isinstance(result, ChainFailed) and result.deposited
    assert isinstance(result.error, PeerNotFunded) and result.error.info == {"peerAlias": "bob"}


async def test_o22_after_a_restart_nothing_is_deposited_any_more(bed: Bed) -> None:
    funding = asyncio.ensure_future(bed.fund(deposit=False))
    await let_it_work()
    assert bed.chain.calls == []
    bed.chain.mine(DURATION)
    result = await funding
    assert isinstance(result, ChainFailed) and result.deposited and bed.chain.calls == []


async def test_a_repeated_funding_deposits_only_what_is_missing(bed: Bed) -> None:
    bed.chain.give_holdings(ETH, bed.funding_id(0), 40)
    await bed.funded()
    assert bed.chain.balances[(ACCOUNT, None)] == 10_000 - 60


async def test_money_on_its_way_gets_a_few_blocks_to_arrive(bed: Bed) -> None:
    bed.chain.balances[(ACCOUNT, None)] = 0
    funding = asyncio.ensure_future(bed.fund())
    await let_it_work()
    for _ in range(PATIENCE - 1):
        bed.chain.mine()
        await let_it_work()
    assert not funding.done()
    bed.chain.balances[(ACCOUNT, None)] = 100
    bed.chain.mine()
    bed.peer_deposits()
    assert await funding == ChainFunded()


async def test_an_account_that_cannot_pay_fails_with_nothing_deposited(bed: Bed) -> None:
    bed.chain.balances[(ACCOUNT, None)] = 99
    funding = asyncio.ensure_future(bed.fund())
    for _ in range(PATIENCE):
        await let_it_work()
        bed.chain.mine()
    result = await funding
    assert isinstance(result, ChainFailed) and not result.deposited
    assert "own account cannot fund the channel" in result.error.message


async def test_a_second_asset_that_cannot_be_paid_remembers_the_first_deposit(bed: Bed) -> None:
    bed.chain.balances[(ACCOUNT, TOKEN)] = 0
    funding = asyncio.ensure_future(bed.fund())
    for _ in range(PATIENCE + 1):
        await let_it_work()
        bed.chain.mine()
    result = await funding
    assert isinstance(result, ChainFailed) and result.deposited


@pytest.mark.parametrize(
    ("error", "told", "deposited"),
    [
        (TxTimedOut("fund", "0xab"), TransactionTimedOut, True),
        (NotReachable("gone"), ChainUnreachable, True),
        (TxReverted("fund", "no"), UnknownInternal, True),
    ],
)
async def test_a_deposit_that_was_broadcast_counts_as_possibly_there(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, error: NotReachable, told: type, deposited: bool
) -> None:
    monkeypatch.setattr(chainsteps, "OUTAGE_PAUSE", 0.06)
    bed.chain.fail("deposit", error, error)
    result = await bed.fund()
    assert isinstance(result, ChainFailed) and isinstance(result.error, told) and result.deposited is deposited


async def test_a_short_outage_while_depositing_is_waited_out(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chainsteps, "OUTAGE_PAUSE", 0.001)
    bed.chain.fail("deposit", NotReachable("gone"))
    bed.peer_deposits()
    assert await bed.fund() == ChainFunded()


@pytest.mark.parametrize("deposit", [True, False])
async def test_a_chain_that_is_away_from_the_start_costs_no_dispute_unless_a_deposit_may_be_there(
    bed: Bed, deposit: bool
) -> None:
    bed.chain.fail("head", NotReachable("gone"))
    result = await bed.fund(deposit=deposit)
    assert isinstance(result, ChainFailed) and isinstance(result.error, ChainUnreachable)
    assert result.deposited is not deposit and bed.chain.calls == []


async def test_nothing_is_deposited_after_the_own_deadline(bed: Bed) -> None:
    """O-22: money that arrives after the challenge duration stays where it is."""
    bed.chain.balances[(ACCOUNT, None)] = 0
    funding = asyncio.ensure_future(bed.fund())
    await let_it_work()
    bed.chain.balances[(ACCOUNT, None)] = 100
    bed.chain.mine(DURATION + 1)
    result = await funding
    assert bed.chain.calls == [] and isinstance(result, ChainFailed) and not result.deposited


# ---- dispute ---------------------------------------------------------------------------------------------------------


async def test_a_dispute_goes_from_register_over_block_time_to_the_receiver(bed: Bed) -> None:
    await bed.funded()
    newest = bed.state.next(balances=((130, 170), (3, 4)))
    registered = await bed.step(RegisterState(bed.params, bed.signed(newest)))
    assert isinstance(registered, ChainRegistered) and registered.dispute.version == 1
    waiting = asyncio.ensure_future(bed.step(AwaitConcludable(registered.dispute.concludable_at)))
    await let_it_work()
    bed.chain.mine(DURATION - 2)
    await let_it_work()
    assert not waiting.done(), "block time has not come"
    bed.chain.mine(2)
    matured = await waiting
    assert isinstance(matured, ChainMatured) and not matured.dispute.concluded
    assert await bed.step(ConcludeState(bed.params, newest)) == ChainConcluded(1)
    assert await bed.step(WithdrawHoldings(bed.params, newest)) == ChainWithdrawn()
    assert bed.chain.balances[(RECEIVER, None)] == 130 and bed.chain.balances[(RECEIVER, TOKEN)] == 3
    assert bed.authorised == [130, 3]


async def test_a_refutation_while_waiting_moves_the_moment(bed: Bed) -> None:
    first = await bed.chain.register(bed.params, bed.signed(bed.state))
    waiting = asyncio.ensure_future(bed.step(AwaitConcludable(first.concludable_at)))
    bed.chain.mine(DURATION - 1)
    second = await bed.chain.register(bed.params, bed.signed(bed.state.next()))
    assert second.concludable_at > first.concludable_at
    bed.chain.mine(1)
    await let_it_work()
    assert not waiting.done()
    bed.chain.mine(DURATION)
    matured = await waiting
    assert isinstance(matured, ChainMatured) and matured.dispute.version == 1


async def test_a_dispute_that_somebody_concluded_is_noticed_when_its_time_has_come(bed: Bed) -> None:
    dispute = await bed.chain.register(bed.params, bed.signed(bed.state))
    waiting = asyncio.ensure_future(bed.step(AwaitConcludable(0)))
    await let_it_work()
    assert not waiting.done()
    concluded = Dispute(True, dispute.timeout, DURATION, 0, False, DisputePhase.CONCLUDED, dispute.state_hash)
    bed.chain.set_dispute(bed.id, concluded)
    bed.chain.mine(DURATION)
    assert await waiting == ChainMatured(concluded)


async def test_steps_whose_goal_is_reached_send_nothing(bed: Bed) -> None:
    await bed.funded()
    final = bed.signed(bed.state.next(is_final=True))
    assert final.state is not None
    await bed.step(ConcludeFinal(bed.params, final, secondary=False))
    await bed.step(WithdrawHoldings(bed.params, final.state))
    calls = list(bed.chain.calls)
    again = await bed.step(RegisterState(bed.params, bed.signed(bed.state)))
    assert isinstance(again, ChainRegistered) and again.dispute.concluded
    assert await bed.step(ConcludeState(bed.params, final.state)) == ChainConcluded(1)
    assert await bed.step(ConcludeFinal(bed.params, final, secondary=False)) == ChainConcluded(1)
    assert await bed.step(WithdrawHoldings(bed.params, final.state)) == ChainWithdrawn()
    assert bed.chain.calls == calls


async def test_a_registration_that_comes_too_late_leaves_the_chain_its_way(bed: Bed) -> None:
    """The node slept through the challenge: there is nothing to repeat, only to conclude."""
    await bed.funded()
    old = await bed.chain.register(bed.params, bed.signed(bed.state))
    bed.chain.mine(DURATION + 1)
    newest = bed.signed(bed.state.next(balances=((130, 170), (3, 4))))
    assert await bed.step(RegisterState(bed.params, newest, old.timeout)) == ChainStands(old)
    assert await bed.step(FindRegistered(bed.params, old)) == ChainFound(old, bed.signed(bed.state))
    assert await bed.step(ConcludeState(bed.params, bed.state)) == ChainConcluded(0)
    assert await bed.step(WithdrawHoldings(bed.params, bed.state)) == ChainWithdrawn()
    assert bed.chain.balances[(RECEIVER, None)] == 100


async def test_a_registration_that_fails_in_time_is_a_failure(bed: Bed) -> None:
    await bed.funded()
    await bed.chain.register(bed.params, bed.signed(bed.state))
    bed.chain.fail("register", NotReachable("away"))
    assert isinstance(await bed.step(RegisterState(bed.params, bed.signed(bed.state.next()))), ChainFailed)


async def test_a_registered_state_that_nobody_tells_is_a_failure_that_says_so(bed: Bed) -> None:
    dispute = Dispute(True, 0, DURATION, 3, state_hash=Bytes32(b"\x03" * 32))
    failed = await bed.step(FindRegistered(bed.params, dispute))
    assert isinstance(failed, ChainFailed) and "no transaction tells" in failed.error.message


async def test_a_conclusion_that_a_reorg_took_back_before_the_withdrawal_is_noticed(bed: Bed) -> None:
    await bed.funded()
    final = bed.signed(bed.state.next(is_final=True))
    assert final.state is not None
    await bed.step(ConcludeFinal(bed.params, final, secondary=False))
    bed.chain.undo(bed.id, Dispute(registered=False))
    assert await bed.step(WithdrawHoldings(bed.params, final.state)) == ChainUndone(Dispute(registered=False))


class Game(Bed):
    """A channel with an app, disputed, its refutation time over."""

    async def begun(self) -> ProgressState:
        self.params = replace(self.params, app=Address(b"\xab" * 20))
        self.id = ChannelID(PROFILE.channel_id(self.params))
        self.state = replace(self.state, id=self.id, app=self.params.app)
        self.chain.mine(1)
        self.dispute = await self.chain.register(self.params, self.signed(self.state))
        self.chain.mine(DURATION)
        return self.move(self.state, self.state.next())

    def move(self, old: State, new: State) -> ProgressState:
        sig = sign_with(KEYS[0], PROFILE.state_hash(new))
        return ProgressState(self.params, old, new, 0, sig, self.dispute.concludable_at)


async def test_a_move_is_brought_to_the_chain_once(bed: Bed) -> None:
    game = Game(bed.chain)
    step = await game.begun()
    moved = await game.step(step)
    assert isinstance(moved, ChainRegistered) and moved.dispute.phase is DisputePhase.FORCE_EXEC
    assert await game.step(step) == moved and game.chain.calls.count("progress") == 1
    assert isinstance(await game.step(FindRegistered(game.params, moved.dispute)), ChainFound)


async def test_a_move_that_the_peer_or_the_time_has_overtaken_is_given_up(bed: Bed) -> None:
    game = Game(bed.chain)
    step = await game.begun()
    faster = replace(game.state.next(), data=b"bob")
    sig = sign_with(KEYS[1], PROFILE.state_hash(faster))
    stored = await game.chain.progress(game.params, game.state, faster, 1, sig)
    assert await game.step(step) == ChainRegistered(stored)
    late = game.move(faster, faster.next())
    game.chain.mine(DURATION)
    assert await game.step(late) == ChainStands(stored)


# ---- the end both agreed on ------------------------------------------------------------------------------------------


async def test_who_did_not_ask_for_the_closing_gives_the_other_side_three_blocks(bed: Bed) -> None:
    await bed.funded()
    final = bed.signed(bed.state.next(is_final=True))
    concluding = asyncio.ensure_future(bed.step(ConcludeFinal(bed.params, final, secondary=True)))
    for _ in range(SECONDARY_BLOCKS):
        await let_it_work()
        assert "conclude_final" not in bed.chain.calls
        bed.chain.mine()
    assert await concluding == ChainConcluded(1)
    assert bed.chain.calls.count("conclude_final") == 1


async def test_a_final_state_the_other_side_concluded_costs_us_nothing(bed: Bed) -> None:
    await bed.funded()
    final = bed.signed(bed.state.next(is_final=True))
    concluding = asyncio.ensure_future(bed.step(ConcludeFinal(bed.params, final, secondary=True)))
    await let_it_work()
    bed.chain.set_dispute(bed.id, Dispute(True, 0, DURATION, 1, False, DisputePhase.CONCLUDED))
    assert await concluding == ChainConcluded(1) and "conclude_final" not in bed.chain.calls


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["register", "conclude", "conclude_final", "withdraw", "blocks"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TxTimedOut("x", "0xab"), TransactionTimedOut),
        (NotReachable("gone"), ChainUnreachable),
        (TxReverted("x", "no"), UnknownInternal),
        (InsufficientFunds("no gas"), UnknownInternal),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_failing_step_says_why_and_works_when_repeated(
    bed: Bed, method: str, error: NotReachable, told: type
) -> None:
    await bed.funded()
    final = bed.signed(bed.state.next(is_final=True))
    assert final.state is not None
    step: ChainStep
    match method:
        case "register":
            step = RegisterState(bed.params, bed.signed(bed.state))
        case "conclude":
            registered = await bed.chain.register(bed.params, bed.signed(bed.state))
            bed.chain.mine(registered.concludable_at - bed.chain.now)
            step = ConcludeState(bed.params, bed.state)
        case "conclude_final":
            step = ConcludeFinal(bed.params, final, secondary=False)
        case "withdraw":
            await bed.chain.conclude_final(bed.params, final)
            step = WithdrawHoldings(bed.params, final.state)
        case _:
            await bed.chain.register(bed.params, bed.signed(bed.state))
            bed.chain.mine(DURATION)
            step = AwaitConcludable(0)
    bed.chain.fail(method, error)
    failed = await bed.step(step)
    assert isinstance(failed, ChainFailed) and isinstance(failed.error, told)
    if isinstance(failed.error, ChainUnreachable):
        assert failed.error.info == {"chainURL": "ws://chain"}
    if isinstance(failed.error, TransactionTimedOut):
        assert failed.error.info == {"txType": "x", "txID": "0xab", "txTimeout": "1m0s"}
    assert not isinstance(await bed.step(step), ChainFailed)


@pytest.mark.parametrize("refusal", [StoreFull("disk"), SigningFailed("token removed")])
async def test_a_withdrawal_that_cannot_be_authorised_is_a_failure_not_a_bug(bed: Bed, refusal: Exception) -> None:
    await bed.funded()
    final = bed.signed(bed.state.next(is_final=True))
    assert final.state is not None
    await bed.chain.conclude_final(bed.params, final)
    bed.refusal = refusal
    assert isinstance(await bed.step(WithdrawHoldings(bed.params, final.state)), ChainFailed)
    bed.refusal = None
    assert await bed.step(WithdrawHoldings(bed.params, final.state)) == ChainWithdrawn()


async def test_after_a_dispute_participant_1_gives_0_three_blocks_to_conclude(bed: Bed) -> None:
    """Both wait for the same moment; sent at once by both, one transaction would revert."""
    await bed.funded()
    tx = bed.signed(bed.state)
    await bed.step(RegisterState(bed.params, tx))
    bed.chain.mine(DURATION)
    peer = bed.step(ConcludeState(bed.params, bed.state), own_index=1)
    await let_it_work()
    assert "conclude" not in bed.chain.calls
    assert await bed.step(ConcludeState(bed.params, bed.state)) == ChainConcluded(0)
    assert await peer == ChainConcluded(0)
    assert bed.chain.calls.count("conclude") == 1


@pytest.mark.parametrize("agreed", [True, False])
async def test_nothing_is_concluded_while_a_reorg_has_taken_deposits_back(bed: Bed, agreed: bool) -> None:
    """The contract would settle the channel with what is there, and what comes later would stay in it for ever."""
    newest = bed.signed(bed.state.next(is_final=agreed))
    assert newest.state is not None
    step: ChainStep
    if agreed:
        step = ConcludeFinal(bed.params, newest, secondary=False)
    else:
        await bed.chain.register(bed.params, newest)
        bed.chain.mine(DURATION)
        step = ConcludeState(bed.params, newest.state)
    bed.chain.give_holdings(PRN, bed.funding_id(0), 7)
    bed.chain.give_holdings(ETH, bed.funding_id(0), 100)
    concluding = asyncio.ensure_future(bed.step(step))
    for _ in range(3):
        await let_it_work()
        bed.chain.mine()
    assert not concluding.done() and not {"conclude", "conclude_final"} & set(bed.chain.calls)
    bed.peer_deposits()
    assert await concluding == ChainConcluded(1)


async def test_deposits_that_never_come_back_do_not_keep_ours_for_ever(bed: Bed) -> None:
    bed.chain.reorg_window = 4
    bed.chain.give_holdings(ETH, bed.funding_id(0), 100)
    final = bed.signed(bed.state.next(is_final=True))
    concluding = asyncio.ensure_future(bed.step(ConcludeFinal(bed.params, final, secondary=False)))
    for _ in range(4):
        await let_it_work()
        assert not concluding.done()
        bed.chain.mine()
    assert await concluding == ChainConcluded(1)


async def test_a_channel_that_was_never_funded_is_concluded_at_once(bed: Bed) -> None:
    """The peer did not deposit: the dispute is the way to our own deposit."""
    await bed.chain.register(bed.params, bed.signed(bed.state))
    bed.chain.mine(DURATION)
    assert await bed.step(ConcludeState(bed.params, bed.state)) == ChainConcluded(0)


async def test_participant_1_concludes_when_0_does_not(bed: Bed) -> None:
    await bed.funded()
    await bed.step(RegisterState(bed.params, bed.signed(bed.state)))
    bed.chain.mine(DURATION)
    concluding = asyncio.ensure_future(bed.step(ConcludeState(bed.params, bed.state), own_index=1))
    for _ in range(SECONDARY_BLOCKS):
        await let_it_work()
        assert "conclude" not in bed.chain.calls
        bed.chain.mine()
    assert await concluding == ChainConcluded(0)

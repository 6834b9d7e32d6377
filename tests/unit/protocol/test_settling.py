"""From funding to money on the account: PROTOCOL.md 7.2.3, 7.6 and 7.8, and every row of the channel's table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import get_args

import pytest
from msgspec.structs import replace

from perun_core.channel import Phase
from perun_core.errors import ApiError, FailedPrecondition, PeerNotFunded, RuleViolated, UnknownInternal
from perun_core.ports.store import Table
from perun_core.protocol.channel import NEXT
from perun_core.protocol.effects import (
    AwaitConcludable,
    ChainStep,
    ChannelClosed,
    ConcludeFinal,
    ConcludeState,
    Effect,
    FundChannel,
    Persist,
    ProgressState,
    Publish,
    RegisterState,
    RequestSignature,
    SetTimer,
    SubmitTx,
    Timer,
    WithdrawHoldings,
)
from perun_core.protocol.events import (
    ChainConcluded,
    ChainFailed,
    ChainFunded,
    ChainMatured,
    ChainRegistered,
    ChainWithdrawn,
    Event,
    PeerProposed,
    RecoveryEnded,
    Signed,
    TimerFired,
    UserClosed,
)
from perun_core.testing.conversation import Side

from .lives import (
    CLOSE_REQUEST,
    OPENING_REQUEST,
    STARTS,
    accepting,
    acting,
    concluding,
    deciding,
    dispute,
    events,
    final,
    funding,
    pay,
    registered,
    registering,
    signing,
    unknown,
    withdrawing,
    withdrawn,
)

BROKEN = UnknownInternal("the node does not answer")
PENDING = [Phase.REGISTERING, Phase.REGISTERED, Phase.CONCLUDING, Phase.WITHDRAWING]


def start(phase: Phase) -> Side:
    return STARTS[phase][0]()


# ---- the whole table -------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_is_reached_and_every_effect_kind_and_step_is_performed() -> None:
    """Drives every event through every phase. What the table allows and never happens is a lie in the table."""
    reached: set[tuple[Phase, type[Event], Phase]] = set()
    effects: Counter[type] = Counter()
    for phase, starts in STARTS.items():
        for make in starts:
            for number in range(len(list(events(make())))):
                side = make()
                assert side.machine.phase is phase
                event = list(events(side))[number]
                before = side.machine.record
                try:
                    led_to = side.machine.handle(event)
                except RuleViolated:
                    assert side.machine.record is before, "a refused event changed something"
                    continue
                reached.add((phase, type(event), side.machine.phase))
                effects.update(type(effect) for effect in (*side.performed, *led_to))
                effects.update(type(effect.step) for effect in led_to if isinstance(effect, SubmitTx))
                effects.update(type(step) for step in side.steps)
    table = {
        (phase, event, target)
        for phase, row in NEXT.items()
        for event, to in row.items()
        for target in to
        if target is not phase
    }
    moved = {(phase, event, target) for phase, event, target in reached if phase is not target}
    assert moved == table
    listed = {(phase, event) for phase, row in NEXT.items() for event in row}
    assert listed <= {(phase, event) for phase, event, _ in reached}
    kinds = set(get_args(Effect))
    steps = set(get_args(ChainStep))
    assert kinds | steps == set(effects)


def same_to_a_restart(phase: Phase) -> Phase:
    """Questions and conclude transactions are asked and made again, so these differences need not be durable."""
    return {Phase.DECIDING: Phase.ACTING, Phase.CONCLUDING: Phase.REGISTERED}.get(phase, phase)


@pytest.mark.parametrize("phase", list(STARTS))
def test_no_event_answers_anybody_twice_loses_a_caller_or_skips_the_disk(phase: Phase) -> None:
    """Whatever happens in whatever phase: the effects can be performed, and a change of phase is durable."""
    for make in STARTS[phase]:
        for number in range(len(list(events(make())))):
            side = make()
            event = list(events(side))[number]
            if isinstance(event, RecoveryEnded):
                side.disk.doubt = ""  # the store is told first
            try:
                side.handle(event)  # the harness checks marks, order and double answers
            except RuleViolated:
                continue
            assert not side.crashed
            assert same_to_a_restart(side.stored().phase) is same_to_a_restart(side.machine.phase), event


# ---- funding ---------------------------------------------------------------------------------------------------------


def test_the_possible_deposit_is_on_disk_before_the_chain_hears_of_it() -> None:
    side = funding()
    kinds = [type(effect) for effect in side.performed]
    assert kinds == [Persist, Publish, SubmitTx] and side.stored().deposited
    (step,) = side.steps
    assert isinstance(step, FundChannel) and step.deposit and step.state.version == 0


def test_a_funded_channel_is_open_and_its_caller_answered() -> None:
    side = funding()
    side.handle(ChainFunded())
    assert side.machine.phase is Phase.ACTING and side.replies == {OPENING_REQUEST: None}
    assert side.stored().phase is Phase.ACTING


def test_a_peer_that_does_not_fund_costs_a_dispute_and_not_the_deposit() -> None:
    side = funding()
    side.handle(ChainFailed(PeerNotFunded("bob"), deposited=True))
    assert isinstance(side.replies[OPENING_REQUEST], PeerNotFunded)
    assert side.machine.phase is Phase.REGISTERING and isinstance(side.steps[-1], RegisterState)


def test_without_a_deposit_a_failed_funding_is_over_at_once() -> None:
    side = funding()
    side.handle(ChainFailed(BROKEN, deposited=False))
    assert side.replies[OPENING_REQUEST] is BROKEN and side.machine.phase is Phase.WITHDRAWN
    assert not side.disk.tables[Table.CHANNELS] and side.disk.tables[Table.ARCHIVE]


@pytest.mark.parametrize("concluded", [False, True])
def test_a_channel_taken_to_the_chain_while_it_is_funded_fails_its_opening(concluded: bool) -> None:
    """Nobody waits for a channel that cannot open any more."""
    side = funding()
    side.handle(ChainRegistered(dispute(side, 0, concluded=concluded)))
    assert isinstance(side.replies[OPENING_REQUEST], ApiError)
    assert side.machine.phase is (Phase.WITHDRAWING if concluded else Phase.REGISTERED)


# ---- registered by somebody ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [acting, signing, deciding, accepting, unknown, registering, registered])
def test_an_older_state_on_chain_is_refuted_with_the_newest(make: Callable[[], Side]) -> None:
    side = make()
    side.handle(ChainRegistered(dispute(side, 0)))
    step = side.steps[-1]
    assert isinstance(step, RegisterState) and step.tx == side.machine.record.current
    assert step.tx.fully_signed and side.machine.state.version == 1
    assert side.machine.phase is Phase.REGISTERING


@pytest.mark.parametrize("make", [acting, signing, deciding, accepting, unknown, registering])
@pytest.mark.parametrize("newer", [0, 1])
def test_our_newest_or_a_newer_state_on_chain_is_waited_for(make: Callable[[], Side], newer: int) -> None:
    side = make()
    side.handle(ChainRegistered(dispute(side, 1 + newer)))
    assert side.machine.phase is Phase.REGISTERED and side.stored().phase is Phase.REGISTERED
    assert side.steps[-1] == AwaitConcludable(1060)


def test_whoever_waits_for_a_payment_learns_that_the_channel_is_on_chain() -> None:
    side = signing()
    side.handle(pay(5, request=2))
    side.handle(ChainRegistered(dispute(side, 1)))
    assert isinstance(side.replies[1], UnknownInternal) and isinstance(side.replies[2], UnknownInternal)
    assert not side.timers


def test_a_question_is_withdrawn_and_the_peer_told_when_the_channel_goes_on_chain() -> None:
    side = deciding()
    side.outbox.clear()
    side.handle(ChainRegistered(dispute(side, 1)))
    assert side.machine.question is None and len(side.outbox) == 1


def test_an_unanswered_state_of_ours_that_the_peer_registered_is_concluded_with_our_copy() -> None:
    """The outcome was unknown; the chain says that the peer completed it."""
    side = unknown()
    staged = side.machine.record.staged
    assert staged is not None
    on_chain = dispute(side, 2, state=staged.state)
    side.handle(ChainRegistered(on_chain))
    side.handle(ChainMatured(on_chain))
    assert isinstance(side.steps[-1], ConcludeState) and side.steps[-1].state == staged.state


@pytest.mark.parametrize("phase", [phase for phase in STARTS if phase not in (Phase.WITHDRAWING, Phase.WITHDRAWN)])
def test_a_channel_concluded_by_the_other_side_is_withdrawn_from_any_phase(phase: Phase) -> None:
    side = start(phase)
    side.handle(ChainRegistered(dispute(side, side.machine.state.version, concluded=True)))
    assert side.machine.phase is Phase.WITHDRAWING and isinstance(side.steps[-1], WithdrawHoldings)
    assert side.stored().concluded_version == side.machine.state.version


@pytest.mark.parametrize("phase", [Phase.WITHDRAWING, Phase.WITHDRAWN])
def test_late_news_of_the_chain_change_nothing_any_more(phase: Phase) -> None:
    side = start(phase)
    steps = list(side.steps)
    for late in (dispute(side, 0), dispute(side, 1), dispute(side, 1, concluded=True)):
        side.handle(ChainRegistered(late))
    side.handle(ChainConcluded(1))
    assert side.machine.phase is phase and side.steps == steps


# ---- concluding and withdrawing --------------------------------------------------------------------------------------


def test_a_matured_dispute_is_concluded_withdrawn_archived_and_told_once() -> None:
    side = registered()
    side.handle(ChainMatured(dispute(side, 1)))
    step = side.steps[-1]
    assert isinstance(step, ConcludeState) and step.state == side.machine.state
    side.handle(ChainConcluded(1))
    assert isinstance(side.steps[-1], WithdrawHoldings)
    assert CLOSE_REQUEST not in side.replies
    side.handle(ChainWithdrawn())
    assert side.machine.phase is Phase.WITHDRAWN and side.replies[CLOSE_REQUEST] is None
    assert not side.disk.tables[Table.CHANNELS] and side.stored().phase is Phase.WITHDRAWN
    assert side.notifications == [ChannelClosed()]


@pytest.mark.parametrize("phase", [Phase.FINAL, *PENDING])
def test_a_failed_step_is_told_once_and_repeated_with_growing_pauses(phase: Phase) -> None:
    side = start(phase)
    pauses = []
    for _ in range(8):
        side.handle(ChainFailed(BROKEN))
        pauses.append(side.timers[Timer.SETTLE])
        steps = len(side.steps)
        side.fire(Timer.SETTLE)
        assert len(side.steps) == steps + 1
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert side.replies[CLOSE_REQUEST] is BROKEN
    assert [item for item in side.notifications if isinstance(item, ChannelClosed)] == [ChannelClosed(BROKEN)]


@pytest.mark.parametrize("phase", [Phase.FINAL, *PENDING])
def test_after_any_number_of_failures_the_channel_still_ends_withdrawn(phase: Phase) -> None:
    side = start(phase)
    for _ in range(3):
        side.handle(ChainFailed(BROKEN))
        side.fire(Timer.SETTLE)
    follow_to_the_end(side)
    assert side.machine.phase is Phase.WITHDRAWN and side.stored().phase is Phase.WITHDRAWN


def follow_to_the_end(side: Side) -> None:
    """A chain on which everything works does the step that was submitted last, until none comes any more."""
    done = 0
    while len(side.steps) > done:
        done = len(side.steps)
        match side.steps[-1]:
            case RegisterState():
                side.handle(ChainRegistered(dispute(side, side.machine.state.version)))
            case AwaitConcludable():
                side.handle(ChainMatured(dispute(side, side.machine.state.version)))
            case ConcludeState() | ConcludeFinal():
                side.handle(ChainConcluded(side.machine.state.version))
            case WithdrawHoldings():
                side.handle(ChainWithdrawn())
            case FundChannel():
                side.handle(ChainFailed(BROKEN, deposited=True))


@pytest.mark.parametrize("phase", [Phase.FINAL, *PENDING, Phase.WITHDRAWN])
def test_a_settling_channel_refuses_users_and_peers(phase: Phase) -> None:
    side = start(phase)
    side.outbox.clear()
    side.handle(pay(5, request=2))
    side.handle(UserClosed(3))
    for request in (2, 3):
        error = side.replies[request]
        assert isinstance(error, FailedPrecondition) and "closed channel" in error.message
    newer = next(event for event in events(acting()) if isinstance(event, PeerProposed))
    steps = len(side.steps)
    side.handle(newer)
    assert len(side.signed) == len({state for state in side.signed}) and len(side.steps) == steps
    assert len(side.outbox) == 1, "a peer that asks is told"


# ---- after a restart -------------------------------------------------------------------------------------------------


def stopped(phase: Phase) -> Side:
    """The side as a crash in `phase` leaves it: only what is on disk."""
    side = start(phase)
    if phase is Phase.ACCEPTING:
        side = deciding()
        side.crash_before = lambda effect: isinstance(effect, RequestSignature)
        side.answer(accept=True, request=2)
        assert side.crashed
    return side.restart()


RESUMED: dict[Phase, tuple[Phase, type | None]] = {
    Phase.FUNDING: (Phase.FUNDING, FundChannel),
    Phase.ACTING: (Phase.ACTING, None),
    Phase.SIGNING: (Phase.UNKNOWN, None),
    Phase.DECIDING: (Phase.ACTING, None),
    Phase.ACCEPTING: (Phase.ACTING, None),
    Phase.UNKNOWN: (Phase.UNKNOWN, None),
    Phase.FINAL: (Phase.FINAL, ConcludeFinal),
    Phase.REGISTERING: (Phase.REGISTERING, RegisterState),
    Phase.REGISTERED: (Phase.REGISTERED, AwaitConcludable),
    Phase.PROGRESSING: (Phase.PROGRESSING, ProgressState),
    Phase.CONCLUDING: (Phase.REGISTERED, AwaitConcludable),
    Phase.WITHDRAWING: (Phase.WITHDRAWING, WithdrawHoldings),
    Phase.WITHDRAWN: (Phase.WITHDRAWN, None),
}


def test_there_is_an_answer_for_a_restart_in_every_phase() -> None:
    assert set(RESUMED) | {Phase.OPENING} == set(Phase)


@pytest.mark.parametrize("phase", list(RESUMED))
def test_a_restart_in_any_phase_goes_on_where_it_stopped(phase: Phase) -> None:
    target, step = RESUMED[phase]
    side = stopped(phase)
    assert not side.crashed and side.machine.phase is target
    assert [type(each) for each in side.steps] == ([] if step is None else [step])
    published = [effect for effect in side.performed if isinstance(effect, Publish)]
    assert published or phase is Phase.WITHDRAWN, "the watcher knows nothing of a live channel"


@pytest.mark.parametrize("phase", [Phase.FUNDING, Phase.FINAL, *PENDING])
def test_a_restart_while_money_is_on_chain_ends_with_the_money_withdrawn(phase: Phase) -> None:
    side = stopped(phase)
    follow_to_the_end(side)
    assert side.machine.phase is Phase.WITHDRAWN


def test_a_restart_while_funding_puts_nothing_new_at_risk() -> None:
    """O-22: wait for what was deposited; never deposit again."""
    side = stopped(Phase.FUNDING)
    (step,) = side.steps
    assert isinstance(step, FundChannel) and not step.deposit


def test_a_restart_before_anything_was_deposited_ends_the_channel() -> None:
    side = funding()
    for phase in (Phase.FUNDING, Phase.OPENING):
        side.machine.record = replace(side.machine.record, phase=phase, deposited=False)
        side.disk.commit(side.codec.operations(side.machine.record))
        again = side.restart()
        assert again.machine.phase is Phase.WITHDRAWN and not again.steps
        assert not again.disk.tables[Table.CHANNELS]
        side = funding()


def test_a_restart_with_an_unknown_outcome_asks_again_with_the_same_signature() -> None:
    side = signing()
    (before,) = side.outbox
    again = side.restart()
    assert again.outbox == [before] and Timer.HEAL in again.timers


def test_a_restart_in_the_middle_of_accepting_finishes_the_acceptance() -> None:
    side = stopped(Phase.ACCEPTING)
    assert side.machine.state.version == 2 and side.stored().current.fully_signed
    assert len(side.outbox) == 1


def test_a_timer_that_lost_its_reason_is_no_error() -> None:
    for phase in STARTS:
        side = start(phase)
        before = side.machine.phase
        for timer in Timer:
            if (timer, before) in {
                (Timer.RESPONSE, Phase.SIGNING),
                (Timer.HEAL, Phase.UNKNOWN),
                (Timer.EXPIRY, Phase.DECIDING),
                (Timer.SETTLE, Phase.CONCLUDING),
            }:
                continue
            side.handle(TimerFired(timer))
            assert side.machine.phase is before


def test_a_signature_nobody_waits_for_any_more_is_dropped() -> None:
    side = registered()
    side.performed.clear()
    signature = next(event for event in events(side) if isinstance(event, Signed))
    side.handle(signature)
    assert not any(isinstance(effect, SetTimer | SubmitTx) for effect in side.performed)


def test_what_is_over_stays_over() -> None:
    side = withdrawn()
    assert side.restart().machine.phase is Phase.WITHDRAWN
    assert withdrawing().stored().phase is Phase.WITHDRAWING and concluding().stored().phase is Phase.CONCLUDING
    assert final().stored().current.fully_signed

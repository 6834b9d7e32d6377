"""Comparing states with the peer, and recovery mode: a side whose disk is an old copy signs nothing it must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from perun_core.channel import Phase, Transaction
from perun_core.errors import FailedPrecondition, PeerRejected, RuleViolated, UnknownInternal
from perun_core.ports.store import Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import (
    ConcludeFinal,
    Forked,
    FundChannel,
    Persist,
    Publish,
    Reconciled,
    RegisterState,
    RequestSignature,
    Send,
    StorageBehind,
    Timer,
)
from perun_core.protocol.events import Payment, PeerConnected, PeerSynced, RecoveryBegan, UserClosed, UserPaid
from perun_core.testing.conversation import KEYS, Disk, Pair, Side, sign_with
from perun_core.wire.messages import Message, Sync, Update, UpdateAcc, UpdateRej

from .lives import STARTS, events, fully_signed, in_recovery, registered


def pay(side: Side, amount: int, *, request: int = 1) -> None:
    side.handle(UserPaid(request, (Payment(0, side.index, amount, str(amount)),)))


def agree(pair: Pair, payer: Side, amount: int, *, request: int = 1) -> None:
    """One payment from end to end."""
    pay(payer, amount, request=request)
    pair.deliver()
    other = pair.sides[1 - payer.index]
    other.answer(accept=True)
    pair.deliver()
    assert pair.alice.machine.state == pair.bob.machine.state


def rolled_back(pair: Pair, index: int, disk: Disk, *, noticed: bool = True) -> Side:
    """The side comes back from an old copy of its disk; whether the store noticed is up to the test."""
    old = Side(index, pair.sides[index].stored(), disk=disk)
    if noticed:
        disk.doubt = "the store is an older copy"
    pair.sides[index] = old.restart()
    return pair.sides[index]


def kinds(messages: list[Message]) -> list[type]:
    return [type(message) for message in messages]


# ---- the peer holds something newer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("noticed", [True, False])
def test_y6_whoever_comes_back_from_an_old_copy_gets_the_newest_state_and_goes_on(who: int, noticed: bool) -> None:
    pair = Pair()
    agree(pair, pair.alice, 10)
    copy = pair.sides[who].disk.copy()
    agree(pair, pair.alice, 20, request=2)
    agree(pair, pair.bob, 5, request=3)
    newest = pair.alice.machine.state
    mine, peer = rolled_back(pair, who, copy, noticed=noticed), pair.sides[1 - who]
    assert mine.machine.state.version == 1 and mine.machine.is_recovering is noticed
    if noticed:
        mine.fire(Timer.SYNC)
        pair.deliver()
    else:  # nobody knows until it proposes what is long decided
        pay(mine, 7, request=4)
        pair.deliver()
        assert StorageBehind(newest.version) in mine.notifications
        assert isinstance(mine.replies[4], PeerRejected)
    assert mine.machine.state == newest == mine.stored().current.state
    assert Reconciled() in mine.notifications and not mine.machine.is_recovering
    agree(pair, peer, 1, request=5)
    agree(pair, mine, 1, request=6)
    pair.check()


@pytest.mark.parametrize("who", [0, 1])
def test_in_recovery_mode_nothing_is_signed_whatever_anybody_asks(who: int) -> None:
    pair = Pair()
    agree(pair, pair.alice, 10)
    copy = pair.sides[who].disk.copy()
    agree(pair, pair.alice, 20, request=2)
    mine, peer = rolled_back(pair, who, copy), pair.sides[1 - who]
    pay(mine, 1, request=10)
    refused = mine.replies[10]
    assert isinstance(refused, FailedPrecondition) and "recovery mode: the store is an older copy" in refused.message
    pay(peer, 3, request=11)
    pair.deliver()
    assert not mine.questions and 11 not in peer.replies, "a refusal would free the peer to sign something else"
    for timer in Timer:
        if timer is not Timer.SYNC:
            mine.fire(timer)
    mine.handle(PeerConnected())
    assert not mine.signed


@pytest.mark.parametrize("phase", list(STARTS))
def test_in_recovery_mode_no_event_in_any_phase_makes_a_signature_or_a_deposit(phase: Phase) -> None:
    for make in STARTS[phase]:
        side = make()
        if phase in (Phase.WITHDRAWN, Phase.OPENING) or side.machine.is_recovering:
            continue
        count = len(list(events(in_recovery(make()))))
        for number in range(count):
            recovering = in_recovery(make())
            event = list(events(recovering))[number]
            if type(event).__name__ == "RecoveryEnded":
                continue
            before = recovering.machine.is_recovering
            try:
                effects = recovering.machine.handle(event)
            except RuleViolated:
                continue
            assert before
            assert not [effect for effect in effects if isinstance(effect, RequestSignature)], event
            assert not [effect for effect in effects if isinstance(effect, Persist) and effect.signing], event
        deposits = [step for step in in_recovery(make()).steps if isinstance(step, FundChannel) and step.deposit]
        assert not deposits


def test_what_our_user_wanted_is_told_when_recovery_begins() -> None:
    pair = Pair()
    pay(pair.alice, 10)
    pair.deliver()
    pair.bob.handle(RecoveryBegan("the chain knows more"))
    assert pair.bob.machine.phase is Phase.ACTING and not pair.bob.outbox
    pair.alice.handle(RecoveryBegan("the chain knows more"))
    assert pair.alice.machine.phase is Phase.UNKNOWN is pair.alice.stored().phase
    assert isinstance(pair.alice.replies[1], FailedPrecondition)


def test_a_channel_in_recovery_mode_can_still_be_taken_to_the_chain() -> None:
    pair = Pair()
    agree(pair, pair.alice, 10)
    mine = rolled_back(pair, 0, pair.alice.disk.copy())
    mine.handle(UserClosed(5))
    assert mine.machine.phase is Phase.REGISTERING and isinstance(mine.steps[-1], RegisterState)
    assert not mine.signed and Reconciled() in mine.notifications


def test_asking_waits_until_the_peer_s_time_outs_are_over_and_then_longer_and_longer() -> None:
    pair = Pair()
    mine = rolled_back(pair, 0, pair.alice.disk.copy())
    pauses = [mine.timers[Timer.SYNC]]
    for _ in range(4):
        mine.fire(Timer.SYNC)
        assert kinds(mine.outbox) == [Sync]
        mine.outbox.clear()
        pauses.append(mine.timers[Timer.SYNC])
    assert pauses == [15.0, 30.0, 60.0, 60.0, 60.0]


def test_a_forgotten_opening_that_the_peer_holds_is_a_channel_again() -> None:
    """The backup is from before the peer's signature: version 0, or whatever came after it, is with the peer."""
    for payments in (0, 1):
        pair = Pair()
        record = pair.alice.machine.record
        copy = pair.alice.disk.copy()
        unsigned = replace(record, phase=Phase.OPENING, current=Transaction(record.current.state, (None, None)))
        copy.commit(pair.alice.codec.operations(unsigned))
        for number in range(payments):
            agree(pair, pair.alice, 10, request=number + 1)
        copy.doubt = "the store is an older copy"
        pair.sides[0] = mine = Side(0, unsigned, disk=copy).restart()
        assert mine.machine.phase is Phase.OPENING
        mine.fire(Timer.SYNC)
        pair.deliver()
        assert mine.machine.state == pair.bob.machine.state
        assert mine.stored().deposited and mine.stored().current.fully_signed
        if payments:
            assert mine.machine.phase is Phase.ACTING
        else:
            assert mine.machine.phase is Phase.FUNDING
            assert mine.steps == [FundChannel(record.params, pair.bob.machine.state, deposit=False)]


def test_an_update_that_was_accepted_and_forgotten_is_accepted_again_and_nothing_else() -> None:
    """The acceptance was lost with the disk; the peer still asks for the same, and nothing else can come between."""
    pair = Pair()
    copy = pair.bob.disk.copy()
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.answer(accept=True)
    agreed = pair.bob.machine.state
    pair.bob.outbox.clear()
    mine = rolled_back(pair, 1, copy)
    pair.alice.fire(Timer.RESPONSE)
    pair.deliver()
    assert pair.alice.machine.phase is Phase.UNKNOWN
    mine.fire(Timer.SYNC)
    pair.deliver()
    pair.alice.fire(Timer.HEAL)
    pair.deliver()
    mine.answer(accept=True)
    pair.deliver()
    assert pair.alice.machine.state == mine.machine.state == agreed


# ---- the first version after a recovery ------------------------------------------------------------------------------


def test_the_first_update_after_a_recovery_must_not_lower_what_we_own() -> None:
    """A forgotten signature of ours may be with the peer; what we sign beside it must not make its choice better."""
    pair = Pair()
    agree(pair, pair.alice, 10)
    copy = pair.alice.disk.copy()
    mine = rolled_back(pair, 0, copy)
    mine.fire(Timer.SYNC)
    pair.deliver()
    pay(mine, 1, request=5)
    error = mine.replies[5]
    assert isinstance(error, UnknownInternal) and "after a recovery" in error.message and not mine.signed
    mine = pair.sides[0] = mine.restart()  # the rule survives
    pay(mine, 1, request=6)
    assert isinstance(mine.replies[6], UnknownInternal)
    mine.handle(UserPaid(7, (Payment(0, 0, 5, "5"), Payment(0, 1, 5, "5"))))  # nothing changes
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    assert mine.replies[7] is None and mine.machine.state.version == 2
    agree(pair, mine, 50, request=8)


def test_a_forgotten_signature_is_worth_no_more_to_the_peer_than_before() -> None:
    """The update of which nobody knows is completed by the peer after all: our newest state refutes it."""
    pair = Pair()
    agree(pair, pair.alice, 10)
    copy = pair.alice.disk.copy()
    pay(pair.alice, 60, request=2)
    (forgotten,) = (message for message in pair.alice.outbox if isinstance(message, Update))
    pair.alice.outbox.clear()
    mine = rolled_back(pair, 0, copy)
    mine.fire(Timer.SYNC)
    pair.deliver()
    own_before = mine.machine.state.balances[0][0]
    agree(pair, pair.bob, 5, request=3)
    assert mine.machine.state.version == forgotten.state.version
    assert mine.machine.state.balances[0][0] >= own_before
    agree(pair, mine, 1, request=4)
    assert mine.machine.state.version > forgotten.state.version


# ---- comparing without a rollback ------------------------------------------------------------------------------------


def deaf_to_repetition(side: Side) -> Callable[[Message], bool]:
    """A peer of another make drops an update that it has accepted before, without an answer."""
    return lambda message: isinstance(message, Update) and message.state.version <= side.machine.state.version


def test_7_3_4_an_update_whose_acceptance_was_lost_heals_with_a_peer_that_only_answers_questions() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.bob.outbox.clear()  # lost
    pair.alice.fire(Timer.RESPONSE)
    asked: list[float] = []
    waited = 0.0
    while pair.alice.machine.phase is Phase.UNKNOWN and waited < 200:
        messages, pair.alice.outbox = pair.alice.outbox, []
        for message in messages:
            if isinstance(message, Sync):
                asked.append(waited)
            if not deaf_to_repetition(pair.bob)(message):
                pair.bob.receive(message)
        pair.deliver()
        waited += pair.alice.timers.get(Timer.HEAL, 0.0)
        pair.alice.fire(Timer.HEAL)
    assert pair.alice.machine.state == pair.bob.machine.state and pair.alice.machine.state.version == 1
    assert asked and asked[0] >= 15.0, "asked before the peer's own time-outs were over"


def test_y2_a_peer_that_is_behind_by_one_gets_the_acceptance_again() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.bob.outbox.clear()
    pair.bob.receive(Sync(4, pair.alice.machine.record.current))
    assert kinds(pair.bob.outbox) == [Sync, UpdateAcc]
    pair.deliver()
    assert pair.alice.machine.state.version == 1 == pair.bob.machine.state.version
    pair.check()


def test_y3_a_peer_in_sync_is_asked_again_for_the_update_it_never_got() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.alice.outbox.clear()
    pair.alice.fire(Timer.RESPONSE)
    pair.alice.outbox.clear()
    pair.alice.receive(Sync(3, pair.bob.machine.record.current))
    assert kinds(pair.alice.outbox) == [Sync, Update]


def test_y4_a_fork_ends_what_is_off_chain_and_says_so() -> None:
    pair = Pair()
    agree(pair, pair.alice, 10)
    other = replace(pair.alice.machine.state.allocation, balances=((11, 289),))
    pair.alice.receive(Sync(3, fully_signed(replace(pair.alice.machine.state, allocation=other))))
    assert pair.alice.notifications[-1] == Forked(1) and pair.alice.machine.phase is Phase.REGISTERING
    signed = len(pair.alice.signed)
    pay(pair.alice, 1, request=9)
    assert isinstance(pair.alice.replies[9], FailedPrecondition) and len(pair.alice.signed) == signed


def test_y5_a_newer_state_completed_from_a_refused_candidate_does_not_answer_another_payment_with_yes() -> None:
    """The peer refused our first payment and completed it all the same, while the second one is on its way."""
    pair = Pair()
    pay(pair.alice, 10)
    (first,) = pair.alice.outbox
    assert isinstance(first, Update)
    pair.deliver()
    pair.bob.answer(accept=False)
    pair.deliver()
    pay(pair.alice, 99, request=2)
    sig = sign_with(KEYS[1], PROFILE.state_hash(first.state))
    pair.alice.receive(Sync(3, Transaction(first.state, (first.sig, sig))))
    assert pair.alice.machine.state == first.state
    assert isinstance(pair.alice.replies[2], UnknownInternal)


@pytest.mark.parametrize("final", [False, True])
def test_y5_y8_a_newer_state_shown_during_a_dispute_is_kept_and_used(final: bool) -> None:
    side = registered()
    newer = side.machine.state.next(balances=((250, 50),), is_final=final)
    side.handle(PeerSynced(Sync(3, fully_signed(newer))))
    assert side.stored().current.state == newer and Publish(side.machine.record.current) in side.performed
    assert isinstance(side.steps[-1], ConcludeFinal if final else RegisterState)
    assert side.machine.phase is (Phase.FINAL if final else Phase.REGISTERING)


@pytest.mark.parametrize("again", [False, True])
def test_an_acceptance_of_what_we_took_for_refused_is_believed(again: bool) -> None:
    """An old refusal crossed the repetition that was accepted; another attempt may be on its way by now."""
    pair = Pair()
    pay(pair.alice, 10)
    (first,) = pair.alice.outbox
    assert isinstance(first, Update)
    pair.alice.receive(UpdateRej(first.state.id, 1, "concerns an earlier copy"))
    if again:
        pay(pair.alice, 99, request=2)
        pair.alice.outbox.pop()
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    assert pair.alice.machine.state == pair.bob.machine.state == first.state
    assert pair.alice.stored().current.fully_signed
    assert not again or isinstance(pair.alice.replies[2], UnknownInternal)
    agree(pair, pair.alice, 5, request=3)


def test_an_answer_is_not_answered_and_a_question_is() -> None:
    """Two sides that compare end after two messages (7.4.1)."""
    pair = Pair()
    for index in (0, 1):
        pair.sides[index] = pair.sides[index].restart()
    pair.alice.handle(PeerConnected())
    pair.alice.fire(Timer.SYNC)
    pair.deliver()
    sent = [effect for side in pair.sides for effect in side.performed if isinstance(effect, Send)]
    assert [type(effect.message) for effect in sent] == [Sync, Sync]
    pair.alice.handle(PeerConnected())
    assert Timer.SYNC not in pair.alice.timers, "a channel that was compared once is not compared again"


def test_questions_that_cross_are_each_other_s_answers() -> None:
    pair = Pair()
    for index in (0, 1):
        pair.sides[index] = pair.sides[index].restart()
        pair.sides[index].handle(PeerConnected())
    for side in pair.sides:
        side.fire(Timer.SYNC)
    pair.deliver()
    assert [len([e for e in side.performed if isinstance(e, Send)]) for side in pair.sides] == [1, 1]


def test_nothing_is_asked_while_a_channel_is_settled_or_disputed() -> None:
    for phase in (Phase.FINAL, Phase.REGISTERING, Phase.REGISTERED, Phase.CONCLUDING, Phase.WITHDRAWING):
        side = STARTS[phase][0]().restart()
        side.handle(PeerConnected())
        assert Timer.SYNC not in side.timers
        assert not [message for message in side.outbox if isinstance(message, Sync)]


def test_a_guard_row_is_written_before_every_signature_also_after_a_restart() -> None:
    """The mark is put again, equal, so that the store is asked each time (7.3.5)."""
    pair = Pair()
    pay(pair.alice, 10)
    pair.alice.outbox.clear()
    for phase in (Phase.SIGNING, Phase.UNKNOWN):
        assert pair.alice.stored().phase is phase
        pair.sides[0] = pair.alice.restart()
        asked = [type(effect) for effect in pair.alice.performed]
        assert asked.index(Persist) < asked.index(RequestSignature)
        marking = [effect for effect in pair.alice.performed if isinstance(effect, Persist) and effect.signing]
        assert len(marking) == 1


def test_the_guard_refuses_another_state_after_marks_without_a_record() -> None:
    """Marks are kept when a record is put back: what was signed once is not signed differently (7.3.5)."""
    pair = Pair()
    before = pair.alice.stored()
    pay(pair.alice, 10)
    pair.alice.disk.commit(pair.alice.codec.operations(before))  # the record alone is old
    assert pair.alice.disk.tables[Table.SIGNED]
    pair.sides[0] = pair.alice.restart()
    signed = len(pair.alice.signed)
    pay(pair.alice, 55, request=3)
    assert pair.alice.crashed and len(pair.alice.signed) == signed

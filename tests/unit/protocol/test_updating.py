"""Off-chain updates between two machines: PROTOCOL.md 7.3."""

from __future__ import annotations

import pytest

from perun_core.channel import Phase
from perun_core.errors import InvalidArgument, PeerRejected, PeerRequestTimedOut
from perun_core.protocol.effects import ConcludeFinal, Persist, RegisterState, RequestSignature, Send, Timer
from perun_core.protocol.events import Payment, PeerProposed, UserClosed, UserPaid
from perun_core.protocol.updating import REPEATS
from perun_core.testing.conversation import Crash, Pair, Side
from perun_core.values import Sig
from perun_core.wire.messages import Sync, Update, UpdateAcc, UpdateRej


def pay(side: Side, amount: int, request: int = 1) -> None:
    side.handle(UserPaid(request, (Payment(0, side.index, amount, str(amount)),)))


def test_an_accepted_payment_is_agreed_by_both_sides() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.answer(accept=True, request=7)
    pair.deliver()
    assert pair.alice.replies == {1: None} and pair.bob.replies == {7: None}
    for side in pair.sides:
        assert side.machine.state.balances == ((70, 230),) and side.machine.state.version == 1
        assert side.stored().current.fully_signed and side.machine.phase is Phase.ACTING
    pair.check()


def test_nothing_signed_leaves_before_it_is_durable() -> None:
    """The order is in the effects: mark, sign, send at the proposer; mark, sign, book, send at the acceptor."""
    pair = Pair()
    pay(pair.alice, 30)
    kinds = [type(effect) for effect in pair.alice.performed]
    assert kinds.index(Persist) < kinds.index(RequestSignature) < kinds.index(Send)
    pair.deliver()
    pair.bob.performed.clear()
    pair.bob.answer(accept=True)
    kinds = [type(effect) for effect in pair.bob.performed]
    assert kinds.index(Persist) < kinds.index(RequestSignature)
    booked = max(i for i, kind in enumerate(kinds) if kind is Persist)
    assert kinds.index(RequestSignature) < booked < kinds.index(Send)


def test_a_rejected_payment_changes_nothing_and_the_version_is_free_again() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.answer(accept=False)
    pair.deliver()
    error = pair.alice.replies[1]
    assert isinstance(error, PeerRejected) and error.info["reason"] == "rejected by user"
    pay(pair.alice, 5, request=2)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    assert pair.alice.replies[2] is None
    assert pair.bob.machine.state.balances == ((95, 205),)
    pair.check()


def test_an_overdraft_names_the_amount_and_signs_nothing() -> None:
    pair = Pair()
    pay(pair.alice, 101)
    error = pair.alice.replies[1]
    assert isinstance(error, InvalidArgument) and error.info["value"] == "101"
    assert not pair.alice.signed and pair.alice.machine.phase is Phase.ACTING


def test_an_unreachable_peer_is_told_before_anything_is_signed() -> None:
    pair = Pair()
    pair.alice.reachable = False
    pay(pair.alice, 30)
    assert isinstance(pair.alice.replies[1], PeerRequestTimedOut)
    assert not pair.alice.signed and pair.alice.machine.phase is Phase.ACTING


def test_a_lost_acceptance_is_healed_by_asking_again() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.bob.outbox.clear()  # the acceptance is lost
    pair.alice.fire(Timer.RESPONSE)
    assert pair.alice.machine.phase is Phase.UNKNOWN
    pair.deliver()
    assert pair.alice.replies == {1: None}
    assert pair.alice.machine.state == pair.bob.machine.state
    pair.check()


def test_an_update_nobody_answered_ends_with_a_time_out_and_the_channel_goes_on() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.fire(Timer.EXPIRY)
    pair.alice.fire(Timer.RESPONSE)
    pair.deliver()
    assert isinstance(pair.alice.replies[1], PeerRequestTimedOut)
    assert pair.alice.machine.phase is Phase.ACTING
    pay(pair.alice, 10, request=2)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    assert pair.alice.replies[2] is None
    pair.check()


def test_u1_a_signature_of_somebody_else_is_dropped_without_an_answer() -> None:
    pair = Pair()
    state = pair.bob.machine.state.next(balances=((0, 300),))
    pair.alice.handle(PeerProposed(Update(state, 1, Sig(bytes(65)))))
    assert not pair.alice.outbox and pair.alice.machine.phase is Phase.ACTING


def test_u11_of_two_crossing_updates_the_one_of_participant_0_is_asked_for_again() -> None:
    """Both refuse at once; whoever is participant 1 is told so, and then answers the other one (7.3.3 rule 2)."""
    pair = Pair()
    pay(pair.alice, 30)
    pay(pair.bob, 50)
    pair.deliver()
    assert isinstance(pair.bob.replies[1], PeerRejected) and 1 not in pair.alice.replies
    assert (pair.alice.machine.phase, pair.bob.machine.phase) == (Phase.SIGNING, Phase.ACTING)
    pair.alice.fire(Timer.HEAL)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    assert pair.alice.replies[1] is None and pair.bob.machine.state == pair.alice.machine.state
    pay(pair.bob, 50, request=2)
    pair.deliver()
    pair.alice.answer(accept=True)
    pair.deliver()
    assert pair.bob.replies[2] is None
    pair.check()


def test_u11_crossing_updates_never_fork_when_nobody_gives_way() -> None:
    """Participant 1 proposes again and again; in the end both are refused, and either may go on."""
    pair = Pair()
    pay(pair.alice, 30)
    for request in range(1, 5):
        pay(pair.bob, 50, request=request)
        pair.deliver()
        pair.alice.fire(Timer.HEAL)
        for side in pair.sides:
            side.answer(accept=False)
        pair.deliver()
        pair.check()
    assert isinstance(pair.alice.replies[1], PeerRejected)
    assert all(side.machine.phase is Phase.ACTING for side in pair.sides)
    pair.check()


def test_crossing_updates_to_the_same_final_state_complete_each_other() -> None:
    pair = Pair()
    pair.alice.handle(UserClosed(1))
    pair.bob.handle(UserClosed(1))
    pair.deliver()
    assert all(side.machine.phase is Phase.FINAL for side in pair.sides)
    assert pair.alice.machine.state == pair.bob.machine.state
    pair.check()


def test_whoever_proposes_on_top_of_what_we_miss_is_asked_for_it_and_not_refused() -> None:
    """A refusal of the first copy of an update and the acceptance of the second one cross the repetition (7.3.3)."""
    pair = Pair()
    pay(pair.alice, 30)
    pay(pair.bob, 50)
    (update,), (crossing,) = pair.alice.outbox, pair.bob.outbox
    pair.alice.machine._repeats = REPEATS  # it was asked for again before
    pair.alice.outbox.clear()
    pair.bob.outbox.clear()
    pair.bob.receive(update)
    pair.alice.receive(crossing)
    pair.bob.receive(pair.alice.outbox.pop())
    pair.bob.receive(update)
    pair.bob.answer(accept=True)
    pair.bob.outbox.pop()  # the acceptance is lost
    pair.deliver()
    assert (pair.alice.machine.state.version, pair.bob.machine.state.version) == (0, 1)

    pay(pair.bob, 5, request=2)
    pair.deliver()
    assert 2 not in pair.bob.replies and not pair.alice.outbox
    pair.alice.fire(Timer.SYNC)
    pair.deliver()
    assert pair.alice.machine.state == pair.bob.machine.state
    pair.bob.fire(Timer.RESPONSE)
    pair.deliver()
    pair.alice.answer(accept=True)
    pair.deliver()
    assert pair.bob.replies[2] is None and pair.alice.machine.state.version == 2
    pair.check()


def test_a_second_payment_waits_for_the_first() -> None:
    pair = Pair()
    pay(pair.alice, 30, request=1)
    pay(pair.alice, 20, request=2)
    assert len(pair.alice.signed) == 1
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    assert pair.alice.replies == {1: None, 2: None}
    assert pair.alice.machine.state.balances == ((50, 250),)


def test_a_refused_final_update_leads_to_a_dispute_with_the_last_agreed_state() -> None:
    pair = Pair()
    pair.alice.handle(UserClosed(1))
    pair.deliver()
    pair.bob.answer(accept=False)
    pair.deliver()
    assert pair.alice.machine.phase is Phase.REGISTERING
    (step,) = pair.alice.steps
    assert isinstance(step, RegisterState) and step.tx == pair.alice.stored().current
    assert not step.tx.state.is_final  # type: ignore[union-attr]


def test_an_accepted_final_update_is_concluded_first_by_who_asked() -> None:
    pair = Pair()
    pair.alice.handle(UserClosed(1))
    pair.deliver()
    pair.bob.answer(accept=True, request=5)
    pair.deliver()
    (first,), (second,) = pair.alice.steps, pair.bob.steps
    assert isinstance(first, ConcludeFinal) and not first.secondary
    assert isinstance(second, ConcludeFinal) and second.secondary
    assert pair.alice.replies == {} and pair.bob.replies == {}  # both wait for their money


def test_a_repeated_update_is_answered_with_the_same_acceptance() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    (update,) = pair.alice.outbox
    pair.deliver()
    pair.bob.answer(accept=True)
    (first,) = pair.bob.outbox
    pair.bob.receive(update)
    assert pair.bob.outbox == [first, first]


def test_an_old_version_is_refused() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    (update,) = pair.alice.outbox
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    pay(pair.bob, 5, request=3)
    pair.deliver()
    pair.alice.answer(accept=True)
    pair.deliver()
    pair.bob.receive(update)
    answer, newest = pair.bob.outbox
    assert isinstance(newest, Sync) and newest.current == pair.bob.machine.record.current
    assert isinstance(answer, UpdateRej)


@pytest.mark.parametrize("kind", [Persist, RequestSignature, Send])
@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("nth", [0, 1])
def test_a_crash_before_any_effect_loses_no_agreement(kind: type, who: str, nth: int) -> None:
    """Each effect of a payment fails in turn; after a restart both sides agree and can go on."""
    pair = Pair()
    seen = 0

    def crash(effect: object) -> bool:
        nonlocal seen
        if isinstance(effect, kind):
            seen += 1
            return seen == nth + 1
        return False

    side = getattr(pair, who)
    side.crash_before = crash
    pay(pair.alice, 30)
    if not pair.alice.crashed:
        pair.deliver()
        pair.bob.answer(accept=True)
        pair.deliver()
    side.crash_before = lambda effect: False
    pair.sides = [old.restart() if old.crashed else old for old in pair.sides]
    pair.check()
    for _ in range(4):
        for each in pair.sides:
            each.fire(Timer.RESPONSE)
            each.fire(Timer.HEAL)
        pair.deliver()
        pair.bob.answer(accept=True)
        pair.alice.answer(accept=True)
        pair.deliver()
    pair.check()
    assert pair.alice.machine.state == pair.bob.machine.state
    pay(pair.bob, 1, request=99)
    pair.deliver()
    pair.alice.answer(accept=True)
    pair.deliver()
    assert pair.bob.replies[99] is None
    pair.check()


def test_an_acceptance_with_a_foreign_signature_is_ignored() -> None:
    pair = Pair()
    pay(pair.alice, 30)
    pair.alice.receive(UpdateAcc(pair.alice.machine.record.channel_id, 1, Sig(bytes(64) + b"\x1b")))
    assert pair.alice.machine.phase is Phase.SIGNING
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    assert pair.alice.replies == {1: None}


def test_a_crash_is_what_the_harness_says() -> None:
    pair = Pair()
    pair.alice.crash_before = lambda effect: isinstance(effect, Persist)
    pay(pair.alice, 1)
    assert pair.alice.crashed and not pair.alice.outbox and issubclass(Crash, Exception)


def test_refusals_in_a_row_leave_the_channel_usable_in_both_directions() -> None:
    """A user may refuse many different payments of the same version; nobody has to go to the chain for that (7.3.5)."""
    pair = Pair()
    for side, other in ((pair.bob, pair.alice), (pair.alice, pair.bob)):
        for request in range(1, 11):
            pay(side, request, request=request)
            pair.deliver()
            other.answer(accept=False)
            pair.deliver()
            refusal = side.replies.pop(request)
            assert isinstance(refusal, PeerRejected) and refusal.info["reason"] == "rejected by user"
    pay(pair.alice, 30, request=20)
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    pay(pair.bob, 5, request=21)
    pair.deliver()
    pair.alice.answer(accept=True)
    pair.deliver()
    assert pair.alice.replies[20] is None and pair.bob.replies[21] is None
    assert [side.machine.state.version for side in pair.sides] == [2, 2]
    pair.check()


def test_the_same_payment_may_be_asked_for_again_after_both_were_refused() -> None:
    pair = Pair()
    pay(pair.bob, 50)
    pair.deliver()
    pair.alice.answer(accept=False)
    pay(pair.alice, 30)
    pair.deliver()
    pair.bob.answer(accept=False)
    pair.deliver()
    pay(pair.bob, 50, request=2)
    pair.deliver()
    pair.alice.answer(accept=True)
    pair.deliver()
    assert pair.bob.replies[2] is None
    assert pair.alice.machine.state == pair.bob.machine.state
    pair.check()


def test_a_refusal_of_an_earlier_attempt_does_not_end_the_present_one() -> None:
    """From the second refusal of a version on, a refusal names what it refuses."""
    pair = Pair()
    for request in (1, 2):
        pay(pair.bob, request, request=request)
        pair.deliver()
        pair.alice.answer(accept=False)
        late = pair.alice.outbox[-1]
        pair.deliver()
    assert isinstance(late, UpdateRej) and late.reason != "rejected by user"
    pay(pair.bob, 3, request=3)
    pair.bob.receive(late)
    assert pair.bob.machine.phase is Phase.SIGNING and 3 not in pair.bob.replies
    pair.deliver()
    pair.alice.answer(accept=True)
    pair.deliver()
    assert pair.bob.replies[3] is None
    pair.check()

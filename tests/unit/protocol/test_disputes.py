"""What a reorg takes back, what we do not hold, and what an app decides on chain (PROTOCOL.md 7.8 to 7.10)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from perun_core.channel import Dispute, DisputePhase, Phase, State, Transaction
from perun_core.errors import FailedPrecondition, UnknownInternal
from perun_core.ports.store import Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import (
    AwaitConcludable,
    ChannelClosed,
    ConcludeFinal,
    ConcludeState,
    FindRegistered,
    ProgressState,
    RegisterState,
    RequestSignature,
    Timer,
    WithdrawHoldings,
)
from perun_core.protocol.events import (
    ChainConcluded,
    ChainFailed,
    ChainFound,
    ChainMatured,
    ChainRegistered,
    ChainStands,
    ChainUndone,
    ChainWithdrawn,
    UserProgressed,
)
from perun_core.protocol.records import read_settled_mark
from perun_core.testing.conversation import KEYS, Side, sign_with
from perun_core.values import Sig

from .lives import (
    app_registered,
    concluding,
    dispute,
    final_withdrawing,
    final_withdrawn,
    fully_signed,
    moved,
    progressing,
    registered,
    registering,
    withdrawing,
    withdrawn,
)

NOTHING = Dispute(registered=False)


def settle_again(side: Side) -> None:
    """The chain does what is asked of it."""
    while side.machine.phase is not Phase.WITHDRAWN:
        match side.steps[-1]:
            case RegisterState():
                side.handle(ChainRegistered(dispute(side, 1)))
            case AwaitConcludable():
                side.handle(ChainMatured(dispute(side, 1)))
            case ConcludeState() | ConcludeFinal():
                side.handle(ChainConcluded(side.machine.state.version))
            case WithdrawHoldings():
                side.handle(ChainWithdrawn())


# ---- what a reorg takes back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "stored", "step"),
    [
        (withdrawn, NOTHING, RegisterState),
        (withdrawn, "older", RegisterState),
        (withdrawn, "newest", AwaitConcludable),
        (withdrawn, "concluded", WithdrawHoldings),
        (final_withdrawn, NOTHING, ConcludeFinal),
        (final_withdrawn, "older", ConcludeFinal),
        (final_withdrawn, "concluded", WithdrawHoldings),
        (withdrawing, NOTHING, RegisterState),
        (withdrawing, "newest", AwaitConcludable),
        (final_withdrawing, NOTHING, ConcludeFinal),
        (concluding, NOTHING, RegisterState),
        (registered, NOTHING, RegisterState),
    ],
)
def test_what_a_reorg_undid_is_brought_about_again_from_where_the_chain_is(
    make: Callable[[], Side], stored: Dispute | str, step: type
) -> None:
    side = make()
    kinds = {"older": dispute(side, 0), "newest": dispute(side, 1), "concluded": dispute(side, 1, concluded=True)}
    told, answers = list(side.notifications), dict(side.replies)
    side.handle(ChainUndone(stored if isinstance(stored, Dispute) else kinds[stored]))
    assert isinstance(side.steps[-1], step)
    settle_again(side)
    assert not side.disk.tables[Table.CHANNELS] and len(side.disk.tables[Table.ARCHIVE]) == 1
    if make in (withdrawn, final_withdrawn):
        assert side.notifications == told and side.replies == answers, "its user knows the channel as closed"


def test_a_reopened_channel_is_no_archived_one_until_it_is_settled_again() -> None:
    side = withdrawn()
    assert side.disk.tables[Table.ARCHIVE] and not side.disk.tables[Table.CHANNELS]
    side.handle(ChainUndone(NOTHING))
    assert side.disk.tables[Table.CHANNELS] and not side.disk.tables[Table.ARCHIVE] | side.disk.tables[Table.CURSORS]
    assert side.stored().reopened and side.stored().concluded_version is None


def test_a_crash_while_settling_again_changes_nothing() -> None:
    side = withdrawn()
    side.handle(ChainUndone(NOTHING))
    again = side.restart()
    assert again.machine.phase is Phase.REGISTERING and isinstance(again.steps[-1], RegisterState)
    again.handle(ChainFailed(UnknownInternal("the node does not answer")))
    again.fire(Timer.SETTLE)
    settle_again(again)
    assert again.notifications == [], "neither the failure nor the end is news for its user"


def test_an_archived_channel_carries_a_mark_that_it_is_watched_on() -> None:
    side = withdrawn()
    ((key, value),) = side.disk.tables[Table.CURSORS].items()
    assert read_settled_mark(key, value) == (side.machine.record.channel_id, None)
    marked = side.codec.operations(side.machine.record, archive=True, head=77)
    side.disk.commit(marked)
    ((key, value),) = side.disk.tables[Table.CURSORS].items()
    assert read_settled_mark(key, value) == (side.machine.record.channel_id, 77)


def test_a_late_report_of_a_settled_channel_that_still_stands_costs_one_look_at_its_money() -> None:
    side = withdrawn()
    side.handle(ChainUndone(dispute(side, 1, concluded=True)))
    side.handle(ChainWithdrawn())
    assert side.machine.phase is Phase.WITHDRAWN and side.notifications == [ChannelClosed()]


@pytest.mark.parametrize("make", [registering, final_withdrawing])
def test_news_of_a_reorg_that_concern_no_finished_step_change_nothing(make: Callable[[], Side]) -> None:
    side = make()
    steps = list(side.steps)
    side.handle(ChainUndone(dispute(side, 1, concluded=True)))
    assert side.steps == steps


def test_a_dispute_that_vanished_while_its_time_was_awaited_is_begun_anew() -> None:
    side = registered()
    side.handle(ChainMatured(NOTHING))
    assert side.machine.phase is Phase.REGISTERING and isinstance(side.steps[-1], RegisterState)


# ---- how much time is left -------------------------------------------------------------------------------------------


def test_a_refutation_knows_by_when_it_has_to_be_there_also_when_it_is_repeated() -> None:
    side = registered()
    outdated = dispute(side, 0)
    side.handle(ChainRegistered(outdated))
    for _ in range(2):
        step = side.steps[-1]
        assert isinstance(step, RegisterState) and step.deadline == outdated.timeout
        side.handle(ChainFailed(UnknownInternal("the node does not answer")))
        side.fire(Timer.SETTLE)


def test_a_dispute_of_our_own_is_in_no_hurry() -> None:
    step = registering().steps[-1]
    assert isinstance(step, RegisterState) and step.deadline is None


# ---- what we do not hold ---------------------------------------------------------------------------------------------


@pytest.fixture
def behind() -> tuple[Side, State, Dispute]:
    """A side whose storage lost versions: the chain has version 5, signed by both."""
    side = registered()
    state = replace(
        side.machine.state, version=5, allocation=replace(side.machine.state.allocation, balances=((7, 293),))
    )
    return side, state, dispute(side, 5, state=state)


def test_a_registered_state_that_we_lack_is_taken_from_the_chain_concluded_and_never_signed(
    behind: tuple[Side, State, Dispute],
) -> None:
    side, state, stored = behind
    signed = list(side.signed)
    side.handle(ChainRegistered(stored))
    side.handle(ChainMatured(stored))
    assert side.steps[-1] == FindRegistered(side.machine.record.params, stored)
    side.handle(ChainFound(stored, fully_signed(state)))
    side.handle(ChainMatured(stored))
    assert side.steps[-1] == ConcludeState(side.machine.record.params, state)
    side.handle(ChainConcluded(5))
    side.handle(ChainWithdrawn())
    assert side.machine.phase is Phase.WITHDRAWN and side.signed == signed
    assert side.stored().concluded_version == 5 and side.machine.state.version == 1


def test_a_found_state_that_is_not_what_the_contract_stores_is_not_concluded(
    behind: tuple[Side, State, Dispute],
) -> None:
    side, state, stored = behind
    side.handle(ChainMatured(stored))
    other = replace(state, allocation=replace(state.allocation, balances=((0, 300),)))
    side.handle(ChainFound(stored, fully_signed(other)))
    assert side.machine.phase is Phase.REGISTERED and Timer.SETTLE in side.timers
    side.fire(Timer.SETTLE)
    assert side.steps[-1] == AwaitConcludable(0)


def test_a_state_that_cannot_be_found_is_looked_for_again(behind: tuple[Side, State, Dispute]) -> None:
    side, _, stored = behind
    side.handle(ChainMatured(stored))
    side.handle(ChainFailed(UnknownInternal("no transaction tells it")))
    side.fire(Timer.SETTLE)
    side.handle(ChainMatured(stored))
    assert isinstance(side.steps[-1], FindRegistered)


def test_an_older_state_that_cannot_be_refuted_any_more_is_concluded_like_every_other() -> None:
    """The node slept through the challenge."""
    side = registering()
    lost = replace(dispute(side, 0), state_hash=PROFILE.state_hash(replace(side.machine.state, version=0)))
    side.handle(ChainStands(lost))
    assert side.machine.phase is Phase.REGISTERED and side.steps[-1] == AwaitConcludable(lost.concludable_at)
    assert side.stored().phase is Phase.REGISTERED
    side.handle(ChainMatured(lost))
    side.handle(ChainFound(lost, fully_signed(replace(side.machine.state, version=0))))
    side.handle(ChainMatured(lost))
    assert isinstance(side.steps[-1], ConcludeState) and side.steps[-1].state.version == 0


# ---- progressing -----------------------------------------------------------------------------------------------------


def forced(side: Side, state: State) -> Dispute:
    """What the contract stores after a progression to `state`."""
    return replace(dispute(side, state.version, state=state), phase=DisputePhase.FORCE_EXEC, timeout=1300)


def by(actor: int, state: State) -> Transaction:
    """What the calldata of a progression tells."""
    sigs: list[Sig | None] = [None, None]
    sigs[actor] = sign_with(KEYS[actor], PROFILE.state_hash(state))
    return Transaction(state, tuple(sigs))


def refusal(side: Side, event: UserProgressed) -> str:
    """Why `event` is refused; nothing is signed and nothing sent."""
    before, steps = list(side.signed), list(side.steps)
    side.handle(event)
    error = side.replies[event.request]
    assert isinstance(error, FailedPrecondition)
    assert side.signed == before and side.steps == steps
    return error.message


def test_a_move_is_marked_signed_and_brought_to_the_chain_with_its_deadline() -> None:
    side = app_registered()
    side.performed.clear()
    old, stored = side.machine.state, dispute(side, 1)
    new = moved(old)
    side.handle(UserProgressed(60, new, stored, now=stored.timeout))
    step = side.steps[-1]
    assert isinstance(step, ProgressState) and (step.old, step.new, step.actor) == (old, new, 0)
    assert step.deadline == stored.concludable_at == stored.timeout + 60
    PROFILE.verify(PROFILE.state_hash(new), step.sig, side.machine.record.params.parts[0])
    assert bytes(PROFILE.state_hash(new)) in side.disk.tables[Table.SIGNED].values()  # before it was signed: harness
    assert side.stored().phase is Phase.PROGRESSING


def test_a_confirmed_move_is_answered_and_concluded_as_the_outcome() -> None:
    side = progressing()
    new = moved(side.machine.state)
    side.handle(ChainRegistered(forced(side, new)))
    assert side.replies[60] is None and side.steps[-1] == AwaitConcludable(1300)
    side.handle(ChainMatured(forced(side, new)))
    assert isinstance(side.steps[-1], ConcludeState) and side.steps[-1].state == new


def test_after_a_restart_the_same_move_is_signed_and_brought_again() -> None:
    side = progressing()
    first = side.steps[-1]
    again = side.restart()
    assert again.steps == [first] and not again.crashed
    again.handle(ChainRegistered(dispute(again, 1)))
    assert again.machine.phase is Phase.PROGRESSING, "what it starts from is no news"
    new = moved(again.machine.state)
    again.handle(ChainRegistered(forced(again, new)))
    third = moved(new, b"z")
    again.handle(UserProgressed(61, third, forced(again, new), now=1200))
    assert isinstance(again.steps[-1], ProgressState) and again.steps[-1].old == new and not again.crashed


def test_a_failed_move_is_told_and_repeated_until_its_time_is_over() -> None:
    side = progressing()
    first = side.steps[-1]
    side.handle(ChainFailed(UnknownInternal("the node does not answer")))
    assert isinstance(side.replies[60], UnknownInternal)
    side.fire(Timer.SETTLE)
    assert side.steps[-1] == first
    side.handle(ChainStands(dispute(side, 1)))
    assert side.machine.phase is Phase.REGISTERED and isinstance(side.steps[-1], AwaitConcludable)


def test_when_the_peer_is_faster_its_move_counts_and_ours_is_told_as_lost() -> None:
    """G-5."""
    side = progressing()
    peers = moved(side.machine.state, b"y")
    side.handle(ChainRegistered(forced(side, peers)))
    assert isinstance(side.replies[60], FailedPrecondition)
    assert isinstance(side.steps[-1], FindRegistered)
    side.handle(ChainFound(forced(side, peers), by(1, peers)))
    side.handle(ChainMatured(forced(side, peers)))
    assert isinstance(side.steps[-1], ConcludeState) and side.steps[-1].state == peers


def test_the_peers_move_is_learnt_from_the_chain_and_built_upon() -> None:
    side = app_registered()
    peers = moved(side.machine.state, b"y")
    stored = forced(side, peers)
    side.handle(ChainRegistered(stored))
    assert side.steps[-1] == FindRegistered(side.machine.record.params, stored)
    assert "not one that we know" in refusal(side, UserProgressed(62, moved(peers), stored, now=1200))
    side.handle(ChainFound(stored, by(1, peers)))
    assert side.steps[-1] == AwaitConcludable(1300)
    side.handle(UserProgressed(63, moved(peers), stored, now=1200))
    assert isinstance(side.steps[-1], ProgressState) and side.steps[-1].old == peers


def test_a_move_that_only_the_contract_takes_for_valid_is_concluded_but_not_built_upon() -> None:
    side = app_registered()
    strange = moved(side.machine.state, b"two bytes and more")
    stored = forced(side, strange)
    side.handle(ChainRegistered(stored))
    side.handle(ChainFound(stored, by(1, strange)))
    assert "not one that we know as valid" in refusal(side, UserProgressed(62, moved(strange), stored, now=1200))
    side.handle(ChainMatured(stored))
    assert isinstance(side.steps[-1], ConcludeState) and side.steps[-1].state == strange


def test_a_second_move_to_the_same_version_is_never_signed() -> None:
    """7.3.5: also when the first one did not come to anything."""
    side = progressing()
    side.handle(ChainStands(dispute(side, 1)))
    other = moved(side.machine.state, b"q")
    assert "another progression" in refusal(side, UserProgressed(64, other, dispute(side, 1), now=1100))
    side.handle(UserProgressed(65, moved(side.machine.state), dispute(side, 1), now=1100))
    assert isinstance(side.steps[-1], ProgressState) and not side.crashed


@pytest.mark.parametrize(
    ("change", "now", "why"),
    [
        (lambda stored: stored, 1059, "G-2"),
        (lambda stored: replace(stored, phase=DisputePhase.FORCE_EXEC), 1054, "G-2"),
        (lambda stored: NOTHING, 1100, "G-1"),
        (lambda stored: replace(stored, phase=DisputePhase.CONCLUDED), 1100, "G-1"),
        (lambda stored: replace(stored, version=4), 1100, "G-1"),
    ],
    ids=["refutable", "time nearly over", "no dispute", "concluded", "another state"],
)
def test_a_move_at_the_wrong_time_is_refused(change: Callable[[Dispute], Dispute], now: int, why: str) -> None:
    side = app_registered()
    assert why in refusal(side, UserProgressed(60, moved(side.machine.state), change(dispute(side, 1)), now=now))


@pytest.mark.parametrize(
    "new",
    [
        lambda old: moved(old, b"two bytes"),
        lambda old: replace(moved(old), version=old.version + 2),
        lambda old: replace(moved(old), allocation=replace(old.allocation, balances=((0, 1),))),
        lambda old: replace(moved(old), app=None),
    ],
    ids=["no move", "two versions", "money lost", "another app"],
)
def test_g3_a_move_against_the_rules_is_refused(new: Callable[[State], State]) -> None:
    side = app_registered()
    assert "cannot progress" in refusal(side, UserProgressed(60, new(side.machine.state), dispute(side, 1), now=1100))


def test_a_channel_without_app_is_never_progressed() -> None:
    side = registered()
    state = side.machine.state.next(balances=((0, 300),))
    assert "no app" in refusal(side, UserProgressed(60, state, dispute(side, 1), now=1100))


def test_a_progression_in_force_is_not_refuted_with_off_chain_states() -> None:
    """What the contract refuses is not tried: versions count only in the phase of refutations."""
    side = app_registered()
    older = replace(dispute(side, 0), phase=DisputePhase.FORCE_EXEC)
    side.handle(ChainRegistered(older))
    assert side.machine.phase is Phase.REGISTERED and isinstance(side.steps[-1], FindRegistered)


def test_a_progression_that_a_reorg_took_back_goes_on_from_what_is_left() -> None:
    side = progressing()
    side.handle(ChainUndone(dispute(side, 1)))
    assert isinstance(side.replies[60], FailedPrecondition) and side.steps[-1] == AwaitConcludable(1120)
    side.handle(UserProgressed(66, moved(side.machine.state), dispute(side, 1), now=1100))
    assert isinstance(side.steps[-1], ProgressState)


def test_a_concluded_channel_tells_whoever_waits_for_a_move() -> None:
    side = progressing()
    side.handle(ChainRegistered(dispute(side, 1, concluded=True)))
    assert isinstance(side.replies[60], FailedPrecondition) and side.machine.phase is Phase.WITHDRAWING


def test_the_mark_of_a_move_is_on_disk_before_its_signature_exists() -> None:
    side = app_registered()
    side.crash_before = lambda effect: isinstance(effect, RequestSignature)
    side.handle(UserProgressed(60, moved(side.machine.state), dispute(side, 1), now=1100))
    assert side.crashed and side.stored().phase is Phase.PROGRESSING
    again = side.restart()
    assert isinstance(again.steps[-1], ProgressState)

"""Opening a channel: PROTOCOL.md 7.2, every row of its table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perun_core.apps.registry import NO_APPS
from perun_core.channel import Allocation, Asset, Phase, Transaction
from perun_core.errors import (
    ApiError,
    PeerRequestTimedOut,
    RuleViolated,
    StoreConflict,
    UnknownInternal,
)
from perun_core.errors import (
    PeerRejected as PeerRejectedError,
)
from perun_core.ports.store import Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import (
    CancelTimer,
    Connect,
    Effect,
    Effects,
    Fail,
    Persist,
    RequestSignature,
    Send,
    SetTimer,
    Timer,
)
from perun_core.protocol.events import (
    OpeningEvent,
    PeerAccepted,
    PeerAcceptedProposal,
    PeerAway,
    PeerReached,
    PeerRejected,
    PeerRejectedProposal,
    Signed,
    TimerFired,
)
from perun_core.protocol.opening import NEXT, Opening, OpeningTerms, Stage
from perun_core.protocol.records import RecordCodec
from perun_core.testing.conversation import ADDRESSES, KEYS, Disk, sign_with
from perun_core.values import Address, Bytes32, ChannelID, ProposalID, Sig
from perun_core.wire.messages import (
    BaseProposal,
    BaseProposalAcc,
    LedgerProposal,
    LedgerProposalAcc,
    Message,
    ProposalRej,
    UpdateAcc,
    UpdateRej,
)

ALLOCATION = Allocation((Asset(Address(b"\xa0" * 20)),), ((100, 200),))
PROPOSAL = LedgerProposal(
    BaseProposal(ProposalID(b"\x01" * 32), 60, Bytes32(b"\x0a" * 32), None, b"", ALLOCATION, ALLOCATION.balances),
    ADDRESSES[0],
    ADDRESSES,
)
SHARES = (Bytes32(b"\x0a" * 32), Bytes32(b"\x0b" * 32))
REQUEST = 7


class Side:
    """One side of an opening; effects are performed in order, a signature is made only when the test says so."""

    def __init__(self, index: int, disk: Disk | None = None, *, sequence: int = 1) -> None:
        terms = OpeningTerms(
            profile=PROFILE,
            apps=NO_APPS,
            own_wire=ADDRESSES[index],
            own_participant=ADDRESSES[index],
            peer_alias=("bob", "alice")[index],
            peer_wire=ADDRESSES[1 - index],
            chain_id=1337,
            adjudicator=Address(b"\xad" * 20),
            sequence=sequence,
            response_timeout=15.0,
            timeout_text="10s",
        )
        self.index = index
        self.machine = Opening(terms, PROPOSAL, SHARES[index], own_index=index)
        self.disk = disk or Disk()
        self.performed: list[Effect] = []
        self.outbox: list[Message] = []
        self.timers: set[Timer] = set()
        self.answers: dict[int, ApiError] = {}
        self.to_sign: RequestSignature | None = None

    def begin(self) -> Side:
        if self.index == 0:
            self.perform(self.machine.start(REQUEST))
        else:
            self.perform(self.machine.accept(REQUEST, ADDRESSES[1]))
        return self

    def handle(self, event: OpeningEvent) -> None:
        self.perform(self.machine.handle(event))

    def perform(self, effects: Effects) -> None:
        codec = RecordCodec(PROFILE, NO_APPS)
        for effect in effects:
            self.performed.append(effect)
            match effect:
                case Persist(record):
                    self.disk.commit(
                        codec.operations(record, signing=effect.signing, claim=effect.claim, archive=effect.archive)
                    )
                case RequestSignature():
                    self.to_sign = effect
                case Send(message):
                    self.outbox.append(message)
                case SetTimer(timer, _):
                    self.timers.add(timer)
                case CancelTimer(timer):
                    self.timers.discard(timer)
                case Fail(request, error):
                    assert request not in self.answers, "answered twice"
                    self.answers[request] = error
                case Connect():
                    pass
                case other:
                    raise AssertionError(f"an opening has no business with {other}")

    @property
    def own_sig(self) -> Sig:
        assert self.to_sign is not None
        return sign_with(KEYS[self.index], PROFILE.state_hash(self.to_sign.state))

    def sign(self) -> None:
        """The key manager answers."""
        self.handle(Signed(self.own_sig))

    def peer_acceptance(self) -> UpdateAcc:
        """The peer's true signature on version 0."""
        assert self.machine.record is not None and self.machine.record.current.state is not None
        digest = PROFILE.state_hash(self.machine.record.current.state)
        return UpdateAcc(self.machine.record.channel_id, 0, sign_with(KEYS[1 - self.index], digest))


ACCEPTANCE = LedgerProposalAcc(BaseProposalAcc(PROPOSAL.base.proposal_id, SHARES[1]), ADDRESSES[1])
FORGED = Sig(bytes(64) + b"\x1b")


# ---- a side in each stage --------------------------------------------------------------------------------------------


def connecting() -> Side:
    return Side(0).begin()


def proposed() -> Side:
    side = connecting()
    side.handle(PeerReached())
    return side


def signing() -> Side:
    side = proposed()
    side.handle(PeerAcceptedProposal(ACCEPTANCE))
    return side


def signing_with_early_signature() -> Side:
    side = signing()
    side.handle(PeerAccepted(side.peer_acceptance()))
    return side


def signed() -> Side:
    side = signing()
    side.sign()
    return side


def responder_signing() -> Side:
    return Side(1).begin()


def rejection(side: Side) -> PeerRejected:
    assert side.machine.record is not None
    return PeerRejected(UpdateRej(side.machine.record.channel_id, 0, "no"))


Rows = dict[tuple[Stage, type[OpeningEvent], Stage], tuple[Callable[[], Side], Callable[[Side], OpeningEvent]]]

ROWS: Rows = {
    (Stage.CONNECTING, PeerReached, Stage.PROPOSED): (connecting, lambda side: PeerReached()),
    (Stage.CONNECTING, PeerAway, Stage.FAILED): (connecting, lambda side: PeerAway("no route")),
    (Stage.PROPOSED, PeerAcceptedProposal, Stage.SIGNING): (proposed, lambda side: PeerAcceptedProposal(ACCEPTANCE)),
    (Stage.PROPOSED, PeerRejectedProposal, Stage.FAILED): (
        proposed,
        lambda side: PeerRejectedProposal(ProposalRej(PROPOSAL.base.proposal_id, "rejected by user")),
    ),
    (Stage.PROPOSED, PeerAway, Stage.FAILED): (proposed, lambda side: PeerAway("connection lost")),
    (Stage.PROPOSED, TimerFired, Stage.FAILED): (proposed, lambda side: TimerFired(Timer.RESPONSE)),
    (Stage.SIGNING, Signed, Stage.SIGNED): (signing, lambda side: Signed(side.own_sig)),
    (Stage.SIGNING, Signed, Stage.DONE): (signing_with_early_signature, lambda side: Signed(side.own_sig)),
    (Stage.SIGNING, PeerAccepted, Stage.SIGNING): (signing, lambda side: PeerAccepted(side.peer_acceptance())),
    (Stage.SIGNING, PeerRejected, Stage.SIGNING): (signing, rejection),
    (Stage.SIGNED, PeerAccepted, Stage.DONE): (signed, lambda side: PeerAccepted(side.peer_acceptance())),
    (Stage.SIGNED, PeerAccepted, Stage.SIGNED): (
        signed,
        lambda side: PeerAccepted(UpdateAcc(side.peer_acceptance().channel_id, 0, FORGED)),
    ),
    (Stage.SIGNED, PeerRejected, Stage.FAILED): (signed, rejection),
    (Stage.SIGNED, PeerAway, Stage.FAILED): (signed, lambda side: PeerAway("connection lost")),
    (Stage.SIGNED, TimerFired, Stage.FAILED): (signed, lambda side: TimerFired(Timer.RESPONSE)),
}
UNREACHABLE = {(Stage.PROPOSED, PeerAcceptedProposal, Stage.PROPOSED)}
"""Staying is what a refused acceptance does: it raises, and the stage is the same (a test of its own)."""


def test_there_is_a_story_for_every_row_of_the_table() -> None:
    table = {(stage, event, target) for stage, row in NEXT.items() for event, to in row.items() for target in to}
    assert set(ROWS) | UNREACHABLE == table


@pytest.mark.parametrize("row", list(ROWS), ids=lambda row: f"{row[0]}-{row[1].__name__}-{row[2]}")
def test_every_row_leads_where_the_table_says_and_whoever_waits_is_answered_once(
    row: tuple[Stage, type[OpeningEvent], Stage],
) -> None:
    stage, _, target = row
    start, event = ROWS[row]
    side = start()
    assert side.machine.stage is stage
    side.handle(event(side))
    assert side.machine.stage is target
    assert (REQUEST in side.answers) is (target is Stage.FAILED)
    if target in (Stage.FAILED, Stage.DONE):
        assert not side.timers, "a timer outlives the opening"
    if target is Stage.FAILED and side.machine.record is not None:
        assert not side.disk.tables[Table.CHANNELS] and side.disk.tables[Table.ARCHIVE]
        assert side.disk.tables[Table.USED], "the ID of a failed channel must stay used"


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize(
    "event",
    [
        PeerReached(),
        PeerAway("gone"),
        PeerAcceptedProposal(ACCEPTANCE),
        PeerRejectedProposal(ProposalRej(PROPOSAL.base.proposal_id, "no")),
        PeerAccepted(UpdateAcc(ChannelID(bytes(32)), 0, FORGED)),
        PeerRejected(UpdateRej(ChannelID(bytes(32)), 0, "no")),
        Signed(FORGED),
        TimerFired(Timer.RESPONSE),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_without_a_row_changes_nothing(stage: Stage, event: OpeningEvent) -> None:
    starts: dict[Stage, Callable[[], Side]] = {
        Stage.CONNECTING: connecting,
        Stage.PROPOSED: proposed,
        Stage.SIGNING: signing,
        Stage.SIGNED: signed,
        Stage.DONE: done,
        Stage.FAILED: failed,
    }
    side = starts[stage]()
    if type(event) in NEXT[stage]:
        return
    before = (side.machine.stage, side.machine.record, list(side.performed))
    if NEXT[stage]:
        with pytest.raises(RuleViolated):
            side.handle(event)
    else:
        side.handle(event)  # O-22: whatever arrives after the end is ignored
    assert (side.machine.stage, side.machine.record, side.performed) == before


def done() -> Side:
    side = signed()
    side.handle(PeerAccepted(side.peer_acceptance()))
    return side


def failed() -> Side:
    side = proposed()
    side.handle(TimerFired(Timer.RESPONSE))
    return side


# ---- what both sides hold --------------------------------------------------------------------------------------------


def test_both_sides_end_with_the_same_fully_signed_version_0_and_nothing_is_deposited() -> None:
    alice = proposed()
    assert alice.outbox == [PROPOSAL]
    bob = responder_signing()
    bob.sign()
    acceptance, first = bob.outbox
    assert isinstance(acceptance, LedgerProposalAcc) and isinstance(first, UpdateAcc)
    alice.handle(PeerAcceptedProposal(acceptance))
    alice.sign()
    (_, second) = alice.outbox
    assert isinstance(second, UpdateAcc)
    alice.handle(PeerAccepted(first))
    bob.handle(PeerAccepted(second))
    for side in (alice, bob):
        record = side.machine.record
        assert side.machine.stage is Stage.DONE and record is not None
        assert record.phase is Phase.FUNDING and not record.deposited
        assert record.current.fully_signed and record.current.state is not None
        assert record.current.state.balances == ALLOCATION.balances
        assert record.params.parts == ADDRESSES
    assert alice.machine.record is not None and bob.machine.record is not None
    assert alice.machine.record.current == bob.machine.record.current
    assert alice.machine.channel_id == bob.machine.channel_id


@pytest.mark.parametrize("start", [signing, responder_signing])
def test_the_channel_id_is_claimed_and_version_0_marked_before_it_is_signed(start: Callable[[], Side]) -> None:
    side = start()
    kinds = [type(effect) for effect in side.performed]
    assert kinds.index(Persist) < kinds.index(RequestSignature)
    (mark,) = [effect for effect in side.performed if isinstance(effect, Persist)]
    assert mark.claim and mark.signing is not None and mark.signing.version == 0
    assert not any(isinstance(message, UpdateAcc) for message in side.outbox)


def test_the_fully_signed_version_is_durable_before_anybody_hears_of_it() -> None:
    side = done()
    assert isinstance(side.performed[-1], Persist)
    (stored,) = side.disk.tables[Table.CHANNELS].values()
    record = RecordCodec(PROFILE, NO_APPS).decode(next(iter(side.disk.tables[Table.CHANNELS])), stored)
    assert record.current.fully_signed


# ---- what may go wrong -----------------------------------------------------------------------------------------------


def test_a_rejection_carries_the_peer_s_words() -> None:
    side = proposed()
    side.handle(PeerRejectedProposal(ProposalRej(PROPOSAL.base.proposal_id, "rejected by user")))
    error = side.answers[REQUEST]
    assert isinstance(error, PeerRejectedError)
    assert error.info == {"peerAlias": "bob", "reason": "rejected by user"}
    assert side.to_sign is None and not side.disk.batches


@pytest.mark.parametrize("event", [PeerAway("no route"), TimerFired(Timer.RESPONSE)])
def test_silence_and_absence_are_a_time_out_and_a_late_acceptance_is_ignored(event: OpeningEvent) -> None:
    side = proposed()
    side.handle(event)
    error = side.answers[REQUEST]
    assert isinstance(error, PeerRequestTimedOut) and error.info["peerAlias"] == "bob"
    side.handle(PeerAcceptedProposal(ACCEPTANCE))
    assert side.machine.stage is Stage.FAILED and side.to_sign is None


@pytest.mark.parametrize(
    "acceptance",
    [
        LedgerProposalAcc(BaseProposalAcc(ProposalID(b"\x02" * 32), SHARES[1]), ADDRESSES[1]),
        LedgerProposalAcc(BaseProposalAcc(PROPOSAL.base.proposal_id, SHARES[1]), ADDRESSES[0]),
        LedgerProposalAcc(BaseProposalAcc(PROPOSAL.base.proposal_id, SHARES[1]), Address(bytes(20))),
    ],
    ids=["another proposal", "our own participant", "zero participant"],
)
def test_o13_o15_an_acceptance_that_does_not_fit_signs_nothing(acceptance: LedgerProposalAcc) -> None:
    side = proposed()
    with pytest.raises(RuleViolated):
        side.handle(PeerAcceptedProposal(acceptance))
    assert side.machine.stage is Stage.PROPOSED and side.machine.record is None and side.to_sign is None


def test_o18_a_forged_signature_on_version_0_is_waited_past() -> None:
    side = signed()
    true = side.peer_acceptance()
    own = UpdateAcc(true.channel_id, 0, side.own_sig)
    later = UpdateAcc(true.channel_id, 1, true.sig)
    for wrong in (UpdateAcc(true.channel_id, 0, FORGED), own, later):
        side.handle(PeerAccepted(wrong))
        assert side.machine.stage is Stage.SIGNED and Timer.RESPONSE in side.timers
    side.handle(PeerAccepted(true))
    assert side.machine.stage is Stage.DONE


def test_an_early_forged_signature_does_not_count_when_ours_is_ready() -> None:
    side = signing()
    side.handle(PeerAccepted(UpdateAcc(side.peer_acceptance().channel_id, 0, FORGED)))
    side.sign()
    assert side.machine.stage is Stage.SIGNED
    side.handle(PeerAccepted(side.peer_acceptance()))
    assert side.machine.stage is Stage.DONE


def test_o16_a_channel_id_that_was_used_before_is_refused_by_the_store_before_anything_is_signed() -> None:
    """The same two shares lead to the same ID; the claim in the batch makes the second opening fail."""
    disk = Disk()
    first = Side(1, disk).begin()
    first.sign()
    first.handle(TimerFired(Timer.RESPONSE))
    second = Side(1, disk, sequence=2)
    with pytest.raises(StoreConflict):
        second.begin()
    assert second.to_sign is None and not second.outbox


def test_an_own_failure_ends_the_opening_once() -> None:
    side = signing()
    side.perform(side.machine.abort("the disk is full"))
    assert isinstance(side.answers[REQUEST], UnknownInternal)
    side.perform(side.machine.abort("again"))
    assert side.machine.stage is Stage.FAILED


def test_a_failed_opening_leaves_a_record_nobody_resumes() -> None:
    side = signed()
    side.handle(TimerFired(Timer.RESPONSE))
    assert side.machine.record is not None and side.machine.record.phase is Phase.WITHDRAWN
    assert isinstance(side.machine.record.current, Transaction)

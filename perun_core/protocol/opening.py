"""Opening a ledger channel, from the proposal to version 0 fully signed and durable (PROTOCOL.md 7.2).

A machine per proposal. It ends in `Stage.DONE` with a channel record in phase funding, or in `Stage.FAILED`.
Nothing is deposited here; a failed opening costs nobody anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..apps.registry import AppRegistry
from ..channel import Params, Phase, State, Transaction
from ..channel.rules import check_initial_state, check_params
from ..errors import ApiError, PeerRequestTimedOut, RuleViolated, UnknownInternal
from ..errors import PeerRejected as PeerRejectedError
from ..profile import Profile
from ..values import Address, Bytes32, ChannelID, Sig
from ..wire.messages import BaseProposalAcc, LedgerProposal, LedgerProposalAcc, UpdateAcc
from .effects import CancelTimer, Connect, Effects, Fail, Persist, RequestSignature, Send, SetTimer, Timer
from .events import (
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
from .proposal_rules import check_acceptance
from .records import ChannelRecord, Signing


class Stage(StrEnum):
    """How far an opening got."""

    CONNECTING = "connecting"
    """Proposer: reaching the peer."""
    PROPOSED = "proposed"
    """Proposer: waiting for the peer's decision."""
    SIGNING = "signing"
    """Version 0 is marked in the signing guard, our signature is being made."""
    SIGNED = "signed"
    """Our signature is out; the peer's is awaited."""
    DONE = "done"
    """Version 0 is fully signed and durable."""
    FAILED = "failed"
    """Given up; whatever arrives later is ignored (O-22)."""


NEXT: Final[Mapping[Stage, Mapping[type[OpeningEvent], frozenset[Stage]]]] = {
    Stage.CONNECTING: {
        PeerReached: frozenset({Stage.PROPOSED}),
        PeerAway: frozenset({Stage.FAILED}),
    },
    Stage.PROPOSED: {
        PeerAcceptedProposal: frozenset({Stage.SIGNING, Stage.PROPOSED}),
        PeerRejectedProposal: frozenset({Stage.FAILED}),
        PeerAway: frozenset({Stage.FAILED}),
        TimerFired: frozenset({Stage.FAILED}),
    },
    Stage.SIGNING: {
        Signed: frozenset({Stage.SIGNED, Stage.DONE}),
        PeerAccepted: frozenset({Stage.SIGNING}),
        PeerRejected: frozenset({Stage.SIGNING}),
    },
    Stage.SIGNED: {
        PeerAccepted: frozenset({Stage.DONE, Stage.SIGNED}),
        PeerRejected: frozenset({Stage.FAILED}),
        PeerAway: frozenset({Stage.FAILED}),
        TimerFired: frozenset({Stage.FAILED}),
    },
    Stage.DONE: {},
    Stage.FAILED: {},
}
"""The whole life of an opening; in its two final stages every event is ignored."""


class OpeningTerms(Struct, frozen=True):
    """What an opening is told about its surroundings. Times are seconds."""

    profile: Profile
    apps: AppRegistry
    own_wire: Address
    own_participant: Address
    peer_alias: str
    peer_wire: Address
    chain_id: int
    adjudicator: Address
    sequence: int
    response_timeout: float
    """How long the peer may take with each answer."""
    timeout_text: str
    """The user's response timeout as the API shows it."""


class Opening:
    """One opening, on either side. `record` is the channel as far as it is known."""

    def __init__(self, terms: OpeningTerms, proposal: LedgerProposal, own_share: Bytes32, *, own_index: int) -> None:
        self._terms = terms
        self.proposal = proposal
        self._own_share = own_share
        self._own_index = own_index
        self.stage = Stage.CONNECTING if own_index == 0 else Stage.PROPOSED
        self.record: ChannelRecord | None = None
        self._early: PeerAccepted | None = None
        self._request = 0

    @property
    def channel_id(self) -> ChannelID | None:
        """Known once both nonce shares are."""
        return None if self.record is None else self.record.channel_id

    @property
    def peer_alias(self) -> str:
        """How our user calls the peer."""
        return self._terms.peer_alias

    def start(self, request: int) -> Effects:
        """Begin as proposer; `request` is answered when the opening fails. Nothing is signed yet."""
        self._request = request
        return (Connect(),)

    def accept(self, request: int, own_participant: Address) -> Effects:
        """Our user accepted the peer's proposal: fix the channel, mark and sign version 0, answer.

        Raises: RuleViolated when the proposal can no longer be accepted; nothing was changed.
        """
        self._request = request
        effects = self._fix_channel(own_participant)
        self.stage = Stage.SIGNING
        return effects

    def handle(self, event: OpeningEvent) -> Effects:
        """Effects of `event`. Raises: RuleViolated when something of the peer is wrong; the stage stays."""
        allowed = NEXT[self.stage]
        if not allowed:
            return ()
        targets = allowed.get(type(event))
        if targets is None:
            raise RuleViolated("7.2", f"unexpected {type(event).__name__} while {self.stage}")
        effects = self._dispatch(event)
        if self.stage not in targets:
            raise AssertionError(f"{type(event).__name__} led to {self.stage}, which the table does not allow")
        return effects

    def _dispatch(self, event: OpeningEvent) -> Effects:
        match event:
            case PeerReached():
                return self._on_peer_reached()
            case PeerAcceptedProposal(acc):
                return self._on_peer_accepted_proposal(acc)
            case PeerRejectedProposal(rej):
                return self._fail(PeerRejectedError(self._terms.peer_alias, rej.reason))
            case PeerAccepted():
                return self._on_peer_accepted(event)
            case PeerRejected(rej):
                return self._on_peer_rejected(rej.reason)
            case Signed(sig):
                return self._on_signed(sig)
            case PeerAway(problem):
                return self._fail(self._timed_out(problem))
            case TimerFired():
                return self._fail(self._timed_out())

    def _on_peer_reached(self) -> Effects:
        self.stage = Stage.PROPOSED
        return Send(self.proposal), SetTimer(Timer.RESPONSE, self._terms.response_timeout)

    def _on_peer_accepted_proposal(self, acc: LedgerProposalAcc) -> Effects:
        check_acceptance(self.proposal, acc)
        effects = self._fix_channel(acc.participant, acc.base.nonce_share)
        self.stage = Stage.SIGNING
        return CancelTimer(Timer.RESPONSE), *effects

    def _fix_channel(self, responder: Address, peer_share: Bytes32 | None = None) -> Effects:
        terms, base = self._terms, self.proposal.base
        shares = (self._own_share, peer_share) if peer_share is not None else (base.nonce_share, self._own_share)
        params = Params(
            challenge_duration=base.challenge_duration,
            parts=(self.proposal.participant, responder),
            app=base.app,
            nonce=terms.profile.nonce(*shares),
            ledger_channel=True,
            virtual_channel=False,
        )
        check_params(params)
        if params.parts[self._own_index] != terms.own_participant:
            raise RuleViolated("5.2", "own participant address is not at the own index")
        channel_id = terms.profile.channel_id(params)
        state = State(channel_id, 0, base.init_bals, False, base.app, base.init_data)
        check_initial_state(params, channel_id, state, app=terms.apps.get(base.app) if base.app else None)
        self.record = ChannelRecord(
            channel_id=channel_id,
            sequence=terms.sequence,
            params=params,
            own_index=self._own_index,
            peer=terms.peer_wire,
            chain_id=terms.chain_id,
            adjudicator=terms.adjudicator,
            phase=Phase.OPENING,
            current=Transaction(state, (None, None)),
        )
        digest = terms.profile.state_hash(state)
        return Persist(self.record, signing=Signing(0, digest), claim=True), RequestSignature(state, digest)

    def _on_signed(self, sig: Sig) -> Effects:
        assert self.record is not None
        sigs = (sig, None) if self._own_index == 0 else (None, sig)
        self.record = replace(self.record, current=Transaction(self.record.current.state, sigs))
        self.stage = Stage.SIGNED
        answer: Effects = (
            Send(UpdateAcc(self.record.channel_id, 0, sig)),
            SetTimer(Timer.RESPONSE, self._terms.response_timeout),
        )
        if self._own_index == 1:
            acc = LedgerProposalAcc(
                BaseProposalAcc(self.proposal.base.proposal_id, self._own_share), self._terms.own_participant
            )
            answer = (Send(acc), *answer)
        if self._early is not None:
            early, self._early = self._early, None
            answer = (*answer, *self._on_peer_accepted(early))
        return answer

    def _on_peer_accepted(self, event: PeerAccepted) -> Effects:
        """The peer's signature on version 0, which may be faster than our own (PROTOCOL.md 7.2)."""
        if self.stage is Stage.SIGNING:
            self._early = event
            return ()
        assert self.record is not None
        tx = self.record.current
        assert tx.state is not None
        peer_index = 1 - self._own_index
        try:
            if event.acc.version != 0:
                raise RuleViolated("7.2", f"a signature on version {event.acc.version} while opening")
            self._terms.profile.verify(
                self._terms.profile.state_hash(tx.state), event.acc.sig, self.record.params.parts[peer_index]
            )
        except RuleViolated:
            return ()  # O-18: not the peer's signature; the real one may still come
        sigs = list(tx.sigs)
        sigs[peer_index] = event.acc.sig
        self.record = replace(self.record, phase=Phase.FUNDING, current=Transaction(tx.state, tuple(sigs)))
        self.stage = Stage.DONE
        return CancelTimer(Timer.RESPONSE), Persist(self.record)

    def _on_peer_rejected(self, reason: str) -> Effects:
        if self.stage is Stage.SIGNING:
            return ()
        return self._fail(PeerRejectedError(self._terms.peer_alias, reason))

    def _timed_out(self, problem: str = "") -> ApiError:
        return PeerRequestTimedOut(self._terms.peer_alias, self._terms.timeout_text, problem)

    def abort(self, problem: str) -> Effects:
        """Our own side cannot go on (a failed effect); ends the opening unless it ended already."""
        if not NEXT[self.stage]:
            return ()
        return self._fail(UnknownInternal(problem))

    def _fail(self, error: ApiError) -> Effects:
        """A signed version 0 of a channel nobody funds is harmless; its record is archived, its ID stays used."""
        self.stage = Stage.FAILED
        closing: Effects = CancelTimer(Timer.RESPONSE), Fail(self._request, error)
        if self.record is not None:
            self.record = replace(self.record, phase=Phase.WITHDRAWN)
            return Persist(self.record, archive=True), *closing
        return closing

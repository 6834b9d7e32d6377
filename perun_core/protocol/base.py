"""What the rooms of the channel machine share: the record, the terms, and the requests that wait for an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..channel import Balances, Dispute, Phase, State, Transaction
from ..errors import ApiError, FailedPrecondition, PeerRequestTimedOut
from ..ports.app import App
from ..profile import Profile
from ..values import Bytes32, Sig
from ..wire.messages import Update
from .effects import Effects, Fail, Persist, Reply, RequestSignature
from .events import UserClosed, UserPaid
from .records import ChannelRecord, Signing

CLOSED_CHANNEL: Final = "action not allowed on a closed channel"
KNOWN_HASHES: Final = 4
"""Newest states whose hashes are kept: an update is looked at several times until it is signed by both."""


class ChannelTerms(Struct, frozen=True):
    """What a channel machine is told about its surroundings. Times are seconds."""

    profile: Profile
    app: App | None
    peer_alias: str
    answer_timeout: float
    """How long the peer may take to answer an update: R + P."""
    decision_timeout: float
    """How long our user may take: R."""
    timeout_text: str
    """R as the API shows it."""
    heal_delay: float = 1.0
    """First pause before asking again about an update of unknown outcome; doubles up to `heal_limit`."""
    heal_limit: float = 60.0
    sync_delay: float = 15.0
    """How long a peer is left alone before it is asked for its newest state: its own time-outs are over (7.4.1)."""
    settle_delay: float = 1.0
    """First pause before a failed settlement step is repeated; doubles up to `settle_limit`."""
    settle_limit: float = 60.0


class ChannelBase:
    """State of one channel. `record` is what is (or is about to be) durable; everything else may be lost."""

    def __init__(self, terms: ChannelTerms, record: ChannelRecord, *, opening_request: int | None = None) -> None:
        self.terms = terms
        self.record = record
        self._opening_request = opening_request
        self._own_request: int | None = None
        self._intent: UserPaid | UserClosed | None = None
        self._queue: deque[UserPaid | UserClosed] = deque()
        self._closers: list[int] = []
        self._question: Update | None = None
        self._decision_request: int | None = None
        self._expired: Bytes32 | None = None
        self._early_update: Update | None = None
        self._own_sig: Sig | None = None
        self._heal_pause = terms.heal_delay
        self._settle_pause = terms.settle_delay
        self._told_closed = record.reopened
        self._stored: Dispute | None = None
        self._recovering: str | None = None
        self._reconciled = False
        self._confirmed = True
        self._repeats = 0
        self._sync_asked = False
        self._answered: tuple[Transaction, Transaction] | None = None
        self._sync_pause = terms.sync_delay
        self._told_outdated: Bytes32 | None = None
        self._adopted: State | None = None
        self._builds_on_adopted = False
        self._progress_request: int | None = None
        self._hashes: deque[tuple[State, Bytes32]] = deque(maxlen=KNOWN_HASHES)

    # ---- reads ----------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the channel is in its life."""
        return self.record.phase

    @property
    def state(self) -> State:
        """Last agreed state."""
        state = self.record.current.state
        assert state is not None
        return state

    @property
    def peer_index(self) -> int:
        """Participant index of the peer."""
        return 1 - self.record.own_index

    @property
    def question(self) -> State | None:
        """The peer's proposal our user has to decide about."""
        return None if self._question is None else self._question.state

    def safe_balances(self) -> tuple[int, ...]:
        """Per asset the least we own in any state the peer may be able to enforce, base units (PROTOCOL.md 7.3.4)."""
        states = [self.state, *self.record.candidate_states]
        if self.record.staged is not None:
            states.append(self.record.staged.state)
        own = self.record.own_index
        return tuple(min(state.balances[i][own] for state in states) for i in range(len(self.state.balances)))

    # ---- writing --------------------------------------------------------------------------------------------------

    def _move(self, phase: Phase) -> None:
        self.record = replace(self.record, phase=phase)

    def _persist(self) -> Persist:
        return Persist(self.record)

    def _sign(self, state: State) -> RequestSignature:
        return RequestSignature(state, self._hash(state))

    def _persist_and_sign(self, state: State) -> tuple[Persist, RequestSignature]:
        """Mark `state` as signed, then sign it."""
        request = self._sign(state)
        return Persist(self.record, signing=Signing(state.version, request.digest)), request

    def _hash(self, state: State) -> Bytes32:
        for known, digest in self._hashes:
            if known == state:
                return digest
        digest = self.terms.profile.state_hash(state)
        self._hashes.appendleft((state, digest))
        return digest

    def _verify_peer(self, state: State, sig: Sig) -> None:
        """U-10. Raises: RuleViolated."""
        self.terms.profile.verify(self._hash(state), sig, self.record.params.parts[self.peer_index])

    def _signed_by_both(self, state: State, own: Sig, peer: Sig) -> Transaction:
        sigs = (own, peer) if self.record.own_index == 0 else (peer, own)
        return Transaction(state, sigs)

    def _known_states(self) -> tuple[State, ...]:
        """Every state of this channel we could be held to."""
        staged = () if self.record.staged is None else (self.record.staged.state,)
        forced = () if self.record.forced is None else (self.record.forced.old, self.record.forced.new)
        return (self.state, *staged, *self.record.candidate_states, *forced)

    # ---- answering ------------------------------------------------------------------------------------------------

    def _timed_out(self, problem: str = "") -> ApiError:
        return PeerRequestTimedOut(self.terms.peer_alias, self.terms.timeout_text, problem)

    def _refuse_closed(self, request: int) -> Effects:
        return (Fail(request, FailedPrecondition(CLOSED_CHANNEL)),)

    def _take_own_request(self) -> int | None:
        request, self._own_request = self._own_request, None
        return request

    def _answer_own(self, error: ApiError | None = None) -> Effects:
        """Answer the request behind our update, once."""
        request = self._take_own_request()
        if request is None:
            return ()
        return (Reply(request),) if error is None else (Fail(request, error),)

    def _answer_decision(self, error: ApiError | None = None) -> Effects:
        request, self._decision_request = self._decision_request, None
        if request is None:
            return ()
        return (Reply(request),) if error is None else (Fail(request, error),)

    def _fail_waiting(self, error: ApiError) -> Effects:
        """Everybody who waits for an off-chain update learns that there will be none."""
        waiting = [event.request for event in self._queue if isinstance(event, UserPaid)]
        self._closers += [event.request for event in self._queue if isinstance(event, UserClosed)]
        self._queue.clear()
        if isinstance(self._intent, UserPaid):
            waiting.append(self._intent.request)
        elif isinstance(self._intent, UserClosed):
            self._closers.append(self._intent.request)
        self._intent = None
        return (
            *self._answer_own(error),
            *self._answer_decision(error),
            *(Fail(request, error) for request in waiting),
        )


def moved(balances: Balances, changes: Sequence[tuple[int, int, int, int]]) -> Balances:
    """`balances` after moving (asset, payer, payee, amount) in order; nothing is checked here."""
    rows = [list(row) for row in balances]
    for asset, payer, payee, amount in changes:
        rows[asset][payer] -= amount
        rows[asset][payee] += amount
    return tuple(tuple(row) for row in rows)

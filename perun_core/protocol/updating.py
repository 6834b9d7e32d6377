"""Off-chain updates: proposing, deciding, answering, and what to do when an answer is missing (PROTOCOL.md 7.3)."""

from __future__ import annotations

from msgspec.structs import replace

from ..channel import Phase, State
from ..channel.phase import WIRE
from ..channel.rules import check_update
from ..errors import (
    ApiError,
    FailedPrecondition,
    InvalidArgument,
    RuleViolated,
    UnknownInternal,
)
from ..errors import (
    PeerRejected as PeerRejectedError,
)
from ..values import Sig
from ..wire.messages import Sync, Update, UpdateAcc, UpdateRej
from .base import ChannelBase, moved
from .effects import (
    AskUser,
    CancelTimer,
    Connect,
    Effects,
    Fail,
    Notify,
    Publish,
    QuestionWithdrawn,
    Reply,
    Send,
    SetTimer,
    Timer,
)
from .events import (
    Payment,
    PeerAccepted,
    PeerAway,
    PeerProposed,
    PeerRejected,
    UserAccepted,
    UserClosed,
    UserPaid,
    UserRejected,
)
from .promises import (
    check_after_recovery,
    check_second_signature,
    names,
    read_refusal,
    refusal_text,
    with_given_up,
    with_refusal,
)
from .records import Staged

CONCURRENT = "concurrent update"
REPEATS = 3
"""How often participant 0 asks again when both proposed at the same time."""
REPEAT_PAUSE = 0.15
"""Seconds before it does; meanwhile its refusal of the other proposal arrives (PROTOCOL.md 7.3.3 rule 2)."""
OUTDATED = "outdated version"
UNANSWERED = "not answered in time"
SETTLING = "channel is being settled"
PENDING = "an update proposed by the peer waits for a response"


class Updating(ChannelBase):
    """The off-chain half of the channel machine."""

    def _dispute(self) -> Effects:
        raise AssertionError("the settling half implements this")

    def _settle_final(self) -> Effects:
        raise AssertionError("the settling half implements this")

    def _compare_soon(self) -> SetTimer:
        raise AssertionError("the comparing half implements this")

    def _ask_sync(self) -> Effects:
        """Show our newest transaction, so that the peer shows its own; its next one is the answer (7.4.1)."""
        self._sync_asked = True
        return (Send(Sync(int(WIRE[self.phase]), self.record.current)),)

    # ---- our user proposes ----------------------------------------------------------------------------------------

    def _on_user_paid(self, event: UserPaid) -> Effects:
        match self.phase:
            case Phase.ACTING:
                try:
                    self._next_state(event)
                except ApiError as error:
                    return (Fail(event.request, error),)
                self._intent = event
                return (Connect(),)
            case Phase.SIGNING | Phase.ACCEPTING:
                self._queue.append(event)
                return ()
            case Phase.UNKNOWN:
                self._queue.append(event)
                return self._ask_again()
            case Phase.DECIDING:
                return (Fail(event.request, UnknownInternal(PENDING)),)
            case _:
                return self._refuse_closed(event.request)

    def _on_user_closed(self, event: UserClosed) -> Effects:
        match self.phase:
            case Phase.ACTING:
                self._intent = event
                return (Connect(),)
            case Phase.DECIDING:
                refusal = self._withdraw_question("channel is closing")
                self._intent = event
                return (*refusal, Connect())
            case Phase.SIGNING | Phase.ACCEPTING:
                self._queue.append(event)
                return ()
            case Phase.UNKNOWN:
                self._closers.append(event.request)
                self.record = replace(self.record, primary=True)
                return self._dispute()
            case _:
                return self._refuse_closed(event.request)

    def _next_state(self, event: UserPaid | UserClosed) -> State:
        """The state our user asks for. Raises: InvalidArgument for an overdraft, UnknownInternal otherwise."""
        if isinstance(event, UserClosed):
            state = self.state.next(is_final=True)
        else:
            state = self.state.next(balances=self._paid(event.payments))
        try:
            check_second_signature(self.record, self._hash(state), answering=False)
            self._check(state, actor=self.record.own_index, sender=self.record.own_index)
        except RuleViolated as error:
            raise UnknownInternal(str(error)) from error
        return state

    def _paid(self, payments: tuple[Payment, ...]) -> tuple[tuple[int, ...], ...]:
        balances = self.state.balances
        for payment in payments:
            if payment.amount > balances[payment.asset][payment.payer]:
                raise InvalidArgument("amount", payment.text, "invalid amount: exceeds the payer's balance")
            change = (payment.asset, payment.payer, 1 - payment.payer, payment.amount)
            balances = moved(balances, (change,))
        return balances

    def _check(self, state: State, *, actor: int, sender: int) -> None:
        """U-3 to U-9 as far as data decides them: T0–T8, dimensions, locks, actor, final without locks."""
        record = self.record
        check_update(
            record.params, record.channel_id, self.terms.app, old=self.state, new=state, actor=actor, sender=sender
        )
        check_after_recovery(record, old=self.state, new=state)

    def _on_peer_reached(self) -> Effects:
        intent, self._intent = self._intent, None
        if intent is None:
            return ()
        try:
            state = self._next_state(intent)
        except ApiError as error:
            if isinstance(intent, UserClosed):
                return self._close_without_peer(intent)
            return (Fail(intent.request, error),)
        if isinstance(intent, UserClosed):
            self._closers.append(intent.request)
            self.record = replace(self.record, primary=True)
        else:
            self._own_request = intent.request
        self._repeats = 0
        self.record = replace(self.record, phase=Phase.SIGNING, staged=Staged(state, ours=True))
        return self._persist_and_sign(state)

    def _close_without_peer(self, intent: UserClosed) -> Effects:
        self._closers.append(intent.request)
        self.record = replace(self.record, primary=True)
        return self._dispute()

    def _on_peer_away(self, event: PeerAway) -> Effects:
        intent, self._intent = self._intent, None
        match intent:
            case UserPaid(request):
                return (Fail(request, self._timed_out(event.problem)),)
            case UserClosed():
                return self._close_without_peer(intent)
        if self.phase is Phase.SIGNING:
            return self._outcome_unknown(event.problem)
        return ()

    # ---- our signature --------------------------------------------------------------------------------------------

    def _on_signed(self, sig: Sig) -> Effects:
        staged = self.record.staged
        assert staged is not None
        self._own_sig = sig
        if self.phase is Phase.ACCEPTING:
            assert staged.peer_sig is not None
            acc = UpdateAcc(self.record.channel_id, staged.state.version, sig)
            return self._enable(staged.state, sig, staged.peer_sig, answer=(Send(acc),))
        again = () if self.phase is Phase.UNKNOWN else (SetTimer(Timer.RESPONSE, self.terms.answer_timeout),)
        return (Send(Update(staged.state, self.record.own_index, sig)), *again)

    def _enable(self, state: State, own: Sig, peer: Sig, *, answer: Effects = ()) -> Effects:
        """`state` is fully signed: durable first, then whatever tells anybody."""
        tx = self._signed_by_both(state, own, peer)
        self.record = replace(
            self.record,
            phase=Phase.FINAL if state.is_final else Phase.ACTING,
            current=tx,
            staged=None,
            candidates=(),
            candidate_states=(),
            refused=(),
            recovered=None,
            given_up=(),
        )
        self._confirmed = True
        self._own_sig = None
        self._expired = None
        self._heal_pause = self.terms.heal_delay
        effects: Effects = (
            CancelTimer(Timer.RESPONSE),
            CancelTimer(Timer.HEAL),
            self._persist(),
            *answer,
            Publish(tx),
            *self._answer_own(),
        )
        if not state.is_final:
            return (*effects, *self._answer_decision())
        if self._decision_request is not None:  # whoever accepts a final update is answered when it is settled
            self._closers.append(self._decision_request)
            self._decision_request = None
        closing = FailedPrecondition(f"action not allowed on a closed channel: {SETTLING}")
        return (*effects, *self._fail_waiting(closing), *self._settle_final())

    def _open_proposal(self) -> Staged | None:
        """Our proposal that the peer has not answered, while off-chain answers still count."""
        staged = self.record.staged
        waiting = self.phase in (Phase.SIGNING, Phase.UNKNOWN)
        return staged if waiting and staged is not None and staged.ours else None

    # ---- the peer answers -----------------------------------------------------------------------------------------

    def _on_peer_accepted(self, event: PeerAccepted) -> Effects:
        acc, staged = event.acc, self._open_proposal()
        if staged is not None and staged.state.version == acc.version and self._own_sig is not None:
            try:
                self._verify_peer(staged.state, acc.sig)
            except RuleViolated:
                return ()  # forged or meant for another attempt; the real answer may still come
            return self._enable(staged.state, self._own_sig, acc.sig)
        return ()

    def _on_peer_rejected(self, event: PeerRejected) -> Effects:
        reason, named = read_refusal(event.rej.reason)
        staged = self._open_proposal()
        is_open = staged is not None and staged.state.version == event.rej.version
        if staged is None or not is_open or (named and not names(named, self._hash(staged.state))):
            known = with_given_up(self.record, named) if event.rej.version == self.state.version + 1 else self.record
            if known is self.record:
                return ()
            self.record = known  # a late refusal of an earlier attempt
            return (self._persist(),)
        crossed = self.record.own_index == 0 and reason == CONCURRENT
        if crossed and self.phase is Phase.SIGNING and self._repeats < REPEATS:
            self._repeats += 1
            return (SetTimer(Timer.HEAL, REPEAT_PAUSE),)
        was_unknown = self.phase is Phase.UNKNOWN
        digest = self._hash(staged.state)
        if digest not in self.record.candidates:
            self.record = replace(
                self.record,
                candidates=(*self.record.candidates, digest),
                candidate_states=(*self.record.candidate_states, staged.state),
            )
        if named or (self.record.candidates == (digest,) and not crossed):
            self.record = with_given_up(self.record, digest.hex())
        self.record = replace(self.record, staged=None, phase=Phase.ACTING)
        self._own_sig = None
        stop: Effects = CancelTimer(Timer.RESPONSE), CancelTimer(Timer.HEAL)
        if staged.state.is_final and self._closers:
            return (*stop, *self._dispute())
        error: ApiError = PeerRejectedError(self.terms.peer_alias, reason)
        if was_unknown and reason == UNANSWERED:
            error = self._timed_out()
        if event.rej.reason == OUTDATED:  # the peer shows what it holds; should that be lost, it is asked
            self._confirmed = False
            stop = (*stop, self._compare_soon())
        return (*stop, self._persist(), *self._answer_own(error))

    # ---- no answer ------------------------------------------------------------------------------------------------

    def _on_response_timeout(self) -> Effects:
        """Nothing signed is ever forgotten: ask once more, then tell the user (PROTOCOL.md 7.3.4)."""
        self._move(Phase.UNKNOWN)
        return (self._persist(), *self._ask_again())

    def _outcome_unknown(self, problem: str) -> Effects:
        self._move(Phase.UNKNOWN)
        failed = self._answer_own(self._timed_out(problem))
        wait = SetTimer(Timer.HEAL, self._heal_pause)
        return (CancelTimer(Timer.RESPONSE), self._persist(), *failed, wait)

    def _ask_again(self) -> Effects:
        staged = self.record.staged
        assert staged is not None
        timer = SetTimer(Timer.HEAL, self._heal_pause)
        if self._own_sig is None:
            return *self._persist_and_sign(staged.state), timer
        return *self._repeat_update(), timer

    def _repeat_update(self) -> Effects:
        staged = self.record.staged
        assert staged is not None and self._own_sig is not None
        return (Send(Update(staged.state, self.record.own_index, self._own_sig)),)

    def _on_heal_timeout(self) -> Effects:
        error = self._timed_out()
        staged = self.record.staged
        assert staged is not None
        waiting = [event for event in self._queue if isinstance(event, UserPaid)]
        closing = [event for event in self._queue if isinstance(event, UserClosed)]
        self._queue.clear()
        failed: Effects = (*self._answer_own(error), *(Fail(event.request, error) for event in waiting))
        self._closers += [event.request for event in closing]
        if closing or (staged.state.is_final and self._closers):
            return (*failed, *self._dispute())
        self._heal_pause = min(2 * self._heal_pause, self.terms.heal_limit)
        if self._heal_pause > self.terms.sync_delay and not self._sync_asked:
            # A peer that took the update and lost its answer may drop the repetition, but it shows what it holds.
            return (*failed, *self._ask_sync(), SetTimer(Timer.HEAL, self._heal_pause))
        self._sync_asked = False
        return (*failed, *self._ask_again())

    # ---- the peer proposes ----------------------------------------------------------------------------------------

    def _on_peer_proposed(self, event: PeerProposed) -> Effects:
        update = event.update
        try:
            self._verify_peer(update.state, update.sig)
        except RuleViolated:
            return ()  # not from the peer; answering would let a stranger disturb it (PROTOCOL.md 7.1)
        version, current = update.state.version, self.state
        if version <= current.version:
            if version and self._hash(update.state) == self._hash(current):
                own = self.record.current.sigs[self.record.own_index]
                assert own is not None
                return (Send(UpdateAcc(self.record.channel_id, version, own)),)
            return (*self._reject(version, OUTDATED), *self._show_newest(update.state))
        if version > current.version + 1 and self.phase is Phase.ACTING:
            # The peer builds on a state that we do not hold fully signed (7.4.3, Y-5). It is not refused: that would be
            # a promise of index 0 for a version that is not the next one yet. It asks again; we compare meanwhile.
            self._confirmed = False
            return (self._compare_soon(),)
        match self.phase:
            case Phase.FUNDING:
                self._early_update = update
                return ()
            case Phase.ACTING:
                return self._consider(update)
            case Phase.DECIDING:
                assert self._question is not None
                if update.state == self._question.state:
                    return ()
                return (*self._withdraw_question("superseded", tell_peer=False), *self._consider(update))
            case Phase.SIGNING | Phase.UNKNOWN:
                return self._on_crossing(update)
            case Phase.ACCEPTING:
                return ()
            case _:
                return self._reject(version, SETTLING)

    def _show_newest(self, outdated: State) -> Effects:
        """A peer that proposes what is long decided misses something; it is shown once per proposal (7.3.4)."""
        digest = self._hash(outdated)
        if digest == self._told_outdated or self.phase not in (Phase.ACTING, Phase.DECIDING, Phase.UNKNOWN):
            return ()
        self._told_outdated = digest
        return self._ask_sync()

    def _on_crossing(self, update: Update) -> Effects:
        """The peer proposes while our own proposal for that version is open (PROTOCOL.md 7.3.3)."""
        staged = self.record.staged
        assert staged is not None
        digest = self._hash(update.state)
        if self._own_sig is not None and digest == self._hash(staged.state):
            # Both ask for the same state: the peer's signature completes ours, whoever is said to have acted.
            if self.record.own_index != 0:
                return ()
            acc = UpdateAcc(self.record.channel_id, update.state.version, self._own_sig)
            return self._enable(staged.state, self._own_sig, update.sig, answer=(Send(acc),))
        if update.state.version != staged.state.version:
            return ()
        if self.record.own_index == 0:
            return self._refuse(update.state, CONCURRENT)
        return self._reject(update.state.version, CONCURRENT)  # no promise: it will be asked for again (rule 2)

    def _consider(self, update: Update) -> Effects:
        state = update.state
        try:
            self._check(state, actor=update.actor, sender=self.peer_index)
            digest = self._hash(state)
            check_second_signature(self.record, digest, answering=True)
        except RuleViolated as error:
            return self._refuse(state, str(error))
        if digest == self._expired:
            return self._refuse(state, UNANSWERED)
        self._confirmed = True
        self._question = update
        self._move(Phase.DECIDING)
        pause = self.terms.decision_timeout
        return Notify(AskUser(state, pause)), SetTimer(Timer.EXPIRY, pause)

    def _refuse(self, state: State, reason: str) -> Effects:
        """Refuse a proposal for the next version; what will not be signed any more is written down first."""
        digest = self._hash(state)
        record = with_refusal(self.record, digest)
        told = self._reject(state.version, refusal_text(record, digest, reason))
        if record is self.record:
            return told
        self.record = record
        return (self._persist(), *told)

    def _reject(self, version: int, reason: str) -> Effects:
        return (Send(UpdateRej(self.record.channel_id, version, reason)),)

    # ---- our user decides -----------------------------------------------------------------------------------------

    def _on_user_accepted(self, event: UserAccepted) -> Effects:
        update = self._question
        if update is None or update.state.version != event.version:
            return (Fail(event.request, UnknownInternal("the update is not pending any more")),)
        self._question = None
        self._decision_request = event.request
        self.record = replace(
            self.record, phase=Phase.ACCEPTING, staged=Staged(update.state, ours=False, peer_sig=update.sig)
        )
        return (CancelTimer(Timer.EXPIRY), *self._persist_and_sign(update.state))

    def _on_user_rejected(self, event: UserRejected) -> Effects:
        if self._question is None or self._question.state.version != event.version:
            return (Fail(event.request, UnknownInternal("the update is not pending any more")),)
        state = self._question.state
        self._question = None
        self._move(Phase.ACTING)
        return CancelTimer(Timer.EXPIRY), *self._refuse(state, event.reason), Reply(event.request)

    def _on_expiry(self) -> Effects:
        """Our user did not answer; the peer is told only if it asks again (API.md 2.2.1)."""
        if self._question is None:
            return ()
        self._expired = self._hash(self._question.state)
        version = self._question.state.version
        self._question = None
        self._move(Phase.ACTING)
        return (Notify(QuestionWithdrawn(version)),)

    def _withdraw_question(self, reason: str, *, tell_peer: bool = True) -> Effects:
        assert self._question is not None
        state = self._question.state
        self._question = None
        self._move(Phase.ACTING)
        told = self._refuse(state, reason) if tell_peer else ()
        return CancelTimer(Timer.EXPIRY), *told, Notify(QuestionWithdrawn(state.version))

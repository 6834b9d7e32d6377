"""From the last off-chain state to money on the account: funding, concluding, disputing, withdrawing (7.2.3, 7.6, 7.8).

Each step is submitted beside the machine and comes back as an event. A failed step is told to whoever waits and
repeated with growing pauses until it works; no user is needed for that. What a reorg takes back is brought about again,
also after the channel was archived.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ..channel import Dispute, DisputePhase, Phase, State
from ..channel.rules import check_update
from ..errors import ApiError, FailedPrecondition, PeerNotFunded, RuleViolated, UnknownInternal
from ..values import Sig
from .effects import (
    AwaitConcludable,
    CancelTimer,
    ChannelClosed,
    ConcludeFinal,
    ConcludeState,
    Effects,
    Fail,
    FindRegistered,
    FundChannel,
    Notify,
    Persist,
    ProgressState,
    Publish,
    RegisterState,
    Reply,
    SetTimer,
    SubmitTx,
    Timer,
    WithdrawHoldings,
)
from .events import (
    ChainConcluded,
    ChainFailed,
    ChainFound,
    ChainMatured,
    ChainRegistered,
    ChainStands,
    ChainUndone,
    PeerProposed,
    UserProgressed,
)
from .promises import check_second_signature
from .records import ChannelRecord, Forced
from .updating import SETTLING, Updating

PROGRESS_MARGIN: Final = 10
"""The part of the challenge duration that has to be left for a progression to be mined: one in so many (G-2)."""


class Settling(Updating):
    """The on-chain half of the channel machine."""

    # ---- funding --------------------------------------------------------------------------------------------------

    def start_funding(self) -> Effects:
        """Version 0 is fully signed and durable: deposit. The mark that we may have deposited comes first (O-19)."""
        self.record = replace(self.record, deposited=any(row[self.record.own_index] for row in self.state.balances))
        fund = FundChannel(self.record.params, self.state)
        return self._persist(), Publish(self.record.current), SubmitTx(fund)

    def _on_chain_funded(self) -> Effects:
        self._move(Phase.ACTING)
        request, self._opening_request = self._opening_request, None
        effects: Effects = (self._persist(),) if request is None else (self._persist(), Reply(request))
        early, self._early_update = self._early_update, None
        if early is not None:
            effects = (*effects, *self._on_peer_proposed(PeerProposed(early)))
        return effects

    def _on_funding_failed(self, event: ChainFailed) -> Effects:
        request, self._opening_request = self._opening_request, None
        failed: Effects = () if request is None else (Fail(request, event.error),)
        if event.deposited:
            return (*self._dispute(), *failed)
        self._move(Phase.WITHDRAWN)
        return (Persist(self.record, archive=True), *failed)

    # ---- closing --------------------------------------------------------------------------------------------------

    def _settle_final(self) -> Effects:
        record = self.record
        return (SubmitTx(ConcludeFinal(record.params, record.current, secondary=not record.primary)),)

    def _dispute(self) -> Effects:
        self._move(Phase.REGISTERING)
        error = FailedPrecondition(f"action not allowed on a closed channel: {SETTLING}")
        return (
            CancelTimer(Timer.RESPONSE),
            CancelTimer(Timer.HEAL),
            self._persist(),
            *self._fail_waiting(error),
            SubmitTx(RegisterState(self.record.params, self.record.current)),
        )

    def _leave_off_chain(self) -> Effects:
        """Somebody took the channel to the chain: nothing off-chain goes on."""
        error = UnknownInternal("the channel was registered on chain")
        effects: Effects = CancelTimer(Timer.RESPONSE), CancelTimer(Timer.HEAL), CancelTimer(Timer.EXPIRY)
        opening, self._opening_request = self._opening_request, None
        if opening is not None:  # the peer gave the channel up before it was funded
            effects = (*effects, Fail(opening, PeerNotFunded(self.terms.peer_alias)))
        if self._question is not None:
            effects = (*effects, *self._withdraw_question(SETTLING))
        return (*effects, *self._fail_waiting(error))

    # ---- the chain reports ----------------------------------------------------------------------------------------

    def _on_chain_registered(self, event: ChainRegistered) -> Effects:
        dispute = event.dispute
        if self.phase in (Phase.WITHDRAWING, Phase.WITHDRAWN):
            return ()
        if dispute.concluded:
            return self._on_chain_concluded(ChainConcluded(dispute.version))
        if self.phase in (Phase.FINAL, Phase.CONCLUDING):
            return ()  # a final state overrides every dispute; a conclude under way is answered by its own result
        if self.phase is Phase.PROGRESSING and dispute.version < self._progression.new.version:
            return ()  # what our progression starts from
        answered = self._answer_progression(dispute)
        effects = self._leave_off_chain()
        return (*effects, *self._pursue(dispute), *answered)

    def _pursue(self, dispute: Dispute) -> Effects:
        """Refute an outdated state; wait for the end of every other dispute, and of one that cannot be refuted."""
        self._stored = dispute
        if dispute.phase is DisputePhase.DISPUTE and dispute.version < self.state.version:
            return self._register()
        return self._await_end(dispute)

    def _register(self) -> Effects:
        self._move(Phase.REGISTERING)
        return CancelTimer(Timer.SETTLE), self._persist(), SubmitTx(self._registration())

    def _registration(self) -> RegisterState:
        stored = self._stored
        deadline = stored.timeout if stored is not None and stored.registered else None
        return RegisterState(self.record.params, self.record.current, deadline)

    def _await_end(self, dispute: Dispute) -> Effects:
        """Wait until `dispute` can be concluded. What somebody else progressed to is looked for at once: its rules."""
        self._stored = dispute
        self._move(Phase.REGISTERED)
        wait: Effects = (CancelTimer(Timer.SETTLE), self._persist())
        if dispute.phase is DisputePhase.FORCE_EXEC and self._registered_state(dispute) is None:
            return (*wait, SubmitTx(FindRegistered(self.record.params, dispute)))
        return (*wait, SubmitTx(AwaitConcludable(dispute.concludable_at)))

    def _on_chain_stands(self, event: ChainStands) -> Effects:
        """We came too late: what is registered will be concluded, whatever we hold."""
        return (*self._await_end(event.dispute), *self._answer_progression(event.dispute))

    def _on_chain_matured(self, event: ChainMatured) -> Effects:
        dispute = event.dispute
        if dispute.concluded:
            return self._on_chain_concluded(ChainConcluded(dispute.version))
        self._stored = dispute
        if not dispute.registered:  # a reorg has taken it back
            return self._register()
        state = self._registered_state(dispute)
        if state is None:
            return (SubmitTx(FindRegistered(self.record.params, dispute)),)
        self._move(Phase.CONCLUDING)
        return self._persist(), SubmitTx(ConcludeState(self.record.params, state))

    def _on_chain_found(self, event: ChainFound) -> Effects:
        """Conclude what the chain holds, if it is what the contract stores; never sign it (PROTOCOL.md 7.9).

        Whether it can be the start of a progression of ours is another question: for that it must be valid by our
        app too.
        """
        dispute, state = event.dispute, event.tx.state
        if state is None or state.version != dispute.version or self._hash(state) != dispute.state_hash:
            return self._retry_later()
        self._builds_on_adopted = event.tx.fully_signed or self._is_valid_progression(state, event)
        self._adopted = state
        return (SubmitTx(AwaitConcludable(dispute.concludable_at)),)

    def _is_valid_progression(self, state: State, event: ChainFound) -> bool:
        actors = [index for index, sig in enumerate(event.tx.sigs) if sig is not None]
        before = [known for known in self._on_chain_states() if known.version + 1 == state.version]
        for old in before:
            for actor in actors:
                try:
                    self._check_progression(old, state, actor)
                except RuleViolated:
                    continue
                return True
        return False

    def _on_chain_states(self) -> tuple[State, ...]:
        return self._known_states() if self._adopted is None else (*self._known_states(), self._adopted)

    def _registered_state(self, dispute: Dispute) -> State | None:
        for state in self._on_chain_states():
            if state.version == dispute.version and self._hash(state) == dispute.state_hash:
                return state
        return None

    def _on_chain_undone(self, event: ChainUndone) -> Effects:
        """A reorg took back what this channel's settlement rests on: go on from what the contract stores now."""
        dispute = event.dispute
        was_withdrawn = self.phase is Phase.WITHDRAWN
        if was_withdrawn:
            self.record = replace(self.record, reopened=True)
            self._told_closed = True
        if dispute.concluded:
            return self._withdraw(dispute.version) if was_withdrawn else ()
        undone = (Phase.REGISTERED, Phase.PROGRESSING, Phase.CONCLUDING, Phase.WITHDRAWING, Phase.WITHDRAWN)
        if self.phase not in undone:
            return ()
        self.record = replace(self.record, concluded_version=None)
        answered = self._answer_progression(dispute)
        self._stored = dispute
        if self.state.is_final:
            self._move(Phase.FINAL)
            return (CancelTimer(Timer.SETTLE), self._persist(), *self._settle_final())
        if not dispute.registered:
            return (*self._register(), *answered)
        return (*self._pursue(dispute), *answered)

    # ---- progressing ----------------------------------------------------------------------------------------------

    def _on_user_progressed(self, event: UserProgressed) -> Effects:
        """G-1 to G-4: sign and submit the next state of a disputed app channel (PROTOCOL.md 7.10)."""
        try:
            old = self._progressable(event)
            record = self._with_forced(Forced(old, event.state, event.dispute.concludable_at))
        except RuleViolated as error:
            return (Fail(event.request, FailedPrecondition(f"cannot progress on chain: {error}")),)
        self.record = record
        self._progress_request = event.request
        return (CancelTimer(Timer.SETTLE), *self._persist_and_sign(event.state))

    def _progressable(self, event: UserProgressed) -> State:
        """The registered state, from which `event` may go on. Raises: RuleViolated (G-1, G-2, G-3)."""
        dispute, now = event.dispute, event.now
        if self.record.params.app is None:
            raise RuleViolated("G-1", "the channel has no app")
        if self.phase is not Phase.REGISTERED or not dispute.registered or dispute.concluded:
            raise RuleViolated("G-1", "no dispute about the channel is open")
        old = self._registered_state(dispute)
        if old is None or (old is self._adopted and not self._builds_on_adopted):
            raise RuleViolated("G-1", "the registered state is not one that we know as valid")
        if dispute.phase is DisputePhase.DISPUTE:
            if now < dispute.timeout:
                raise RuleViolated("G-2", "the registered state may still be refuted")
        elif now >= dispute.timeout - dispute.challenge_duration // PROGRESS_MARGIN:
            raise RuleViolated("G-2", "the time for progressing is over")
        self._check_progression(old, event.state, self.record.own_index)
        return old

    def _check_progression(self, old: State, new: State, actor: int) -> None:
        """G-3. Raises: RuleViolated."""
        record = self.record
        check_update(record.params, record.channel_id, self.terms.app, old, new, actor, sender=actor)

    def _with_forced(self, forced: Forced) -> ChannelRecord:
        """The record with `forced`, whose signature counts like every other one of its version (G-4, 7.3.5).

        Raises: RuleViolated.
        """
        record, new = self.record, forced.new
        before = record.forced
        if before is not None and before.new.version == new.version and before.new != new:
            raise RuleViolated("7.3.5", "another progression to this version is signed already")
        if record.staged is not None and record.staged.state.version == new.version:
            digest = self._hash(record.staged.state)
            if digest not in record.candidates:
                record = replace(
                    record,
                    candidates=(*record.candidates, digest),
                    candidate_states=(*record.candidate_states, record.staged.state),
                )
            record = replace(record, staged=None)
        if new.version == self.state.version + 1:
            check_second_signature(record, self._hash(new), answering=False)
        return replace(record, forced=forced, phase=Phase.PROGRESSING)

    @property
    def _progression(self) -> Forced:
        forced = self.record.forced
        assert forced is not None, "a channel in phase progressing has a progression"
        return forced

    def _on_progress_signed(self, sig: Sig) -> Effects:
        record, forced = self.record, self._progression
        step = ProgressState(record.params, forced.old, forced.new, record.own_index, sig, forced.deadline)
        return (SubmitTx(step),)

    def _answer_progression(self, dispute: Dispute) -> Effects:
        """Whoever asked for a progression learns what the chain confirms, which may be the peer's (G-5)."""
        request, self._progress_request = self._progress_request, None
        if request is None:
            return ()
        if dispute.registered and dispute.state_hash == self._hash(self._progression.new):
            return (Reply(request),)
        return (Fail(request, FailedPrecondition("the channel went on without this progression")),)

    # ---- the outcome ----------------------------------------------------------------------------------------------

    def _on_chain_concluded(self, event: ChainConcluded) -> Effects:
        if self.phase in (Phase.WITHDRAWING, Phase.WITHDRAWN):
            return ()
        return (*self._leave_off_chain(), *self._withdraw(event.version))

    def _withdraw(self, version: int) -> Effects:
        answered: Effects = ()
        if self._progress_request is not None:
            request, self._progress_request = self._progress_request, None
            answered = (Fail(request, FailedPrecondition("the channel is concluded")),)
        self.record = replace(self.record, phase=Phase.WITHDRAWING, concluded_version=version)
        withdraw = WithdrawHoldings(self.record.params, self.state)
        return (*answered, CancelTimer(Timer.SETTLE), self._persist(), SubmitTx(withdraw))

    def _on_chain_withdrawn(self) -> Effects:
        self._move(Phase.WITHDRAWN)
        told: Effects = () if self._told_closed else (Notify(ChannelClosed()),)
        self._told_closed = True
        return Persist(self.record, archive=True), *told, *self._answer_closers()

    def _answer_closers(self, error: ApiError | None = None) -> Effects:
        closers, self._closers = self._closers, []
        if error is None:
            return tuple(Reply(request) for request in closers)
        return tuple(Fail(request, error) for request in closers)

    def _on_chain_failed(self, event: ChainFailed) -> Effects:
        if self.phase is Phase.FUNDING:
            return self._on_funding_failed(event)
        told: Effects = () if self._told_closed else (Notify(ChannelClosed(event.error)),)
        self._told_closed = True
        if self._progress_request is not None:
            told = (*told, Fail(self._progress_request, event.error))
            self._progress_request = None
        return (*told, *self._answer_closers(event.error), *self._retry_later())

    def _retry_later(self) -> Effects:
        pause, self._settle_pause = self._settle_pause, min(2 * self._settle_pause, self.terms.settle_limit)
        return (SetTimer(Timer.SETTLE, pause),)

    def _on_settle_timeout(self) -> Effects:
        """Repeat the step the phase stands for; every step checks first whether its goal is reached."""
        record = self.record
        match self.phase:
            case Phase.FINAL:
                return (SubmitTx(ConcludeFinal(record.params, record.current, secondary=False)),)
            case Phase.REGISTERING:
                return (SubmitTx(self._registration()),)
            case Phase.PROGRESSING:
                return self._persist_and_sign(self._progression.new)
            case Phase.REGISTERED | Phase.CONCLUDING:
                self._move(Phase.REGISTERED)
                return (SubmitTx(AwaitConcludable(0)),)
            case Phase.WITHDRAWING:
                return (SubmitTx(WithdrawHoldings(record.params, self.state)),)
            case _:
                return ()

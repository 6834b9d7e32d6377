"""From the last off-chain state to money on the account: funding, concluding, disputing, withdrawing (7.2.3, 7.6, 7.8).

Each step is submitted beside the machine and comes back as an event. A failed step is told to whoever waits and
repeated with growing pauses until it works; no user is needed for that.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..channel import Dispute, Phase, State
from ..errors import ApiError, FailedPrecondition, PeerNotFunded, UnknownInternal
from .effects import (
    AwaitConcludable,
    CancelTimer,
    ChannelClosed,
    ConcludeFinal,
    ConcludeState,
    Effects,
    Fail,
    FundChannel,
    Notify,
    Persist,
    Publish,
    RegisterState,
    Reply,
    SetTimer,
    SubmitTx,
    Timer,
    WithdrawHoldings,
)
from .events import ChainConcluded, ChainFailed, ChainMatured, ChainRegistered, PeerProposed
from .updating import SETTLING, Updating


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
        effects = self._leave_off_chain()
        if dispute.version < self.state.version:
            self._move(Phase.REGISTERING)
            refute = RegisterState(self.record.params, self.record.current)
            return (*effects, self._persist(), SubmitTx(refute))
        self._move(Phase.REGISTERED)
        return (*effects, self._persist(), SubmitTx(AwaitConcludable(dispute.concludable_at)))

    def _on_chain_matured(self, event: ChainMatured) -> Effects:
        dispute = event.dispute
        if dispute.concluded:
            return self._on_chain_concluded(ChainConcluded(dispute.version))
        state = self._registered_state(dispute)
        if state is None:
            # A state we do not hold is registered: only its owner can conclude it. Look again later.
            return self._retry_later()
        self._move(Phase.CONCLUDING)
        return self._persist(), SubmitTx(ConcludeState(self.record.params, state))

    def _registered_state(self, dispute: Dispute) -> State | None:
        for state in self._known_states():
            if state.version == dispute.version and self._hash(state) == dispute.state_hash:
                return state
        return None

    def _on_chain_concluded(self, event: ChainConcluded) -> Effects:
        if self.phase in (Phase.WITHDRAWING, Phase.WITHDRAWN):
            return ()
        effects = self._leave_off_chain()
        self.record = replace(self.record, phase=Phase.WITHDRAWING, concluded_version=event.version)
        withdraw = WithdrawHoldings(self.record.params, self.state)
        return (*effects, CancelTimer(Timer.SETTLE), self._persist(), SubmitTx(withdraw))

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
                return (SubmitTx(RegisterState(record.params, record.current)),)
            case Phase.REGISTERED | Phase.CONCLUDING:
                self._move(Phase.REGISTERED)
                return (SubmitTx(AwaitConcludable(0)),)
            case Phase.WITHDRAWING:
                return (SubmitTx(WithdrawHoldings(record.params, self.state)),)
            case _:
                return ()

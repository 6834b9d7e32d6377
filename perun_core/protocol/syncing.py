"""Comparing newest states with the peer, and recovery mode: what to do when our own storage may be an old copy.

A sync message shows a transaction. One that nobody asked for is a question and is answered with ours; the answer to our
own question is not answered (PROTOCOL.md 7.4.1). Rules Y-1 to Y-8 decide what a received transaction means.

In recovery mode no state is signed: the versions after the one we hold may be signed already, with content we forgot.
The peer is asked for its newest state; a newer one is always better to hold, so it is verified and adopted. Settling on
chain goes on and may be asked for. The mode ends from outside, when every channel is reconciled or the operator says
so; then `promises.check_after_recovery` guards the first new version.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ..channel import Dispute, DisputePhase, Phase, State, Transaction
from ..channel.phase import WIRE
from ..errors import ApiError, FailedPrecondition, RuleViolated, UnknownInternal
from ..values import Bytes32, Sig
from ..wire.messages import Sync, UpdateAcc
from .effects import (
    AwaitConcludable,
    CancelTimer,
    Effects,
    Fail,
    Forked,
    FundChannel,
    Notify,
    Persist,
    Publish,
    Reconciled,
    Send,
    SetTimer,
    StorageBehind,
    SubmitTx,
    Timer,
)
from .events import (
    Event,
    PeerAccepted,
    PeerProposed,
    PeerSynced,
    RecoveryBegan,
    TimerFired,
    UserAccepted,
    UserClosed,
    UserPaid,
    UserProgressed,
)
from .records import Staged
from .settling import Settling
from .sync_rules import SyncDecision, decide

SUPERSEDED: Final = "another update became the agreed one"

COMPARABLE: Final = frozenset((Phase.ACTING, Phase.SIGNING, Phase.DECIDING, Phase.ACCEPTING, Phase.UNKNOWN))
"""Off-chain phases of a funded channel."""
BEFORE_THE_CHAIN: Final = COMPARABLE | {Phase.OPENING, Phase.FUNDING}
"""Phases in which a state could still be signed sooner or later; only these need to be reconciled."""
DISPUTED: Final = frozenset((Phase.REGISTERING, Phase.REGISTERED))
"""Nothing is signed any more, but a newer state can still be registered."""


class Syncing(Settling):
    """The comparing half of the channel machine."""

    # ---- recovery mode --------------------------------------------------------------------------------------------

    def recover(self, reason: str) -> None:
        """Be in recovery mode from the start; call before `resume`."""
        self._recovering = reason

    @property
    def is_recovering(self) -> bool:
        """Whether nothing is signed."""
        return self._recovering is not None

    @property
    def awaits_sync(self) -> bool:
        """Whether a sync message of ours waits for its answer."""
        return self._sync_asked

    @property
    def wants_peer(self) -> bool:
        """Whether a new connection with the peer should be told to this machine."""
        if self.phase is Phase.ACTING and not self._confirmed:
            return True
        return self.phase in (Phase.UNKNOWN, Phase.SIGNING) or self._answered is not None

    def is_behind(self, dispute: Dispute) -> bool:
        """Whether `dispute` proves that we signed a state we do not know. A progression needs no signature of ours."""
        if not dispute.registered or dispute.version <= self.state.version:
            return False
        progressed = dispute.phase is not DisputePhase.DISPUTE and self.record.params.app is not None
        return not progressed and self._registered_state(dispute) is None

    def _recovery_error(self) -> ApiError:
        return FailedPrecondition(f"session is in recovery mode: {self._recovering}")

    def _on_recovery_began(self, event: RecoveryBegan) -> Effects:
        if self._recovering is not None:
            return ()
        self._recovering = event.reason
        if self.phase not in BEFORE_THE_CHAIN:
            return ()
        effects: Effects = (CancelTimer(Timer.RESPONSE), CancelTimer(Timer.HEAL), CancelTimer(Timer.EXPIRY))
        if self._question is not None:
            effects = (*effects, *self._withdraw_question("", tell_peer=False))
        if self.phase is Phase.SIGNING:
            self._move(Phase.UNKNOWN)
            effects = (*effects, self._persist())
        error = self._recovery_error()
        return (*effects, *self._fail_waiting(error), *self._answer_closers(error), self._compare_soon())

    def _on_recovery_ended(self) -> Effects:
        """Go on. What was signed before is known or named: the first new version is guarded (7.3.5)."""
        if self._recovering is None:
            return ()
        self._recovering = None
        self._reconciled = False
        if self.phase not in BEFORE_THE_CHAIN:
            return ()
        stop = CancelTimer(Timer.SYNC)
        if self.phase is Phase.OPENING:  # nobody holds it fully signed, or nobody said so
            self._move(Phase.WITHDRAWN)
            return stop, Persist(self.record, archive=True)
        self.record = replace(self.record, recovered=self.state.version)
        if self.record.staged is None:
            return stop, self._persist()
        again = self._persist_and_sign(self.record.staged.state)
        if self.phase is Phase.ACCEPTING:
            return stop, *again
        return stop, *again, SetTimer(Timer.HEAL, self.terms.heal_delay)

    def _resume_recovering(self) -> Effects | None:
        """What a restart does in recovery mode; None: the same as always."""
        if self.phase is Phase.PROGRESSING:
            return Publish(self.record.current), *self._progress_no_further()
        if self.phase not in BEFORE_THE_CHAIN:
            return None
        compare = self._compare_soon()
        match self.phase:
            case Phase.OPENING:  # our storage forgot whether it was funded; its record must stay
                return (compare,)
            case Phase.FUNDING:
                return *self._wait_for_funding(), compare
            case Phase.SIGNING | Phase.UNKNOWN:
                self._move(Phase.UNKNOWN)
            case Phase.DECIDING:
                self._move(Phase.ACTING)
        return Publish(self.record.current), self._persist(), compare

    def _wait_for_funding(self) -> Effects:
        """Deposits may have been made that our storage forgot; none is made now (O-22)."""
        self.record = replace(self.record, phase=Phase.FUNDING, deposited=True)
        wait = FundChannel(self.record.params, self.state, deposit=False)
        return self._persist(), Publish(self.record.current), SubmitTx(wait)

    def _in_recovery(self, event: Event) -> Effects | None:
        """What recovery mode makes of `event`; None: the same as always, which signs nothing."""
        match event:
            case UserPaid(request) | UserAccepted(request) if self.phase in BEFORE_THE_CHAIN:
                return (Fail(request, self._recovery_error()),)
            case UserClosed() if self.phase in COMPARABLE:
                return self._close_without_peer(event)
            case UserProgressed(request):
                return (Fail(request, self._recovery_error()),)
            case TimerFired(Timer.RESPONSE | Timer.HEAL | Timer.EXPIRY):
                return ()
            case TimerFired(Timer.SETTLE) if self.phase is Phase.PROGRESSING:
                return self._progress_no_further()
            case _:
                return None

    def _progress_no_further(self) -> Effects:
        """A progression is not signed again; what is registered is concluded in the end."""
        self._move(Phase.REGISTERED)
        return self._persist(), SubmitTx(AwaitConcludable(0))

    def _on_peer_proposed(self, event: PeerProposed) -> Effects:
        """In recovery mode a proposal is not answered at all: it may be one that we accepted and forgot.

        A refusal would free the peer to propose something else for a version that both may have signed already.
        """
        if self._recovering is None or self.phase not in BEFORE_THE_CHAIN:
            return super()._on_peer_proposed(event)
        if event.update.state.version <= self.state.version:
            return super()._on_peer_proposed(event)
        return ()

    def _told_reconciled(self) -> Effects:
        """Said once, when the peer showed our newest state or the chain took over."""
        if self._recovering is None or self._reconciled:
            return ()
        self._reconciled = True
        return (Notify(Reconciled()),)

    # ---- asking ---------------------------------------------------------------------------------------------------

    def _compare_soon(self) -> SetTimer:
        """A peer of another make must have ended whatever it was doing before it can be asked (7.4.1)."""
        self._sync_pause = self.terms.sync_delay
        return SetTimer(Timer.SYNC, self.terms.sync_delay)

    def _on_sync_time(self) -> Effects:
        if self._recovering is None:
            idle = self.phase is Phase.ACTING and not self._confirmed and self._intent is None
            return self._ask_sync() if idle else ()
        if self._reconciled or self.phase not in BEFORE_THE_CHAIN:
            return ()
        self._sync_pause = min(2 * self._sync_pause, self.terms.heal_limit)
        return *self._ask_sync(), SetTimer(Timer.SYNC, self._sync_pause)

    def _on_peer_connected(self) -> Effects:
        self._sync_asked = False  # what was asked on an earlier connection will not be answered on this one
        self._answered = None
        if self._recovering is None and self.phase is Phase.UNKNOWN:
            self._heal_pause = self.terms.heal_delay
            return self._ask_again()
        if self._recovering is None and self.phase is Phase.ACTING and not self._confirmed:
            return (self._compare_soon(),)
        if self.phase is Phase.SIGNING and self._own_sig is not None:  # the first copy may be lost
            return self._repeat_update()
        return ()

    # ---- the peer accepted what it had refused ---

    def _on_peer_accepted(self, event: PeerAccepted) -> Effects:
        """Also an acceptance of an earlier proposal that we believe refused: the peer holds it fully signed.

        Refusals name a version only, so one of an earlier copy can be taken for one of a later copy (7.3.3).
        """
        done = super()._on_peer_accepted(event)
        version = self.state.version + 1
        if done or self._recovering is not None or self.phase not in COMPARABLE or event.acc.version != version:
            return done
        if self.phase is Phase.ACCEPTING:
            return ()
        for state in self.record.candidate_states:
            try:
                self._verify_peer(state, event.acc.sig)
            except RuleViolated:
                continue
            return self._complete(state, event.acc.sig)
        return ()

    def _complete(self, state: State, peer_sig: Sig) -> Effects:
        """Sign `state` again, which is marked, and hold it with the signatures of both."""
        record, effects = self.record, (CancelTimer(Timer.RESPONSE), CancelTimer(Timer.HEAL))
        told: Effects = ()
        if self._question is not None:
            told = self._withdraw_question("superseded", tell_peer=False)
        if record.staged is not None and record.staged.state != state:
            told = (*told, *self._answer_own(UnknownInternal(SUPERSEDED)))
            digest = self._hash(record.staged.state)
            if digest not in record.candidates:
                record = replace(
                    record,
                    candidates=(*record.candidates, digest),
                    candidate_states=(*record.candidate_states, record.staged.state),
                )
        self.record = replace(record, phase=Phase.ACCEPTING, staged=Staged(state, ours=False, peer_sig=peer_sig))
        return *effects, *told, *self._persist_and_sign(state)

    # ---- the peer shows its newest state --------------------------------------------------------------------------

    def _on_peer_synced(self, event: PeerSynced) -> Effects:
        """Adopt what is newer and fully signed, complete what the peer misses, stop at a fork (Y-1 to Y-8)."""
        asked, self._sync_asked = self._sync_asked, False
        received = event.sync.current
        marks: tuple[Bytes32, ...] = tuple(self._hash(state) for state in self._known_states())
        decision = decide(
            self.record.params,
            self.record.channel_id,
            own=self.record.current,
            received=received,
            signed=marks,
            profile=self.terms.profile,
        )
        answer: Effects = () if asked else self._answer_once(received)
        match decision:
            case SyncDecision.IGNORE:
                return ()
            case SyncDecision.FORK:
                return self._on_fork(answer)
            case SyncDecision.ADOPT:
                return self._adopt(received, rolled_back=False)
            case SyncDecision.ADOPT_RECOVERY:
                return self._adopt(received, rolled_back=True)
            case SyncDecision.IN_SYNC:
                return *answer, *self._on_in_sync(received)
            case SyncDecision.KEEP | SyncDecision.ANSWER_OURS:
                return answer
            case SyncDecision.RESEND_ACC:
                return *answer, *self._missing_acceptance()

    def _answer_once(self, received: Transaction) -> Effects:
        """Ours, unless the same was answered to the same on this connection: a repetition must not make a loop."""
        exchange = (received, self.record.current)
        if exchange == self._answered:
            return ()
        self._answered = exchange
        return (Send(Sync(int(WIRE[self.phase]), self.record.current)),)

    def _missing_acceptance(self) -> Effects:
        """Y-2: the acceptance the peer may have missed; our signature is stored, nothing is signed anew."""
        own = self.record.current.sigs[self.record.own_index]
        if own is None or not self.record.current.fully_signed:
            return ()
        return (Send(UpdateAcc(self.record.channel_id, self.state.version, own)),)

    def _on_in_sync(self, received: Transaction) -> Effects:
        """Y-3. A pending update of ours is asked for again; in recovery mode the channel is reconciled."""
        if self.phase is Phase.OPENING:
            self.record = replace(self.record, current=received)
            return *self._wait_for_funding(), *self._told_reconciled()
        self._confirmed = True
        if self._recovering is not None:
            return self._told_reconciled() if self.phase in COMPARABLE | {Phase.FUNDING} else ()
        if self.phase is Phase.UNKNOWN and self._own_sig is not None:
            return self._repeat_update()
        return ()

    def _on_fork(self, answer: Effects) -> Effects:
        """Y-4: nothing more is signed; the chain decides, and whoever has the newer state may show it there."""
        if self.phase not in COMPARABLE:
            return answer
        told = Notify(Forked(self.state.version))
        question: Effects = ()
        if self._question is not None:
            question = self._withdraw_question("different states of one version are signed")
        return (told, *question, *self._dispute())

    def _adopt(self, received: Transaction, *, rolled_back: bool) -> Effects:
        """Y-5, Y-6: a newer state that both signed is better held than not held."""
        state = received.state
        assert state is not None
        if self.phase in DISPUTED:
            adopted = self._adopt_in_dispute(received)
        elif self.phase in BEFORE_THE_CHAIN:
            adopted = self._adopt_off_chain(received, rolled_back=rolled_back)
        else:
            return ()  # final, or the chain has concluded: nothing can be changed by it
        behind: Effects = (Notify(StorageBehind(state.version)),) if rolled_back else ()
        return *behind, *adopted

    def _adopt_off_chain(self, received: Transaction, *, rolled_back: bool) -> Effects:
        state = received.state
        assert state is not None
        own, peer = received.sigs[self.record.own_index], received.sigs[self.peer_index]
        assert own is not None and peer is not None
        effects: Effects = ()
        if rolled_back:
            reason = f"the peer holds version {state.version} with our signature, our storage had {self.state.version}"
            effects = self._on_recovery_began(RecoveryBegan(reason))
        elif self._question is not None:
            effects = self._withdraw_question("superseded", tell_peer=False)
        staged = self.record.staged
        if staged is not None and staged.state != state:  # what our user asked for is not what was agreed
            error: ApiError = UnknownInternal(SUPERSEDED)
            effects = (*effects, *self._answer_own(error), *self._answer_decision(error))
        if self.phase in (Phase.OPENING, Phase.FUNDING):
            # Both signed an update, so both had seen the deposits.
            self.record = replace(self.record, deposited=True)
        effects = (*effects, *self._enable(state, own, peer))
        return *effects, *self._told_reconciled()

    def _adopt_in_dispute(self, received: Transaction) -> Effects:
        """What is registered may be refuted with it; the watcher learns of it by `Publish`."""
        state, stored = received.state, self._stored
        assert state is not None
        self.record = replace(
            self.record,
            current=received,
            staged=None,
            candidates=(),
            candidate_states=(),
            refused=(),
            recovered=None,
            given_up=(),
        )
        if state.is_final:  # overrides every dispute (Y-8)
            self._move(Phase.FINAL)
            return CancelTimer(Timer.SETTLE), self._persist(), Publish(received), *self._settle_final()
        if stored is not None and stored.registered and stored.version >= state.version:
            return self._persist(), Publish(received)
        return *self._register(), Publish(received)

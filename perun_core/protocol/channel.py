"""The machine of one opened channel: the table of its life, and the one door `handle`.

Laws: an event that the table does not list for the current phase is an error; a handler may only lead to a phase the
table lists. Roles do not appear in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..channel import Phase
from ..errors import RuleViolated
from .effects import Effects, FundChannel, Persist, Publish, SetTimer, SubmitTx, Timer
from .events import (
    ChainConcluded,
    ChainFailed,
    ChainFound,
    ChainFunded,
    ChainMatured,
    ChainRegistered,
    ChainStands,
    ChainUndone,
    ChainWithdrawn,
    Event,
    PeerAccepted,
    PeerAway,
    PeerConnected,
    PeerProposed,
    PeerReached,
    PeerRejected,
    PeerSynced,
    RecoveryBegan,
    RecoveryEnded,
    Signed,
    TimerFired,
    UserAccepted,
    UserClosed,
    UserPaid,
    UserProgressed,
    UserRejected,
)
from .syncing import BEFORE_THE_CHAIN, Syncing

P = Phase


def _to(*phases: Phase) -> frozenset[Phase]:
    return frozenset(phases)


_ANYWHERE: Final = {
    PeerConnected,
    PeerSynced,
    PeerAway,
    PeerReached,
    PeerAccepted,
    PeerRejected,
    PeerProposed,
    UserProgressed,
    ChainUndone,
    RecoveryBegan,
    RecoveryEnded,
}

_SETTLING_ROW: Final[Mapping[type[Event], frozenset[Phase]]] = {
    UserPaid: _to(),
    UserClosed: _to(),
    UserAccepted: _to(),
    UserRejected: _to(),
    TimerFired: _to(),
    ChainFailed: _to(),
    ChainConcluded: _to(P.WITHDRAWING),
}

NEXT: Final[Mapping[Phase, Mapping[type[Event], frozenset[Phase]]]] = {
    P.OPENING: {
        PeerSynced: _to(P.FUNDING, P.ACTING, P.FINAL),
        RecoveryEnded: _to(P.WITHDRAWN),
        ChainRegistered: _to(P.REGISTERED, P.WITHDRAWING),
        ChainConcluded: _to(P.WITHDRAWING),
        UserPaid: _to(),
        UserClosed: _to(),
        UserAccepted: _to(),
        TimerFired: _to(),
    },
    P.FUNDING: {
        PeerSynced: _to(P.ACTING, P.FINAL),
        ChainFunded: _to(P.ACTING, P.DECIDING),
        ChainFailed: _to(P.REGISTERING, P.WITHDRAWN),
        ChainRegistered: _to(P.REGISTERED, P.WITHDRAWING),
        ChainConcluded: _to(P.WITHDRAWING),
        UserPaid: _to(),
        UserClosed: _to(),
        UserAccepted: _to(),
        UserRejected: _to(),
        TimerFired: _to(),
    },
    P.ACTING: {
        PeerAccepted: _to(P.ACCEPTING),
        UserPaid: _to(),
        UserClosed: _to(P.REGISTERING),
        UserAccepted: _to(),
        UserRejected: _to(),
        PeerReached: _to(P.SIGNING, P.REGISTERING),
        PeerAway: _to(P.REGISTERING),
        PeerProposed: _to(P.DECIDING),
        PeerSynced: _to(P.FINAL, P.REGISTERING),
        ChainRegistered: _to(P.REGISTERED, P.REGISTERING, P.WITHDRAWING),
        ChainConcluded: _to(P.WITHDRAWING),
        TimerFired: _to(),
    },
    P.SIGNING: {
        RecoveryBegan: _to(P.UNKNOWN),
        Signed: _to(),
        UserPaid: _to(),
        UserClosed: _to(),
        UserAccepted: _to(),
        UserRejected: _to(),
        PeerAccepted: _to(P.ACTING, P.ACCEPTING, P.FINAL),
        PeerRejected: _to(P.ACTING, P.REGISTERING),
        PeerProposed: _to(P.ACTING, P.FINAL),
        PeerSynced: _to(P.ACTING, P.FINAL, P.REGISTERING),
        PeerAway: _to(P.UNKNOWN),
        TimerFired: _to(P.UNKNOWN),
        ChainRegistered: _to(P.REGISTERED, P.REGISTERING, P.WITHDRAWING),
        ChainConcluded: _to(P.WITHDRAWING),
    },
    P.DECIDING: {
        PeerAccepted: _to(P.ACCEPTING),
        RecoveryBegan: _to(P.ACTING),
        PeerSynced: _to(P.ACTING, P.FINAL, P.REGISTERING),
        UserAccepted: _to(P.ACCEPTING),
        UserRejected: _to(P.ACTING),
        UserPaid: _to(),
        UserClosed: _to(P.ACTING),
        PeerProposed: _to(P.ACTING),
        TimerFired: _to(P.ACTING),
        ChainRegistered: _to(P.REGISTERED, P.REGISTERING, P.WITHDRAWING),
        ChainConcluded: _to(P.WITHDRAWING),
    },
    P.ACCEPTING: {
        Signed: _to(P.ACTING, P.FINAL),
        PeerSynced: _to(P.ACTING, P.FINAL, P.REGISTERING),
        UserPaid: _to(),
        UserClosed: _to(P.REGISTERING),
        UserAccepted: _to(),
        UserRejected: _to(),
        TimerFired: _to(),
        ChainRegistered: _to(P.REGISTERED, P.REGISTERING, P.WITHDRAWING),
        ChainConcluded: _to(P.WITHDRAWING),
    },
    P.UNKNOWN: {
        Signed: _to(),
        UserPaid: _to(),
        UserClosed: _to(P.REGISTERING),
        UserAccepted: _to(),
        UserRejected: _to(),
        PeerAccepted: _to(P.ACTING, P.ACCEPTING, P.FINAL),
        PeerRejected: _to(P.ACTING, P.REGISTERING),
        PeerProposed: _to(P.ACTING, P.FINAL),
        PeerSynced: _to(P.ACTING, P.FINAL, P.REGISTERING),
        TimerFired: _to(P.REGISTERING),
        ChainRegistered: _to(P.REGISTERED, P.REGISTERING, P.WITHDRAWING),
        ChainConcluded: _to(P.WITHDRAWING),
    },
    P.FINAL: {
        **_SETTLING_ROW,
        ChainRegistered: _to(P.WITHDRAWING),
    },
    P.REGISTERING: {
        **_SETTLING_ROW,
        Signed: _to(),
        ChainRegistered: _to(P.REGISTERED, P.WITHDRAWING),
        ChainStands: _to(P.REGISTERED),
        PeerSynced: _to(P.FINAL),
    },
    P.REGISTERED: {
        **_SETTLING_ROW,
        Signed: _to(),
        PeerSynced: _to(P.FINAL, P.REGISTERING),
        UserProgressed: _to(P.PROGRESSING),
        ChainRegistered: _to(P.REGISTERING, P.WITHDRAWING),
        ChainMatured: _to(P.REGISTERING, P.CONCLUDING, P.WITHDRAWING),
        ChainFound: _to(),
        ChainUndone: _to(P.REGISTERING),
    },
    P.PROGRESSING: {
        **_SETTLING_ROW,
        Signed: _to(),
        TimerFired: _to(P.REGISTERED),
        ChainRegistered: _to(P.REGISTERED, P.WITHDRAWING),
        ChainStands: _to(P.REGISTERED),
        ChainUndone: _to(P.REGISTERING, P.REGISTERED),
    },
    P.CONCLUDING: {
        **_SETTLING_ROW,
        ChainRegistered: _to(P.WITHDRAWING),
        ChainUndone: _to(P.REGISTERING, P.REGISTERED),
        TimerFired: _to(P.REGISTERED),
    },
    P.WITHDRAWING: {
        **_SETTLING_ROW,
        ChainRegistered: _to(),
        ChainUndone: _to(P.FINAL, P.REGISTERING, P.REGISTERED),
        ChainWithdrawn: _to(P.WITHDRAWN),
    },
    P.WITHDRAWN: {
        **_SETTLING_ROW,
        ChainRegistered: _to(),
        ChainUndone: _to(P.FINAL, P.REGISTERING, P.REGISTERED, P.WITHDRAWING),
        ChainConcluded: _to(),
    },
}
"""Phase → event → phases it may lead to; staying in the phase is always allowed."""


class Channel(Syncing):
    """The machine. Created from a record in phase funding, or from a stored one and then resumed."""

    def handle(self, event: Event) -> Effects:
        """Effects of `event`, to be performed in order up to the first failure.

        Raises: RuleViolated when the event has no place in the current phase; nothing was changed.
        """
        before = self.phase
        row = NEXT.get(before, {})
        kind = type(event)
        if kind not in row and kind not in _ANYWHERE:
            raise RuleViolated("phase", f"{kind.__name__} has no place in phase {before}")
        handled = self._in_recovery(event) if self.is_recovering else None
        effects = self._dispatch(event) if handled is None else handled
        if self.phase not in BEFORE_THE_CHAIN:
            effects = (*effects, *self._told_reconciled())
        if self.phase is not before and self.phase not in row.get(kind, frozenset()):
            raise AssertionError(f"{kind.__name__} led from {before} to {self.phase}, which the table does not allow")
        return effects

    def next_queued(self) -> Event | None:
        """A request that waited for its turn, when the channel is free for it; hand it to `handle` next."""
        if self.phase is Phase.ACTING and self._queue and self._intent is None:
            return self._queue.popleft()
        return None

    def _dispatch(self, event: Event) -> Effects:
        match event:
            case UserPaid():
                return self._on_user_paid(event)
            case UserClosed():
                return self._on_user_closed(event)
            case UserAccepted():
                return self._on_user_accepted(event)
            case UserRejected():
                return self._on_user_rejected(event)
            case PeerProposed():
                return self._on_peer_proposed(event)
            case PeerAccepted():
                return self._on_peer_accepted(event)
            case PeerRejected():
                return self._on_peer_rejected(event)
            case PeerSynced():
                return self._on_peer_synced(event)
            case PeerReached():
                return self._on_peer_reached()
            case PeerConnected():
                return self._on_peer_connected()
            case RecoveryBegan():
                return self._on_recovery_began(event)
            case RecoveryEnded():
                return self._on_recovery_ended()
            case PeerAway():
                return self._on_peer_away(event)
            case Signed(sig) if self.phase is Phase.PROGRESSING:
                return self._on_progress_signed(sig)
            case Signed(sig):
                return self._on_signed(sig) if self.record.staged is not None else ()
            case UserProgressed():
                return self._on_user_progressed(event)
            case TimerFired(timer):
                return self._on_timer(timer)
            case ChainFunded():
                return self._on_chain_funded()
            case ChainRegistered():
                return self._on_chain_registered(event)
            case ChainMatured():
                return self._on_chain_matured(event)
            case ChainStands():
                return self._on_chain_stands(event)
            case ChainFound():
                return self._on_chain_found(event)
            case ChainUndone():
                return self._on_chain_undone(event)
            case ChainConcluded():
                return self._on_chain_concluded(event)
            case ChainWithdrawn():
                return self._on_chain_withdrawn()
            case ChainFailed():
                return self._on_chain_failed(event)

    def _on_timer(self, timer: Timer) -> Effects:
        match timer, self.phase:
            case Timer.RESPONSE, Phase.SIGNING:
                return self._on_response_timeout()
            case Timer.HEAL, Phase.SIGNING:
                return self._repeat_update() if self._own_sig is not None else ()
            case Timer.HEAL, Phase.UNKNOWN:
                return self._on_heal_timeout()
            case Timer.EXPIRY, Phase.DECIDING:
                return self._on_expiry()
            case Timer.SETTLE, _:
                return self._on_settle_timeout()
            case Timer.SYNC, _:
                return self._on_sync_time()
            case _:
                return ()  # a timer that fired while its reason went away

    def resume(self) -> Effects:
        """Go on after a restart, from whatever phase was stored last."""
        if self.is_recovering:
            effects = self._resume_recovering()
            if effects is not None:
                return effects
        record = self.record
        publish: Effects = (Publish(record.current),)
        match self.phase:
            case Phase.OPENING:
                self._move(Phase.WITHDRAWN)
                return (Persist(self.record, archive=True),)
            case Phase.FUNDING if record.deposited:
                return (*publish, SubmitTx(FundChannel(record.params, self.state, deposit=False)))
            case Phase.FUNDING:
                self._move(Phase.WITHDRAWN)
                return (Persist(self.record, archive=True),)
            case Phase.SIGNING | Phase.UNKNOWN:
                self._move(Phase.UNKNOWN)
                self._confirmed = False
                assert record.staged is not None
                heal = SetTimer(Timer.HEAL, self.terms.heal_delay)
                return (*publish, *self._persist_and_sign(record.staged.state), heal)
            case Phase.ACCEPTING:
                assert record.staged is not None
                return (*publish, *self._persist_and_sign(record.staged.state))
            case Phase.FINAL:
                return (*publish, *self._settle_final())
            case Phase.WITHDRAWN:
                return ()
            case Phase.ACTING | Phase.DECIDING:
                self._move(Phase.ACTING)
                self._confirmed = False
                return publish
            case _:
                return (*publish, *self._on_settle_timeout())

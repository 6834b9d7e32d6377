"""What to make of a peer's ChannelSync: rules Y-1 to Y-8 as one decision on data (PROTOCOL.md 7.4.3).

The decision changes nothing. Limits on how often a sync is answered, and whether this one is itself an answer to ours
(7.4.1), are known to the caller.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from ..channel import Params, Phase, State, Transaction
from ..channel.rules import check_state, t1_channel_id, t2_app, t6_assets, t7_sums
from ..errors import RuleViolated
from ..profile import Profile
from ..values import Bytes32, ChannelID


class SyncDecision(StrEnum):
    """What follows from a received transaction."""

    IGNORE = "ignore"
    """Y-1, Y-7: damaged, foreign or not fully signed; log it and count it against the peer."""
    KEEP = "keep"
    """Same state, but not fully signed by the peer's account: nothing to learn; answer with ours when we were asked."""
    ANSWER_OURS = "answer_ours"
    """Y-2: the peer is behind; answer with ours when we were asked."""
    RESEND_ACC = "resend_acc"
    """Y-2: the peer is behind by one; answer with ours, and repeat the acceptance it may be missing, if it was ours."""
    IN_SYNC = "in_sync"
    """Y-3: both hold the same fully signed state; a pending update of ours may be repeated."""
    FORK = "fork"
    """Y-4: another fully signed state of the same version; stop, alert, prepare a dispute, never sign again."""
    ADOPT = "adopt"
    """Y-5: a newer state that we signed; adopt, enable, tell the watcher."""
    ADOPT_RECOVERY = "adopt_recovery"
    """Y-6: a newer state with our signature of which our storage knows nothing: alert; adopt in recovery mode only."""


def decide(
    params: Params,
    channel_id: ChannelID,
    *,
    own: Transaction,
    received: Transaction,
    signed: Collection[Bytes32],
    profile: Profile,
) -> SyncDecision:
    """The decision on `received`, sent by the other participant of this channel.

    `own` is our newest fully signed transaction, `signed` the hashes of states for which a durable record of our
    signing exists. `own` must have a state.
    """
    if own.state is None:
        raise ValueError("a synchronised channel has a state")
    try:
        theirs = y1_belongs(params, channel_id, own.state, received)
    except RuleViolated:
        return SyncDecision.IGNORE
    if theirs.version < own.state.version:
        behind_by_one = theirs.version + 1 == own.state.version
        return SyncDecision.RESEND_ACC if behind_by_one else SyncDecision.ANSWER_OURS
    theirs_hash = profile.state_hash(theirs)
    try:
        y7_fully_signed(params, theirs_hash, received, profile)
    except RuleViolated:
        same = theirs.version == own.state.version and theirs_hash == profile.state_hash(own.state)
        return SyncDecision.KEEP if same else SyncDecision.IGNORE
    if theirs.version == own.state.version:
        return SyncDecision.IN_SYNC if theirs_hash == profile.state_hash(own.state) else SyncDecision.FORK
    return SyncDecision.ADOPT if theirs_hash in signed else SyncDecision.ADOPT_RECOVERY


def y1_belongs(params: Params, channel_id: ChannelID, own: State, received: Transaction) -> State:
    """Y-1: a state of this channel, valid by itself, with our assets and totals; returns it.

    Raises: RuleViolated("Y-1").
    """
    theirs = received.state
    if theirs is None:
        raise RuleViolated("Y-1", "no state")
    try:
        t1_channel_id(channel_id, theirs)
        t2_app(params, theirs)
        check_state(params, theirs)
        t6_assets(own, theirs)
        t7_sums(own, theirs)
    except RuleViolated as error:
        raise RuleViolated("Y-1", error.problem) from error
    return theirs


def y7_fully_signed(params: Params, state_hash: Bytes32, received: Transaction, profile: Profile) -> None:
    """Y-7: one valid signature of every participant on the state with `state_hash`. Raises: RuleViolated("Y-7")."""
    if len(received.sigs) != len(params.parts):
        raise RuleViolated("Y-7", f"{len(received.sigs)} signatures for {len(params.parts)} participants")
    for sig, part in zip(received.sigs, params.parts, strict=True):
        if sig is None:
            raise RuleViolated("Y-7", "a signature is missing")
        try:
            profile.verify(state_hash, sig, part)
        except RuleViolated as error:
            raise RuleViolated("Y-7", error.problem) from error


def phase_after_adopting(state: State) -> Phase:
    """Y-8: a final state leads to Final, never to Acting."""
    return Phase.FINAL if state.is_final else Phase.ACTING

"""By when somebody must watch a channel again, so that an outdated state cannot stand (PROTOCOL.md 7.9, CHAIN.md 1.4).

Pure arithmetic on block times, shared by the watcher, which says it when a session ends, and by ``perunnode doctor``.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ..channel import Dispute, DisputePhase, Phase
from ..durations import Duration

UNWATCHED = frozenset((Phase.OPENING, Phase.WITHDRAWING, Phase.WITHDRAWN))
"""Phases in which absence loses nothing: nothing is deposited yet, or the outcome is fixed on chain."""


def back_before(*, challenge_duration: int, version: int, dispute: Dispute | None, as_of: int) -> int | None:
    """The block time before which a newer state can still be registered for sure; Unix seconds.

    `version` is the newest version we hold fully signed; `dispute` is what the contract stores at block time `as_of`,
    None or not registered when it knows nothing. Then an outdated state may be registered in the very next block, and
    its time starts there. None: the contract holds our newest state or one that cannot be refuted any more, so that
    absence changes nothing.
    """
    if dispute is None or not dispute.registered:
        return as_of + challenge_duration
    if dispute.phase is not DisputePhase.DISPUTE or dispute.version >= version:
        return None
    return dispute.timeout


def shown_time(seconds: int) -> str:
    """Block time as people read it: ``2025-01-31 12:00:00 UTC``."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # a challenge duration may last for ages
        return f"block time {seconds}"


def shown_span(seconds: int) -> str:
    """Seconds as configuration files write them: ``10m0s``."""
    return str(Duration.of_seconds(seconds))

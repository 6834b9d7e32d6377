"""What a transaction offers per gas: pure arithmetic on wei, no connection and no clock (EIP-1559).

Three things decide: the base fee of the latest block, how near the transaction's deadline is in block time, and the
operator's limits. An offer that replaces another only goes up, by at least an eighth in both of its parts, which every
node's pool accepts as a replacement.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from msgspec import Struct

GWEI: Final = 10**9

URGENT_SECONDS: Final = 60
"""So near to a deadline, five blocks of the main network, inclusion is worth the hard limit."""


class Urgency(IntEnum):
    """How much a transaction is in a hurry."""

    CALM = 0
    """No deadline, or one that has passed: later is dearer than nothing."""
    HURRIED = 1
    """A deadline that is far off: patience is shorter, the soft limit holds."""
    URGENT = 2
    """Half of the time is gone, or less than URGENT_SECONDS are left: the hard limit holds."""


def urgency(*, made: int, now: int, deadline: int | None) -> Urgency:
    """How much a transaction made at `made` is in a hurry at `now`; all are block times in Unix seconds."""
    if deadline is None or now >= deadline:
        return Urgency.CALM
    left = deadline - now
    if left <= URGENT_SECONDS or 2 * left <= deadline - made:
        return Urgency.URGENT
    return Urgency.HURRIED


PATIENCE: Final = {Urgency.CALM: 6, Urgency.HURRIED: 2, Urgency.URGENT: 1}
"""Blocks that a transaction which could be mined is left out of before it is replaced with a higher offer."""

BASE_FEE_FACTOR: Final = {Urgency.CALM: 2, Urgency.HURRIED: 3, Urgency.URGENT: 4}
"""The maximum fee is the tip plus this multiple of the base fee: 2 outlasts six full blocks in a row, 4 twelve."""

TIP_FACTOR: Final = {Urgency.CALM: 2, Urgency.HURRIED: 3, Urgency.URGENT: 4}
"""The tip is what the node suggests, times this, in halves."""


class Offer(Struct, frozen=True):
    """Wei per gas: the most that is paid, and the part of it that goes to the block's maker."""

    max_fee: int
    tip: int


class Limits(Struct, frozen=True):
    """The operator's limits of the maximum fee in wei per gas; 0 is none."""

    soft: int = 0
    """Never exceeded by what can wait."""
    hard: int = 0
    """Never exceeded, whatever is at stake."""

    def at(self, urgency: Urgency) -> int | None:
        """The limit for a transaction in that hurry; None when there is none."""
        if urgency is not Urgency.URGENT:
            return min((limit for limit in (self.soft, self.hard) if limit), default=None)
        return self.hard or None


def offer(*, base_fee: int, tip: int, urgency: Urgency, boost: int = 0) -> Offer:
    """The offer without limits. `tip` is the node's suggestion; each `boost` doubles the room for the base fee."""
    own_tip = max(tip * TIP_FACTOR[urgency] // 2, 1)
    return Offer(max_fee=own_tip + (BASE_FEE_FACTOR[urgency] << boost) * base_fee, tip=own_tip)


def limited(wanted: Offer, limit: int | None, *, base_fee: int) -> Offer | None:
    """`wanted` within `limit`; None when the limit does not even pay the base fee, so that nothing would be mined."""
    if limit is None or wanted.max_fee <= limit:
        return wanted
    if limit <= base_fee:
        return None
    return Offer(max_fee=limit, tip=min(wanted.tip, limit))


def raised(old: Offer, wanted: Offer, limit: int | None) -> Offer | None:
    """An offer that replaces `old` and is at least `wanted` as far as `limit` allows; None when there is no room."""
    least = Offer(max_fee=_eighth_more(old.max_fee), tip=_eighth_more(old.tip))
    if limit is not None and least.max_fee > limit:
        return None
    max_fee = max(least.max_fee, wanted.max_fee)
    if limit is not None:
        max_fee = min(max_fee, limit)
    return Offer(max_fee=max_fee, tip=max(least.tip, min(wanted.tip, max_fee)))


def is_priced_out(max_fee: int, base_fee: int) -> bool:
    """Whether a transaction cannot be mined in a block whose base fee may have risen by an eighth."""
    return max_fee < _eighth_more(base_fee)


def _eighth_more(amount: int) -> int:
    """`amount` and an eighth, rounded up, and never the same."""
    return amount + max((amount + 7) // 8, 1)

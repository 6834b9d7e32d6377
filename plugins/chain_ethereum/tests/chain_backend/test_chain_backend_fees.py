"""Offers: they only rise, keep the limits, and are the more generous the nearer a deadline is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perun_chain_ethereum.fees import GWEI, Limits, Offer, Urgency, is_priced_out, limited, offer, raised, urgency
from perun_chain_ethereum.opening import EthereumConfig

wei = st.integers(0, 10**15)
offers = st.tuples(wei, wei).map(lambda pair: Offer(max_fee=max(pair), tip=min(pair)))
limits = st.none() | st.integers(1, 10**16)


@given(old=offers, wanted=offers, limit=limits)
def test_a_replacement_rises_by_an_eighth_in_both_parts_or_is_not_made(
    old: Offer, wanted: Offer, limit: int | None
) -> None:
    new = raised(old, wanted, limit)
    if new is None:
        assert limit is not None and limit * 8 < 9 * old.max_fee + 16
        return
    assert 8 * new.max_fee >= 9 * old.max_fee and 8 * new.tip >= 9 * old.tip
    assert new.max_fee > old.max_fee and new.tip > old.tip
    assert new.tip <= new.max_fee
    assert limit is None or new.max_fee <= limit


@given(base_fee=wei, tip=wei, boost=st.integers(0, 8))
def test_more_urgent_offers_are_never_lower_and_outlast_the_next_block(base_fee: int, tip: int, boost: int) -> None:
    made = [offer(base_fee=base_fee, tip=tip, urgency=level, boost=boost) for level in Urgency]
    assert [one.max_fee for one in made] == sorted(one.max_fee for one in made)
    assert [one.tip for one in made] == sorted(one.tip for one in made)
    assert all(not is_priced_out(one.max_fee, base_fee) or base_fee < 8 for one in made)


@given(wanted=offers, limit=limits, base_fee=wei)
def test_an_offer_within_a_limit_can_be_mined_or_is_not_made(wanted: Offer, limit: int | None, base_fee: int) -> None:
    made = limited(wanted, limit, base_fee=base_fee)
    if made is None:
        assert limit is not None and limit <= base_fee
    else:
        assert made.tip <= made.max_fee <= (wanted.max_fee if limit is None else min(limit, wanted.max_fee))


@pytest.mark.parametrize(
    ("now", "deadline", "expected"),
    [
        (0, None, Urgency.CALM),
        (0, 1000, Urgency.HURRIED),
        (499, 1000, Urgency.HURRIED),
        (500, 1000, Urgency.URGENT),
        (0, 60, Urgency.URGENT),
        (999, 1000, Urgency.URGENT),
        (1000, 1000, Urgency.CALM),
    ],
)
def test_the_hurry_grows_with_the_deadline_and_ends_with_it(now: int, deadline: int | None, expected: Urgency) -> None:
    assert urgency(made=0, now=now, deadline=deadline) is expected


def test_only_urgency_lifts_the_soft_limit() -> None:
    both = Limits(soft=10 * GWEI, hard=100 * GWEI)
    assert [both.at(level) for level in Urgency] == [10 * GWEI, 10 * GWEI, 100 * GWEI]
    assert [Limits(hard=5).at(level) for level in Urgency] == [5, 5, 5]
    assert [Limits(soft=5).at(level) for level in Urgency] == [5, 5, None]


@pytest.mark.parametrize(
    "options",
    [{"max_fee_gwei": -1}, {"max_fee_gwei": 11, "hard_max_fee_gwei": 10}, {"reserve_factor": 0}, {"reorg_window": -1}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        EthereumConfig(**options)

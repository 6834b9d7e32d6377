"""By when somebody must watch again: the one number an operator has to know before a node goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from perun_core.channel import Dispute, DisputePhase
from perun_core.node.absence import back_before, shown_time
from perun_core.node.watcher import Watcher
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.events import ChainRegistered
from perun_core.testing.chain import START, MemoryChain
from perun_core.testing.conversation import opened_channel
from perun_core.testing.store import MemoryStore
from perun_core.values import Address

DURATION = 60
NOW = 5_000
ADJUDICATOR = Address(b"\xad" * 20)


def registered(version: int, *, timeout: int = NOW + 20, phase: DisputePhase = DisputePhase.DISPUTE) -> Dispute:
    return Dispute(True, timeout, DURATION, version, phase=phase)


@pytest.mark.parametrize("dispute", [None, Dispute(registered=False)], ids=["not asked", "not registered"])
def test_without_a_dispute_the_whole_challenge_duration_is_left(dispute: Dispute | None) -> None:
    assert back_before(challenge_duration=DURATION, version=3, dispute=dispute, as_of=NOW) == NOW + DURATION


def test_an_outdated_state_leaves_the_rest_of_its_dispute() -> None:
    assert back_before(challenge_duration=DURATION, version=3, dispute=registered(2), as_of=NOW) == NOW + 20


@pytest.mark.parametrize(
    "dispute",
    [registered(3), registered(4), registered(2, phase=DisputePhase.CONCLUDED)],
    ids=["the newest state", "a newer state", "an outcome"],
)
def test_nothing_is_lost_by_absence_when_the_contract_holds(dispute: Dispute) -> None:
    assert back_before(challenge_duration=DURATION, version=3, dispute=dispute, as_of=NOW) is None


def test_a_time_is_shown_as_people_read_it_and_one_beyond_all_calendars_as_a_number() -> None:
    assert shown_time(0) == "1970-01-01 00:00:00 UTC"
    assert shown_time(10**18) == f"block time {10**18}"


@pytest.fixture
async def chain() -> MemoryChain:
    return MemoryChain(PROFILE, Address(b"\x0a" * 20))


@pytest.fixture
async def watcher(chain: MemoryChain) -> AsyncIterator[Watcher]:
    watcher = Watcher(chain, MemoryStore(), ADJUDICATOR)
    following = asyncio.ensure_future(watcher.run())
    yield watcher
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def processed() -> None:
    """Everything that is possible without waiting for anybody has happened."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_watcher_with_nothing_to_watch_lets_everybody_go(watcher: Watcher) -> None:
    await processed()
    assert watcher.must_be_back_within() is None
    assert watcher.must_be_back_before() is None


async def test_a_watcher_counts_from_the_newest_block_it_has_seen(watcher: Watcher, chain: MemoryChain) -> None:
    params, tx = opened_channel()
    watcher.publish(params, tx, lambda event: None)
    await processed()
    assert watcher.must_be_back_before() == START + params.challenge_duration
    chain.mine(30)
    await processed()
    assert watcher.must_be_back_before() == START + 30 + params.challenge_duration


async def test_a_watcher_that_saw_its_newest_state_registered_lets_everybody_go(
    watcher: Watcher, chain: MemoryChain
) -> None:
    params, tx = opened_channel()
    assert tx.state is not None
    told: list[ChainRegistered] = []
    watcher.publish(params, tx, told.append)
    await processed()
    chain.set_dispute(tx.state.id, registered(0))
    await processed()
    assert told
    assert watcher.must_be_back_within() == params.challenge_duration
    assert watcher.must_be_back_before() is None
    watcher.forget(tx.state.id)
    assert watcher.must_be_back_within() is None

"""The watcher looks at many disputes at once, does not give up looking, tells the chain how urgent it is, and does not
forget a settled channel before no reorg can reopen it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from perun_core.channel import Dispute, DisputePhase, Params, Transaction
from perun_core.errors import NotReachable
from perun_core.node import watcher as module
from perun_core.node.watcher import AT_ONCE, Watcher
from perun_core.ports.chain import Sent
from perun_core.ports.store import Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.events import ChainRegistered, ChainUndone
from perun_core.protocol.records import read_settled_mark, settled_mark
from perun_core.testing.chain import START, MemoryChain
from perun_core.testing.conversation import KEYS, opened_channel, sign_with
from perun_core.testing.store import MemoryStore
from perun_core.values import Address, Bytes32, ChannelID

ADJUDICATOR = Address(b"\xad" * 20)
MANY = 3 * AT_ONCE + 1


class WatchedChain(MemoryChain):
    """Remembers how many questions waited at once, and the deadlines of registrations."""

    asked_now = 0
    asked_most = 0
    deadlines: tuple[int | None, ...] = ()

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        self.asked_now += 1
        self.asked_most = max(self.asked_most, self.asked_now)
        await asyncio.sleep(0)
        self.asked_now -= 1
        return await super().dispute(channel_id)

    async def register(
        self, params: Params, tx: Transaction, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Dispute:
        self.deadlines = (*self.deadlines, deadline)
        return await super().register(params, tx, sent=sent, deadline=deadline)


@pytest.fixture
async def chain() -> WatchedChain:
    return WatchedChain(PROFILE, Address(b"\x0a" * 20))


@pytest.fixture
async def watcher(chain: WatchedChain, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watcher]:
    monkeypatch.setattr(module, "RETRY", 0.01)
    watcher = Watcher(chain, MemoryStore(), ADJUDICATOR)
    following = asyncio.ensure_future(watcher.run())
    yield watcher
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def updated_channel(nonce: int, version: int) -> tuple[Params, Transaction]:
    params, tx = opened_channel(nonce=nonce)
    assert tx.state is not None
    state = replace(tx.state, version=version)
    return params, Transaction(state, tuple(sign_with(key, PROFILE.state_hash(state)) for key in KEYS))


async def test_disputes_of_many_channels_are_looked_up_some_at_a_time(chain: WatchedChain) -> None:
    watcher = Watcher(chain, MemoryStore(), ADJUDICATOR)
    told: set[int] = set()
    for nonce in range(1, MANY + 1):
        params, tx = opened_channel(nonce=nonce)
        assert tx.state is not None
        watcher.publish(params, tx, lambda event, nonce=nonce: told.add(nonce))  # type: ignore[misc]
        chain.set_dispute(tx.state.id, Dispute(True, START + 60, 60, 0))
    await watcher.look()
    assert len(told) == MANY
    assert 1 < chain.asked_most <= AT_ONCE


async def test_looking_goes_on_until_the_chain_answers(watcher: Watcher, chain: WatchedChain) -> None:
    params, tx = opened_channel()
    assert tx.state is not None
    told: list[ChainRegistered] = []
    watcher.publish(params, tx, told.append)
    chain.set_dispute(tx.state.id, Dispute(True, START + 60, 60, 0))
    chain.fail("dispute", NotReachable("away"), NotReachable("away"))
    async with asyncio.timeout(5):
        await watcher.look()
    assert told[0].dispute.registered


async def test_a_refutation_knows_its_deadline(watcher: Watcher, chain: WatchedChain) -> None:
    params, tx = updated_channel(1, 3)
    assert tx.state is not None
    refuted = asyncio.Event()

    def notified(event: ChainRegistered) -> None:
        if event.dispute.version == 3:
            refuted.set()

    watcher.publish(params, tx, notified)
    chain.set_dispute(tx.state.id, Dispute(True, START + 50, 60, 1))
    await watcher.look()
    async with asyncio.timeout(5):
        await refuted.wait()
    assert chain.deadlines == (START + 50,)


async def test_what_was_progressed_is_not_refuted(watcher: Watcher, chain: WatchedChain) -> None:
    params, tx = updated_channel(1, 3)
    assert tx.state is not None
    told: list[ChainRegistered] = []
    watcher.publish(params, tx, told.append)
    chain.set_dispute(tx.state.id, Dispute(True, START + 50, 60, 1, True, DisputePhase.FORCE_EXEC))
    await watcher.look()
    await processed()
    assert told and "register" not in chain.calls


# ---- settled channels ------------------------------------------------------------------------------------------------


class Home:
    """A watcher, what it stores, and what it says about one settled channel."""

    def __init__(self, chain: WatchedChain, store: MemoryStore) -> None:
        self.chain = chain
        self.store = store
        self.params, self.tx = opened_channel()
        assert self.tx.state is not None
        self.id = ChannelID(self.tx.state.id)
        self.holder = self.tx.state.allocation.assets[0].holder
        self.funding_id = PROFILE.funding_id(self.id, self.params.parts[0])
        self.undone: list[ChainUndone] = []
        self.told: list[ChainRegistered] = []
        self.for_good: list[ChannelID] = []
        self.concluded = Dispute(True, START, 60, 0, False, DisputePhase.CONCLUDED, Bytes32(bytes(32)))
        self.watcher = Watcher(chain, store, ADJUDICATOR, on_settled_for_good=self.for_good.append)

    def watch(self, since: int | None) -> None:
        self.watcher.publish(self.params, self.tx, self.told.append, on_undone=self.undone.append)
        self.watcher.settle(self.id, self.funding_id, since=since)

    async def marks(self) -> dict[ChannelID, int | None]:
        rows = await self.store.scan(Table.CURSORS, b"settled")
        return dict(read_settled_mark(key, value) for key, value in rows)


@pytest.fixture
async def home(chain: WatchedChain, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Home]:
    monkeypatch.setattr(module, "RETRY", 0.01)
    chain.reorg_window = 5
    home = Home(chain, MemoryStore())
    chain.set_dispute(home.id, home.concluded)
    await home.store.commit([settled_mark(home.id, 1)])
    home.watch(since=1)
    following = asyncio.ensure_future(home.watcher.run())
    await processed()
    yield home
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def processed() -> None:
    """Everything that is possible without waiting for anybody has happened."""
    for _ in range(80):
        await asyncio.sleep(0)


async def test_a_settled_channel_costs_nothing_until_its_window_ends_and_is_then_forgotten(home: Home) -> None:
    asked: list[ChannelID] = []
    dispute = home.chain.dispute
    home.chain.dispute = lambda channel_id: (asked.append(channel_id), dispute(channel_id))[1]  # type: ignore[method-assign]
    for _ in range(4):
        home.chain.mine()
        await processed()
    assert asked == [] and await home.marks() == {home.id: 1}
    home.chain.mine()
    await processed()
    assert asked == [home.id] and home.for_good == [home.id]
    assert await home.marks() == {} and home.undone == [] and home.told == []


async def test_a_settled_channel_is_at_no_stake(home: Home) -> None:
    assert home.watcher.must_be_back_within() is None and home.watcher.must_be_back_before() is None


async def test_an_undone_conclusion_is_told_and_the_channel_watched_like_any_other(home: Home) -> None:
    home.chain.undo(home.id, Dispute(registered=False))
    await processed()
    assert home.undone == [ChainUndone(Dispute(registered=False))] and not home.watcher.is_settled(home.id)
    assert home.watcher.must_be_back_within() == 60


async def test_an_outdated_state_that_a_reorg_brings_back_is_refuted(chain: WatchedChain, home: Home) -> None:
    params, tx = updated_channel(7, 3)
    assert tx.state is not None
    undone: list[ChainUndone] = []
    chain.set_dispute(tx.state.id, home.concluded)
    home.watcher.publish(params, tx, lambda event: None, on_undone=undone.append)
    home.watcher.settle(tx.state.id, home.funding_id, since=None)
    await processed()
    older = Dispute(True, chain.now + 50, 60, 1)
    chain.undo(tx.state.id, older)
    await processed()
    assert undone == [ChainUndone(older)] and chain.deadlines == (older.timeout,)


async def test_money_that_is_back_in_the_holder_at_the_end_of_the_window_is_noticed(home: Home) -> None:
    """A reorg may have taken back the withdrawal alone, which the adjudicator does not tell."""
    home.chain.give_holdings(home.holder, home.funding_id, 40)
    for _ in range(5):
        home.chain.mine()
    await processed()
    assert home.undone == [ChainUndone(home.concluded)] and home.for_good == []


async def test_what_came_back_at_once_is_left_alone_and_its_window_begins_anew(home: Home) -> None:
    home.chain.undo(home.id, home.concluded)
    await processed()
    height = (await home.chain.head()).number
    assert home.undone == [] and await home.marks() == {home.id: height}
    for _ in range(4):
        home.chain.mine()
        await processed()
    assert home.for_good == []
    home.chain.mine()
    await processed()
    assert home.for_good == [home.id]


async def test_news_of_a_reorg_survive_a_chain_that_cannot_be_read_at_that_moment(home: Home) -> None:
    """The feed is opened again, and does not tell them again."""
    home.chain.fail("dispute", NotReachable("away"), NotReachable("away"))
    home.chain.undo(home.id, Dispute(registered=False))
    async with asyncio.timeout(5):
        while not home.undone:  # noqa: ASYNC110 - the watcher pauses before it tries again
            await asyncio.sleep(0.01)
    assert home.undone == [ChainUndone(Dispute(registered=False))]


async def test_a_mark_without_a_block_counts_from_the_next_one(chain: WatchedChain, home: Home) -> None:
    params, tx = opened_channel(nonce=9)
    assert tx.state is not None
    chain.set_dispute(tx.state.id, home.concluded)
    home.watcher.publish(params, tx, lambda event: None)
    home.watcher.settle(tx.state.id, home.funding_id, since=None)
    for _ in range(6):
        assert home.watcher.is_settled(tx.state.id)
        chain.mine()
        await processed()
    assert not home.watcher.is_settled(tx.state.id)


async def test_a_conclusion_undone_before_everything_was_withdrawn_is_told(
    watcher: Watcher, chain: WatchedChain
) -> None:
    params, tx = opened_channel()
    assert tx.state is not None
    undone: list[ChainUndone] = []
    watcher.publish(params, tx, lambda event: None, on_undone=undone.append)
    await processed()
    chain.set_dispute(tx.state.id, Dispute(True, START, 60, 0, False, DisputePhase.CONCLUDED))
    await processed()
    chain.undo(tx.state.id, Dispute(registered=False))
    await processed()
    assert undone == [ChainUndone(Dispute(registered=False))]

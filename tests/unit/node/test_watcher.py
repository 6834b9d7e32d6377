"""The watcher looks at many disputes at once, does not give up looking, and tells the chain how urgent it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from perun_core.channel import Dispute, Params, Transaction
from perun_core.errors import NotReachable
from perun_core.node import watcher as module
from perun_core.node.watcher import AT_ONCE, Watcher
from perun_core.ports.chain import Sent
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.events import ChainRegistered
from perun_core.testing.chain import START, MemoryChain
from perun_core.testing.conversation import KEYS, opened_channel, sign_with
from perun_core.testing.store import MemoryStore
from perun_core.values import Address, ChannelID

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

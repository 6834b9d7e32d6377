"""Who registers an old state gains nothing by it (CHAIN.md 6.2: B16, B17, B24; PROTOCOL.md 7.8).

bob takes an old, fully signed state out of his own database, brings it to the chain past his node, and his node stays
silent. alice's node has the newest state registered in time, whatever stands in between, and every wei ends up where
the newest state says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from perun_core.protocol.records import ChannelRecord
from tests.chain.conftest import Town
from tests.chain.onlooker import (
    Purse,
    dispute_of,
    eventually,
    head_time,
    pass_time,
    register_directly,
    register_through_a_contract,
    stored,
)
from tests.integration.clients import User
from tests.integration.world import ETHER, Party, Person, open_channel, pay

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

DISPUTE, FORCEEXEC, CONCLUDED = range(3)
DURATION = 120


@dataclass
class Cheat:
    """A channel in which bob has paid most of his money to alice, and his record from before he did."""

    town: Town
    party: Party
    alice: Person
    bob: Person
    user: User
    channel: str
    old: ChannelRecord
    purses: tuple[Purse, Purse]

    @classmethod
    async def prepared(cls, town: Town, party: Party) -> Cheat:
        alice, bob = town.people(tokens=10 * ETHER)
        purses = (Purse(town.world, alice), Purse(town.world, bob))
        user, cheater = await party.join(alice, town.honest), await party.join(bob, town.other)
        channel = await open_channel(user, cheater, {"ETH": ("1", "3"), "PRN": ("2", "2")}, duration=DURATION)
        await pay(user, cheater, channel, ("ETH", "bob", "0.5"))
        old = await stored(bob, channel)
        assert old.current.state is not None and old.current.state.version == 1
        await pay(cheater, user, channel, ("ETH", "alice", "2.5"), ("PRN", "alice", "1.5"))
        # From here on bob's node does nothing: only what alice's does can count.
        await cheater.leave(force=True)
        return cls(town, party, alice, bob, user, channel, old, purses)

    @property
    def dispute(self) -> tuple[int, int, int]:
        return dispute_of(self.town.world, self.channel)

    async def is_refuted(self) -> None:
        """The newest state is registered before the time is over."""
        await eventually(lambda: self.dispute[1] == 2)
        assert self.dispute[2] == DISPUTE and head_time(self.town.world) < self.dispute[0]

    async def pays_the_newest_state(self) -> None:
        """alice's node concludes and withdraws by itself; bob gets his share of the same state when he is back."""
        world = self.town.world
        if (left := self.dispute[0] - head_time(world)) > 0:
            await pass_time(world, left)
        await eventually(lambda: self.dispute[2] == CONCLUDED)
        await eventually(lambda: self.purses[0].gained() == 2 * ETHER)
        await self.party.join(self.bob, self.town.other)
        await eventually(lambda: self.purses[1].gained() == -2 * ETHER)
        await eventually(lambda: self.purses[1].gained_tokens() == -1.5 * ETHER)
        assert self.purses[0].gained_tokens() == 1.5 * ETHER


@pytest.fixture
async def cheat(town: Town, party: Party) -> Cheat:
    return await Cheat.prepared(town, party)


async def test_an_old_state_is_refuted_at_once(cheat: Cheat) -> None:
    """B24."""
    await register_directly(cheat.town.world, cheat.bob, cheat.old)
    assert cheat.dispute[1] in (1, 2)
    registered_at = cheat.dispute[0] - DURATION
    await cheat.is_refuted()
    assert head_time(cheat.town.world) - registered_at < 10
    await cheat.pays_the_newest_state()


async def test_an_old_state_registered_while_the_node_was_killed_is_refuted_after_its_restart(cheat: Cheat) -> None:
    """B17."""
    cheat.town.honest.running.kill()
    await register_directly(cheat.town.world, cheat.bob, cheat.old)
    await pass_time(cheat.town.world, DURATION // 2)
    assert cheat.dispute[1] == 1
    cheat.town.honest.start()
    await cheat.party.join(cheat.alice, cheat.town.honest)
    await cheat.is_refuted()
    await cheat.pays_the_newest_state()


async def test_a_refutation_in_the_last_possible_second_counts(cheat: Cheat) -> None:
    """B17: the chain was away nearly as long as the dispute lasts, and blocks come slowly."""
    world, proxy = cheat.town.world, cheat.town.proxy
    with proxy.outage():
        await register_directly(world, cheat.bob, cheat.old)
        await pass_time(world, DURATION - 30)
        end = cheat.dispute[0]
        world.rpc("evm_setIntervalMining", 0)
    await eventually(lambda: int(world.rpc("txpool_status")["pending"], 16) == 1, timeout=25)
    world.rpc("evm_setNextBlockTimestamp", end - 1)
    world.rpc("evm_mine")
    assert head_time(world) == end - 1
    assert cheat.dispute == (end, 2, DISPUTE)
    world.rpc("evm_setIntervalMining", 1)
    await cheat.pays_the_newest_state()


async def test_a_refutation_that_could_not_be_sent_at_first_is_sent_again(cheat: Cheat) -> None:
    """B17: the first attempts meet a node that takes no transaction."""
    fault = cheat.town.proxy.add(method="eth_sendRawTransaction", error=(-32005, "rate limit exceeded"), times=3)
    await register_directly(cheat.town.world, cheat.bob, cheat.old)
    await cheat.is_refuted()
    assert fault.used == 3
    await cheat.pays_the_newest_state()


async def test_old_states_registered_through_contracts_are_refuted_all_the_same(town: Town, party: Party) -> None:
    """B16: nothing depends on the calldata of the transaction: empty, shorter than a selector, foreign."""
    world = town.world
    calldata = (b"", b"\x01\x02\x03", bytes.fromhex("e30194b7") + b"\xff" * 64)
    cheats = await asyncio.gather(*(Cheat.prepared(town, party) for _ in calldata))
    for cheat, data in zip(cheats, calldata, strict=True):
        tx = await register_through_a_contract(world, cheat.bob, cheat.old, data)
        sent = world.rpc("eth_getTransactionByHash", tx)
        assert sent["to"].lower() != world.contracts["adjudicator"].lower()
        assert bytes.fromhex(sent["input"][2:]) == data
    for cheat in cheats:
        await cheat.is_refuted()
    await asyncio.gather(*(cheat.pays_the_newest_state() for cheat in cheats))


async def test_two_old_states_registered_in_one_block_are_both_refuted(town: Town, party: Party) -> None:
    """B16."""
    cheats = await asyncio.gather(Cheat.prepared(town, party), Cheat.prepared(town, party))
    world = town.world
    world.rpc("evm_setIntervalMining", 0)
    registering = [asyncio.ensure_future(register_directly(world, cheat.bob, cheat.old)) for cheat in cheats]
    await eventually(lambda: int(world.rpc("txpool_status")["pending"], 16) == 2)
    world.rpc("evm_mine")
    world.rpc("evm_setIntervalMining", 1)
    await asyncio.gather(*registering)
    for cheat in cheats:
        await cheat.is_refuted()
    await asyncio.gather(*(cheat.pays_the_newest_state() for cheat in cheats))

"""The main stories, on the embedded chain and on a real node: two users open, pay and settle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.world import ETHER, Party, World, gathering, open_channel, pay, settle

TOKENS = 20 * ETHER
GAS_LIMIT = ETHER // 50
"""Far above what a channel's transactions cost on these chains."""


@pytest.fixture
async def party(real_world: World) -> AsyncIterator[Party]:
    async with gathering(real_world) as party:
        yield party


async def test_two_nodes_open_pay_and_settle_in_two_currencies_and_no_wei_is_lost(party: Party) -> None:
    world = party.world
    people = world.friends("alice", "bob", tokens=TOKENS)
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    before = [(world.balance(one.on_chain), world.tokens(one.on_chain)) for one in people]
    channel = await open_channel(alice, bob, {"ETH": ("1", "2"), "PRN": ("10", "0")})
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    await pay(bob, alice, channel, ("ETH", "alice", "1.5"))
    await pay(alice, bob, channel, ("PRN", "bob", "4"), ("ETH", "self", "0.125"))
    agreed = await alice.info(channel)
    assert agreed.balances == {"ETH": ("2.375", "0.625"), "PRN": ("6", "4")} and agreed.version == "3"
    assert (await bob.info(channel)).balances == agreed.balances

    closed, _ = await settle(bob, alice, channel)
    assert closed.balances == agreed.balances
    after = [(world.balance(one.on_chain), world.tokens(one.on_chain)) for one in people]
    assert after[0][1] - before[0][1] == -4 * ETHER and after[1][1] - before[1][1] == 4 * ETHER
    gained = [new[0] - old[0] for new, old in zip(after, before, strict=True)]
    assert 1.375 * ETHER - GAS_LIMIT < gained[0] < 1.375 * ETHER
    assert -1.375 * ETHER - GAS_LIMIT < gained[1] < -1.375 * ETHER
    assert await alice.client.channels(alice.session) == await bob.client.channels(bob.session) == ()


async def test_two_sessions_of_one_node_both_propose_and_each_closes_one(party: Party) -> None:
    alice, bob = await party.two()
    first, second = await asyncio.gather(
        open_channel(alice, bob, {"ETH": ("1", "1")}), open_channel(bob, alice, {"ETH": ("3", "0")}, peer="alice")
    )
    assert (await alice.info(second)).parts == ("bob", "self")
    await asyncio.gather(
        pay(alice, bob, first, ("ETH", "bob", "0.5")),
        pay(bob, alice, second, ("ETH", "alice", "2")),
    )
    listed = await alice.client.channels(alice.session)
    assert sorted(each.id for each in listed) == sorted((first, second))
    await asyncio.gather(settle(alice, bob, first), settle(alice, bob, second))
    assert await alice.leave() == await bob.leave() == ()


async def test_a_refused_closing_is_settled_on_chain_with_the_last_agreed_state(party: Party) -> None:
    """Nobody can keep anybody's money: register, wait by block time, conclude, withdraw."""
    world = party.world
    people = world.friends("alice", "bob")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=6)
    await pay(alice, bob, channel, ("ETH", "bob", "0.75"))
    before = [world.balance(one.on_chain) for one in people]
    updates = await bob.client.updates(bob.session, channel)

    async def refuse() -> None:
        update = await updates.next()
        assert update.type == "final"
        await bob.client.respond_update(bob.session, channel, update.id, accept=False)

    closed, _ = await asyncio.gather(alice.close(channel), refuse())
    assert closed.balances == {"ETH": ("0.25", "1.75")}
    told = await updates.next(60)
    assert told.type == "closed" and told.error is None and told.channel.balances == closed.balances
    await updates.ended()
    gained = [world.balance(one.on_chain) - old for one, old in zip(people, before, strict=True)]
    assert 0.25 * ETHER - GAS_LIMIT < gained[0] < 0.25 * ETHER
    assert 1.75 * ETHER - GAS_LIMIT < gained[1] < 1.75 * ETHER

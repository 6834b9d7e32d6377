"""What survives: closing and reopening, a killed node, an orderly end (API.md 5.4)."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from tests.integration.clients import ClientError
from tests.integration.world import Party, World, open_channel, pay, refused, running_world, settle, until

END_BOUND = 20.0
"""Seconds an orderly end may take with sessions, streams and a waiting call open."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes, of which the first is ended and started again by these tests."""
    with running_world("embedded", tmp_path_factory.mktemp("restarts"), nodes=2) as world:
        yield world


@pytest.fixture(autouse=True)
def first_node_serves(world: World) -> Iterator[None]:
    """Whatever a test did to it, the next one finds the first node running."""
    yield
    process = world.nodes[0].process
    if process is None or process.process.poll() is not None:
        world.nodes[0].start()


async def test_a_reopened_session_has_its_channels_in_order_and_pays_on(party: Party) -> None:
    people = party.world.friends("alice", "bob")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    first = await open_channel(alice, bob, {"ETH": ("1", "1")})
    second = await open_channel(bob, alice, {"ETH": ("1", "0")}, peer="alice")
    await pay(alice, bob, first, ("ETH", "bob", "0.5"))
    before = await alice.client.channels(alice.session)
    assert [each.id for each in before] == [first, second]
    assert await alice.leave(force=True) == before

    with pytest.raises(ClientError) as caught:
        await bob.pay(first, [("ETH", "self", "0.1")])
    refused(caught.value, 101, {"peerAlias": "alice"})

    again = await party.join(people[0], 0)
    assert again.session != alice.session and again.restored == before
    await pay(bob, again, first, ("ETH", "alice", "0.25"))
    await pay(again, bob, second, ("ETH", "self", "0.125"))
    assert (await again.info(first)).balances == {"ETH": ("0.75", "1.25")}
    await settle(again, bob, first)
    assert [each.id for each in await again.leave(force=True)] == [second]
    assert [each.id for each in (await party.join(people[0], 0)).restored] == [second]


async def test_after_a_kill_the_last_acknowledged_payment_is_there(party: Party) -> None:
    world = party.world
    people = world.friends("alice", "bob")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=30)

    async def accept_everything() -> None:
        async for update in await bob.client.updates(bob.session, channel):
            if update.type == "open":
                await bob.client.respond_update(bob.session, channel, update.id, accept=True)

    accepting = asyncio.ensure_future(accept_everything())
    acknowledged = [await alice.pay(channel, [("ETH", "bob", "0.01")]) for _ in range(5)][-1]
    world.nodes[0].running.kill()
    world.nodes[0].start()
    again = await party.join(people[0], 0)
    assert again.restored == (acknowledged,)
    paid = await again.pay(channel, [("ETH", "bob", "0.01")])
    assert paid.version == "6" and paid == await again.info(channel)
    await bob.client.unsubscribe_updates(bob.session, channel)
    await accepting
    await pay(bob, again, channel, ("ETH", "alice", "0.06"))
    closed, _ = await settle(bob, again, channel)
    assert closed.balances == {"ETH": ("1", "1")}


async def test_a_node_killed_between_two_answers_heals_with_its_peer(party: Party) -> None:
    """Killed while a payment is on its way: both sides agree afterwards, whether it happened or not."""
    world = party.world
    people = world.friends("alice", "bob", response_timeout="10s")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=30)
    updates = await bob.client.updates(bob.session, channel)
    paying = asyncio.ensure_future(alice.pay(channel, [("ETH", "bob", "0.5")]))
    update = await updates.next()
    world.nodes[0].running.kill()
    await asyncio.gather(paying, return_exceptions=True)
    try:
        await bob.client.respond_update(bob.session, channel, update.id, accept=True)
    except ClientError as error:
        refused(error, 101)
    await bob.client.unsubscribe_updates(bob.session, channel)
    world.nodes[0].start()
    again = await party.join(people[0], 0)
    theirs = await bob.info(channel)

    async def agreed() -> bool:
        return await again.info(channel) == theirs._replace(parts=("self", "bob"))

    await until(agreed)
    agreed = await pay(again, bob, channel, ("ETH", "bob", "0.125"))
    assert agreed.balances == {"ETH": ("0.375", "1.625")}


async def test_sigterm_ends_the_node_in_order_and_loses_nothing(party: Party) -> None:
    world = party.world
    people = world.friends("alice", "bob")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=30)
    agreed = await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    open_stream = await alice.client.proposals(alice.session)
    waiting = asyncio.ensure_future(alice.pay(channel, [("ETH", "bob", "0.125")]))
    updates = await bob.client.updates(bob.session, channel)
    await updates.next()

    node = world.nodes[0].running
    begun = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    await until(lambda: node.process.poll() is not None, END_BOUND)
    assert node.process.returncode == 0 and time.monotonic() - begun < END_BOUND
    assert "Traceback" not in node.output
    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], Exception)
    with pytest.raises(Exception, match="UNAVAILABLE"):
        await open_stream.next()

    world.nodes[0].start()
    again = await party.join(people[0], 0)
    assert (await again.info(channel)).balances == agreed.balances


async def test_one_session_s_broken_peer_does_not_disturb_another_session(party: Party) -> None:
    """carol's peer sends rubbish and never answers, while alice pays bob on the same node."""
    world = party.world
    carol_files = world.person("carol")
    alice, bob = await party.two(nodes=(0, 1))
    carol = await party.join(carol_files, 0)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    host, port = carol_files.comm_address.split(":")

    async def break_carol() -> None:
        for number in range(40):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(bytes((number,)) * 4096)
            try:
                await writer.drain()
                await reader.read()
            except ConnectionError:
                pass
            writer.close()

    breaking = asyncio.ensure_future(break_carol())
    for number in range(5):
        paid = await pay(alice, bob, channel, ("ETH", "bob", "0.01"))
        assert paid.version == str(number + 1)
    await breaking
    assert (await carol.client.get_peer(carol.session, "self")).comm_address == carol_files.comm_address
    await carol.leave()
    assert (await alice.info(channel)).version == "5"

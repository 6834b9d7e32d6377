"""Nothing is forgotten, as clients see it: the persistence and recovery scenarios of API.md 7.6 and 7.8, by number.

Two nodes, each with its own user, on the embedded chain. Everything is done through the published API; files of a
session are changed only as its owner could, and the chain is looked at by an onlooker.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import grpc.aio
import pytest

from tests.chain.onlooker import Purse, dispute_of, register_directly, stored
from tests.integration.clients import Channel, Client, ClientError, Update, User
from tests.integration.world import (
    ETHER,
    Party,
    Person,
    World,
    open_channel,
    pay,
    refused,
    running_world,
    settle,
    until,
)
from tests.servers.fault_proxy import FaultProxy

pytestmark = pytest.mark.slow

DURATION = 10
"""Challenge duration in seconds; the embedded chain's clock is the wall clock."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes; the tests end and start them."""
    with running_world("embedded", tmp_path_factory.mktemp("persistence"), nodes=2) as world:
        yield world


@pytest.fixture(autouse=True)
def nodes_serve(world: World) -> Iterator[None]:
    """Whatever a test did to them, the next one finds both nodes running."""
    yield
    for node in world.nodes[:2]:
        if node.process is None or node.process.process.poll() is not None:
            node.start()


@pytest.fixture
def proxy(world: World) -> Iterator[FaultProxy]:
    """Stands between a session and the chain, for whoever is configured to use it."""
    with FaultProxy(world.http_url) as proxy:
        yield proxy


async def joined(party: Party, **terms: Any) -> tuple[tuple[Person, Person], User, User]:
    """alice at the first node and bob at the second."""
    alice, bob = party.world.friends("alice", "bob", **terms)
    return (alice, bob), await party.join(alice, 0), await party.join(bob, 1)


@asynccontextmanager
async def another_client(party: Party, user: User, node: int) -> AsyncIterator[User]:
    """One more client program of the same user, which goes away at the end."""
    async with Client(party.world.nodes[node].port) as client:
        yield User(client, user.session)


async def once_free(subscribe: Callable[[], Awaitable[Channel]]) -> Channel:
    """What `subscribe` gives once the node noticed that the earlier subscriber went away."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await subscribe()
            except ClientError as error:
                refused(error, 202)
                await asyncio.sleep(0.05)


async def closed_notice(user: User, channel: str) -> Update:
    """Wait for the news that the channel is closed."""
    updates = await user.client.updates(user.session, channel)
    async for update in updates:
        if update.type == "closed":
            return update
    raise AssertionError("the stream ended without the news")


async def gone(user: User, channel: str) -> bool:
    """Whether the user's list has no such channel."""
    return all(each.id != channel for each in await user.client.channels(user.session))


def same(one: Channel, other: Channel) -> bool:
    """Whether two users see the same state."""
    return (one.id, one.version, one.balances) == (other.id, other.version, other.balances)


# ---- 7.6 Persistence -------------------------------------------------------------------------------------------------


async def test_r1_both_channels_are_restored_in_order_with_equal_state(party: Party) -> None:
    (person, _), alice, bob = await joined(party)
    first = await open_channel(alice, bob, {"ETH": ("1", "2")})
    second = await open_channel(bob, alice, {"ETH": ("1", "0")}, peer="alice")
    await pay(alice, bob, first, ("ETH", "bob", "0.5"))
    before = await alice.client.channels(alice.session)
    assert [each.id for each in before] == [first, second]
    assert await alice.leave(force=True) == before
    with pytest.raises(ClientError) as caught:
        await alice.info(first)
    refused(caught.value, 204)
    again = await party.join(person, 0)
    assert again.restored == before and again.session != alice.session
    assert await again.client.channels(again.session) == before


async def test_r2_a_session_whose_peers_are_forgotten_opens_and_shows_them_by_address(party: Party) -> None:
    (person, peer), alice, bob = await joined(party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "2")}, duration=DURATION)
    await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    await alice.leave(force=True)
    person.know()
    again = await party.join(person, 0)
    (restored,) = again.restored
    assert restored.id == channel and restored.version == "1"
    assert restored.balances == {"ETH": ("0.5", "2.5")}
    mine, theirs = restored.parts
    assert mine == "self" and theirs.lower() == peer.off_chain.lower()
    purse = Purse(party.world, person)
    closed, agreed = await settle(bob, again, channel)
    assert same(closed, agreed)
    await until(lambda: purse.gained() == ETHER // 2)


async def test_r3_a_database_path_that_is_a_file_is_named(party: Party, tmp_path: Path) -> None:
    person = party.world.person("alice")
    file = tmp_path / "database"
    file.write_text("not a directory")
    person.configure(databasedir=str(file))
    with pytest.raises(ClientError) as caught:
        await party.join(person, 0)
    refused(caught.value, 205, {"name": "databaseDir", "value": str(file)})
    assert file.read_text() == "not a directory"
    person.configure(databasedir=str(tmp_path / "elsewhere"))
    assert (await party.join(person, 0)).restored == ()


async def test_r4_after_reopening_a_payment_and_the_closing_succeed(party: Party) -> None:
    people, alice, bob = await joined(party)
    purses = [Purse(party.world, person) for person in people]
    channel = await open_channel(alice, bob, {"ETH": ("1", "2")})
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    await alice.leave(force=True)
    alice = await party.join(people[0], 0)
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    await pay(bob, alice, channel, ("ETH", "alice", "0.125"))
    closed, agreed = await settle(alice, bob, channel)
    assert same(closed, agreed) and closed.balances == {"ETH": ("0.625", "2.375")}
    await until(lambda: [purse.gained() for purse in purses] == [-3 * ETHER // 8, 3 * ETHER // 8])
    await alice.leave()
    assert (await party.join(people[0], 0)).restored == ()


# ---- 7.8 Recovery ----------------------------------------------------------------------------------------------------


async def test_x1_what_came_while_no_client_listened_is_delivered_to_the_next(party: Party) -> None:
    _, alice, bob = await joined(party, response_timeout="20s")
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    async with another_client(party, bob, 1) as program:
        await program.client.updates(bob.session, channel)
        await program.client.proposals(bob.session)
    paying = asyncio.ensure_future(alice.pay(channel, [("ETH", "bob", "0.5")]))
    proposing = asyncio.ensure_future(alice.propose("bob", {"ETH": ("1", "0")}))
    accepted = await once_free(lambda: bob.answer_update(channel, accept=True))
    assert same(await paying, accepted)
    opened = await once_free(lambda: bob.answer_proposal(accept=True))
    assert (await proposing).id == opened.id


async def test_x2_an_opening_goes_on_when_its_client_went_away_after_the_deposit(
    party: Party, proxy: FaultProxy
) -> None:
    alice_files, bob_files = party.world.friends("alice", "bob")
    bob_files.configure(chainurl=proxy.ws)
    alice, bob = await party.join(alice_files, 0), await party.join(bob_files, 1)
    gate = Event()
    held = party.world.balance(party.world.contracts["eth"])
    with proxy.failing(method="eth_sendRawTransaction", gate=gate):
        async with another_client(party, alice, 0) as program:
            proposing = asyncio.ensure_future(program.propose("bob", {"ETH": ("1", "2")}, 120))
            accepting = asyncio.ensure_future(bob.answer_proposal(accept=True))
            await until(lambda: party.world.balance(party.world.contracts["eth"]) == held + ETHER)
            proposing.cancel()
        gate.set()
        accepted = await accepting

    async def listed() -> bool:
        return [each.id for each in await alice.client.channels(alice.session)] == [accepted.id]

    await until(listed)
    assert (await pay(alice, bob, accepted.id, ("ETH", "bob", "1"))).balances == {"ETH": ("0", "3")}


async def test_x3_a_closing_goes_on_when_its_client_went_away(party: Party, proxy: FaultProxy) -> None:
    alice_files, bob_files = party.world.friends("alice", "bob")
    alice_files.configure(chainurl=proxy.ws)
    alice, bob = await party.join(alice_files, 0), await party.join(bob_files, 1)
    purse = Purse(party.world, alice_files)
    channel = await open_channel(alice, bob, {"ETH": ("1", "2")}, duration=120)
    notice = asyncio.ensure_future(closed_notice(alice, channel))
    gate = Event()
    with proxy.failing(method="eth_sendRawTransaction", gate=gate) as held:
        async with another_client(party, alice, 0) as program:
            closing = asyncio.ensure_future(program.close(channel))
            agreeing = asyncio.ensure_future(bob.answer_update(channel, accept=True))
            await until(lambda: held.used > 0)
            closing.cancel()
        gate.set()
        news = await asyncio.wait_for(notice, 60)
    assert news.error is None and news.channel.balances == {"ETH": ("1", "2")}
    assert (await agreeing).balances == {"ETH": ("1", "2")}
    assert purse.gained() == 0 and await gone(alice, channel)


async def test_x6_two_who_pay_at_once_agree_afterwards(party: Party) -> None:
    _, alice, bob = await joined(party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    answering = [asyncio.ensure_future(_accept_all(user, channel)) for user in (alice, bob)]
    paid = await asyncio.gather(
        alice.pay(channel, [("ETH", "bob", "0.5")]),
        bob.pay(channel, [("ETH", "alice", "0.25")]),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Channel) for result in paid) <= 1
    assert all(isinstance(result, (Channel, ClientError)) for result in paid)

    async def agreed() -> bool:
        return same(await alice.info(channel), await bob.info(channel))

    await until(agreed)
    expected = {"0": ("1", "1"), "1": ("0.5", "1.5") if isinstance(paid[0], Channel) else ("1.25", "0.75")}
    final = await alice.info(channel)
    assert final.version == str(sum(isinstance(result, Channel) for result in paid))
    assert final.balances == {"ETH": expected[final.version]}
    for task in answering:
        task.cancel()
    await asyncio.gather(*answering, return_exceptions=True)


async def _accept_all(user: User, channel: str) -> None:
    async for update in await user.client.updates(user.session, channel):
        with suppress(ClientError):
            await user.client.respond_update(user.session, channel, update.id, accept=True)


async def test_x7_a_channel_in_a_currency_registered_at_run_time_is_restored_and_watched(party: Party) -> None:
    world = party.world
    plain = world.node("plain", asseterc20s={}).start()
    token, holder = world.contracts["token"], world.contracts["erc20"]
    assert await (await party.client(plain)).register_currency(token, holder) == "PRN"
    alice_files, bob_files = world.friends("alice", "bob", tokens=10 * ETHER)
    purses = [Purse(world, person) for person in (alice_files, bob_files)]
    alice, bob = await party.join(alice_files, plain), await party.join(bob_files, 1)
    channel = await open_channel(alice, bob, {"PRN": ("2", "3")}, duration=DURATION)
    old = await stored(bob_files, channel)
    await pay(bob, alice, channel, ("PRN", "alice", "1.5"))
    await bob.leave(force=True)
    plain.running.kill()
    plain.start()
    await register_directly(world, bob_files, old)
    alice = await party.join(alice_files, plain)
    (restored,) = alice.restored
    assert restored.id == channel and restored.version == "1"
    await until(lambda: dispute_of(world, channel)[1] == 1)
    await until(lambda: purses[0].gained_tokens() == 3 * ETHER // 2)
    await party.join(bob_files, 1)
    await until(lambda: purses[1].gained_tokens() == -3 * ETHER // 2)


async def test_x8_an_old_state_registered_while_the_chain_was_away_is_refuted(party: Party, proxy: FaultProxy) -> None:
    world = party.world
    alice_files, bob_files = world.friends("alice", "bob")
    alice_files.configure(chainurl=proxy.ws)
    purses = [Purse(world, person) for person in (alice_files, bob_files)]
    alice, bob = await party.join(alice_files, 0), await party.join(bob_files, 1)
    channel = await open_channel(alice, bob, {"ETH": ("1", "2")}, duration=DURATION)
    old = await stored(bob_files, channel)
    await pay(bob, alice, channel, ("ETH", "alice", "1.5"))
    await bob.leave(force=True)
    with proxy.outage():
        await register_directly(world, bob_files, old)
        assert dispute_of(world, channel)[1] == 0
    await until(lambda: dispute_of(world, channel)[1] == 1)
    await until(lambda: purses[0].gained() == 3 * ETHER // 2)
    await party.join(bob_files, 1)
    await until(lambda: purses[1].gained() == -3 * ETHER // 2)


async def test_x9_streams_of_a_closed_session_end_in_order(party: Party) -> None:
    _, alice, bob = await joined(party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    proposals = await alice.client.proposals(alice.session)
    updates = await alice.client.updates(alice.session, channel)
    await alice.leave(force=True)
    await proposals.ended()
    await updates.ended()
    assert await proposals.call.code() is await updates.call.code() is grpc.StatusCode.OK


# ---- 5.4 Force close, reopen, restart --------------------------------------------------------------------------------


async def test_a_killed_node_is_like_a_session_closed_by_force(party: Party) -> None:
    (person, _), alice, bob = await joined(party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    before = await alice.client.channels(alice.session)
    party.world.nodes[0].running.kill()
    with pytest.raises(ClientError) as caught:
        await bob.pay(channel, [("ETH", "alice", "0.1")])
    refused(caught.value, 101, {"peerAlias": "alice"})
    party.world.nodes[0].start()
    again = await party.join(person, 0)
    assert again.restored == before
    assert (await pay(bob, again, channel, ("ETH", "alice", "0.25"))).version == "2"
    assert (await pay(again, bob, channel, ("ETH", "bob", "0.125"))).version == "3"


async def test_an_old_state_registered_while_the_session_was_closed_is_refuted(party: Party) -> None:
    world = party.world
    (person, cheater), alice, bob = await joined(party)
    purse = Purse(world, person)
    channel = await open_channel(alice, bob, {"ETH": ("1", "2")}, duration=DURATION)
    gained = purse.gained()
    old = await stored(cheater, channel)
    await pay(bob, alice, channel, ("ETH", "alice", "1.5"))
    await bob.leave(force=True)
    await alice.leave(force=True)
    await register_directly(world, cheater, old)
    assert dispute_of(world, channel)[1] == 0
    alice = await party.join(person, 0)
    await until(lambda: dispute_of(world, channel)[1] == 1)
    await until(lambda: purse.gained() - gained == 5 * ETHER // 2)


async def test_a_session_that_is_open_cannot_be_opened_again(party: Party) -> None:
    (person, _), alice, bob = await joined(party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    with pytest.raises(ClientError) as caught:
        await User.open(await party.client(0), str(person.session_file))
    refused(caught.value, 205)
    assert caught.value.info["name"] in ("commAddr", "databaseDir")
    assert json.loads(person.session_file.read_text())["user"]["alias"] == "alice"
    assert (await pay(alice, bob, channel, ("ETH", "bob", "0.5"))).version == "1"


@pytest.mark.parametrize("kept", [True, False])
async def test_x7_a_currency_registered_at_run_time_is_paid_in_after_a_restart(
    party: Party, tmp_path: Path, kept: bool
) -> None:
    """At once where the node keeps a database of its own; elsewhere as soon as somebody registers it again."""
    world = party.world
    terms = {"statedir": str(tmp_path / "state")} if kept else {}
    node = world.node(f"keeper-{kept}", asseterc20s={}, **terms).start()
    token, holder = world.contracts["token"], world.contracts["erc20"]
    assert await (await party.client(node)).register_currency(token, holder) == "PRN"
    alice_files, bob_files = world.friends("alice", "bob", tokens=10 * ETHER)
    alice, bob = await party.join(alice_files, node), await party.join(bob_files, 1)
    channel = await open_channel(alice, bob, {"PRN": ("2", "3")}, duration=DURATION)
    node.running.kill()
    node.start()
    alice = await party.join(alice_files, node)
    if kept:
        with pytest.raises(ClientError) as caught:
            await alice.client.register_currency(token, holder)
        refused(caught.value, 202, {"type": "currency", "id": "PRN"})
    else:
        with pytest.raises(ClientError) as caught:
            await alice.pay(channel, [("PRN", "bob", "0.5")])
        refused(caught.value, 201, {"type": "currency", "id": "PRN"})
        assert await alice.client.register_currency(token, holder) == "PRN"
    assert (await pay(alice, bob, channel, ("PRN", "bob", "0.5"))).balances == {"PRN": ("1.5", "3.5")}
    node.running.stop()

"""Scenarios with a chain in trouble (API.md 7.3, 7.5, 7.8): away, without blocks, or with a cheating peer on it.

alice reaches the chain through a proxy under the test's control; bob does so directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.integration.clients import ClientError, User
from tests.integration.fundwatch import Onlooker
from tests.integration.scenarios.conftest import Company
from tests.integration.scenarios.telling import ONE_TWO, failure
from tests.integration.world import ETHER, Person, World, open_channel, pay, running_world, until
from tests.servers.fault_proxy import FaultProxy

pytestmark = [pytest.mark.anvil, pytest.mark.slow]
GAS = ETHER // 20
SHORT = {"onchaintxtimeout": "2s"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, anvil: None) -> Iterator[World]:
    """Two nodes on a chain whose blocks can be stopped."""
    with running_world("anvil", tmp_path_factory.mktemp("trouble"), nodes=2) as world:
        yield world


@pytest.fixture
def proxy(world: World) -> Iterator[FaultProxy]:
    with FaultProxy(world.http_url) as proxy:
        yield proxy


@pytest.fixture(params=[0, 1], ids=["one-node", "two-nodes"])
async def company(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Company]:
    async with AsyncExitStack() as stack:
        yield Company(world, stack, bobs_node=request.param)
    mining(world, on=True)


def mining(world: World, *, on: bool) -> None:
    """Whether there are blocks."""
    world.rpc("evm_setIntervalMining", int(on))


def people(world: World, proxy: FaultProxy) -> tuple[Person, Person]:
    """alice behind the proxy, and bob; both impatient."""
    alice, bob = world.friends("alice", "bob")
    alice.configure(chainurl=proxy.ws, **SHORT)
    bob.configure(**SHORT)
    return alice, bob


async def answered(company: Company, a: User, b: User, *, trouble: bool) -> tuple[object, object]:
    """What both are told when alice proposes and bob accepts with the chain `company` chose in trouble by then."""
    proposals = await b.client.proposals(b.session)
    opening = asyncio.ensure_future(a.propose("bob", ONE_TWO, 3))
    proposal = await proposals.next()
    mining(company.world, on=not trouble)
    accepting = asyncio.ensure_future(b.client.respond_proposal(b.session, proposal.id, accept=True))
    results = await asyncio.gather(opening, accepting, return_exceptions=True)
    return results[0], results[1]


async def test_P15_deposits_that_are_not_mined_are_told_on_both_sides_and_come_back(
    company: Company, proxy: FaultProxy
) -> None:
    world = company.world
    alice, bob = people(world, proxy)
    before = [world.balance(one.on_chain) for one in (alice, bob)]
    a, b = await company.seat(alice, bob)
    for told in await answered(company, a, b, trouble=True):
        assert isinstance(told, ClientError) and told.code == 301, told
        assert told.info["txType"] == "fund" and told.info["txTimeout"] == "2s"
        assert str(told.info["txID"]).startswith("0x") and len(str(told.info["txID"])) == 66
    mining(world, on=True)
    for one, old in zip((alice, bob), before, strict=True):
        await until(lambda one=one, old=old: world.balance(one.on_chain) > old - GAS)  # type: ignore[misc]


@pytest.mark.parametrize("who", ["proposer", "responder"])
async def test_P16_a_chain_lost_while_funding_is_told_with_its_address(
    who: str, company: Company, proxy: FaultProxy
) -> None:
    world = company.world
    alice, bob = people(world, proxy)
    a, b = await company.seat(alice, bob)
    proposer, responder, peer = (a, b, "bob") if who == "proposer" else (b, a, "alice")
    proposals = await responder.client.proposals(responder.session)
    opening = asyncio.ensure_future(failure(proposer.propose(peer, ONE_TWO, 3)))
    proposal = await proposals.next()
    proxy.cut()
    answer = responder.client.respond_proposal(responder.session, proposal.id, accept=True)
    told = await asyncio.gather(opening, failure(answer))
    lost = told[0] if who == "proposer" else told[1]
    assert (lost.code, lost.info) == (302, {"chainURL": proxy.ws}), lost
    proxy.mend()


async def test_C14_D2_a_closing_that_is_not_mined_in_time_is_told_to_both_and_finished_later(
    company: Company, proxy: FaultProxy
) -> None:
    world = company.world
    alice, bob = people(world, proxy)
    before = [world.balance(one.on_chain) for one in (alice, bob)]
    a, b = await company.seat(alice, bob)
    channel = await open_channel(a, b, ONE_TWO)
    updates = await b.client.updates(b.session, channel)
    mining(world, on=False)
    ending = asyncio.ensure_future(failure(a.close(channel)))
    final = await updates.next()
    accepting = asyncio.ensure_future(failure(b.client.respond_update(b.session, channel, final.id, accept=True)))
    told = await ending
    assert (told.code, told.info["txType"], told.info["txTimeout"]) == (301, "concludeFinal", "2s")
    mining(world, on=True)
    accepting.cancel()
    for one, old in zip((alice, bob), before, strict=True):
        await until(lambda one=one, old=old: world.balance(one.on_chain) > old - GAS)  # type: ignore[misc]

    async def nothing_is_left() -> bool:
        return not await a.client.channels(a.session) and not await b.client.channels(b.session)

    await until(nothing_is_left)
    assert await a.leave() == ()


async def test_C14_D4_a_closing_with_the_chain_away_is_told_and_finished_later(
    company: Company, proxy: FaultProxy
) -> None:
    world = company.world
    alice, bob = people(world, proxy)
    a, b = await company.seat(alice, bob)
    channel = await open_channel(a, b, ONE_TWO)
    before = world.balance(alice.on_chain)
    updates = await b.client.updates(b.session, channel)
    proxy.cut()
    ending = asyncio.ensure_future(failure(a.close(channel)))
    final = await updates.next()
    answering = asyncio.ensure_future(b.client.respond_update(b.session, channel, final.id, accept=True))
    told = await ending
    assert (told.code, told.info) == (302, {"chainURL": proxy.ws})
    proxy.mend()
    await asyncio.gather(answering, return_exceptions=True)
    await until(lambda: world.balance(alice.on_chain) > before + ETHER - GAS)


async def test_X8_D4_D24_an_old_state_registered_while_the_chain_was_away_is_refuted(
    company: Company, proxy: FaultProxy
) -> None:
    """The honest party closes in the middle of it and is paid what is its own."""
    world = company.world
    alice, bob = people(world, proxy)
    onlooker, port = Onlooker(), next(world.free_ports)
    bob.configure(watchertype="grpc", watcherurl=f"127.0.0.1:{port}", watcherapikey="bob's")
    service = world.node(f"service{company.bobs_node}")
    world.nodes.remove(service)
    service.service = "fundwatch"
    service.start()
    try:
        await _cheated(company, proxy, alice, bob, onlooker, port, service.port)
    finally:
        service.running.stop()


async def _cheated(
    company: Company, proxy: FaultProxy, alice: Person, bob: Person, onlooker: Onlooker, port: int, service_port: int
) -> None:
    from perun_api_grpc.pb import funding_service_pb2 as fund
    from tests.integration.clients import Client
    from tests.integration.fundwatch import services

    world = company.world
    async with onlooker.serving(port):
        a, b = await company.seat(alice, bob)
        channel = await open_channel(a, b, ONE_TWO, duration=12)
        await pay(b, a, channel, ("ETH", "alice", "1.5"))
        await until(lambda: onlooker.knows(channel, 1))
        before = world.balance(alice.on_chain)
        await b.leave(force=True)
    accomplice = world.person("accomplice")
    proxy.cut()
    async with Client(service_port) as client, services(service_port) as (funding, _):
        session, _ = await client.open_session(str(accomplice.session_file))
        answer = await funding.Register(fund.RegisterReq(sessionID=session, adjReq=onlooker.request(channel, 0, 1)))
        assert not answer.HasField("error"), answer
        proxy.mend()
        closed = await a.close(channel)
        assert closed.version == "1" and closed.balances == {"ETH": ("2.5", "0.5")}
        assert before + 25 * ETHER // 10 - GAS < world.balance(alice.on_chain) < before + 25 * ETHER // 10
        await client.close_session(session, force=True)

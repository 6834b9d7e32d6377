"""One node funds and watches for users of another (API.md 2.6, 2.7): on a real chain, over the published services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from perun_api_grpc.pb import funding_service_pb2 as fund
from perun_api_grpc.pb import sdktypes_pb2 as sdk
from perun_api_grpc.pb import watching_service_pb2 as watch
from tests.integration.clients import User
from tests.integration.fundwatch import Onlooker, events_of, lend_keys, services
from tests.integration.world import ETHER, Party, Person, World, open_channel, pay, running_world, settle, until

GAS = ETHER // 50


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes for users, and a third one that funds and watches for others."""
    with running_world("embedded", tmp_path_factory.mktemp("fundwatch"), nodes=2) as world:
        service = world.node("service")
        service.service = "fundwatch"
        service.start()
        yield world


@pytest.fixture(autouse=True)
def all_nodes_serve(world: World) -> Iterator[None]:
    yield
    for node in world.nodes:
        if node.process is None or node.process.process.poll() is not None:
            node.start()


class Desk:
    """The third node with a session, and its two services."""

    def __init__(self, party: Party, keeper: Person, user: User, funding: Any, watching: Any) -> None:
        self.party, self.keeper, self.user, self.funding, self.watching = party, keeper, user, funding, watching

    @property
    def session(self) -> str:
        return self.user.session

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.party.world.nodes[2].port}"

    async def reopen(self) -> None:
        """Open the session again, after its node was started anew."""
        self.user = await self.party.join(self.keeper, 2)


@pytest.fixture
async def desk(party: Party) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        funding, watching = await stack.enter_async_context(services(party.world.nodes[2].port))
        keeper = party.world.person("keeper", ether=20)
        yield Desk(party, keeper, await party.join(keeper, 2), funding, watching)


# ---- a session that has others fund it ------------------------------------------------------------------------------


async def test_a_user_without_money_opens_pays_and_settles_on_the_account_of_a_remote_funder(desk: Desk) -> None:
    world = desk.party.world
    alice = world.person("alice", ether=0)
    bob = world.person("bob")
    alice.know(bob)
    bob.know(alice)
    lend_keys(alice, to=desk.keeper)
    alice.configure(fundingtype="remote", fundingurl=desk.url, fundingapikey=desk.session)
    user, peer = await desk.party.join(alice, 0), await desk.party.join(bob, 1)
    keeper, before = desk.keeper.on_chain, world.balance(desk.keeper.on_chain)

    agreed = await open_channel(user, peer, {"ETH": ("2", "1")})
    refused = await open_channel(peer, user, {"ETH": ("1", "3")}, duration=4, peer="alice")
    assert before - GAS < world.balance(keeper) + 5 * ETHER < before
    await pay(user, peer, agreed, ("ETH", "bob", "0.5"))
    await pay(peer, user, refused, ("ETH", "alice", "0.25"))
    await settle(user, peer, agreed)
    assert before - GAS < world.balance(keeper) + 3 * ETHER + ETHER // 2 < before

    closing = asyncio.ensure_future(user.close(refused))
    await peer.answer_update(refused, accept=False)
    closed = await closing
    assert closed.balances == {"ETH": ("0.75", "3.25")} and closed.version == "1"
    await until(lambda: before - GAS < world.balance(keeper) + ETHER // 4 < before)
    assert world.balance(alice.on_chain) == 0


async def test_a_funder_that_is_not_there_is_said_and_nothing_is_stuck(desk: Desk) -> None:
    world = desk.party.world
    alice, bob = world.person("alice", ether=0), world.person("bob")
    alice.know(bob)
    bob.know(alice)
    alice.configure(fundingtype="remote", fundingurl=desk.url, fundingapikey="nobody")
    user, peer = await desk.party.join(alice, 0), await desk.party.join(bob, 1)
    before = world.balance(bob.on_chain)
    mine, theirs = await asyncio.gather(
        user.propose("bob", {"ETH": ("2", "1")}, 3), peer.answer_proposal(accept=True), return_exceptions=True
    )
    assert getattr(mine, "code", 0) == 201 and getattr(mine, "info", {}).get("id") == "nobody", mine
    assert getattr(theirs, "code", 0) == 103 and getattr(theirs, "info", {}) == {"peerAlias": "alice"}, theirs
    await until(lambda: world.balance(bob.on_chain) > before - GAS)


# ---- a session that has others watch --------------------------------------------------------------------------------


async def test_a_remote_watcher_refutes_while_the_user_s_own_node_is_down(desk: Desk) -> None:
    """Its node is restarted too: what it was asked to watch it watches until the channel is concluded."""
    world = desk.party.world
    alice, bob = world.friends("alice", "bob")
    lend_keys(alice, to=desk.keeper)
    lend_keys(bob, to=desk.keeper)
    onlooker, port = Onlooker(), next(world.free_ports)
    alice.configure(watchertype="grpc", watcherurl=desk.url, watcherapikey=desk.session)
    bob.configure(watchertype="grpc", watcherurl=f"127.0.0.1:{port}", watcherapikey="bob's")
    async with onlooker.serving(port):
        user, peer = await desk.party.join(alice, 0), await desk.party.join(bob, 1)
        channel = await open_channel(user, peer, {"ETH": ("1", "1")}, duration=12)
        await pay(peer, user, channel, ("ETH", "alice", "0.5"))
        await pay(peer, user, channel, ("ETH", "alice", "0.25"))
        told = f"channel {channel}: watching version 2 for others"
        await until(lambda: told in world.nodes[2].running.output)
        await until(lambda: onlooker.knows(channel, 2))
        await peer.leave(force=True)
    world.nodes[0].running.kill()
    world.nodes[2].running.kill()
    world.nodes[2].start()
    await desk.reopen()

    events = events_of(desk.funding, desk.session, channel)
    cheat = fund.RegisterReq(sessionID=desk.session, adjReq=onlooker.request(channel, 0, 1))
    assert not (await desk.funding.Register(cheat)).HasField("error")
    seen = [event async for event in first(events, until_version=2)]
    assert [event.registeredEvent.adjudicatorEventBase.version for event in seen][-1] == 2
    assert seen[-1].registeredEvent.state == onlooker.states[bytes.fromhex(channel), 2].state

    before = world.balance(desk.keeper.on_chain)
    withdrawals = [
        desk.funding.Withdraw(fund.WithdrawReq(sessionID=desk.session, adjReq=onlooker.request(channel, 2, index)))
        for index in (0, 1)
    ]
    for withdrawal in withdrawals:
        answer = await withdrawal
        assert not answer.HasField("error"), answer
    concluded = await anext(events)
    assert concluded.concludedEvent.adjudicatorEventBase.version == 2
    assert concluded.concludedEvent.adjudicatorEventBase.timeout.sec == -1
    assert before - GAS < world.balance(desk.keeper.on_chain) - 2 * ETHER < before
    assert not (await desk.funding.Unsubscribe(unsubscribe(desk, channel))).HasField("error")
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def first(events: AsyncIterator[fund.SubscribeResp], *, until_version: int) -> AsyncIterator[fund.SubscribeResp]:
    async with asyncio.timeout(30):
        async for event in events:
            yield event
            if event.registeredEvent.adjudicatorEventBase.version >= until_version:
                return


def unsubscribe(desk: Desk, channel: str) -> fund.UnsubscribeReq:
    return fund.UnsubscribeReq(sessionID=desk.session, chID=bytes.fromhex(channel))


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
async def seen(desk: Desk) -> AsyncIterator[tuple[str, Onlooker]]:
    """A channel of alice and bob, and somebody who knows its states."""
    world = desk.party.world
    alice, bob = world.friends("alice", "bob")
    onlooker, port = Onlooker(), next(world.free_ports)
    alice.configure(watchertype="grpc", watcherurl=f"127.0.0.1:{port}", watcherapikey="x")
    async with onlooker.serving(port):
        user, peer = await desk.party.join(alice, 0), await desk.party.join(bob, 1)
        channel = await open_channel(user, peer, {"ETH": ("1", "1")})
        await until(lambda: onlooker.knows(channel, 0))
        yield channel, onlooker
        await settle(user, peer, channel)


async def test_D13_whoever_is_no_user_or_sends_nonsense_is_refused_with_the_part_that_is_wrong(
    desk: Desk, seen: tuple[str, Onlooker]
) -> None:
    channel, onlooker = seen
    good = onlooker.request(channel, 0, 0)

    def changed(**parts: Any) -> sdk.AdjudicatorReq:
        request = sdk.AdjudicatorReq.FromString(good.SerializeToString())
        for name, value in parts.items():
            target: Any = request
            *path, last = name.split("__")
            for step in path:
                target = getattr(target, step)
            if isinstance(value, list):
                target.ClearField(last)
                getattr(target, last).extend(value)
            else:
                setattr(target, last, value)
        return request

    async def refusal(request: sdk.AdjudicatorReq | None, session: str = desk.session) -> tuple[int, str]:
        answers = [
            await desk.funding.Register(fund.RegisterReq(sessionID=session, adjReq=request)),
            await desk.funding.Withdraw(fund.WithdrawReq(sessionID=session, adjReq=request)),
        ]
        errors = [answer.error for answer in answers if answer.HasField("error")]
        assert errors and all(error.message for error in errors)
        error = errors[0]
        return error.code, error.ErrInfoInvalidArgument.name or error.ErrInfoResourceNotFound.type

    assert await refusal(good, session="nobody") == (201, "session")
    assert await refusal(None) == (203, "adjReq")
    assert await refusal(sdk.AdjudicatorReq(tx=good.tx)) == (203, "params")
    assert await refusal(sdk.AdjudicatorReq(params=good.params)) == (203, "tx")
    assert await refusal(sdk.AdjudicatorReq(params=good.params, tx=sdk.Transaction())) == (203, "state")
    assert await refusal(changed(tx__sigs=[])) == (203, "sigs")
    assert await refusal(changed(tx__sigs=[b"", b""])) == (203, "sigs")
    assert await refusal(changed(tx__sigs=list(reversed(good.tx.sigs)))) == (203, "sigs")
    assert await refusal(changed(tx__sigs=[good.tx.sigs[0], b"short"])) == (203, "sigs")
    assert await refusal(changed(tx__state__id=b"short")) == (203, "chID")
    assert await refusal(changed(tx__state__id=bytes(32))) == (203, "state")
    assert await refusal(changed(tx__state__version=7)) == (203, "sigs")
    assert await refusal(changed(params__parts=[b"short"])) == (203, "params")
    assert await refusal(changed(params__nonce=bytes([255]) * 33)) == (203, "params")
    assert await refusal(changed(acc=good.params.parts[1])) == (203, "acc")
    assert await refusal(changed(acc=b"")) == (203, "acc")
    assert await refusal(changed(idx=9)) == (203, "idx")
    nothing = fund.WithdrawReq(sessionID=desk.session, adjReq=good)
    assert (await desk.funding.Withdraw(nothing)).error.code == 203  # no key of alice in the keeper's wallet

    fund_it = fund.FundReq(sessionID=desk.session, params=good.params, state=good.tx.state, idx=0)
    assert (await desk.funding.Fund(fund_it)).error.ErrInfoInvalidArgument.name == "agreement"
    fund_it.agreement.CopyFrom(sdk.Balances(balances=[sdk.Balance(balance=[b"\1", b"\2"])]))
    assert (await desk.funding.Fund(fund_it)).error.ErrInfoInvalidArgument.name == "agreement"
    stranger = fund.IsAssetRegisteredReq(sessionID=desk.session, asset=b"\7" * 20)
    assert not (await desk.funding.IsAssetRegistered(stranger)).msgSuccess.isRegistered
    stranger.asset = good.tx.state.allocation.assets[0]
    assert (await desk.funding.IsAssetRegistered(stranger)).msgSuccess.isRegistered
    stranger.asset = b"short"
    assert (await desk.funding.IsAssetRegistered(stranger)).error.ErrInfoInvalidArgument.name == "asset"
    refused = await desk.funding.Unsubscribe(unsubscribe(desk, channel))
    assert (refused.error.code, refused.error.ErrInfoResourceNotFound.id) == (201, channel)
    again = await desk.funding.Unsubscribe(unsubscribe(desk, channel))
    assert again.error.code == 201  # D13: the failing call keeps no lock


async def test_a_channel_is_watched_once_and_until_its_client_says_stop(desk: Desk, seen: tuple[str, Onlooker]) -> None:
    channel, onlooker = seen
    good = onlooker.request(channel, 0, 0)
    begin = watch.StartWatchingLedgerChannelReq(
        sessionID=desk.session, params=good.params, state=good.tx.state, sigs=good.tx.sigs
    )

    async def start(message: watch.StartWatchingLedgerChannelReq = begin) -> Any:
        call = desk.watching.StartWatchingLedgerChannel()
        await call.write(message)
        return call

    one = await start()
    await one.initial_metadata()
    two = await start()
    error = (await two.read()).error
    assert (error.code, error.ErrInfoResourceExists.id) == (202, channel)
    assert await two.code() == grpc.StatusCode.OK
    stop = watch.StopWatchingReq(sessionID=desk.session, chID=bytes.fromhex(channel))
    for _ in range(2):
        assert not (await desk.watching.StopWatching(stop)).HasField("error")
    assert not await one.read() and await one.code() == grpc.StatusCode.OK

    three = await start()
    await three.initial_metadata()
    await three.done_writing()
    assert not await three.read() and await three.code() == grpc.StatusCode.OK

    wrong = watch.StartWatchingLedgerChannelReq.FromString(begin.SerializeToString())
    wrong.state.version = 5
    four = await start(wrong)
    assert (await four.read()).error.ErrInfoInvalidArgument.name == "sigs"
    await desk.user.leave()
    five = await start()
    assert (await five.read()).error.code == 204
    assert (await desk.watching.StopWatching(stop)).error.code == 204
    stop.sessionID = "nobody"
    assert (await desk.watching.StopWatching(stop)).error.code == 201

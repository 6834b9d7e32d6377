"""Tokens become currencies of a node, or are refused with a reason (CHAIN.md 6.3: N4, N5, N8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import pytest

from perun_chain_ethereum.artifacts import ContractKind, load
from plugins.chain_ethereum.tests.chain_backend.conftest import DEPLOYER, Key
from tests.chain.onlooker import transact
from tests.chain.tokens import bytes32_answer, number_answer, text_answer, token_code
from tests.integration.clients import Client, ClientError
from tests.integration.world import Party, World, gathering, open_channel, pay, refused, running_world, settle, until

pytestmark = pytest.mark.slow

NOBODY = "0x00000000000000000000000000000000000000aa"
BANK = Key("", DEPLOYER)
_numbers = count()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes on the embedded chain; what is registered at one of them is not at the other."""
    with running_world("embedded", tmp_path_factory.mktemp("currencies"), nodes=2) as world:
        yield world


@pytest.fixture
async def party(world: World) -> AsyncIterator[Party]:
    async with gathering(world) as party:
        yield party


@pytest.fixture
async def client(party: Party) -> Client:
    return await party.client(0)


def fresh(prefix: str = "T") -> str:
    """A symbol nobody has registered."""
    return f"{prefix}{next(_numbers)}"


async def created(world: World, code: bytes) -> str:
    """Address of a new contract."""
    address: str = (await transact(world, BANK, None, code))["contractAddress"]
    return address


async def token(world: World, symbol: bytes | None, decimals: bytes | None, **balances: int) -> str:
    return await created(world, token_code(symbol, decimals, world.contracts["token"], balances))


async def holder(world: World, token: str, adjudicator: str = "") -> str:
    """A new holder of ours for `token`."""
    of = adjudicator or world.contracts["adjudicator"]
    arguments = b"".join(bytes(12) + bytes.fromhex(address[2:]) for address in (of, token))
    return await created(world, load(ContractKind.ERC20_HOLDER).creation_code + arguments)


async def refusal(client: Client, token: str, holder: str) -> ClientError:
    with pytest.raises(ClientError) as caught:
        await client.register_currency(token, holder)
    return caught.value


async def test_eth_and_the_configured_token_are_there_from_the_start(world: World, client: Client) -> None:
    """N4."""
    refused(
        await refusal(client, world.contracts["token"], world.contracts["erc20"]),
        202,
        {"type": "currency", "id": "PRN"},
    )
    refused(
        await refusal(client, world.contracts["token"], world.contracts["eth"]), 202, {"type": "currency", "id": "ETH"}
    )


async def test_a_token_is_registered_once_whatever_its_pair_is(world: World, client: Client) -> None:
    """N4."""
    symbol = fresh()
    first = await token(world, text_answer(symbol), number_answer(18))
    of_first = await holder(world, first)
    assert await client.register_currency(first, of_first) == symbol
    taken = {"type": "currency", "id": symbol}
    refused(await refusal(client, first, of_first), 202, taken)
    another = await token(world, text_answer(fresh()), number_answer(18))
    refused(await refusal(client, another, of_first), 202, taken)
    same_name = await token(world, text_answer(symbol), number_answer(18))
    refused(await refusal(client, same_name, await holder(world, same_name)), 202, taken)


async def test_no_token_can_pass_for_eth(world: World, client: Client) -> None:
    impostor = await token(world, text_answer("ETH"), number_answer(18))
    refused(await refusal(client, impostor, await holder(world, impostor)), 202, {"type": "currency", "id": "ETH"})


async def test_a_symbol_of_32_bytes_is_read(world: World, client: Client) -> None:
    symbol = fresh("B")
    old = await token(world, bytes32_answer(symbol), number_answer(18))
    assert await client.register_currency(old, await holder(world, old)) == symbol


@pytest.mark.parametrize(
    ("symbol", "decimals"),
    [
        (None, number_answer(18)),
        (text_answer("X"), None),
        (text_answer(""), number_answer(18)),
        (text_answer("X" * 33), number_answer(18)),
        (text_answer("a\nb"), number_answer(18)),
        (text_answer("X"), number_answer(78)),
        (b"\x01", number_answer(18)),
        (text_answer("X"), b""),
    ],
    ids=["no symbol", "no decimals", "empty", "too long", "not printable", "too many", "malformed", "empty answer"],
)
async def test_a_token_that_cannot_say_what_it_is_is_refused(
    world: World, client: Client, symbol: bytes | None, decimals: bytes | None
) -> None:
    unreadable = await token(world, symbol, decimals)
    error = await refusal(client, unreadable, await holder(world, unreadable))
    refused(error, 401)
    assert unreadable in error.message


async def test_addresses_that_are_none_are_named_the_holder_s_first(world: World, client: Client) -> None:
    for words, name in ((("x", "y"), "asset"), (("x", NOBODY), "token")):
        refused(await refusal(client, *words), 203, {"name": name})
    refused(await refusal(client, NOBODY, world.contracts["adjudicator"]), 401)


async def test_a_holder_that_is_not_ours_for_this_token_is_refused(world: World, client: Client) -> None:
    """N1 through the API: no code, other code, the holder of another token, the holder of another adjudicator."""
    symbol = fresh()
    ours = await token(world, text_answer(symbol), number_answer(6))
    other = await token(world, text_answer(fresh()), number_answer(6))
    wrong = [
        NOBODY,
        world.contracts["adjudicator"],
        await holder(world, other),
        await holder(world, ours, adjudicator=NOBODY),
    ]
    for address in wrong:
        error = await refusal(client, ours, address)
        refused(error, 206)
        told: Any = error.info["ContractErrInfos"]
        assert [(each[0], each[1].lower()) for each in told] == [(symbol, address.lower())] and told[0][2]
    assert await client.register_currency(ours, await holder(world, ours)) == symbol


async def test_holders_deployed_by_a_session_carry_a_channel_in_their_tokens(world: World, party: Party) -> None:
    """N5: deploy, register at both nodes, open, pay, settle; amounts are exact with 0, 6 and 18 decimals."""
    people = world.friends("alice", "bob")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    tokens: dict[str, tuple[str, str, int]] = {}
    for decimals in (0, 6, 18):
        symbol, unit = fresh(), 10**decimals
        balances = {one.on_chain: 100 * unit for one in people}
        address = await created(
            world, token_code(text_answer(symbol), number_answer(decimals), world.contracts["token"], balances)
        )
        deployed = await alice.client.deploy_asset(alice.session, address)
        for user in (alice, bob):
            assert await user.client.register_currency(address, deployed) == symbol
        tokens[symbol] = (address, deployed, decimals)
    shares = {symbol: ("10", "5") for symbol in tokens} | {"ETH": ("1", "0")}
    channel = await open_channel(alice, bob, shares, duration=60)
    await pay(alice, bob, channel, *((symbol, "bob", "3") for symbol in tokens))
    smallest = {0: "1", 6: "0.000001", 18: "0.000000000000000001"}
    back = ((symbol, "alice", smallest[decimals]) for symbol, (_, _, decimals) in tokens.items())
    await pay(bob, alice, channel, *back)
    closed, _ = await settle(alice, bob, channel)
    assert list(closed.balances.values())[:3] == [
        ("8", "7"),
        ("7.000001", "7.999999"),
        ("7.000000000000000001", "7.999999999999999999"),
    ]
    for address, deployed, decimals in tokens.values():
        unit = 10**decimals
        assert [held(world, address, one.on_chain) for one in people] == [97 * unit + 1, 103 * unit - 1]
        assert held(world, address, deployed) == 0


async def test_a_currency_only_the_proposer_knows_is_refused_by_the_peer(world: World, party: Party) -> None:
    people = world.friends("alice", "bob")
    symbol = fresh()
    address = await created(
        world,
        token_code(text_answer(symbol), number_answer(6), world.contracts["token"], {people[0].on_chain: 10**9}),
    )
    alice, _ = await party.join(people[0], 0), await party.join(people[1], 1)
    await alice.client.register_currency(address, await holder(world, address))
    with pytest.raises(ClientError) as caught:
        await alice.propose("bob", {symbol: ("1", "0")})
    refused(caught.value, 102, {"peerAlias": "bob"})


async def test_a_peer_that_does_not_deposit_one_of_several_assets_is_named(world: World, party: Party) -> None:
    """N8: the funding of one asset is enough to fail, and what was deposited comes back."""
    people = world.friends("alice", "bob", tokens=10**18)
    symbol = fresh()
    address = await created(
        world,
        token_code(text_answer(symbol), number_answer(0), world.contracts["token"], {people[0].on_chain: 10}),
    )
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    of_it = await holder(world, address)
    for user in (alice, bob):
        await user.client.register_currency(address, of_it)
    proposing = alice.propose("bob", {"PRN": ("0.5", "0.5"), symbol: ("4", "4")}, 4)
    mine, theirs = await asyncio.gather(proposing, bob.answer_proposal(accept=True), return_exceptions=True)
    assert isinstance(mine, ClientError) and isinstance(theirs, ClientError)
    refused(mine, 103, {"peerAlias": "bob"})
    await until(lambda: (held(world, address, people[0].on_chain), world.tokens(people[0].on_chain)) == (10, 10**18))
    await until(lambda: world.tokens(people[1].on_chain) == 10**18)

    async def nothing_is_open() -> bool:
        return await alice.client.channels(alice.session) == ()

    await until(nothing_is_open)  # the money is back before the block that says so is final


def held(world: World, token: str, account: str) -> int:
    """Base units of a token."""
    data = "0x70a08231" + account[2:].lower().rjust(64, "0")
    return int(world.rpc("eth_call", {"to": token, "data": data}, "latest"), 16)

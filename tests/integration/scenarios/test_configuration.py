"""Wrong configuration: the typed error that names the field, and nothing half-open behind it (API.md 7.2, 7.1)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.clients import ClientError
from tests.integration.world import Party, Person, World, refused

NOBODY = "0x00000000000000000000000000000000000000aa"


def _unused_key(person: Person, role: str) -> dict[str, object]:
    return {f"user__{role}addr": NOBODY}


def _rewrite_peers(text: str) -> Callable[[Person], dict[str, object]]:
    def rewrite(person: Person) -> dict[str, object]:
        (person.home / "idprovider.yaml").write_text(text.replace("OWN", person.off_chain))
        return {}

    return rewrite


def _file_as_database(person: Person) -> dict[str, object]:
    path = person.home / "file"
    path.write_text("not a directory")
    return {"databasedir": str(path)}


Defect = Callable[[Person], dict[str, object]]
SELF = "self: {alias: self, offchain_address: '0x01', comm_address: '127.0.0.1:1', comm_type: tcp}\n"

DEFECTS: dict[str, tuple[Defect, str, str | None]] = {
    "S1 chain URL": (lambda p: {"chainurl": "invalid-url"}, "chainURL", "invalid-url"),
    "S2 no time to connect": (lambda p: {"chainconntimeout": "0"}, "chainURL", None),
    "S3 on-chain address": (lambda p: {"user__onchainaddr": "invalid-addr"}, "onChainAddr", "invalid-addr"),
    "S3 no such on-chain key": (lambda p: _unused_key(p, "onchain"), "onChainWallet", None),
    "S4 off-chain address": (lambda p: {"user__offchainaddr": "invalid-addr"}, "offChainAddr", "invalid-addr"),
    "S4 no such off-chain key": (lambda p: _unused_key(p, "offchain"), "offChainWallet", None),
    "S5 on-chain password": (lambda p: {"user__onchainwallet__password": "no-such"}, "onChainWallet", None),
    "S5 on-chain key store": (
        lambda p: {"user__onchainwallet__keystorepath": "no/such"},
        "onChainWallet",
        "no/such, ***",
    ),
    "S6 off-chain password": (lambda p: {"user__offchainwallet__password": "no-such"}, "offChainWallet", None),
    "S6 off-chain key store": (
        lambda p: {"user__offchainwallet__keystorepath": "no/such"},
        "offChainWallet",
        "no/such, ***",
    ),
    "S7 comm type": (lambda p: {"user__commtype": "unsupported"}, "commType", "unsupported"),
    "S8 comm address": (lambda p: {"user__commaddr": "invalid-addr"}, "commAddr", "invalid-addr"),
    "S9 ID provider type": (lambda p: {"idprovidertype": "unsupported"}, "idProviderType", "unsupported"),
    "S10 ID provider file missing": (lambda p: {"idproviderurl": "no/such.yaml"}, "idProviderURL", "no/such.yaml"),
    "S10 ID provider file malformed": (_rewrite_peers("alice: [}"), "idProviderURL", None),
    "S10 ID provider knows self": (_rewrite_peers(SELF), "idProviderURL", None),
    "S11 database is a file": (_file_as_database, "databaseDir", None),
    "funding type": (lambda p: {"fundingtype": "remote"}, "fundingType", "remote"),
    "watcher type": (lambda p: {"watchertype": "remote"}, "watcherType", "remote"),
    "chain ID": (lambda p: {"chainid": "1"}, "chainURL", None),
}


@pytest.fixture(scope="module")
def people(world: World) -> list[Person]:
    return world.friends(*(f"user{number}" for number in range(len(DEFECTS))), ether=0)


@pytest.mark.parametrize("number", range(len(DEFECTS)), ids=list(DEFECTS))
async def test_S1_S2_S3_S4_S5_S6_S7_S8_S9_S10_S11_D15_a_session_file_with_a_defect_names_it_and_opens_when_corrected(
    number: int, people: list[Person], party: Party
) -> None:
    """The same port, database and key store serve at once afterwards: the failed attempt released everything."""
    person = people[number]
    defect, name, value = list(DEFECTS.values())[number]
    right, peers = person.session_file.read_text(), (person.home / "idprovider.yaml").read_text()
    person.configure(**defect(person))
    with pytest.raises(ClientError) as caught:
        await party.join(person)
    error = caught.value
    refused(error, 205, {"name": name} if value is None else {"name": name, "value": value})
    assert "no-such" not in f"{error.message} {error.info}", "a password was shown"
    with socket.socket() as probe:
        host, port = person.comm_address.split(":")
        assert probe.connect_ex((host, int(port))) != 0, "somebody still listens"
    person.session_file.write_text(right)
    (person.home / "idprovider.yaml").write_text(peers)
    user = await party.join(person)
    assert (await user.client.get_peer(user.session, "self")).off_chain_address == person.off_chain
    await user.leave()


async def test_S8_S11_two_sessions_cannot_share_a_port_or_a_database(party: Party) -> None:
    world = party.world
    first, second = world.friends("first", "second", ether=0)
    user = await party.join(first)
    with pytest.raises(ClientError) as again:
        await party.join(first)
    refused(again.value, 205, {"name": "commAddr", "value": first.comm_address})

    right = second.session_file.read_text()
    second.configure(user__commaddr=first.comm_address)
    with pytest.raises(ClientError) as port:
        await party.join(second)
    refused(port.value, 205, {"name": "commAddr", "value": first.comm_address})

    second.session_file.write_text(right)
    database = str(first.home / "database")
    second.configure(databasedir=database)
    with pytest.raises(ClientError) as locked:
        await party.join(second)
    refused(locked.value, 205, {"name": "databaseDir", "value": database})

    second.session_file.write_text(right)
    await party.join(second)
    await user.leave()
    await party.join(first)


async def test_S12_a_session_file_that_cannot_be_read_is_an_argument_error(party: Party, tmp_path: Path) -> None:
    client = await party.client()
    malformed = tmp_path / "session.yaml"
    malformed.write_text("user: [}")
    for path in (tmp_path / "missing.yaml", malformed):
        with pytest.raises(ClientError) as caught:
            await client.open_session(str(path))
        refused(caught.value, 203, {"name": "configFile", "value": str(path)})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"chainid": "1"}, "chain ID"),
        ({"adjudicator": NOBODY}, "adjudicator"),
        ({"asseteth": NOBODY}, "ETH"),
        ({"adjudicator": NOBODY, "asseteth": NOBODY}, "adjudicator"),
        ({"asseteth": "invalid-addr"}, "asseteth"),
        ({"loglevel": ""}, "loglevel"),
        ({"logfile": "no/such/folder/node.log"}, "no/such/folder"),
        ({"adjudicator": "invalid-addr"}, "adjudicator"),
        ({"chainurl": "ws://127.0.0.1:1"}, "127.0.0.1:1"),
        ({"loglevel": "loud"}, "loglevel"),
        ({"plugins": {"enabled": ["api_grpc", "no_such"]}}, "no_such"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_N2_N3_N4_U5_D21_a_wrong_node_configuration_ends_the_start_with_the_reason(
    change: dict[str, object], text: str, world: World
) -> None:
    """Exit code 1, the reason in words, no marker, and the port of the API never served."""
    node = world.node(f"wrong-{next(iter(change))}-{len(world.nodes)}", **change)
    world.nodes.remove(node)
    process = node.launch()
    assert process.process.wait(40) == 1
    assert text in process.output and "Serving" not in process.output and "Traceback" not in process.output
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", node.port)) != 0


async def test_N6_N12_N13_N14_U2_a_holder_without_code_or_twice_is_refused_as_currency(party: Party) -> None:
    client, contracts = await party.client(), party.world.contracts
    with pytest.raises(ClientError) as twice:
        await client.register_currency(contracts["token"], contracts["erc20"])
    refused(twice.value, 202, {"type": "currency", "id": "PRN"})
    with pytest.raises(ClientError) as empty:
        await client.register_currency(contracts["token"], NOBODY)
    refused(empty.value, 206)
    ((_, address, problem),) = empty.value.info["ContractErrInfos"]  # type: ignore[misc]
    assert address.lower() == NOBODY and problem
    with pytest.raises(ClientError) as text:
        await client.register_currency("invalid-addr", NOBODY)
    refused(text.value, 203, {"name": "token", "value": "invalid-addr"})
    with pytest.raises(ClientError) as asset:
        await client.register_currency(contracts["token"], "invalid-addr")
    refused(asset.value, 203, {"name": "asset", "value": "invalid-addr"})
    user = await party.join(party.world.person("alice"))
    other_holder = await client.deploy_asset(user.session, contracts["token"])
    with pytest.raises(ClientError) as symbol:
        await client.register_currency(contracts["token"], other_holder)
    refused(symbol.value, 202, {"type": "currency", "id": "PRN"})
    config = await client.config()
    assert (config.adjudicator, config.assetETH) == (contracts["adjudicator"], contracts["eth"])

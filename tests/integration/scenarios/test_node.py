"""The node as operators and its first callers meet it (API.md 7.1, 7.7, 7.8)."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from perun_api_grpc.pb import nodetypes_pb2
from perun_api_grpc.pb import payment_service_pb2 as pb
from tests.integration.clients import ClientError, Peer, success
from tests.integration.scenarios.telling import ONE_TWO, refuses
from tests.integration.world import MARKER, Party, World, command, open_channel

NOBODY = "0x00000000000000000000000000000000000000aa"


def test_N1_the_start_says_which_file_which_configuration_and_when_it_serves(world: World) -> None:
    node = world.nodes[0]
    lines = node.running.output.splitlines()
    assert str(node.config) in lines[0]
    shown = "\n".join(lines[: next(number for number, line in enumerate(lines) if MARKER in line)])
    for value in (world.url, world.contracts["adjudicator"], world.contracts["eth"]):
        assert value in shown
    assert f"{MARKER} :{node.port}" in node.running.output


async def test_N5_N7_N8_time_help_and_a_session_that_is_usable(party: Party) -> None:
    client = await party.client()
    assert abs(await client.time() - time.time()) <= 5
    assert await client.help() == ("payment",)
    alice = party.world.person("alice", ether=0)
    user = await party.join(alice)
    assert len(user.session) == 64 and user.restored == () and await client.channels(user.session) == ()


async def test_N9_N10_D7_an_unreachable_chain_and_unknown_sessions_are_typed_errors(party: Party) -> None:
    """D7: nobody can work a session's ID out; D8 is S5 and S6."""
    client, unknown = await party.client(), "ab" * 32
    alice = party.world.person("alice", ether=0)
    right = alice.session_file.read_text()
    alice.configure(chainurl="invalid-url")
    await refuses(party.join(alice), 205, name="chainURL", value="invalid-url")
    alice.session_file.write_text(right)
    first = await party.join(alice)
    await first.leave()
    assert (await party.join(alice)).session != first.session
    for call in (
        client.add_peer(unknown, Peer("x", NOBODY, "127.0.0.1:1")),
        client.get_peer(unknown, "self"),
        client.open_channel(unknown, ("self", "bob"), ONE_TWO, 10),
        client.channels(unknown),
        client.proposals(unknown),
        client.unsubscribe_proposals(unknown),
        client.respond_proposal(unknown, "x", accept=True),
        client.close_session(unknown, force=True),
        client.deploy_asset(unknown, NOBODY),
        client.pay(unknown, "x", []),
        client.updates(unknown, "x"),
        client.unsubscribe_updates(unknown, "x"),
        client.respond_update(unknown, "x", "x", accept=True),
        client.info(unknown, "x"),
        client.close_channel(unknown, "x"),
    ):
        await refuses(call, 201, type="session", id=unknown)


async def test_N11_U7_X7_D3_a_currency_registered_at_run_time_is_there_after_a_restart(party: Party) -> None:
    """Its channels are restored, watched and can be paid in, even before anybody registers it again."""
    world = party.world
    node = world.node("late", asseterc20s={})
    world.nodes.remove(node)
    node.start()
    try:
        client = await party.client(node)
        token, holder = world.contracts["token"], world.contracts["erc20"]
        assert await client.register_currency(token, holder) == "PRN"
        alice, bob = world.friends("alice", "bob", tokens=10**19)
        a, b = await party.join(alice, node), await party.join(bob, node)
        channel = await open_channel(a, b, {"PRN": ("1", "2")}, duration=600)
        node.running.kill()
        node.start()
        again = await party.join(alice, node)
        (restored,) = again.restored
        assert restored.id == channel
        # Until it is registered again the asset stands for the currency, in base units, unless the node remembers it.
        assert restored.balances in ({"PRN": ("1", "2")}, {holder: (str(10**18), str(2 * 10**18))})
    finally:
        node.running.stop()


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ({"TOKEN": NOBODY}, NOBODY),
        ({NOBODY: "HOLDER"}, NOBODY),
        ({"TOKEN": "TOKEN"}, "PRN"),
        ({"TOKEN": "ETH"}, "ETH"),
    ],
    ids=["asset without code", "token without code", "asset of another kind", "asset twice"],
)
def test_U7_a_start_with_an_unusable_asset_names_it(pairs: dict[str, str], named: str, world: World) -> None:
    places = {name: world.contracts[key] for name, key in (("TOKEN", "token"), ("HOLDER", "erc20"), ("ETH", "eth"))}
    node = world.node(
        f"unusable-{len(list(world.home.iterdir()))}",
        asseterc20s={places.get(token, token): places.get(holder, holder) for token, holder in pairs.items()},
    )
    world.nodes.remove(node)
    process = node.launch()
    assert process.process.wait(40) == 1
    said = process.output.split("Error initializing nodeAPI", 1)[-1].lower()
    assert named.lower() in said and MARKER not in process.output


async def test_U3_D20_contacts_come_from_the_file_and_from_calls_and_the_file_stays(party: Party) -> None:
    """D20: addresses are compared by value, whatever case the file writes them in."""
    alice, bob = party.world.friends("alice", "bob")
    file = alice.home / "idprovider.yaml"
    entries = json.loads(file.read_text())
    entries["bob"]["offchain_address"] = bob.off_chain.lower()
    file.write_text(json.dumps(entries))
    before = file.read_text()
    a, b = await party.join(alice), await party.join(bob)
    known = await a.client.get_peer(a.session, "bob")
    assert known.off_chain_address == bob.off_chain.lower()
    await refuses(a.client.add_peer(a.session, known), 202, type="peerID", id="bob")
    same = Peer("robert", bob.off_chain, known.comm_address)
    await refuses(a.client.add_peer(a.session, same), 202, type="peerID", id="bob")
    await refuses(a.client.add_peer(a.session, Peer("", NOBODY, "127.0.0.1:1")), 203, name="peerAlias")
    await refuses(a.client.add_peer(a.session, Peer("x", NOBODY, "127.0.0.1:1", "udp")), 203, name="peerID")
    assert await open_channel(b, a, ONE_TWO, peer="alice")  # the caller with the lower-case entry is recognised
    assert file.read_text() == before


async def test_U4_D8_D9_key_files_open_twice_and_are_never_written(party: Party) -> None:
    alice = party.world.person("alice", ether=0)

    def files() -> dict[Path, tuple[bytes, int]]:
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (alice.home / "keystore").iterdir()}

    before = files()
    for _ in range(2):
        user = await party.join(alice)
        await user.leave()
    assert files() == before
    for name, role in (("onChainWallet", "onchain"), ("offChainWallet", "offchain")):
        right = alice.session_file.read_text()
        alice.configure(**{f"user__{role}wallet__password": "secret-word"})
        error = await refuses(party.join(alice), 205, name=name)
        assert "secret-word" not in f"{error.message} {error.info}"  # D8
        alice.session_file.write_text(right)


def test_U5_the_log_is_appended_to_in_any_case_of_the_level(world: World, tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("kept\n")
    node = world.node("logging", loglevel="DeBuG", logfile=str(log))
    world.nodes.remove(node)
    node.start()
    assert node.running.stop() == 0
    assert log.read_text().startswith("kept\n") and len(log.read_text().splitlines()) > 1


def test_U6_generated_files_are_complete_and_nothing_is_overwritten(tmp_path: Path) -> None:
    def generate() -> int:
        return subprocess.run(
            command("generate"), cwd=tmp_path, capture_output=True, timeout=60, check=False
        ).returncode

    assert generate() == 0
    for user in ("alice", "bob", "api"):
        names = ["database", "idprovider.yaml", "keystore", "session.yaml"]
        assert sorted(os.listdir(tmp_path / user)) == names
        keys = os.listdir(tmp_path / user / "keystore")
        assert len(keys) == 2 and all(key.startswith("UTC") for key in keys)
    before = (tmp_path / "node.yaml").read_bytes()
    assert generate() == 1 and (tmp_path / "node.yaml").read_bytes() == before


async def test_X5_D10_incomplete_and_absurd_requests_are_argument_errors_and_the_node_lives(party: Party) -> None:
    alice, bob = party.world.friends("alice", "bob", ether=0)
    user, _ = await party.join(alice), await party.join(bob)
    client, session = user.client, user.session

    async def open_with(info: nodetypes_pb2.BalInfo | None, duration: int = 10) -> ClientError:
        request = pb.OpenPayChReq(sessionID=session, openingBalInfo=info, challengeDurSecs=duration)
        return await refuses(success(client.stub.OpenPayCh(request)), 203)

    def info(parts: list[str], currencies: list[str], *rows: list[str]) -> nodetypes_pb2.BalInfo:
        bals = [nodetypes_pb2.BalInfo.bal(bal=row) for row in rows]
        return nodetypes_pb2.BalInfo(parts=parts, currencies=currencies, bals=bals)

    await refuses(success(client.stub.AddPeerID(pb.AddPeerIDReq(sessionID=session))), 203, name="peerID")
    assert (await open_with(None)).info["name"] == "openingBalInfo"
    pair = ["self", "bob"]
    for ragged in (
        info(pair, ["ETH"], ["1"]),
        info(pair, ["ETH"], []),
        info(pair, ["ETH", "PRN"], ["1", "1"], ["1"]),
        info(pair, ["ETH"], ["1", "1", "1"]),
        info(["self"], ["ETH"], ["1"]),
        info(pair, []),
        info([], []),
        info(pair, ["ETH"]),
        info(pair, ["ETH", "ETH"], ["1", "1"], ["1", "1"]),
        info(pair, ["ETH"], ["1e999999999", "1"]),
        info(pair, ["ETH"], ["9" * 100_000, "1"]),
        info(pair, ["ETH"], ["\x00\x1b[2J", "1"]),
    ):
        await open_with(ragged)
    assert (await open_with(info(pair, ["ETH"], ["1", "1"]), 0)).info["name"] == "challengeDurSecs"
    await open_with(info(pair, ["ETH"], ["1", "1"]), 2**64 - 1)
    assert await client.channels(session) == ()


def test_X12_D21_a_second_node_on_the_same_port_ends_with_1_and_without_marker(world: World) -> None:
    second = world.node("second")
    world.nodes.remove(second)
    second.port = world.nodes[0].port
    process = second.launch()
    assert process.process.wait(40) == 1 and MARKER not in process.output
    assert world.nodes[0].running

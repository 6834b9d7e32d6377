"""Recovery mode and hanging ends as operators meet them: real nodes, real databases, public commands."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tests.integration.clients import ClientError
from tests.integration.world import (
    ETHER,
    Party,
    Person,
    World,
    command,
    open_channel,
    pay,
    refused,
    running_world,
    settle,
    until,
)
from tests.servers.fault_proxy import FaultProxy

pytestmark = pytest.mark.slow

END_BOUND = 20.0
"""Seconds a node may take to end in order, whatever hangs."""
COMPARED = 60.0
"""Seconds in which two who are both there have compared their states."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world("embedded", tmp_path_factory.mktemp("recovery"), nodes=2) as world:
        yield world


@pytest.fixture(autouse=True)
def nodes_serve(world: World) -> Iterator[None]:
    yield
    for node in world.nodes[:2]:
        if node.process is None or node.process.process.poll() is not None:
            node.start()


def perunnode(world: World, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command of the operator, in the working directory of the first node."""
    done = command(*arguments, "--configfile", world.nodes[0].config)
    return subprocess.run(done, capture_output=True, text=True, timeout=90, check=False, cwd=world.home)


def database(person: Person) -> Path:
    return Path(json.loads(person.session_file.read_text())["databasedir"])


async def test_an_old_database_opens_read_only_and_goes_on_when_the_peer_has_spoken(
    party: Party, tmp_path: Path
) -> None:
    world = party.world
    person, other = world.friends("alice", "bob")
    alice, bob = await party.join(person, 0), await party.join(other, 1)
    channel = await open_channel(alice, bob, {"ETH": ("2", "1")}, duration=30)
    await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    await alice.leave(force=True)
    shutil.copytree(database(person), tmp_path / "copy")
    alice = await party.join(person, 0)
    newest = await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    await alice.leave(force=True)
    shutil.rmtree(database(person))
    shutil.copytree(tmp_path / "copy", database(person))

    doctor = perunnode(world, "doctor", person.session_file)
    assert doctor.returncode != 0 and "recovery mode" in doctor.stdout
    alice = await party.join(person, 0)
    assert [each.version for each in alice.restored] == ["1"]
    for asked in (alice.pay(channel, [("ETH", "bob", "0.1")]), alice.propose("bob", {"ETH": ("1", "0")})):
        with pytest.raises(ClientError) as caught:
            await asked
        refused(caught.value, 204)
        assert "recovery mode" in caught.value.message and "perunnode trust" in caught.value.message
    assert "RECOVERY MODE" in world.nodes[0].running.output

    async def compared() -> bool:
        return (await alice.info(channel)).balances == newest.balances

    await until(compared, COMPARED)
    await until(lambda: "recovery mode is over" in world.nodes[0].running.output, COMPARED)
    await pay(bob, alice, channel, ("ETH", "alice", "0.125"))
    await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    closed, _ = await settle(alice, bob, channel)
    assert closed.balances == {"ETH": ("0.875", "2.125")}


async def test_the_operator_s_word_ends_recovery_mode(party: Party, tmp_path: Path) -> None:
    world = party.world
    person, other = world.friends("alice", "bob")
    alice, bob = await party.join(person, 0), await party.join(other, 1)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=30)
    await alice.leave(force=True)
    shutil.copytree(database(person), tmp_path / "copy")
    await (await party.join(person, 0)).leave(force=True)
    shutil.rmtree(database(person))
    shutil.copytree(tmp_path / "copy", database(person))
    answered = perunnode(world, "trust", person.session_file, "--yes")
    assert answered.returncode == 0 and "1 channels go on" in answered.stdout, answered.stderr
    assert "was not in recovery mode" in perunnode(world, "trust", person.session_file, "--yes").stdout
    alice = await party.join(person, 0)
    with pytest.raises(ClientError, match="after a recovery"):
        await alice.pay(channel, [("ETH", "bob", "0.5")])
    await pay(bob, alice, channel, ("ETH", "alice", "0.5"))
    assert (await pay(alice, bob, channel, ("ETH", "bob", "1"))).version == "2"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_node_that_is_ended_while_the_chain_hangs_ends_in_time_and_settles_afterwards(
    party: Party, world: World, end: signal.Signals
) -> None:
    """The closing transaction is held back, a stream nobody reads is open: the money is the same either way."""
    with FaultProxy(world.http_url) as proxy:
        person, other = world.friends("alice", "bob")
        person.configure(chainurl=proxy.ws)
        alice, bob = await party.join(person, 0), await party.join(other, 1)
        before = world.balance(other.on_chain)
        channel = await open_channel(alice, bob, {"ETH": ("2", "0")}, duration=30)
        await pay(alice, bob, channel, ("ETH", "bob", "1.5"))
        await alice.client.updates(alice.session, channel)
        gate = Event()
        node = world.nodes[0].running
        with proxy.failing(method="eth_sendRawTransaction", gate=gate) as held:
            closing = asyncio.ensure_future(alice.close(channel))
            agreeing = asyncio.ensure_future(bob.answer_update(channel, accept=True))
            await until(lambda: held.used > 0)
            begun = time.monotonic()
            node.process.send_signal(end)
            await until(lambda: node.process.poll() is not None, END_BOUND)
            assert time.monotonic() - begun < END_BOUND
            assert node.process.returncode == (0 if end is signal.SIGTERM else -end)
            assert "Traceback" not in node.output
            gate.set()
        await asyncio.gather(closing, return_exceptions=True)
        world.nodes[0].start()
        alice = await party.join(person, 0)
        assert (await agreeing).balances == {"ETH": ("0.5", "1.5")}
        await until(lambda: world.balance(other.on_chain) > before + ETHER)

        async def archived() -> bool:
            return not await alice.client.channels(alice.session)

        await until(archived)

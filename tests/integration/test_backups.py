"""Backups and rescue files as an operator uses them: made while people pay, and used when a database is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from perun_core.apps.registry import NO_APPS
from perun_core.ports.store import Doubt, Put, StoreContext, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import RecordCodec
from perun_store_sqlite.store import SqliteConfig, open_sqlite
from tests.integration.clients import User
from tests.integration.world import Party, Person, World, command, open_channel, pay, running_world

pytestmark = pytest.mark.slow

CLOSED_CHANNELS = 20_000
"""Make the database so large that a backup takes a while."""
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world("embedded", tmp_path_factory.mktemp("backups"), nodes=1) as world:
        yield world


async def cli(world: World, *arguments: object) -> str:
    """What a public command says. It must succeed."""
    done = await asyncio.to_thread(
        subprocess.run, command(*arguments), cwd=world.home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def refused(world: World, *arguments: object) -> str:
    done = await asyncio.to_thread(
        subprocess.run, command(*arguments), cwd=world.home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


async def stored_versions(person: Person) -> tuple[Doubt | None, dict[str, int]]:
    """What a closed session's database says."""
    codec = RecordCodec(PROFILE, NO_APPS)
    async with open_sqlite(SqliteConfig(), StoreContext(person.home / "database", snapshot=True)) as store:
        versions = {}
        for key, value in await store.scan(Table.CHANNELS):
            state = codec.decode(key, value).current.state
            versions[key.hex()] = -1 if state is None else state.version
        return store.status().doubt, versions


async def accept_everything(user: User, channel: str) -> None:
    async for update in await user.client.updates(user.session, channel):
        if update.type == "open":
            await user.client.respond_update(user.session, channel, update.id, accept=True)


async def test_payments_go_on_during_a_backup_of_a_large_database(party: Party, tmp_path: Path) -> None:
    world = party.world
    people = world.friends("alice", "bob")
    async with open_sqlite(SqliteConfig(), StoreContext(people[0].home / "database")) as store:
        for first in range(0, CLOSED_CHANNELS, 1000):
            numbers = range(first, first + 1000)
            await store.commit([Put(Table.ARCHIVE, n.to_bytes(32, "big"), bytes(700)) for n in numbers])
    alice, bob = await party.join(people[0]), await party.join(people[1])
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    accepting = asyncio.ensure_future(accept_everything(bob, channel))
    configfile = world.nodes[0].config
    backup = asyncio.ensure_future(
        cli(world, "backup", tmp_path / "backup", people[0].session_file, "--configfile", configfile)
    )
    paid = 0
    while not backup.done():
        await alice.pay(channel, [("ETH", "bob", "0.0001")])
        paid += 1
    said = await backup
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)
    assert int(said.split(": ")[1].split(" records")[0]) > CLOSED_CHANNELS
    assert "1 open channels" in said
    assert paid > 1
    assert int((await alice.info(channel)).version) == paid
    (file,) = (tmp_path / "backup").iterdir()
    assert file.stat().st_size > CLOSED_CHANNELS * 700
    assert "never overwritten" in await refused(
        world, "backup", tmp_path / "backup", people[0].session_file, "--configfile", configfile
    )


async def test_a_restored_database_has_every_channel_and_is_in_doubt(party: Party, tmp_path: Path) -> None:
    world = party.world
    people = world.friends("alice", "bob")
    alice, bob = await party.join(people[0]), await party.join(people[1])
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    options = (people[0].session_file, "--configfile", world.nodes[0].config)
    await cli(world, "backup", tmp_path / "backup", *options)
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    assert "in use" in await refused(world, "restore", tmp_path / "backup", *options)
    await alice.leave(force=True)
    assert "empty database only" in await refused(world, "restore", tmp_path / "backup", *options)
    shutil.rmtree(people[0].home / "database")
    assert "belongs to" in await refused(
        world,
        "restore",
        next((tmp_path / "backup").iterdir()),
        people[1].session_file,
        "--configfile",
        world.nodes[0].config,
    )
    assert "recovery mode" in await cli(world, "restore", tmp_path / "backup", *options)
    assert await stored_versions(people[0]) == (Doubt.RESTORED, {channel: 1})


async def test_a_rescue_file_has_the_newest_state_and_brings_it_back(party: Party, tmp_path: Path) -> None:
    world = party.world
    people = world.friends("alice", "bob")
    (tmp_path / "password").write_text(PASSWORD)
    configfile = ("--configfile", world.nodes[0].config)
    public = (await cli(world, "rescue", "key", tmp_path / "key", "--password-file", tmp_path / "password")).strip()
    rescue = people[0].home / "rescue"
    people[0].configure(rescuefile=str(rescue), rescuekey=public)
    alice, bob = await party.join(people[0]), await party.join(people[1])
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    for _ in range(3):
        await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    await alice.leave(force=True)
    shutil.rmtree(people[0].home / "database")

    secret = ("--key-file", tmp_path / "key", "--password-file", tmp_path / "password")
    (found,) = json.loads(await cli(world, "rescue", "list", rescue, *secret, "--json", *configfile))
    assert (found["channel"], found["version"], found["peer_alias"]) == (channel, 3, "bob")
    assert found["receiver"] == people[0].on_chain
    tx = PROFILE.decode_transaction(bytes.fromhex(found["transaction"]), NO_APPS)
    assert tx.state is not None and tx.state.allocation.balances == ((10**18 // 4, 7 * 10**18 // 4),)
    assert all(tx.sigs)
    assert "version 3  with bob" in await cli(world, "rescue", "list", rescue, *secret, *configfile)

    (tmp_path / "wrong").write_text("wrong")
    wrong = ("--key-file", tmp_path / "key", "--password-file", tmp_path / "wrong")
    assert "password" in await refused(world, "rescue", "list", rescue, *wrong, *configfile)
    assert "belongs to" in await refused(
        world, "rescue", "import", rescue, people[1].session_file, *secret, *configfile
    )
    said = await cli(world, "rescue", "import", rescue, people[0].session_file, *secret, *configfile)
    assert said.startswith("1 channels added")
    assert await stored_versions(people[0]) == (Doubt.RESTORED, {channel: 3})


async def test_a_session_whose_rescue_file_knows_more_than_its_database_is_in_doubt(
    party: Party, tmp_path: Path
) -> None:
    """Even where database and fence were put back together, as from an image of the whole machine."""
    world = party.world
    people = world.friends("alice", "bob")
    (tmp_path / "password").write_text(PASSWORD)
    public = (await cli(world, "rescue", "key", tmp_path / "key", "--password-file", tmp_path / "password")).strip()
    people[0].configure(rescuefile=str(tmp_path / "elsewhere" / "rescue"), rescuekey=public)
    alice, bob = await party.join(people[0]), await party.join(people[1])
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    await alice.leave(force=True)
    shutil.copytree(people[0].home, tmp_path / "image")
    alice = await party.join(people[0])
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    await alice.leave(force=True)
    shutil.rmtree(people[0].home)
    shutil.copytree(tmp_path / "image", people[0].home)
    assert (await stored_versions(people[0]))[0] is None, "the database alone cannot know"
    alice = await party.join(people[0])
    assert (await stored_versions(people[0]))[0] is Doubt.REPORTED
    await alice.leave(force=True)

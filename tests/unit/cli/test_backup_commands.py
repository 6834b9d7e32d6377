"""``perunnode backup``, ``restore`` and ``rescue`` on databases of sessions that are not open."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perun_core.cli.generate import generate
from perun_core.cli.group import perunnode
from perun_core.ports.store import Doubt, Op, Put, StoreContext, StoreStatus, Table
from perun_store_sqlite.store import SqliteConfig, open_sqlite

Invoke = Callable[..., Result]
ROW = Put(Table.ARCHIVE, b"channel", b"record")


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("PERUN_")]:
        monkeypatch.delenv(variable)
    assert CliRunner().invoke(generate).exit_code == 0
    return lambda *arguments, **options: CliRunner().invoke(perunnode, [str(each) for each in arguments], **options)


def written(path: Path, *batch: Op) -> StoreStatus:
    async def write() -> StoreStatus:
        async with open_sqlite(SqliteConfig(), StoreContext(path)) as store:
            if batch:
                await store.commit(batch)
            return store.status()

    return asyncio.run(write())


def rows(path: Path) -> list[tuple[bytes, bytes]]:
    async def read() -> list[tuple[bytes, bytes]]:
        async with open_sqlite(SqliteConfig(), StoreContext(path, snapshot=True)) as store:
            return await store.scan(Table.ARCHIVE)

    return asyncio.run(read())


def test_all_databases_go_there_and_back(invoke: Invoke, tmp_path: Path) -> None:
    with Path("node.yaml").open("a") as config:
        config.write("statedir: state\nsessiondir: .\n")
    for path in ("alice/database", "bob/database", "api/database", "state"):
        written(Path(path), Put(Table.ARCHIVE, b"of", path.encode()))
    made = invoke("backup", "copies")
    assert made.exit_code == 0, made.output
    assert len(os.listdir("copies")) == 4
    shutil.rmtree("alice/database")
    shutil.rmtree("state")
    restored = invoke("restore", "copies", "alice/session.yaml", "--node")
    assert restored.exit_code == 0, restored.output
    assert restored.output.count("recovery mode") == 2
    for path in ("alice/database", "state"):
        assert rows(Path(path)) == [(b"of", path.encode())]
        assert written(Path(path)).doubt is Doubt.RESTORED
    assert written(Path("bob/database")).doubt is None


def test_sessions_have_to_be_named_somewhere(invoke: Invoke) -> None:
    assert invoke("backup", "copies").exit_code == 2
    assert invoke("restore", ".").exit_code == 2


def test_what_cannot_be_backed_up_is_told_and_leaves_no_file(invoke: Invoke) -> None:
    missing = invoke("backup", "copies", "alice/session.yaml")
    assert missing.exit_code == 1
    assert "there is no store at alice/database" in missing.output
    assert os.listdir("copies") == []
    Path("taken").write_text("a file")
    assert invoke("backup", "taken", "alice/session.yaml").exit_code == 2
    assert invoke("backup", "copies", "alice/session.yaml", "--configfile", "nobody.yaml").exit_code == 1


def test_nothing_is_restored_when_one_of_the_files_is_damaged(invoke: Invoke) -> None:
    for user in ("alice", "bob"):
        written(Path(user) / "database", ROW)
    sessions = ("alice/session.yaml", "bob/session.yaml")
    assert invoke("backup", "copies", *sessions).exit_code == 0
    for user in ("alice", "bob"):
        shutil.rmtree(Path(user) / "database")
    damaged = sorted(Path("copies").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    refused = invoke("restore", "copies", *sessions)
    assert refused.exit_code == 1
    assert "damaged or incomplete" in refused.output
    assert not Path("alice/database").exists()
    assert not Path("bob/database").exists()


def test_a_rescue_key_is_encrypted_private_and_never_overwritten(invoke: Invoke) -> None:
    made = invoke("rescue", "key", "rescue.key", input="secret\nsecret\n")
    assert made.exit_code == 0, made.output
    public = made.output.splitlines()[-1]
    assert len(bytes.fromhex(public)) == 33
    assert Path("rescue.key").stat().st_mode & 0o777 == 0o600
    before = Path("rescue.key").read_bytes()
    again = invoke("rescue", "key", "rescue.key", input="secret\nsecret\n")
    assert again.exit_code == 1
    assert Path("rescue.key").read_bytes() == before


def test_a_file_that_is_no_rescue_file_is_told(invoke: Invoke) -> None:
    Path("password").write_text("secret\n")
    assert invoke("rescue", "key", "rescue.key", "--password-file", "password").exit_code == 0
    told = invoke("rescue", "list", "node.yaml", "--key-file", "rescue.key", "--password-file", "password")
    assert told.exit_code == 1
    assert "no rescue file" in told.output
    told = invoke("rescue", "list", "node.yaml", "--key-file", "node.yaml", "--password-file", "password")
    assert told.exit_code == 1

"""``perunnode keys``: keys are made, taken in, listed, checked and moved, and no secret is ever on a screen."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result
from eth_account import Account

from perun_core.cli.group import perunnode
from perun_core.testing.keymgr import address_of
from perun_keymgr_ethkeystore.keyfiles import write_key_file
from tests.integration.world import command
from tests.servers.secretservice import NO_SERVICE, available, running_secret_service
from tests.servers.vault_server import Vault

ALICE, BOB = b"\x11" * 32, b"\x22" * 32
PASSWORD: Final = "correct horse"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with a password file, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    Path("password").write_text(PASSWORD + "\n")
    return tmp_path


def keys(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> Result:
    """Run the command; whatever it says, it shows no key and no password."""
    result = CliRunner().invoke(perunnode, ["keys", *map(str, arguments)], env=env)
    assert result.exit_code == code, result.output
    for secret in (ALICE.hex(), BOB.hex(), PASSWORD):
        assert secret not in result.output
    return result


def rows(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def files(directory: str, *, secret: str = "password=file:password", prefix: str = "") -> list[str]:
    """The options that name a directory of key files."""
    named = ["manager", "ethkeystore", "option", f"keystorepath={directory}", *(["secret", secret] if secret else [])]
    return [f"--{prefix}{word}" if place % 2 == 0 else word for place, word in enumerate(named)]


def weak_file(directory: str, key: bytes, *, password: str = PASSWORD) -> Path:
    Path(directory).mkdir(exist_ok=True)
    return write_key_file(Path(directory), key, password, weak=True, name_time=datetime.now(UTC))


def address(key: bytes) -> str:
    return address_of(key).checksum


# ------------------------------------------------------------------------------------------------------------- making


@pytest.mark.slow
def test_a_new_key_is_protected_at_full_strength_and_opens_with_its_password() -> None:
    (made,) = rows(keys("new", *files("store"), "--json"))
    path = Path(made["place"])
    content = json.loads(path.read_text())
    assert content["crypto"]["kdf"] == "scrypt" and content["crypto"]["kdfparams"]["n"] == 2**18
    assert Account.from_key(Account.decrypt(content, PASSWORD)).address == made["address"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys("check", *files("store")).output == f"{made['address']}  ok\n"


# ---------------------------------------------------------------------------------------------- where secrets come from


@pytest.mark.parametrize("secret", ["password=file:password", "password=env:OPENER"])
def test_a_password_comes_from_a_file_or_a_variable(secret: str) -> None:
    weak_file("store", ALICE)
    keys("check", *files("store", secret=secret), env={"OPENER": PASSWORD})


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--option", f"password={PASSWORD}"], 2),
        (["--secret", f"password={PASSWORD}"], 2),
        (["--secret", PASSWORD], 2),
        (["--secret", "password=prompt"], 2),
        ([], 2),
        (["--secret", "password=file:missing"], 1),
        (["--secret", "password=env:MISSING"], 1),
    ],
)
def test_a_password_on_the_command_line_and_one_that_is_not_there_are_refused(options: list[str], code: int) -> None:
    weak_file("store", ALICE)
    keys("check", *files("store", secret=""), *options, code=code)


def test_a_wrong_password_is_a_problem_of_each_key() -> None:
    weak_file("store", ALICE)
    weak_file("store", BOB, password="another")
    found = rows(keys("check", *files("store"), "--json", code=1))
    assert {row["address"]: bool(row["problem"]) for row in found} == {address(ALICE): False, address(BOB): True}


@pytest.mark.slow
def test_at_a_terminal_the_password_is_asked_for_twice_and_not_shown() -> None:
    shown = at_a_terminal(command("keys", "new", *files("store", secret="")), [PASSWORD, PASSWORD])
    assert shown.count("Password of ethkeystore") == 1 and "Repeat for confirmation" in shown
    assert PASSWORD not in shown
    (file,) = Path("store").iterdir()
    assert Account.decrypt(json.loads(file.read_text()), PASSWORD)


def at_a_terminal(arguments: list[str], answers: list[str]) -> str:
    """What a terminal shows while somebody types `answers`, each when something is asked."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        shown, asked, deadline = b"", 0, time.monotonic() + 60
        try:
            while process.poll() is None:
                assert time.monotonic() < deadline, shown
                if select.select([ours], [], [], 0.1)[0]:
                    try:
                        shown += os.read(ours, 4096)
                    except OSError:  # the other end is closed
                        break
                if asked < len(answers) and shown.count(b": ") > asked and shown.endswith(b": "):
                    os.write(ours, answers[asked].encode() + b"\n")
                    asked += 1
            assert process.wait(30) == 0, shown
        finally:
            if process.poll() is None:
                process.kill()
            os.close(ours)
    return shown.decode()


# ------------------------------------------------------------------------------------------------------------ taking in


@pytest.mark.slow
def test_a_key_in_hex_is_taken_in() -> None:
    Path("key").write_text(f"0x{ALICE.hex()}\n")
    (taken,) = rows(keys("import", "key", *files("store"), "--json"))
    assert taken["address"] == address(ALICE)
    assert bytes(Account.decrypt(json.loads(Path(taken["place"]).read_text()), PASSWORD)) == ALICE


@pytest.mark.slow
def test_a_light_key_file_is_taken_in_with_a_warning_and_kept_at_full_strength() -> None:
    light = Account.encrypt(BOB, "old", kdf="scrypt", iterations=4096)
    Path("light").write_text(json.dumps(light))
    result = keys("import", "light", "--file-password", "env:OLD", *files("store"), env={"OLD": "old"})
    assert "weak" in result.stderr
    (kept,) = Path("store").iterdir()
    assert json.loads(kept.read_text())["crypto"]["kdfparams"]["n"] == 2**18
    assert json.loads(Path("light").read_text()) == light


def test_what_is_no_key_is_refused_without_showing_it() -> None:
    for text in ("my diary", "11" * 31, "00" * 32, "ff" * 32, "{}", '{"crypto": "my diary"}'):
        Path("file").write_text(text)
        result = keys("import", "file", "--file-password", "file:password", *files("store"), code=1)
        assert "diary" not in result.output and "11" * 31 not in result.output and "ff" * 32 not in result.output


def test_a_key_that_is_there_is_not_taken_in_again() -> None:
    before = weak_file("store", ALICE)
    Path("key").write_text(ALICE.hex())
    result = keys("import", "key", *files("store"), code=1)
    assert before.name in result.output
    assert list(Path("store").iterdir()) == [before]


# ------------------------------------------------------------------------------------------------- listing and checking


def test_listing_needs_no_password() -> None:
    path = weak_file("store", ALICE)
    assert keys("list", *files("store", secret="")).stdout == f"{address(ALICE)}  {path}\n"


def test_weak_protection_and_readable_files_are_warnings() -> None:
    weak_file("store", ALICE).chmod(0o644)
    found = keys("check", *files("store")).output
    assert f"{address(ALICE)}  ok" in found and "weak" in found and "other users" in found


def test_a_session_is_checked_with_the_addresses_it_uses() -> None:
    CliRunner().invoke(perunnode, ["generate", "--only-session"])
    assert len(rows(keys("check", "--session", "alice/session.yaml", "--json"))) == 2
    for path in Path("alice/keystore").glob("*8450c0055cb180c7c37a25866132a740b812937b"):
        path.unlink()
    keys("check", "--session", "alice/session.yaml", "--role", "off-chain")
    found = keys("check", "--session", "alice/session.yaml", code=1).output
    assert "0x8450c0055cB180C7C37A25866132A740b812937B  no key file" in found


def test_wallets_that_differ_need_a_role() -> None:
    CliRunner().invoke(perunnode, ["generate", "--only-session"])
    session = Path("bob/session.yaml")
    session.write_text(session.read_text().replace("keystorepath: bob/keystore", "keystorepath: bob/other", 1))
    Path("bob/other").mkdir()
    keys("list", "--session", session, code=2)
    assert keys("list", "--session", session, "--role", "on-chain").stdout == ""
    assert len(keys("list", "--session", session, "--role", "off-chain").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["list"], 2, "--manager"),
        (["list", "--manager", "ethkeystore", "--session", "password"], 2, "--session"),
        (["list", "--manager", "nobody"], 1, "keymgr_nobody"),
        (["list", "--manager", "ethkeystore"], 1, "directory"),
        (["list", "--manager", "ethkeystore", "--option", "keystorpath=x"], 1, "keystorepath"),
        (["list", "--manager", "ethkeystore", "--option", "keystorepath"], 2, "NAME=VALUE"),
        (["migrate", *files("a", prefix="from-"), *files("b", prefix="to-")], 2, "--all"),
        (["check", "0x12xy", *files("store")], 1, "address"),
    ],
)
def test_what_is_missing_or_misspelt_is_named(arguments: list[str], code: int, named: str) -> None:
    assert named in keys(*arguments, code=code).output


# ------------------------------------------------------------------------------------------------------------- moving


@pytest.fixture
def keyring_bus(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not available():
        pytest.skip(NO_SERVICE)
    with running_secret_service(tmp_path_factory.mktemp("ss")) as service:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", service.bus)
        yield


@pytest.mark.slow
def test_a_key_travels_from_files_to_secret_store_to_vault_and_back(vault: Vault, keyring_bus: None) -> None:
    weak_file("store", ALICE)
    Path("token").write_text(vault.token())
    where = [("manager", "vault"), ("option", f"address={vault.url}"), ("option", "path=perun/travel")]
    in_vault = {
        prefix: [word for name, value in where for word in (f"--{prefix}{name}", value)]
        for prefix in ("from-", "to-", "")
    }
    for prefix, words in in_vault.items():
        words += [f"--{prefix}secret", "token=file:token"]
    in_keyring = {
        prefix: [f"--{prefix}manager", "keyring", f"--{prefix}option", "service=travel"]
        for prefix in ("from-", "to-", "")
    }

    keys("migrate", "--all", "--remove", *files("store", prefix="from-"), *in_keyring["to-"])
    assert list(Path("store").iterdir()) == []
    assert keys("list", *in_keyring[""]).stdout == f"{address(ALICE)}  travel/{address(ALICE)}\n"

    keys("migrate", address(ALICE), *in_keyring["from-"], *in_vault["to-"])
    assert address(ALICE) in keys("list", *in_keyring[""]).stdout, "without --remove the source keeps it"
    again = keys("migrate", address(ALICE), "--remove", *in_keyring["from-"], *in_vault["to-"])
    assert "already" in again.stderr
    assert keys("list", *in_keyring[""]).stdout == ""
    assert keys("check", *in_vault[""]).stdout == f"{address(ALICE)}  ok\n"

    keys("migrate", "--all", "--remove", *in_vault["from-"], *files("back", prefix="to-"))
    assert keys("list", *in_vault[""]).stdout == ""
    (file,) = Path("back").iterdir()
    content = json.loads(file.read_text())
    assert content["crypto"]["kdfparams"]["n"] == 2**18
    assert bytes(Account.decrypt(content, PASSWORD)) == ALICE


def test_moving_to_the_same_place_removes_nothing() -> None:
    path = weak_file("store", ALICE)
    keys("migrate", "--all", "--remove", *files("store", prefix="from-"), *files("store", prefix="to-"), code=1)
    assert path.exists()


def test_a_key_that_cannot_be_opened_is_not_moved() -> None:
    path = weak_file("store", ALICE, password="another")
    keys("migrate", "--all", "--remove", *files("store", prefix="from-"), *files("back", prefix="to-"), code=1)
    assert path.exists() and not Path("back").exists()

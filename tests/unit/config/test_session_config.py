"""Session files: read once, checked later in the order of API.md 5.1."""

from __future__ import annotations

from pathlib import Path

import pytest

from perun_core.config import load_session
from perun_core.durations import Duration
from perun_core.errors import ConfigError

SESSION = """\
user:
    alias: alice
    onchainaddr: 0x8450c0055cB180C7C37A25866132A740b812937B
    onchainwallet:
        keystorepath: alice/keystore
        password: "hunter2"
    partaddrs: []
    offchainaddr: not-an-address
    offchainwallet:
        keystorepath: alice/keystore
        password: hunter2
    commaddr: 127.0.0.1:5751
    commtype: tcp
idprovidertype: local
idproviderurl: alice/idprovider.yaml
chainurl: ws://127.0.0.1:8545
chainid: 1337
chainconntimeout: 10s
onchaintxtimeout: 1m0s
responsetimeout: 10s
databasedir: alice/database
peerreconntimeout: 20s
fundingapikey: hunter2
"""


def write(tmp_path: Path, text: str, name: str = "session.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_file_of_perun_node_works_unchanged(tmp_path: Path) -> None:
    session = load_session(write(tmp_path, SESSION))
    assert session.user.onchainaddr == "0x8450c0055cB180C7C37A25866132A740b812937B"
    assert dict(session.user.onchainwallet) == {"keystorepath": "alice/keystore", "password": "hunter2"}
    assert (session.user.commaddr, session.databasedir) == ("127.0.0.1:5751", "alice/database")
    assert (session.onchaintxtimeout, session.chainid) == (Duration.parse("1m"), 1337)
    assert session.warnings == ()


def test_files_of_older_versions_fund_and_watch_locally(tmp_path: Path) -> None:
    session = load_session(write(tmp_path, SESSION))
    assert (session.fundingtype, session.watchertype) == ("local", "local")


def test_backends_are_those_of_perun_node_unless_chosen(tmp_path: Path) -> None:
    default = load_session(write(tmp_path, SESSION))
    assert (default.keymgr, default.idprovider, default.store, default.comm, default.policy) == (
        "ethkeystore", "local", "sqlite", "tcp", "",
    )  # fmt: skip
    chosen = load_session(write(tmp_path, SESSION + "keymgr: vault\nstore: redis\npolicy: limits\ncomm: tls\n"))
    assert (chosen.keymgr, chosen.store, chosen.policy, chosen.comm) == ("vault", "redis", "limits", "tls")
    assert chosen.user.commtype == "tcp"


def test_fields_are_not_judged_while_reading(tmp_path: Path) -> None:
    session = load_session(write(tmp_path, SESSION.replace("commtype: tcp", "commtype: unsupported")))
    assert (session.user.offchainaddr, session.comm) == ("not-an-address", "unsupported")


def test_what_is_missing_is_empty_or_zero(tmp_path: Path) -> None:
    session = load_session(write(tmp_path, "user: {alias: x}\n"))
    assert (session.chainconntimeout, session.chainid, session.user.onchainaddr) == (Duration(0), None, "")
    assert (session.idprovider, session.comm, dict(session.user.onchainwallet)) == ("", "", {})


def test_no_secret_is_in_the_repr(tmp_path: Path) -> None:
    assert "hunter2" not in repr(load_session(write(tmp_path, SESSION)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("10s", "soon"),
        ("chainid: 1337", "chainid: many"),
        ("user:", "user: ["),
        ("    alias: alice", "    alias: [alice]"),
        ("    onchainwallet:\n        keystorepath: alice/keystore\n        password:", "    onchainwallet:"),
    ],
)
def test_a_file_that_does_not_decode_is_the_fault_of_the_file(tmp_path: Path, old: str, new: str) -> None:
    path = write(tmp_path, SESSION.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_session(path)
    assert (caught.value.name, caught.value.value) == ("configFile", str(path))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.yaml", "session.cfg", ""])
def test_a_file_that_cannot_be_read_is_the_fault_of_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "session.cfg").write_text(SESSION)
    with pytest.raises(ConfigError) as caught:
        load_session(tmp_path / name)
    assert caught.value.name == "configFile"


def test_unknown_keys_are_warnings(tmp_path: Path) -> None:
    session = load_session(write(tmp_path, SESSION.replace("    commtype:", "    comtype:") + "watchurl: x\n"))
    assert session.warnings == (
        "unknown key 'watchurl' is ignored; did you mean 'watcherurl'?",
        "unknown key 'user.comtype' is ignored; did you mean 'user.commtype'?",
    )


class TestDirectoryOfSessionFiles:
    def test_files_inside_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "sessions").mkdir()
        path = write(tmp_path / "sessions", SESSION)
        assert load_session(path, sessiondir=str(tmp_path / "sessions")).user.alias == "alice"

    @pytest.mark.parametrize("way", ["outside", "dots", "link", "sibling"])
    def test_files_outside_are_not_whatever_the_path_looks_like(self, tmp_path: Path, way: str) -> None:
        inside = tmp_path / "sessions"
        inside.mkdir()
        (tmp_path / "sessions-of-others").mkdir()
        outside = write(tmp_path, SESSION)
        (inside / "link.yaml").symlink_to(outside)
        path = {
            "outside": outside,
            "dots": inside / ".." / "session.yaml",
            "link": inside / "link.yaml",
            "sibling": write(tmp_path / "sessions-of-others", SESSION),
        }[way]
        with pytest.raises(ConfigError, match="outside") as caught:
            load_session(path, sessiondir=str(inside))
        assert caught.value.name == "configFile"

    def test_a_directory_that_does_not_exist_holds_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="outside"):
            load_session(write(tmp_path, SESSION), sessiondir=str(tmp_path / "missing"))

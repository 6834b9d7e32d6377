"""The demo artefacts (API.md 4.2 to 4.5, U6)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from coincurve import PrivateKey
from Crypto.Cipher import AES

from perun_core.cli.generate import USERS, generate
from perun_core.config import load_node, load_session
from perun_core.configfile import load_table
from perun_core.values import Address, keccak256


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(generate, arguments)


def keys_of(text: str) -> list[str]:
    return list(yaml.load(text, yaml.BaseLoader))


def test_the_node_file_has_the_documented_keys_in_order() -> None:
    assert run().exit_code == 0
    assert keys_of(Path("node.yaml").read_text()) == [
        "loglevel", "logfile", "chainurl", "chainid", "adjudicator", "asseteth", "asseterc20s", "chainconntimeout",
        "onchaintxtimeout", "responsetimeout", "commtypes", "idprovidertypes", "currencyinterpreters",
    ]  # fmt: skip


def test_the_node_file_is_a_configuration_without_warnings() -> None:
    run()
    config = load_node(Path("node.yaml"), {}, {})
    assert (config.loglevel, config.logfile, config.chainurl, config.chainid) == (
        "debug", "", "ws://127.0.0.1:8545", 1337,
    )  # fmt: skip
    assert (str(config.chainconntimeout), str(config.onchaintxtimeout), str(config.responsetimeout)) == (
        "10s", "1m0s", "10s",
    )  # fmt: skip
    assert config.adjudicator_address().checksum == config.adjudicator
    assert len(config.asseterc20_addresses()) == 1
    assert config.warnings == ()


def test_the_contracts_are_those_that_the_first_user_creates_first() -> None:
    run()
    config = load_node(Path("node.yaml"), {}, {})
    (token, asset), *_ = config.asseterc20_addresses()
    named = [config.adjudicator_address(), config.asseteth_address(), token, asset]
    creator = Address.parse(USERS[0].on_chain.address)
    assert named == [created_by(creator, nonce) for nonce in range(4)]


def created_by(creator: Address, nonce: int) -> Address:
    """Address of a created contract: the hash of RLP(creator, nonce), for nonces below 128."""
    encoded_nonce = bytes((nonce or 0x80,))
    return Address(keccak256(bytes((0xC0 + 22, 0x80 + 20)) + creator + encoded_nonce)[12:])


@pytest.mark.parametrize("user", ["alice", "bob", "api"])
def test_a_user_gets_files_that_open(user: str) -> None:
    run()
    folder = Path(user)
    assert sorted(path.name for path in folder.iterdir()) == ["database", "idprovider.yaml", "keystore", "session.yaml"]
    assert list((folder / "database").iterdir()) == []
    session = load_session(folder / "session.yaml")
    assert session.warnings == ()
    assert session.user.alias == user
    assert session.user.commaddr.startswith("127.0.0.1:")
    assert dict(session.user.onchainwallet) == {"keystorepath": f"{user}/keystore", "password": ""}
    assert (session.databasedir, session.idproviderurl) == (f"{user}/database", f"{user}/idprovider.yaml")
    assert keys_of((folder / "session.yaml").read_text()) == [
        "user", "idprovidertype", "idproviderurl", "chainurl", "chainid", "chainconntimeout", "onchaintxtimeout",
        "responsetimeout", "databasedir", "peerreconntimeout", "fundingtype", "fundingurl", "fundingapikey",
        "watchertype", "watcherurl", "watcherapikey",
    ]  # fmt: skip


def test_every_user_knows_the_two_others_where_they_listen() -> None:
    run()
    sessions = {user.alias: load_session(Path(user.alias) / "session.yaml").user for user in USERS}
    for user in USERS:
        known = yaml.load((Path(user.alias) / "idprovider.yaml").read_text(), yaml.BaseLoader)
        assert known == {
            other.alias: {
                "alias": other.alias,
                "offchain_address": sessions[other.alias].offchainaddr,
                "comm_address": sessions[other.alias].commaddr,
                "comm_type": "tcp",
            }
            for other in USERS
            if other is not user
        }
    assert len({session.commaddr for session in sessions.values()}) == 3


def test_the_demonstration_keys_belong_to_their_addresses() -> None:
    for key in [key for user in USERS for key in (user.on_chain, user.off_chain)]:
        public = PrivateKey(bytes.fromhex(key.private_key)).public_key.format(compressed=False)
        assert Address(keccak256(public[1:])[12:]).checksum == key.address


def test_key_files_open_with_the_empty_password() -> None:
    run()
    for user in USERS:
        files = sorted((Path(user.alias) / "keystore").iterdir())
        assert [path.name[:5] for path in files] == ["UTC--", "UTC--"]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        opened = {path.name[-40:]: opened_with_empty_password(path) for path in files}
        assert opened == {
            key.address[2:].lower(): bytes.fromhex(key.private_key) for key in (user.on_chain, user.off_chain)
        }


def opened_with_empty_password(path: Path) -> bytes:
    content = json.loads(path.read_text())
    assert content["version"] == 3
    assert content["address"] == path.name[-40:]
    crypto = content["crypto"]
    parameters = crypto["kdfparams"]
    assert (parameters["n"], parameters["r"], parameters["p"], parameters["dklen"]) == (2, 8, 1, 32)
    derived = hashlib.scrypt(b"", salt=bytes.fromhex(parameters["salt"]), n=2, r=8, p=1, dklen=32)
    ciphertext = bytes.fromhex(crypto["ciphertext"])
    assert keccak256(derived[16:] + ciphertext).hex() == crypto["mac"]
    iv = bytes.fromhex(crypto["cipherparams"]["iv"])
    return AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=iv).decrypt(ciphertext)


def test_directories_are_closed_to_others() -> None:
    before = os.umask(0)
    try:
        run()
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in Path().rglob("*") if path.is_dir()}
    assert modes == {0o750}


def test_each_half_can_be_written_alone() -> None:
    assert run("--only-node").exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["node.yaml"]
    assert run("--only-session").exit_code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["alice", "api", "bob", "node.yaml"]


def test_nothing_that_exists_is_touched() -> None:
    run()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = run()
    assert result.exit_code == 1
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize("user", ["alice", "bob", "api"])
def test_one_existing_user_keeps_all_users_from_being_written(user: str) -> None:
    Path(user).write_text("mine")
    result = run()
    assert result.exit_code == 1
    assert Path("node.yaml").exists()  # the other half still runs
    assert [path.name for path in Path().iterdir() if path.is_dir()] == []
    assert user in result.output


def test_an_existing_node_file_does_not_keep_the_users_from_being_written() -> None:
    Path("node.yaml").write_text("mine")
    assert run().exit_code == 1
    assert Path("node.yaml").read_text() == "mine"
    assert Path("alice/session.yaml").exists()


def test_lines_are_indented_by_four_spaces() -> None:
    run()
    for path in (Path("node.yaml"), Path("alice/session.yaml"), Path("alice/idprovider.yaml")):
        indents = {len(line) - len(line.lstrip()) for line in path.read_text().splitlines()}
        assert indents <= {0, 4, 8}
        assert load_table(path, name="x")

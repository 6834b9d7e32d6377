"""`contracts deploy` and `contracts check` on every kind of chain node that is at hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from perun_chain_ethereum.deploy import contract_addresses
from perun_chain_ethereum.testkeys import DEPLOYER, TEST_ACCOUNTS, TEST_CONTRACTS

Contracts = Callable[..., subprocess.CompletedProcess[str]]

PUBLISHED = {
    "adjudicator": TEST_CONTRACTS["Adjudicator"],
    "eth": TEST_CONTRACTS["AssetHolderETH"],
    "token": TEST_CONTRACTS["PerunToken"],
    "erc20": TEST_CONTRACTS["AssetHolderERC20"],
}
WITHOUT_TOKEN = {role: PUBLISHED[role] for role in ("adjudicator", "eth")}


def options(addresses: dict[str, str]) -> list[str]:
    return [word for role, address in addresses.items() for word in (f"--{role}", address)]


@pytest.fixture(params=["devchain", "anvil, a block per transaction", "anvil, a block per second"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "devchain":
        found: str = request.getfixturevalue("devchain")[1]
        return found
    start: Callable[..., str] = request.getfixturevalue("start_anvil")
    return start("--block-time", "1") if "second" in request.param else start()


@pytest.mark.anvil
@pytest.mark.slow
def test_a_fresh_chain_gets_the_published_addresses(
    url: str, contracts: Contracts, key_file: Path, rpc: Callable[..., Any]
) -> None:
    done = contracts("deploy", "--chain", url, "--key-file", key_file, "--test-token", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == PUBLISHED
    nonce = rpc(url, "eth_getTransactionCount", DEPLOYER.address, "latest")["result"]

    again = contracts("deploy", "--chain", url.replace("http", "ws"), "--key-file", key_file, "--test-token")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[1::2] == list(PUBLISHED.values())
    assert rpc(url, "eth_getTransactionCount", DEPLOYER.address, "latest")["result"] == nonce == "0x4"

    balances = []
    for account in TEST_ACCOUNTS[:4]:
        data = "0x70a08231" + account.address[2:].rjust(64, "0")
        balances.append(int(rpc(url, "eth_call", {"to": PUBLISHED["token"], "data": data}, "latest")["result"], 16))
    assert balances == [1000 * 10**18] * 3 + [0]

    checked = contracts("check", "--chain", url, *options(PUBLISHED), "--json")
    assert checked.returncode == 0, checked.stderr
    assert all(finding["known"] and not finding["unsafe"] for finding in json.loads(checked.stdout).values())


@pytest.fixture
def chain(devchain: Any) -> str:
    url: str = devchain[1]
    return url


def test_a_deployment_is_completed_with_the_token_later(chain: str, contracts: Contracts, key_file: Path) -> None:
    first = contracts("deploy", "--chain", chain, "--key-file", key_file, "--json")
    assert json.loads(first.stdout) == WITHOUT_TOKEN
    second = contracts("deploy", "--chain", chain, "--key-file", key_file, "--json", "--test-token")
    assert json.loads(second.stdout) == PUBLISHED


def test_an_account_that_did_other_things_first_deploys_at_its_next_nonce(
    chain: str, contracts: Contracts, key_file: Path, rpc: Callable[..., Any]
) -> None:
    transaction = {
        "type": 2,
        "chainId": 1337,
        "nonce": 0,
        "gas": 21_000,
        "maxFeePerGas": 10**10,
        "maxPriorityFeePerGas": 10**9,
        "to": TEST_ACCOUNTS[1].address,
        "value": 1,
    }
    raw = Account.sign_transaction(transaction, DEPLOYER.key).raw_transaction
    assert "result" in rpc(chain, "eth_sendRawTransaction", "0x" + bytes(raw).hex())
    done = contracts("deploy", "--chain", chain, "--key-file", key_file, "--json")
    assert done.returncode == 0, done.stderr
    assert tuple(json.loads(done.stdout).values()) == contract_addresses(DEPLOYER.address, 1, 2)


def test_check_names_what_does_not_belong(chain: str, contracts: Contracts, key_file: Path) -> None:
    contracts("deploy", "--chain", chain, "--key-file", key_file, "--test-token")
    swapped = PUBLISHED | {"eth": PUBLISHED["erc20"]}
    done = contracts("check", "--chain", chain, *options(swapped), "--json")
    assert done.returncode == 1
    assert {role: found["known"] for role, found in json.loads(done.stdout).items()} == {
        "adjudicator": True,
        "eth": False,
        "token": True,
        "erc20": True,
    }
    foreign = {"adjudicator": PUBLISHED["token"], "eth": PUBLISHED["eth"]}
    done = contracts("check", "--chain", chain, *options(foreign))
    assert done.returncode == 1
    assert "incorrect adjudicator code" in done.stdout
    nowhere = contracts("check", "--chain", chain, "--adjudicator", TEST_ACCOUNTS[4].address)
    assert nowhere.returncode == 1
    assert "no contract at this address" in nowhere.stdout


def test_a_key_store_opens_with_its_password(chain: str, contracts: Contracts, tmp_path: Path) -> None:
    store = tmp_path / "store.json"
    store.write_text(json.dumps(Account.encrypt(DEPLOYER.key, "secret", kdf="pbkdf2", iterations=10)), encoding="utf-8")
    password = tmp_path / "password"
    password.write_text("secret\n", encoding="utf-8")
    done = contracts("deploy", "--chain", chain, "--key-file", store, "--password-file", password, "--json")
    assert json.loads(done.stdout) == WITHOUT_TOKEN
    password.write_text("wrong\n", encoding="utf-8")
    done = contracts("deploy", "--chain", chain, "--key-file", store, "--password-file", password)
    assert done.returncode == 1
    assert "wrong password" in done.stderr
    done = contracts("deploy", "--chain", chain, "--key-file", store)
    assert "a password file is needed" in done.stderr


@pytest.mark.parametrize("content", ["", "0x12", "zz" * 32, "00" * 32, "ff" * 32, "{}"])
def test_a_file_without_a_key_is_an_error_that_does_not_repeat_it(
    contracts: Contracts, tmp_path: Path, content: str
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(content, encoding="utf-8")
    password = tmp_path / "password"
    password.write_text("x", encoding="utf-8")
    done = contracts("deploy", "--chain", "http://127.0.0.1:1", "--key-file", key_file, "--password-file", password)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert not content.strip("0") or content not in done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ws://127.0.0.1:1", "/nowhere/chain.ipc"])
def test_a_chain_node_that_does_not_answer_is_named(contracts: Contracts, key_file: Path, url: str) -> None:
    done = contracts("deploy", "--chain", url, "--key-file", key_file)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: cannot connect to the chain node at {url}")


def test_an_account_without_money_is_an_error(chain: str, contracts: Contracts, tmp_path: Path) -> None:
    poor = tmp_path / "poor.key"
    poor.write_text("11" * 32, encoding="utf-8")
    done = contracts("deploy", "--chain", chain, "--key-file", poor)
    assert done.returncode == 1
    assert "insufficient funds" in done.stderr

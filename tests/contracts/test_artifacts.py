"""The committed artifacts are what the sources compile to, and speak the ABI of CHAIN.md 1.3, 1.5, 1.6, 1.7."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak

from perun_chain_ethereum.artifacts import ContractKind, load

ROOT = Path(__file__).parents[2]

HOLDER = {
    "holdings": "ae9ee18c",
    "settled": "d945af1d",
    "adjudicator": "53c2ed8e",
    "deposit": "1de26e16",
    "setOutcome": "fc79a66d",
    "withdraw": "4ed4283c",
}
SELECTORS = {
    ContractKind.ADJUDICATOR: {
        "channelID": "6f68e70e",
        "hashState": "1fb910dd",
        "disputes": "11be1997",
        "register": "e30194b7",
        "progress": "02357657",
        "conclude": "97f5a097",
        "concludeFinal": "66e7b564",
    },
    ContractKind.ETH_HOLDER: HOLDER,
    ContractKind.ERC20_HOLDER: HOLDER | {"token": "fc0c546a"},
    ContractKind.TOKEN: {
        "name": "06fdde03",
        "symbol": "95d89b41",
        "decimals": "313ce567",
        "totalSupply": "18160ddd",
        "balanceOf": "70a08231",
        "transfer": "a9059cbb",
        "transferFrom": "23b872dd",
        "approve": "095ea7b3",
        "allowance": "dd62ed3e",
        "increaseAllowance": "39509351",
        "decreaseAllowance": "a457c2d7",
    },
    ContractKind.APP: {"validTransition": "0d1feb4f"},
}
HOLDER_EVENTS = {
    "Deposited": ("cd2fe07293de5928c5df9505b65a8d6506f8668dfe81af09090920687edc48a9", ["fundingID"], ["amount"]),
    "OutcomeSet": ("ef898d6cd3395b6dfe67a3c1923e5c726c1b154e979fb0a25a9c41d0093168b8", ["channelID"], []),
    "Withdrawn": (
        "d0b6e7d0170f56c62f87de6a8a47a0ccf41c86ffb5084d399d8eb62e823f2a81",
        ["fundingID"],
        ["amount", "receiver"],
    ),
}
EVENTS: dict[ContractKind, dict[str, tuple[str, list[str], list[str]]]] = {
    ContractKind.ADJUDICATOR: {
        "ChannelUpdate": (
            "895ef5a5fc3efd313a300b006d6ce97ff0670dfe04f6eea90417edf924fa786b",
            ["channelID"],
            ["version", "phase", "timeout"],
        )
    },
    ContractKind.ETH_HOLDER: HOLDER_EVENTS,
    ContractKind.ERC20_HOLDER: HOLDER_EVENTS,
    ContractKind.TOKEN: {
        "Transfer": (
            "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef",
            ["from", "to"],
            ["value"],
        ),
        "Approval": (
            "8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925",
            ["owner", "spender"],
            ["value"],
        ),
    },
    ContractKind.APP: {},
}
MUTABILITY = {
    "channelID": "pure",
    "hashState": "pure",
    "disputes": "view",
    "register": "nonpayable",
    "progress": "nonpayable",
    "conclude": "nonpayable",
    "concludeFinal": "nonpayable",
    "holdings": "view",
    "settled": "view",
    "adjudicator": "view",
    "deposit": "payable",
    "setOutcome": "nonpayable",
    "withdraw": "nonpayable",
    "token": "view",
    "validTransition": "pure",
}


def canonical(parameter: Any) -> str:
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    return "(" + ",".join(canonical(part) for part in parameter["components"]) + ")" + kind.removeprefix("tuple")


def entries(kind: ContractKind, of: str) -> dict[str, Any]:
    return {entry["name"]: entry for entry in load(kind).abi if entry["type"] == of}


def identifier(entry: Any) -> bytes:
    return keccak(f"{entry['name']}({','.join(map(canonical, entry['inputs']))})".encode())


def test_the_artifacts_match_the_sources() -> None:
    build = ROOT / "plugins" / "chain_ethereum" / "build_contracts.py"
    if not (ROOT / "tools" / "npm" / "node_modules" / "solc").is_dir():
        pytest.skip("no compiler: run tools/fetch_node_tools.py")
    done = subprocess.run([sys.executable, str(build), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ContractKind)
def test_functions_have_the_published_selectors(kind: ContractKind) -> None:
    functions = entries(kind, "function")
    assert {name: identifier(entry)[:4].hex() for name, entry in functions.items()} == SELECTORS[kind]


@pytest.mark.parametrize("kind", ContractKind)
def test_functions_have_the_published_mutability(kind: ContractKind) -> None:
    for name, entry in entries(kind, "function").items():
        if name in MUTABILITY:
            assert entry["stateMutability"] == MUTABILITY[name], name


@pytest.mark.parametrize("kind", ContractKind)
def test_events_have_the_published_topics_and_fields(kind: ContractKind) -> None:
    found = {
        name: (
            identifier(entry).hex(),
            [field["name"] for field in entry["inputs"] if field["indexed"]],
            [field["name"] for field in entry["inputs"] if not field["indexed"]],
        )
        for name, entry in entries(kind, "event").items()
    }
    assert found == EVENTS[kind]


def test_disputes_returns_its_fields_in_the_published_order() -> None:
    outputs = entries(ContractKind.ADJUDICATOR, "function")["disputes"]["outputs"]
    assert [(field["type"], field["name"]) for field in outputs] == [
        ("uint64", "timeout"),
        ("uint64", "challengeDuration"),
        ("uint64", "version"),
        ("bool", "hasApp"),
        ("uint8", "phase"),
        ("bytes32", "stateHash"),
    ]


@pytest.mark.parametrize("kind", ContractKind)
def test_code_and_hash_belong_together(kind: ContractKind) -> None:
    artifact = load(kind)
    assert keccak(artifact.runtime_code) == artifact.runtime_hash
    for offsets in artifact.immutables.values():
        assert offsets
        assert all(artifact.runtime_code[at : at + 32] == bytes(32) for at in offsets)


def test_the_holders_keep_what_they_are_made_for_in_their_code() -> None:
    assert set(load(ContractKind.ETH_HOLDER).immutables) == {"adjudicator"}
    assert set(load(ContractKind.ERC20_HOLDER).immutables) == {"adjudicator", "token"}
    assert not load(ContractKind.ADJUDICATOR).immutables


@pytest.mark.parametrize("kind", ContractKind)
def test_contracts_stay_below_the_size_limit(kind: ContractKind) -> None:
    assert len(load(kind).runtime_code) <= 24_576, "EIP-170"


@pytest.mark.parametrize("kind", ContractKind)
def test_artifacts_say_how_they_were_compiled(kind: ContractKind) -> None:
    artifact = load(kind)
    assert artifact.compiler.startswith("0.8.37+")
    assert artifact.settings["evmVersion"] == "cancun"
    assert artifact.settings["metadata"] == {"bytecodeHash": "none", "appendCBOR": False}

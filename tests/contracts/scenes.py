"""The vocabulary of the contract scenarios: who takes part, how a refusal reads, what a receipt says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak
from eth_keys.datatypes import PrivateKey

from perun_chain_ethereum.embedded import CallFailed
from perun_chain_ethereum.testing import (
    ADDRESS,
    CHANNEL_UPDATE,
    CONCLUDE_FINAL,
    REGISTER,
    Params,
    State,
    World,
    digest,
    signed_state,
)

A, B, C = ADDRESS[1], ADDRESS[3], ADDRESS[5]
DISPUTE, FORCEEXEC, CONCLUDED = 0, 1, 2
MAX = 2**256 - 1
LIMIT = 2**254 - 1
"""The largest amount and sum of amounts of an asset holder, in base units."""

ARTIFACTS = Path(__file__).with_name("artifacts")


def reverts(reason: str) -> Any:
    """Expects a revert with exactly this reason."""
    return pytest.raises(CallFailed, match=f"^execution reverted: {re.escape(reason)}$")


def reverts_empty() -> Any:
    """Expects a revert without data."""
    return pytest.raises(CallFailed, match=r"^execution reverted$")


def now(world: World) -> int:
    return world.chain.timestamp


def updates(receipt: dict[str, Any]) -> list[tuple[bytes, int, int, int]]:
    """(channel ID, version, phase, timeout) of each event of the adjudicator, in order."""
    return [
        (bytes.fromhex(log["topics"][1][2:]), *(int(log["data"][i : i + 64], 16) for i in (2, 66, 130)))
        for log in receipt["logs"]
        if log["topics"][0][2:] == CHANNEL_UPDATE
    ]


def deploy(world: World, name: str) -> str:
    """Deploy one of the contracts that only tests know (contracts/test); its address."""
    content = json.loads((ARTIFACTS / f"{name}.json").read_text(encoding="utf-8"))
    return world.deploy_code(bytes.fromhex(content["creationCode"]))


# -- more people than there are test accounts -------------------------------------------------------------------------

PEOPLE = {
    key.public_key.to_checksum_address(): key
    for key in (PrivateKey(keccak(f"person {number}".encode())) for number in range(10))
}


def signed_by(people: tuple[str, ...], value_hash: bytes) -> list[bytes]:
    """A signature of each of `PEOPLE` named, over the EIP-191 digest of a hash."""
    raw = [PEOPLE[person].sign_msg_hash(digest(value_hash)).to_bytes() for person in people]
    return [signature[:64] + bytes([signature[64] + 27]) for signature in raw]


# -- calls with freely chosen signatures ------------------------------------------------------------------------------


def register(
    world: World, params: Params, state: State, sigs: list[bytes], *subs: tuple[Params, State], at: int | None = None
) -> Any:
    listed = [signed_state(*sub) for sub in subs]
    return world.send(world.adjudicator, REGISTER, (params.abi, state.abi, sigs), listed, at=at)


def conclude_final(world: World, params: Params, state: State, sigs: list[bytes]) -> Any:
    return world.send(world.adjudicator, CONCLUDE_FINAL, params.abi, state.abi, sigs)

"""The compiled contracts that are part of this distribution.

Written by build_contracts.py from contracts/*.sol; a test proves that both match. Nothing is read before it is asked
for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any


class ContractKind(StrEnum):
    """The contracts of a set; the value is the name of the contract and of its artifact."""

    ADJUDICATOR = "Adjudicator"
    ETH_HOLDER = "AssetHolderETH"
    ERC20_HOLDER = "AssetHolderERC20"
    TOKEN = "PerunToken"
    APP = "TrivialApp"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One compiled contract."""

    kind: ContractKind
    abi: tuple[Mapping[str, Any], ...]
    """Functions, events, constructor as the compiler describes them."""
    creation_code: bytes
    """Sent to deploy it, followed by the ABI-encoded constructor arguments."""
    runtime_code: bytes
    """What is at the address afterwards, with zeros where the immutables are."""
    runtime_hash: bytes
    """keccak256 of `runtime_code`."""
    immutables: Mapping[str, tuple[int, ...]]
    """Where in the runtime code the 32-byte words of each immutable variable are, by name."""
    source_hash: str
    """SHA-256 over names and keccak256 of all sources it was compiled from."""
    compiler: str
    """Full version of the compiler."""
    settings: Mapping[str, Any]
    """Settings it was compiled with."""


@cache
def load(kind: ContractKind) -> Artifact:
    """The artifact of a contract. Do not change the mappings inside: they are shared."""
    file = resources.files(__package__).joinpath("artifacts", f"{kind.value}.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return Artifact(
        kind=kind,
        abi=tuple(MappingProxyType(entry) for entry in content["abi"]),
        creation_code=bytes.fromhex(content["creationCode"]),
        runtime_code=bytes.fromhex(content["runtimeCode"]),
        runtime_hash=bytes.fromhex(content["runtimeHash"]),
        immutables=MappingProxyType({name: tuple(at) for name, at in content["immutables"].items()}),
        source_hash=content["sourceHash"],
        compiler=content["compiler"]["version"],
        settings=MappingProxyType(content["compiler"]["settings"]),
    )

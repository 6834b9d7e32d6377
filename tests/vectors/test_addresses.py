"""Addresses: their text, their bytes, their order (PROTOCOL.md 2.1)."""

from __future__ import annotations

from coincurve import PrivateKey

from perun_core.apps import AppRegistry
from perun_core.values import Address, keccak256

from .forms import agrees
from .loader import Case, Vectors, reads


@reads("addresses.json", "accounts")
def test_accounts(case: Case, apps: AppRegistry) -> None:
    public = PrivateKey(bytes.fromhex(case["private_key"])).public_key.format(compressed=False)
    assert public.hex() == case["public_key"]
    address = Address(keccak256(public[1:])[12:])
    assert address.hex() == case["address"]
    assert address.checksum == case["text"]
    assert Address.parse(case["text"]) == address
    agrees({"type": "address", "value": case["address"], "bytes": case["bytes"]}, apps)


@reads("addresses.json", "assets")
def test_assets(case: Case, apps: AppRegistry) -> None:
    assert Address.from_hex(case["asset"]).checksum == case["text"]
    agrees({"type": "asset", "value": case["asset"], "bytes": case["bytes"]}, apps)


@reads("addresses.json", "compare")
def test_comparison(case: Case) -> None:
    a, b = Address.from_hex(case["a"]), Address.from_hex(case["b"])
    assert (a > b) - (a < b) == case["cmp"]
    assert (a == b) == case["equal"]


@reads("addresses.json", "sorted")
def test_order(vectors: Vectors) -> None:
    listed = [Address.from_hex(text) for text in vectors.texts("addresses.json", "sorted")]
    assert sorted(reversed(listed)) == listed

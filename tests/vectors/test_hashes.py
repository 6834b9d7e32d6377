"""Hashes, identifiers and signatures (PROTOCOL.md 2, 5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from coincurve import PrivateKey

from perun_core.apps import AppRegistry
from perun_core.channel import SubAlloc
from perun_core.errors import EncodeError, RuleViolated
from perun_core.profile.gp090 import PROFILE, digest, params_data, state_data, withdrawal_data
from perun_core.values import MAX_UINT256, Address, Bytes32, ChannelID, Sig, keccak256

from .forms import agrees
from .loader import Case, Vectors, reads
from .values import params, state, sub_alloc

Sign = Callable[[bytes, Bytes32], Sig]


@reads("states.json", "states")
def test_state_hashes(case: Case) -> None:
    value = state(case["value"])
    assert state_data(value).hex() == case["abi"]
    assert PROFILE.state_hash(value).hex() == case["hash"]


@reads("states.json", "same_hash")
def test_states_with_the_same_hash(case: Case) -> None:
    for entry in case["states"]:
        value = state(entry["value"])
        if any(amount > MAX_UINT256 for row in value.balances for amount in row):
            with pytest.raises(EncodeError):  # would be cut to 256 bits (5.6)
                PROFILE.state_hash(value)
        else:
            assert PROFILE.state_hash(value).hex() == case["hash"]


@reads("states.json", "different_hash")
def test_states_with_different_hashes(case: Case) -> None:
    assert PROFILE.state_hash(state(case["a"])).hex() == case["hash_a"]
    assert PROFILE.state_hash(state(case["b"])).hex() == case["hash_b"]


@reads("states.json", "to_sub_alloc")
def test_the_entry_that_locks_a_state_into_its_parent(case: Case) -> None:
    value = state(case["state"])
    assert SubAlloc(value.id, value.allocation.sums()) == sub_alloc(case["sub_alloc"])


@reads("channel_id.json", "nonces")
def test_nonces(case: Case) -> None:
    nonce = PROFILE.nonce(*(Bytes32.from_hex(share) for share in case["shares"]))
    assert nonce == int(case["nonce"]) == int(case["nonce_hex"], 16)
    agrees({"type": "bigint", "value": case["nonce"], "bytes": case["bigint_bytes"]}, AppRegistry())


@reads("channel_id.json", "params")
def test_channel_ids(case: Case) -> None:
    value = params(case["value"])
    assert params_data(value).hex() == case["abi"]
    channel_id = PROFILE.channel_id(value)
    assert channel_id.hex() == case["id"]
    assert [PROFILE.funding_id(channel_id, part).hex() for part in value.parts] == case["funding_ids"]


@reads("channel_id.json", "funding_ids")
def test_funding_ids(case: Case) -> None:
    funding_id = PROFILE.funding_id(ChannelID.from_hex(case["channel_id"]), Address.from_hex(case["participant"]))
    assert funding_id.hex() == case["funding_id"]


@reads("channel_id.json", "openings")
def test_openings(case: Case, sign: Sign, keys: dict[str, bytes]) -> None:
    value, initial = params(case["params"]), state(case["initial_state"])
    shares = (Bytes32.from_hex(case[f"{side}_share"]) for side in ("proposer", "responder"))
    assert PROFILE.nonce(*shares) == value.nonce
    assert PROFILE.channel_id(value).hex() == case["id"] == initial.id.hex()
    state_hash = PROFILE.state_hash(initial)
    assert state_hash.hex() == case["hash"]
    for part, sig in zip(value.parts, case["sigs"], strict=True):
        PROFILE.verify(state_hash, Sig.from_hex(sig), part)
        if part.hex() in keys:
            assert sign(keys[part.hex()], state_hash).hex() == sig


def check_signatures(case: Case, hash32: Bytes32, keys: dict[str, bytes], sign: Sign) -> None:
    """Every signature of the case is valid, and what a signer of ours would write."""
    assert hash32.hex() == case["hash"]
    assert digest(hash32).hex() == case["digest"]
    for entry in case["signatures"]:
        PROFILE.verify(hash32, Sig.from_hex(entry["sig"]), Address.from_hex(entry["address"]))
        if entry["address"] in keys:
            assert sign(keys[entry["address"]], hash32).hex() == entry["sig"]


@reads("signing.json", "states")
def test_state_signatures(case: Case, keys: dict[str, bytes], sign: Sign) -> None:
    value = state(case["state"])
    assert state_data(value).hex() == case["abi"]
    check_signatures(case, PROFILE.state_hash(value), keys, sign)


@reads("signing.json", "data")
def test_data_signatures(case: Case, keys: dict[str, bytes], sign: Sign) -> None:
    check_signatures(case, Bytes32(keccak256(bytes.fromhex(case["data"]))), keys, sign)


@reads("signing.json", "withdrawal_auth")
def test_withdrawal_authorisations(case: Case, keys: dict[str, bytes], sign: Sign) -> None:
    terms = (
        ChannelID.from_hex(case["channel_id"]),
        Address.from_hex(case["participant"]),
        Address.from_hex(case["receiver"]),
        int(case["amount"]),
    )
    hash32 = PROFILE.withdrawal_hash(*terms)
    assert withdrawal_data(*terms).hex() == case["abi"]
    assert hash32.hex() == case["hash"]
    assert digest(hash32).hex() == case["digest"]
    assert sign(keys[case["key"]], hash32).hex() == case["sig"]


@reads("signing.json", "digests")
def test_bare_digests(case: Case) -> None:
    """Deterministic nonces as key managers must make them; from the order on another signature is as good."""
    signed = PrivateKey(bytes.fromhex(case["private_key"])).sign_recoverable(bytes.fromhex(case["digest"]), hasher=None)
    if case["digest_below_order"]:
        assert (signed[:32].hex(), signed[32:64].hex(), signed[64]) == (case["r"], case["s"], case["recovery_id"])


@reads("signing.json", "verify")
def test_verification_is_as_strict_as_the_contract(case: Case) -> None:
    hash32, raw = Bytes32(keccak256(bytes.fromhex(case["data"]))), bytes.fromhex(case["sig"])
    signer = Address.from_hex(case["address"])
    if len(raw) != Sig.SIZE:
        assert not case["required_valid"]
        with pytest.raises(ValueError, match="65 bytes"):
            Sig(raw)
    elif case["required_valid"]:
        PROFILE.verify(hash32, Sig(raw), signer)
    else:
        with pytest.raises(RuleViolated, match=r"^2\.3"):
            PROFILE.verify(hash32, Sig(raw), signer)


def test_keys_of_every_file(vectors: Vectors) -> None:
    for file in vectors.files():
        for key in vectors.cases(file, "keys"):
            public = PrivateKey(bytes.fromhex(key["private_key"])).public_key.format(compressed=False)
            assert keccak256(public[1:])[12:].hex() == key["address"], f"{file}: {key['name']}"

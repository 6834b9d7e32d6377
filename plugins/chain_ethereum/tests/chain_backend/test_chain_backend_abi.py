"""Calldata and hashes against the published vectors (CHAIN.md 1.3, 1.5, 1.10)."""

from __future__ import annotations

import pytest

from perun_chain_ethereum import abi
from perun_core.channel import Allocation, Asset, Params, State, SubAlloc, transaction
from perun_core.errors import ChainError
from perun_core.ports.chain import DisputePhase
from perun_core.profile.gp090 import PROFILE
from perun_core.values import MAX_UINT64, MAX_UINT256, Address, Bytes32, ChannelID, keccak256

PARTS = (
    Address.from_hex("a617fa2cc5eC8d72d4A60b9F424677e74E6bef68"),
    Address.from_hex("7b7E212652b9C3755C4E1f1718a142dDE3817523"),
)
ETH_HOLDER = Address.from_hex("5992089d61cE79B6CF90506F70DD42B8E42FB21d")
TOKEN_HOLDER = Address.from_hex("b79708b3f6a4Be039BDE75281656c099163e7a5d")
APP = Address.from_hex("c74F09dD3D0b7d54F0e38A560EDDfB402dC36dba")

V1_PARAMS = Params(60, PARTS, None, 1, True, False)
V1_ID = ChannelID.from_hex("13e25676b4e7945a98f79eaa01cb970867774e4d68ea72c8267a63a2238398b3")
V1_STATE = State(V1_ID, 1, Allocation((Asset(ETH_HOLDER),), ((10**18, 2 * 10**18),)))
V2_PARAMS = Params(3600, PARTS, APP, MAX_UINT256, True, False)
V2_ID = ChannelID.from_hex("ddc804731a325a964710cabefd7b8e688080955e489df3474900498de50faf94")
SUB_ID = ChannelID.from_hex("1434603d51ca93a5e2f9de4a3e07f8d6fcfdd7d5316a37af68f0aed1636ad447")


def v2_state(index_map: tuple[int, ...]) -> State:
    locked = (SubAlloc(SUB_ID, (7, 8), index_map),)
    allocation = Allocation((Asset(ETH_HOLDER), Asset(TOKEN_HOLDER)), ((1, 2), (3, MAX_UINT256)), locked)
    return State(V2_ID, MAX_UINT64, allocation, is_final=True, app=APP, data=b"\x01\x02\x03")


@pytest.mark.parametrize("name", sorted(abi.SELECTORS))
def test_selectors_are_those_of_the_signatures(name: str) -> None:
    assert abi.SELECTORS[name] == keccak256(abi.SIGNATURES[name].encode())[:4]


@pytest.mark.parametrize(("params", "channel_id"), [(V1_PARAMS, V1_ID), (V2_PARAMS, V2_ID)])
def test_params_hash_to_the_channel_id(params: Params, channel_id: ChannelID) -> None:
    assert keccak256(abi.encode_params(params)) == channel_id == PROFILE.channel_id(params)


def test_states_hash_to_the_published_values() -> None:
    v1, v2 = abi.encode_state(V1_STATE, 2), abi.encode_state(v2_state((1, 0)), 2)
    assert (len(v1), len(v2)) == (576, 1088)
    assert keccak256(v1).hex() == "b0074ccbd3b69967e258a6c31011ad85888a5b45b1afb45385ef28c4f87c0f36"
    assert keccak256(v2).hex() == "5a935e0aa5a17ee8bd0e3f913e8c9c584e983b857cb4c59cf3db2347797b22fc"


@pytest.mark.parametrize("index_map", [(), (0, 1), (1, 0), (1,)])
def test_index_maps_go_to_the_chain_as_they_were_hashed(index_map: tuple[int, ...]) -> None:
    state = v2_state(index_map)
    assert keccak256(abi.encode_state(state, 2)) == PROFILE.state_hash(state)


def test_a_state_that_is_not_fully_signed_has_no_calldata() -> None:
    half = transaction(V1_STATE, [None, None])
    for encode in (abi.call_register, abi.call_conclude_final):
        with pytest.raises(ChainError):
            encode(V1_PARAMS, half)


def test_a_dispute_without_state_hash_is_not_registered() -> None:
    assert not abi.dispute(bytes(6 * 32)).registered


def test_a_dispute_is_read_in_the_order_of_its_fields() -> None:
    words = [1000, 60, 7, 1, 0]
    found = abi.dispute(b"".join(word.to_bytes(32, "big") for word in words) + b"\x22" * 32)
    assert found.registered and found.has_app
    assert (found.timeout, found.challenge_duration, found.version) == (1000, 60, 7)
    assert (found.phase, found.state_hash) == (DisputePhase.DISPUTE, Bytes32(b"\x22" * 32))
    assert found.concludable_at == 1060


@pytest.mark.parametrize("answer", [b"", bytes(31), bytes(4 * 32 + 31) + b"\x09" + b"\x01" * 32])
def test_an_answer_that_is_no_dispute_is_an_error(answer: bytes) -> None:
    with pytest.raises(ChainError):
        abi.dispute(answer)


def test_symbols_are_strings_or_padded_words() -> None:
    assert abi.text(b"MKR".ljust(32, b"\0")) == "MKR"
    assert abi.text((32).to_bytes(32, "big") + (3).to_bytes(32, "big") + b"PRN".ljust(32, b"\0")) == "PRN"
    for nonsense in (b"", b"\xff" * 32, b"\xff" * 64):
        with pytest.raises(ChainError):
            abi.text(nonsense)


def test_revert_data_gives_the_contracts_reason() -> None:
    text = (32).to_bytes(32, "big") + (10).to_bytes(32, "big") + b"not ledger".ljust(32, b"\0")
    assert abi.revert_reason(bytes.fromhex("08c379a0") + text) == "not ledger"
    assert abi.revert_reason(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big")) == "panic 0x11"
    assert abi.revert_reason(b"") == abi.revert_reason(bytes.fromhex("08c379a0")) == ""

"""Hashes, ABI layout and signatures of profile gp090 (PROTOCOL.md 2, 5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from coincurve import PrivateKey
from eth_abi.abi import encode as abi_encode
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perun_core.apps.registry import NO_APPS
from perun_core.channel import Allocation, Asset, Params, State, SubAlloc, Transaction
from perun_core.errors import EncodeError, RuleViolated
from perun_core.profile import Profile
from perun_core.profile.gp090 import (
    CURVE_ORDER,
    GP090,
    PROFILE,
    digest,
    padded_index_map,
    params_data,
    state_data,
    withdrawal_data,
)
from perun_core.values import MAX_UINT64, MAX_UINT256, ZERO_ADDRESS, Address, Bytes32, ChannelID, Sig, keccak256
from perun_core.wire import Envelope
from perun_core.wire.messages import Ping

Sign = Callable[[bytes, Bytes32], Sig]

SECRET = b"\x11" * 32
ALICE = Address.from_hex("19e7e376e7c213b7e7e7e46cc70a5dd086daff2a")
BOB = Address.from_hex("1563915e194d8cfba1943570603f7606a3115508")
ID = ChannelID.from_hex("e930f2b84e80e3eccfe580ee72d1247e0ae53cf9a054a5ffdfb42a1ddce68eb2")
ETH = Asset(Address(b"\xaa" * 20))
STATE = State(ID, 1, Allocation((ETH,), ((75 * 10**16, 225 * 10**16),)))
HASH = Bytes32.from_hex("c4164a08e8fbf870fa1abff173fc021521f6c85583147b6924d7d31eab210988")


def test_the_profile_is_a_profile() -> None:
    profile: Profile = GP090()
    assert profile.name == PROFILE.name == "gp090"


def test_worked_example() -> None:
    """PROTOCOL.md 3.10."""
    nonce = PROFILE.nonce(Bytes32(b"\x0b" * 32), Bytes32(b"\x0c" * 32))
    assert f"{nonce:x}" == "623fb351c8448393b3d6d97cbc58d56287324ccbdc99b0916d96f8d6858cd9ae"
    params = Params(3600, (ALICE, BOB), None, nonce, True, False)
    assert PROFILE.channel_id(params) == ID
    funding_id = PROFILE.funding_id(ID, ALICE)
    assert funding_id.hex() == "5950cdf2cf9587456152c37de1349ffd6d95a2feb83ffb4c053b219c7b435476"
    assert PROFILE.state_hash(STATE) == HASH
    assert digest(HASH).hex() == "9767e1a2b1e7a9c16cd1ee54ba1ca674619a079fbf41f230d9ae827b3c0c820f"
    app_params = replace(params, app=Address(b"\xbb" * 20))
    app_id = PROFILE.channel_id(app_params)
    assert app_id.hex() == "7619cc2f03f2993fff9b413b71e7c0e699a0e1914ad5825fed99eb39bd162ee1"


amounts = st.integers(0, MAX_UINT256)


@st.composite
def states(draw: st.DrawFn) -> State:
    """Any state that can be hashed."""
    count, parts = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    row = st.lists(amounts, min_size=parts, max_size=parts).map(tuple)
    entry = st.builds(
        SubAlloc,
        st.binary(min_size=32, max_size=32).map(ChannelID),
        st.lists(amounts, min_size=count, max_size=count).map(tuple),
        st.lists(st.integers(0, 65535), max_size=parts).map(tuple),
    )
    allocation = Allocation(
        tuple(Asset(Address(draw(st.binary(min_size=20, max_size=20)))) for _ in range(count)),
        tuple(draw(row) for _ in range(count)),
        tuple(draw(st.lists(entry, max_size=3))),
    )
    return State(
        ID, draw(st.integers(0, MAX_UINT64)), allocation, draw(st.booleans()), None, draw(st.binary(max_size=99))
    )


@given(states())
def test_state_layout_is_that_of_a_generic_encoder(state: State) -> None:
    allocation = state.allocation
    parts = len(state.balances[0])
    outcome = (
        [asset.holder for asset in allocation.assets],
        allocation.balances,
        [(entry.id, entry.balances, padded_index_map(entry.index_map, parts)) for entry in allocation.locked],
    )
    assert state_data(state) == abi_encode(
        ["(bytes32,uint64,(address[],uint256[][],(bytes32,uint256[],uint16[])[]),bytes,bool)"],
        [(state.id, state.version, outcome, state.data, state.is_final)],
    )


@given(amounts, amounts, st.lists(st.binary(min_size=20, max_size=20).map(Address), max_size=5), st.booleans())
def test_parameter_layout_is_that_of_a_generic_encoder(
    duration: int, nonce: int, parts: list[Address], flag: bool
) -> None:
    params = Params(duration, tuple(parts), ALICE if flag else None, nonce, flag, not flag)
    assert params_data(params) == abi_encode(
        ["(uint256,uint256,address[],address,bool,bool)"],
        [(duration, nonce, parts, ALICE if flag else ZERO_ADDRESS, flag, not flag)],
    )


def test_index_maps_are_padded_as_they_are_hashed() -> None:
    assert padded_index_map((), 3) == (0, 1, 2)
    assert padded_index_map((2,), 3) == (2, 0, 0)
    for bad in ((0, 1, 2, 3), (65536,), (-1,)):
        with pytest.raises(EncodeError):
            padded_index_map(bad, 3)


@pytest.mark.parametrize(
    "state",
    [
        replace(STATE, version=MAX_UINT64 + 1),
        replace(STATE, version=-1),
        replace(STATE, allocation=Allocation((), ())),
        replace(STATE, allocation=Allocation((ETH,), ())),
        replace(STATE, allocation=Allocation((ETH, ETH), ((1, 2), (3,)))),
        replace(STATE, allocation=Allocation((ETH,), ((MAX_UINT256 + 1, 0),))),
        replace(STATE, allocation=Allocation((ETH,), ((-1, 0),))),
        replace(STATE, allocation=Allocation((ETH,), ((1, 2),), (SubAlloc(ID, ()),))),
        replace(STATE, allocation=Allocation((ETH,), ((1, 2),), (SubAlloc(ID, (-1,)),))),
        replace(STATE, allocation=Allocation((ETH,), ((1, 2),), (SubAlloc(ID, (1,), (0, 1, 2)),))),
    ],
)
def test_5_6_what_would_be_cut_is_not_hashed(state: State) -> None:
    with pytest.raises(EncodeError):
        PROFILE.state_hash(state)


def test_numbers_out_of_range_are_not_hashed() -> None:
    params = Params(60, (ALICE, BOB), None, 7, True, False)
    for bad in (replace(params, nonce=-1), replace(params, challenge_duration=MAX_UINT256 + 1)):
        with pytest.raises(EncodeError):
            params_data(bad)
    for amount in (-1, MAX_UINT256 + 1):
        with pytest.raises(EncodeError):
            withdrawal_data(ID, ALICE, BOB, amount)


def test_withdrawal_hash() -> None:
    data = withdrawal_data(ID, ALICE, BOB, 5)
    assert data == abi_encode(["bytes32", "address", "address", "uint256"], [ID, ALICE, BOB, 5])
    assert PROFILE.withdrawal_hash(ID, ALICE, BOB, 5) == keccak256(data)


def changed(sig: Sig, *, r: int | None = None, s: int | None = None, v: int | None = None) -> Sig:
    """The signature with other parts."""
    return Sig(
        (sig[:32] if r is None else r.to_bytes(32, "big"))
        + (sig[32:64] if s is None else s.to_bytes(32, "big"))
        + (sig[64:] if v is None else bytes((v,)))
    )


def test_2_3_good_signatures(sign: Sign) -> None:
    PROFILE.verify(HASH, sign(SECRET, HASH), ALICE)


def test_2_3_bad_signatures(sign: Sign) -> None:
    sig = sign(SECRET, HASH)
    s = int.from_bytes(sig[32:64], "big")
    for bad in (
        changed(sig, v=sig[64] - 27),
        changed(sig, v=27 + 28 - sig[64]),
        changed(sig, v=29),
        changed(sig, v=255),
        changed(sig, s=CURVE_ORDER - s, v=27 + 28 - sig[64]),
        changed(sig, s=CURVE_ORDER - s),
        changed(sig, s=0),
        changed(sig, r=0),
        changed(sig, r=CURVE_ORDER),
        changed(sig, r=2**256 - 1),
        changed(sig, r=5),
        Sig(bytes(65)),
    ):
        with pytest.raises(RuleViolated, match=r"^2\.3"):
            PROFILE.verify(HASH, bad, ALICE)


def test_2_3_signer_and_data_count(sign: Sign) -> None:
    sig = sign(SECRET, HASH)
    for hash32, signer in ((HASH, BOB), (HASH, ZERO_ADDRESS), (Bytes32(bytes(32)), ALICE)):
        with pytest.raises(RuleViolated, match=r"^2\.3"):
            PROFILE.verify(hash32, sig, signer)
    unprefixed = PrivateKey(SECRET).sign_recoverable(HASH, hasher=None)
    with pytest.raises(RuleViolated, match=r"^2\.3"):
        PROFILE.verify(HASH, Sig(unprefixed[:64] + bytes((unprefixed[64] + 27,))), ALICE)


def test_codec_of_the_profile() -> None:
    envelope = Envelope(ALICE, BOB, Ping(1))
    assert PROFILE.decoder(NO_APPS, limit=100).feed(PROFILE.encode(envelope)) == [envelope]
    params = Params(60, (ALICE, BOB), None, 7, True, False)
    assert PROFILE.decode_params(PROFILE.encode_params(params)) == params
    tx = Transaction(STATE, (None, Sig(bytes(65))))
    assert PROFILE.decode_transaction(PROFILE.encode_transaction(tx), NO_APPS) == tx

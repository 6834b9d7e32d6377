"""C1 and C20 of CHAIN.md 6.1: hashes equal the off-chain values, arguments are decoded strictly, money is not lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from eth_abi import encode
from eth_abi.grammar import parse
from eth_hash.auto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from perun_chain_ethereum.artifacts import ContractKind
from perun_chain_ethereum.embedded import Call, CallFailed
from perun_chain_ethereum.testing import (
    ADDRESS,
    AUTH,
    CONCLUDE,
    CONCLUDE_FINAL,
    DEPOSIT,
    PARAMS,
    PROGRESS,
    REGISTER,
    SET_OUTCOME,
    STATE,
    WITHDRAW,
    ZERO,
    Params,
    State,
    World,
    calldata,
    funding_id,
    sign,
    signed_state,
)

from .scenes import A, B, deploy, now, reverts_empty

CHANNEL_ID, HASH_STATE = f"channelID({PARAMS})", f"hashState({STATE})"

words = st.integers(0, 2**256 - 1) | st.integers(0, 4)
addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
some_params = st.tuples(words, words, st.lists(addresses, max_size=5), addresses, st.booleans(), st.booleans())
locked = st.tuples(
    st.binary(min_size=32, max_size=32), st.lists(words, max_size=3), st.lists(st.integers(0, 65535), max_size=3)
)
allocations = st.tuples(
    st.lists(addresses, max_size=3), st.lists(st.lists(words, max_size=4), max_size=3), st.lists(locked, max_size=2)
)
some_states = st.tuples(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**64 - 1),
    allocations,
    st.binary(max_size=70),
    st.booleans(),
)


@pytest.fixture(scope="module")
def still() -> World:
    """A world that no test of this module changes."""
    return World.deployed()


def ask(world: World, data: bytes) -> bytes:
    """The answer of the adjudicator to a call."""
    return world.chain.call(Call(to=bytes.fromhex(world.adjudicator[2:]), data=data)).output


# -- C1 ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, derandomize=True, deadline=None)
@given(value=some_params)
def test_c1_the_channel_id_is_the_hash_of_the_encoding(still: World, value: Any) -> None:
    assert ask(still, calldata(CHANNEL_ID, value)) == keccak(encode([PARAMS], [value]))


@settings(max_examples=250, derandomize=True, deadline=None)
@given(value=some_states)
def test_c1_the_state_hash_is_the_hash_of_the_encoding(still: World, value: Any) -> None:
    assert ask(still, calldata(HASH_STATE, value)) == keccak(encode([STATE], [value]))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64, 100])
def test_c1_only_the_app_data_counts_not_what_follows_it_in_its_last_word(still: World, length: int) -> None:
    value = State(bytes(32), 1, (ZERO,), ((1, 2),), data=b"\xaa" * length).abi
    data = calldata(HASH_STATE, value)
    padding = -length % 32
    dirty = data[: len(data) - padding] + b"\xff" * padding
    assert ask(still, dirty) == keccak(encode([STATE], [value]))
    assert ask(still, dirty + b"\xff" * 64) == keccak(encode([STATE], [value]))


def test_c1_an_encoding_with_other_offsets_has_the_same_hash(still: World) -> None:
    c = Params()
    body = encode([PARAMS], [c.abi])[32:]
    selector = keccak(CHANNEL_ID.encode())[:4]
    # The value two words later, and its participants one word later than they could be.
    assert ask(still, selector + (96).to_bytes(32) + bytes(64) + body) == c.id
    later = body[:64] + (224).to_bytes(32) + body[96:192] + bytes(32) + body[192:]
    assert ask(still, selector + (32).to_bytes(32) + later) == c.id


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(["params", "state", "locked"]),
    place=st.integers(0, 40),
    value=st.sampled_from([2**bits for bits in (16, 32, 63, 64, 160, 255)] + [2**256 - 32, 2**256 - 1])
    | st.integers(0, 1200),
)
def test_c1_a_changed_word_is_refused_or_decoded_like_anybody_would(
    still: World, kind: str, place: int, value: int
) -> None:
    c = Params()
    if kind == "params":
        typ, data = PARAMS, calldata(CHANNEL_ID, c.abi)
    else:
        funds = ((c.id, (3,), (0, 1)),) if kind == "locked" else ()
        state = State(c.id, 7, (ADDRESS[0], ADDRESS[2]), ((1, 2), (3, 4)), funds, b"payload")
        typ, data = STATE, calldata(HASH_STATE, state.abi)
    count = (len(data) - 4) // 32
    at = 4 + 32 * (place % count)
    changed = data[:at] + value.to_bytes(32) + data[at + 32 :]
    try:
        answer = ask(still, changed)
    except CallFailed as refused:
        assert refused.data in (None, b"") or refused.data[:4].hex() == "4e487b71", "no reason of its own"
        return
    assert answer == keccak(encode([typ], [decoded(parse(typ), changed[4:], word(changed[4:], 0))]))


def word(data: bytes, at: int) -> int:
    """The word at `at`; zeros follow the end, and offsets wrap around, as on chain."""
    return int.from_bytes(data[at % 2**256 :][:32].ljust(32, b"\0"))


def decoded(typ: Any, data: bytes, at: int) -> Any:
    """The value of an ABI type at `at`, wherever its offsets lead; independent of any decoder that knows better."""
    if typ.arrlist:
        count, at = word(data, at), at + 32
        return sequence([typ.item_type] * count, data, at)
    if hasattr(typ, "components"):
        return sequence(typ.components, data, at)
    if typ.base == "bytes" and typ.sub is None:
        return data[(at + 32) % 2**256 :][: word(data, at)]
    value = word(data, at)
    if typ.base == "address":
        return "0x" + value.to_bytes(20).hex()
    if typ.base == "bool":
        return {0: False, 1: True}[value]
    return value.to_bytes(32) if typ.base == "bytes" else value


def sequence(types: Sequence[Any], data: bytes, at: int) -> tuple[Any, ...]:
    heads = [at + 32 * index for index in range(len(types))]
    return tuple(
        decoded(typ, data, at + word(data, head) if typ.is_dynamic else head)
        for typ, head in zip(types, heads, strict=True)
    )


# -- C20 --------------------------------------------------------------------------------------------------------------


def calls(world: World) -> Iterator[tuple[str, str, bytes]]:
    """Every function with arguments that are right but for what a test spoils: name, contract, calldata."""
    c, app = Params(nonce=1), Params(nonce=2, app=world.app)
    parent, sub = Params(nonce=4), Params(nonce=3, ledger=False)
    v1 = world.state(c, 1, 1, 2, data=b"x")
    final = v1.but(version=2, final=True)
    a1, a2 = world.state(app, 1, 0, 0), world.state(app, 2, 0, 0)
    inner = world.state(sub, 1, 1, 1)
    outer = world.state(parent, 3, 1, 2, locked=((sub.id, (2,), (0, 1)),))
    auth = (c.id, A, ADDRESS[4], 0)
    yield "register", world.adjudicator, calldata(REGISTER, signed_state(c, v1), [])
    tree = calldata(REGISTER, signed_state(parent, outer), [signed_state(sub, inner)])
    yield "register a tree", world.adjudicator, tree
    yield "progress", world.adjudicator, calldata(PROGRESS, app.abi, a1.abi, a2.abi, 0, sign(A, a2.hash))
    yield "conclude", world.adjudicator, calldata(CONCLUDE, c.abi, v1.abi, [])
    agreed = calldata(CONCLUDE_FINAL, c.abi, final.abi, final.signed((A, B)))
    yield "concludeFinal", world.adjudicator, agreed
    yield "channelID", world.adjudicator, calldata(CHANNEL_ID, c.abi)
    yield "hashState", world.adjudicator, calldata(HASH_STATE, outer.abi)
    yield "disputes", world.adjudicator, calldata("disputes(bytes32)", c.id)
    yield "withdraw", world.eth, calldata(WITHDRAW, auth, sign(A, keccak(encode([AUTH], [auth]))))
    yield "setOutcome", world.eth, calldata(SET_OUTCOME, c.id, [A, B], [0, 0])
    yield "deposit", world.eth, calldata(DEPOSIT, funding_id(c.id, A), 0)
    yield "holdings", world.eth, calldata("holdings(bytes32)", c.id)
    yield "settled", world.eth, calldata("settled(bytes32)", c.id)


NAMES = [name for name, _, _ in calls(World(app=ZERO, eth=ZERO, adjudicator=ZERO))]


@pytest.mark.parametrize("name", NAMES)
def test_c20_truncated_arguments_are_refused_without_reason(still: World, name: str) -> None:
    _, target, data = next(call for call in calls(still) if call[0] == name)
    needed = len(data)
    if name in ("register", "concludeFinal", "progress", "withdraw", "register a tree"):
        # The end of a signature's last word does not belong to it.
        needed -= 31
    if name == "conclude":
        # The list of sub-channels comes last and is empty; it is still read.
        assert data[-32:] == bytes(32)
    # Cut inside the last, in the middle, in the first argument, in the selector.
    for length in {needed - 1, needed - 32, len(data) // 2, min(36, needed - 1), 4, 3, 0}:
        with pytest.raises(CallFailed) as refused:
            still.chain.call(Call(to=bytes.fromhex(target[2:]), data=data[:length]))
        assert refused.value.data == b"", length


@pytest.mark.parametrize("name", [name for name in NAMES if name != "deposit"])
def test_c20_only_deposits_in_eth_can_be_paid(world: World, name: str) -> None:
    _, target, data = next(call for call in calls(world) if call[0] == name)
    with reverts_empty():
        world.transact(target, data, value=1)
    assert world.balance(target) == 0


@pytest.mark.parametrize("data", [b"", b"\0", b"\1\2\3\4", b"\xff" * 100])
def test_c20_what_is_not_a_function_is_refused(world: World, data: bytes) -> None:
    for target in (world.adjudicator, world.eth, world.erc20, world.app):
        for value in (0, 1):
            with reverts_empty():
                world.transact(target, data, value=value)


def replaced(data: bytes, old: bytes, new: int) -> list[bytes]:
    """`data` with each aligned word that equals `old` replaced in turn."""
    places = [at for at in range(4, len(data), 32) if data[at : at + 32] == old]
    assert places
    return [data[:at] + new.to_bytes(32) + data[at + 32 :] for at in places]


def test_c20_addresses_and_flags_have_one_form(world: World) -> None:
    """Each call is spoilt in every place where it names a participant, an asset or a receiver, or says yes or no."""
    # Channels that are ready for conclusion and progress, because that is looked at before the rest is decoded.
    first, app = Params(nonce=1), Params(nonce=2, app=world.app)
    world.register(first, world.state(first, 1, 1, 2, data=b"x"))
    world.register(app, world.state(app, 1, 0, 0))
    world.chain.mine(timestamp=now(world) + 60)
    for name, target, data in calls(world):
        if name == "setOutcome":
            continue  # Only the adjudicator gets so far: test_c13_an_outcome_with_a_dirty_participant_is_refused.
        for who in (A, world.eth, B, ADDRESS[4]):
            word = bytes(12) + bytes.fromhex(who[2:])
            if word in data:
                for spoilt in replaced(data, word, int.from_bytes(word) | 1 << 160):
                    refused_without_reason(world, name, target, spoilt)
    c = Params(nonce=5)
    state = world.state(c, 1, 1, 2)
    good = calldata(REGISTER, signed_state(c, state), [])
    flags = {"ledgerChannel": 4 + 2 * 32 + 3 * 32 + 4 * 32, "virtualChannel": 4 + 2 * 32 + 3 * 32 + 5 * 32}
    for at in flags.values():
        assert good[at : at + 32] in (bytes(32), (1).to_bytes(32))
        for value in (2, 2**8, 2**255):
            spoilt = good[:at] + value.to_bytes(32) + good[at + 32 :]
            refused_without_reason(world, "register", world.adjudicator, spoilt)
    world.transact(world.adjudicator, good)


def test_c20_versions_and_indices_have_their_width(world: World) -> None:
    c, sub = Params(nonce=1), Params(nonce=3, ledger=False)
    state = world.state(c, 77, 1, 2, locked=((sub.id, (2,), (500, 501)),))
    data = calldata(HASH_STATE, state.abi)
    for old, width in ((77, 64), (500, 16), (501, 16)):
        for spoilt in replaced(data, old.to_bytes(32), old | 1 << width):
            refused_without_reason(world, "hashState", world.adjudicator, spoilt)
    final = world.state(c, 77, 1, 2, final=True)
    agreed = calldata(CONCLUDE_FINAL, c.abi, final.abi, final.signed((A, B)))
    for spoilt in replaced(agreed, (77).to_bytes(32), 77 | 1 << 64):
        refused_without_reason(world, "concludeFinal", world.adjudicator, spoilt)
    auth = (c.id, A, ADDRESS[4], 0)
    good = calldata(WITHDRAW, auth, sign(A, keccak(encode([AUTH], [auth]))))
    world.transact(world.adjudicator, agreed)
    world.transact(world.eth, good + b"surplus")


def refused_without_reason(world: World, name: str, target: str, data: bytes) -> None:
    with pytest.raises(CallFailed) as refused:
        world.chain.call(Call(to=bytes.fromhex(target[2:]), data=data))
    assert refused.value.data == b"", name


def test_c20_a_whole_channel_works_with_an_unusual_encoding(world: World) -> None:
    """Offsets that skip words are as good as any: what counts is the value."""
    c = Params()
    world.deposit(c, 10, 20)
    final = world.state(c, 1, 29, 1, final=True)
    parts = [encode([PARAMS], [c.abi])[32:], encode([STATE], [final.abi])[32:]]
    parts.append(encode(["bytes[]"], [final.signed((A, B))])[32:])
    gap = b"\xee" * 32
    head, body = [], b""
    for part in parts:
        body += gap
        head.append((3 * 32 + len(body)).to_bytes(32))
        body += part
    data = keccak(CONCLUDE_FINAL.encode())[:4] + b"".join(head) + body
    world.transact(world.adjudicator, data)
    assert (world.holdings(c, A), world.holdings(c, B)) == (29, 1)
    # And with balances that lie elsewhere than usual.
    d = Params(nonce=2)
    world.deposit(d, 10, 20)
    state = world.state(d, 1, 29, 1)
    world.register(d, state)
    usual = encode([STATE], [state.abi])[32:]
    outcome = 5 * 32
    assert usual[outcome + 32 : outcome + 64] == (5 * 32).to_bytes(32)
    moved = usual[: outcome + 32] + (len(usual) - outcome).to_bytes(32) + usual[outcome + 64 :]
    moved += b"".join(n.to_bytes(32) for n in (1, 32, 2, 29, 1))
    parts = [encode([PARAMS], [d.abi])[32:], moved, bytes(32)]
    offsets = [3 * 32, 3 * 32 + len(parts[0]), 3 * 32 + len(parts[0]) + len(parts[1])]
    data = keccak(CONCLUDE.encode())[:4] + b"".join(n.to_bytes(32) for n in offsets) + b"".join(parts)
    world.transact(world.adjudicator, data, at=now(world) + 60)
    assert (world.holdings(d, A), world.holdings(d, B)) == (29, 1)


def test_c20_test_contracts_are_not_shipped() -> None:
    assert {kind.value for kind in ContractKind} == {
        "Adjudicator",
        "AssetHolderETH",
        "AssetHolderERC20",
        "PerunToken",
        "TrivialApp",
    }
    assert callable(deploy)

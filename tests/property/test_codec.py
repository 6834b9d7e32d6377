"""The codec under random messages and random damage (PROTOCOL.md 1.6)."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from perun_core.apps import AppRegistry, PaymentApp
from perun_core.channel import Allocation, Asset, Balances, Params, State, SubAlloc, Transaction
from perun_core.errors import DecodeError
from perun_core.values import MAX_UINT64, MAX_UINT256, Address, Bytes32, ChannelID, ProposalID, Sig
from perun_core.wire import Envelope, Message, StreamDecoder, decode, encode
from perun_core.wire import messages as m

APP = Address(b"\xdd" * 20)


class AnyData(PaymentApp):
    """An app with any data."""

    def check_data(self, data: bytes) -> None:
        pass


APPS = AppRegistry({APP: AnyData()})


# ---------------------------------------------------------------------------------------------------- random messages

addresses = st.binary(min_size=20, max_size=20).map(Address)
hashes = st.binary(min_size=32, max_size=32)
channel_ids, proposal_ids, shares = hashes.map(ChannelID), hashes.map(ProposalID), hashes.map(Bytes32)
sigs = st.binary(min_size=65, max_size=65).map(Sig)
versions = st.integers(0, MAX_UINT64)
times = st.integers(-(1 << 63), (1 << 63) - 1)
amounts = st.integers(0, MAX_UINT256) | st.integers(0, 300)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
indices = st.integers(0, 65535)


def tuples(elements: SearchStrategy[int], size: int) -> SearchStrategy[tuple[int, ...]]:
    return st.lists(elements, min_size=size, max_size=size).map(tuple)


def rows(assets: int, parts: int) -> SearchStrategy[Balances]:
    return st.lists(tuples(amounts, parts), min_size=assets, max_size=assets).map(tuple)


@st.composite
def allocations(draw: st.DrawFn) -> Allocation:
    assets, parts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    holders = draw(st.lists(addresses, min_size=assets, max_size=assets, unique=True))
    entry = st.builds(
        SubAlloc, channel_ids, tuples(amounts, assets), st.lists(st.integers(0, parts - 1), max_size=parts).map(tuple)
    )
    locked = draw(st.lists(entry, max_size=3, unique_by=lambda one: one.id))
    return Allocation(tuple(Asset(holder) for holder in holders), draw(rows(assets, parts)), tuple(locked))


apps_and_data = st.just((None, b"")) | st.tuples(st.just(APP), st.binary(max_size=50))


@st.composite
def states(draw: st.DrawFn) -> State:
    app, data = draw(apps_and_data)
    return State(draw(channel_ids), draw(versions), draw(allocations()), draw(st.booleans()), app, data)


@st.composite
def params(draw: st.DrawFn) -> Params:
    ledger, virtual = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    parts = tuple(draw(st.lists(addresses, min_size=2, max_size=4)))
    return Params(
        draw(st.integers(1, MAX_UINT64)), parts, draw(st.sampled_from([None, APP])), draw(amounts), ledger, virtual
    )


@st.composite
def bases(draw: st.DrawFn) -> m.BaseProposal:
    app, data = draw(apps_and_data)
    agreement = draw(st.just(()) | rows(draw(st.integers(1, 3)), draw(st.integers(0, 3))))
    return m.BaseProposal(draw(proposal_ids), draw(versions), draw(shares), app, data, draw(allocations()), agreement)


accs = st.builds(m.BaseProposalAcc, proposal_ids, shares)
updates = st.builds(m.Update, states(), indices, sigs)


def slots(state: State) -> SearchStrategy[tuple[Sig | None, ...]]:
    count = len(state.balances[0])
    return st.lists(st.none() | sigs, min_size=count, max_size=count).map(tuple)


@st.composite
def transactions(draw: st.DrawFn) -> Transaction:
    state = draw(st.none() | states())
    return Transaction(None) if state is None else Transaction(state, draw(slots(state)))


@st.composite
def signed_states(draw: st.DrawFn) -> m.SignedState:
    state = draw(states())
    return m.SignedState(draw(params()), state, draw(slots(state)))


@st.composite
def virtual_proposals(draw: st.DrawFn) -> m.VirtualProposal:
    base = draw(bases())
    parts = len(base.init_bals.balances[0])
    maps = st.lists(st.integers(0, parts - 1), max_size=parts).map(tuple)
    return m.VirtualProposal(
        base,
        draw(addresses),
        tuple(draw(st.lists(addresses, max_size=3))),
        tuple(draw(st.lists(channel_ids, max_size=3))),
        tuple(draw(st.lists(maps, max_size=3))),
    )


@st.composite
def virtual_fundings(draw: st.DrawFn) -> m.VirtualFunding:
    update = draw(updates)
    parts = len(update.state.balances[0])
    index_map = tuple(draw(st.lists(st.integers(0, parts - 1), max_size=parts)))
    return m.VirtualFunding(update, draw(signed_states()), index_map)


peers = st.lists(addresses, min_size=2, max_size=4).map(tuple)
messages: SearchStrategy[Message] = st.one_of(
    st.builds(m.Ping, times),
    st.builds(m.Pong, times),
    st.builds(m.Shutdown, texts),
    st.just(m.AuthResponse()),
    st.builds(m.LedgerProposal, bases(), addresses, peers),
    st.builds(m.LedgerProposalAcc, accs, addresses),
    st.builds(m.SubProposal, bases(), channel_ids),
    st.builds(m.SubProposalAcc, accs),
    virtual_proposals(),
    st.builds(m.VirtualProposalAcc, accs, addresses),
    st.builds(m.ProposalRej, proposal_ids, texts),
    updates,
    virtual_fundings(),
    st.builds(m.VirtualSettlement, updates, signed_states()),
    st.builds(m.UpdateAcc, channel_ids, versions, sigs),
    st.builds(m.UpdateRej, channel_ids, versions, texts),
    st.builds(m.Sync, st.integers(0, 11), transactions()),
)
envelopes = st.builds(Envelope, addresses, addresses, messages)


@settings(max_examples=400, deadline=None)
@given(envelopes)
def test_what_is_written_is_read(envelope: Envelope) -> None:
    data = encode(envelope)
    assert decode(data, APPS) == envelope
    assert StreamDecoder(APPS, limit=len(data)).feed(data) == [envelope]


@settings(max_examples=100, deadline=None)
@given(st.lists(envelopes, min_size=1, max_size=4), st.lists(st.integers(1, 90), min_size=1))
def test_what_is_written_is_read_in_any_pieces(sent: list[Envelope], sizes: list[int]) -> None:
    data = b"".join(encode(envelope) for envelope in sent)
    decoder, found, at, turn = StreamDecoder(APPS), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += decoder.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    decoder.end()
    assert found == sent


# ------------------------------------------------------------------------------------------------------ random damage

STATE = State(
    ChannelID(b"\x01" * 32),
    7,
    Allocation(
        (Asset(Address(b"\xe0" * 20)), Asset(Address(b"\xe1" * 20))),
        ((10**18, 2 * 10**18), (3, 400)),
        (SubAlloc(ChannelID(b"\x02" * 32), (5, 6), (1, 0)), SubAlloc(ChannelID(b"\x03" * 32), (7, 8))),
    ),
    False,
    APP,
    b"12345678",
)
PLAIN = State(ChannelID(b"\x01" * 32), 1, Allocation((Asset(Address(b"\xe0" * 20)),), ((10**18, 2 * 10**18),)))
ALICE, BOB = Address(b"\xa1" * 20), Address(b"\xb0" * 20)
SIG, ID, SHARE = Sig(bytes(range(65))), ProposalID(b"\x0a" * 32), Bytes32(b"\x0b" * 32)
PARAMS = Params(60, (ALICE, BOB), None, 7**80, False, True)
BASE = m.BaseProposal(ID, 60, SHARE, None, b"", PLAIN.allocation, PLAIN.balances)
UPDATE = m.Update(STATE, 1, SIG)
ONE_OF_EACH: tuple[Message, ...] = (
    m.Ping(10**18),
    m.Pong(-1),
    m.Shutdown("bye"),
    m.AuthResponse(),
    m.LedgerProposal(BASE, ALICE, (ALICE, BOB)),
    m.LedgerProposalAcc(m.BaseProposalAcc(ID, SHARE), BOB),
    m.SubProposal(BASE, ChannelID(bytes(32))),
    m.SubProposalAcc(m.BaseProposalAcc(ID, SHARE)),
    m.VirtualProposal(BASE, ALICE, (ALICE, BOB), (ChannelID(bytes(32)),) * 2, ((0, 1), (1, 0))),
    m.VirtualProposalAcc(m.BaseProposalAcc(ID, SHARE), BOB),
    m.ProposalRej(ID, "no"),
    UPDATE,
    m.Update(PLAIN, 0, SIG),
    m.VirtualFunding(UPDATE, m.SignedState(PARAMS, PLAIN, (SIG, SIG)), (1, 0)),
    m.VirtualSettlement(UPDATE, m.SignedState(PARAMS, PLAIN, (SIG, SIG))),
    m.UpdateAcc(PLAIN.id, 1, SIG),
    m.UpdateRej(PLAIN.id, 1, "no"),
    m.Sync(3, Transaction(STATE, (SIG, None))),
)
VALID = tuple(encode(Envelope(ALICE, BOB, message)) for message in ONE_OF_EACH)


def test_there_is_one_message_of_each_type() -> None:
    assert {message.TYPE for message in ONE_OF_EACH} == set(m.MessageType)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with up to three bytes changed, removed, repeated or inserted."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(damaged))
        match chance.randrange(6):
            case 0 | 1:
                damaged[at] = chance.randrange(256)
            case 2:
                damaged[at] ^= 1 << chance.randrange(8)
            case 3:
                del damaged[at : at + chance.randint(1, 4)]
                damaged += b"\x00"
            case 4:
                damaged[at:at] = damaged[at : at + chance.randint(1, 40)]
            case _:
                damaged[at : at + 2] = chance.choice((b"\xff\xff", b"\x00\x04", b"\x01\x04", b"\x00\x00"))
    return bytes(damaged)


def test_damaged_messages_are_refused_waited_for_or_read() -> None:
    """100,000 of them; whatever is read can be written, and is read again as the same."""
    chance = random.Random(20240901)
    outcomes = {"refused": 0, "waits": 0, "read": 0}
    for turn in range(100_000):
        data = mutated(VALID[turn % len(VALID)], chance)
        try:
            found = StreamDecoder(APPS, limit=1 << 16).feed(data)
        except DecodeError:
            outcomes["refused"] += 1
            continue
        outcomes["read" if found else "waits"] += 1
        if found and turn % 10 == 0:
            assert decode(encode(found[0]), APPS) == found[0]
    assert min(outcomes.values()) > 1000, outcomes


@pytest.mark.parametrize("data", VALID, ids=[type(message).__name__ for message in ONE_OF_EACH])
def test_truncated_messages_are_waited_for(data: bytes) -> None:
    for length in range(len(data)):
        decoder = StreamDecoder(APPS)
        assert decoder.feed(data[:length]) == []
        with pytest.raises(DecodeError):
            decode(data[:length], APPS)
        if length:
            with pytest.raises(DecodeError):
                decoder.end()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    with suppress(DecodeError):
        StreamDecoder(APPS).feed(data)

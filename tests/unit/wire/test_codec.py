"""Composite values and messages: what is refused in either direction (PROTOCOL.md 1.5, 1.6, 3)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perun_core.apps import AppRegistry, PaymentApp
from perun_core.apps.registry import NO_APPS
from perun_core.channel import Allocation, Asset, Params, State, SubAlloc, Transaction
from perun_core.errors import DecodeError, EncodeError
from perun_core.values import MAX_UINT256, Address, Bytes32, ChannelID, ProposalID, Sig
from perun_core.wire import (
    Envelope,
    Message,
    decode,
    decode_params,
    decode_transaction,
    encode,
    encode_params,
    encode_transaction,
)
from perun_core.wire import messages as m
from perun_core.wire.decoding import parse_params
from perun_core.wire.perunio import run

ALICE, BOB, APP = Address(b"\xa1" * 20), Address(b"\xb0" * 20), Address(b"\xdd" * 20)
ETH, TOKEN = Asset(Address(b"\xe0" * 20)), Asset(Address(b"\xe1" * 20))
ID, OTHER_ID = ChannelID(b"\x01" * 32), ChannelID(b"\x02" * 32)
SIG = Sig(b"\x07" * 65)
ROWS = ((10, 20),)
STATE = State(ID, 5, Allocation((ETH,), ROWS))
PARAMS = Params(60, (ALICE, BOB), None, 7, True, False)
BASE = m.BaseProposal(ProposalID(b"\x0a" * 32), 60, Bytes32(b"\x0b" * 32), None, b"", Allocation((ETH,), ROWS), ROWS)
LEDGER = m.LedgerProposal(BASE, ALICE, (ALICE, BOB))
VIRTUAL = m.VirtualProposal(BASE, ALICE, (ALICE, BOB), (ID, OTHER_ID), ((0, 1), (1, 0)))


def whole(message: Message) -> Envelope:
    return Envelope(ALICE, BOB, message)


def test_worked_example_of_an_update() -> None:
    """PROTOCOL.md 3.11."""
    alice = Address.from_hex("19e7e376e7c213b7e7e7e46cc70a5dd086daff2a")
    bob = Address.from_hex("1563915e194d8cfba1943570603f7606a3115508")
    channel_id = ChannelID.from_hex("e930f2b84e80e3eccfe580ee72d1247e0ae53cf9a054a5ffdfb42a1ddce68eb2")
    allocation = Allocation((Asset(Address(b"\xaa" * 20)),), ((75 * 10**16, 225 * 10**16),))
    data = encode(Envelope(alice, bob, m.Update(State(channel_id, 1, allocation), 0, SIG)))
    assert data.hex() == (
        "140019e7e376e7c213b7e7e7e46cc70a5dd086daff2a14001563915e194d8cfba1943570603f7606a31155080b"
        "e930f2b84e80e3eccfe580ee72d1247e0ae53cf9a054a5ffdfb42a1ddce68eb201000000000000000100020000001400"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa01000200080a688906bd8b0000081f399b1438a10000000000000000" + "07" * 65
    )


@pytest.mark.parametrize(
    "allocation",
    [
        Allocation((), ()),
        Allocation((ETH,), ()),
        Allocation((ETH,), ((),)),
        Allocation((ETH,), ((1, 2), (3, 4))),
        Allocation((ETH, TOKEN), ((1, 2), (3,))),
        Allocation((ETH,), ((-1, 2),)),
        Allocation((ETH,), ((MAX_UINT256 + 1, 2),)),
        Allocation((ETH,), ((1,) * 1025,)),
        Allocation((ETH,) * 1025, ((1, 2),) * 1025),
        Allocation((ETH,), ROWS, (SubAlloc(OTHER_ID, ()),)),
        Allocation((ETH,), ROWS, (SubAlloc(OTHER_ID, (-1,)),)),
        Allocation((ETH,), ROWS, tuple(SubAlloc(OTHER_ID, (1,)) for _ in range(1025))),
        Allocation((replace(ETH, chain_id=5),), ROWS),
        Allocation((replace(ETH, backend_id=2),), ROWS),
    ],
)
def test_unreadable_allocations_are_not_written(allocation: Allocation) -> None:
    with pytest.raises(EncodeError):
        encode(whole(m.Update(replace(STATE, allocation=allocation), 0, SIG)))


class Foreign(Message, frozen=True):
    """A message this profile does not have."""

    TYPE = m.MessageType.PING


@pytest.mark.parametrize(
    "message",
    [
        m.Update(replace(STATE, version=1 << 64), 0, SIG),
        m.Update(replace(STATE, data=b"x"), 0, SIG),
        m.Update(replace(STATE, app=APP, data=bytes(65536)), 0, SIG),
        m.Update(STATE, 1 << 16, SIG),
        m.UpdateAcc(ID, -1, SIG),
        m.UpdateRej(ID, 1, "x" * 65536),
        m.Ping(1 << 63),
        m.Sync(12, Transaction(STATE, (None, None))),
        m.Sync(3, Transaction(STATE, (None,))),
        m.Sync(3, Transaction(None, (SIG,))),
        replace(LEDGER, peers=(ALICE,)),
        replace(LEDGER, peers=(ALICE,) * 1025),
        replace(LEDGER, base=replace(BASE, challenge_duration=1 << 64)),
        replace(LEDGER, base=replace(BASE, funding_agreement=((1, 2), (3,)))),
        replace(LEDGER, base=replace(BASE, funding_agreement=((1,) * 1025,))),
        replace(VIRTUAL, index_maps=((65536,),)),
        m.VirtualSettlement(m.Update(STATE, 0, SIG), m.SignedState(PARAMS, STATE, (SIG,))),
        Foreign(),
    ],
)
def test_unreadable_messages_are_not_written(message: Message) -> None:
    with pytest.raises(EncodeError):
        encode(whole(message))


@pytest.mark.parametrize(
    "params",
    [
        replace(PARAMS, challenge_duration=0),
        replace(PARAMS, challenge_duration=1 << 64),
        replace(PARAMS, parts=(ALICE,)),
        replace(PARAMS, parts=(ALICE,) * 1025),
        replace(PARAMS, nonce=-1),
        replace(PARAMS, nonce=MAX_UINT256 + 1),
    ],
)
def test_unreadable_parameters_are_not_written(params: Params) -> None:
    with pytest.raises(EncodeError):
        encode_params(params)


def test_parameters_of_any_app_can_be_stored_but_not_received() -> None:
    params = replace(PARAMS, app=APP)
    data = encode_params(params)
    assert decode_params(data) == params
    assert run(parse_params(AppRegistry({APP: PaymentApp()})), data) == params
    with pytest.raises(DecodeError, match="unknown app"):
        run(parse_params(NO_APPS), data)


@pytest.mark.parametrize(
    "message",
    [
        m.Update(replace(STATE, allocation=Allocation((ETH, ETH), ((1, 2), (3, 4)))), 0, SIG),
        m.Update(
            replace(STATE, allocation=Allocation((ETH,), ROWS, (SubAlloc(OTHER_ID, (1,)), SubAlloc(OTHER_ID, (2,))))),
            0,
            SIG,
        ),
        m.Update(replace(STATE, allocation=Allocation((ETH,), ROWS, (SubAlloc(OTHER_ID, (1,), (0, 1, 0)),))), 0, SIG),
        m.Update(replace(STATE, allocation=Allocation((ETH,), ROWS, (SubAlloc(OTHER_ID, (1,), (0, 2)),))), 0, SIG),
        m.Update(replace(STATE, app=APP), 0, SIG),
        replace(VIRTUAL, index_maps=((0, 1), (0, 1, 1))),
        replace(VIRTUAL, index_maps=((0, 2), (0, 1))),
        m.VirtualFunding(m.Update(STATE, 0, SIG), m.SignedState(PARAMS, STATE, (SIG, SIG)), (0, 2)),
        m.VirtualSettlement(
            m.Update(STATE, 0, SIG), m.SignedState(replace(PARAMS, virtual_channel=True), STATE, (SIG, SIG))
        ),
    ],
)
def test_what_no_honest_peer_writes_is_not_read(message: Message) -> None:
    data = encode(whole(message))
    with pytest.raises(DecodeError):
        decode(data, NO_APPS)


def test_app_data_is_the_apps_affair() -> None:
    apps = AppRegistry({APP: PaymentApp(), BOB: Broken()})
    update = m.Update(replace(STATE, app=APP), 0, SIG)
    assert decode(encode(whole(update)), apps) == whole(update)
    for app, problem in ((APP, "refused"), (BOB, "failed to judge")):
        with pytest.raises(DecodeError, match=problem):
            decode(encode(whole(m.Update(replace(STATE, app=app, data=b"x"), 0, SIG))), apps)


class Broken(PaymentApp):
    """An app that cannot judge."""

    def check_data(self, data: bytes) -> None:
        raise ZeroDivisionError


def test_the_empty_transaction() -> None:
    assert encode_transaction(Transaction(None)) == b"\x00"
    assert decode_transaction(b"\x00", NO_APPS) == Transaction(None)
    with pytest.raises(DecodeError):
        decode_transaction(b"\x02", NO_APPS)
    with pytest.raises(DecodeError):
        decode_transaction(b"", NO_APPS)

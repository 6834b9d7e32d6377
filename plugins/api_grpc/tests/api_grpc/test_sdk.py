"""The encoding of the SDK's types (API.md 1.4): exact bytes out, every wrong shape named on the way in."""

from __future__ import annotations

from typing import Any

import pytest

from perun_api_grpc.errors import error_of, message_of
from perun_api_grpc.pb import funding_service_pb2 as fund
from perun_api_grpc.pb import sdktypes_pb2 as pb
from perun_api_grpc.sdk import (
    absent,
    balances_to,
    number_from,
    number_to,
    params_from,
    params_to,
    put_event,
    request_from,
    request_to,
    sigs_from,
    sigs_to,
    state_from,
    state_to,
)
from perun_core.channel import Allocation, Asset, Params, State, SubAlloc, Transaction
from perun_core.errors import ApiError, InvalidArgument, PeerNotFunded, TransactionTimedOut, UnknownInternal
from perun_core.ports.api import AdjudicatorEvent, AdjudicatorEventKind
from perun_core.values import MAX_UINT256, Address, ChannelID, Sig

ALICE, BOB, HOLDER, APP = (Address(bytes((number,)) * 20) for number in (1, 2, 3, 4))
ID = ChannelID(b"\x05" * 32)
SUB = SubAlloc(ChannelID(b"\x06" * 32), (7,), (1, 0))
PARAMS = Params(
    challenge_duration=60, parts=(ALICE, BOB), app=None, nonce=256, ledger_channel=True, virtual_channel=False
)
STATE = State(ID, 3, Allocation((Asset(HOLDER),), ((0, 10**18),)), is_final=True)
SIGS = (Sig(b"s" * 65), None)


def test_numbers_are_big_endian_without_leading_zeros_and_zero_is_empty() -> None:
    known = {0: b"", 1: b"\x01", 255: b"\xff", 256: b"\x01\x00", MAX_UINT256: b"\xff" * 32}
    for number, data in known.items():
        assert number_to(number) == data and number_from(data, "x") == number
    assert number_from(b"\x00\x00\x01", "x") == 1
    with pytest.raises(OverflowError):
        number_to(-1)
    for data in (b"\x01" + bytes(32), bytes(1_000_000)):
        with pytest.raises(InvalidArgument) as caught:
            number_from(data, "state")
        assert caught.value.info["name"] == "state" and len(str(caught.value.info["value"])) <= 64


def test_parameters_and_states_are_written_as_the_sdk_writes_them() -> None:
    params = params_to(PARAMS)
    assert params == pb.Params(
        challenge_duration=60, parts=[b"\x01" * 20, b"\x02" * 20], nonce=b"\x01\x00", ledger_channel=True
    )
    assert params.id == b"" and params.app == b""
    balance = pb.Balance(balance=[b"", (10**18).to_bytes(8, "big")])
    allocation = pb.Allocation(assets=[b"\x03" * 20], balances=pb.Balances(balances=[balance]))
    assert state_to(STATE) == pb.State(id=b"\x05" * 32, version=3, allocation=allocation, is_final=True)
    assert balances_to(STATE.balances) == allocation.balances
    assert sigs_to(SIGS) == [b"s" * 65, b""]


@pytest.mark.parametrize(
    "state",
    [
        STATE,
        State(ID, 0, Allocation((), ())),
        State(ID, 2**64 - 1, Allocation((Asset(HOLDER), Asset(BOB)), ((1, 2), (3, 4)), (SUB,)), app=APP, data=b"data"),
    ],
)
def test_what_is_written_is_read_again(state: State) -> None:
    assert state_from(pb.State.FromString(state_to(state).SerializeToString())) == state
    assert params_from(params_to(PARAMS)) == PARAMS
    assert sigs_from(sigs_to(SIGS)) == SIGS
    request = request_from(request_to(PARAMS, Transaction(state, SIGS), 1, secondary=True))
    assert (request.params, request.account, request.tx, request.index, request.secondary) == (
        PARAMS,
        BOB,
        Transaction(state, SIGS),
        1,
        True,
    )


def changed(**parts: Any) -> pb.AdjudicatorReq:
    message = request_to(PARAMS, Transaction(STATE, (SIGS[0], SIGS[0])), 0)
    for name, value in parts.items():
        target: Any = message
        *path, last = name.split("__")
        for step in path:
            target = getattr(target, step)
        if value is None:
            target.ClearField(last)
        elif isinstance(value, list):
            target.ClearField(last)
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)
    return message


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (changed(params=None), "params"),
        (changed(tx=None), "tx"),
        (changed(tx__state=None), "state"),
        (changed(acc=b""), "acc"),
        (changed(acc=bytes(21)), "acc"),
        (changed(params__parts=[bytes(19)]), "params"),
        (changed(params__app=b"x"), "params"),
        (changed(tx__state__id=b""), "chID"),
        (changed(tx__state__id=bytes(31)), "chID"),
        (changed(tx__state__app=bytes(32)), "state"),
        (changed(tx__state__allocation__assets=[b""]), "state"),
        (changed(tx__state__allocation__locked=[pb.SubAlloc(id=bytes(3))]), "state"),
        (changed(tx__state__allocation__locked=[
            pb.SubAlloc(id=bytes(32), index_map=pb.IndexMap(index_map=[65536]))
        ]), "state"),
        (changed(tx__sigs=[bytes(64)]), "sigs"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_an_argument_error_that_names_the_part(message: pb.AdjudicatorReq, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        request_from(message)
    assert caught.value.info["name"] == name and caught.value.message


def test_events_carry_the_time_as_the_sdk_reads_it() -> None:
    registered = AdjudicatorEvent(ID, AdjudicatorEventKind.REGISTERED, 3, 1_700_000_000, STATE, (Sig(b"s" * 65),))
    told = put_event(fund.SubscribeResp(), registered).registeredEvent
    base = told.adjudicatorEventBase
    assert (base.chID, base.version, base.timeout.sec) == (bytes(ID), 3, 1_700_000_000)
    assert base.timeout.type == pb.AdjudicatorEventBase.TimeoutType.ethBlock
    assert told.state == state_to(STATE) and list(told.sigs) == [b"s" * 65]
    unknown = AdjudicatorEvent(ID, AdjudicatorEventKind.PROGRESSED, 4, 5)
    state = put_event(fund.SubscribeResp(), unknown).progressedEvent.state
    assert (state.id, state.version) == (bytes(ID), 4) and state.allocation.HasField("balances")
    over = put_event(fund.SubscribeResp(), AdjudicatorEvent(ID, AdjudicatorEventKind.CONCLUDED, 4, 5))
    timeout = over.concludedEvent.adjudicatorEventBase.timeout
    assert (timeout.sec, timeout.type) == (-1, pb.AdjudicatorEventBase.TimeoutType.elapsed)


@pytest.mark.parametrize(
    "error",
    [PeerNotFunded("bob"), TransactionTimedOut("fund", "0x1", "10s"), absent("params"), UnknownInternal("because")],
)
def test_an_error_of_another_node_is_the_same_error_here(error: ApiError) -> None:
    told = error_of(message_of(error))
    assert type(told) is type(error) and (told.message, told.info) == (error.message, error.info)

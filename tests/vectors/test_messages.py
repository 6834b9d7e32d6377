"""States, parameters, transactions and messages on the wire, whole and in pieces (PROTOCOL.md 3)."""

from __future__ import annotations

import pytest

from perun_core.apps import AppRegistry
from perun_core.errors import DecodeError, EncodeError
from perun_core.profile.gp090 import PROFILE
from perun_core.values import MAX_UINT256
from perun_core.wire import DEFAULT_MESSAGE_LIMIT, Envelope, MessageType, StreamDecoder, decode, encode

from .forms import agrees, decoded, encoded, form
from .loader import Case, Vectors, reads
from .values import data_of, envelope, transaction


def fed(apps: AppRegistry, pieces: list[bytes]) -> list[Envelope]:
    """What a stream in these pieces contains."""
    decoder = StreamDecoder(apps)
    found = [message for piece in pieces for message in decoder.feed(piece)]
    decoder.end()
    return found


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@reads("messages.json", "messages")
def test_messages_are_written_and_read(case: Case, apps: AppRegistry) -> None:
    data, value = data_of(case), envelope(case)
    assert len(data) == case["length"]
    assert MessageType(case["type"]) is value.message.TYPE
    assert encode(value) == PROFILE.encode(value) == data
    assert decode(data, apps) == value
    agrees({"type": "envelope", "value": case, "bytes": case["bytes"]}, apps)


@reads("messages.json", "messages")
@pytest.mark.parametrize("size", [1, 2, 3, 9, 64])
def test_messages_are_read_in_pieces(case: Case, apps: AppRegistry, size: int) -> None:
    assert fed(apps, cut(data_of(case), size)) == [envelope(case)]


@reads("messages.json", "messages")
def test_every_proper_prefix_waits_and_a_stream_must_not_end_there(case: Case, apps: AppRegistry) -> None:
    data = data_of(case)
    for length in range(1, len(data)):
        decoder = PROFILE.decoder(apps, limit=DEFAULT_MESSAGE_LIMIT)
        assert decoder.feed(data[:length]) == []
        with pytest.raises(DecodeError):
            decoder.end()


@reads("messages.json", "messages")
def test_the_limit_is_the_size_of_the_message(case: Case, apps: AppRegistry) -> None:
    data = data_of(case)
    assert StreamDecoder(apps, limit=len(data)).feed(data) == [envelope(case)]
    with pytest.raises(DecodeError):
        StreamDecoder(apps, limit=len(data) - 1).feed(data)


@reads("messages.json", "messages")
def test_all_messages_in_one_stream(cases: list[Case], apps: AppRegistry) -> None:
    whole = b"".join(data_of(case) for case in cases)
    expected = [envelope(case) for case in cases]
    assert fed(apps, [whole]) == expected
    for size in (1, 7, 500, 4096):
        assert fed(apps, cut(whole, size)) == expected


@reads("messages.json", "streams")
def test_streams(case: Case, apps: AppRegistry, vectors: Vectors) -> None:
    named = {message["name"]: message for message in vectors.cases("messages.json", "messages")}
    expected = [envelope(named[name]) for name in case["messages"]]
    for size in (1, 5, len(data_of(case))):
        assert fed(apps, cut(data_of(case), size)) == expected
    assert b"".join(encode(message) for message in expected) == data_of(case)


@reads("transactions.json", "transactions")
def test_transactions(case: Case, apps: AppRegistry) -> None:
    typed = {"type": "transaction", "value": case, "bytes": case["bytes"]}
    agrees(typed, apps)
    assert PROFILE.encode_transaction(transaction(case)) == data_of(case)
    assert PROFILE.decode_transaction(data_of(case), apps) == transaction(case)


@reads("states.json", "states")
def test_states(case: Case, apps: AppRegistry) -> None:
    agrees({**case, "type": "state"}, apps)


@reads("channel_id.json", "params")
def test_params(case: Case, apps: AppRegistry) -> None:
    typed = {**case, "type": "params"}
    value = form(typed, apps).build(case["value"])
    if value.ledger_channel and value.virtual_channel:  # can be written, must not be read (1.6)
        assert encoded(typed, apps, value) == data_of(case)
        with pytest.raises(DecodeError):
            PROFILE.decode_params(data_of(case))
        return
    agrees(typed, apps)
    assert PROFILE.encode_params(value) == data_of(case)
    assert PROFILE.decode_params(data_of(case)) == value


@reads("states.json", "same_hash")
def test_states_of_one_hash_have_different_wire_forms(case: Case, apps: AppRegistry) -> None:
    for entry in case["states"]:
        typed = {**entry, "type": "state"}
        value = form(typed, apps).build(entry["value"])
        if all(amount <= MAX_UINT256 for row in value.balances for amount in row):
            agrees(typed, apps)
        else:
            with pytest.raises(EncodeError):
                encoded(typed, apps, value)
            with pytest.raises(DecodeError):
                decoded(typed, apps, data_of(entry))

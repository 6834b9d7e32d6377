"""Streams: pieces, damage, limits (PROTOCOL.md 1.6, 4.1)."""

from __future__ import annotations

import pytest

from perun_core.apps.registry import NO_APPS
from perun_core.channel import Allocation, Asset, State
from perun_core.errors import DecodeError
from perun_core.values import Address, ChannelID, Sig
from perun_core.wire import Envelope, StreamDamaged, StreamDecoder, encode
from perun_core.wire.messages import AuthResponse, Ping, Shutdown, Update

ALICE, BOB = Address(b"\xa1" * 20), Address(b"\xb0" * 20)
PING = Envelope(ALICE, BOB, Ping(1))
AUTH = Envelope(ALICE, BOB, AuthResponse())
UPDATE = Envelope(
    ALICE,
    BOB,
    Update(State(ChannelID(bytes(32)), 1, Allocation((Asset(ALICE),), ((1, 2),))), 0, Sig(bytes(65))),
)
LARGE = Envelope(ALICE, BOB, Shutdown("x" * 65535))


def test_several_messages_in_one_piece() -> None:
    decoder = StreamDecoder(NO_APPS)
    assert decoder.feed(encode(PING) + encode(AUTH) + encode(UPDATE)) == [PING, AUTH, UPDATE]
    decoder.end()


def test_a_message_without_body_is_complete_with_its_type() -> None:
    decoder = StreamDecoder(NO_APPS)
    assert decoder.feed(encode(AUTH)) == [AUTH]
    decoder.end()


@pytest.mark.parametrize("first", range(0, 120, 7))
def test_pieces_that_end_anywhere(first: int) -> None:
    data = encode(PING) + encode(UPDATE) + encode(PING)
    decoder = StreamDecoder(NO_APPS)
    assert decoder.feed(data[:first]) + decoder.feed(b"") + decoder.feed(data[first:]) == [PING, UPDATE, PING]


def test_a_stream_may_end_between_messages_only() -> None:
    decoder = StreamDecoder(NO_APPS)
    decoder.end()
    decoder.feed(encode(PING) + b"\x14")
    with pytest.raises(DecodeError, match="after 1 bytes"):
        decoder.end()


def test_damage_names_what_was_complete_before_and_is_final() -> None:
    decoder = StreamDecoder(NO_APPS)
    with pytest.raises(StreamDamaged, match="unknown message type 255") as raised:
        decoder.feed(encode(PING) + encode(AUTH)[:44] + b"\xff")
    assert raised.value.complete == (PING,)
    with pytest.raises(DecodeError, match="before"):
        decoder.feed(encode(PING))
    with pytest.raises(DecodeError, match="before"):
        decoder.end()


def test_messages_above_the_limit_are_refused_as_soon_as_their_length_is_known() -> None:
    decoder = StreamDecoder(NO_APPS, limit=1000)
    assert decoder.feed(encode(PING)) == [PING]
    with pytest.raises(StreamDamaged, match="more than 1000 bytes"):
        decoder.feed(encode(LARGE)[:47])


def test_the_limit_counts_each_message_by_itself() -> None:
    decoder = StreamDecoder(NO_APPS, limit=len(encode(UPDATE)))
    assert decoder.feed(encode(UPDATE) * 5) == [UPDATE] * 5


def test_announced_balances_cannot_exceed_the_limit() -> None:
    """1024 times 1024 balances of one byte each are legal numbers, but more than fits."""
    head = encode(UPDATE)[:85]
    assets = b"".join(b"\x14\x00" + index.to_bytes(20, "big") for index in range(1024))
    dimensions = (1024).to_bytes(2, "little") * 2
    decoder = StreamDecoder(NO_APPS, limit=100_000)
    assert decoder.feed(head + dimensions + b"\x00\x00" + assets + dimensions) == []
    with pytest.raises(StreamDamaged, match="more than 100000 bytes"):
        for _ in range(100):
            assert decoder.feed(bytes(1000)) == []


def test_a_large_field_in_single_bytes() -> None:
    decoder = StreamDecoder(NO_APPS)
    found = [message for byte in encode(LARGE) for message in decoder.feed(bytes((byte,)))]
    assert found == [LARGE]


def test_two_decoders_share_nothing() -> None:
    one, two = StreamDecoder(NO_APPS), StreamDecoder(NO_APPS)
    one.feed(encode(PING)[:10])
    assert two.feed(encode(PING)) == [PING]
    assert one.feed(encode(PING)[10:]) == [PING]

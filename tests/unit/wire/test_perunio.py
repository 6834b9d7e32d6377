"""Primitives: limits and canonical forms (PROTOCOL.md 1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perun_core.errors import DecodeError, EncodeError
from perun_core.values import MAX_UINT256, Sig
from perun_core.wire import perunio as p

SIG = Sig(b"\x07" * 65)


def written(write: Callable[[bytearray], None]) -> bytes:
    out = bytearray()
    write(out)
    return bytes(out)


def test_run_takes_exactly_what_is_there() -> None:
    assert p.run(p.parse_u16(), b"\x01\x02") == 0x201
    with pytest.raises(DecodeError, match="left over"):
        p.run(p.parse_u16(), b"\x01\x02\x03")
    with pytest.raises(DecodeError, match="are needed"):
        p.run(p.parse_u16(), b"\x01")


@pytest.mark.parametrize(("byte", "value"), [(0, False), (1, True), (2, True), (255, True)])
def test_every_byte_but_zero_is_true(byte: int, value: bool) -> None:
    assert p.run(p.parse_bool(), bytes([byte])) is value


def test_integers_tolerate_leading_zeros_and_are_written_without() -> None:
    assert p.run(p.parse_bigint(), b"\x03\x00\x00\x05") == 5
    assert written(lambda out: p.write_bigint(out, 5)) == b"\x01\x05"
    assert written(lambda out: p.write_bigint(out, 0)) == b"\x00"
    assert p.run(p.parse_amounts(2), b"\x02\x00\x05\x01\x06") == (5, 6)
    assert written(lambda out: p.write_amounts(out, (5, 0))) == b"\x01\x05\x00"


def test_integers_have_at_most_128_bytes() -> None:
    largest = 2**1024 - 1
    assert p.run(p.parse_bigint(), b"\x80" + b"\xff" * 128) == largest
    assert written(lambda out: p.write_bigint(out, largest)) == b"\x80" + b"\xff" * 128
    for bad in (largest + 1, -1):
        with pytest.raises(EncodeError):
            p.write_bigint(bytearray(), bad)
    for parser in (p.parse_bigint(), p.parse_amounts(1), p.parse_amounts(2)):
        with pytest.raises(DecodeError, match="129 bytes"):
            p.run(parser, b"\x81" + b"\x00" * 200)


def test_amounts_have_at_most_256_bits() -> None:
    data = b"\x20" + b"\xff" * 32
    assert p.run(p.parse_amounts(1), data) == (MAX_UINT256,)
    assert written(lambda out: p.write_amounts(out, (MAX_UINT256,))) == data
    with pytest.raises(DecodeError, match="amount"):
        p.run(p.parse_amounts(1), b"\x21\x01" + bytes(32))
    for bad in (MAX_UINT256 + 1, -1):
        with pytest.raises(EncodeError):
            p.write_amounts(bytearray(), (bad,))


@pytest.mark.parametrize("size", [0, 1, 19, 21, 5120])
def test_addresses_have_20_bytes(size: int) -> None:
    for parser in (p.parse_address(), p.parse_addresses(1)):
        with pytest.raises(DecodeError, match=f"address of {size} bytes"):
            p.run(parser, size.to_bytes(2, "little") + bytes(20))


def test_text_has_at_most_65535_bytes_and_is_replaced_where_it_is_none() -> None:
    assert p.run(p.parse_string(), b"\x03\x00a\xffb") == "a\ufffdb"
    assert len(written(lambda out: p.write_string(out, "x" * 65535))) == 65537
    for bad in ("x" * 65536, "é" * 32768, "\ud800"):
        with pytest.raises(EncodeError):
            p.write_string(bytearray(), bad)
    with pytest.raises(EncodeError):
        p.write_bin(bytearray(), bytes(65536))


@pytest.mark.parametrize(
    ("write", "bad"),
    [
        (p.write_u16, -1),
        (p.write_u16, 1 << 16),
        (p.write_u64, -1),
        (p.write_u64, 1 << 64),
        (p.write_i64, -(1 << 63) - 1),
        (p.write_i64, 1 << 63),
    ],
)
def test_integers_out_of_range_are_not_written(write: Callable[[bytearray, int], None], bad: int) -> None:
    with pytest.raises(EncodeError):
        write(bytearray(), bad)


def test_index_maps_fit_the_channel() -> None:
    assert p.run(p.parse_index_map(2), b"\x02\x00\x01\x00\x00\x00") == (1, 0)
    assert p.run(p.parse_index_map(2), b"\x00\x00") == ()
    with pytest.raises(DecodeError, match="3 entries"):
        p.run(p.parse_index_map(2), b"\x03\x00" + bytes(6))
    with pytest.raises(DecodeError, match="does not exist"):
        p.run(p.parse_index_map(2), b"\x01\x00\x02\x00")
    with pytest.raises(EncodeError):
        p.write_index_map(bytearray(), (65536,))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 17])
def test_signatures_stand_behind_a_mask_with_the_lowest_bit_first(count: int) -> None:
    sigs = tuple(SIG if index in (0, count - 1) else None for index in range(count))
    data = written(lambda out: p.write_sparse_sigs(out, sigs, count))
    assert data[0] & 1
    assert len(data) == (count + 7) // 8 + 65 * sum(sig is not None for sig in sigs)
    assert p.run(p.parse_sparse_sigs(count), data) == sigs


def test_signature_masks_name_participants_only() -> None:
    with pytest.raises(DecodeError, match="mask"):
        p.run(p.parse_sparse_sigs(2), b"\x04" + SIG)


@pytest.mark.parametrize("sigs", [(), (None,), (None, None, None), (SIG[:64], None), (bytes(66), None)])
def test_signature_slots_fit_the_participants(sigs: tuple[bytes | None, ...]) -> None:
    with pytest.raises(EncodeError):
        p.write_sparse_sigs(bytearray(), sigs, 2)

"""Primitives of perunio, the serialisation of profile gp090: a plain concatenation of fields (PROTOCOL.md 1).

Reading is written as generators, so that a stream may arrive in pieces of any size and nothing is ever parsed twice:
a parser *yields the number of bytes it needs next* and is sent exactly that many; its return value is what it parsed.
It never asks for bytes that the value might not have, so a complete value is never waited for. Writing appends to a
buffer of the caller, who throws the buffer away when a value turns out to be unwritable.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from struct import Struct
from typing import Final, TypeVar

from ..errors import DecodeError, EncodeError
from ..values import MAX_UINT256, Address, Bytes32, Sig

T = TypeVar("T")

Parser = Generator[int, bytes, T]
"""Yields how many bytes it needs, is sent exactly these, returns the value. Raises: DecodeError."""

MAX_BIGINT_BYTES: Final = 128
MAX_UINT16: Final = 65535

U16: Final = Struct("<H")
U64: Final = Struct("<Q")
I64: Final = Struct("<q")

_ADDRESS_HEAD: Final = U16.pack(Address.SIZE)
ADDRESS_BYTES: Final = len(_ADDRESS_HEAD) + Address.SIZE
"""Bytes of an address, asset or app definition on the wire: its length and 20 bytes."""


# ------------------------------------------------------------------------------------------------------------ reading


def run(parser: Parser[T], data: bytes) -> T:
    """The value in exactly `data`. Raises: DecodeError when bytes are missing, left over or wrong."""
    position = 0
    try:
        needed = next(parser)
        while position + needed <= len(data):
            chunk = data[position : position + needed]
            position += needed
            needed = parser.send(chunk)
    except StopIteration as done:
        if position != len(data):
            raise DecodeError(f"{len(data) - position} bytes left over") from None
        value: T = done.value
        return value
    parser.close()
    raise DecodeError(f"ended after {len(data)} bytes, {position + needed} are needed")


def parse_bool() -> Parser[bool]:
    """Every byte but zero is true (PROTOCOL.md 1.6)."""
    return (yield 1) != b"\x00"


def parse_u8() -> Parser[int]:
    """One byte."""
    return (yield 1)[0]


def parse_u16() -> Parser[int]:
    """Two bytes, little-endian."""
    value: int = U16.unpack((yield 2))[0]
    return value


def parse_u64() -> Parser[int]:
    """Eight bytes, little-endian, unsigned."""
    value: int = U64.unpack((yield 8))[0]
    return value


def parse_i64() -> Parser[int]:
    """Eight bytes, little-endian, signed; also a time in nanoseconds since the epoch."""
    value: int = I64.unpack((yield 8))[0]
    return value


def parse_bigint() -> Parser[int]:
    """A magnitude of at most 128 bytes; leading zero bytes are tolerated (PROTOCOL.md 1.2)."""
    size = (yield 1)[0]
    if size > MAX_BIGINT_BYTES:
        raise DecodeError(f"integer of {size} bytes")
    return int.from_bytes((yield size), "big")


def parse_amounts(count: int) -> Parser[tuple[int, ...]]:
    """`count` integers of at most 2^256 − 1 each, the largest the chain can hold (PROTOCOL.md 1.6)."""
    if not count:
        return ()
    values: list[int] = []
    size = (yield 1)[0]
    for left in range(count - 1, -1, -1):
        if size > MAX_BIGINT_BYTES:
            raise DecodeError(f"integer of {size} bytes")
        if left:  # take the length byte of the next one along
            chunk = yield size + 1
            value = int.from_bytes(chunk[:size], "big")
            size = chunk[size]
        else:
            value = int.from_bytes((yield size), "big")
        if value > MAX_UINT256:
            raise DecodeError("amount above 2^256 - 1")
        values.append(value)
    return tuple(values)


def parse_address() -> Parser[Address]:
    """A wire identity, participant, asset or app definition; the length must be 20, never 0 (PROTOCOL.md 1.6, 2.1)."""
    return _address((yield ADDRESS_BYTES))


def parse_addresses(count: int) -> Parser[tuple[Address, ...]]:
    """`count` addresses back to back."""
    chunk = yield ADDRESS_BYTES * count
    return tuple(_address(chunk[at : at + ADDRESS_BYTES]) for at in range(0, len(chunk), ADDRESS_BYTES))


def _address(chunk: bytes) -> Address:
    if chunk[:2] != _ADDRESS_HEAD:
        raise DecodeError(f"address of {U16.unpack(chunk[:2])[0]} bytes")
    return Address(chunk[2:])


def parse_string() -> Parser[str]:
    """Text of at most 65535 bytes; what is not UTF-8 is replaced (PROTOCOL.md 1.6)."""
    size: int = U16.unpack((yield 2))[0]
    return (yield size).decode(errors="replace")


def parse_bin() -> Parser[bytes]:
    """At most 65535 bytes behind their length."""
    size: int = U16.unpack((yield 2))[0]
    return (yield size)


def parse_ids(count: int) -> Parser[tuple[Bytes32, ...]]:
    """`count` 32-byte values back to back."""
    chunk = yield 32 * count
    return tuple(Bytes32(chunk[at : at + 32]) for at in range(0, len(chunk), 32))


def parse_index_map(parts: int) -> Parser[tuple[int, ...]]:
    """At most `parts` entries, each less than `parts`; none at all stands for the identity (PROTOCOL.md 1.6)."""
    size: int = U16.unpack((yield 2))[0]
    if size > parts:
        raise DecodeError(f"index map of {size} entries in a channel of {parts} participants")
    chunk = yield 2 * size
    entries = tuple(entry for (entry,) in U16.iter_unpack(chunk))
    if any(entry >= parts for entry in entries):
        raise DecodeError("index map points at a participant that does not exist")
    return entries


def parse_sparse_sigs(count: int) -> Parser[tuple[Sig | None, ...]]:
    """`count` optional signatures behind their bit mask, lowest bit first, surplus bits clear (PROTOCOL.md 1.4)."""
    mask = int.from_bytes((yield (count + 7) >> 3), "little")
    if mask >> count:
        raise DecodeError("signature mask names participants that do not exist")
    chunk = yield Sig.SIZE * mask.bit_count()
    sigs = iter(Sig(chunk[at : at + Sig.SIZE]) for at in range(0, len(chunk), Sig.SIZE))
    return tuple(next(sigs) if mask >> index & 1 else None for index in range(count))


# ------------------------------------------------------------------------------------------------------------ writing


def write_u16(out: bytearray, value: int, what: str = "value") -> None:
    """Raises: EncodeError unless 0 ≤ value ≤ 65535."""
    if not 0 <= value <= MAX_UINT16:
        raise EncodeError(f"{what} out of range: {value}")
    out += U16.pack(value)


def write_u64(out: bytearray, value: int, what: str = "value") -> None:
    """Raises: EncodeError unless 0 ≤ value < 2^64."""
    if not 0 <= value < 1 << 64:
        raise EncodeError(f"{what} out of range: {value}")
    out += U64.pack(value)


def write_i64(out: bytearray, value: int, what: str = "value") -> None:
    """Raises: EncodeError unless −2^63 ≤ value < 2^63."""
    if not -(1 << 63) <= value < 1 << 63:
        raise EncodeError(f"{what} out of range: {value}")
    out += I64.pack(value)


def write_bigint(out: bytearray, value: int) -> None:
    """The shortest form. Raises: EncodeError when negative or longer than 128 bytes."""
    size = (value.bit_length() + 7) >> 3
    if value < 0 or size > MAX_BIGINT_BYTES:
        raise EncodeError("integer is negative or too long")
    out += ((size << (8 * size)) | value).to_bytes(size + 1, "big")


def write_amounts(out: bytearray, values: Sequence[int]) -> None:
    """Integers of at most 2^256 − 1, back to back. Raises: EncodeError."""
    for value in values:
        if not 0 <= value <= MAX_UINT256:
            raise EncodeError("amount is negative or above 2^256 - 1")
        size = (value.bit_length() + 7) >> 3
        out += ((size << (8 * size)) | value).to_bytes(size + 1, "big")


def write_address(out: bytearray, value: Address) -> None:
    """Length and 20 bytes."""
    out += _ADDRESS_HEAD
    out += value


def write_string(out: bytearray, value: str) -> None:
    """Raises: EncodeError when it has more than 65535 bytes as UTF-8, or is not representable in it."""
    try:
        write_bin(out, value.encode())
    except UnicodeEncodeError as error:
        raise EncodeError("text is not representable as UTF-8") from error


def write_bin(out: bytearray, value: bytes) -> None:
    """Raises: EncodeError when longer than 65535 bytes."""
    write_u16(out, len(value), "length")
    out += value


def write_index_map(out: bytearray, entries: Sequence[int]) -> None:
    """Raises: EncodeError when an entry or their number exceeds 65535."""
    write_u16(out, len(entries), "length of an index map")
    for entry in entries:
        write_u16(out, entry, "entry of an index map")


def write_sparse_sigs(out: bytearray, sigs: Sequence[bytes | None], count: int) -> None:
    """Raises: EncodeError unless there are `count` slots, each empty or of 65 bytes (PROTOCOL.md 1.4)."""
    if len(sigs) != count:
        raise EncodeError(f"{len(sigs)} signature slots for {count} participants")
    mask = 0
    for index, sig in enumerate(sigs):
        if sig is not None:
            mask |= 1 << index
            if len(sig) != Sig.SIZE:
                raise EncodeError(f"signature of {len(sig)} bytes")
    out += mask.to_bytes((count + 7) >> 3, "little")
    for sig in sigs:
        if sig is not None:
            out += sig

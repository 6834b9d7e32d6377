"""The typed inputs of golden vectors: how each type is read, written and built from its JSON form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from perun_core.apps import AppRegistry
from perun_core.channel import Asset, WirePhase
from perun_core.errors import DecodeError
from perun_core.values import Address, Bytes32, Sig
from perun_core.wire import decoding as d
from perun_core.wire import encoding as e
from perun_core.wire import perunio as p

from . import values as v

Json = Any


class Form(NamedTuple):
    """How values of one type are handled."""

    parse: p.Parser[Any]
    write: Callable[[bytearray, Any], None]
    build: Callable[[Json], Any]


def little(size: int, *, signed: bool = False) -> Form:
    """Integers that occur in no message of their own; the codec reads them as part of others."""

    def parse() -> p.Parser[int]:
        return int.from_bytes((yield size), "little", signed=signed)

    def write(out: bytearray, value: int) -> None:
        out += value.to_bytes(size, "little", signed=signed)

    return Form(parse(), write, int)


def phase() -> p.Parser[int]:
    """The phase of a ChannelSync."""
    value = yield from p.parse_u8()
    if value > max(WirePhase):
        raise DecodeError(f"unknown phase {value}")
    return value


def raw(size: int) -> p.Parser[bytes]:
    """Bytes without a length."""
    return (yield size)


def sig() -> p.Parser[Sig]:
    """One signature."""
    return Sig((yield Sig.SIZE))


def counted(parse: Callable[[int], p.Parser[Any]]) -> p.Parser[Any]:
    """A list behind its length."""
    return (yield from parse((yield from p.parse_u16())))


def index_maps() -> p.Parser[tuple[tuple[int, ...], ...]]:
    """The index maps of a virtual channel's proposal, of any size."""
    count = yield from p.parse_u16()
    found = []
    for _ in range(count):
        found.append((yield from p.parse_index_map(p.MAX_UINT16 + 1)))
    return tuple(found)


def write_list(write: Callable[[bytearray, Any], None]) -> Callable[[bytearray, Any], None]:
    """A list behind its length."""

    def write_all(out: bytearray, values: tuple[Any, ...]) -> None:
        p.write_u16(out, len(values))
        for value in values:
            write(out, value)

    return write_all


def append(out: bytearray, value: bytes) -> None:
    """Bytes as they are."""
    out += value


def form(case: Json, apps: AppRegistry) -> Form:
    """The form of the typed input `case`."""
    kind, n = case["type"], case.get("n", 0)
    match kind:
        case "bool":
            return Form(p.parse_bool(), lambda out, value: out.append(value), bool)
        case "u8":
            return Form(p.parse_u8(), lambda out, value: out.append(value), int)
        case "phase":
            return Form(phase(), lambda out, value: out.append(value), int)
        case "u16" | "index":
            return Form(p.parse_u16(), p.write_u16, int)
        case "u32":
            return little(4)
        case "u64":
            return Form(p.parse_u64(), p.write_u64, int)
        case "i8" | "i16" | "i32":
            return little(int(kind[1:]) // 8, signed=True)
        case "i64" | "time":
            return Form(p.parse_i64(), p.write_i64, int)
        case "bigint":
            return Form(p.parse_bigint(), p.write_bigint, int)
        case "hash32":
            return Form(raw(32), append, Bytes32.from_hex)
        case "raw":
            return Form(raw(n), append, bytes.fromhex)
        case "sig":
            return Form(sig(), append, Sig.from_hex)
        case "string":
            return Form(p.parse_string(), p.write_string, v.text)
        case "app_data":
            return Form(d.parse_app_data(v.opt_app(case.get("app")), apps), p.write_bin, v.blob)
        case "address":
            return Form(p.parse_address(), p.write_address, Address.from_hex)
        case "asset":
            return Form(p.parse_address(), lambda out, value: e.write_asset(out, Asset(value)), Address.from_hex)
        case "opt_app":
            return Form(d.parse_opt_app(apps), e.write_opt_app, v.opt_app)
        case "opt_app_and_data":
            return Form(
                d.parse_app_and_data(apps),
                lambda out, value: e.write_app_and_data(out, *value),
                lambda value: (v.opt_app(value["app"]), v.blob(value["data"])),
            )
        case "address_list":
            return Form(counted(p.parse_addresses), write_list(p.write_address), v.addresses)
        case "id_list":
            return Form(
                counted(p.parse_ids), write_list(append), lambda value: tuple(Bytes32.from_hex(id_) for id_ in value)
            )
        case "index_map":
            return Form(p.parse_index_map(p.MAX_UINT16 + 1), p.write_index_map, tuple)
        case "index_maps":
            return Form(index_maps(), write_list(p.write_index_map), lambda value: tuple(map(tuple, value)))
        case "sparse_sigs":
            return Form(p.parse_sparse_sigs(n), lambda out, value: p.write_sparse_sigs(out, value, n), v.sigs)
        case "balances":
            return Form(d.parse_balances(), e.write_balances, v.balances)
        case "sub_alloc":
            return Form(
                d.parse_sub_alloc(n, p.MAX_UINT16 + 1), lambda out, value: e.write_sub_alloc(out, value, n), v.sub_alloc
            )
        case "allocation":
            return Form(d.parse_allocation(), e.write_allocation, v.allocation)
        case "state":
            return Form(d.parse_state(apps), e.write_state, v.state)
        case "params":
            return Form(d.parse_params(apps), e.write_params, v.params)
        case "transaction":
            return Form(d.parse_transaction(apps), e.write_transaction, v.transaction)
        case "envelope":
            return Form(d.parse_envelope(apps), e.write_envelope, v.envelope)
    raise AssertionError(f"vectors of an unknown type {kind}")


def decoded(case: Json, apps: AppRegistry, data: bytes) -> Any:
    """The value in exactly `data`. Raises: DecodeError."""
    return p.run(form(case, apps).parse, data)


def encoded(case: Json, apps: AppRegistry, value: Any) -> bytes:
    """The bytes of `value`. Raises: EncodeError."""
    out = bytearray()
    form(case, apps).write(out, value)
    return bytes(out)


def consumed(case: Json, apps: AppRegistry, data: bytes) -> tuple[Any, int]:
    """The value at the start of `data` and how many bytes it took. Raises: DecodeError."""
    parser, position = form(case, apps).parse, 0
    try:
        needed = next(parser)
        while True:
            if position + needed > len(data):
                raise DecodeError("more bytes are needed")
            chunk = data[position : position + needed]
            position += needed
            needed = parser.send(chunk)
    except StopIteration as done:
        return done.value, position


SAMPLED = 1000
"""From this length on not every prefix is tried, but those around the ends and some between."""


def prefixes(data: bytes) -> list[int]:
    """Lengths of proper prefixes to try."""
    if len(data) < SAMPLED:
        return list(range(len(data)))
    return [0, 1, 2, 3, *range(4, len(data), len(data) // 50), len(data) - 1]


def agrees(case: Json, apps: AppRegistry) -> None:
    """Reading and writing of a case agree, with and without bytes behind it, and no prefix is enough."""
    data = v.data_of(case)
    value = form(case, apps).build(case["value"])
    assert encoded(case, apps, value) == data
    assert decoded(case, apps, data) == value
    assert consumed(case, apps, data + b"\xa5" * 7) == (value, len(data))
    for length in prefixes(data):
        with pytest.raises(DecodeError):
            decoded(case, apps, data[:length])

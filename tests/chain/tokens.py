"""Tokens of every sort: contracts that name themselves as told and otherwise behave like the test token.

A small assembler makes them, so that no compiler is needed: `symbol()` and `decimals()` are answered with fixed bytes,
all other calls are delegated to the code of the test token; balances are written into storage at creation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from eth_utils.crypto import keccak

SYMBOL: Final = bytes.fromhex("95d89b41")
DECIMALS: Final = bytes.fromhex("313ce567")
BALANCES_SLOT: Final = 0
"""Storage slot of the test token's mapping of balances, its first variable."""

CALLDATALOAD, CALLDATASIZE, CALLDATACOPY, CODECOPY = b"\x35", b"\x36", b"\x37", b"\x39"
RETURNDATASIZE, RETURNDATACOPY = b"\x3d", b"\x3e"
SHR, EQ, DUP1, PUSH0, JUMPI, JUMPDEST, GAS, DELEGATECALL = (
    b"\x1c", b"\x14", b"\x80", b"\x5f", b"\x57", b"\x5b", b"\x5a", b"\xf4",
)  # fmt: skip
RETURN, REVERT, SSTORE = b"\xf3", b"\xfd", b"\x55"


class Label(str):
    """A place in the code; two bytes pushed where it is used, nothing where a `Mark` of the same name stands."""


class Mark(str):
    """Where the label of this name is."""


Piece = bytes | Label | Mark


def push(value: bytes) -> bytes:
    """PUSHn of `value`."""
    return bytes((0x5F + len(value),)) + value


def assembled(pieces: Sequence[Piece]) -> bytes:
    """The code, with labels resolved."""
    places: dict[str, int] = {}
    at = 0
    for piece in pieces:
        if isinstance(piece, Mark):
            places[str(piece)] = at
        else:
            at += 3 if isinstance(piece, Label) else len(piece)
    parts = []
    for piece in pieces:
        if isinstance(piece, Label):
            parts.append(push(places[str(piece)].to_bytes(2, "big")))
        elif isinstance(piece, bytes):
            parts.append(piece)
    return b"".join(parts)


def text_answer(symbol: str) -> bytes:
    """ABI encoding of a string."""
    raw = symbol.encode()
    padded = raw.ljust(-(-len(raw) // 32) * 32, b"\0")
    return (32).to_bytes(32, "big") + len(raw).to_bytes(32, "big") + padded


def bytes32_answer(symbol: str) -> bytes:
    """A symbol as the oldest tokens give it."""
    return symbol.encode().ljust(32, b"\0")


def number_answer(number: int) -> bytes:
    """ABI encoding of a number."""
    return number.to_bytes(32, "big")


def token_code(symbol: bytes | None, decimals: bytes | None, test_token: str, balances: Mapping[str, int]) -> bytes:
    """Creation code. `symbol` and `decimals` are whole answers; None reverts. `balances` in base units by address."""
    pieces: list[Piece] = [PUSH0, CALLDATALOAD, push(b"\xe0"), SHR]
    for selector, name in ((SYMBOL, "symbol"), (DECIMALS, "decimals")):
        pieces += [DUP1, push(selector), EQ, Label(name), JUMPI]
    pieces += [
        CALLDATASIZE, PUSH0, PUSH0, CALLDATACOPY,
        PUSH0, PUSH0, CALLDATASIZE, PUSH0, push(bytes.fromhex(test_token[2:])), GAS, DELEGATECALL,
        RETURNDATASIZE, PUSH0, PUSH0, RETURNDATACOPY,
        Label("done"), JUMPI, RETURNDATASIZE, PUSH0, REVERT,
        Mark("done"), JUMPDEST, RETURNDATASIZE, PUSH0, RETURN,
    ]  # fmt: skip
    for name, answer in (("symbol", symbol), ("decimals", decimals)):
        pieces += [Mark(name), JUMPDEST]
        if answer is None:
            pieces += [PUSH0, PUSH0, REVERT]
            continue
        size = push(len(answer).to_bytes(2, "big"))
        pieces += [size, Label(f"{name} data"), PUSH0, CODECOPY, size, PUSH0, RETURN]
    for name, answer in (("symbol", symbol), ("decimals", decimals)):
        pieces += [Mark(f"{name} data"), answer or b""]
    runtime = assembled(pieces)
    start: list[Piece] = []
    for account, amount in balances.items():
        slot = keccak(bytes(12) + bytes.fromhex(account[2:]) + BALANCES_SLOT.to_bytes(32, "big"))
        start += [push(amount.to_bytes(32, "big")), push(slot), SSTORE]
    size = push(len(runtime).to_bytes(2, "big"))
    start += [size, DUP1, Label("code"), PUSH0, CODECOPY, PUSH0, RETURN, Mark("code")]
    return assembled(start) + runtime

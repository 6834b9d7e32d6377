"""Amounts between users and the node: decimal text on one side, integers of base units on the other (API.md 3.3).

Exact in both directions; no floating point anywhere.
"""

from __future__ import annotations

import re
from typing import Final

from .values import MAX_UINT256

_GRAMMAR: Final = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?", re.ASCII)
_LONGEST: Final = 400
"""Characters of text that are looked at; the largest amount has fewer than 80 digits before and 255 after the point."""


def parse_amount(text: str, decimals: int, *, zero: bool = False) -> int:
    """Base units of `text` in a currency with `decimals`; surplus fractional digits are cut off, not rounded.

    `zero` accepts nought (opening balances); otherwise the result is at least one base unit.
    Raises: ValueError for anything that is not a non-negative decimal number in range.
    """
    match = _GRAMMAR.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError("not a decimal number")
    sign, whole, fraction, exponent_text = match.groups(default="")
    if not whole and not fraction:
        raise ValueError("not a decimal number")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        if zero and sign != "-":
            return 0
        raise ValueError("must be larger than zero")
    if sign == "-":
        raise ValueError("must not be negative")
    if len(exponent_text) > 6:
        raise ValueError("exponent out of range")
    shift = int(exponent_text or "0") - len(fraction) + decimals
    if len(digits) + shift > 78:
        raise ValueError("larger than 2^256 - 1 base units")
    value = int(digits) * 10**shift if shift >= 0 else int(digits[:shift] or "0")
    if value > MAX_UINT256:
        raise ValueError("larger than 2^256 - 1 base units")
    if value == 0:
        raise ValueError("smaller than one base unit")
    return value


def format_amount(value: int, decimals: int) -> str:
    """`value` base units as exact decimal text without trailing zeros and without exponent."""
    if decimals == 0:
        return str(value)
    whole, fraction = divmod(value, 10**decimals)
    digits = str(fraction).rjust(decimals, "0").rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)

"""Arguments as the user typed them: their form is checked here, their meaning is the node's business."""

from __future__ import annotations

import re
from typing import Final

from .escape import shown
from .failures import UsageFailure

ETH: Final = "ETH"
NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LONGEST_CHALLENGE: Final = 2**64 - 1
DEFAULT_CHAIN: Final = "ws://127.0.0.1:8545"
DEFAULT_CHALLENGE: Final = 10
"""Seconds, as the original client (API.md 6.1)."""


def amount(text: str) -> str:
    """`text`, if it has the form of an amount; its value is the node's business. Raises: UsageFailure."""
    if not text.isascii() or not NUMBER.fullmatch(text):
        raise UsageFailure(f"{shown(text)} is not an amount")
    return text


def currency(text: str) -> str:
    """`text`, if it can be the symbol of a currency. Raises: UsageFailure."""
    if not text or NUMBER.fullmatch(text):
        raise UsageFailure(f"{shown(text)} is not a currency")
    return text


def seconds(text: str, name: str) -> int:
    """A whole number of seconds, at least 1. Raises: UsageFailure."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:30]) <= LONGEST_CHALLENGE):
        raise UsageFailure(f"--{name} {shown(text)}: a whole number of seconds is expected")
    return int(text)

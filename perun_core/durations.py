"""Durations as configuration files and errors write them: Go's texts, whole nanoseconds (API.md 4.1)."""

from __future__ import annotations

import re
from typing import Final, Self

_NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5 micro sign
    "μs": 1_000,  # U+03BC Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART: Final = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?P<unit>ns|us|µs|μs|ms|s|m|h)")
_MAX: Final = 2**63 - 1


class Duration(int):
    """A signed span of time in nanoseconds; at most about 292 years, as in Go."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``10s``, ``1m0s``, ``1.5h``, ``-500ms``; a bare integer means nanoseconds.

        Fractions finer than a nanosecond are cut off. Raises: ValueError naming what is wrong.
        """
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        if digits.isascii() and digits.isdigit():
            # Longer than any representable number: refused before the conversion, which is slow for huge texts.
            total = int(digits) if len(digits) <= 20 else _MAX + 1
        else:
            total = _sum_of_parts(digits, text)
        if total > _MAX:
            raise ValueError(f"duration {_shown(text)} is too long")
        return cls(sign * total)

    @classmethod
    def of_seconds(cls, seconds: int) -> Self:
        """From whole seconds."""
        return cls(seconds * _NANOSECONDS["s"])

    @property
    def seconds(self) -> float:
        """The same span in seconds, for timers of the event loop."""
        return int(self) / _NANOSECONDS["s"]

    def __str__(self) -> str:
        """Go's text: ``0s``, ``1.5ms``, ``10s``, ``1m0s``, ``2h0m0s``."""
        sign, span = ("-", -int(self)) if self < 0 else ("", int(self))
        if span == 0:
            return "0s"
        for unit in ("ms", "µs", "ns"):
            if span < _NANOSECONDS["s"] and span >= _NANOSECONDS[unit]:
                return f"{sign}{_decimal(span, _NANOSECONDS[unit])}{unit}"
        minutes, rest = divmod(span, _NANOSECONDS["m"])
        hours, minutes = divmod(minutes, 60)
        shown_hours = f"{hours}h" if hours else ""
        shown_minutes = f"{minutes}m" if hours or minutes else ""
        return f"{sign}{shown_hours}{shown_minutes}{_decimal(rest, _NANOSECONDS['s'])}s"

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"


def _sum_of_parts(digits: str, text: str) -> int:
    total, at = 0, 0
    while at < len(digits):
        part = _PART.match(digits, at)
        if part is None or not (part["whole"] or part["fraction"]):
            raise ValueError(f"{_shown(text)} is not a duration such as 10s, 1m30s or 500ms")
        if len(digits) > 100:
            raise ValueError(f"duration {_shown(text)} is too long")
        unit = _NANOSECONDS[part["unit"]]
        fraction = part["fraction"] or ""
        total += int(part["whole"] or 0) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
        at = part.end()
    if at == 0:
        raise ValueError("a duration is missing")
    return total


def _decimal(span: int, unit: int) -> str:
    whole, rest = divmod(span, unit)
    fraction = str(rest).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")

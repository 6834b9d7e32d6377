"""What the demo prints: headings, sentences, tables, and a line that moves while something takes time.

Plain ASCII, so that it reads the same on every terminal and in every log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, TextIO

WHEEL: Final = "|/-\\"
FRAME_SECONDS: Final = 0.1
WIDTH: Final = 66


class Screen:
    """Prints to `out`. On a terminal a step shows a turning wheel and the time; elsewhere only its two ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._moves = out.isatty()

    def heading(self, text: str) -> None:
        """A new part of the story."""
        self.line()
        self.line(text)
        self.line("-" * len(text))

    def line(self, text: str = "") -> None:
        """One line as it is."""
        self._write(text + "\n")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of equal length; the first column left, the others right."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            self.line("    " + "   ".join([row[0].ljust(widths[0]), *rest]))

    @contextlib.asynccontextmanager
    async def step(self, text: str) -> AsyncIterator[None]:
        """Something that takes time; the line ends with how much. An error leaves the line marked as failed."""
        started = time.monotonic()
        label = f"  {text} ".ljust(WIDTH, ".")
        if not self._moves:
            self._write(label)
        wheel = asyncio.create_task(self._turn(label, started)) if self._moves else None
        outcome = "failed"
        try:
            yield
            outcome = duration_text(time.monotonic() - started)
        finally:
            if wheel is not None:
                wheel.cancel()
                self._write(f"\r{label}")
            self._write(f" {outcome:<12}".rstrip() + ("        " if self._moves else "") + "\n")

    async def _turn(self, label: str, started: float) -> None:
        for turn in range(1 << 30):
            self._write(f"\r{label} {WHEEL[turn % len(WHEEL)]} {time.monotonic() - started:.0f} s")
            await asyncio.sleep(FRAME_SECONDS)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def duration_text(seconds: float) -> str:
    """Seconds for people: milliseconds when it was quick."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.1 else f"{seconds:.1f} s"

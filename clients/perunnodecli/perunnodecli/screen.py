"""Where everything is printed: lines for people, coloured on a terminal, or one JSON object per line for programs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, TextIO

from .complaints import failed
from .failures import Failure, Json
from .replies import Notice, Reply, Table, Tone

_COLOURS: Final = {Tone.GOOD: "\x1b[32m", Tone.BAD: "\x1b[31m", Tone.PLAIN: ""}
_RESET: Final = "\x1b[0m"
_CLEAR_LINE: Final = "\r\x1b[K"
WHEEL: Final = "|/-\\"
TURN_SECONDS: Final = 0.15
PATIENCE_SECONDS: Final = 0.4
"""What takes less shows no progress."""


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """On a terminal that can, unless NO_COLOR says no."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Screen:
    """Prints to `out`; a single command's commentary and progress go to `err`.

    `separate` puts an empty line after each answer, as the original client does.
    """

    def __init__(
        self, out: TextIO, err: TextIO, *, colour: bool = False, tables: bool = False, json: bool = False
    ) -> None:
        self._out = out
        self._err = err
        self._colour = colour
        self._tables = tables
        self.json = json
        self.single = False
        self._progress = False

    def use(self, out: TextIO) -> None:
        """Print to another stream from now on: the one that keeps the typed line whole."""
        self._out = out

    # ---- answers and notifications ----------------------------------------------------------------------------------

    def answer(self, name: str, reply: Reply, *, json: bool = False) -> None:
        """The answer to the command `name`."""
        if json or self.json:
            self.object({"ok": True, "command": name, "result": reply.data})
        elif self.single and reply.value is not None:
            self._print(self._out, [reply.value], Tone.PLAIN)
            self._print(self._err, reply.lines, reply.tone)
        elif self._tables and reply.table is not None:
            self._write(self._out, self._drawn(reply.table))
        elif reply.lines:
            self._print(self._out, self._block(reply.lines), reply.tone)

    def failure(self, name: str, failure: Failure, *, json: bool = False) -> None:
        """The failure of the command `name`."""
        if json or self.json:
            self.object({"ok": False, "command": name, "error": failure.to_json()})
        else:
            stream = self._err if self.single else self._out
            self._print(stream, self._block(failed(name, failure).splitlines()), Tone.BAD)

    def notice(self, notice: Notice) -> None:
        """A notification."""
        if self.json:
            self.object({"event": notice.event, **notice.data})
        else:
            self._print(self._out, self._block(notice.lines), notice.tone)

    def object(self, value: dict[str, Json]) -> None:
        """One JSON object on a line; everything that is not plain ASCII is escaped."""
        self._write(self._out, json.dumps(value) + "\n")

    def say(self, text: str | Sequence[str], tone: Tone = Tone.PLAIN) -> None:
        """Something of the client itself; programs do not need it."""
        if not self.json:
            self._print(self._out, [text] if isinstance(text, str) else text, tone)

    def remark(self, text: str) -> None:
        """Commentary of a single command, beside its output."""
        if not self.json:
            self._print(self._err, [text], Tone.PLAIN)

    def clear(self) -> None:
        """An empty terminal."""
        if self._colour:
            self._write(self._out, "\x1b[2J\x1b[H")

    # ---- progress ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def step(self, text: str) -> AsyncIterator[None]:
        """Shows that something goes on, if it takes a while and somebody looks."""
        if not text or self.json or not self._err.isatty():
            yield
            return
        wheel = asyncio.create_task(self._turn(text))
        try:
            yield
        finally:
            wheel.cancel()
            await asyncio.gather(wheel, return_exceptions=True)
            self._wipe()

    async def _turn(self, text: str) -> None:
        started = time.monotonic()
        await asyncio.sleep(PATIENCE_SECONDS)
        for turn in range(1 << 30):
            self._err.write(f"{_CLEAR_LINE}{WHEEL[turn % len(WHEEL)]} {text} … {time.monotonic() - started:.0f} s")
            self._err.flush()
            self._progress = True
            await asyncio.sleep(TURN_SECONDS)

    def _wipe(self) -> None:
        if self._progress:
            self._progress = False
            self._err.write(_CLEAR_LINE)
            self._err.flush()

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _block(self, lines: Sequence[str]) -> list[str]:
        return list(lines) if self.single else [*lines, ""]

    def _print(self, stream: TextIO, lines: Sequence[str], tone: Tone) -> None:
        colour = _COLOURS[tone] if self._colour else ""
        end = _RESET if colour else ""
        self._write(stream, "".join(f"{colour}{line}{end}\n" if line else "\n" for line in lines))

    def _write(self, stream: TextIO, text: str) -> None:
        self._wipe()
        stream.write(text)
        stream.flush()

    def _drawn(self, table: Table) -> str:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        width = shutil.get_terminal_size().columns
        text = io.StringIO()
        drawn = RichTable(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD)
        for heading in table.headings:
            drawn.add_column(Text(heading), overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        system = "standard" if self._colour else None
        console = Console(file=text, width=width, force_terminal=self._colour, color_system=system)  # type: ignore[arg-type]
        console.print(drawn)
        return text.getvalue()

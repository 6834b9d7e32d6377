"""The shell on a terminal: completion, history, notifications above the line being typed.

Commands that wait for the peer or the chain go on beside the prompt, so that a notification can be answered meanwhile;
the bar at the bottom counts for them, and for what waits for an answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO, cast

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.patch_stdout import StdoutProxy

from .completion import CommandCompleter
from .escape import shown
from .failures import OK, UsageFailure
from .grammar import Call
from .replies import Tone
from .shell import Leave, Shell

PROMPT: Final = ">>> "
HISTORY: Final = ".perunnodecli_history"
AT_ONCE_SECONDS: Final = 0.3
"""A command that takes longer goes on beside the prompt."""
BESIDE: Final = frozenset(
    {
        "channel send-opening-request", "channel accept-opening-request", "channel close-n-settle-on-chain",
        "payment send-to-peer", "payment request-from-peer", "payment swap", "payment accept-payment-update-from-peer",
        "respond opening-request", "respond payment",
    }
)  # fmt: skip
"""Commands that may take as long as the peer or the chain likes."""
_SECRET: Final = ("session use", "session attach")


class History(FileHistory):
    """Lines of earlier shells, readable for the user only; lines with a session's ID are not kept."""

    def __init__(self, path: Path) -> None:
        with suppress(OSError):  # a home that cannot be written to: no history, but a shell
            os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        try:
            yield from super().load_history_strings()
        except OSError:
            return

    def store_string(self, string: str) -> None:
        if " ".join(string.split()).startswith(_SECRET):
            return
        with suppress(OSError):
            super().store_string(string)


@dataclass(slots=True, eq=False)
class Job:
    """A command that is under way."""

    text: str
    started: float
    task: asyncio.Task[int]


class Terminal:
    """Reads lines from the terminal until the user leaves."""

    def __init__(self, shell: Shell, *, colour: bool, history: Path) -> None:
        self._shell = shell
        self._screen = shell.screen
        self._jobs: list[Job] = []
        self._warned = False
        self._prompt: PromptSession[str] = PromptSession(
            PROMPT,
            history=History(history),
            completer=CommandCompleter(shell.desk),
            complete_while_typing=False,
            enable_history_search=True,
            bottom_toolbar=self._bar,
            key_bindings=self._keys(),
            refresh_interval=1.0,
            color_depth=None if colour else ColorDepth.MONOCHROME,
        )

    async def run(self) -> int:
        """Until the user leaves."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave_at_once)
        with StdoutProxy(raw=True, sleep_between_writes=0.05) as proxy:
            self._screen.use(cast(TextIO, proxy))
            try:
                await self._converse()
            finally:
                for job in self._jobs:
                    job.task.cancel()
                await asyncio.gather(*(job.task for job in self._jobs), return_exceptions=True)
        return OK

    async def _converse(self) -> None:
        while True:
            try:
                line = await self._prompt.prompt_async()
                self._warned = False
                call = self._shell.understand(line)
                if call is not None:
                    await self._start(call)
            except UsageFailure as failure:
                self._shell.not_understood(failure)
            except (EOFError, Leave):
                if self._may_leave():
                    self._shell.goodbye()
                    return

    async def _start(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        text = call.command.waits.format(*map(shown, call.arguments)) or call.command.full_name
        job = Job(text, loop.time(), asyncio.create_task(self._shell.carry_out(call)))
        self._jobs.append(job)
        job.task.add_done_callback(lambda _: self._jobs.remove(job))
        if call.command.full_name in BESIDE:
            await asyncio.wait([job.task], timeout=AT_ONCE_SECONDS)
            return
        loop.add_signal_handler(signal.SIGINT, job.task.cancel)
        try:
            async with self._screen.step(text):
                await asyncio.wait([job.task])
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        if job.task.cancelled():
            self._screen.say("Interrupted.", Tone.BAD)

    # ---- keys and signals -------------------------------------------------------------------------------------------

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.text:
                buffer.reset()
            elif self._jobs:
                self._give_up(self._jobs[-1])
            else:
                self._screen.say("Ctrl-D or exit leaves.")

        return keys

    def _give_up(self, job: Job) -> None:
        job.task.cancel()
        self._screen.say(
            [
                f"No longer waiting for: {job.text}.",
                "The node goes on with it if the peer or the chain has seen something of it already;",
                "'channel list-open-channels' and 'channel info' say what became of it.",
            ],
            Tone.BAD,
        )

    def _may_leave(self) -> bool:
        """Whoever leaves while something is under way has to say so twice."""
        if not self._jobs or self._warned:
            return True
        self._warned = True
        under_way = ", ".join(job.text for job in self._jobs)
        self._screen.say([f"Still under way: {under_way}. Once more to leave all the same."], Tone.BAD)
        return False

    def _leave_at_once(self) -> None:
        self._warned = True
        if self._prompt.app.is_running:
            self._prompt.app.exit(exception=EOFError())
            return
        for job in self._jobs:
            job.task.cancel()

    # ---- the bar ----------------------------------------------------------------------------------------------------

    def _bar(self) -> StyleAndTextTuples:
        return [("", " " + " | ".join(self._facts()))]

    def _facts(self) -> list[str]:
        desk, now = self._shell.desk, asyncio.get_running_loop().time()
        facts = [shown(desk.node.endpoint.written) if desk.node else "not connected"]
        if desk.node and not desk.book.session:
            facts.append("no session")
        facts += [f"{job.text}: {now - job.started:.0f} s" for job in self._jobs]
        for alias, request in desk.book.requests.items():
            facts.append(f"{shown(alias)} expires in {max(request.seconds_left(), 0)} s")
        for held in desk.book.channels.values():
            if held.pending:
                facts.append(f"{held.name} asks, {max(held.pending.seconds_left(), 0)} s left")
        if desk.book.session and len(facts) == 1:
            facts.append(f"open channels: {len(desk.book.channels)}")
        return facts

"""Commands from a pipe or a file, one per line, each carried out before the next is read."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from .failures import OK, UsageFailure
from .shell import Leave, Shell

LONGEST_LINE: Final = 64 * 1024
LINES_AHEAD: Final = 16


async def run_script(shell: Shell, descriptor: int, *, stop_on_failure: bool) -> int:
    """Carry out every line of `descriptor`; the exit code of the first line that failed, or 0."""
    code = OK
    async for line in lines_of(descriptor):
        try:
            call = shell.understand(line)
            done = OK if call is None else await shell.carry_out(call)
        except UsageFailure as failure:
            done = shell.not_understood(failure)
        except Leave:
            break
        code = code or done
        if code and stop_on_failure:
            break
    return code


async def lines_of(descriptor: int) -> AsyncIterator[str]:
    """Lines as they come. A thread reads: files, pipes and sockets can all block, and not all of them can be polled.

    Raises: UsageFailure for a line that is too long.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(LINES_AHEAD)

    def read() -> None:
        rest = b""
        with suppress(RuntimeError, OSError):  # the loop is closed, or the descriptor: nobody listens any more
            while (data := os.read(descriptor, LONGEST_LINE)) and len(rest) <= LONGEST_LINE:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()
            for last in (rest, None):
                asyncio.run_coroutine_threadsafe(queue.put(last), loop).result()

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while (line := await queue.get()) is not None:
        if len(line) > LONGEST_LINE:
            raise UsageFailure(f"a line has more than {LONGEST_LINE} bytes")
        yield line.decode(errors="replace").rstrip("\r")

"""Calls that block, away from the loop: in a thread of their own, with a time limit, and an end that waits for none."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar, cast

T = TypeVar("T")

MAX_STUCK: Final = 4
"""Calls that may hang behind their time limit before further ones are refused at once."""

_Job = tuple[Callable[[], object], "asyncio.Future[object]", asyncio.AbstractEventLoop]


class BlockingCalls:
    """Runs blocking calls one after the other in a daemon thread.

    A call that exceeds its time limit is given up: its thread is left behind to end with the call, its result is thrown
    away, and the calls behind it go to a fresh thread. A library that never returns thus costs a few threads, never
    the loop and never the end of the process.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lane: queue.SimpleQueue[_Job | None] | None = None
        self._stuck: set[queue.SimpleQueue[_Job | None]] = set()
        self._lock = asyncio.Lock()
        self._closed = False

    async def run(self, call: Callable[[], T], *, timeout: float) -> T:
        """What `call` returns or raises; cancelling the caller gives the call up like its time limit does.

        Raises: TimeoutError after `timeout` seconds, waiting for earlier calls included, or when too many calls hang
        already; RuntimeError once closed.
        """
        async with asyncio.timeout(timeout), self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            if len(self._stuck) >= MAX_STUCK:
                raise TimeoutError(f"{self._name}: {MAX_STUCK} earlier calls still hang")
            lane = self._lane or self._new_lane()
            loop = asyncio.get_running_loop()
            done: asyncio.Future[object] = loop.create_future()
            lane.put((call, done, loop))
            try:
                return cast(T, await done)
            except asyncio.CancelledError:
                self._give_up(lane)
                raise

    def close(self) -> None:
        """No more calls. One that runs is not waited for."""
        self._closed = True
        if self._lane is not None:
            self._lane.put(None)
            self._lane = None

    def _give_up(self, lane: queue.SimpleQueue[_Job | None]) -> None:
        self._stuck.add(lane)
        lane.put(None)
        self._lane = None

    def _new_lane(self) -> queue.SimpleQueue[_Job | None]:
        lane: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        ended = self._stuck.discard
        threading.Thread(target=_serve, args=(lane, ended), name=self._name, daemon=True).start()
        self._lane = lane
        return lane


def _serve(lane: queue.SimpleQueue[_Job | None], ended: Callable[[queue.SimpleQueue[_Job | None]], None]) -> None:
    while (job := lane.get()) is not None:
        call, done, loop = job
        result: object = None
        error: Exception | None = None
        try:
            result = call()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # a library that wants to end the process ends its call only
            error = RuntimeError(f"the call raised {type(raised).__name__}")
        try:
            loop.call_soon_threadsafe(_settle, done, result, error)
        except RuntimeError:  # the loop is gone, and with it whoever asked
            break
        del job, call, done, result, error
    ended(lane)


def _settle(done: asyncio.Future[object], result: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)

"""When requests are served, and who ends them when that is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from perun_core.ports.api import ReadySignal

T = TypeVar("T")


class Call(Protocol):
    """What handlers use of gRPC's context of a call."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> NoReturn:
        """End the call with a status."""
        ...

    async def send_initial_metadata(self, initial_metadata: tuple[tuple[str, str], ...]) -> None:
        """Tell the client that the call was accepted; before the first message only."""
        ...

    async def write(self, message: Message) -> None:
        """Send one message of a stream, waiting while the client does not read."""
        ...


class Gate:
    """Open from the moment the node is ready until the server begins to drain."""

    def __init__(self, ready: ReadySignal) -> None:
        self._ready = ready
        self._draining = False
        self._calls: set[asyncio.Task[object]] = set()
        self._streams: set[asyncio.Task[object]] = set()

    @property
    def is_open(self) -> bool:
        """Whether requests are served."""
        return self._ready.is_ready and not self._draining

    async def refuse(self, call: Call) -> NoReturn:
        """End `call` with UNAVAILABLE, which tells clients to try again later."""
        reason = "the node is shutting down" if self._draining else "the node is starting"
        await call.abort(grpc.StatusCode.UNAVAILABLE, reason)

    async def wait_ready(self) -> None:
        """Until the node is ready."""
        await self._ready.wait()

    async def run(self, call: Call, work: Awaitable[T], *, endless: bool) -> T:
        """Await `work` in the current task, to be cancelled by `drain`: at once when `endless`, else when time is up.

        `call` then answers UNAVAILABLE. Cancellation by the client just passes through.
        """
        task = asyncio.current_task()
        assert task is not None
        group = self._streams if endless else self._calls
        group.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if not self._draining:
                raise
            await self.refuse(call)
        finally:
            group.discard(task)

    async def drain(self, seconds: float) -> None:
        """Close the gate, end streams at once, and other calls after at most `seconds`.

        Cancelled handlers answer UNAVAILABLE. What they waited for in the node decides itself how it ends.
        """
        self._draining = True
        streams, calls = set(self._streams), set(self._calls)
        for task in streams:
            task.cancel()
        if calls:
            _, calls = await asyncio.wait(calls, timeout=seconds)
        for task in calls:
            task.cancel()
        if streams or calls:
            await asyncio.wait(streams | calls, timeout=1)

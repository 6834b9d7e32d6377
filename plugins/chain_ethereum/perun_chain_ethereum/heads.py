"""The chain's latest block, pushed or polled, for everybody in the backend who waits for one.

Whoever follows gets the newest head and may miss those in between: nothing is queued for a slow reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from perun_core.errors import ChainError

from .connection import Connection, Head

logger: Final = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
"""Seconds between attempts to reconnect: doubled from the first up to the longest."""

QUIET: Final = 30.0
"""Seconds without a pushed head after which the node is asked, in case it forgot the subscription."""


class HeadFeed:
    """Follows the head from the first follower on until closed, across reconnects."""

    def __init__(self, connection: Connection, *, poll_interval: float) -> None:
        """`poll_interval` is the number of seconds between questions where heads are not pushed."""
        self._connection = connection
        self._poll_interval = poll_interval
        self._latest: Head | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._closed

    @property
    def latest(self) -> Head | None:
        """The newest head that was told; None while nobody follows, or the connection is interrupted."""
        return self._latest

    async def follow(self) -> AsyncIterator[Head]:
        """The current head as soon as it is known, then every newer one, until the feed is closed."""
        seen: Head | None = None
        while not self._closed:
            head = self._latest
            if head is not None and (seen is None or head.ref.hash != seen.ref.hash):
                seen = head
                yield head
            else:
                await self._next_news()

    async def wait(self, seconds: float, *, after: Head | None = None) -> None:
        """Return at the next news about the head, at once if they came since `after`, or after `seconds`."""
        if after is not None and self._latest is not None and self._latest is not after:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._next_news()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Stop following and let followers end. Idempotent."""
        self._closed = True
        self._wake()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _next_news(self) -> None:
        if self._closed:
            return
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="chain heads")
        await self._news.wait()

    def _publish(self, head: Head) -> None:
        if self._latest is not None and head.ref.hash == self._latest.ref.hash:
            return
        self._latest = head
        self._wake()

    def _wake(self) -> None:
        """Wake everybody who waits now; later waiters wait for the next news."""
        self._news.set()
        self._news = asyncio.Event()

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        follow = self._pushed if self._connection.pushes_heads else self._polled
        while True:
            try:
                await follow()
                pause = FIRST_PAUSE
            except ChainError as error:
                logger.warning("following the chain was interrupted: %s", error)
                pause = min(2 * pause, LONGEST_PAUSE)
            except Exception:
                # Time must go on for everybody who judges deadlines, whatever a node sends.
                logger.exception("following the chain failed")
                pause = min(2 * pause, LONGEST_PAUSE)
            # A head from before the interruption is not the current one.
            self._latest = None
            await asyncio.sleep(pause)

    async def _pushed(self) -> None:
        """Subscribe, then ask for the head, so that none falls between; returns when the subscription is gone."""
        link = await self._connection.subscribe_heads(self._publish)
        self._publish(await self._connection.head())
        while not (await asyncio.wait([link], timeout=QUIET))[0]:
            before = self._latest
            head = await self._connection.head()
            if before is self._latest and before is not None and head.ref.hash != before.ref.hash:
                logger.warning("the chain node stopped telling new heads")
                return

    async def _polled(self) -> None:
        while True:
            self._publish(await self._connection.head())
            await asyncio.sleep(self._poll_interval)

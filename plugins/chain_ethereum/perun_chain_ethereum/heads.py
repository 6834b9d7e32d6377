"""The chain's latest block, pushed or polled, for everybody in the backend who waits for one.

Whoever follows gets the newest head and may miss those in between: nothing is queued for a slow reader.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Final, Generic, TypeVar

from perun_core.errors import ChainError

from .connection import Connection, Head
from .freshness import Freshness

logger: Final = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
"""Seconds between attempts to reconnect: doubled from the first up to the longest.

The longest is less than a block takes: when the chain comes back near the end of a dispute, every block counts.
"""

QUIET: Final = 30.0
"""Seconds without a pushed head after which the node is asked, in case it forgot the subscription."""


T = TypeVar("T")


class PerHead(Generic[T]):
    """An answer that holds for one block: asked once per head, however many want it at the same time.

    Where nobody follows the heads, everybody asks.
    """

    def __init__(self, heads: HeadFeed, ask: Callable[[], Coroutine[object, object, T]]) -> None:
        self._heads = heads
        self._ask = ask
        self._head: Head | None = None
        self._answer: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """The answer at the latest head. Raises: what asking raises."""
        head, answer = self._heads.latest, self._answer
        if head is None:
            return await self._ask()
        if answer is None or self._head is not head or _failed(answer):
            answer = asyncio.create_task(self._ask(), name="chain question per head")
            answer.add_done_callback(_failed)  # seen, even if everybody who asked has given up
            self._head, self._answer = head, answer
        return await asyncio.shield(answer)


def _failed(answer: asyncio.Task[T]) -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)


class HeadFeed:
    """Follows the head from the first follower on until closed, across reconnects."""

    def __init__(self, connection: Connection, *, poll_interval: float, freshness: Freshness | None = None) -> None:
        """`poll_interval` is the number of seconds between questions where heads are not pushed.

        `freshness` is shown every head that the node tells or answers with.
        """
        self._connection = connection
        self._poll_interval = poll_interval
        self._freshness = freshness
        self._latest: Head | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._interrupted = False

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
        if self._freshness is not None:
            self._freshness.observe(head)
        if self._latest is not None and head.ref.hash == self._latest.ref.hash:
            return
        self._latest = head
        if self._interrupted:
            self._interrupted = False
            logger.info("the chain is followed again from block %d", head.ref.number)
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
                # Said once per interruption, because attempts go on every second.
                level = logging.DEBUG if self._interrupted else logging.WARNING
                logger.log(level, "following the chain was interrupted: %s", error)
                pause = min(2 * pause, LONGEST_PAUSE)
            except Exception:
                # Time must go on for everybody who judges deadlines, whatever a node sends.
                logger.exception("following the chain failed")
                pause = min(2 * pause, LONGEST_PAUSE)
            # A head from before the interruption is not the current one.
            self._latest = None
            self._interrupted = True
            # Not at the same moment as everybody else who lost the node.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _pushed(self) -> None:
        """Subscribe, then ask for the head, so that none falls between; returns when the subscription is gone."""
        link = await self._connection.subscribe_heads(self._publish)
        self._publish(await self._connection.head())
        while not (await asyncio.wait([link], timeout=QUIET))[0]:
            before = self._latest
            head = await self._connection.head()
            if self._freshness is not None:
                self._freshness.observe(head)
            if before is self._latest and before is not None and head.ref.hash != before.ref.hash:
                logger.warning("the chain node stopped telling new heads")
                return

    async def _polled(self) -> None:
        while True:
            self._publish(await self._connection.head())
            await asyncio.sleep(self._poll_interval)

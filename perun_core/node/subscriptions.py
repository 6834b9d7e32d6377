"""Notifications on their way to a user: strictly in order, bounded, kept while nobody listens (API.md 2.2.4)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

KEPT: Final = 256
"""Notifications kept for a user who does not listen or reads slowly; the oldest are dropped."""


class Feed(Generic[T]):
    """One queue of notifications with at most one reader."""

    def __init__(self, still_valid: Callable[[T], bool] = lambda item: True, *, kept: int = KEPT) -> None:
        self._items: deque[T] = deque(maxlen=kept)
        self._still_valid = still_valid
        self._reader: Reader[T] | None = None

    @property
    def has_reader(self) -> bool:
        """Whether somebody is subscribed."""
        return self._reader is not None

    def publish(self, item: T) -> None:
        """Queue `item` for the reader, present or future."""
        self._items.append(item)
        if self._reader is not None:
            self._reader.wake()

    def withdraw(self, unwanted: Callable[[T], bool]) -> None:
        """Forget queued items for which `unwanted` holds."""
        kept = [item for item in self._items if not unwanted(item)]
        self._items.clear()
        self._items.extend(kept)

    def subscribe(self) -> Reader[T]:
        """A reader of everything queued and to come. The caller made sure that there is none."""
        assert self._reader is None
        self._reader = Reader(self)
        return self._reader

    def end(self, *, deliver_rest: bool = False) -> None:
        """End the reader's stream properly; with `deliver_rest` after what is queued now. A new one may subscribe."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.finish(tuple(self._items) if deliver_rest else ())
            if deliver_rest:
                self._items.clear()

    def _detach(self, reader: Reader[T]) -> None:
        if self._reader is reader:
            self._reader = None

    def _take(self) -> T | None:
        while self._items:
            item = self._items.popleft()
            if self._still_valid(item):
                return item
        return None


class Reader(Generic[T]):
    """The stream of one subscriber."""

    def __init__(self, feed: Feed[T]) -> None:
        self._feed: Feed[T] | None = feed
        self._rest: deque[T] = deque()
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """Something is queued."""
        self._awake.set()

    def finish(self, rest: tuple[T, ...]) -> None:
        """No more than `rest` comes."""
        self._feed = None
        self._rest.extend(rest)
        self._awake.set()

    def cancel(self) -> None:
        """The reader is gone; a new one may subscribe and gets what was not delivered."""
        if self._feed is not None:
            self._feed._detach(self)
            self.finish(())

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            if self._feed is None:
                if not self._rest:
                    return
                yield self._rest.popleft()
                continue
            item = self._feed._take()
            if item is not None:
                yield item
                continue
            self._awake.clear()
            await self._awake.wait()

"""The adjudicator's ChannelUpdate events from a cursor on: past first, then with every new head, none lost or twice.

Logs are always asked for by block range up to the final block; nothing depends on log subscriptions, which differ
between nodes and end with a connection. An event is identified by (block hash, log index) (CHAIN.md 3.3).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from perun_core.errors import ChainError, NotReachable, WrongChain
from perun_core.ports.chain import BlockEvents, ChannelEvent
from perun_core.values import Address, Bytes32

from . import abi
from .connection import Connection, Head
from .heads import FIRST_PAUSE, LONGEST_PAUSE, HeadFeed

logger: Final = logging.getLogger(__name__)

LONGEST_RANGE: Final = 5000
"""Blocks asked for at once; halved as long as the node refuses, and doubled again up to this."""

REORG_WINDOW: Final = 64
"""Blocks before the final one that are read again when heads do not follow each other directly."""

EventKey = tuple[Bytes32, int]


class EventFeed:
    """One pass over the events; made for one reader."""

    def __init__(
        self, connection: Connection, heads: HeadFeed, adjudicator: Address, *, finality_depth: int, cursor: int | None
    ) -> None:
        """Events after block `cursor`; None starts at the block that is final when the first head arrives."""
        self._connection = connection
        self._heads = heads
        self._adjudicator = adjudicator
        self._confirmations = finality_depth - 1
        self._start = cursor or 0
        self._cursor = cursor
        self._range = LONGEST_RANGE
        self._last: Head | None = None
        self._released: dict[EventKey, int] = {}

    async def follow(self) -> AsyncIterator[BlockEvents]:
        """At least one item per head that is seen; interruptions of the connection are waited out."""
        async for head in self._heads.follow():
            final = head.ref.number - self._confirmations
            if self._cursor is None:
                self._start = self._cursor = max(final, 0)
            first = self._first_block(head, final, self._cursor)
            self._last = head
            if first > final:
                yield BlockEvents(block=head.ref, cursor=self._cursor, events=())
                continue
            async for last, events in self._ranges(first, final):
                self._cursor = max(self._cursor, last)
                yield BlockEvents(block=head.ref, cursor=self._cursor, events=self._fresh(events))
            self._forget_old(final)

    async def _ranges(self, first: int, final: int) -> AsyncIterator[tuple[int, tuple[ChannelEvent, ...]]]:
        """The events from `first` to `final` in pieces that the node is willing to give, each with its last block."""
        while first <= final:
            last = min(first + self._range - 1, final)
            events = await self._read(first, last)
            if events is not None:
                yield last, events
                first = last + 1

    def _first_block(self, head: Head, final: int, cursor: int) -> int:
        """Where reading begins: after the cursor, or earlier when blocks may have been exchanged since."""
        if self._last is None or head.parent == self._last.ref.hash:
            return cursor + 1
        return max(self._start, min(cursor, final - REORG_WINDOW)) + 1

    async def _read(self, first: int, last: int) -> tuple[ChannelEvent, ...] | None:
        """Events of the blocks, in order; None when a shorter range has to be tried. Waits out lost connections.

        Raises: NotReachable once the backend is closed.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                logs = await self._connection.logs(self._adjudicator, abi.CHANNEL_UPDATE, first, last)
                self._range = min(2 * self._range, LONGEST_RANGE)
                events = [
                    abi.channel_event(
                        topics=[bytes(topic) for topic in log["topics"]],
                        data=bytes(log["data"]),
                        block_number=log["blockNumber"],
                        block_hash=bytes(log["blockHash"]),
                        log_index=log["logIndex"],
                        tx_hash=bytes(log["transactionHash"]),
                    )
                    for log in logs
                ]
                return tuple(sorted(events, key=lambda event: (event.block_number, event.log_index)))
            except (NotReachable, WrongChain) as error:
                if self._heads.closed:
                    raise
                logger.warning("reading events is interrupted: %s", error)
            except ChainError as error:
                if last > first:
                    self._range = (last - first + 1) // 2
                    return None
                logger.error("events of block %d cannot be read: %s", first, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _fresh(self, events: tuple[ChannelEvent, ...]) -> tuple[ChannelEvent, ...]:
        """Those not released before."""
        fresh = tuple(event for event in events if (event.block_hash, event.log_index) not in self._released)
        self._released.update({(event.block_hash, event.log_index): event.block_number for event in fresh})
        return fresh

    def _forget_old(self, final: int) -> None:
        oldest = final - REORG_WINDOW
        self._released = {key: number for key, number in self._released.items() if number > oldest}

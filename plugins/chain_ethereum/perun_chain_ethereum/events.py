"""The adjudicator's ChannelUpdate events from a cursor on: past first, then with every new head, none lost or twice.

Logs are always asked for by block range up to the final block; nothing depends on log subscriptions, which differ
between nodes and end with a connection. An event is identified by (block hash, log index) (CHAIN.md 3.3).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from perun_core.errors import ChainError, NotReachable, WrongChain
from perun_core.ports.chain import BlockEvents, ChannelEvent
from perun_core.values import Address, Bytes32

from . import abi
from .connection import Connection, Head
from .heads import FIRST_PAUSE, LONGEST_PAUSE, HeadFeed

if TYPE_CHECKING:
    from web3.types import LogReceipt

logger: Final = logging.getLogger(__name__)

LONGEST_RANGE: Final = 5000
"""Blocks asked for at once; halved as long as the node refuses, and doubled again up to this."""

UNBROKEN: Final = 8
"""Ranges that the node has to give in a row before a longer one is tried again."""

REORG_WINDOW: Final = 64
"""Blocks before the final one that are read again when heads do not follow each other directly."""

MEMORY: Final = 2 * REORG_WINDOW
"""Blocks for which it is remembered what was released; more than the window, because a reorg may shorten the chain."""

EventKey = tuple[Bytes32, int]
Events = tuple[ChannelEvent, ...]


class EventFeed:
    """One pass over the events; made for one reader.

    What was released is remembered for a while, together with what was there before the start. After a reorg the last
    blocks are read again: what is new is released, what is known is not, what has gone is undone.
    """

    def __init__(
        self, connection: Connection, heads: HeadFeed, adjudicator: Address, *, finality_depth: int, cursor: int | None
    ) -> None:
        """Events after block `cursor`; None starts at the block that is final when the first head arrives."""
        self._connection = connection
        self._heads = heads
        self._adjudicator = adjudicator
        self._confirmations = finality_depth - 1
        self._start = cursor
        self._cursor = 0
        self._known_from = 0
        self._highest = 0
        self._range = LONGEST_RANGE
        self._unbroken = 0
        self._by_hash = True
        self._last: Head | None = None
        self._in_doubt = False
        self._hashes: dict[int, Bytes32] = {}
        self._released: dict[EventKey, ChannelEvent] = {}

    async def follow(self) -> AsyncIterator[BlockEvents]:
        """At least one item per head that is seen; interruptions of the connection are waited out."""
        async for head in self._heads.follow():
            final = max(head.ref.number - self._confirmations, 0)
            if self._last is None:
                await self._begin(final)
            elif head.parent != self._last.ref.hash:
                self._in_doubt = True
                self._hashes.clear()
            self._last = head
            self._hashes[head.ref.number] = head.ref.hash
            told = False
            if self._in_doubt:
                undone, again = await self._reread(head, final)
                if undone or again:
                    told = True
                    yield BlockEvents(block=head.ref, cursor=self._cursor, events=again, undone=undone)
            async for last, events in self._ranges(self._cursor + 1, final):
                self._cursor = last
                told = True
                yield BlockEvents(block=head.ref, cursor=last, events=self._fresh(events))
            if not told:
                yield BlockEvents(block=head.ref, cursor=self._cursor, events=())
            self._highest = max(self._highest, final)
            self._forget_old(final)

    async def _begin(self, final: int) -> None:
        """Learn what was there before the start, so that a reorg does not make it look new."""
        self._cursor = final if self._start is None else self._start
        last = min(self._cursor, final)
        self._known_from = max(last - MEMORY + 1, 0)
        async for _, events in self._ranges(self._known_from, last):
            self._fresh(events)

    async def _reread(self, head: Head, final: int) -> tuple[Events, Events]:
        """What a reorg has undone, newest first, and what it has put in its place in blocks that were read before.

        An event above the head, or one whose block is still there, stays in doubt: the chain is still growing, or the
        node's answer was incomplete.
        """
        if final < self._cursor <= self._highest:
            self._cursor = final
        first = max(min(self._cursor, final) - REORG_WINDOW + 1, self._known_from)
        top = max((event.block_number for event in self._released.values()), default=0)
        self._in_doubt = False
        present: dict[EventKey, ChannelEvent] = {}
        async for _, events in self._ranges(first, min(max(self._cursor, top), head.ref.number)):
            present.update((_key(event), event) for event in events)
        undone = []
        for key, event in tuple(self._released.items()):
            if event.block_number < first or key in present:
                continue
            if event.block_number > head.ref.number or await self._hash_of(event.block_number) == event.block_hash:
                self._in_doubt = True
                continue
            undone.append(self._released.pop(key))
        fresh = self._fresh(tuple(event for event in present.values() if event.block_number <= self._cursor))
        return tuple(sorted(undone, key=_place, reverse=True)), fresh

    async def _ranges(self, first: int, last: int) -> AsyncIterator[tuple[int, Events]]:
        """The events from `first` to `last` in pieces that the node is willing to give, each with its last block.

        The last block is asked for by its hash where that is known, so that a node that does not have it yet says so.
        """
        known = self._hashes.get(last) if self._by_hash else None
        end = last if known is None else last - 1
        while first <= end:
            piece = min(first + self._range - 1, end)
            events = await self._read(first, piece)
            if events is not None:
                yield piece, events
                first = piece + 1
        if known is not None and first == last:
            yield last, await self._read_block(last, known)

    async def _read(self, first: int, last: int) -> Events | None:
        """Events of the blocks, in order; None when a shorter range has to be tried. Waits out lost connections.

        Raises: NotReachable once the backend is closed.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                events = events_of(await self._connection.logs(self._adjudicator, abi.CHANNEL_UPDATE, first, last))
                self._grow()
                return events
            except (NotReachable, WrongChain) as error:
                self._interrupted(error)
            except ChainError as error:
                self._unbroken = 0
                if last > first:
                    self._range = (last - first + 1) // 2
                    return None
                logger.error("events of block %d cannot be read: %s", first, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _read_block(self, number: int, block_hash: Bytes32) -> Events:
        """Events of one block. Waits until the node has it; an exchanged block has none, and is read again later.

        Raises: NotReachable once the backend is closed.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                return events_of(await self._connection.logs_of(self._adjudicator, abi.CHANNEL_UPDATE, block_hash))
            except (NotReachable, WrongChain) as error:
                self._interrupted(error)
            except ChainError as error:
                actual = await self._hash_of(number)
                if actual == block_hash:
                    logger.warning("the chain node gives no logs by block hash: %s", error)
                    self._by_hash = False
                    return await self._read(number, number) or ()
                if actual is not None:
                    self._in_doubt = True
                    return ()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _hash_of(self, number: int) -> Bytes32 | None:
        """Hash of the block with that number; None when the node has none yet. Waits out lost connections.

        Raises: NotReachable once the backend is closed.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._connection.block_hash(number)
            except ChainError as error:
                self._interrupted(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _interrupted(self, error: ChainError) -> None:
        if self._heads.closed:
            raise error
        logger.warning("reading events is interrupted: %s", error)

    def _grow(self) -> None:
        """Try longer ranges again after a while: limits may depend on what the blocks hold."""
        self._unbroken += 1
        if self._unbroken >= UNBROKEN and self._range < LONGEST_RANGE:
            self._range = min(2 * self._range, LONGEST_RANGE)
            self._unbroken = 0

    def _fresh(self, events: Events) -> Events:
        """Those not released before, from now on released."""
        fresh = tuple(event for event in events if _key(event) not in self._released)
        self._released.update((_key(event), event) for event in fresh)
        return fresh

    def _forget_old(self, final: int) -> None:
        self._known_from = max(self._known_from, final - MEMORY + 1)
        self._released = {key: event for key, event in self._released.items() if event.block_number >= self._known_from}
        self._hashes = {number: known for number, known in self._hashes.items() if number >= final}


def _key(event: ChannelEvent) -> EventKey:
    return event.block_hash, event.log_index


def _place(event: ChannelEvent) -> tuple[int, int]:
    return event.block_number, event.log_index


def events_of(logs: list[LogReceipt]) -> Events:
    """The logs in order. Raises: ChainError when one of them is not a ChannelUpdate."""
    events = (
        abi.channel_event(
            topics=[bytes(topic) for topic in log["topics"]],
            data=bytes(log["data"]),
            block_number=log["blockNumber"],
            block_hash=bytes(log["blockHash"]),
            log_index=log["logIndex"],
            tx_hash=bytes(log["transactionHash"]),
        )
        for log in logs
    )
    return tuple(sorted(events, key=_place))

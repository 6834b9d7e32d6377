"""The watcher of a session: sees every dispute about its channels and refutes outdated states by itself.

It needs neither the peer nor the channel's conversation, which may be waiting for either. What it knows about a channel
is the newest fully signed transaction, published by the conversation as soon as it is durable. Decisions rest on what
the contract stores (`dispute`), never on what an event or its calldata says (PROTOCOL.md 7.9).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from ..channel import Dispute, Params, Transaction
from ..errors import ChainError, KeyManagerError, StoreError
from ..ports.chain import BlockEvents, BlockRef, Chain
from ..ports.store import Put, Store, Table
from ..protocol.events import ChainRegistered
from ..values import Address, ChannelID
from .absence import back_before, shown_time

log = logging.getLogger(__name__)

RETRY: Final = 1.0
"""Seconds before a broken feed is opened again, or a failed refutation is tried again."""
CURSOR_EVERY: Final = 16
"""Blocks without events after which the cursor is stored again."""
AT_ONCE: Final = 16
"""Disputes that are looked up at the same time, when many begin in one block or a session with many channels opens."""


class Watched(Struct, frozen=True):
    """What the watcher knows about a channel."""

    params: Params
    newest: Transaction
    notify: Callable[[ChainRegistered], None]


class Watcher:
    """Watches the channels of one session on one ledger."""

    def __init__(self, chain: Chain, store: Store, adjudicator: Address) -> None:
        self._chain = chain
        self._store = store
        self._cursor_key = bytes(adjudicator)
        self._cursor: int | None = None
        self._channels: dict[ChannelID, Watched] = {}
        self._disputes: dict[ChannelID, Dispute] = {}
        self._heads: deque[BlockRef] = deque()
        self._known_until: int | None = None
        self._refuting: dict[ChannelID, asyncio.Task[None]] = {}

    def publish(self, params: Params, tx: Transaction, notify: Callable[[ChainRegistered], None]) -> None:
        """`tx` is the newest fully signed and durable transaction of its channel; watch it from now on."""
        assert tx.state is not None
        self._channels[tx.state.id] = Watched(params, tx, notify)

    def forget(self, channel_id: ChannelID) -> None:
        """Nothing of the channel is left on chain that concerns us."""
        self._channels.pop(channel_id, None)
        self._disputes.pop(channel_id, None)

    def must_be_back_within(self) -> int | None:
        """Seconds of absence after which an outdated state could stand: the shortest challenge duration watched.

        None when nothing is watched. Whoever comes back later than this may find a dispute lost.
        """
        return min((watched.params.challenge_duration for watched in self._channels.values()), default=None)

    def must_be_back_before(self) -> int | None:
        """The block time before which somebody must watch again, so that no outdated state stands; Unix seconds.

        Counts from the newest block whose events are known, as a dispute may have begun right after it; a dispute that
        is known has its own time. None when absence loses nothing, or no block was seen yet.
        """
        if self._known_until is None:
            return None
        times = [
            back_before(
                challenge_duration=watched.params.challenge_duration,
                version=0 if watched.newest.state is None else watched.newest.state.version,
                dispute=self._disputes.get(channel_id),
                as_of=self._known_until,
            )
            for channel_id, watched in self._channels.items()
        ]
        return min((time for time in times if time is not None), default=None)

    async def run(self) -> None:
        """Follow the adjudicator's events from the stored cursor on, until cancelled."""
        stored = await self._store.get(Table.CURSORS, self._cursor_key)
        self._cursor = None if stored is None else int.from_bytes(stored, "big")
        try:
            while True:
                try:
                    await self._follow()
                except ChainError as error:
                    log.warning("chain events: %s; trying again", error)
                except StoreError as error:
                    log.error("chain events: the cursor cannot be stored: %s", error)
                except Exception:  # a backend's bug must not end the watching
                    log.exception("chain events: unexpected error; trying again")
                await asyncio.sleep(RETRY)
        finally:
            for task in self._refuting.values():
                task.cancel()
            await asyncio.gather(*self._refuting.values(), return_exceptions=True)

    async def look(self) -> None:
        """Judge what the contract stores about every channel, as after a restart; tries until it can be read."""
        while True:
            try:
                await self._look_at(self._channels)
                return
            except ChainError as error:
                log.warning("not every dispute can be read: %s; trying again", error)
            await asyncio.sleep(RETRY)

    async def _look_at(self, channels: Iterable[ChannelID]) -> None:
        """Judge what the contract stores about these channels, as far as they are watched.

        Raises: ChainError of the first that cannot be read, after all others of its group were judged.
        """
        watched = tuple(channel_id for channel_id in channels if channel_id in self._channels)
        for first in range(0, len(watched), AT_ONCE):
            group = watched[first : first + AT_ONCE]
            outcomes = await asyncio.gather(*map(self._look_at_one, group), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome

    async def _look_at_one(self, channel_id: ChannelID) -> None:
        dispute = await self._chain.dispute(channel_id)
        watched = self._channels.get(channel_id)
        if watched is None:
            return
        if dispute.registered:
            self._judge(channel_id, watched, dispute)
        else:
            self._disputes.pop(channel_id, None)

    async def _follow(self) -> None:
        """Process batches until the feed ends or breaks; what was processed is remembered over that.

        The first cursor is stored at once: from then on nothing that happens while nobody watches is missed.
        """
        written = self._cursor
        async for batch in self._chain.events(self._cursor):
            await self._look_at(dict.fromkeys(event.channel_id for event in (*batch.undone, *batch.events)))
            self._cursor = batch.cursor
            self._note_time(batch)
            moved = written is None or batch.cursor < written or batch.cursor >= written + CURSOR_EVERY
            if batch.events or batch.undone or moved:
                await self._store.commit((Put(Table.CURSORS, self._cursor_key, batch.cursor.to_bytes(8, "big")),))
                written = batch.cursor

    def _note_time(self, batch: BlockEvents) -> None:
        """Remember up to which block time events are known; at a finality depth that is older than the head."""
        if not self._heads or batch.block.number > self._heads[-1].number:
            self._heads.append(batch.block)
        while self._heads and self._heads[0].number <= batch.cursor:
            self._known_until = self._heads.popleft().timestamp

    def _judge(self, channel_id: ChannelID, watched: Watched, dispute: Dispute) -> None:
        self._disputes[channel_id] = dispute
        watched.notify(ChainRegistered(dispute))
        newest = watched.newest.state
        assert newest is not None
        if dispute.concluded or dispute.version > newest.version:
            if dispute.version > newest.version:
                log.error(
                    "channel %s: version %d is registered on chain, newer than the %d we hold: our storage is behind",
                    channel_id.hex(),
                    dispute.version,
                    newest.version,
                )
            return
        if dispute.version < newest.version and channel_id not in self._refuting:
            log.warning(
                "channel %s: version %d was registered on chain, refuting with %d before %s",
                channel_id.hex(),
                dispute.version,
                newest.version,
                shown_time(dispute.timeout),
            )
            task = asyncio.get_running_loop().create_task(self._refute(channel_id, dispute.timeout))
            self._refuting[channel_id] = task
            task.add_done_callback(lambda done: self._refuting.pop(channel_id, None))

    async def _refute(self, channel_id: ChannelID, timeout: int) -> None:
        """Register the newest state until it stands or its time is over; the backend raises fees as that nears."""
        while (watched := self._channels.get(channel_id)) is not None:
            try:
                dispute = await self._chain.register(watched.params, watched.newest, deadline=timeout)
            except (ChainError, StoreError, KeyManagerError) as error:
                log.error("channel %s: refutation failed: %s", channel_id.hex(), error)
                if await self._is_over(timeout):
                    log.error("channel %s: the time for a refutation is over", channel_id.hex())
                    return
                await asyncio.sleep(RETRY)
                continue
            self._disputes[channel_id] = dispute
            watched.notify(ChainRegistered(dispute))
            newest = watched.newest.state
            assert newest is not None
            if dispute.concluded or dispute.version >= newest.version:
                return

    async def _is_over(self, timeout: int) -> bool:
        try:
            return (await self._chain.head()).timestamp >= timeout
        except ChainError:
            return False

"""The watcher of a session: sees every dispute about its channels and refutes outdated states by itself.

It needs neither the peer nor the channel's conversation, which may be waiting for either. What it knows about a channel
is the newest fully signed transaction, published by the conversation as soon as it is durable. Decisions rest on what
the contract stores (`dispute`), never on what an event or its calldata says (PROTOCOL.md 7.9).

A channel of which everything is withdrawn stays watched for the chain's reorg window, because a reorg deeper than the
finality depth can take a settlement back. It costs no calls: the events that every block is asked for anyway tell what
was undone, and the channel is looked at once more when the window ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..channel import Dispute, DisputePhase, Params, Transaction
from ..errors import ChainError, KeyManagerError, StoreError
from ..ports.chain import BlockEvents, BlockRef
from ..ports.store import Put, Store, Table
from ..protocol.events import ChainRegistered, ChainUndone
from ..protocol.records import settled_for_good, settled_mark
from ..values import Address, Bytes32, ChannelID
from .absence import back_before, shown_time
from .remote import WatchedLedger

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
    on_undone: Callable[[ChainUndone], None] = lambda event: None


class Settled(Struct, frozen=True):
    """A channel of which everything is withdrawn: the key of our deposits, and the block its window begins with."""

    funding_id: Bytes32
    since: int | None
    """None until the next block is seen."""


class Watcher:
    """Watches the channels of one session on one ledger."""

    def __init__(
        self,
        chain: WatchedLedger,
        store: Store,
        adjudicator: Address,
        *,
        on_settled_for_good: Callable[[ChannelID], None] = lambda channel_id: None,
    ) -> None:
        """`on_settled_for_good` hears of every settled channel whose window has passed."""
        self._chain = chain
        self._store = store
        self._on_settled_for_good = on_settled_for_good
        self._cursor_key = bytes(adjudicator)
        self._cursor: int | None = None
        self._channels: dict[ChannelID, Watched] = {}
        self._disputes: dict[ChannelID, Dispute] = {}
        self._settled: dict[ChannelID, Settled] = {}
        self._unread: dict[ChannelID, bool] = {}
        """Channels with news that were not looked at yet, and whether something of them was undone."""
        self._height: int | None = None
        self._heads: deque[BlockRef] = deque()
        self._known_until: int | None = None
        self._refuting: dict[ChannelID, asyncio.Task[None]] = {}

    def publish(
        self,
        params: Params,
        tx: Transaction,
        notify: Callable[[ChainRegistered], None],
        *,
        on_undone: Callable[[ChainUndone], None] = lambda event: None,
    ) -> None:
        """`tx` is the newest fully signed and durable transaction of its channel; watch it from now on.

        `notify` hears what the contract stores about the channel, `on_undone` when a reorg took that back.
        """
        assert tx.state is not None
        self._channels[tx.state.id] = Watched(params, tx, notify, on_undone)
        self._settled.pop(tx.state.id, None)

    @property
    def height(self) -> int | None:
        """Number of the newest block that was seen; None before the first."""
        return self._height

    def settle(self, channel_id: ChannelID, funding_id: Bytes32, *, since: int | None) -> None:
        """Everything of a published channel is withdrawn: from now on only a reorg matters, until its window ends.

        `funding_id` is the key of our deposits, `since` the block that is counted from, None for the next one. The
        mark that lets this go on after a restart is the caller's to store, and is removed here.
        """
        if channel_id in self._channels and channel_id not in self._settled:
            self._settled[channel_id] = Settled(funding_id, since)
            self._disputes.pop(channel_id, None)

    def is_settled(self, channel_id: ChannelID) -> bool:
        """Whether the channel is watched only for reorgs."""
        return channel_id in self._settled

    def forget(self, channel_id: ChannelID) -> None:
        """Nothing of the channel is left on chain that concerns us."""
        self._channels.pop(channel_id, None)
        self._disputes.pop(channel_id, None)
        self._settled.pop(channel_id, None)
        self._unread.pop(channel_id, None)

    def _at_stake(self) -> Iterable[tuple[ChannelID, Watched]]:
        return ((key, watched) for key, watched in self._channels.items() if key not in self._settled)

    def must_be_back_within(self) -> int | None:
        """Seconds of absence after which an outdated state could stand: the shortest challenge duration watched.

        None when nothing is watched. Whoever comes back later than this may find a dispute lost.
        """
        return min((watched.params.challenge_duration for _, watched in self._at_stake()), default=None)

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
            for channel_id, watched in self._at_stake()
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
        settled = self._settled.get(channel_id)
        if settled is not None and dispute.concluded and not await self._holds(channel_id, settled):
            self._unread.pop(channel_id, None)
            return
        watched = self._channels.get(channel_id)
        undone = self._unread.pop(channel_id, False)
        if watched is None:
            return
        if self._settled.get(channel_id) is settled is not None:
            log.warning("channel %s: a reorg undid its settlement, which is brought about again", channel_id.hex())
            del self._settled[channel_id]
            watched.on_undone(ChainUndone(dispute))
        elif undone and not dispute.concluded:
            watched.on_undone(ChainUndone(dispute))
        if dispute.registered:
            self._judge(channel_id, watched, dispute)
        else:
            self._disputes.pop(channel_id, None)

    async def _holds(self, channel_id: ChannelID, settled: Settled) -> bool:
        """Whether a holder has something of ours. Raises: ChainError."""
        watched = self._channels.get(channel_id)
        state = None if watched is None else watched.newest.state
        if state is None:
            return False
        for asset in state.allocation.assets:
            if await self._chain.holdings(asset.holder, settled.funding_id):
                return True
        return False

    async def _end_windows(self) -> tuple[ChannelID, ...]:
        """Look for the last time at settled channels whose window has passed; those that stayed as they were.

        Raises: ChainError.
        """
        height, window = self._height, self._chain.reorg_window
        if height is None:
            return ()
        due = []
        for channel_id, settled in self._settled.items():
            if settled.since is None:
                self._settled[channel_id] = replace(settled, since=height)
            elif height - settled.since >= window:
                due.append(channel_id)
        if due:
            await self._look_at(due)
        return tuple(channel_id for channel_id in due if channel_id in self._settled)

    async def _follow(self) -> None:
        """Process batches until the feed ends or breaks; what was processed is remembered over that.

        The first cursor is stored at once: from then on nothing that happens while nobody watches is missed.
        """
        written = self._cursor
        await self._look_at(tuple(self._unread))  # what a broken feed told is not told again
        async for batch in self._chain.events(self._cursor):
            self._height = batch.block.number
            self._note_news(batch)
            await self._look_at(tuple(self._unread))
            done = await self._end_windows()
            self._cursor = batch.cursor
            self._note_time(batch)
            moved = written is None or batch.cursor < written or batch.cursor >= written + CURSOR_EVERY
            if batch.events or batch.undone or moved or done:
                longer = [settled_mark(key, self._settled[key].since) for key in _undone(batch) if key in self._settled]
                cursor = Put(Table.CURSORS, self._cursor_key, batch.cursor.to_bytes(8, "big"))
                await self._store.commit((cursor, *longer, *map(settled_for_good, done)))
                written = batch.cursor
            for channel_id in done:
                log.info("channel %s: settled for good", channel_id.hex())
                self.forget(channel_id)
                self._on_settled_for_good(channel_id)

    def _note_news(self, batch: BlockEvents) -> None:
        """Channels that the batch tells of have to be looked at; for those of a reorg the window begins anew."""
        for event in batch.events:
            self._unread.setdefault(event.channel_id, False)
        for channel_id in _undone(batch):
            self._unread[channel_id] = True
            if channel_id in self._settled:
                self._settled[channel_id] = replace(self._settled[channel_id], since=batch.block.number)
        self._unread = {key: undone for key, undone in self._unread.items() if key in self._channels}

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
        if dispute.concluded or dispute.version > newest.version or dispute.phase is not DisputePhase.DISPUTE:
            if dispute.phase is DisputePhase.FORCE_EXEC:
                log.warning(
                    "channel %s: was progressed on chain to version %d, which stands after %s",
                    channel_id.hex(),
                    dispute.version,
                    shown_time(dispute.timeout),
                )
            elif dispute.version > newest.version:
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
            if dispute.concluded or dispute.version >= newest.version or dispute.phase is not DisputePhase.DISPUTE:
                return

    async def _is_over(self, timeout: int) -> bool:
        try:
            return (await self._chain.head()).timestamp >= timeout
        except ChainError:
            return False


def _undone(batch: BlockEvents) -> tuple[ChannelID, ...]:
    """The channels of which a reorg took something back, each once."""
    return tuple(dict.fromkeys(event.channel_id for event in batch.undone))

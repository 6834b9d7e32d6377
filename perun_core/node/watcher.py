"""The watcher of a session: sees every dispute about its channels and refutes outdated states by itself.

It needs neither the peer nor the channel's conversation, which may be waiting for either. What it knows about a channel
is the newest fully signed transaction, published by the conversation as soon as it is durable. Decisions rest on what
the contract stores (`dispute`), never on what an event or its calldata says (PROTOCOL.md 7.9).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from ..channel import Dispute, Params, Transaction
from ..errors import ChainError, KeyManagerError, StoreError
from ..ports.chain import Chain, ChannelEvent
from ..ports.store import Put, Store, Table
from ..protocol.events import ChainRegistered
from ..values import Address, ChannelID

log = logging.getLogger(__name__)

RETRY: Final = 1.0
"""Seconds before a broken feed is opened again, or a failed refutation is tried again."""
CURSOR_EVERY: Final = 16
"""Blocks without events after which the cursor is stored again."""


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
        self._refuting: dict[ChannelID, asyncio.Task[None]] = {}

    def publish(self, params: Params, tx: Transaction, notify: Callable[[ChainRegistered], None]) -> None:
        """`tx` is the newest fully signed and durable transaction of its channel; watch it from now on."""
        assert tx.state is not None
        self._channels[tx.state.id] = Watched(params, tx, notify)

    def forget(self, channel_id: ChannelID) -> None:
        """Nothing of the channel is left on chain that concerns us."""
        self._channels.pop(channel_id, None)

    def must_be_back_within(self) -> int | None:
        """Seconds of absence after which an outdated state could stand: the shortest challenge duration watched.

        None when nothing is watched. Whoever comes back later than this may find a dispute lost.
        """
        return min((watched.params.challenge_duration for watched in self._channels.values()), default=None)

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

    async def look(self, channel_id: ChannelID) -> None:
        """Judge what the contract stores about a channel now, for example after a restart."""
        watched = self._channels.get(channel_id)
        if watched is None:
            return
        try:
            dispute = await self._chain.dispute(channel_id)
        except ChainError as error:
            log.warning("channel %s: the dispute cannot be read: %s", channel_id.hex(), error)
            return
        if dispute.registered:
            self._judge(channel_id, watched, dispute)

    async def _follow(self) -> None:
        """Process batches until the feed ends or breaks; what was processed is remembered over that.

        The first cursor is stored at once: from then on nothing that happens while nobody watches is missed.
        """
        written = self._cursor
        async for batch in self._chain.events(self._cursor):
            for event in batch.events:
                await self._on_event(event)
            self._cursor = batch.cursor
            if batch.events or written is None or batch.cursor >= written + CURSOR_EVERY:
                await self._store.commit((Put(Table.CURSORS, self._cursor_key, batch.cursor.to_bytes(8, "big")),))
                written = batch.cursor

    async def _on_event(self, event: ChannelEvent) -> None:
        watched = self._channels.get(event.channel_id)
        if watched is not None:
            self._judge(event.channel_id, watched, await self._chain.dispute(event.channel_id))

    def _judge(self, channel_id: ChannelID, watched: Watched, dispute: Dispute) -> None:
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
                "channel %s: version %d was registered on chain, refuting with %d before block time %d",
                channel_id.hex(),
                dispute.version,
                newest.version,
                dispute.timeout,
            )
            task = asyncio.get_running_loop().create_task(self._refute(channel_id, dispute.timeout))
            self._refuting[channel_id] = task
            task.add_done_callback(lambda done: self._refuting.pop(channel_id, None))

    async def _refute(self, channel_id: ChannelID, timeout: int) -> None:
        """Register the newest state until it stands or its time is over; the backend raises fees as that nears."""
        while (watched := self._channels.get(channel_id)) is not None:
            try:
                dispute = await self._chain.register(watched.params, watched.newest)
            except (ChainError, StoreError, KeyManagerError) as error:
                log.error("channel %s: refutation failed: %s", channel_id.hex(), error)
                if await self._is_over(timeout):
                    log.error("channel %s: the time for a refutation is over", channel_id.hex())
                    return
                await asyncio.sleep(RETRY)
                continue
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

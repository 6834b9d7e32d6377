"""Recovery mode of a session: its storage is or may be an old copy, so nothing is signed before peers were asked.

It begins when the store says so at opening, or when a peer or the chain proves it later. Every channel whose off-chain
life is not over has to be reconciled: its peer has shown its newest state, which we then hold, or the chain has taken
over. Each channel goes on as soon as it is; the session opens new channels when all are. The store keeps the doubt
over restarts and refuses new marks of the signing guard meanwhile, whatever the code above it does (PROTOCOL.md 7.3.5).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

from msgspec.structs import replace

from ..errors import FailedPrecondition, StoreError
from ..ports.store import Doubt, Op, Put, Store, Table
from ..protocol.events import RecoveryBegan, RecoveryEnded
from ..protocol.records import RecordCodec
from ..protocol.syncing import BEFORE_THE_CHAIN
from ..values import ChannelID

log = logging.getLogger(__name__)

RETRY: Final = 5.0
"""Seconds before the store is told again what it could not write down."""
REMEDY: Final = (
    "each channel goes on when its peer has shown its newest state, or can be closed, which settles it on chain; "
    "a session whose records are certainly complete is released with `perunnode trust`"
)


class Recovered(Protocol):
    """What recovery needs of a channel."""

    name: str

    @property
    def channel_id(self) -> ChannelID: ...
    @property
    def can_sign(self) -> bool: ...
    def post(self, event: RecoveryBegan | RecoveryEnded) -> None: ...


class Recovery:
    """Whether and why a session signs nothing, and what it waits for.

    `spawn` runs a coroutine as long as the session lives. `channels` gives those whose conversations run.
    """

    def __init__(
        self,
        store: Store,
        *,
        channels: Callable[[], Iterable[Recovered]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._store = store
        self._channels = channels
        self._spawn = spawn
        self._turn = asyncio.Lock()
        self._waiting: dict[ChannelID, Recovered] = {}
        self._lost: set[ChannelID] = set()
        status = store.status()
        self._reason = status.reason or str(status.doubt) if status.doubt is not None else ""
        self._by_word_only = status.doubt is Doubt.GONE

    @property
    def is_on(self) -> bool:
        """Whether the session is in recovery mode."""
        return bool(self._reason)

    @property
    def reason(self) -> str:
        """What was found, and what to do; empty in normal life. One text for users, logs and refusals."""
        return f"{self._reason}; {REMEDY}" if self._reason else ""

    def doubts(self, channel_id: ChannelID) -> bool:
        """Whether this channel is to be reconciled before it signs; not when it was in an earlier life of the doubt."""
        return self.is_on and not self._store.status().may_sign(bytes(channel_id))

    def check_off(self) -> None:
        """Raises: FailedPrecondition in recovery mode."""
        if self._reason:
            raise FailedPrecondition(f"session is in recovery mode: {self.reason}")

    def restored(self) -> None:
        """All channels were brought back; those that could still sign are waited for. Call once, before events."""
        if not self._reason:
            return
        self._waiting = {
            live.channel_id: live for live in self._channels() if live.can_sign and self.doubts(live.channel_id)
        }
        log.error("RECOVERY MODE, nothing is signed: %s", self.reason)
        for live in self._waiting.values():
            log.error("%s: waits for its peer's newest state", live.name)
        self._end_if_done()

    def report(self, proof: str, *, lost: ChannelID | None = None) -> None:
        """Somebody proved that our storage is behind. `lost`: a channel of which there is no record at all."""
        if lost is not None:
            self._lost.add(lost)
        if self._reason:
            return
        self._reason = proof
        log.error("RECOVERY MODE, nothing is signed: %s", self.reason)
        self._waiting = {live.channel_id: live for live in self._channels() if live.can_sign}
        for live in self._waiting.values():
            live.post(RecoveryBegan(self.reason))
        self._spawn(self._distrust(proof))

    def on_reconciled(self, live: Recovered) -> None:
        """Nothing about this channel is in doubt any more: it goes on as soon as the store knows."""
        if self._reason:
            self._spawn(self._release(live))

    def opened(self, channel_id: ChannelID) -> None:
        """A channel whose opening was under way: nothing about it can have been forgotten."""
        if self._reason:
            self._spawn(self._tell_store(lambda: self._store.trust(bytes(channel_id))))

    async def _distrust(self, proof: str) -> None:
        await self._tell_store(lambda: self._store.distrust(Doubt.REPORTED, proof))
        self._end_if_done()

    async def _release(self, live: Recovered) -> None:
        await self._tell_store(lambda: self._store.trust(bytes(live.channel_id)))
        self._waiting.pop(live.channel_id, None)
        live.post(RecoveryEnded())
        log.warning("%s: reconciled with its peer or the chain, goes on", live.name)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._waiting or not self._reason:
            return
        if self._lost or self._by_word_only:
            log.error("recovery mode goes on until the operator decides: %s", self.reason)
            return
        self._spawn(self._end())

    async def _end(self) -> None:
        await self._tell_store(self._store.trust)
        if not self._waiting and self._reason:
            self._reason = ""
            for live in self._channels():
                live.post(RecoveryEnded())
            log.warning("recovery mode is over: every channel is reconciled")

    async def _tell_store(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """In the order of the calls; a store that cannot write it down keeps everything as it is."""
        async with self._turn:
            while True:
                try:
                    await write()
                    return
                except StoreError as error:
                    log.error("recovery mode goes on: %s", error)
                await asyncio.sleep(RETRY)


async def take_the_word(store: Store, codec: RecordCodec) -> tuple[int, str]:
    """The operator says that the records are complete: number of channels that go on, and what the doubt was.

    The first new version of each is guarded as after any other recovery (`promises.check_after_recovery`). "" when
    there was no doubt; then nothing is changed. Raises: StoreError.
    """
    status = store.status()
    if status.doubt is None:
        return 0, ""
    changes: list[Op] = []
    after: bytes | None = None
    while page := await store.scan(Table.CHANNELS, after=after):
        for key, value in page:
            record = codec.decode(key, value)
            if record.phase in BEFORE_THE_CHAIN and record.current.state is not None:
                record = replace(record, recovered=record.current.state.version)
                changes.append(Put(Table.CHANNELS, key, codec.encode(record)))
        after = page[-1][0]
    if changes:
        await store.commit(tuple(changes))
    await store.trust()
    return len(changes), status.reason or str(status.doubt)

"""A node that answers as a test told it to and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar

from perun_core.errors import ResourceExists, ResourceNotFound
from perun_core.ports.api import (
    BalInfo,
    NodeInfo,
    OpenedSession,
    PayChInfo,
    PaymentItem,
    PeerIDInfo,
    ProposalNotification,
    UpdateNotification,
)

T = TypeVar("T")

SESSION = "5e" * 32
CHANNEL = "c4" * 32


class Ready:
    """A ready signal in the hands of a test."""

    def __init__(self, *, ready: bool) -> None:
        self._event = asyncio.Event()
        if ready:
            self._event.set()

    @property
    def is_ready(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    def now(self) -> None:
        self._event.set()


class Held:
    """The answer of a call that takes until the test, or the caller's cancellation, ends it."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Any:
        self.began.set()
        try:
            return await self.result
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Topic(Generic[T]):
    """Notifications of one kind: cached without a subscriber, one subscriber at a time."""

    def __init__(self, kind: str, id: str) -> None:
        self.kind, self.id = kind, id
        self.pending: list[T | Exception] = []
        self.changed = asyncio.Event()
        self.subscription: ScriptedSubscription[T] | None = None
        self.dropped = asyncio.Event()

    def notify(self, *notifications: T | Exception) -> None:
        self.pending.extend(notifications)
        self.changed.set()

    def subscribe(self) -> ScriptedSubscription[T]:
        if self.subscription is not None:
            raise ResourceExists(self.kind, self.id)
        self.dropped.clear()
        self.subscription = ScriptedSubscription(self)
        return self.subscription

    def end(self) -> None:
        if self.subscription is None:
            raise ResourceNotFound(self.kind, self.id)
        self.subscription.cancel()


class ScriptedSubscription(Generic[T]):
    def __init__(self, topic: Topic[T]) -> None:
        self._topic = topic
        self._over = False

    async def __aiter__(self) -> AsyncIterator[T]:
        topic = self._topic
        while True:
            while topic.pending and not self._over:
                notification = topic.pending.pop(0)
                if isinstance(notification, Exception):
                    raise notification
                yield notification
            if self._over:
                return
            topic.changed.clear()
            await topic.changed.wait()

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._topic.subscription = None
            self._topic.changed.set()
            self._topic.dropped.set()


class ScriptedNode:
    """Node, session and channel in one. `answers[method]` is a value, an error to raise, or a Held."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"time": 1_700_000_000}
        self.calls: list[tuple[Any, ...]] = []
        self.proposals: Topic[ProposalNotification] = Topic("proposalsSub", SESSION)
        self.updates: Topic[UpdateNotification] = Topic("updatesSub", CHANNEL)

    def _play(self, method: str, *arguments: Any) -> Any:
        self.calls.append((method, *arguments))
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _act(self, method: str, *arguments: Any) -> Any:
        answer = self._play(method, *arguments)
        return await answer.wait() if isinstance(answer, Held) else answer

    # node

    def config(self) -> NodeInfo:
        return self._play("config")

    def time(self) -> int:
        return self._play("time")

    def services(self) -> tuple[str, ...]:
        return self._play("services")

    async def register_currency(self, token: str, asset: str) -> str:
        return await self._act("register_currency", token, asset)

    async def open_session(self, config_file: str) -> OpenedSession:
        return await self._act("open_session", config_file)

    def session(self, session_id: str) -> ScriptedNode:
        if session_id != SESSION:
            raise ResourceNotFound("session", session_id)
        return self

    # session

    def channel(self, channel_id: str) -> ScriptedNode:
        if channel_id != CHANNEL:
            raise ResourceNotFound("channel", channel_id)
        return self

    async def add_peer_id(self, peer: PeerIDInfo) -> None:
        await self._act("add_peer_id", peer)

    async def get_peer_id(self, alias: str) -> PeerIDInfo:
        return await self._act("get_peer_id", alias)

    async def open_channel(self, balances: BalInfo, challenge_duration: int) -> PayChInfo:
        return await self._act("open_channel", balances, challenge_duration)

    def channels(self) -> tuple[PayChInfo, ...]:
        return self._play("channels")

    def subscribe_proposals(self) -> ScriptedSubscription[ProposalNotification]:
        return self.proposals.subscribe()

    def unsubscribe_proposals(self) -> None:
        self.proposals.end()

    async def respond_proposal(self, proposal_id: str, *, accept: bool) -> PayChInfo:
        return await self._act("respond_proposal", proposal_id, accept)

    async def deploy_asset_erc20(self, token: str) -> str:
        return await self._act("deploy_asset_erc20", token)

    # session and channel

    async def close(self, *, force: bool | None = None) -> Any:
        if force is None:
            return await self._act("close_channel")
        return await self._act("close_session", force)

    # channel

    async def send_update(self, payments: Sequence[PaymentItem]) -> PayChInfo:
        return await self._act("send_update", tuple(payments))

    def subscribe_updates(self) -> ScriptedSubscription[UpdateNotification]:
        return self.updates.subscribe()

    def unsubscribe_updates(self) -> None:
        self.updates.end()

    async def respond_update(self, update_id: str, *, accept: bool) -> PayChInfo:
        return await self._act("respond_update", update_id, accept)

    def info(self) -> PayChInfo:
        return self._play("info")

"""Performing effects: the loop that channels and openings share. It decides nothing and knows no protocol.

Effects run in order; a failed `Persist` stops the conversation for good, because memory is then ahead of disk. Whatever
an effect brings back is handled after the effects of the event that asked for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from ..errors import ApiError, CommError, KeyManagerError, RuleViolated, StoreError, UnknownInternal
from ..protocol.effects import (
    CancelTimer,
    Connect,
    Effect,
    Effects,
    Fail,
    Notification,
    Notify,
    Persist,
    Publish,
    Reply,
    RequestSignature,
    Send,
    SetTimer,
    SubmitTx,
    Timer,
)
from ..protocol.events import PeerAway, PeerReached, Signed, TimerFired
from ..protocol.records import ChannelRecord
from ..values import Address, Bytes32, Sig
from ..wire.messages import Message

log = logging.getLogger(__name__)

E = TypeVar("E")

INBOX_SIZE: Final = 64
"""Events of peers that wait for a conversation before the peer's connection is slowed down."""


class Outside(Protocol):
    """What a conversation needs from its session."""

    async def persist(self, effect: Persist) -> None:
        """Raises: StoreError."""
        ...

    async def sign(self, state_hash: Bytes32) -> Sig:
        """Our participant's signature. Raises: KeyManagerError."""
        ...

    async def connect(self, peer: Address) -> None:
        """Raises: CommError."""
        ...

    async def send(self, peer: Address, message: Message) -> None:
        """Raises: CommError."""
        ...


class Requests:
    """Users' calls that wait for a machine's `Reply` or `Fail`, by number; one object per session.

    Every request belongs to the conversation that will answer it, so that none is forgotten when that one ends.
    """

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[int, tuple[object, asyncio.Future[object]]] = {}

    def new(self, owner: object) -> tuple[int, asyncio.Future[object]]:
        """A fresh number and what its caller awaits: the value the owner gives with the reply."""
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting[number] = owner, future
        return number, future

    def hand_over(self, number: int, owner: object) -> None:
        """Another conversation will answer `number`."""
        if number in self._waiting:
            self._waiting[number] = owner, self._waiting[number][1]

    def reply(self, number: int, value: object) -> None:
        """The request succeeded; no effect when nobody waits any more."""
        _, future = self._waiting.pop(number, (None, None))
        if future is not None and not future.done():
            future.set_result(value)

    def fail(self, number: int, error: ApiError) -> None:
        """The request failed; no effect when nobody waits any more."""
        _, future = self._waiting.pop(number, (None, None))
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # a caller that went away is no reason for a warning

    def fail_all_of(self, owner: object, error: ApiError) -> None:
        """`owner` will answer nobody any more."""
        for number in [number for number, (whose, _) in self._waiting.items() if whose is owner]:
            self.fail(number, error)


class Runner(Generic[E]):
    """One conversation: an inbox, a machine's `handle`, and the effects. Subclasses say what is special."""

    def __init__(self, name: str, peer: Address, outside: Outside, requests: Requests) -> None:
        self.name = name
        self.peer = peer
        self.requests = requests
        self.broken = False
        self._outside = outside
        self._inbox: asyncio.Queue[Callable[[], Effects]] = asyncio.Queue(INBOX_SIZE)
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._task: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()
        self._marked: Bytes32 | None = None

    # ---- what subclasses give ---------------------------------------------------------------------------------------

    def handle(self, event: E) -> Effects:
        """The machine's `handle`."""
        raise NotImplementedError

    def follow_up(self) -> Effects | None:
        """More to do when all effects are performed, for example a queued request; None when there is nothing."""
        return None

    def on_persisted(self, record: ChannelRecord) -> None:
        """`record` is durable."""

    def on_notify(self, notification: Notification) -> None:
        """Something a user should know."""

    def on_publish(self, effect: Publish) -> None:
        """A newer fully signed transaction for the watcher."""

    def on_submit(self, effect: SubmitTx) -> None:
        """A chain step to start."""

    def delay(self, effect: SetTimer) -> float:
        """Seconds until the timer fires."""
        return effect.seconds

    def on_settled(self) -> None:
        """All effects of an event are performed."""

    def answer(self) -> object:
        """What a request that succeeds now gets."""
        return None

    def on_violation(self, error: RuleViolated) -> None:
        """An event broke a rule; the machine is as it was before."""
        log.info("%s: %s", self.name, error)

    # ---- feeding ----------------------------------------------------------------------------------------------------

    def start(self, first: Callable[[], Effects] | None = None) -> None:
        """Begin to work, with the effects of `first` before any event."""
        if first is not None:
            self._inbox.put_nowait(first)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    @property
    def is_crowded(self) -> bool:
        """Whether `offer` would have to wait."""
        return self._inbox.full()

    async def offer(self, event: E) -> None:
        """Queue an event of the peer, waiting while the inbox is full."""
        if not self.broken:
            await self._inbox.put(lambda: self.handle(event))

    def post(self, event: E) -> None:
        """Queue an event of our own side; never waits, never lost while the runner lives."""
        self.call(lambda: self.handle(event))

    def call(self, work: Callable[[], Effects]) -> None:
        """Queue something that leads to effects; without effect once the conversation is broken."""
        if self.broken:
            return
        try:
            self._inbox.put_nowait(work)
        except asyncio.QueueFull:
            task = asyncio.get_running_loop().create_task(self._inbox.put(work))
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def stop(self) -> None:
        """End at the next waiting point; what was persisted stays."""
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        tasks = [task for task in (self._task, *self._late) if task is not None and task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- working ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self.broken:
            work = await self._inbox.get()
            try:
                await self._work(work)
            except RuleViolated as error:
                self.on_violation(error)
            except (StoreError, KeyManagerError) as error:
                self._break(str(error))
            except Exception:
                log.exception("%s: stopped by a bug", self.name)
                self._break("internal error")

    def _break(self, problem: str) -> None:
        log.error("%s: stopped: %s", self.name, problem)
        self.broken = True
        while not self._inbox.empty():  # whoever waits for room must not wait for ever
            self._inbox.get_nowait()
        self.requests.fail_all_of(self, UnknownInternal(f"channel stopped: {problem}"))
        self.on_broken(problem)

    def on_broken(self, problem: str) -> None:
        """The conversation ended by a failure of our own side."""

    async def _work(self, first: Callable[[], Effects]) -> None:
        todo: deque[Callable[[], Effects]] = deque((first,))
        while todo:
            for effect in todo.popleft()():
                event = await self.perform(effect)
                if event is not None:
                    todo.append(lambda event=event: self.handle(event))  # type: ignore[misc]
            if not todo and (more := self.follow_up()) is not None:
                todo.append(lambda more=more: more)  # type: ignore[misc]
        self.on_settled()

    async def perform(self, effect: Effect) -> PeerReached | PeerAway | Signed | None:
        """Do one effect; what it brings back, if anything. Every effect of the process goes through here.

        Raises: StoreError, KeyManagerError.
        """
        match effect:
            case Persist(record):
                await self._outside.persist(effect)
                self._marked = None if effect.signing is None else effect.signing.digest
                self.on_persisted(record)
            case RequestSignature(_, digest):
                if digest != self._marked:
                    raise AssertionError("a state is to be signed whose mark was not made durable just before")
                self._marked = None
                return Signed(await self._outside.sign(digest))
            case Send(message):
                try:
                    await self._outside.send(self.peer, message)
                except CommError as error:
                    return PeerAway(str(error))
            case Connect():
                try:
                    await self._outside.connect(self.peer)
                except CommError as error:
                    return PeerAway(str(error))
                return PeerReached()
            case SetTimer(timer):
                self._cancel(timer)
                self._timers[timer] = asyncio.get_running_loop().call_later(self.delay(effect), self._fire, timer)
            case CancelTimer(timer):
                self._cancel(timer)
            case SubmitTx():
                self.on_submit(effect)
            case Publish():
                self.on_publish(effect)
            case Notify(notification):
                self.on_notify(notification)
            case Reply(request):
                self.requests.reply(request, self.answer())
            case Fail(request, error):
                self.requests.fail(request, error)
        return None

    def _cancel(self, timer: Timer) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()

    def _fire(self, timer: Timer) -> None:
        self._timers.pop(timer, None)
        self.post(TimerFired(timer))  # type: ignore[arg-type]

"""Watching notifications as JSON lines, and waiting for them in command files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeAlias, TypeVar

from ..desk import Desk
from ..failures import ApiFailure, Failure, Json, NothingCame
from ..grammar import Call
from ..node import Notifications
from ..replies import Reply, reply
from ..typed import seconds
from ..values import Kind, Proposal, Update

T = TypeVar("T")
Emit: TypeAlias = Callable[[dict[str, Json]], None]
Events: TypeAlias = AsyncGenerator[dict[str, Json], None]

LOOK_AGAIN_SECONDS: Final = 1.0
"""How often `watch all` looks for channels that were opened."""
QUEUE_LENGTH: Final = 100
"""Notifications that wait for a slow reader; the node keeps further ones."""
CLOSED: Final = 204


async def watch(desk: Desk, call: Call, emit: Emit, began: Callable[[], None]) -> Reply:
    """Give every notification to `emit` until `--count` came, the node ended the subscription, or `--timeout` is over.

    `began` is called when the subscription stands.

    Raises: NothingCame when fewer than `--count` came, ApiFailure, NodeFailure.
    """
    wanted = seconds(call.options["count"], "count") if "count" in call.options else None
    limit = seconds(call.options["timeout"], "timeout") if "timeout" in call.options else None
    came = 0
    try:
        async with asyncio.timeout(limit), aclosing(_source(desk, call, began)) as source:
            async for event in source:
                emit(event)
                came += 1
                if came == wanted:
                    break
    except TimeoutError as error:
        if wanted is not None:
            raise NothingCame(f"{came} of {wanted} notifications came in time") from error
    else:
        if wanted is not None and came < wanted:
            raise NothingCame(f"the node ended the subscription after {came} of {wanted} notifications")
    return Reply((), {"notifications": came})


def _source(desk: Desk, call: Call, began: Callable[[], None]) -> Events:
    match call.command.name:
        case "opening-requests":
            return _proposals(desk, began)
        case "payments":
            return _payments(desk, call.arguments[0], began)
        case _:
            return _everything(desk, began)


async def _proposals(desk: Desk, began: Callable[[], None]) -> Events:
    stream = await desk.connected.proposals(desk.session)
    began()
    async with _leaving(stream):
        async for proposal in stream:
            yield _opening_request(proposal)


async def _payments(desk: Desk, name: str, began: Callable[[], None]) -> Events:
    held = await desk.channel(name)
    stream = await desk.connected.updates(desk.session, held.id)
    began()
    async with _leaving(stream):
        async for update in stream:
            yield _update(update)


async def _everything(desk: Desk, began: Callable[[], None]) -> Events:
    """Each subscription has a task that feeds one queue; the failure of any of them ends the watching."""
    queue: asyncio.Queue[dict[str, Json] | BaseException | None] = asyncio.Queue(QUEUE_LENGTH)
    tasks: dict[str, asyncio.Task[None]] = {}

    async def feed(source: Events, *, last: bool) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    await queue.put(event)
            if last:
                await queue.put(None)
        except Failure as failure:
            await queue.put(failure)

    async def look() -> None:
        """Channels that are opened by other means are found here; what came for them meanwhile is kept for us."""
        try:
            while True:
                for channel in await desk.connected.open_channels(desk.session):
                    if channel.id not in tasks:
                        tasks[channel.id] = asyncio.create_task(feed(_payments(desk, channel.id, _unsaid), last=False))
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
        except Failure as failure:
            await queue.put(failure)

    tasks["requests"] = asyncio.create_task(feed(_proposals(desk, began), last=True))
    tasks["look"] = asyncio.create_task(look())
    try:
        while (event := await queue.get()) is not None:
            if isinstance(event, BaseException):
                if isinstance(event, ApiFailure) and event.number == CLOSED:
                    continue  # a channel was closed between looking and subscribing, or the session is just ending
                raise event
            yield event
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


@asynccontextmanager
async def _leaving(stream: Notifications[T]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        stream.cancel()


def _unsaid() -> None:
    """The subscriptions of single channels are not announced."""


def _opening_request(proposal: Proposal) -> dict[str, Json]:
    return {"event": "opening-request", "request": proposal.to_json()}


def _update(update: Update) -> dict[str, Json]:
    names = {Kind.OPEN: "payment", Kind.FINAL: "closing", Kind.CLOSED: "closed"}
    return {"event": names[update.kind], "update": update.to_json()}


async def wait(desk: Desk, call: Call) -> Reply:
    """`wait …` in a shell or a command file. Raises: NothingCame."""
    limit = seconds(call.options["timeout"], "timeout") if "timeout" in call.options else None
    if call.command.name == "request":
        alias = await desk.until(lambda: next(iter(desk.book.requests), None), limit, "an opening request")
        return reply((), {"alias": alias})
    name = call.arguments[0]
    if call.command.name == "closed":
        return await _wait_closed(desk, name, limit)
    held = await desk.channel(name)
    pending = await desk.until(lambda: held.pending, limit, f"an update on {held.name}")
    return reply((), {"alias": held.alias, "id": pending.update.id})


async def _wait_closed(desk: Desk, name: str, limit: int | None) -> Reply:
    if name in desk.book.closed:
        return reply((), {"alias": name})
    held = await desk.channel(name)
    await desk.until(lambda: desk.book.closed.get(held.alias), limit, f"the closing of {held.name}")
    return reply((), {"alias": held.alias})

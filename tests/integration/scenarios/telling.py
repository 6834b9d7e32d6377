"""Words the scenarios share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import pytest

from tests.integration.clients import ClientError, Stream, Update, User
from tests.integration.world import refused

T = TypeVar("T")

ONE_TWO = {"ETH": ("1", "2")}


async def failure(call: Awaitable[object]) -> ClientError:
    """The error a call ends with."""
    with pytest.raises(ClientError) as caught:
        await call
    return caught.value


async def refuses(call: Awaitable[object], code: int, *, text: str = "", **info: object) -> ClientError:
    """`call` ends with this error, and its message contains `text`."""
    error = await failure(call)
    refused(error, code, info)
    assert error.message and text in error.message, error
    return error


async def quiet(stream: Stream[T]) -> asyncio.Future[T]:
    """Nothing comes for a moment; what waits for the next notification. (A read that is given up ends the stream.)"""
    reading = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait((reading,), timeout=0.2)
    assert not done, f"unexpected: {reading}"
    return reading


async def ends(reading: asyncio.Future[T]) -> None:
    """The stream behind `reading` ends with OK."""
    with pytest.raises(StopAsyncIteration):
        await reading


async def closing(closer: User, other: User, channel: str, *, agree: bool) -> tuple[Update, Update]:
    """Close while both listen; what both are told at the end. Both streams end with it."""
    mine = await closer.client.updates(closer.session, channel)
    theirs = await other.client.updates(other.session, channel)
    call = asyncio.ensure_future(closer.close(channel))
    final = await theirs.next()
    assert final.type == "final" and final.id == f"{channel}_{final.channel.version}" and final.expiry > 0
    answer = await other.client.respond_update(other.session, channel, final.id, accept=agree)
    assert answer.balances == final.channel.balances
    told = await told_closed(mine), await told_closed(theirs)
    closed = await call
    assert closed.balances == final.channel.balances and closed.version == told[0].channel.version
    return told


async def told_closed(updates: Stream[Update]) -> Update:
    """The news of the closing, which is the last."""
    told = await updates.next(60)
    assert told.type == "closed" and told.expiry == 0 and told.id.endswith("_closed")
    await updates.ended()
    return told

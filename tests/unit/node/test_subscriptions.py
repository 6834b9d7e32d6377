"""Notifications: in order, bounded, kept while nobody listens (API.md 2.2.4)."""

from __future__ import annotations

import asyncio

from perun_core.node.subscriptions import KEPT, Feed, Reader


async def collect(reader: Reader[int]) -> list[int]:
    return [item async for item in reader]


async def some(reader: Reader[int], count: int) -> list[int]:
    """The next `count` items, through the same iterator a stream uses."""
    items = []
    iterator = aiter(reader)
    for _ in range(count):
        items.append(await asyncio.wait_for(anext(iterator), 5))
    await iterator.aclose()  # type: ignore[attr-defined]
    return items


async def test_what_came_before_the_subscription_is_delivered_first_and_once() -> None:
    feed: Feed[int] = Feed()
    feed.publish(1)
    feed.publish(2)
    reader = feed.subscribe()
    feed.publish(3)
    assert await some(reader, 3) == [1, 2, 3]
    feed.end()
    assert await collect(reader) == []


async def test_a_waiting_reader_gets_what_comes() -> None:
    feed: Feed[int] = Feed()
    waiting = asyncio.ensure_future(some(feed.subscribe(), 2))
    await asyncio.sleep(0)
    feed.publish(1)
    await asyncio.sleep(0)
    feed.publish(2)
    assert await waiting == [1, 2]


async def test_ending_is_effective_at_once_and_keeps_the_rest_for_the_next() -> None:
    feed: Feed[int] = Feed()
    first = feed.subscribe()
    feed.publish(1)
    feed.end()
    assert not feed.has_reader
    second = feed.subscribe()
    assert await collect(first) == []
    feed.publish(2)
    assert await some(second, 2) == [1, 2]


async def test_a_reader_that_goes_away_frees_the_place_and_loses_nothing() -> None:
    feed: Feed[int] = Feed()
    first = feed.subscribe()
    feed.publish(1)
    feed.publish(2)
    assert await some(first, 1) == [1]
    first.cancel()
    first.cancel()
    assert not feed.has_reader
    assert await some(feed.subscribe(), 1) == [2]


async def test_cancelling_an_old_reader_does_not_disturb_a_new_one() -> None:
    feed: Feed[int] = Feed()
    old = feed.subscribe()
    feed.end()
    new = feed.subscribe()
    old.cancel()
    assert feed.has_reader
    feed.publish(1)
    assert await some(new, 1) == [1]


async def test_the_last_news_are_delivered_before_the_stream_ends() -> None:
    feed: Feed[int] = Feed()
    reader = feed.subscribe()
    feed.publish(1)
    feed.publish(2)
    feed.end(deliver_rest=True)
    assert await collect(reader) == [1, 2]
    again = feed.subscribe()
    feed.end()
    assert await collect(again) == [], "delivered twice"


async def test_without_a_reader_the_end_loses_nothing() -> None:
    feed: Feed[int] = Feed()
    feed.publish(1)
    feed.end(deliver_rest=True)
    assert await some(feed.subscribe(), 1) == [1]


async def test_expired_items_are_dropped_when_they_would_be_delivered() -> None:
    valid = {1, 2, 3}
    feed: Feed[int] = Feed(lambda item: item in valid)
    for item in (1, 2, 3):
        feed.publish(item)
    valid.remove(2)
    assert await some(feed.subscribe(), 2) == [1, 3]


async def test_withdrawn_items_are_not_delivered() -> None:
    feed: Feed[int] = Feed()
    for item in range(6):
        feed.publish(item)
    feed.withdraw(lambda item: item % 2 == 0)
    assert await some(feed.subscribe(), 3) == [1, 3, 5]


async def test_the_queue_is_bounded_and_the_oldest_go_first() -> None:
    feed: Feed[int] = Feed()
    for item in range(KEPT + 10):
        feed.publish(item)
    assert await some(feed.subscribe(), KEPT) == list(range(10, KEPT + 10))


async def test_an_ended_stream_ends_a_reader_that_waits() -> None:
    feed: Feed[int] = Feed()
    waiting = asyncio.ensure_future(collect(feed.subscribe()))
    await asyncio.sleep(0)
    feed.end()
    assert await asyncio.wait_for(waiting, 5) == []

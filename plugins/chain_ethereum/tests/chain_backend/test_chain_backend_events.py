"""Reading events from nodes that limit ranges, fail now and then, or exchange blocks; no node is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from perun_chain_ethereum import abi, events
from perun_chain_ethereum.connection import Head, NodeRefused
from perun_chain_ethereum.events import EventFeed
from perun_core.errors import NotReachable
from perun_core.ports.chain import BlockEvents, BlockRef
from perun_core.values import Address, Bytes32

ADJUDICATOR = Address(b"\x0a" * 20)


def block_hash(number: int, fork: int = 0) -> Bytes32:
    return Bytes32(bytes([fork]) * 24 + number.to_bytes(8, "big"))


def head(number: int, fork: int = 0, parent_fork: int | None = None) -> Head:
    parent = block_hash(number - 1, fork if parent_fork is None else parent_fork)
    return Head(ref=BlockRef(number, block_hash(number, fork), 12 * number), parent=parent, base_fee=1)


def log(number: int, index: int = 0, fork: int = 0) -> dict[str, Any]:
    return {
        "topics": [abi.CHANNEL_UPDATE, b"\x01" * 32],
        "data": b"".join(word.to_bytes(32, "big") for word in (number, 0, 0)),
        "blockNumber": number,
        "blockHash": block_hash(number, fork),
        "logIndex": index,
        "transactionHash": b"\x02" * 32,
    }


class Node:
    """A chain with two events in every hundredth block, which the node does not give in order."""

    def __init__(self, *, limit: int = 10**9) -> None:
        self.logs_by_block: dict[int, list[dict[str, Any]]] = {n: [log(n, 1), log(n, 0)] for n in range(0, 2000, 100)}
        self.limit = limit
        self.failures = 0
        self.asked: list[tuple[int, int]] = []
        self.forks: dict[int, int] = {}
        self.by_hash = True
        self.height = 10**9

    async def logs(self, contract: Address, topic: Bytes32, first: int, last: int) -> list[dict[str, Any]]:
        assert (contract, topic) == (ADJUDICATOR, abi.CHANNEL_UPDATE)
        if self.failures:
            self.failures -= 1
            raise NotReachable("away")
        if last - first + 1 > self.limit:
            raise NodeRefused(-32005, "query exceeds max block range")
        self.asked.append((first, last))
        return [entry for n in range(first, last + 1) for entry in self.logs_by_block.get(n, [])]

    async def logs_of(self, contract: Address, topic: Bytes32, block: Bytes32) -> list[dict[str, Any]]:
        assert (contract, topic) == (ADJUDICATOR, abi.CHANNEL_UPDATE)
        if self.failures:
            self.failures -= 1
            raise NotReachable("away")
        number = int.from_bytes(block[24:], "big")
        if not self.by_hash:
            raise NodeRefused(-32602, "invalid argument: blockHash")
        if block != await self.block_hash(number):
            raise NodeRefused(-32000, "unknown block")
        self.asked.append((number, number))
        return self.logs_by_block.get(number, [])

    async def block_hash(self, number: int) -> Bytes32 | None:
        fork = max((fork for first, fork in self.forks.items() if number >= first), default=0)
        return block_hash(number, fork) if number <= self.height else None


class Heads:
    """Heads that are known in advance."""

    closed = False

    def __init__(self, *heads: Head) -> None:
        self._heads = heads

    async def follow(self) -> AsyncIterator[Head]:
        for known in self._heads:
            yield known


async def read(node: Node, heads: Heads, cursor: int | None, *, depth: int = 1) -> list[BlockEvents]:
    feed: Any = EventFeed
    return [item async for item in feed(node, heads, ADJUDICATOR, finality_depth=depth, cursor=cursor).follow()]


def seen(items: list[BlockEvents]) -> list[tuple[int, int]]:
    return [(event.block_number, event.log_index) for item in items for event in item.events]


@pytest.mark.parametrize("limit", [1, 7, 500, 10**9])
async def test_no_event_is_lost_or_doubled_where_the_node_limits_ranges(limit: int) -> None:
    items = await read(Node(limit=limit), Heads(head(1000)), 100)
    assert seen(items) == [(number, index) for number in range(200, 1001, 100) for index in (0, 1)]
    cursors = [item.cursor for item in items]
    assert cursors == sorted(cursors) and cursors[-1] == 1000


async def test_every_cursor_can_be_continued_from() -> None:
    items = await read(Node(limit=130), Heads(head(1000)), 0)
    for position, item in enumerate(items):
        rest = await read(Node(), Heads(head(1000)), item.cursor)
        assert seen(items[: position + 1]) + seen(rest) == seen(items)


async def test_a_node_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FIRST_PAUSE", 0)
    node = Node()
    node.failures = 2
    assert seen(await read(node, Heads(head(200)), 100)) == [(200, 0), (200, 1)]


async def test_only_new_blocks_are_asked_for_while_heads_follow_each_other() -> None:
    node = Node()
    await read(node, Heads(head(300), head(301), head(302)), 290)
    assert node.asked == [(163, 290), (291, 299), (300, 300), (301, 301), (302, 302)]


async def test_an_exchanged_block_gives_its_new_events_and_the_old_ones_only_once() -> None:
    node = Node()

    class Reorganised(Heads):
        async def follow(self) -> AsyncIterator[Head]:
            yield head(299)
            yield head(300)
            node.logs_by_block[300] = [log(300, 0, fork=1)]
            node.forks[300] = 1
            yield head(301, fork=1)

    items = await read(node, Reorganised(), 150)
    hashes = [event.block_hash for item in items for event in item.events]
    old, new = block_hash(300), block_hash(300, fork=1)
    assert hashes == [block_hash(200), block_hash(200), old, old, new]
    assert [(event.block_hash, event.log_index) for item in items for event in item.undone] == [(old, 1), (old, 0)]


async def test_a_chain_shorter_than_the_cursor_gives_nothing_and_keeps_the_cursor() -> None:
    items = await read(Node(), Heads(head(50)), 100)
    assert [(item.cursor, item.events) for item in items] == [(100, ())]


async def test_events_wait_until_their_block_is_deep_enough() -> None:
    items = await read(Node(), Heads(head(200), head(201), head(202)), 150, depth=3)
    assert [len(item.events) for item in items] == [0, 0, 2]
    assert [item.cursor for item in items] == [198, 199, 200]


class Told(Heads):
    """Heads between which the node changes."""

    def __init__(self, *steps: Head | Callable[[], None]) -> None:
        self._steps = steps

    async def follow(self) -> AsyncIterator[Head]:
        for step in self._steps:
            if isinstance(step, Head):
                yield step
            else:
                step()


def undone(items: list[BlockEvents]) -> list[tuple[int, int]]:
    return [(event.block_number, event.log_index) for item in items for event in item.undone]


async def test_b4_a_thousand_events_are_complete_and_in_order_from_history_and_live() -> None:
    node = Node(limit=90)
    node.logs_by_block = {number: [log(number, index) for index in (3, 1, 0, 2)] for number in range(1, 251)}
    items = await read(node, Heads(head(200), *(head(number) for number in range(201, 251))), 0)
    assert seen(items) == [(number, index) for number in range(1, 251) for index in range(4)]
    assert [item.cursor for item in items if item.block.number > 200] == list(range(201, 251))


async def test_b5_all_logs_of_one_transaction_and_one_from_history_and_live_come_once() -> None:
    node = Node()
    node.logs_by_block[300] = [log(300, index) for index in range(5)]  # all with the same transaction hash
    items = await read(node, Heads(head(300), head(300, fork=0), head(301)), 299)
    assert seen(items) == [(300, index) for index in range(5)]


async def test_b5_a_head_that_is_told_before_its_logs_are_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    node.height = 299

    async def catch_up(seconds: float) -> None:
        node.height += 1

    monkeypatch.setattr(events.asyncio, "sleep", catch_up)
    assert seen(await read(node, Heads(head(299), head(300)), 298)) == [(300, 0), (300, 1)]


async def test_b5_a_gap_between_heads_after_an_interruption_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FIRST_PAUSE", 0)
    node = Node()

    def interrupt() -> None:
        node.failures = 3

    items = await read(node, Told(head(150), interrupt, head(450)), 150)
    assert seen(items) == [(number, index) for number in (200, 300, 400) for index in (0, 1)]
    assert not undone(items)


async def test_b5_a_node_that_knows_no_logs_by_block_hash_is_asked_by_number() -> None:
    node = Node()
    node.by_hash = False
    assert seen(await read(node, Heads(head(299), head(300), head(301)), 298)) == [(300, 0), (300, 1)]


async def test_b4_events_that_vanish_while_the_chain_gets_shorter_are_undone_when_it_has_grown_again() -> None:
    node = Node()

    def exchange() -> None:
        node.logs_by_block[300] = []
        node.forks[298] = 1

    steps = (head(299), head(300), exchange, head(298, 1, 0), head(299, 1), head(300, 1), head(301, 1))
    items = await read(node, Told(*steps), 250)
    assert seen(items) == [(300, 0), (300, 1)]
    assert undone(items) == [(300, 1), (300, 0)]
    assert items[-1].cursor == 301


async def test_b4_events_that_come_back_with_their_old_block_are_told_again() -> None:
    node = Node()
    logs = node.logs_by_block[300]

    def leave() -> None:
        node.logs_by_block[300] = []
        node.forks[300] = 1

    def come_back() -> None:
        node.logs_by_block[300] = logs
        node.forks.clear()

    steps = (head(299), head(300), leave, head(300, 1, 0), come_back, head(301, 0))
    items = await read(node, Told(*steps), 250)
    assert seen(items) == [(300, 0), (300, 1), (300, 0), (300, 1)]
    assert undone(items) == [(300, 1), (300, 0)]


async def test_b4_an_answer_that_forgets_logs_of_a_block_that_is_still_there_undoes_nothing() -> None:
    node = Node()
    logs = node.logs_by_block[300]

    def forget() -> None:
        node.logs_by_block[300] = []

    def remember() -> None:
        node.logs_by_block[300] = logs

    items = await read(node, Told(head(300), forget, head(302), remember, head(303)), 250)
    assert seen(items) == [(300, 0), (300, 1)]
    assert undone(items) == []


async def test_a_cursor_never_stays_above_blocks_that_were_exchanged() -> None:
    node = Node()

    def exchange() -> None:
        node.forks[290] = 1

    items = await read(node, Told(head(300), exchange, head(295, 1)), 250)
    assert items[-1].cursor == 295


async def test_what_was_there_before_the_cursor_does_not_look_new_after_a_reorg() -> None:
    node = Node()

    def exchange() -> None:
        node.forks[302] = 1

    items = await read(node, Told(head(301), exchange, head(302, 1), head(304, 1)), 301)
    assert seen(items) == [] and undone(items) == []


async def test_any_number_of_channels_costs_one_question_per_block() -> None:
    node = Node()
    await read(node, Heads(head(300)), 300)
    before = len(node.asked)
    node.asked.clear()
    await read(node, Heads(head(300), *(head(number) for number in range(301, 401))), 300)
    assert len(node.asked) == before + 100

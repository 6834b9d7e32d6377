"""Blocking calls stay away from the loop, end in time, and hold nobody up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from perun_core.keys import BlockingCalls
from perun_core.keys.blocking import MAX_STUCK


@pytest.fixture
def calls() -> Iterator[BlockingCalls]:
    calls = BlockingCalls("test")
    yield calls
    calls.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What stuck calls wait for; opened at the end of every test."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_results_and_errors_come_back(calls: BlockingCalls) -> None:
    assert await calls.run(lambda: 6 * 7, timeout=10) == 42
    with pytest.raises(ZeroDivisionError):
        await calls.run(lambda: 1 // 0, timeout=10)


async def test_calls_run_one_after_the_other_in_one_thread_that_is_not_the_loops(calls: BlockingCalls) -> None:
    running = 0

    def call() -> int:
        nonlocal running
        running += 1
        assert running == 1
        running -= 1
        return threading.get_ident()

    threads = await asyncio.gather(*(calls.run(call, timeout=10) for _ in range(20)))
    assert len(set(threads)) == 1 and threading.get_ident() not in threads


async def test_the_loop_goes_on_during_a_call(calls: BlockingCalls, gate: threading.Event) -> None:
    waiting = asyncio.ensure_future(calls.run(gate.wait, timeout=10))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    assert await waiting


async def test_a_call_that_hangs_is_given_up_and_the_next_one_runs(calls: BlockingCalls, gate: threading.Event) -> None:
    with pytest.raises(TimeoutError):
        await calls.run(gate.wait, timeout=0.02)
    assert await calls.run(lambda: "next", timeout=10) == "next"


async def test_a_cancelled_caller_leaves_the_others_alone(calls: BlockingCalls, gate: threading.Event) -> None:
    first = asyncio.ensure_future(calls.run(gate.wait, timeout=10))
    second = asyncio.ensure_future(calls.run(lambda: "second", timeout=10))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "second"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_many_calls_that_hang_are_refused_at_once_until_one_comes_back(
    calls: BlockingCalls, gate: threading.Event
) -> None:
    ended = threading.Event()

    def hang() -> None:
        gate.wait()
        ended.set()

    for _ in range(MAX_STUCK):
        with pytest.raises(TimeoutError):
            await calls.run(hang, timeout=0.02)
    ran = threading.Event()
    with pytest.raises(TimeoutError, match="still hang"):
        await calls.run(ran.set, timeout=60)
    assert not ran.is_set()
    gate.set()
    ended.wait(10)
    async with asyncio.timeout(10):
        while True:
            try:
                assert await calls.run(lambda: "works", timeout=10) == "works"
                break
            except TimeoutError:
                await asyncio.sleep(0.01)


async def test_a_library_that_wants_to_end_the_process_ends_its_call(calls: BlockingCalls) -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        await calls.run(leave, timeout=10)


async def test_once_closed_nothing_runs(calls: BlockingCalls) -> None:
    await calls.run(lambda: None, timeout=10)
    calls.close()
    with pytest.raises(RuntimeError, match="closed"):
        await calls.run(lambda: None, timeout=10)


def test_a_result_that_nobody_waits_for_any_more_is_thrown_away(gate: threading.Event) -> None:
    calls = BlockingCalls("test")
    started, ended = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        gate.wait()
        ended.set()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await calls.run(hang, timeout=0.02)

    asyncio.run(give_up())  # the loop is closed when the call returns
    gate.set()
    assert started.is_set() and ended.wait(10)
    calls.close()

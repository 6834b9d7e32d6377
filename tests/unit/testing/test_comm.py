"""The network in memory is a transport like any other, and its faults do what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

import pytest

from perun_core.errors import ConnectionLost, PeerUnreachable
from perun_core.ports.comm import Comm, Connection
from perun_core.testing.comm import CommConformance, MemoryNetwork


class TestMemoryNetwork(CommConformance):
    @pytest.fixture
    def comm(self) -> Comm:
        return MemoryNetwork().comm()

    @pytest.fixture
    def free_address(self) -> Callable[[], str]:
        ports = count(1)
        return lambda: f"127.0.0.1:{next(ports)}"


async def connect(network: MemoryNetwork) -> tuple[Connection, Connection]:
    accepted: asyncio.Queue[Connection] = asyncio.Queue()

    async def accept(connection: Connection) -> None:
        accepted.put_nowait(connection)
        while await connection.read():
            pass

    async def keep(connection: Connection) -> None:
        accepted.put_nowait(connection)
        await asyncio.Event().wait()

    await network.comm().listen("a:1", keep)
    return await network.comm().dial("a:1", timeout=1), await accepted.get()


async def test_segments_arrive_one_by_one() -> None:
    network = MemoryNetwork()
    near, far = await connect(network)
    network.segment = 2
    await near.write(b"abcde")
    assert [await far.read() for _ in range(3)] == [b"ab", b"cd", b"e"]


async def test_held_bytes_arrive_after_release() -> None:
    network = MemoryNetwork()
    near, far = await connect(network)
    network.hold()
    await near.write(b"later")
    reading = asyncio.create_task(far.read())
    await asyncio.sleep(0)
    assert not reading.done()
    network.release()
    assert await reading == b"later"


async def test_delayed_bytes_keep_their_order() -> None:
    network = MemoryNetwork()
    near, far = await connect(network)
    network.delay = 0.01
    await near.write(b"1")
    await near.write(b"2")
    assert await far.read() + await far.read() == b"12"


async def test_both_ends_notice_a_cut() -> None:
    network = MemoryNetwork()
    near, far = await connect(network)
    network.cut()
    with pytest.raises(ConnectionLost):
        await near.write(b"x")
    with pytest.raises(ConnectionLost):
        await far.read()


async def test_nobody_notices_a_half_open_connection() -> None:
    network = MemoryNetwork()
    near, far = await connect(network)
    network.silence()
    await near.write(b"lost")
    await near.close()
    reading = asyncio.create_task(far.read())
    await asyncio.sleep(0)
    assert not reading.done()
    await far.close()
    assert await reading == b""


async def test_an_unreachable_address_takes_the_whole_time_of_a_dial() -> None:
    network = MemoryNetwork()
    network.unreachable.add("a:1")
    with pytest.raises(PeerUnreachable):
        await network.comm().dial("a:1", timeout=0.01)

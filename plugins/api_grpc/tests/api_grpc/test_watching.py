"""How a watching ends: by the client's word only, never because it vanished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from perun_api_grpc.config import GrpcConfig
from perun_api_grpc.pb import sdktypes_pb2 as sdk
from perun_api_grpc.pb import watching_service_pb2 as pb
from perun_api_grpc.pb.watching_service_pb2_grpc import Watching_APIStub
from perun_api_grpc.server import listening
from perun_core.channel import Params, Transaction
from perun_core.ports.api import AdjudicatorEvent, ApiContext

from .scripted import SESSION, Ready, ScriptedNode

FIRST = pb.StartWatchingLedgerChannelReq(
    sessionID=SESSION, params=sdk.Params(parts=[bytes(20)] * 2), state=sdk.State(id=bytes(32))
)


class Guarded:
    """A watched channel that remembers how it was left."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._over = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[AdjudicatorEvent]:
        await self._over.wait()
        return
        yield

    def cancel(self) -> None:
        self._log.append("left")

    async def publish(self, tx: Transaction) -> None:
        self._log.append("published")

    async def stop(self) -> None:
        self._log.append("stopped")
        self._over.set()


class Guard(ScriptedNode):
    """A node that watches."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def fundwatch(self) -> Guard:
        return self

    async def watch(self, params: Params, tx: Transaction) -> Guarded:
        self.log.append("watched")
        return Guarded(self.log)


@pytest.fixture
async def guard() -> Guard:
    return Guard()


@pytest.fixture
async def port(guard: Guard) -> AsyncIterator[int]:
    context = ApiContext(node=guard, host="127.0.0.1", port=0, service="fundwatch", ready=Ready(ready=True))
    async with listening(GrpcConfig(), context) as port:
        yield port


async def begun(channel: grpc.aio.Channel) -> Any:
    call = Watching_APIStub(channel).StartWatchingLedgerChannel()
    await call.write(FIRST)
    await call.initial_metadata()
    return call


async def left(guard: Guard, times: int) -> None:
    async with asyncio.timeout(10):
        while guard.log.count("left") < times:  # noqa: ASYNC110 - the node says nothing when a client is gone
            await asyncio.sleep(0.02)


async def test_clients_that_cancel_or_lose_their_connection_have_their_channels_watched_on(
    guard: Guard, port: int
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in [await begun(channel) for _ in range(20)]:
            call.cancel()
        await left(guard, 20)
    for _ in range(10):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        await begun(channel)
        await channel.close(None)
    await left(guard, 30)
    assert guard.log.count("watched") == 30 and "stopped" not in guard.log


async def test_a_client_that_ends_its_side_ends_the_watching_with_ok(guard: Guard, port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = await begun(channel)
        await call.write(pb.StartWatchingLedgerChannelReq(state=sdk.State(id=bytes(32), version=1)))
        await call.done_writing()
        assert not await call.read() and await call.code() == grpc.StatusCode.OK
    assert guard.log == ["watched", "published", "stopped", "left"]

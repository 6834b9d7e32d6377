"""Clients of Funding_API and Watching_API, and a watcher that hands everything on and remembers it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from perun_api_grpc.pb import funding_service_pb2 as fund
from perun_api_grpc.pb import sdktypes_pb2 as sdk
from perun_api_grpc.pb import watching_service_pb2 as watch
from perun_api_grpc.pb.funding_service_pb2_grpc import Funding_APIStub
from perun_api_grpc.pb.watching_service_pb2_grpc import (
    Watching_APIServicer,
    Watching_APIStub,
    add_Watching_APIServicer_to_server,
)
from tests.integration.world import Person


def lend_keys(owner: Person, *, to: Person) -> None:
    """Copy `owner`'s keys into the wallet of `to`, who then can sign withdrawals for them."""
    for file in (owner.home / "keystore").iterdir():
        shutil.copy(file, to.home / "keystore" / file.name)


@asynccontextmanager
async def services(port: int) -> AsyncIterator[tuple[Any, Any]]:
    """Stubs of Funding_API and Watching_API."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Funding_APIStub(channel), Watching_APIStub(channel)


class Onlooker(Watching_APIServicer):
    """A watching service between a node and a real one: keeps what passes, as a peer with a good memory would."""

    def __init__(self, onward: Any | None = None) -> None:
        self._onward = onward
        self.params: dict[bytes, sdk.Params] = {}
        self.states: dict[tuple[bytes, int], watch.StartWatchingLedgerChannelReq] = {}

    def request(self, channel: str, version: int, index: int) -> sdk.AdjudicatorReq:
        """A request for participant `index` with the state of `version`, signed by both."""
        channel_id = bytes.fromhex(channel)
        seen, params = self.states[channel_id, version], self.params[channel_id]
        tx = sdk.Transaction(state=seen.state, sigs=seen.sigs)
        return sdk.AdjudicatorReq(params=params, acc=params.parts[index], tx=tx, idx=index)

    def knows(self, channel: str, version: int) -> bool:
        """Whether the state of `version` passed by."""
        return (bytes.fromhex(channel), version) in self.states

    async def StartWatchingLedgerChannel(self, requests: Any, call: Any) -> None:
        onward = None if self._onward is None else self._onward.StartWatchingLedgerChannel()
        back = asyncio.ensure_future(self._hand_back(onward, call))
        try:
            await call.send_initial_metadata(())
            async for message in requests:
                if message.HasField("params"):
                    self.params[message.state.id] = message.params
                self.states[message.state.id, message.state.version] = message
                if onward is not None:
                    await onward.write(message)
            if onward is not None:
                await onward.done_writing()
                await back
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            if onward is not None:
                onward.cancel()

    async def _hand_back(self, onward: Any | None, call: Any) -> None:
        while onward is not None and (event := await onward.read()):
            await call.write(event)

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Served on `port` while entered."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_Watching_APIServicer_to_server(self, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


async def events_of(funding: Any, session: str, channel: str) -> AsyncIterator[fund.SubscribeResp]:
    """Everything Subscribe tells until the node ends the stream."""
    call = funding.Subscribe(fund.SubscribeReq(sessionID=session, chID=bytes.fromhex(channel)))
    while event := await call.read():
        yield event

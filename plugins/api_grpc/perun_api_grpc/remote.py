"""The other end of Funding_API and Watching_API: what a session uses when another node funds or watches for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import Message

from perun_core.channel import Params, State, Transaction
from perun_core.errors import ConfigError, NotReachable
from perun_core.ports.fundwatch import FunderContext, WatchContext
from perun_core.values import ChannelID

from .config import GrpcConfig
from .errors import error_of
from .pb import funding_service_pb2 as fund_pb
from .pb import watching_service_pb2 as watch_pb
from .pb.funding_service_pb2_grpc import Funding_APIStub
from .pb.watching_service_pb2_grpc import Watching_APIStub
from .sdk import balances_to, params_to, request_to, sigs_to, state_to

logger: Final = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0
"""Seconds between two attempts to reach a watcher, from the first to the last."""


def target_of(url: str, name: str) -> str:
    """The address to dial; ``:port`` means this host, as for the original clients. Raises: ConfigError."""
    host, colon, port = url.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError(name, url, "must be host:port")
    return f"{host or '127.0.0.1'}:{port}"


def connect(target: str, config: GrpcConfig) -> grpc.aio.Channel:
    """A connection that is made when it is first used, of its own, and kept alive while calls run."""
    options = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", round(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    return grpc.aio.insecure_channel(target, options=options)


@asynccontextmanager
async def open_funder(config: GrpcConfig, context: FunderContext) -> AsyncIterator[GrpcFunder]:
    """A funder at the address of `context`. Raises: ConfigError."""
    async with connect(target_of(context.url, "fundingurl"), config) as channel:
        yield GrpcFunder(Funding_APIStub(channel), context)


@asynccontextmanager
async def open_watcher(config: GrpcConfig, context: WatchContext) -> AsyncIterator[GrpcWatcher]:
    """A watcher at the address of `context`. Leaving lets it watch on. Raises: ConfigError."""
    async with connect(target_of(context.url, "watcherurl"), config) as channel:
        watcher = GrpcWatcher(Watching_APIStub(channel), context)
        try:
            yield watcher
        finally:
            await watcher.close()


class GrpcFunder:
    """`ports.fundwatch.Funder` over Funding_API."""

    def __init__(self, stub: Funding_APIStub, context: FunderContext) -> None:
        self._stub: Any = stub  # the published types of gRPC describe the synchronous stubs only
        self._url = context.url
        self._key = context.api_key

    async def fund(self, params: Params, state: State, index: int) -> None:
        agreement = balances_to(state.balances)
        request = fund_pb.FundReq(
            sessionID=self._key, params=params_to(params), state=state_to(state), idx=index, agreement=agreement
        )
        await self._ask(self._stub.Fund, request)

    async def register(self, params: Params, tx: Transaction, index: int) -> None:
        adj_req = request_to(params, tx, index)
        await self._ask(self._stub.Register, fund_pb.RegisterReq(sessionID=self._key, adjReq=adj_req))

    async def withdraw(self, params: Params, tx: Transaction, index: int, *, secondary: bool) -> None:
        adj_req = request_to(params, tx, index, secondary=secondary)
        await self._ask(self._stub.Withdraw, fund_pb.WithdrawReq(sessionID=self._key, adjReq=adj_req))

    async def _ask(self, call: Callable[[Message], Awaitable[Any]], request: Message) -> None:
        """Raises: ApiError, NotReachable."""
        try:
            answer = await call(request)
        except grpc.aio.AioRpcError as error:
            raise NotReachable(f"the funding service at {self._url} failed: {error.details()}") from error
        if answer.HasField("error"):
            raise error_of(answer.error)


class GrpcWatcher:
    """`ports.fundwatch.RemoteWatcher` over Watching_API: one task and one stream for each channel."""

    def __init__(self, stub: Watching_APIStub, context: WatchContext) -> None:
        self._stub: Any = stub
        self._url = context.url
        self._key = context.api_key
        self._channels: dict[ChannelID, _Guarded] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, params: Params, tx: Transaction) -> None:
        assert tx.state is not None
        guarded = self._channels.get(tx.state.id)
        if guarded is None:
            guarded = self._channels[tx.state.id] = _Guarded(self._stub, self._key, self._url, params, tx)
            self._spawn(guarded.run())
        else:
            guarded.offer(tx)

    def release(self, channel_id: ChannelID) -> None:
        guarded = self._channels.pop(channel_id, None)
        if guarded is not None:
            guarded.release()

    def holds(self, channel_id: ChannelID, version: int) -> bool:
        guarded = self._channels.get(channel_id)
        return guarded is not None and guarded.held >= version

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Break the streams without ending them: the service watches on."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Guarded:
    """One channel at the watcher."""

    def __init__(self, stub: Any, key: str, url: str, params: Params, tx: Transaction) -> None:
        self._stub = stub
        self._key = key
        self._url = url
        self._params = params
        self._newest = tx
        self._changed = asyncio.Event()
        self._released = False
        self.held = -1
        """Newest version given to the watcher on the stream that stands; -1 without one."""

    def offer(self, tx: Transaction) -> None:
        """`tx` is newer."""
        self._newest = tx
        self._changed.set()

    def release(self) -> None:
        """No watching is needed any more."""
        self._released = True
        self._changed.set()

    async def run(self) -> None:
        """Hold a stream until the channel is released, over outages of the watcher."""
        pause = FIRST_PAUSE
        while not self._released:
            try:
                if await self._stream():
                    return
                problem = "the stream ended"
                pause = FIRST_PAUSE
            except grpc.aio.AioRpcError as error:
                problem = f"{error.code().name}: {error.details()}"
            except asyncio.InvalidStateError:
                problem = "the stream ended while a state was sent"
            except _Refused as error:
                problem = str(error)
            finally:
                self.held = -1
            if not self._released:
                channel = self._params_id()
                logger.error("channel %s: not watched at %s: %s; trying again", channel, self._url, problem)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _params_id(self) -> str:
        assert self._newest.state is not None
        return self._newest.state.id.hex()

    async def _stream(self) -> bool:
        """One stream; whether it ended because the channel was released. Raises: AioRpcError, _Refused."""
        call = self._stub.StartWatchingLedgerChannel()
        sending: asyncio.Task[None] | None = None
        try:
            self._changed.clear()
            first = self._message(self._newest)
            first.sessionID = self._key
            first.params.CopyFrom(params_to(self._params))
            await call.write(first)
            await call.initial_metadata()
            self._hold(first)
            sending = asyncio.ensure_future(self._send(call))
            while answer := await call.read():  # what ends a stream is false
                if answer.HasField("error"):
                    raise _Refused(f"{answer.error.code}: {answer.error.message}")
            return self._released
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            call.cancel()

    async def _send(self, call: Any) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._released:
                await call.done_writing()
                return
            message = self._message(self._newest)
            await call.write(message)
            self._hold(message)

    def _message(self, tx: Transaction) -> watch_pb.StartWatchingLedgerChannelReq:
        assert tx.state is not None
        return watch_pb.StartWatchingLedgerChannelReq(state=state_to(tx.state), sigs=sigs_to(tx.sigs))

    def _hold(self, message: watch_pb.StartWatchingLedgerChannelReq) -> None:
        self.held = max(self.held, message.state.version)


class _Refused(Exception):
    """The watcher answered with an error."""

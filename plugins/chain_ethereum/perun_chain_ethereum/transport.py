"""Bytes to and from a chain node: WebSocket and IPC sockets that carry requests and subscriptions, and plain HTTP.

A `SocketProvider` is a web3.py provider whose answers are futures: a request waits without polling and fails at once
when its socket is lost. Connecting, reconnecting and checking whom one talks to is the business of `connection`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientTimeout
from web3.providers import AsyncHTTPProvider
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import WebSocketException

from perun_core.errors import NotReachable

UNREACHABLE: Final = (OSError, ClientError, WebSocketException)
"""What the transports raise when the node does not answer; includes time-outs."""

MESSAGE_LIMIT: Final = 64 * 1024 * 1024
"""Longest answer accepted, bytes."""

PING_SECONDS: Final = 10
"""A WebSocket whose peer leaves a ping unanswered for as long is lost."""


class Link(Protocol):
    """One open socket that carries whole JSON messages."""

    async def send(self, message: bytes) -> None:
        """Raises: one of UNREACHABLE."""
        ...

    async def receive(self) -> bytes | str:
        """The next message. Raises: one of UNREACHABLE, also when the other side closed."""
        ...

    async def close(self) -> None:
        """Idempotent; does not raise."""
        ...


Dial = Callable[[], Awaitable[Link]]


class _WebSocketLink:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, message: bytes) -> None:
        await self._socket.send(message.decode())

    async def receive(self) -> bytes | str:
        return await self._socket.recv()

    async def close(self) -> None:
        await self._socket.close()


class _PipeLink:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: bytes) -> None:
        self._writer.write(message + b"\n")
        await self._writer.drain()

    async def receive(self) -> bytes | str:
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise ConnectionResetError(f"the chain node sent more than {MESSAGE_LIMIT} bytes") from error
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the chain node closed the socket")
        return line

    async def close(self) -> None:
        self._writer.close()


def _websocket(url: str) -> Dial:
    async def dial() -> Link:
        socket = await websocket_connect(
            url,
            open_timeout=None,
            close_timeout=1,
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
            max_size=MESSAGE_LIMIT,
            proxy=None,
        )
        return _WebSocketLink(socket)

    return dial


def _pipe(path: str) -> Dial:
    async def dial() -> Link:
        return _PipeLink(*await asyncio.open_unix_connection(path, limit=MESSAGE_LIMIT))

    return dial


def provider_for(url: str, *, timeout: float) -> SocketProvider | AsyncHTTPProvider:
    """The provider for `url`: ``ws(s)://``, ``http(s)://``, or the path of an IPC socket. Connects nowhere yet.

    Raises: NotReachable when `url` is none of these.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise NotReachable(f"invalid chain URL: {error}") from error
    if parts.scheme in ("ws", "wss") and parts.hostname:
        return SocketProvider(_websocket(url))
    if parts.scheme in ("http", "https") and parts.hostname:
        limits = {"timeout": ClientTimeout(total=timeout)}
        return AsyncHTTPProvider(url, request_kwargs=limits, exception_retry_configuration=None)
    if parts.scheme in ("", "ipc", "unix") and parts.path:
        return SocketProvider(_pipe(parts.path))
    raise NotReachable("invalid chain URL: neither ws://, wss://, http://, https:// nor the path of a socket")


def shown(url: str) -> str:
    """`url` as it may appear in messages: without user, password, path and query, which may hold access keys."""
    parts = urlsplit(url)
    if not parts.hostname:
        return parts.path
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


class SocketProvider(AsyncJSONBaseProvider):
    """A web3.py provider over one socket at a time. Requests may run concurrently.

    `on_head` is called with every header of the node's ``newHeads`` subscription, the only one ever made.
    """

    def __init__(self, dial: Dial) -> None:
        super().__init__()
        self.on_head: Callable[[Mapping[str, Any]], None] | None = None
        self._dial = dial
        self._link: Link | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[object, asyncio.Future[RPCResponse]] = {}

    @property
    def connected(self) -> bool:
        """Whether the socket is open as far as we know."""
        return self._link is not None

    async def connect(self) -> None:
        """Open a fresh socket in place of whatever there was. Raises: one of UNREACHABLE."""
        await self.disconnect()
        link = await self._dial()
        self._link = link
        self._reading = asyncio.create_task(self._read(link), name="chain node reader")

    async def disconnect(self) -> None:
        """Close the socket; requests under way fail. Idempotent."""
        link, reader = self._link, self._reading
        self._lose(ConnectionResetError("the connection to the chain node was closed"))
        self._reading = None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if link is not None:
            await link.close()

    @property
    def reader(self) -> asyncio.Task[None]:
        """The task that ends when the present socket is lost. Raises: one of UNREACHABLE when there is none."""
        if self._link is None or self._reading is None:
            raise ConnectionResetError("not connected to the chain node")
        return self._reading

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Send one request and wait for its answer, however long. Raises: one of UNREACHABLE."""
        link = self._link
        if link is None:
            raise ConnectionResetError("not connected to the chain node")
        request = self.form_request(method, params)
        answer: asyncio.Future[RPCResponse] = asyncio.get_running_loop().create_future()
        self._answers[request["id"]] = answer
        try:
            await link.send(self.encode_rpc_dict(request))
            return await answer
        finally:
            del self._answers[request["id"]]
            # An answer that nobody awaits any more must not be reported as an unretrieved error.
            answer.cancel()

    async def _read(self, link: Link) -> None:
        try:
            while True:
                self._dispatch(json.loads(await link.receive()))
        except (*UNREACHABLE, ValueError) as error:
            if self._link is link:
                self._lose(error)
            await link.close()

    def _dispatch(self, message: object) -> None:
        if not isinstance(message, dict):
            raise ValueError("the chain node sent something that is not a JSON-RPC message")
        if message.get("method") == "eth_subscription":
            header = message.get("params", {}).get("result")
            if self.on_head is not None and isinstance(header, dict):
                self.on_head(header)
            return
        answer = self._answers.get(message.get("id"))
        if answer is not None and not answer.done():
            answer.set_result(message)  # type: ignore[arg-type]

    def _lose(self, cause: Exception) -> None:
        self._link = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError(f"the connection to the chain node was lost: {cause}"))

"""Bytes to and from a chain node: WebSocket and IPC sockets that carry requests and subscriptions, and plain HTTP.

A `SocketProvider` is a web3.py provider whose answers are futures: a request waits without polling and fails at once
when its socket is lost; connecting it again is the business of `connection`. An `HttpProvider` keeps a pool of
connections, each of which is asked for its chain before it is asked for anything else.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, TraceConfig
from web3.exceptions import Web3RPCError
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


HTTP_CONNECTIONS: Final = 16
"""Questions asked at the same time over HTTP, each on a connection of its own."""

GREETED_SECONDS: Final = 60.0
"""Longest time over HTTP without asking which chain it is: behind one address and connection may be several nodes."""

GREETINGS: Final = 3
"""How often a question greets a new connection that somebody else then takes, before it makes one for itself."""

REFUSALS: Final = 5
REFUSAL_PAUSE: Final = 0.05
"""How often a refused greeting is repeated, and seconds before the first time, doubled for each further one."""

OVERLOADED: Final = (429, 503)
"""HTTP statuses of a node that answers the same question if asked again later."""


class Overloaded(Exception):
    """The node refuses to answer for now; `pause` is how many seconds it wants to be left alone, 0 if it does not say.

    Nothing of the request was carried out.
    """

    def __init__(self, status: int, pause: float) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.pause = pause


class _Unchecked(Exception):
    """A question needs a connection that was not asked for its chain yet."""


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


def provider_for(url: str, *, timeout: float) -> SocketProvider | HttpProvider:
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
        return HttpProvider(url, timeout=timeout)
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


class HttpProvider(AsyncJSONBaseProvider):
    """A web3.py provider over a pool of HTTP connections. Requests may run concurrently.

    No request goes out on a connection whose chain was not checked: `on_chain` is called with the chain ID that a new
    connection answers with, and refuses it by raising, which ends all connections and fails what waited for it.
    """

    def __init__(self, url: str, *, timeout: float) -> None:
        """`timeout` is in seconds, for one request."""
        super().__init__()
        self.on_chain: Callable[[int], None] = _any_chain
        self._url = url
        self._timeout = ClientTimeout(total=timeout)
        self._session: ClientSession | None = None
        self._slots = asyncio.Semaphore(HTTP_CONNECTIONS)
        self._greeting = asyncio.Lock()
        self._greeted = 0.0

    async def connect(self) -> None:
        """Ask the node which chain it is.

        Raises: one of UNREACHABLE, Overloaded, Web3RPCError, what `on_chain` raises.
        """
        await self._greet()

    async def disconnect(self) -> None:
        """Close all connections; requests under way fail. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Ask on a checked connection. Raises: see `connect`."""
        body = self.encode_rpc_dict(self.form_request(method, params))
        # The number of questions is bounded here and not by the pool, where a greeting would have to wait for
        # questions that wait for it.
        async with self._slots:
            if asyncio.get_running_loop().time() - self._greeted > GREETED_SECONDS:
                await self._greet()
            for _ in range(GREETINGS):
                try:
                    return (await self._post(body, greets=False))[0]
                except _Unchecked:
                    if not await self._greet():
                        break
            # A node that ends each connection after its answer: it is asked before and after.
            answer, _ = await self._post(body, greets=True)
            await self._greet()
            return answer

    async def _greet(self) -> bool:
        """Check the chain on a connection, a new one if none is free; whether it can be used again."""
        async with self._greeting:
            try:
                answer, stays = await self._chain_id()
                self.on_chain(int(str(answer.get("result")), 16))
            except BaseException:
                # What was not checked must not be found in the pool.
                await self.disconnect()
                raise
            self._greeted = asyncio.get_running_loop().time()
        return stays

    async def _chain_id(self) -> tuple[RPCResponse, bool]:
        """See `_post`. Asked again where it is refused, because only a node with too many questions does that.

        Raises: Web3RPCError, Overloaded when it goes on refusing.
        """
        body = self.encode_rpc_dict(self.form_request(RPCEndpoint("eth_chainId"), []))
        attempt = 0
        while True:
            try:
                answer, stays = await self._post(body, greets=True)
                if "error" not in answer:
                    return answer, stays
                raise Web3RPCError(str(answer["error"]), rpc_response=answer)
            except (Overloaded, Web3RPCError):
                if attempt == REFUSALS:
                    raise
            await asyncio.sleep(REFUSAL_PAUSE * 2**attempt * random.uniform(0.5, 1.0))
            attempt += 1

    async def _post(self, body: bytes, *, greets: bool) -> tuple[RPCResponse, bool]:
        """The answer, and whether its connection stays open. Raises: _Unchecked unless it `greets`."""
        if self._session is None:
            self._session = ClientSession(
                connector=TCPConnector(limit=0),
                timeout=self._timeout,
                headers={"Content-Type": "application/json"},
                trace_configs=[self._tracing()],
            )
        async with self._session.post(self._url, data=body, trace_request_ctx=greets) as response:
            if response.status in OVERLOADED:
                raise Overloaded(response.status, _seconds(response.headers.get("Retry-After", "")))
            response.raise_for_status()
            stays = response.headers.get("Connection", "").lower() != "close"
            return self.decode_rpc_response(await response.read()), stays

    def _tracing(self) -> TraceConfig:
        tracing = TraceConfig()

        async def new_connection(_: object, context: SimpleNamespace, __: object) -> None:
            if not context.trace_request_ctx:
                raise _Unchecked

        async def connection_again(_: object, context: SimpleNamespace, __: object) -> None:
            # It may be the one that is being greeted: its answer is read before it is judged.
            if not context.trace_request_ctx:
                async with self._greeting:
                    pass

        tracing.on_connection_create_start.append(new_connection)
        tracing.on_connection_reuseconn.append(connection_again)
        return tracing


def _any_chain(_: int) -> None:
    """Accepts every chain."""


def _seconds(text: str) -> float:
    """The number of seconds that a Retry-After header names; 0 when it does not."""
    return float(text) if text.isascii() and text.isdigit() else 0.0

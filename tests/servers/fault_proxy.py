"""A chain node that misbehaves on demand: an HTTP and WebSocket proxy before a real one, under a test's control.

It runs in a thread of its own, so that tests may block or start node processes behind it. Every method may be called
from any thread. Faults are rules that are looked at for every request in the order in which they were added; the first
that applies is used up by one. What has no fault goes through unchanged.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

import aiohttp
from aiohttp import WSMsgType, web

Message = dict[str, Any]
Matches = Callable[[Message], bool]

RATE_LIMITED: Final = (-32005, "rate limit exceeded")
INTERNAL: Final = (-32603, "internal error")
MESSAGE_LIMIT: Final = 64 * 1024 * 1024


@dataclass
class Fault:
    """What happens instead of an answer, or to it."""

    method: str = ""
    """The JSON-RPC method; "" for every one."""
    matches: Matches = lambda request: True
    times: int | None = None
    """How often; None for as long as the rule is there."""
    delay: float = 0.0
    """Seconds before the request goes on."""
    error: tuple[int, str] | None = None
    """Answered with this code and text; the chain never hears of the request."""
    status: int | None = None
    """Over HTTP answered with this status and no JSON; over WebSocket with `error`."""
    silent: bool = False
    """Neither asked nor answered."""
    lose_answer: bool = False
    """The chain does what it is asked, but the connection is cut instead of the answer."""
    half_answer: bool = False
    """The connection is closed in the middle of the answer."""
    twice: bool = False
    """The answer comes twice (WebSocket)."""
    gate: threading.Event | None = None
    """The request waits for it."""
    used: int = 0

    def applies(self, request: Message) -> bool:
        """Whether `request` is to be treated so."""
        named = not self.method or request.get("method") == self.method
        return named and (self.times is None or self.used < self.times) and self.matches(request)


@dataclass
class Seen:
    """A request that arrived."""

    method: str
    params: list[Any]


@dataclass
class FaultProxy:
    """Between a node and the chain at `target` (http://host:port, which also speaks WebSocket)."""

    target: str
    port: int = 0
    target_ws: str = ""
    """Where the chain speaks WebSocket, when that is another port."""
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    half_open: bool = False
    """Connections are accepted and bytes are read, but nothing is ever sent, not even answers to pings."""
    repeat_heads: int = 1
    """How often every notification is delivered; 0 withholds them."""
    stuck_at: int | None = None
    """The node is busy synchronizing: it says so, and knows no block after this one."""
    one_answer: bool = False
    """Every HTTP connection is closed after its answer, which says so."""
    connections: int = 0
    """Connections accepted so far."""

    def __post_init__(self) -> None:
        self._transports: set[asyncio.Transport] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault proxy")

    # ---- control ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        assert self.port, "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.gate is not None:
                fault.gate.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def ws(self) -> str:
        """Where nodes connect with WebSocket."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http(self) -> str:
        """Where nodes ask over HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, **terms: Any) -> Fault:
        """Add a rule with the fields of `Fault`."""
        fault = Fault(**terms)
        self.faults.append(fault)
        return fault

    @contextmanager
    def failing(self, **terms: Any) -> Iterator[Fault]:
        """A rule that holds within the block."""
        fault = self.add(**terms)
        try:
            yield fault
        finally:
            self.faults.remove(fault)
            if fault.gate is not None:
                fault.gate.set()

    def count(self, method: str) -> int:
        """How often `method` was asked."""
        return sum(each.method == method for each in self.seen)

    def drop(self) -> None:
        """Cut every connection; new ones are accepted at once."""
        self._on_loop(self._drop())

    def cut(self) -> None:
        """Cut every connection and refuse new ones."""
        self._on_loop(self._cut())

    def mend(self) -> None:
        """Accept connections again, at the same port."""
        self._on_loop(self._listen())

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The chain cannot be reached within the block."""
        self.cut()
        try:
            yield
        finally:
            self.mend()

    def retarget(self, target: str, target_ws: str = "") -> None:
        """Lead to another chain node from the next connection on."""
        self.target, self.target_ws = target, target_ws

    def _on_loop(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    # ---- serving ----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._site: web.TCPSite | None = None
        app = web.Application(client_max_size=MESSAGE_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._accept)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        async with aiohttp.ClientSession() as self._client:
            await self._listen()
            self._ready.set()
            await self._stop.wait()
            await self._cut()
            await self._runner.cleanup()

    async def _listen(self) -> None:
        if self._site is None:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
            await self._site.start()
            self.port = self._runner.addresses[-1][1]

    async def _cut(self) -> None:
        if self._site is not None:
            site, self._site = self._site, None
            stopping = asyncio.ensure_future(site.stop())
            await self._drop()
            await stopping
        else:
            await self._drop()

    async def _drop(self) -> None:
        for transport in tuple(self._transports):
            transport.abort()
        self._transports.clear()

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self._transports.add(transport)
        self.connections += 1
        try:
            if self.half_open:
                await asyncio.Event().wait()
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._websocket(request, transport)
            answer = await self._http(request, transport)
            if self.one_answer:
                answer.force_close()
            return answer
        finally:
            if transport.is_closing():
                self._transports.discard(transport)

    # ---- HTTP -------------------------------------------------------------------------------------------------------

    async def _http(self, request: web.Request, transport: asyncio.Transport) -> web.StreamResponse:
        question = json.loads(await request.read())
        fault = await self._fault(question)
        if fault.silent:
            await asyncio.Event().wait()
        if fault.status is not None:
            return web.Response(status=fault.status, text="try again later")
        if fault.error is not None:
            return web.json_response(_refusal(question, fault.error))
        async with self._client.post(self.target, json=self._asked(question)) as response:
            answer = self._answered(question, await response.json(content_type=None))
        while self.half_open:  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.05)
        if fault.lose_answer:
            transport.abort()
        elif fault.half_answer:
            body = json.dumps(answer).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            transport.write(head.encode() + body[: len(body) // 2])
            transport.close()
        return web.json_response(answer)

    # ---- WebSocket --------------------------------------------------------------------------------------------------

    async def _websocket(self, request: web.Request, transport: asyncio.Transport) -> web.StreamResponse:
        node = web.WebSocketResponse(autoping=False, max_msg_size=MESSAGE_LIMIT)
        await node.prepare(request)
        url = self.target_ws or self.target.replace("http", "ws", 1)
        asked: dict[object, tuple[Message, Fault]] = {}
        # Whatever the chain's side does, the node's side notices only by what does not come.
        try:
            async with self._client.ws_connect(url, max_msg_size=MESSAGE_LIMIT) as chain:
                pipes = [
                    asyncio.ensure_future(self._questions(node, chain, asked)),
                    asyncio.ensure_future(self._answers(node, chain, asked, transport)),
                ]
                try:
                    await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pipe in pipes:
                        pipe.cancel()
                    await asyncio.gather(*pipes, return_exceptions=True)
        except (aiohttp.ClientError, OSError):
            pass
        transport.abort()
        return node

    async def _questions(self, node: web.WebSocketResponse, chain: Any, asked: dict[object, Any]) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for message in node:
                if message.type is WSMsgType.PING:
                    if not self.half_open:
                        await node.pong(message.data)
                elif message.type is WSMsgType.TEXT:
                    # Each question by itself: one that is delayed does not hold up those after it.
                    task = asyncio.ensure_future(self._question(json.loads(message.data), node, chain, asked))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _question(self, question: Message, node: Any, chain: Any, asked: dict[object, Any]) -> None:
        fault = await self._fault(question)
        if fault.silent or self.half_open:
            return
        if fault.error is not None:
            await node.send_json(_refusal(question, fault.error))
            return
        asked[question["id"]] = (question, fault)
        await chain.send_json(self._asked(question))

    async def _answers(
        self, node: Any, chain: Any, asked: dict[object, tuple[Message, Fault]], transport: asyncio.Transport
    ) -> None:
        async for message in chain:
            if message.type is not WSMsgType.TEXT:
                continue
            answer: Message = json.loads(message.data)
            if answer.get("method") == "eth_subscription":
                repeats = self.repeat_heads if self._may_tell(answer) else 0
            else:
                question, fault = asked.pop(answer.get("id"), ({}, Fault()))
                answer = self._answered(question, answer)
                repeats = 2 if fault.twice else 1
                if fault.lose_answer:
                    return
                if fault.half_answer:
                    body = json.dumps(answer).encode()
                    transport.write(_frame_start(len(body)) + body[: len(body) // 2])
                    transport.close()
                    return
            while self.half_open:  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.05)
            for _ in range(repeats):
                await node.send_json(answer)

    # ---- faults -----------------------------------------------------------------------------------------------------

    async def _fault(self, question: Message) -> Fault:
        self.seen.append(Seen(question["method"], list(question.get("params") or ())))
        fault = next((each for each in self.faults if each.applies(question)), None)
        if fault is None:
            return Fault()
        fault.used += 1
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.gate is not None:
            while not fault.gate.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.02)
        return fault

    def _asked(self, question: Message) -> Message:
        """The question as a node answers it that is stuck at an old block."""
        if self.stuck_at is None:
            return question
        block = hex(self.stuck_at)
        params: list[Any] = [block if each in ("latest", "pending") else each for each in question.get("params") or ()]
        if question["method"] == "eth_getLogs" and "toBlock" in params[0]:
            last = min(int(params[0].get("toBlock", block), 16), self.stuck_at)
            params = [{**params[0], "toBlock": hex(last)}]
        return {**question, "params": params}

    def _answered(self, question: Message, answer: Message) -> Message:
        if self.stuck_at is None:
            return answer
        if question.get("method") == "eth_syncing":
            progress = {"startingBlock": "0x0", "currentBlock": hex(self.stuck_at), "highestBlock": hex(2**32)}
            return {**answer, "result": progress}
        result = answer.get("result")
        if question.get("method") == "eth_getTransactionReceipt" and isinstance(result, dict):
            return {**answer, "result": None} if int(result["blockNumber"], 16) > self.stuck_at else answer
        return answer

    def _may_tell(self, notification: Message) -> bool:
        header = notification.get("params", {}).get("result", {})
        number = header.get("number") if isinstance(header, dict) else None
        return self.stuck_at is None or number is None or int(number, 16) <= self.stuck_at


def _refusal(question: Message, error: tuple[int, str]) -> Message:
    return {"jsonrpc": "2.0", "id": question["id"], "error": {"code": error[0], "message": error[1]}}


def _frame_start(length: int) -> bytes:
    """Header of an unmasked text frame with `length` bytes (RFC 6455, 5.2)."""
    if length < 126:
        return bytes((0x81, length))
    return bytes((0x81, 126)) + struct.pack("!H", length) if length < 65536 else b"\x81\x7f" + struct.pack("!Q", length)


def log_ranges_up_to(blocks: int) -> dict[str, Any]:
    """Terms of a fault: the node refuses log queries over more than `blocks` blocks."""

    def too_long(request: Message) -> bool:
        query = request["params"][0]
        return "toBlock" in query and int(query["toBlock"], 16) - int(query["fromBlock"], 16) + 1 > blocks

    return {"method": "eth_getLogs", "matches": too_long, "error": (-32005, f"block range is limited to {blocks}")}


def every(number: int) -> Matches:
    """Matches one request of so many."""
    requests = itertools.count(1)
    return lambda request: next(requests) % number == 0


def raw_calls(selector: bytes) -> Matches:
    """Matches requests that broadcast a transaction calling `selector`."""
    from eth_account.typed_transactions.typed_transaction import TypedTransaction
    from hexbytes import HexBytes

    def matches(request: Message) -> bool:
        if request["method"] != "eth_sendRawTransaction":
            return False
        with suppress(ValueError, KeyError):
            content = TypedTransaction.from_bytes(HexBytes(request["params"][0])).as_dict()
            return bytes(content["data"])[:4] == selector
        return False

    return matches

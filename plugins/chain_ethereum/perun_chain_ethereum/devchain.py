"""A chain for development and demos: an `EmbeddedChain` as JSON-RPC over HTTP and WebSocket on one loopback port.

It behaves like a chain node as far as a client can tell: blocks, nonces, EIP-1559 fees, reverts with reasons, filters
of logs, subscriptions to new heads and logs. Time follows the wall clock: a block per tick even without transactions,
and a block at once for every transaction as long as block time has not run further ahead of the clock than `MAX_AHEAD`
seconds (each block is at least a second later than the last); beyond that, transactions share the block of the first
tick at which block time is not ahead any more.

All state is in memory and gone when the process ends. There is no protection against its users: loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from .testkeys import TEST_ACCOUNTS, TEST_CHAIN_ID

if TYPE_CHECKING:
    from aiohttp import web

    from .embedded import BlockId, Call, EmbeddedChain

Json: TypeAlias = dict[str, Any]

MAX_AHEAD: Final = 5
"""Seconds that block time may be ahead of the clock because of blocks mined at once."""

MAX_REQUEST: Final = 5 * 1024 * 1024
"""Bytes of one HTTP request or WebSocket message; what large trees of channels need is far below."""

MAX_QUEUED: Final = 10_000
"""Transactions waiting for a block or for an earlier nonce."""

BALANCE: Final = 10_000 * 10**18
"""Wei that every test account owns at the start."""

CLIENT_VERSION: Final = "perun-devchain/0.1.0"


class RpcError(Exception):
    """An answer that is an error; `code` by JSON-RPC and by custom of chain nodes (3: execution reverted)."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data

    def to_json(self) -> Json:
        content: Json = {"code": self.code, "message": str(self)}
        if self.data is not None:
            content["data"] = self.data
        return content


PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
SERVER_ERROR: Final = -32000
REVERTED: Final = 3


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What `eth_getLogs` and subscriptions select: addresses (any if empty) and topics by position (None: any)."""

    addresses: frozenset[str]
    topics: tuple[frozenset[str] | None, ...]

    def accepts(self, log: Mapping[str, Any]) -> bool:
        if self.addresses and log["address"].lower() not in self.addresses:
            return False
        found = log["topics"]
        if len(self.topics) > len(found):
            return False
        return all(want is None or have in want for want, have in zip(self.topics, found, strict=False))


@dataclass(eq=False, slots=True)
class Subscriber:
    """One WebSocket connection: its subscriptions and what waits to be sent to it."""

    outbox: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    heads: set[str] = field(default_factory=set)
    logs: dict[str, LogFilter] = field(default_factory=dict)


class DevChain:
    """The chain and its pool of transactions; answers JSON-RPC calls.

    Args:
        chain: the chain to serve.
        clock: the wall clock in seconds.
    """

    def __init__(self, chain: EmbeddedChain, *, clock: Callable[[], float] = time.time) -> None:
        self._chain = chain
        self._clock = clock
        self._skipped = 0
        self._queue: dict[tuple[bytes, int], Any] = {}
        self._subscribers: set[Subscriber] = set()
        self._next_subscription = 1
        self._methods: dict[str, Callable[..., Any]] = {
            "web3_clientVersion": lambda: CLIENT_VERSION,
            "net_version": lambda: str(chain.chain_id),
            "net_listening": lambda: True,
            "eth_chainId": lambda: hex(chain.chain_id),
            "eth_syncing": lambda: False,
            "eth_accounts": lambda: [],
            "eth_blockNumber": lambda: hex(chain.number),
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getBalance": lambda who, at="latest": hex(chain.balance(address_of(who), self._at(at))),
            "eth_getCode": lambda who, at="latest": hex_data(chain.code(address_of(who), self._at(at))),
            "eth_getStorageAt": self._storage,
            "eth_getTransactionCount": self._transaction_count,
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionReceipt": lambda tx_hash: chain.receipt(data_of(tx_hash, 32)),
            "eth_getLogs": self._get_logs,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_gasPrice": lambda: hex(chain.base_fee + self._tip()),
            "eth_maxPriorityFeePerGas": lambda: hex(self._tip()),
            "eth_feeHistory": self._fee_history,
            "eth_sendRawTransaction": self._send_raw,
            "evm_mine": self._mine_now,
            "evm_increaseTime": self._increase_time,
        }

    # -- time and blocks ----------------------------------------------------------------------------------------------

    def now(self) -> int:
        """The time that block time follows: the wall clock plus what `evm_increaseTime` skipped, in seconds."""
        return int(self._clock()) + self._skipped

    def tick(self) -> None:
        """Mine a block with everything that waits, unless block time is ahead of the clock."""
        if self._chain.timestamp < self.now():
            self._mine(self.now())

    def _mine(self, timestamp: int) -> None:
        """Mine one block and tell the subscribers."""
        ordered = sorted(self._queue.values(), key=lambda transaction: transaction.nonce)
        self._chain.mine(ordered, timestamp=timestamp)
        self._queue = {
            key: waiting for key, waiting in self._queue.items() if waiting.nonce >= self._chain.nonce(waiting.sender)
        }
        self._publish()

    def _mine_if_due(self) -> None:
        """Mine what can be mined now, if that does not move block time too far ahead."""
        while self._chain.timestamp < self.now() + MAX_AHEAD and self._ready():
            before = len(self._queue)
            self._mine(max(self._chain.timestamp + 1, self.now()))
            if len(self._queue) == before:
                return

    def _ready(self) -> bool:
        """Whether a waiting transaction has the next nonce of its sender."""
        return any(nonce == self._chain.nonce(sender) for sender, nonce in self._queue)

    # -- transactions -------------------------------------------------------------------------------------------------

    def _send_raw(self, raw: str) -> str:
        from .embedded import InvalidTransaction

        try:
            transaction = self._chain.decode(data_of(raw))
            self._check(transaction)
        except InvalidTransaction as error:
            raise RpcError(SERVER_ERROR, str(error)) from error
        self._queue[transaction.sender, transaction.nonce] = transaction
        self._mine_if_due()
        return hex_data(transaction.hash)

    def _check(self, transaction: Any) -> None:
        """Admit a transaction to the pool or say why not, as chain nodes do."""
        from .embedded import GAS_LIMIT, InvalidTransaction

        if self._chain.transaction(transaction.hash) is not None or any(
            waiting.hash == transaction.hash for waiting in self._queue.values()
        ):
            raise InvalidTransaction("already known")
        nonce = self._chain.nonce(transaction.sender)
        funds = self._chain.balance(transaction.sender)
        cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
        if transaction.nonce < nonce:
            raise InvalidTransaction(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        if funds < cost:
            raise InvalidTransaction(f"insufficient funds for gas * price + value: have {funds} want {cost}")
        if transaction.gas < transaction.intrinsic_gas:
            raise InvalidTransaction(f"intrinsic gas too low: have {transaction.gas}, want {transaction.intrinsic_gas}")
        if transaction.gas > GAS_LIMIT:
            raise InvalidTransaction("exceeds block gas limit")
        replaced = self._queue.get((transaction.sender, transaction.nonce))
        if replaced is None:
            if len(self._queue) >= MAX_QUEUED:
                raise InvalidTransaction("txpool is full")
        elif any(
            10 * new < 11 * old
            for new, old in (
                (transaction.max_fee_per_gas, replaced.max_fee_per_gas),
                (transaction.max_priority_fee_per_gas, replaced.max_priority_fee_per_gas),
            )
        ):
            raise InvalidTransaction("replacement transaction underpriced")

    def _transaction_count(self, who: str, at: Any = "latest") -> str:
        address = address_of(who)
        if at != "pending":
            return hex(self._chain.nonce(address, self._at(at)))
        nonce = self._chain.nonce(address)
        while (address, nonce) in self._queue:
            nonce += 1
        return hex(nonce)

    def _transaction(self, tx_hash: str) -> Json | None:
        from .embedded import transaction_json

        wanted = data_of(tx_hash, 32)
        for waiting in self._queue.values():
            if waiting.hash == wanted:
                return transaction_json(waiting)
        return self._chain.transaction(wanted)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _block_by_number(self, at: Any, full: bool = False) -> Json | None:
        from .embedded import UnknownBlock

        try:
            return self._chain.block(self._at(at), full=full)
        except UnknownBlock:
            return None

    def _block_by_hash(self, block_hash: str, full: bool = False) -> Json | None:
        from .embedded import UnknownBlock

        try:
            return self._chain.block(self._chain.number_of(data_of(block_hash, 32)), full=full)
        except UnknownBlock:
            return None

    def _storage(self, who: str, slot: str, at: Any = "latest") -> str:
        return f"0x{self._chain.storage(address_of(who), quantity_of(slot), self._at(at)):064x}"

    def _get_logs(self, query: Any) -> list[Json]:
        if not isinstance(query, dict):
            raise RpcError(INVALID_PARAMS, "expected a filter object")
        selected = log_filter(query)
        if "blockHash" in query:
            first = last = self._chain.number_of(data_of(query["blockHash"], 32))
        else:
            first = self._number(query.get("fromBlock", "latest"))
            last = min(self._number(query.get("toBlock", "latest")), self._chain.number)
        return [log for number in range(first, last + 1) for log in self._chain.logs(number) if selected.accepts(log)]

    def _call(self, request: Any, at: Any = "latest", *overrides: Any) -> str:
        if any(overrides):
            raise RpcError(INVALID_PARAMS, "state overrides are not supported")
        return hex_data(self._chain.call(call_of(request), self._at(at)).output)

    def _estimate(self, request: Any, at: Any = "latest") -> str:
        return hex(self._chain.estimate(call_of(request), self._at(at)))

    def _tip(self) -> int:
        from .embedded import TIP

        return TIP

    def _fee_history(self, count: Any, newest: Any, percentiles: Any = None) -> Json:
        wanted = count if isinstance(count, int) else quantity_of(count)
        last = self._number(newest)
        first = max(0, last - min(wanted, 1024) + 1)
        blocks = [self._chain.block(number) for number in range(first, last + 1)]
        following = self._chain.base_fee
        if last < self._chain.number:
            following = int(self._chain.block(last + 1)["baseFeePerGas"], 16)
        history: Json = {
            "oldestBlock": hex(first),
            "baseFeePerGas": [block["baseFeePerGas"] for block in blocks] + [hex(following)],
            "gasUsedRatio": [int(block["gasUsed"], 16) / int(block["gasLimit"], 16) for block in blocks],
        }
        if percentiles:
            history["reward"] = [[hex(self._tip())] * len(percentiles) for _ in blocks]
        return history

    # -- controls for tests -------------------------------------------------------------------------------------------

    def _mine_now(self, *_: Any) -> str:
        self._mine(max(self._chain.timestamp + 1, self.now()))
        return "0x0"

    def _increase_time(self, seconds: Any) -> str:
        """Skip time: blocks from the next one on are that much later."""
        self._skipped += seconds if isinstance(seconds, int) else quantity_of(seconds)
        return hex(self._skipped)

    # -- parameters ---------------------------------------------------------------------------------------------------

    def _at(self, at: Any) -> BlockId:
        if isinstance(at, dict):
            return (
                self._chain.number_of(data_of(at["blockHash"], 32))
                if "blockHash" in at
                else self._at(at.get("blockNumber"))
            )
        if at in ("latest", "safe", "finalized", None):
            return "latest"
        if at in ("pending", "earliest"):
            known: BlockId = at
            return known
        return quantity_of(at)

    def _number(self, at: Any) -> int:
        block = self._at(at)
        if block == "earliest":
            return 0
        return self._chain.number if isinstance(block, str) else block

    # -- answering ----------------------------------------------------------------------------------------------------

    def answer(self, message: str | bytes, subscriber: Subscriber | None = None) -> str | None:
        """The answer to one JSON-RPC message, a single request or a batch; None if nothing is to be answered.

        Args: subscriber: the connection it came from if that can carry subscriptions.
        """
        try:
            content = json.loads(message)
        except ValueError:
            return json.dumps(_failed(None, RpcError(PARSE_ERROR, "parse error")))
        if not isinstance(content, list):
            single = self._respond(content, subscriber)
            return None if single is None else json.dumps(single)
        if not content:
            return json.dumps(_failed(None, RpcError(INVALID_REQUEST, "empty batch")))
        answers = [a for a in (self._respond(request, subscriber) for request in content) if a is not None]
        return json.dumps(answers) if answers else None

    def _respond(self, request: Any, subscriber: Subscriber | None) -> Json | None:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _failed(None, RpcError(INVALID_REQUEST, "invalid request"))
        reply_to = request.get("id")
        try:
            result = self._perform(request["method"], request.get("params", []), subscriber)
        except RpcError as error:
            answer = _failed(reply_to, error)
        else:
            answer = {"jsonrpc": "2.0", "id": reply_to, "result": result}
        return answer if "id" in request else None

    def _perform(self, method: str, params: Any, subscriber: Subscriber | None) -> Any:
        from .embedded import CallFailed, InvalidTransaction, UnknownBlock

        if not isinstance(params, list):
            raise RpcError(INVALID_PARAMS, "parameters must be a list")
        try:
            if method == "eth_subscribe":
                return self._subscribe(subscriber, *params)
            if method == "eth_unsubscribe":
                return self._unsubscribe(subscriber, *params)
            if method not in self._methods:
                raise RpcError(METHOD_NOT_FOUND, f"the method {method} does not exist/is not available")
            return self._methods[method](*params)
        except CallFailed as error:
            if error.data is None:
                raise RpcError(SERVER_ERROR, str(error)) from error
            raise RpcError(REVERTED, str(error), hex_data(error.data)) from error
        except (InvalidTransaction, UnknownBlock) as error:
            raise RpcError(SERVER_ERROR, str(error)) from error
        except (TypeError, ValueError, KeyError) as error:
            raise RpcError(INVALID_PARAMS, f"invalid parameters: {error}") from error

    # -- subscriptions ------------------------------------------------------------------------------------------------

    def add(self, subscriber: Subscriber) -> None:
        """Start notifying a connection of what it subscribes to."""
        self._subscribers.add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a connection and its subscriptions."""
        self._subscribers.discard(subscriber)

    def _subscribe(self, subscriber: Subscriber | None, kind: str, query: Any = None) -> str:
        if subscriber is None:
            raise RpcError(METHOD_NOT_FOUND, "notifications not supported")
        subscription = hex(self._next_subscription)
        if kind == "newHeads":
            subscriber.heads.add(subscription)
        elif kind == "logs":
            subscriber.logs[subscription] = log_filter(query or {})
        else:
            raise RpcError(INVALID_PARAMS, f"no {kind!r} subscription")
        self._next_subscription += 1
        return subscription

    def _unsubscribe(self, subscriber: Subscriber | None, subscription: str) -> bool:
        if subscriber is None:
            raise RpcError(METHOD_NOT_FOUND, "notifications not supported")
        known = subscription in subscriber.heads or subscription in subscriber.logs
        subscriber.heads.discard(subscription)
        subscriber.logs.pop(subscription, None)
        return known

    def _publish(self) -> None:
        """Notify all connections of the newest block, head first."""
        if not any(subscriber.heads or subscriber.logs for subscriber in self._subscribers):
            return
        number = self._chain.number
        head = self._chain.block(number)
        for unwanted in ("transactions", "uncles", "size", "totalDifficulty"):
            del head[unwanted]
        logs = self._chain.logs(number)
        for subscriber in self._subscribers:
            for subscription in subscriber.heads:
                subscriber.outbox.put_nowait(_notification(subscription, head))
            for subscription, selected in subscriber.logs.items():
                for log in logs:
                    if selected.accepts(log):
                        subscriber.outbox.put_nowait(_notification(subscription, log))


def _failed(reply_to: Any, error: RpcError) -> Json:
    return {"jsonrpc": "2.0", "id": reply_to, "error": error.to_json()}


def _notification(subscription: str, result: Mapping[str, Any]) -> str:
    params = {"subscription": subscription, "result": result}
    return json.dumps({"jsonrpc": "2.0", "method": "eth_subscription", "params": params})


# -- values of JSON-RPC -----------------------------------------------------------------------------------------------


def hex_data(data: bytes) -> str:
    """Bytes as JSON-RPC data."""
    return "0x" + data.hex()


def data_of(text: Any, size: int | None = None) -> bytes:
    """JSON-RPC data as bytes, exactly `size` of them if given. Raises: RpcError."""
    if not isinstance(text, str) or not text.startswith("0x"):
        _reject("expected hex data with 0x prefix")
    try:
        data = bytes.fromhex(text[2:])
    except ValueError:
        _reject("invalid hex data")
    if size is not None and len(data) != size:
        _reject(f"expected {size} bytes, got {len(data)}")
    return data


def address_of(text: Any) -> bytes:
    """A JSON-RPC address as 20 bytes. Raises: RpcError."""
    return data_of(text, 20)


def quantity_of(text: Any) -> int:
    """A JSON-RPC quantity as a number. Raises: RpcError."""
    if not isinstance(text, str) or not text.startswith("0x"):
        _reject("expected a quantity with 0x prefix")
    try:
        return int(text[2:], 16)
    except ValueError:
        _reject("invalid quantity")


def call_of(request: Any) -> Call:
    """The call described by the parameter of eth_call and eth_estimateGas; prices are ignored. Raises: RpcError."""
    from .embedded import Call

    if not isinstance(request, dict):
        _reject("expected a call object")
    data = request.get("input", request.get("data"))
    gas = request.get("gas")
    to = request.get("to")
    return Call(
        to=None if to in (None, "", "0x") else address_of(to),
        data=b"" if data is None else data_of(data),
        sender=address_of(request["from"]) if request.get("from") else bytes(20),
        value=quantity_of(request.get("value", "0x0")),
        gas=None if gas is None else quantity_of(gas),
    )


def log_filter(query: Mapping[str, Any]) -> LogFilter:
    """The filter described by the parameter of eth_getLogs and of log subscriptions. Raises: RpcError."""
    address = query.get("address")
    addresses = [] if address is None else address if isinstance(address, list) else [address]
    topics: list[frozenset[str] | None] = []
    for topic in query.get("topics") or ():
        options = topic if isinstance(topic, list) else [topic]
        wanted = frozenset(hex_data(data_of(option, 32)) for option in options if option is not None)
        topics.append(wanted or None)
    return LogFilter(frozenset(hex_data(address_of(a)) for a in addresses), tuple(topics))


def _reject(message: str) -> NoReturn:
    raise RpcError(INVALID_PARAMS, message)


# -- serving ----------------------------------------------------------------------------------------------------------


def require_loopback(host: str) -> None:
    """Raises: ValueError unless `host` is a loopback address or localhost."""
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"the development chain listens on loopback addresses only, not on {host}")


async def serve(
    host: str,
    port: int,
    *,
    ready: Callable[[int], None],
    stop: asyncio.Event,
    block_time: float = 1.0,
    chain_id: int = TEST_CHAIN_ID,
    clock: Callable[[], float] = time.time,
) -> None:
    """Serve a fresh chain until `stop` is set.

    Args:
        host: loopback address to listen on.
        port: TCP port; 0 for any free one.
        ready: called with the port once connections are accepted.
        stop: ends the service; open connections are closed.
        block_time: seconds between ticks.
        chain_id: of the chain, see `EmbeddedChain`.
        clock: the wall clock in seconds.
    Raises: ValueError for a host that is not loopback, OSError if the port cannot be opened.
    """
    require_loopback(host)
    from aiohttp import web

    from .embedded import EmbeddedChain

    balances = {bytes.fromhex(account.address[2:]): BALANCE for account in TEST_ACCOUNTS}
    chain = DevChain(EmbeddedChain(balances, timestamp=int(clock()), chain_id=chain_id), clock=clock)
    application = web.Application(client_max_size=MAX_REQUEST)
    application.router.add_post("/", lambda request: _serve_http(chain, request))
    application.router.add_get("/", lambda request: _serve_websocket(chain, request))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        async with _ticking(chain, block_time):
            ready(int(runner.addresses[0][1]))
            await stop.wait()
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _ticking(chain: DevChain, block_time: float) -> AsyncIterator[None]:
    """Ticks while the body runs; an error of the chain reaches the body's task by ending it."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(block_time)
            chain.tick()

    async with asyncio.TaskGroup() as group:
        ticker = group.create_task(tick())
        yield
        ticker.cancel()


async def _serve_http(chain: DevChain, request: web.Request) -> web.Response:
    from aiohttp import web

    answer = chain.answer(await request.read())
    return web.Response(text=answer or "", content_type="application/json")


async def _serve_websocket(chain: DevChain, request: web.Request) -> web.StreamResponse:
    from aiohttp import WSMsgType, web

    socket = web.WebSocketResponse(max_msg_size=MAX_REQUEST, compress=False)
    await socket.prepare(request)
    subscriber = Subscriber()

    async def send() -> None:
        while True:
            await socket.send_str(await subscriber.outbox.get())

    chain.add(subscriber)
    sender = asyncio.create_task(send())
    try:
        async for message in socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            # Through the same queue as notifications: the answer to eth_subscribe precedes the first of them.
            answer = chain.answer(message.data, subscriber)
            if answer is not None:
                subscriber.outbox.put_nowait(answer)
    finally:
        chain.remove(subscriber)
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await sender
    return socket

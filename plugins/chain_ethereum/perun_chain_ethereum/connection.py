"""The connection to one chain node: connects when needed, checks the chain ID each time, asks typed questions.

Every question is bounded by the connection time-out and fails with NotReachable when the node does not answer; the next
question connects again. A question that is refused because there were too many is repeated for a while. Errors of
web3.py, aiohttp and websockets end here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar, cast

from aiohttp import ServerDisconnectedError
from eth_typing import BlockNumber, HexStr
from msgspec import Struct
from web3 import AsyncWeb3
from web3.eth import AsyncEth
from web3.exceptions import BlockNotFound, ContractLogicError, TransactionNotFound, Web3Exception, Web3RPCError
from web3.types import BlockIdentifier, FilterParams, LogReceipt, RPCEndpoint, TxParams, TxReceipt, Wei

from perun_core.errors import ChainError, NotReachable, WrongChain
from perun_core.ports.chain import BlockRef
from perun_core.values import Address, Bytes32

from . import abi
from .transport import UNREACHABLE, Overloaded, SocketProvider, provider_for, shown

T = TypeVar("T")

DEFAULT_TIP: Final = 10**9
"""Wei per gas offered to the block's maker when the node suggests nothing."""


FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
"""Seconds until a question is put again to a node that had too many: doubled from the first up to the longest."""

OVERLOAD_PATIENCE: Final = 5.0
"""Seconds for which that is done, if the time-out allows it."""

RATE_CODES: Final = frozenset({429, -32029, -32007})
LIMIT_CODE: Final = -32005
"""JSON-RPC codes for too many requests; the last is also used for answers that would be too long."""

RATE_WORDS: Final = ("rate limit", "rate-limit", "too many request", "request limit", "per second", "throttl")
LENGTH_WORDS: Final = ("range", "result", "block", "log", "size")


class CallReverted(ChainError):
    """A call or a gas estimate ended in a revert; `reason` is the contract's text, or ""."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"reverted: {reason or 'no reason given'}")
        self.reason = reason


class NodeRefused(ChainError):
    """The node answered with a JSON-RPC error."""

    def __init__(self, code: int | None, message: str) -> None:
        super().__init__(f"the chain node refused: {message}")
        self.code = code
        self.message = message


class Head(Struct, frozen=True):
    """A block with what the backend needs beside its reference; `base_fee` is wei per gas."""

    ref: BlockRef
    parent: Bytes32
    base_fee: int | None


class KnownTx(Struct, frozen=True):
    """A transaction as a node remembers it; `gas` is its limit, `value` wei."""

    to: Address | None
    data: bytes
    value: int
    gas: int


class Log(Struct, frozen=True):
    """One log of a mined transaction."""

    contract: Address
    topics: tuple[bytes, ...]
    data: bytes


class Receipt(Struct, frozen=True):
    """What became of a mined transaction; `contract` is what it created, if anything."""

    block: int
    block_hash: Bytes32
    succeeded: bool
    gas_used: int
    contract: Address | None
    logs: tuple[Log, ...]


class Connection:
    """Questions to the node at `url`. `chain_id` None accepts the chain found first, and no other afterwards."""

    def __init__(self, url: str, *, chain_id: int | None, timeout: float) -> None:
        """Raises: NotReachable when `url` is not usable. `timeout` is in seconds."""
        self._provider = provider_for(url, timeout=timeout)
        if not isinstance(self._provider, SocketProvider):
            self._provider.on_chain = self._expect
        # Calls go out as they are; answers are formatted by the methods themselves.
        self._eth: AsyncEth = AsyncWeb3(self._provider, middleware=[]).eth
        self._provider.global_ccip_read_enabled = False
        self._name = shown(url)
        self._timeout = timeout
        self._chain_id = chain_id
        self._checked = False
        self._closed = False
        self._connecting: asyncio.Task[None] | None = None

    @property
    def chain_id(self) -> int:
        """The chain's ID; known once `open` returned."""
        if self._chain_id is None:
            raise ChainError("the chain ID is not known before the first connection")
        return self._chain_id

    async def open(self) -> None:
        """Connect and check the chain ID. Raises: NotReachable, WrongChain."""
        await self.ask(_nothing)

    async def close(self) -> None:
        """Release the connection; calls under way fail with NotReachable. Idempotent."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await self._provider.disconnect()

    # ------------------------------------------------------------------------------------------------------ questions

    async def head(self) -> Head:
        """The latest block."""
        block = await self.ask(lambda eth: eth.get_block("latest"))
        return _head(block)

    async def blocks_behind(self) -> int | None:
        """How many blocks the node says it still has to catch up with, -1 if it does not say how many; None if it is
        not synchronizing. Raises: NodeRefused when it does not tell.
        """
        progress = await self.ask(lambda eth: eth.syncing)
        if not isinstance(progress, Mapping):
            return None if not progress else -1
        highest, current = _number(progress.get("highestBlock")), _number(progress.get("currentBlock"))
        return -1 if highest is None or current is None else max(highest - current, 0)

    async def balance(self, account: Address) -> int:
        """Wei at the latest block."""
        return await self.ask(lambda eth: eth.get_balance(_address(account)))

    async def code(self, contract: Address) -> bytes:
        """Code at the latest block; empty when there is none."""
        return bytes(await self.ask(lambda eth: eth.get_code(_address(contract))))

    async def call(
        self,
        contract: Address | None,
        data: bytes,
        *,
        block: BlockIdentifier = "latest",
        sender: Address | None = None,
        value: int = 0,
    ) -> bytes:
        """Result of a call in the state of `block`. Raises: CallReverted, NodeRefused."""
        tx = _tx(contract, data, sender=sender, value=value)
        return bytes(await self.ask(lambda eth: eth.call(tx, block)))

    async def estimate_gas(self, contract: Address | None, data: bytes, *, sender: Address, value: int) -> int:
        """Gas that a transaction would use now. Raises: CallReverted, NodeRefused."""
        tx = _tx(contract, data, sender=sender, value=value)
        return await self.ask(lambda eth: eth.estimate_gas(tx))

    async def nonce(self, account: Address, block: BlockIdentifier) -> int:
        """Number of the account's transactions up to `block`: the next nonce in its view."""
        return await self.ask(lambda eth: eth.get_transaction_count(_address(account), block))

    async def tip(self) -> int:
        """Wei per gas that the node suggests to offer beside the base fee; DEFAULT_TIP when it has no opinion."""
        try:
            # Not by web3.py's own method, which has its own way with refusals.
            return int(str(await self.ask(lambda _: self._request("eth_maxPriorityFeePerGas"))), 16)
        except NodeRefused:
            return DEFAULT_TIP

    async def send_raw(self, raw: bytes) -> None:
        """Broadcast a signed transaction. Raises: NodeRefused, CallReverted (some nodes execute it first)."""
        await self.ask(lambda eth: eth.send_raw_transaction(raw))

    async def block_hash(self, number: int) -> Bytes32 | None:
        """Hash of the block with that number; None when the chain is shorter."""

        async def question(eth: AsyncEth) -> Bytes32 | None:
            try:
                return Bytes32(bytes((await eth.get_block(BlockNumber(number)))["hash"]))
            except BlockNotFound:
                return None

        return await self.ask(question)

    async def receipt(self, tx_hash: Bytes32) -> Receipt | None:
        """Receipt of a mined transaction; None while there is none."""

        async def question(eth: AsyncEth) -> Receipt | None:
            try:
                return _receipt(await eth.get_transaction_receipt(_hash(tx_hash)))
            except TransactionNotFound:
                return None

        return await self.ask(question)

    async def transaction(self, tx_hash: Bytes32) -> KnownTx | None:
        """A transaction the node has, mined or waiting; None when it does not know it."""

        async def question(eth: AsyncEth) -> KnownTx | None:
            try:
                tx = await eth.get_transaction(_hash(tx_hash))
            except TransactionNotFound:
                return None
            to = tx.get("to")
            return KnownTx(
                to=Address.from_hex(str(to)) if to else None,
                data=bytes(tx["input"]),
                value=tx["value"],
                gas=tx["gas"],
            )

        return await self.ask(question)

    async def logs(
        self, contract: Address, topic: Bytes32, first: int, last: int, *, about: Bytes32 | None = None
    ) -> list[LogReceipt]:
        """Logs of `contract` with `topic` in the blocks `first` … `last`, only those `about` one subject if given.

        Raises: NodeRefused (limits of the node).
        """
        query = _log_filter(contract, topic, about)
        query["fromBlock"], query["toBlock"] = cast(Any, hex(first)), cast(Any, hex(last))
        return await self.ask(lambda eth: eth.get_logs(query))

    async def logs_of(self, contract: Address, topic: Bytes32, block: Bytes32) -> list[LogReceipt]:
        """Logs of `contract` with `topic` in one block. Raises: NodeRefused when the node does not have the block."""
        query = _log_filter(contract, topic, None)
        query["blockHash"] = cast(Any, _hash(block))
        return await self.ask(lambda eth: eth.get_logs(query))

    # ----------------------------------------------------------------------------------------------------- new heads

    @property
    def pushes_heads(self) -> bool:
        """Whether the node tells new heads by itself (sockets); HTTP has to be asked."""
        return isinstance(self._provider, SocketProvider)

    async def subscribe_heads(self, on_head: Callable[[Head], None]) -> asyncio.Task[None]:
        """Have `on_head` called for every new head until the returned task ends, which is when the socket is lost.

        The task is only to be waited for. Raises: NotReachable, NodeRefused.
        """
        provider = self._provider
        if not isinstance(provider, SocketProvider):
            raise ChainError("HTTP has no subscriptions")

        def notified(header: Mapping[str, Any]) -> None:
            on_head(_pushed_head(header))

        async def question(eth: AsyncEth) -> asyncio.Task[None]:
            reader = provider.reader
            await self._request("eth_subscribe", "newHeads")
            return reader

        provider.on_head = notified
        return await self.ask(question)

    async def _request(self, method: str, *params: object) -> object:
        """The result as it came. Raises: Web3RPCError and what the transports raise."""
        answer = await self._provider.make_request(RPCEndpoint(method), list(params))
        if "error" in answer:
            raise Web3RPCError(str(answer["error"]), rpc_response=answer)
        return answer.get("result")

    # ---------------------------------------------------------------------------------------------------- connecting

    async def ask(self, question: Callable[[AsyncEth], Awaitable[T]]) -> T:
        """Put one question within the time-out, connecting first when needed.

        Raises: NotReachable, WrongChain, CallReverted, NodeRefused; ChainError for an answer that makes no sense.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._patiently(question)
        except ContractLogicError as error:
            raise CallReverted(_reason(error)) from error
        except Web3RPCError as error:
            raise _refusal(error) from error
        except Overloaded as error:
            raise NodeRefused(error.status, "too many requests") from error
        except TimeoutError as error:
            raise NotReachable(f"{self._name} did not answer within {self._timeout:g} s") from error
        except UNREACHABLE as error:
            self._checked = self._checked and not self.pushes_heads
            raise NotReachable(f"blockchain network not reachable at {self._name}: {type(error).__name__}") from error
        except (Web3Exception, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ChainError(f"{self._name} gave an answer that makes no sense: {type(error).__name__}") from error

    async def _patiently(self, question: Callable[[AsyncEth], Awaitable[T]]) -> T:
        """Put the question again while the node has too many, at moments that differ from those of others.

        A refused question was not carried out, and a transaction that is broadcast twice is the same one.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + min(OVERLOAD_PATIENCE, 0.8 * self._timeout)
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._undisturbed(question)
            except (Overloaded, Web3RPCError) as error:
                wish = error.pause if isinstance(error, Overloaded) else 0.0
                pausing = max(pause * random.uniform(0.5, 1.0), wish)
                if not _is_overload(error) or clock() + pausing > end:
                    raise
            await asyncio.sleep(pausing)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _undisturbed(self, question: Callable[[AsyncEth], Awaitable[T]]) -> T:
        try:
            return await self._put(question)
        except ServerDisconnectedError:
            # The server had closed an idle connection of the pool. All questions may be repeated.
            return await self._put(question)

    async def _put(self, question: Callable[[AsyncEth], Awaitable[T]]) -> T:
        if self._closed:
            raise ConnectionResetError("the connection was closed")
        if not self._usable:
            await self._connected()
        return await question(self._eth)

    @property
    def _usable(self) -> bool:
        return self._checked and (not isinstance(self._provider, SocketProvider) or self._provider.connected)

    async def _connected(self) -> None:
        """Join the attempt to connect that is under way, or begin one; it outlives a caller that gives up."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="chain node connect")
            self._connecting.add_done_callback(self._attempted)
        await asyncio.shield(self._connecting)

    def _attempted(self, attempt: asyncio.Task[None]) -> None:
        self._connecting = None
        if not attempt.cancelled():
            attempt.exception()  # marks it as seen when every caller has given up

    async def _connect(self) -> None:
        self._checked = False
        async with asyncio.timeout(self._timeout):
            await self._provider.connect()
            if isinstance(self._provider, SocketProvider):
                try:
                    self._expect(await self._eth.chain_id)
                except WrongChain:
                    await self._provider.disconnect()
                    raise
        self._checked = True

    def _expect(self, actual: int) -> None:
        """Take the ID of the chain at the other end. Raises: WrongChain when it is not the one we are on."""
        if self._chain_id is not None and actual != self._chain_id:
            raise WrongChain(self._chain_id, actual)
        self._chain_id = actual


async def _nothing(eth: AsyncEth) -> None:
    """The question whose answer is a checked connection."""


def _address(address: Address) -> Any:
    return address.checksum


def _hash(tx_hash: Bytes32) -> HexStr:
    return HexStr("0x" + tx_hash.hex())


def _tx(contract: Address | None, data: bytes, *, sender: Address | None, value: int) -> TxParams:
    tx: TxParams = {"data": HexStr("0x" + data.hex()), "value": Wei(value)}
    if contract is not None:
        tx["to"] = _address(contract)
    if sender is not None:
        tx["from"] = _address(sender)
    return tx


def _number(value: object) -> int | None:
    """A number that a node told, in whatever notation; None when it is none."""
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            return None
    return value if isinstance(value, int) else None


def _log_filter(contract: Address, topic: Bytes32, about: Bytes32 | None) -> FilterParams:
    topics = [_hash(topic)] if about is None else [_hash(topic), _hash(about)]
    return {"address": _address(contract), "topics": topics}


def _receipt(receipt: TxReceipt) -> Receipt:
    created = receipt.get("contractAddress")
    logs = tuple(
        Log(
            contract=Address.from_hex(str(log["address"])),
            topics=tuple(bytes(topic) for topic in log["topics"]),
            data=bytes(log["data"]),
        )
        for log in receipt["logs"]
    )
    return Receipt(
        block=receipt["blockNumber"],
        block_hash=Bytes32(bytes(receipt["blockHash"])),
        succeeded=receipt["status"] != 0,
        gas_used=receipt["gasUsed"],
        contract=Address.from_hex(created) if created else None,
        logs=logs,
    )


def _head(block: Mapping[str, Any]) -> Head:
    ref = BlockRef(number=block["number"], hash=Bytes32(bytes(block["hash"])), timestamp=block["timestamp"])
    return Head(ref=ref, parent=Bytes32(bytes(block["parentHash"])), base_fee=block.get("baseFeePerGas"))


def _pushed_head(header: Mapping[str, Any]) -> Head:
    """A header as it comes in a notification, where everything is hexadecimal text. Raises: ValueError."""
    base_fee = header.get("baseFeePerGas")
    try:
        ref = BlockRef(
            number=int(header["number"], 16),
            hash=Bytes32.from_hex(header["hash"]),
            timestamp=int(header["timestamp"], 16),
        )
        parent = Bytes32.from_hex(header["parentHash"])
        return Head(ref=ref, parent=parent, base_fee=None if base_fee is None else int(base_fee, 16))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the chain node sent a header that is not one") from error


def _reason(error: ContractLogicError) -> str:
    """The contract's own text, from the revert data if there is any, else from the node's message."""
    data = error.data
    if isinstance(data, str) and data.startswith("0x"):
        try:
            decoded = abi.revert_reason(bytes.fromhex(data[2:]))
        except ValueError:
            decoded = ""
        if decoded:
            return decoded
    message = str(error.message or "")
    _, marker, tail = message.partition("execution reverted")
    return tail.lstrip(": ").strip() if marker else message


def _is_overload(error: Overloaded | Web3RPCError) -> bool:
    """Whether the node would have answered if it had fewer questions."""
    if isinstance(error, Overloaded):
        return True
    refusal = _refusal(error)
    if not isinstance(refusal, NodeRefused):
        return False
    text = refusal.message.lower()
    if refusal.code in RATE_CODES or any(words in text for words in RATE_WORDS):
        return True
    return refusal.code == LIMIT_CODE and not any(words in text for words in LENGTH_WORDS)


def _refusal(error: Web3RPCError) -> ChainError:
    """A JSON-RPC error as a revert, when it says so, or as a refusal."""
    answer: object = (error.rpc_response or {}).get("error")
    if not isinstance(answer, dict):
        return NodeRefused(None, error.message)
    message, code, data = str(answer.get("message", "")), answer.get("code"), answer.get("data")
    if "revert" in message.lower():
        return CallReverted(_reason(ContractLogicError(message, data=data)))
    return NodeRefused(code if isinstance(code, int) else None, message)

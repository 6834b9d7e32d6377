"""Chain nodes on free loopback ports with deployed contracts, accounts with money, and a network that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from perun_chain_ethereum.deploy import Deployment, connected, deploy
from perun_chain_ethereum.opening import EthereumConfig, open_chain
from perun_chain_ethereum.testkeys import TEST_ACCOUNTS
from perun_core.channel import Allocation, Asset, Params, State, SubAlloc, Transaction, transaction
from perun_core.ports.chain import Chain, ChainContext, Contracts, TxSigner
from perun_core.ports.keymgr import UnsignedTx
from perun_core.profile.gp090 import PROFILE
from perun_core.testing.store import MemoryStore
from perun_core.values import Address, Bytes32, ChannelID, Sig, keccak256

ETHER = 10**18
CHAIN_ID = 1337
DEPLOYER = bytes.fromhex(TEST_ACCOUNTS[0].key)


class Key:
    """A private key that signs transactions, and EIP-191 digests as participants do."""

    def __init__(self, seed: str, secret: bytes | None = None) -> None:
        self._account = Account.from_key(secret or keccak256(seed.encode()))
        self.address = Address.from_hex(self._account.address)

    async def sign(self, tx: UnsignedTx) -> bytes:
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": tx.chain_id,
            "nonce": tx.nonce,
            "maxPriorityFeePerGas": tx.max_priority_fee,
            "maxFeePerGas": tx.max_fee,
            "gas": tx.gas,
            "value": tx.value,
            "data": tx.data,
        }
        if tx.to is not None:
            fields["to"] = tx.to.checksum
        return bytes(self._account.sign_transaction(fields).raw_transaction)

    def sign_hash(self, hash32: Bytes32) -> Sig:
        return Sig(bytes(self._account.sign_message(encode_defunct(primitive=bytes(hash32))).signature))

    def authorise(self, channel_id: ChannelID, receiver: Address) -> Callable[[int], Any]:
        async def signature(amount: int) -> Sig:
            return self.sign_hash(PROFILE.withdrawal_hash(channel_id, self.address, receiver, amount))

        return signature


@dataclass(frozen=True)
class Ledger:
    """A running chain node with contracts."""

    url: str
    http: str
    contracts: Deployment
    socket: str = ""

    @property
    def eth_holder(self) -> Address:
        return Address.from_hex(self.contracts.eth)

    @property
    def token(self) -> Address:
        assert self.contracts.token is not None
        return Address.from_hex(self.contracts.token)

    @property
    def token_holder(self) -> Address:
        assert self.contracts.erc20 is not None
        return Address.from_hex(self.contracts.erc20)

    async def rpc(self, method: str, *params: object) -> Any:
        return await asyncio.to_thread(rpc, self.http, method, *params)

    async def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            await self.rpc("evm_mine")

    async def pass_time(self, seconds: int) -> None:
        await self.rpc("evm_increaseTime", seconds)
        await self.rpc("evm_mine")

    def context(self, signer: TxSigner | None = None, **changes: Any) -> ChainContext:
        context = ChainContext(
            url=self.url,
            chain_id=CHAIN_ID,
            connect_timeout=10.0,
            tx_timeout=30.0,
            contracts=Contracts(Address.from_hex(self.contracts.adjudicator), self.eth_holder),
            profile=PROFILE,
            signer=signer,
            store=MemoryStore() if signer is not None else None,
            account_lock=asyncio.Lock() if signer is not None else None,
        )
        return ChainContext(**{name: changes.get(name, getattr(context, name)) for name in context.__struct_fields__})

    def open(
        self, signer: TxSigner | None = None, *, config: EthereumConfig | None = None, **changes: Any
    ) -> AbstractAsyncContextManager[Chain]:
        return open_chain(config or EthereumConfig(poll_interval=0.1), self.context(signer, **changes))


def rpc(url: str, method: str, *params: object) -> Any:
    """One JSON-RPC question to a chain node."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        content = json.load(answer)
    if "error" in content:
        raise RuntimeError(content["error"])
    return content["result"]


def anvil_executable() -> str | None:
    """Where anvil is: named by ANVIL, or fetched by the tools of this repository."""
    if (named := os.environ.get("ANVIL")) is not None:
        return named
    tools = Path(__file__).parents[4] / "tools" / "npm" / "node_modules"
    return next((str(path) for path in tools.glob("@foundry-rs/anvil-*/bin/anvil*")), None)


@contextmanager
def anvil(*options: str, port: int = 0, chain_id: int = CHAIN_ID) -> Iterator[str]:
    """Run anvil; gives its http:// URL."""
    executable = anvil_executable()
    if executable is None:
        pytest.skip("no anvil: set ANVIL or run make tools")
    command = [executable, "--port", str(port), "--chain-id", str(chain_id), "--accounts", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout
    # Keeps the pipe empty, or a talkative node would block.
    drain = threading.Thread(target=lambda: [None for _ in output])
    try:
        for line in output:
            if line.startswith("Listening on "):
                drain.start()
                yield f"http://{line.split()[-1]}"
                return
        raise RuntimeError(f"{executable} did not start")
    finally:
        process.terminate()
        process.wait(10)
        if drain.is_alive():
            drain.join()
        output.close()


@contextmanager
def devchain() -> Iterator[str]:
    """Run the development chain in a process of its own; gives its http:// URL."""
    program = (
        "import asyncio, sys\n"
        "from perun_chain_ethereum.devchain import serve\n"
        "asyncio.run(serve('127.0.0.1', 0, ready=lambda port: print(port, flush=True), stop=asyncio.Event()))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def deployed(url: str) -> Deployment:
    """Deploy contracts with a test token at the node of `url`."""

    async def run() -> Deployment:
        async with connected(url) as w3:
            return await deploy(w3, DEPLOYER, test_token=True)

    return asyncio.run(run())


@contextmanager
def anvil_ledger(*options: str) -> Iterator[Ledger]:
    """A fresh anvil with contracts, reached over WebSocket."""
    with anvil(*options) as http:
        rpc(http, "anvil_setBalance", TEST_ACCOUNTS[0].address, hex(100_000 * ETHER))
        contracts = deployed(http)
        socket = options[options.index("--ipc") + 1] if "--ipc" in options else ""
        yield Ledger(url=http.replace("http", "ws"), http=http, contracts=contracts, socket=socket)


@pytest.fixture(scope="module")
def instant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """anvil that mines every transaction at once, over WebSocket."""
    with anvil_ledger("--ipc", str(tmp_path_factory.mktemp("anvil") / "socket")) as ledger:
        yield ledger


@pytest.fixture(scope="session")
def ticking() -> Iterator[Ledger]:
    """anvil with a block every second, over WebSocket."""
    with anvil_ledger("--block-time", "1") as ledger:
        yield ledger


@pytest.fixture(scope="session")
def embedded() -> Iterator[Ledger]:
    """The development chain, over WebSocket."""
    with devchain() as http:
        yield Ledger(url=http.replace("http", "ws"), http=http, contracts=deployed(http))


def over_http(ledger: Ledger) -> Ledger:
    return replace(ledger, url=ledger.http)


def over_ipc(ledger: Ledger) -> Ledger:
    return replace(ledger, url=ledger.socket)


_numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))


@pytest.fixture
def funded() -> Callable[[Ledger], Any]:
    """`await funded(ledger)` gives a new account with 10 ETH and 1,000 base units of the test token."""

    async def make(ledger: Ledger, *, ether: int = 10 * ETHER, tokens: int = 1000) -> Key:
        bank = Key("", DEPLOYER)
        key = Key(f"account {next(_numbers)}")
        transfer = bytes.fromhex("a9059cbb") + bytes(12) + key.address + tokens.to_bytes(32, "big")
        gifts = [
            await _send(ledger, bank, key.address, ether, b""),
            await _send(ledger, bank, ledger.token, 0, transfer),
        ]
        for gift in gifts:
            while await ledger.rpc("eth_getTransactionReceipt", gift) is None:  # noqa: ASYNC110 - a node has no event
                await asyncio.sleep(0.1)
        return key

    return make


async def _send(ledger: Ledger, sender: Key, to: Address, value: int, data: bytes) -> Any:
    nonce = int(await ledger.rpc("eth_getTransactionCount", sender.address.checksum, "pending"), 16)
    raw = await sender.sign(UnsignedTx(CHAIN_ID, nonce, 10**9, 20 * 10**9, 100_000, to, value, data))
    return await ledger.rpc("eth_sendRawTransaction", "0x" + raw.hex())


def participants(number: int) -> tuple[Key, ...]:
    """New keys of that many participants."""
    return tuple(_participant() for _ in range(number))


def _participant() -> Key:
    return Key(f"participant {next(_numbers)}")


@dataclass
class Channel:
    """A channel of ours over some assets; balances are [asset][participant]."""

    holders: tuple[Address, ...]
    balances: tuple[tuple[int, ...], ...]
    challenge_duration: int = 60
    keys: tuple[Key, ...] = field(default_factory=lambda: (_participant(), _participant()))
    app: Address | None = None
    is_ledger: bool = True
    locked: tuple[SubAlloc, ...] = ()

    def __post_init__(self) -> None:
        parts = tuple(key.address for key in self.keys)
        self.params = Params(self.challenge_duration, parts, self.app, next(_numbers), self.is_ledger, False)
        self.id = PROFILE.channel_id(self.params)

    def state(self, version: int, *, is_final: bool = False) -> State:
        assets = tuple(Asset(holder) for holder in self.holders)
        return State(self.id, version, Allocation(assets, self.balances, self.locked), is_final=is_final)

    def signed(self, version: int, *, is_final: bool = False) -> Transaction:
        state = self.state(version, is_final=is_final)
        return transaction(state, [key.sign_hash(PROFILE.state_hash(state)) for key in self.keys])

    def funding_id(self, part: int) -> Bytes32:
        return PROFILE.funding_id(self.id, self.keys[part].address)


class Cable:
    """A TCP forwarder that can be cut and mended: the chain node goes away and comes back at the same address."""

    def __init__(self, target: str) -> None:
        self.retarget(target)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    def retarget(self, target: str) -> None:
        """Lead to another node from the next connection on."""
        host, _, port = target.rpartition("://")[2].partition(":")
        self._target = (host, int(port))

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        node_reader, node_writer = await asyncio.open_connection(*self._target)
        pipes = [
            asyncio.create_task(_pipe(reader, node_writer)),
            asyncio.create_task(_pipe(node_reader, writer)),
        ]
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            node_writer.close()
            writer.close()
            self._connections.discard(task)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def cable_to(ledger: Ledger) -> AsyncIterator[tuple[Cable, Ledger]]:
    """A cable to the ledger's node, and the ledger as seen through it over WebSocket."""
    cable = Cable(ledger.http)
    await cable.mend()
    try:
        yield cable, replace(ledger, url=f"ws://127.0.0.1:{cable.port}")
    finally:
        await cable.cut()

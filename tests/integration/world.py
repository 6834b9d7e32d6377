"""A chain with contracts, nodes in processes of their own, and people with keys: what integration tests run on.

Only public commands and files are used, as an operator would. Everything is ended by its own process ID.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil
from eth_account import Account

from perun_chain_ethereum.testkeys import DEPLOYER, TEST_ACCOUNTS, TEST_CHAIN_ID
from perun_keymgr_ethkeystore.keyfiles import write_key_file
from tests.integration.clients import Balances, Channel, Client, ClientError, User

ETHER = 10**18
START_TIMEOUT = 40.0
STOP_TIMEOUT = 20.0
ANVIL = Path(__file__).parents[2] / "tools/npm/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
BANK = TEST_ACCOUNTS[4]
"""Gives ETH to people on the embedded chain."""
TOKEN_BANK = TEST_ACCOUNTS[2]
"""Gives test tokens to people."""
MARKER = "Serving payment channel API via grpc at port"
MARKERS = {"payment": MARKER, "fundwatch": "Serving funding and watching API via grpc at port"}
FIRST_PORT, PORTS = 21_000, 100
"""Below the ports that systems hand out for outgoing connections, so that nobody takes one of ours in passing."""


def ports() -> Iterator[int]:
    """Loopback ports nobody listens on; each process of a test run has its own range."""
    first = FIRST_PORT + os.getpid() % 100 * PORTS
    while True:
        for port in range(first, first + PORTS):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            yield port


def command(*arguments: object) -> list[str]:
    """The public command line of the installation that runs the tests."""
    return [sys.executable, "-c", "from perun_core.cli import main; main()", *map(str, arguments)]


class Process:
    """A process and its output in a file."""

    def __init__(self, name: str, arguments: list[str], log: Path, *, cwd: Path) -> None:
        self.name = name
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd)

    @property
    def output(self) -> str:
        """What it said since it was started."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace")

    @property
    def memory(self) -> int:
        """Resident bytes."""
        size: int = psutil.Process(self.process.pid).memory_info().rss
        return size

    def wait_for(self, text: str) -> str:
        """The output once `text` is in it. Raises: AssertionError when the process ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT
        while text not in (output := self.output):
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{output}"
            assert time.monotonic() < deadline, f"{self.name} did not say {text!r}:\n{output}"
            time.sleep(0.05)
        return output

    def kill(self) -> None:
        """End it without notice, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code. Raises: subprocess.TimeoutExpired when it does not end in time."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@dataclass(frozen=True)
class Person:
    """Somebody with accounts and a session file. Keys are fresh and guard nothing."""

    alias: str
    home: Path
    on_chain: str
    off_chain: str
    comm_address: str
    session_file: Path

    def configure(self, **changes: object) -> None:
        """Rewrite the session file with other values; a dotted name is written with two underscores."""
        config = json.loads(self.session_file.read_text())
        for name, value in changes.items():
            *path, last = name.split("__")
            table = config
            for part in path:
                table = table[part]
            table[last] = value
        self.session_file.write_text(json.dumps(config, indent=1))

    def know(self, *others: Person, **aliases: Person) -> None:
        """Write the ID provider file, with `others` under their own names and more under names of our choice."""
        known = {other.alias: other for other in others} | aliases
        entries = {
            alias: {
                "alias": alias,
                "offchain_address": other.off_chain,
                "comm_address": other.comm_address,
                "comm_type": "tcp",
            }
            for alias, other in known.items()
        }
        (self.home / "idprovider.yaml").write_text(json.dumps(entries))  # JSON is YAML


@dataclass
class Node:
    """A node process; `start` again after it ended keeps port and configuration."""

    world: World
    name: str
    port: int
    config: Path
    process: Process | None = None
    service: str = "payment"

    def start(self) -> Self:
        """Run until the marker says that the API is served."""
        self.launch().wait_for(MARKERS[self.service])
        return self

    def launch(self) -> Process:
        """Run without waiting for anything."""
        arguments = command("run", "--configfile", self.config, "--grpcport", self.port, "--service", self.service)
        self.process = self.world.run(self.name, arguments)
        return self.process

    @property
    def running(self) -> Process:
        """The process. Raises: AssertionError when it ended."""
        assert self.process is not None and self.process.process.poll() is None, f"{self.name} does not run"
        return self.process


@dataclass
class World:
    """One chain and the nodes on it."""

    kind: str
    """``embedded`` or ``anvil``, of which `start_chain` runs one; or what runs already at `url`, such as ``geth``."""
    home: Path
    url: str = ""
    http: str = ""
    """Where the chain answers over HTTP, if that is another port than that of `url`."""
    contracts: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    free_ports: Iterator[int] = field(default_factory=ports)
    _on_the_way: list[str] = field(default_factory=list)

    # ---- processes --------------------------------------------------------------------------------------------------

    def run(self, name: str, arguments: list[str]) -> Process:
        """Start a process that ends with the world at the latest."""
        process = Process(name, arguments, self.home / f"{name}.log", cwd=self.home)
        self.processes.append(process)
        return process

    def start_chain(self) -> None:
        """A fresh chain with the test accounts funded and the contracts deployed, test token included."""
        if not self.url:
            self._run_chain()
        key_file = self.home / "deployer.key"
        key_file.write_text(DEPLOYER.key)
        arguments = command("contracts", "deploy", "--chain", self.url, "--key-file", key_file)
        arguments += ["--test-token", "--json"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        self.contracts = json.loads(done.stdout)

    def _run_chain(self) -> None:
        port = next(self.free_ports)
        self.url = f"ws://127.0.0.1:{port}"
        if self.kind == "anvil":
            anvil = os.environ.get("ANVIL") or str(ANVIL)
            listen = ["--chain-id", str(TEST_CHAIN_ID), "--host", "127.0.0.1", "--port", str(port)]
            self.run("chain", [anvil, "--block-time", "1", *listen]).wait_for("Listening on")
            for account in TEST_ACCOUNTS:
                self.rpc("anvil_setBalance", account.address, hex(1000 * ETHER))
        else:
            self.run("chain", command("devchain", "--port", port)).wait_for("devchain: serving chain")

    def node(self, name: str, **changes: object) -> Node:
        """A configured node that does not run yet."""
        contracts = self.contracts
        config = {
            "loglevel": "debug",
            "logfile": "",
            "chainurl": self.url,
            "chainid": str(TEST_CHAIN_ID),
            "adjudicator": contracts["adjudicator"],
            "asseteth": contracts["eth"],
            "asseterc20s": {contracts["token"]: contracts["erc20"]},
            "chainconntimeout": "10s",
            "onchaintxtimeout": "1m0s",
            "responsetimeout": "10s",
        } | changes
        path = self.home / f"{name}.yaml"
        path.write_text(json.dumps(config))
        node = Node(self, name, next(self.free_ports), path)
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        """End everything that runs, the chain last."""
        for process in reversed(self.processes):
            if process.process.poll() is None:
                process.stop()

    def logs(self) -> str:
        """The end of what every process said."""
        names = dict.fromkeys(process.name for process in self.processes)
        parts = []
        for name in names:
            text = (self.home / f"{name}.log").read_text(errors="replace")
            parts.append(f"--- {name}\n{text[-12_000:]}")
        return "\n".join(parts)

    # ---- people -----------------------------------------------------------------------------------------------------

    def person(self, alias: str, **terms: Any) -> Person:
        """Somebody new with money, keys and a session file; knows nobody yet."""
        person = self._newcomer(alias, **terms)
        self._await_transfers()
        return person

    def _newcomer(self, alias: str, *, ether: float = 10, tokens: int = 0, response_timeout: str = "5s") -> Person:
        home = self.home / f"{alias}-{secrets.token_hex(4)}"
        keystore = home / "keystore"
        keystore.mkdir(parents=True)
        addresses = []
        for _ in range(2):
            key = secrets.token_bytes(32)
            write_key_file(keystore, key, "", weak=True, name_time=datetime.now(UTC))
            addresses.append(Account.from_key(key).address)
        on_chain, off_chain = addresses
        comm_address = f"127.0.0.1:{next(self.free_ports)}"
        wallet = {"keystorepath": str(keystore), "password": ""}
        session = {
            "user": {
                "alias": alias,
                "onchainaddr": on_chain,
                "onchainwallet": wallet,
                "partaddrs": [],
                "offchainaddr": off_chain,
                "offchainwallet": wallet,
                "commaddr": comm_address,
                "commtype": "tcp",
            },
            "idprovidertype": "local",
            "idproviderurl": str(home / "idprovider.yaml"),
            "chainurl": self.url,
            "chainid": str(TEST_CHAIN_ID),
            "chainconntimeout": "10s",
            "onchaintxtimeout": "1m0s",
            "responsetimeout": response_timeout,
            "databasedir": str(home / "database"),
            "peerreconntimeout": "20s",
            "fundingtype": "local",
            "watchertype": "local",
        }
        session_file = home / "session.yaml"
        session_file.write_text(json.dumps(session, indent=1))
        person = Person(alias, home, on_chain, off_chain, comm_address, session_file)
        person.know()
        if ether and self.kind == "anvil":
            self.rpc("anvil_setBalance", on_chain, hex(int(ether * ETHER)))
        elif ether:
            self._transfer(BANK.key, on_chain, value=int(ether * ETHER), gas=21_000)
        if tokens:
            data = "0xa9059cbb" + on_chain[2:].lower().rjust(64, "0") + f"{tokens:064x}"
            self._transfer(TOKEN_BANK.key, self.contracts["token"], data=data, gas=100_000)
        return person

    def friends(self, *aliases: str, **terms: Any) -> list[Person]:
        """People who know each other."""
        people = [self._newcomer(alias, **terms) for alias in aliases]
        self._await_transfers()
        for one in people:
            one.know(*(other for other in people if other is not one))
        return people

    # ---- the chain --------------------------------------------------------------------------------------------------

    def rpc(self, method: str, *params: object) -> Any:
        """Result of a JSON-RPC call."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.http_url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
        assert "error" not in answer, answer
        return answer["result"]

    @property
    def http_url(self) -> str:
        """Where the chain answers over HTTP."""
        return self.http or self.url.replace("ws://", "http://")

    def balance(self, address: str) -> int:
        """Wei at the latest block."""
        return int(self.rpc("eth_getBalance", address, "latest"), 16)

    def tokens(self, address: str) -> int:
        """Base units of the test token at the latest block."""
        data = "0x70a08231" + address[2:].lower().rjust(64, "0")
        return int(self.rpc("eth_call", {"to": self.contracts["token"], "data": data}, "latest"), 16)

    def _transfer(self, key: str, to: str, *, value: int = 0, data: str = "0x", gas: int) -> None:
        sender = Account.from_key(key)
        signed = sender.sign_transaction(
            {
                "type": 2,
                "chainId": TEST_CHAIN_ID,
                "nonce": int(self.rpc("eth_getTransactionCount", sender.address, "pending"), 16),
                "gas": gas,
                "maxFeePerGas": 100 * 10**9,
                "maxPriorityFeePerGas": 10**9,
                "to": to,
                "value": value,
                "data": data,
            }
        )
        self._on_the_way.append(self.rpc("eth_sendRawTransaction", "0x" + bytes(signed.raw_transaction).hex()))

    def _await_transfers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self._on_the_way:
            receipt = self.rpc("eth_getTransactionReceipt", self._on_the_way[0])
            if receipt is None:
                assert time.monotonic() < deadline, "a transfer was not mined"
                time.sleep(0.1)
                continue
            assert receipt["status"] == "0x1"
            self._on_the_way.pop(0)


@contextmanager
def running_world(kind: str, home: Path, *, nodes: int, url: str = "", http: str = "") -> Iterator[World]:
    """A world with its chain and `nodes` nodes running. `url` and `http` as in `World`."""
    with ExitStack() as stack:
        world = World(kind, home, url, http)
        stack.callback(world.stop)
        world.start_chain()
        launched = [world.node(f"node{number}") for number in range(1, nodes + 1)]
        for node in launched:
            node.launch()
        for node in launched:
            node.running.wait_for(MARKER)
        yield world


class Party:
    """People at their nodes within one test: clients and sessions, all left at its end."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self.world = world
        self._stack = stack
        self._clients: dict[int, Client] = {}

    async def client(self, node: Node | int = 0) -> Client:
        """A connection to a node."""
        port = (self.world.nodes[node] if isinstance(node, int) else node).port
        if port not in self._clients:
            self._clients[port] = await self._stack.enter_async_context(Client(port))
        return self._clients[port]

    async def join(self, person: Person, node: Node | int = 0) -> User:
        """Open a session; it is left with force at the end of the test, unless it is closed by then."""
        user = await User.open(await self.client(node), str(person.session_file))
        self._stack.push_async_callback(self._leave, user)
        return user

    @staticmethod
    async def _leave(user: User) -> None:
        # The node may be gone on purpose, the session be closed, or a chain step refuse to be interrupted.
        for _ in range(100):
            try:
                await user.leave(force=True)
            except ClientError as error:
                if error.code == 204 and "chs" in error.info:
                    await asyncio.sleep(0.1)
                    continue
            except Exception as error:
                if type(error).__name__ != "AioRpcError":
                    raise
            return

    async def two(self, *, nodes: tuple[int, int] = (0, 0), **terms: Any) -> tuple[User, User]:
        """alice and bob, who know each other, online."""
        alice, bob = self.world.friends("alice", "bob", **terms)
        return await self.join(alice, nodes[0]), await self.join(bob, nodes[1])


@asynccontextmanager
async def gathering(world: World) -> AsyncIterator[Party]:
    """A party in `world`."""
    async with AsyncExitStack() as stack:
        yield Party(world, stack)


# ---- stories two users tell ------------------------------------------------------------------------------------------


async def open_channel(
    proposer: User, responder: User, balances: Balances, *, peer: str = "bob", duration: int = 10
) -> str:
    """Propose and accept; the channel's ID on both sides."""
    opened, accepted = await asyncio.gather(
        proposer.propose(peer, balances, duration), responder.answer_proposal(accept=True)
    )
    assert opened.id == accepted.id
    return opened.id


async def pay(payer: User, payee: User, channel: str, *payments: tuple[str, str, str]) -> Channel:
    """Send an update and accept it; what both sides hold then."""
    sent, received = await asyncio.gather(payer.pay(channel, payments), payee.answer_update(channel, accept=True))
    assert (sent.id, sent.version, sent.balances) == (received.id, received.version, received.balances)
    return sent


async def settle(closer: User, other: User, channel: str) -> tuple[Channel, Channel]:
    """Close with the other's agreement; both return when their money is back."""
    closed, agreed = await asyncio.gather(closer.close(channel), other.answer_update(channel, accept=True))
    return closed, agreed


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout: float = 60) -> None:
    """Wait for a fact about the outside world, looking five times a second. Raises: TimeoutError."""
    async with asyncio.timeout(timeout):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.2)


async def until_past(client: Client, expiry: int) -> None:
    """Until an answer counts as late by the node's clock."""

    async def is_past() -> bool:
        return await client.time() > expiry

    await until(is_past)


def refused(error: ClientError, code: int, info: Mapping[str, object] | None = None) -> None:
    """Assert what a user was told."""
    assert error.code == code, error
    if info is not None:
        assert {name: error.info.get(name) for name in info} == dict(info), error

"""What benchmarks need: a world of separate processes, floors measured beside them, and results as text and JSON.

Nothing here reaches into a node: a world is started with the public commands and used through the public API. The one
exception is `check_durable`, which opens a store of its own with the options the nodes are given.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGED_ANVIL: Final = ROOT / "tools/npm/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
MARKER: Final = re.compile(r"^Serving .* API via grpc at port :(\d+)")
NODE: Final = str(Path(sys.executable).parent / "perunnode")
CHAIN_ID: Final = 1337
FULL: Final = 2
ETHER: Final = 10**18
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
ROW_BYTES: Final = 700
"""About what one stored channel record takes."""
PAUSE: Final = 0.003
"""Seconds; about how long a node sleeps between two calls while one payment after the other is made."""
REQUEST_BYTES: Final = 180
"""About what one call of the API carries."""


class Refused(Exception):
    """The benchmark must not run, or cannot: its figures would mean nothing."""


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop nodes use: uvloop where it exists."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


# ------------------------------------------------------------------------------------------------------------- numbers


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


@dataclass(frozen=True)
class Times:
    """Durations of single operations, seconds."""

    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        return percentile(self.seconds, 0.5)

    @property
    def p99(self) -> float:
        return percentile(self.seconds, 0.99)

    def as_json(self) -> dict[str, float | int]:
        """Milliseconds, rounded to what can be told apart."""
        return {
            "count": len(self.seconds),
            "p50_ms": round(1e3 * self.p50, 4),
            "p99_ms": round(1e3 * self.p99, 4),
            "mean_ms": round(1e3 * statistics.fmean(self.seconds), 4),
        }


def timed(operation: Callable[[], object], *, count: int) -> Times:
    """`operation`, `count` times one after the other."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - start)
    return Times(tuple(seconds))


async def timed_calls(call: Callable[[], Awaitable[object]], *, count: int, pause: float = 0) -> Times:
    """`call` awaited `count` times one after the other, with `pause` seconds in between."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
        if pause:
            await asyncio.sleep(pause)
    return Times(tuple(seconds))


@dataclass(frozen=True)
class Rate:
    """Operations finished in a stretch of time."""

    count: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    def as_json(self) -> dict[str, float | int]:
        return {"count": self.count, "seconds": round(self.seconds, 3), "per_second": round(self.per_second, 1)}


async def at_once(calls: Sequence[Callable[[], Awaitable[object]]], *, seconds: float) -> Rate:
    """Every call again and again, each one serially and all concurrently, until the time is up."""
    done = 0
    start = time.perf_counter()
    end = start + seconds

    async def repeat(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    await asyncio.gather(*map(repeat, calls))
    return Rate(done, time.perf_counter() - start)


# ----------------------------------------------------------------------------------------------------------- processes


@dataclass
class Process:
    """A process of the world and the port it serves on; `startup` in seconds from its start to its marker."""

    pid: int
    port: int
    startup: float

    @property
    def rss_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.pid}/status")
        if status.exists():
            (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
            return int(line.split()[1]) / 1024
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True, check=True)
        return int(shown.stdout) / 1024

    @property
    def cpu_seconds(self) -> float:
        """CPU time spent so far; 0 where the operating system does not tell."""
        stat = Path(f"/proc/{self.pid}/stat")
        if not stat.exists():
            return 0.0
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


@asynccontextmanager
async def process(command: Sequence[object], *, cwd: Path, marker: re.Pattern[str]) -> AsyncIterator[Process]:
    """A process that serves once it printed a line that `marker` matches; ended when the context is left.

    Its output goes to a file beside its working files, so that nobody has to read it while times are taken.
    Raises: Refused when it ends, or does not serve within a minute.
    """
    arguments = [str(each) for each in command]
    log = cwd / f"{Path(arguments[1] if len(arguments) > 1 else arguments[0]).name}-{free_port()}.log"
    with log.open("w+", encoding="utf-8") as output:
        started = time.perf_counter()
        child = await asyncio.create_subprocess_exec(
            *arguments, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        while True:
            found = [match for line in log.read_text(encoding="utf-8").splitlines() if (match := marker.search(line))]
            took = time.perf_counter() - started
            if found:
                break
            if child.returncode is not None or took > 60:
                raise Refused(f"{' '.join(arguments)}:\n{log.read_text(encoding='utf-8')}")
            await asyncio.sleep(0.005)
        yield Process(child.pid, int(found[0][1]), took)
    except Exception as error:
        if told := log.read_text(encoding="utf-8").splitlines()[-20:]:
            error.add_note("\n".join((f"last lines of {arguments[0]}:", *told)))
        raise
    finally:
        if child.returncode is None:
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 15)
        except TimeoutError:
            child.kill()
            await child.wait()


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def perunnode(*arguments: object, cwd: Path) -> str:
    """What a public command prints. Raises: Refused when it fails."""
    done = subprocess.run(
        [NODE, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise Refused(f"perunnode {' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
    return done.stdout


# --------------------------------------------------------------------------------------------------------------- world


@dataclass
class World:
    """A chain, contracts and two nodes, with session files of alice (first node) and bob (second node)."""

    directory: Path
    nodes: tuple[Process, Process] = field(init=False)

    @property
    def session_files(self) -> tuple[Path, Path]:
        """Session files of alice and bob."""
        return self.directory / "alice/session.yaml", self.directory / "bob/session.yaml"


@asynccontextmanager
async def two_nodes(directory: Path, *, chain: str) -> AsyncIterator[World]:
    """The world in `directory`, every process ended afterwards. `chain`: anvil or embedded. Raises: Refused."""
    world = World(directory)
    async with _chain(chain, directory) as chain_process:
        url = f"ws://127.0.0.1:{chain_process.port}"
        _configure(directory, url, chain=chain)
        await check_durable(directory)
        async with _node(directory) as first, _node(directory) as second:
            world.nodes = first, second
            yield world


def _chain(kind: str, directory: Path) -> Any:
    if kind == "embedded":
        marker = re.compile(r"^devchain: serving chain \d+ at http://127\.0\.0\.1:(\d+)")
        return process((NODE, "devchain", "--port", 0), cwd=directory, marker=marker)
    anvil = Path(os.environ.get("ANVIL") or PACKAGED_ANVIL)
    if not anvil.is_file():
        raise Refused("no anvil: set ANVIL, or run make tools, or use --chain embedded")
    command = (anvil, "--block-time", 1, "--chain-id", CHAIN_ID, "--host", "127.0.0.1", "--port", 0)
    return process(command, cwd=directory, marker=re.compile(r"^Listening on 127\.0\.0\.1:(\d+)"))


def _configure(directory: Path, url: str, *, chain: str) -> None:
    """Demo files and keys as the public command writes them, on our chain with our contracts."""
    from perun_chain_ethereum.testkeys import DEPLOYER, TEST_ACCOUNTS

    if chain == "anvil":
        for account in TEST_ACCOUNTS:
            _rpc(url.replace("ws://", "http://"), "anvil_setBalance", account.address, hex(10_000 * ETHER))
    perunnode("generate", cwd=directory)
    key = directory / "deployer.key"
    key.touch(mode=0o600)
    key.write_text(DEPLOYER.key, encoding="utf-8")
    told = json.loads(
        perunnode("contracts", "deploy", "--chain", url, "--key-file", key, "--test-token", "--json", cwd=directory)
    )  # the token too: node.yaml names it
    lines = {"chainurl": url, "adjudicator": told["adjudicator"], "asseteth": told["eth"], "loglevel": "warn"}
    for path in (directory / "node.yaml", *(directory / name / "session.yaml" for name in ("alice", "bob"))):
        text = path.read_text(encoding="utf-8")
        for name, value in lines.items():
            text = re.sub(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")


def _rpc(url: str, method: str, *params: object) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        answer = json.load(response)
    if "error" in answer:
        raise Refused(f"{method}: {answer['error']}")


def _node(directory: Path) -> Any:
    return process((NODE, "run", "--grpcport", free_port()), cwd=directory, marker=MARKER)


async def check_durable(directory: Path) -> None:
    """Raises: Refused unless the stores of both sessions wait for the disk at every commit.

    A scratch namespace is opened beside theirs, through the same plugin with the options the nodes are configured with.
    """
    from perun_core.config import backend_options, load_node, load_session
    from perun_core.plugin.manager import Kind, PluginHost
    from perun_core.ports.store import StoreContext

    node = load_node(directory / "node.yaml", {}, os.environ)
    host = PluginHost.load(node.plugins.enabled)
    for user in ("alice", "bob"):
        name = load_session(directory / user / "session.yaml").store
        backend = host.store(name)
        table = node.plugins.of(host.plugin_of(Kind.STORE, name))
        options: Any = backend_options(backend.config, table, f"plugins.store_{name}")
        async with backend.open(options, StoreContext(directory / f"scratch-{user}")) as store:
            tell = getattr(store, "pragma_synchronous", None)
            if tell is None:
                raise Refused(f"the store {name} of {user} does not tell whether its commits are durable")
            if (level := tell()) != FULL:
                raise Refused(f"PRAGMA synchronous of {user}'s store is {level}, not {FULL}: nothing would be durable")


# -------------------------------------------------------------------------------------------------------------- floors


@dataclass(frozen=True)
class Floors:
    """What the parts of a payment cost by themselves, on this machine, now."""

    echo: Times
    """One call after the other: client and server are always awake."""
    paused_echo: Times
    """With pauses as between the steps of a payment: the price of waking up is in it."""
    echo_rates: dict[int, Rate]
    sign: Times
    recover: Times
    commit: Times

    @property
    def payment(self) -> float:
        """Seconds of one payment if nothing but what the protocol demands took time.

        Two calls of the API, two signatures, two recoveries, three durable commits one after the other.
        """
        return 2 * self.echo.p50 + 2 * self.sign.p50 + 2 * self.recover.p50 + 3 * self.commit.p50

    def as_json(self) -> dict[str, object]:
        return {
            "grpc_echo": self.echo.as_json(),
            "grpc_echo_paused": self.paused_echo.as_json(),
            "grpc_echo_concurrent": {str(width): rate.as_json() for width, rate in self.echo_rates.items()},
            "sign": self.sign.as_json(),
            "recover": self.recover.as_json(),
            "sqlite_commit": self.commit.as_json(),
            "payment_ms": round(1e3 * self.payment, 4),
        }


async def measure_floors(directory: Path, *, widths: Sequence[int], count: int, seconds: float) -> Floors:
    """All floors; what is written goes to `directory`, where the stores of the nodes are."""
    import grpc.aio
    from coincurve import PrivateKey, PublicKey

    command = (sys.executable, Path(__file__).parent / "echo.py")
    async with AsyncExitStack() as stack:
        marker = re.compile(r"^echo at (\d+)")
        server = await stack.enter_async_context(process(command, cwd=directory, marker=marker))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        ask: Any = channel.unary_unary("/bench.Echo/Echo", None, None)
        request = bytes(REQUEST_BYTES)
        await timed_calls(lambda: ask(request), count=count // 10)
        echo = await timed_calls(lambda: ask(request), count=count)
        paused = await timed_calls(lambda: ask(request), count=count // 4, pause=PAUSE)
        rates = {width: await at_once([lambda: ask(request)] * width, seconds=seconds) for width in widths}
    key, digest = PrivateKey(bytes(31) + b"\x01"), bytes(range(32))
    signature = key.sign_recoverable(digest, hasher=None)
    return Floors(
        echo=echo,
        paused_echo=paused,
        echo_rates=rates,
        sign=timed(lambda: key.sign_recoverable(digest, hasher=None), count=count),
        recover=timed(lambda: PublicKey.from_signature_and_message(signature, digest, hasher=None), count=count),
        commit=durable_commits(directory / "floor.db", count=count),
    )


def durable_commits(path: Path, *, count: int) -> Times:
    """Commits of one row each that are on the disk when they return."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        put = "INSERT OR REPLACE INTO records VALUES (?, ?)"
        rows = iter([(bytes(32), os.urandom(ROW_BYTES)) for _ in range(count)])  # an unchanged row is not written
        return timed(lambda: db.execute(put, next(rows)), count=count)
    finally:
        db.close()


# -------------------------------------------------------------------------------------------------------------- report


def surroundings(directory: Path) -> dict[str, object]:
    """What figures depend on and a reader cannot guess."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "file_system": file_system(directory),
    }


def file_system(directory: Path) -> str:
    """Kind of the file system that commits go to; in memory, durable costs nothing and means nothing."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    fields = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    below = [(entry[1], entry[2]) for entry in fields if directory.resolve().is_relative_to(entry[1])]
    return max(below, key=lambda entry: len(entry[0]))[1]


def write_json(path: Path, content: object) -> None:
    """Write results for machines."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

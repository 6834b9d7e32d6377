"""The world of the demo: a directory, a chain, contracts and nodes, made with public commands only.

Every command and every server is a process of its own, started in a session of its own: Ctrl-C reaches the demo only,
which then ends each of them by its process ID, nodes before the chain.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .failure import DemoFailed
from .money import ChainReader, Contracts, text_of, units

POLL_SECONDS: Final = 0.03
START_SECONDS: Final = 60.0
"""Longest wait for a server to say that it is ready, and for a command to end."""
STOP_SECONDS: Final = 10.0
"""Longest wait for all processes together to end in order; then they are killed."""
TAIL_LINES: Final = 15
CHAIN_ID: Final = 1337
NEEDED: Final = units("20")
"""Wei that each person should own on the chain: deposits, and fees with much room."""
PRESENT: Final = units("10000")
"""Wei that people get on a chain whose operator lets us hand out money."""
URL_SCHEMES: Final = ("http://", "https://", "ws://", "wss://")


def perunnode() -> list[str]:
    """How ``perunnode`` of this environment is started."""
    script = Path(sys.executable).with_name("perunnode")
    if os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-P", "-c", "from perun_core.cli import main; main()"]


def free_ports(count: int) -> list[int]:
    """`count` different ports of the loopback address that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@dataclass(frozen=True)
class Process:
    """A process we started; what it prints goes to `log`."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def printed(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    async def says(self, pattern: str) -> re.Match[str]:
        """The first match of `pattern` in what it prints. Raises: DemoFailed when it ends before, or takes too long."""
        until = time.monotonic() + START_SECONDS
        while True:
            ended = self.popen.poll() is not None
            match = re.search(pattern, self.printed())
            if match:
                return match
            if ended:
                raise DemoFailed(f"{self.name} ended at once (exit code {self.popen.returncode})")
            if time.monotonic() > until:
                raise DemoFailed(f"{self.name} is not ready after {START_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)

    async def succeeds(self) -> str:
        """What it printed, when it ended well. Raises: DemoFailed when it did not, or takes too long."""
        until = time.monotonic() + START_SECONDS
        while self.popen.poll() is None:
            if time.monotonic() > until:
                raise DemoFailed(f"{self.name} does not end within {START_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        if self.popen.returncode:
            raise DemoFailed(f"{self.name} failed (exit code {self.popen.returncode})")
        return self.printed()


class World:
    """Owns the directory and the processes; leaving ends all of them, and removes the directory unless it is kept."""

    def __init__(self, *, keep: bool) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="perun-demo-"))
        self._keep = keep
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_all()
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _stop_all(self) -> None:
        """Last started, first ended: what depends on the chain goes before the chain."""
        until = time.monotonic() + STOP_SECONDS
        for process in reversed(self._processes):
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
                try:
                    process.popen.wait(max(0.1, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.popen.kill()
                    process.popen.wait()

    def tails(self) -> str:
        """The end of what each process printed that still runs or failed, for a report of a failure."""
        parts = []
        for process in self._processes:
            if process.popen.poll() == 0:
                continue
            lines = process.printed().splitlines()
            if lines:
                parts += [f"--- {process.name}: the last of {len(lines)} lines ---", *lines[-TAIL_LINES:]]
        return "\n".join(parts)

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start a process in the directory. Raises: DemoFailed when there is no such program."""
        log = self.directory / f"{len(self._processes)}-{name.replace(' ', '-')}.log"
        # Settings of a node that happen to be in our environment are not meant for this one.
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PERUN_")}
        try:
            with log.open("wb") as out:
                popen = subprocess.Popen(
                    command,
                    cwd=self.directory,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise DemoFailed(f"cannot start {name}: {error.strerror}: {command[0]}") from error
        process = Process(name, popen, log)
        self._processes.append(process)
        return process

    # -- what is in the world -----------------------------------------------------------------------------------------

    async def generate(self) -> None:
        """Configuration files and keys of alice, bob and a third user who takes no part."""
        await self.start("generate", [*perunnode(), "generate"]).succeeds()

    async def chain(self, choice: str) -> str:
        """URL of the chain: ``embedded`` and ``anvil`` are started, a URL is taken as it is. Raises: DemoFailed."""
        if choice == "embedded":
            devchain = self.start("devchain", [*perunnode(), "devchain", "--port", "0"])
            return str((await devchain.says(r"serving chain \d+ at .*(ws://\S+)\s"))[1])
        if choice == "anvil":
            arguments = ["--host", "127.0.0.1", "--port", "0", "--block-time", "1", "--chain-id", str(CHAIN_ID)]
            anvil = self.start("anvil", [anvil_program(), *arguments])
            return "ws://" + (await anvil.says(r"Listening on (127\.0\.0\.1:\d+)"))[1]
        if choice.startswith(URL_SCHEMES):
            return choice
        raise DemoFailed(f"--chain is embedded, anvil or a URL ({', '.join(URL_SCHEMES)}), not {choice!r}")

    def accounts(self, names: Sequence[str]) -> dict[str, str]:
        """On-chain addresses by name, from the generated session files."""
        found = {}
        for name in names:
            match = re.search(r"^ +onchainaddr: (0x\w{40})$", self._session_file(name).read_text(), re.MULTILINE)
            if match is None:
                raise DemoFailed(f"the generated session file of {name} names no account")
            found[name] = match[1]
        return found

    async def deploy(self, url: str, deployer: str) -> Contracts:
        """Deploy the contracts and a test token with the key of `deployer`'s account, or find them there."""
        account = self.accounts([deployer])[deployer].removeprefix("0x").lower()
        key_file = next((self.directory / deployer / "keystore").glob(f"*{account}"))
        password_file = self.directory / "empty-password"
        password_file.write_text("\n")
        options = ["--chain", url, "--key-file", str(key_file), "--password-file", str(password_file)]
        command = [*perunnode(), "contracts", "deploy", *options, "--test-token", "--json"]
        printed = await self.start("contracts deploy", command).succeeds()
        return Contracts(**json.loads(printed.splitlines()[-1]))

    def configure(self, *, url: str, chain_id: int, contracts: Contracts, names: Sequence[str]) -> None:
        """Write the chain and its contracts into the generated files."""
        chain = {"chainurl": url, "chainid": str(chain_id)}
        node = self.directory / "node.yaml"
        text = with_values(node.read_text(), {**chain, "adjudicator": contracts.adjudicator, "asseteth": contracts.eth})
        pair = rf"\g<1>    {contracts.token}: {contracts.erc20}\n"
        node.write_text(re.sub(r"^(asseterc20s:\n)(?: +\S.*\n)*", pair, text, flags=re.MULTILINE))
        for name in names:
            file = self._session_file(name)
            file.write_text(with_values(file.read_text(), chain))

    def _session_file(self, name: str) -> Path:
        return self.directory / name / "session.yaml"

    async def node(self, name: str, port: int) -> None:
        """Start a node and wait until it serves."""
        command = [*perunnode(), "run", "--configfile", "node.yaml", "--grpcport", str(port)]
        await self.start(name, command).says(rf"Serving payment channel API via grpc at port :{port}\b")


def anvil_program() -> str:
    """The anvil that the environment variable ANVIL names, or the one on the PATH. Raises: DemoFailed."""
    program = os.environ.get("ANVIL") or "anvil"
    found = shutil.which(program)
    if found is None:
        raise DemoFailed(f"there is no program {program}: install anvil, or name it in the environment variable ANVIL")
    return found


def with_values(text: str, values: Mapping[str, str]) -> str:
    """A generated file with other values for these top-level keys. Raises: DemoFailed when it lacks one of them."""
    for key, value in values.items():
        text, count = re.subn(rf"^{key}:.*$", _literally(f"{key}: {value}"), text, flags=re.MULTILINE)
        if count != 1:
            raise DemoFailed(f"the generated configuration has {count} entries {key!r}")
    return text


def _literally(text: str) -> Callable[[re.Match[str]], str]:
    """For `re.sub`: `text` as it is, whatever backslashes it has."""
    return lambda _: text


def http_url(url: str) -> str:
    """Where the node behind a WebSocket URL answers HTTP: development chains serve both on one port."""
    return "http" + url.removeprefix("ws") if url.startswith("ws") else url


async def provide_money(chain: ChainReader, accounts: Mapping[str, str]) -> None:
    """See that all `accounts` can pay; where they cannot, ask the chain as anvil is asked. Raises: DemoFailed."""
    for name, account in accounts.items():
        owned = await chain.number("eth_getBalance", account, "latest")
        if owned >= NEEDED:
            continue
        try:
            await chain.call("anvil_setBalance", account, hex(PRESENT))
        except DemoFailed as error:
            raise DemoFailed(
                f"{name}'s account {account} owns {text_of(owned)} ETH on this chain and needs {text_of(NEEDED)}: "
                "send it some from an account that has"
            ) from error

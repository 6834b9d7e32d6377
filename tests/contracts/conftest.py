from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perun_chain_ethereum.testing import World
from perun_chain_ethereum.testkeys import DEPLOYER, TEST_ACCOUNTS

ROOT = Path(__file__).parents[2]
PACKAGED_ANVIL = ROOT / "tools/npm/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"

DEVCHAIN = "from perun_chain_ethereum.commands import devchain; devchain()"
CONTRACTS = "from perun_chain_ethereum.commands import contracts; contracts()"


@pytest.fixture
def world() -> World:
    """A fresh chain with all contracts deployed."""
    return World.deployed()


def rpc(url: str, method: str, *params: Any) -> Any:
    """The whole JSON-RPC answer over HTTP."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


@pytest.fixture(name="rpc")
def rpc_fixture() -> Callable[..., Any]:
    return rpc


@pytest.fixture
def run_until_line() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start a process and wait for the line of its output that matches; all are stopped at the end."""
    started: list[subprocess.Popen[str]] = []
    drains: list[threading.Thread] = []

    def start(command: list[str], pattern: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if match := re.search(pattern, line):
                # Whatever it says from now on has to go somewhere, or it stops when the pipe is full.
                drain = threading.Thread(target=collections.deque, args=(process.stdout, 0), daemon=True)
                drain.start()
                drains.append(drain)
                return process, match.group(1)
        raise AssertionError(f"ended with {process.wait()}:\n{''.join(seen)}")

    yield start
    for process in started:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for drain in drains:
        drain.join(10)
    for process in started:
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def devchain(run_until_line: Callable[..., Any]) -> tuple[subprocess.Popen[str], str]:
    """The development chain in a process of its own, and its HTTP address."""
    command = [sys.executable, "-c", DEVCHAIN, "--port", "0"]
    process, url = run_until_line(command, r"^devchain: serving chain 1337 at (http://127\.0\.0\.1:\d+) and ws://")
    return process, url


@pytest.fixture
def start_anvil(run_until_line: Callable[..., Any]) -> Callable[..., str]:
    """Starts anvil with chain ID 1337 and the test accounts funded; gives its HTTP address."""
    anvil = Path(os.environ.get("ANVIL") or PACKAGED_ANVIL)
    if not anvil.is_file():
        pytest.skip("no anvil: set ANVIL, or run tools/fetch_node_tools.py on Linux x86-64")

    def start(*options: str) -> str:
        command = [str(anvil), "--chain-id", "1337", "--port", "0", "--host", "127.0.0.1", *options]
        _, place = run_until_line(command, r"^Listening on (127\.0\.0\.1:\d+)")
        for account in TEST_ACCOUNTS:
            rpc(f"http://{place}", "anvil_setBalance", account.address, hex(100 * 10**18))
        return f"http://{place}"

    return start


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with the key of the account that has the published contract addresses."""
    path = tmp_path / "deployer.key"
    path.write_text("0x" + DEPLOYER.key + "\n", encoding="utf-8")
    return path


@pytest.fixture
def contracts() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `contracts …` as its users do."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CONTRACTS, *(str(argument) for argument in arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    return run

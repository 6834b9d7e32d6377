"""A geth node in development mode: one block per second, chain ID 1337, everything in a temporary directory."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.build_geth import geth_path

START_TIMEOUT: Final = 40.0
NO_GETH: Final = "no geth: set GETH, or run make geth where a Go toolchain exists"


@dataclass(frozen=True)
class Geth:
    """A running node."""

    http: str
    ws: str
    ipc: str

    def rpc(self, method: str, *params: object) -> Any:
        """Result of a JSON-RPC question. Raises: RuntimeError with the node's error."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.http, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = json.load(answer)
        if "error" in content:
            raise RuntimeError(content["error"])
        return content["result"]

    def give(self, amounts: dict[str, int]) -> None:
        """Send wei from the developer's account, which is as good as endless, and wait until it has arrived."""
        developer = self.rpc("eth_accounts")[0]
        sent = [
            self.rpc("eth_sendTransaction", {"from": developer, "to": address, "value": hex(wei)})
            for address, wei in amounts.items()
        ]
        deadline = time.monotonic() + START_TIMEOUT
        for tx in sent:
            while (receipt := self.rpc("eth_getTransactionReceipt", tx)) is None:
                assert time.monotonic() < deadline, "geth does not mine"
                time.sleep(0.1)
            assert receipt["status"] == "0x1"


@contextmanager
def running_geth(home: Path, *, http_port: int, ws_port: int) -> Iterator[Geth]:
    """Run geth below `home`; ended by its own process ID. Raises: AssertionError when it does not start."""
    executable = geth_path()
    assert executable is not None, NO_GETH
    socket = home / "geth.ipc"
    command: list[object] = [
        executable,
        *("--dev", "--dev.period", 1, "--datadir", home / "data", "--ipcpath", socket),
        *("--http", "--http.addr", "127.0.0.1", "--http.port", http_port, "--http.api", "eth,net,web3,txpool"),
        *("--ws", "--ws.addr", "127.0.0.1", "--ws.port", ws_port, "--ws.api", "eth,net,web3,txpool"),
        *("--port", 0, "--authrpc.port", 0, "--nodiscover", "--maxpeers", 0, "--verbosity", 2, "--cache", 64),
    ]
    log = home / "geth.log"
    with log.open("wb") as out:
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=home)
    node = Geth(f"http://127.0.0.1:{http_port}", f"ws://127.0.0.1:{ws_port}", str(socket))
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            assert process.poll() is None, f"geth ended:\n{log.read_text(errors='replace')}"
            assert time.monotonic() < deadline, f"geth did not answer:\n{log.read_text(errors='replace')}"
            try:
                # The first block shows that it makes blocks, not only that it answers.
                if int(node.rpc("eth_blockNumber"), 16) > 0:
                    break
            except (OSError, ValueError):
                pass
            time.sleep(0.1)
        yield node
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

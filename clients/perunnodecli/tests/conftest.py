"""A chain with one node on it, and command-line clients as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.world import World, running_world

PATIENCE = 90


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One node on the embedded chain; everybody brings people of their own."""
    with running_world("embedded", tmp_path_factory.mktemp("world"), nodes=1) as world:
        yield world


class Clients:
    """Starts clients in a home of their own; whatever still runs at the end of the test is ended."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.port = port
        self._started: list[subprocess.Popen[str]] = []

    def environ(self, **more: str) -> dict[str, str]:
        """Without settings of whoever runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERUN", "NO_COLOR"))}
        return kept | {"HOME": str(self.home), "PERUNNODECLI_NODE": f":{self.port}"} | more

    def command(self, *words: object) -> list[str]:
        """The words that start a client."""
        return [sys.executable, "-m", "perunnodecli", *map(str, words)]

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """A client with pipes, in the directory of the test."""
        process = subprocess.Popen(
            self.command(*words),
            cwd=self.home,
            env=self.environ(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **({"stdin": subprocess.DEVNULL} | options),
        )
        self._started.append(process)
        return process

    def run(self, *words: object, lines: str | None = None) -> subprocess.CompletedProcess[str]:
        """A client from start to end; `lines` are its standard input."""
        process = self.start(*words, **({} if lines is None else {"stdin": subprocess.PIPE}))
        out, err = process.communicate(lines, timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def stop(self) -> None:
        """End what still runs and close its pipes."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # what was written last has no reader any more
                        pipe.close()


@pytest.fixture
def clients(world: World, tmp_path: Path) -> Iterator[Clients]:
    """Clients of the world's node."""
    clients = Clients(tmp_path, world.nodes[0].port)
    yield clients
    clients.stop()

"""Pages with examples that a test runs.

A comment before a fenced block says what the test does with it; blocks without one are for reading only:

    <!-- test: run -->             lines after "$ " are commands, run one by one; the others are their whole output,
                                   where "…" stands for anything
    <!-- test: serve "text" -->    the command runs until the page is done; goes on when it printed the text
    <!-- test: ended "COMMAND" --> a served command ended by itself and has printed the block
    <!-- test: file NAME -->       the block is a file
    <!-- test: append NAME -->     the block goes to the end of a file

Port numbers that a page mentions are exchanged for free ones, also in the files that its commands generate.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
LONGEST: Final = 60.0
_BLOCK: Final = re.compile(r"^<!-- test: (.+?) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MENTION: Final = re.compile(r"<!-- test:")


@dataclass(frozen=True)
class Example:
    """One block that is run: what to do with it, the language it is in, and its text."""

    action: str
    argument: str
    language: str
    text: str

    def commands(self) -> list[tuple[str, str]]:
        """Commands of a console block with their expected output."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return [(command, "\n".join(output)) for command, output in found]


def examples(page: Path) -> list[Example]:
    """The blocks of a page that are run. Raises: AssertionError for a comment without a block."""
    text = page.read_text(encoding="utf-8")
    found = []
    for what, language, content in _BLOCK.findall(text):
        action, _, argument = what.partition(" ")
        found.append(Example(action, argument.strip('"'), language, content))
    assert len(found) == len(_MENTION.findall(text)), f"{page.name}: a test comment without a block after it"
    return found


@dataclass
class Reader:
    """Somebody who follows a page in an empty directory."""

    home: Path
    ports: dict[str, str]
    _servers: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)

    def follow(self, example: Example) -> None:
        """Do what a block says. Raises: AssertionError when something else comes out."""
        match example.action:
            case "run":
                for command, output in example.commands():
                    self._run(command, output)
            case "serve":
                ((command, _),) = example.commands()
                self._serve(command, example.argument)
            case "ended":
                self._ended(example.argument, example.text)
            case "file":
                (self.home / example.argument).write_text(self._with_ports(example.text), encoding="utf-8")
            case "append":
                with (self.home / example.argument).open("a", encoding="utf-8") as file:
                    file.write(self._with_ports(example.text))
            case unknown:
                raise AssertionError(f"no such action: {unknown}")

    def _run(self, command: str, expected: str) -> None:
        before = set(self.home.rglob("*.yaml"))
        result = subprocess.run(
            ["bash", "-c", self._with_ports(command)],
            cwd=self.home,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        assert result.returncode == 0, f"$ {command}\n{result.stdout}\n{self.logs()}"
        assert_alike(result.stdout, self._with_ports(expected), command)
        for made in set(self.home.rglob("*.yaml")) - before:
            made.write_text(self._with_ports(made.read_text(encoding="utf-8")), encoding="utf-8")

    def _serve(self, command: str, ready: str) -> None:
        log = self.home / f"server-{len(self._servers)}.log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {self._with_ports(command)}"],
                cwd=self.home,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._servers[command] = server, log
        until = time.monotonic() + LONGEST
        while ready not in log.read_text(encoding="utf-8", errors="replace"):
            assert server.poll() is None and time.monotonic() < until, f"$ {command}\n{self.logs()}"
            time.sleep(0.05)

    def _ended(self, command: str, expected: str) -> None:
        server, log = self._servers[command]
        assert server.wait(LONGEST) == 0, self.logs()
        assert_alike(log.read_text(encoding="utf-8"), self._with_ports(expected), command)

    def _with_ports(self, text: str) -> str:
        for written, free in self.ports.items():
            text = re.sub(rf"\b{written}\b", free, text)
        return text

    def logs(self) -> str:
        """What the servers printed last."""
        return "\n".join(log.read_text(errors="replace")[-2000:] for _, log in self._servers.values())

    def stop(self) -> None:
        """End the servers, the last one first. Raises: AssertionError when one does not end with code 0."""
        for server, _ in reversed(self._servers.values()):
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        codes = {command: server.returncode for command, (server, _) in self._servers.items()}
        assert codes == dict.fromkeys(codes, 0)


@contextmanager
def reading(home: Path, ports: Sequence[str]) -> Iterator[Reader]:
    """A reader for whom the ports of the page are free ones."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in ports]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        free = [str(each.getsockname()[1]) for each in sockets]
    reader = Reader(home, dict(zip(ports, free, strict=True)))
    try:
        yield reader
    except BaseException:
        with suppress(AssertionError):  # what happened before is the news
            reader.stop()
        raise
    reader.stop()


def environment() -> dict[str, str]:
    """The activated environment of the interpreter that runs the tests, without settings of a node."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PERUN_", "PYTHON"))}
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")])
    return environ


def assert_alike(actual: str, expected: str, command: str) -> None:
    """`actual` is `expected`, where "…" stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("…"))
    matches = re.fullmatch(pattern, actual.strip(), re.DOTALL)
    assert matches, f"$ {command}\nprints\n{actual}\nbut the page says\n{expected}"

"""The shell on a real terminal, driven by keys and read from the screen."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.world import World

from .conftest import PATIENCE, Clients

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="a terminal is driven through tmux, which is not here"),
]


class Terminal:
    """A terminal with one client in it."""

    def __init__(self, home: Path, command: str, environ: dict[str, str], *, width: int = 110) -> None:
        self._socket = home / "tmux"
        self._environ = environ | {"TERM": "xterm-256color"}
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", "t", "-x", str(width), "-y", "50", command)

    def _tmux(self, *words: str) -> str:
        program = ["tmux", "-S", str(self._socket), *words]
        done = subprocess.run(program, env=self._environ, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    def type(self, text: str) -> None:
        """Characters, as they are."""
        self._tmux("send-keys", "-t", "t", "-l", text)

    def press(self, *keys: str) -> None:
        """Keys by name."""
        self._tmux("send-keys", "-t", "t", *keys)

    def resize(self, width: int) -> None:
        """Make the window wider or narrower."""
        self._tmux("resize-window", "-t", "t", "-x", str(width), "-y", "50")

    def screen(self, *, colours: bool = False) -> str:
        """What is to be seen."""
        return self._tmux("capture-pane", "-p", "-t", "t", *(["-e"] if colours else []))

    def until(self, seen: Callable[[str], bool]) -> str:
        """The screen once it is as wanted."""
        deadline = time.monotonic() + PATIENCE
        while not seen(screen := self.screen()):
            assert time.monotonic() < deadline, screen
            time.sleep(0.1)
        return screen

    def until_shown(self, text: str) -> str:
        """The screen once `text` is on it."""
        return self.until(lambda screen: text in screen)

    def stop(self) -> None:
        """End the terminal with what runs in it."""
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], capture_output=True, check=False, timeout=20)


@pytest.fixture
def terminal(clients: Clients) -> Iterator[Terminal]:
    """A shell that is connected; the exit code is shown when it ends."""
    command = f"{shlex.join(clients.command())}; echo ended with $?; sleep {PATIENCE}"
    terminal = Terminal(clients.home, command, clients.environ())
    terminal.until_shown(">>>")
    yield terminal
    terminal.stop()


def prompt_line(screen: str) -> str:
    """The line being typed: the last with a prompt."""
    return [line for line in screen.splitlines() if line.startswith(">>>")][-1].rstrip()


def test_a_notification_leaves_the_line_being_typed_whole(world: World, clients: Clients, terminal: Terminal) -> None:
    alice, bob = world.friends("alice", "bob", response_timeout="20s")
    session = clients.run("session", "open", alice.session_file).stdout.strip()
    terminal.type(f"session open {bob.session_file}")
    terminal.press("Enter")
    terminal.until_shown("Subscribed to channel opening request notifications.")

    terminal.type("payment send-to-peer ch_1_al")
    terminal.until_shown(">>> payment send-to-peer ch_1_al")
    opening = clients.start("--session", session, "--json", "channel", "open", "bob", "1", "2")
    screen = terminal.until_shown("Notification Alias: request_1_alice.")
    assert prompt_line(screen) == ">>> payment send-to-peer ch_1_al"
    terminal.type("ice")
    assert prompt_line(terminal.until_shown("ch_1_alice")) == ">>> payment send-to-peer ch_1_alice"
    terminal.until_shown("request_1_alice expires in")  # the bar counts down
    assert "\x1b[32m" in terminal.screen(colours=True)

    # Ctrl-C discards the line; Tab completes group, command and the request that waits.
    terminal.press("C-c")
    terminal.until(lambda screen: prompt_line(screen) == ">>>")
    for begun, completed in (
        ("chan", ">>> channel"),
        (" acc", ">>> channel accept-opening-request"),
        (" req", ">>> channel accept-opening-request request_1_alice"),
    ):
        terminal.type(begun)
        terminal.press("Tab")
        terminal.until(lambda screen, completed=completed: prompt_line(screen) == completed)  # type: ignore[misc]
    terminal.press("Enter")
    terminal.until_shown("Channel opened. Alias: ch_1_alice.")
    channel = json.loads(opening.communicate(timeout=PATIENCE)[0])["result"]["channel"]["id"]

    # While a payment of our own waits for the peer, the prompt is there, and a list is a table of the terminal's width.
    terminal.type("payment send ch_1_alice 0.5")
    terminal.press("Enter")
    terminal.until_shown("paying on ch_1_alice:")
    terminal.type("channel list")
    terminal.press("Enter")
    terminal.until(lambda screen: all(heading in screen for heading in ("Open channels", "currency", "peer has")))
    answered = clients.run("--session", session, "respond", "payment", f"{channel}_1", "accept")
    assert answered.returncode == 0, answered.stderr
    terminal.until_shown("Payment sent to peer on channel ch_1_alice.")

    # A narrower window shows the same line; Ctrl-D leaves and says how to come back.
    terminal.type("channel info ch_1")
    terminal.until_shown(">>> channel info ch_1")
    terminal.resize(60)
    terminal.until(lambda screen: prompt_line(screen) == ">>> channel info ch_1")
    terminal.press("C-c", "C-d")
    terminal.until_shown("The session stays open at the node")
    terminal.until_shown("ended with 0")
    history = clients.home / ".perunnodecli_history"
    assert "channel accept-opening-request request_1_alice" in history.read_text()


def test_whoever_leaves_while_something_is_under_way_is_asked_twice(
    world: World, clients: Clients, terminal: Terminal
) -> None:
    alice, bob = world.friends("alice", "bob", response_timeout="20s")
    assert clients.run("session", "open", bob.session_file).returncode == 0  # and nobody answers there
    terminal.type(f"session open {alice.session_file}")
    terminal.press("Enter")
    terminal.until_shown("Subscribed to channel opening request notifications.")
    terminal.type("channel open bob 1 2")
    terminal.press("Enter")
    terminal.until_shown("opening a channel with bob:")
    terminal.press("C-d")
    terminal.until_shown("Still under way: opening a channel with bob.")
    terminal.press("C-c")
    terminal.until_shown("No longer waiting for: opening a channel with bob.")
    terminal.press("C-c")
    terminal.until_shown("Ctrl-D or exit leaves.")
    terminal.type("exit")
    terminal.press("Enter")
    terminal.until_shown("ended with 0")

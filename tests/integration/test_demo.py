"""`perunnode demo`, as a user types it: the story comes out right, and nothing stays behind whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ANVIL = Path(__file__).parents[2] / "tools/npm/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
PERUNNODE = [sys.executable, "-c", "from perun_core.cli import main; main()"]
LONGEST = 180.0
CLAIMS = (
    "alice's ETH changed by the payments minus the fees",
    "alice's PRN changed by the payments exactly",
    "bob's ETH changed by the payments minus the fees",
    "bob's PRN changed by the payments exactly",
    "ETH of both together changed by the fees and nothing else",
    "PRN of both together did not change",
    "the contract that held ETH gave everything back",
    "the contract that held PRN gave everything back",
)


needs_anvil = pytest.mark.skipif(
    not (os.environ.get("ANVIL") or ANVIL.is_file()), reason="no anvil: set ANVIL, or run tools/fetch_node_tools.py"
)


def environment(directory: Path, **more: str) -> dict[str, str]:
    """What the demo inherits; its temporary files go below `directory`."""
    return {**os.environ, "TMPDIR": str(directory), "ANVIL": os.environ.get("ANVIL") or str(ANVIL), **more}


def demo(directory: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        [*PERUNNODE, "demo", *arguments],
        cwd=directory,
        env=environment(directory, **more),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST,
        check=False,
    )


def assert_that_all_is_well(result: subprocess.CompletedProcess[str]) -> None:
    """Exit code 0, every claim about money holds, and nobody complained."""
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^  (?:ok|WRONG): .*$", result.stdout, re.MULTILINE) == [f"  ok: {claim}" for claim in CLAIMS]
    assert result.stderr == ""


def processes_in(directory: Path) -> list[psutil.Process]:
    """Processes whose working directory lies below `directory`."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(directory):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory for the demo, which leaves neither files nor processes in it."""
    yield tmp_path
    left = processes_in(tmp_path)
    for process in left:
        process.kill()
    assert left == []
    assert list(tmp_path.glob("perun-demo-*")) == []


def test_alice_and_bob_pay_and_settle_on_one_node(home: Path) -> None:
    result = demo(home)
    assert_that_all_is_well(result)
    assert "alice 1.38 ETH | bob 1.62 ETH" in result.stdout
    assert "bob 1.1 ETH + 19.749999999999999999 PRN | alice 0.4 ETH + 20.250000000000000001 PRN" in result.stdout
    assert "bob says no. Nothing changes" in result.stdout


def test_alice_and_bob_pay_and_settle_on_a_node_each(home: Path) -> None:
    result = demo(home, "--two-nodes")
    assert_that_all_is_well(result)
    assert "a node for alice and a node for bob" in result.stdout


@pytest.mark.anvil
@needs_anvil
def test_alice_and_bob_pay_and_settle_on_a_chain_with_blocks_of_its_own_pace(home: Path) -> None:
    assert_that_all_is_well(demo(home, "--chain", "anvil", "--two-nodes"))


@pytest.mark.anvil
@needs_anvil
def test_the_story_runs_again_on_a_chain_that_has_seen_it_and_has_another_id(home: Path) -> None:
    log = home / "anvil.log"
    arguments = ["--host", "127.0.0.1", "--port", "0", "--block-time", "1", "--chain-id", "31337"]
    with log.open("wb") as out:
        anvil = subprocess.Popen([environment(home)["ANVIL"], *arguments], stdout=out, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while (found := re.search(r"Listening on (\S+:\d+)", log.read_text())) is None:
            assert time.monotonic() < until and anvil.poll() is None
            time.sleep(0.05)
        assert_that_all_is_well(demo(home, "--chain", f"http://{found[1]}"))
        assert_that_all_is_well(demo(home, "--chain", f"ws://{found[1]}"))
    finally:
        anvil.terminate()
        anvil.wait(10)


def test_settings_of_a_node_in_the_environment_do_not_reach_the_demo(home: Path) -> None:
    assert_that_all_is_well(demo(home, PERUN_CHAINURL="ws://127.0.0.1:1", PERUN_LOGLEVEL="error"))


def test_a_chain_that_does_not_answer_is_named(home: Path) -> None:
    result = demo(home, "--chain", "http://127.0.0.1:1")
    assert result.returncode == 1
    assert "The demo failed: no chain answers JSON-RPC at http://127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_anvil_is_named(home: Path) -> None:
    result = demo(home, "--chain", "anvil", ANVIL="no-such-anvil")
    assert result.returncode == 1
    assert "there is no program no-such-anvil" in result.stderr


def test_what_was_made_can_be_kept_to_look_at(tmp_path: Path) -> None:
    result = demo(tmp_path, "--chain", "nowhere", "--keep")
    assert result.returncode == 1
    (kept,) = tmp_path.glob("perun-demo-*")
    assert f"Kept: {kept}" in result.stdout
    assert (kept / "alice" / "session.yaml").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_demo_ends_everything_it_started(home: Path, number: signal.Signals) -> None:
    running = subprocess.Popen(
        [*PERUNNODE, "demo"],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert running.stdout is not None
    with running.stdout as lines:
        assert any("A channel in ETH" in line for line in lines)
        running.send_signal(number)
        rest = lines.read()
    assert running.wait(30) == 128 + number
    assert "Interrupted" in rest


def test_a_node_that_dies_fails_the_demo_with_what_it_said_last(home: Path) -> None:
    running = subprocess.Popen(
        [*PERUNNODE, "demo"],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert running.stdout is not None and running.stderr is not None
    with running.stdout as lines, running.stderr as errors:
        assert any("A channel in ETH and PRN" in line for line in lines)
        (node,) = [process for process in processes_in(home) if "run" in process.cmdline()]
        node.kill()
        lines.read()
        complaint = errors.read()
    assert running.wait(30) == 1
    assert "--- node: the last of" in complaint
    assert "The demo failed: " in complaint
    assert "Traceback" not in complaint

"""Starting and ending a node as scripts and operators see it (API.md 4.5), with a node that only waits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MARKER = "Serving payment channel API via grpc at port :"
ADDRESS = "0x9daEdAcb21dce86Af8604Ba1A1D7F9BFE55ddd63"
NODE = f"""\
loglevel: error
logfile: ""
chainurl: ws://127.0.0.1:8545
chainid: 1337
adjudicator: {ADDRESS}
asseteth: 0x5992089d61cE79B6CF90506F70DD42B8E42FB21d
chainconntimeout: 10s
onchaintxtimeout: 1m0s
responsetimeout: 10s
plugins:
    enabled: []
"""
EIGHT_FLAGS = [
    "--loglevel", "error", "--logfile", "n.log", "--chainurl", "ws://x", "--adjudicator", ADDRESS,
    "--assetETH", ADDRESS, "--chainconntimeout", "10s", "--onchaintxtimeout", "1m", "--responsetimeout", "10s",
]  # fmt: skip

# Stands where the node's own module would: what a start can do, chosen by the test.
PROGRAM = """
import asyncio, sys, types
from perun_core.errors import NotReachable

behaviour = sys.argv.pop(1)

async def run_node(config, plugins, *, service, port, started, stop):
    if behaviour == "unreachable":
        raise NotReachable("nothing listens at " + config.chainurl)
    if behaviour == "bug":
        raise KeyError("surprise")
    if behaviour == "hangs":
        print("connecting", flush=True)
        await asyncio.Event().wait()
    started(port or 4711)
    if behaviour == "stubborn":
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.Event().wait()
    await stop.wait()
    print("released", flush=True)

module = types.ModuleType("perun_core.node.node")
module.run_node = run_node
sys.modules["perun_core.node.node"] = module
from perun_core.cli import main
main()
"""


class Command:
    """Runs ``perunnode run`` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PERUN_", "DYNACONF"))}
        self.environ = clean | {"PERUN_PLUGINS__ENABLED": ""}

    def start(self, behaviour: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, behaviour, "run", *arguments],
            cwd=self.folder,
            env=self.environ,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def run(self, behaviour: str, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a start that ends by itself."""
        process = self.start(behaviour, *arguments)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    (tmp_path / "node.yaml").write_text(NODE)
    command = Command(tmp_path)
    yield command
    for process in command.started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout
    text = ""
    while word not in text:
        line = process.stdout.readline()
        assert line, f"ended without {word!r}: {text}"
        text += line
    return text


def test_the_output_of_a_start_is_file_then_configuration_then_marker(command: Command) -> None:
    output = read_until(command.start("serves", "--grpcport", "50777"), MARKER)
    lines = output.splitlines()
    assert "node.yaml" in lines[0]
    assert f"    adjudicator: {ADDRESS}" in lines
    assert "    onchaintxtimeout: 1m0s" in lines
    assert lines[-1] == f"{MARKER}50777"


def test_the_other_service_has_its_own_marker(command: Command) -> None:
    marker = "Serving funding and watching API via grpc at port :50777"
    assert marker in read_until(command.start("serves", "--service", "fundwatch", "--grpcport", "50777"), marker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_serving_node_in_order_with_0(command: Command, number: signal.Signals) -> None:
    process = command.start("serves")
    read_until(process, MARKER)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "released" in output


def test_a_signal_ends_a_node_that_is_still_starting(command: Command) -> None:
    process = command.start("hangs")
    read_until(process, "connecting")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert MARKER not in output


def test_a_second_signal_ends_a_node_that_does_not_stop(command: Command) -> None:
    process = command.start("stubborn")
    read_until(process, MARKER)
    process.send_signal(signal.SIGTERM)
    read_until(process, "stopping")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_failed_start_ends_with_1_and_its_reason_and_without_marker(command: Command) -> None:
    code, output = command.run("unreachable")
    assert code == 1
    assert "Error initializing nodeAPI: nothing listens at ws://127.0.0.1:8545" in output
    assert MARKER not in output


def test_a_bug_ends_with_1_too(command: Command) -> None:
    code, output = command.run("bug")
    assert code == 1
    assert "KeyError" in output
    assert MARKER not in output


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loglevel: error", "loglevel: loud"),
        ("loglevel: error", "loglevel:"),
        ('logfile: ""', "logfile: missing-folder/x.log"),
        ("enabled: []", "{}"),
        ("10s", "soon"),
        ("loglevel: error", "loglevel: ["),
        ("enabled: []", "enabled: [store_nobody]"),
        ("enabled: []", "stroe: {}"),
    ],
)
def test_a_bad_configuration_ends_with_1_before_anything_is_started(command: Command, old: str, new: str) -> None:
    del command.environ["PERUN_PLUGINS__ENABLED"]
    (command.folder / "node.yaml").write_text(NODE.replace(old, new, 1))
    if new == "{}":
        (command.folder / "node.yaml").write_text("{}")
    code, output = command.run("serves")
    assert code == 1, output
    assert "Error" in output
    assert MARKER not in output
    assert "Traceback" not in output


def test_a_missing_file_ends_with_1(command: Command) -> None:
    code, output = command.run("serves", "--configfile", "missing.yaml")
    assert code == 1
    assert "missing.yaml" in output


def test_flags_override_the_file_key_by_key(command: Command) -> None:
    (command.folder / "node.yaml").write_text(NODE.replace("loglevel: error", "loglevel: loud"))
    output = read_until(command.start("serves", "--loglevel", "info", "--assetETH", ADDRESS), MARKER)
    assert "    loglevel: info\n" in output
    assert f"    asseteth: {ADDRESS}\n" in output
    assert "    chainid: 1337\n" in output


def test_the_file_is_ignored_when_all_eight_flags_are_given(command: Command) -> None:
    output = read_until(command.start("serves", "--configfile", "missing.yaml", *EIGHT_FLAGS), MARKER)
    assert "missing.yaml" not in output
    assert "    chainid: any\n" in output
    assert (command.folder / "n.log").stat().st_mode & 0o777 == 0o600


def test_seven_flags_still_need_the_file(command: Command) -> None:
    code, _ = command.run("serves", "--configfile", "missing.yaml", *EIGHT_FLAGS[:-2])
    assert code == 1


def test_secrets_of_plugins_are_not_printed(command: Command) -> None:
    text = NODE.replace("enabled: []", "api_grpc: {token: hunter2}").replace("loglevel: error", "loglevel: loud")
    (command.folder / "node.yaml").write_text(text)
    _, output = command.run("serves")
    assert "hunter2" not in output
    assert re.search(r"plugins: .*api_grpc \(token\)", output)

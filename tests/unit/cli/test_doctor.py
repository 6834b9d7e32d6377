"""``perunnode doctor`` as an operator and a script see it; what it finds out is tested with the diagnosis."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perun_core.cli.doctor import lines
from perun_core.cli.group import perunnode
from perun_core.node.diagnosis import ChannelFinding, Diagnosis, Finding, Level, SessionFinding

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("PERUN_")]:
        monkeypatch.delenv(variable)
    return lambda *arguments: CliRunner().invoke(perunnode, ["doctor", *arguments])


def test_a_missing_node_configuration_is_a_problem(invoke: Invoke) -> None:
    result = invoke()
    assert result.exit_code == 1
    assert "problem" in result.stdout
    assert "node.yaml" in result.stdout


def test_a_session_file_that_does_not_exist_is_a_usage_error(invoke: Invoke) -> None:
    assert invoke("nobody.yaml").exit_code == 2


def test_a_missing_plugin_is_named_with_its_remedy(invoke: Invoke) -> None:
    Path("node.yaml").write_text("chainconntimeout: 1s\nplugins: {enabled: [store_nobody]}\n")
    result = invoke("--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["problems"] == 1
    assert "pip install perun-store-nobody" in found["node"][0]["text"]


def test_a_chain_that_does_not_answer_ends_with_1(invoke: Invoke) -> None:
    assert invoke("--help").exit_code == 0
    contracts = "adjudicator: '0x" + "1" * 40 + "'\nasseteth: '0x" + "2" * 40 + "'\n"
    Path("node.yaml").write_text(f"chainconntimeout: 1s\nchainurl: ws://127.0.0.1:1\n{contracts}")
    result = invoke("--configfile", "node.yaml")
    assert result.exit_code == 1
    assert "not reachable" in result.stdout


def test_the_report_names_file_user_channels_and_times() -> None:
    channel = ChannelFinding("ab" * 32, "acting", 7, "bob", 600, back_before=1_700_000_600)
    session = SessionFinding("alice.yaml", "alice", "0x01", findings=(Finding(Level.WARNING, "be back"),))
    text = "\n".join(lines(Diagnosis((Finding(Level.FINE, "reachable"),), (session,)), "node.yaml"))
    assert "alice.yaml (alice, 0x01)" in text
    assert "warning  be back" in text
    assert "CHANNEL" not in text, "no table without channels"
    listed = SessionFinding("alice.yaml", channels=(channel,))
    text = "\n".join(lines(Diagnosis((), (listed,)), "node.yaml"))
    assert "abababababababab  acting  7        bob   10m0s      2023-11-14 22:23:20 UTC  -" in text
    assert text.endswith("no problems")


def test_the_report_ends_with_the_number_of_problems() -> None:
    problem = Finding(Level.PROBLEM, "x")
    found = Diagnosis((problem,), (SessionFinding("s", findings=(problem,)),))
    assert list(lines(found, "node.yaml"))[-1] == "problems: 2"

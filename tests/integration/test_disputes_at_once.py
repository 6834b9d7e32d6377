"""A peer registers outdated states of all channels at once: every one is refuted in time and everybody is paid.

A small run of `bench/disputes.py`, which measures the same with up to 500 channels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.world import ANVIL

pytestmark = [pytest.mark.slow, pytest.mark.anvil]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not (os.environ.get("ANVIL") or ANVIL.is_file()):
        pytest.skip("no anvil: set ANVIL, or run tools/fetch_node_tools.py on Linux x86-64")
    result = tmp_path_factory.mktemp("bench") / "disputes.json"
    command = [sys.executable, str(ROOT / "bench/disputes.py"), "--quick", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))["rounds"]
    return content


def test_every_outdated_state_is_refuted_before_its_deadline(rounds: list[dict[str, Any]]) -> None:
    assert [each["refuted_in_time"] for each in rounds] == [each["channels"] for each in rounds]
    assert all(each["least_margin_s"] > each["challenge_s"] / 2 for each in rounds)


def test_everybody_gets_what_the_newest_state_says_and_no_channel_is_left(rounds: list[dict[str, Any]]) -> None:
    assert [(each["lost_wei"], each["stuck"]) for each in rounds] == [(0, 0)] * len(rounds)


def test_a_channel_takes_no_more_questions_when_there_are_more_of_them(rounds: list[dict[str, Any]]) -> None:
    few, many = (
        sum(each[step]["calls_per_channel"] for step in ("refuting", "collecting")) for each in (rounds[0], rounds[-1])
    )
    assert many <= 1.5 * few

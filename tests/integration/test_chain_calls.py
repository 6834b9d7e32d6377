"""What a session asks its chain stays bounded: nothing for payments, and one question per block however much is open.

The figures come from `bench/chaincalls.py`, which counts them at real nodes; the bounds leave room for blocks that come
at other moments, not for another order of growth.
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
MOST_CALLS = {"open": 40, "settle together": 50, "settle alone, by a dispute": 80}
"""About twice what was counted when this was written (19, 25 and 38)."""


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not (os.environ.get("ANVIL") or ANVIL.is_file()):
        pytest.skip("no anvil: set ANVIL, or run tools/fetch_node_tools.py on Linux x86-64")
    result = tmp_path_factory.mktemp("bench") / "chaincalls.json"
    command = [sys.executable, str(ROOT / "bench/chaincalls.py"), "--quick", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return content


def test_payments_ask_the_chain_nothing(figures: dict[str, Any]) -> None:
    assert figures["operations"]["pay"]["repeats"] >= 20
    assert figures["operations"]["pay"]["calls"] == {}


def test_an_idle_session_asks_once_per_block_however_many_channels_it_has(figures: dict[str, Any]) -> None:
    assert [idle["channels"] for idle in figures["idle"]] == [0, 10]
    for idle in figures["idle"]:
        assert idle["calls"] == {"eth_getLogs": idle["blocks"]}


def test_opening_a_session_asks_once_per_channel_that_it_restores(figures: dict[str, Any]) -> None:
    none, ten = (sum(idle["opening"].values()) for idle in figures["idle"])
    assert ten - none == 10


@pytest.mark.parametrize("operation", MOST_CALLS)
def test_an_operation_on_chain_takes_a_bounded_number_of_questions(figures: dict[str, Any], operation: str) -> None:
    assert 0 < figures["operations"][operation]["calls_each"] <= MOST_CALLS[operation]

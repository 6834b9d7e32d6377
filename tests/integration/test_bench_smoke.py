"""The payments benchmark runs and leaves out no figure. How fast anything is, is not a matter of tests."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.world import ANVIL

pytestmark = [pytest.mark.slow, pytest.mark.anvil]

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"count", "p50_ms", "p99_ms", "mean_ms"}
RATE = {"count", "seconds", "per_second"}
WIDTHS = ["1", "8", "32"]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not (os.environ.get("ANVIL") or ANVIL.is_file()):
        pytest.skip("no anvil: set ANVIL, or run tools/fetch_node_tools.py on Linux x86-64")
    result = tmp_path_factory.mktemp("bench") / "payments.json"
    command = [sys.executable, str(ROOT / "bench/payments.py"), "--quick", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "payment, serial" in done.stdout
    content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return content


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield value


def test_serial_payments_are_measured(figures: dict[str, Any]) -> None:
    assert set(figures["serial"]) == TIMES
    assert figures["serial"]["count"] > 0


def test_payments_over_several_channels_are_measured_with_their_cpu_time(figures: dict[str, Any]) -> None:
    assert list(figures["concurrent"]) == WIDTHS
    for measured in figures["concurrent"].values():
        assert set(measured) == {*RATE, "cpu_ms_per_payment"}
        assert set(measured["cpu_ms_per_payment"]) == {"alice's node", "bob's node", "clients"}
    assert figures["channels_opened"]["count"] == 32


def test_both_nodes_tell_start_up_time_and_memory(figures: dict[str, Any]) -> None:
    assert all(len(figures[name]) == 2 for name in ("startup_s", "rss_before_mib", "rss_after_mib"))


def test_every_floor_is_measured_in_the_same_run(figures: dict[str, Any]) -> None:
    floors = figures["floors"]
    for name in ("grpc_echo", "grpc_echo_paused", "sign", "recover", "sqlite_commit"):
        assert set(floors[name]) == TIMES
    assert list(floors["grpc_echo_concurrent"]) == WIDTHS
    assert all(set(rate) == RATE for rate in floors["grpc_echo_concurrent"].values())
    assert floors["payment_ms"] > 0


def test_payments_are_compared_with_every_floor(figures: dict[str, Any]) -> None:
    assert set(figures["ratios"]) == {
        "payment_p50_to_floor",
        "payment_p50_to_grpc_echo",
        "payment_p50_to_grpc_echo_paused",
        "payment_p50_to_sign",
        "payment_p50_to_recover",
        "payment_p50_to_sqlite_commit",
        *(f"grpc_echo_rate_to_payment_rate_{width}" for width in WIDTHS),
    }
    assert all(math.isfinite(number) and number > 0 for number in numbers(figures["ratios"]))


def test_the_surroundings_of_the_figures_are_recorded(figures: dict[str, Any]) -> None:
    assert {"python", "machine", "system", "cores", "load_before", "file_system"} <= set(figures["surroundings"])

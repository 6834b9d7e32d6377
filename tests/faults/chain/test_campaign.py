"""A short part of the campaign (make faults-chain): whatever goes wrong, nobody honest loses a wei or is stuck."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from plugins.chain_ethereum.tests.chain_backend.conftest import anvil_executable
from tests.faults.chain.story import FAULTS, MOMENTS, Plan

CAMPAIGN = Path(__file__).parent / "campaign.py"
RUNS, SEED = 40, 376
TIMEOUT = 240.0


def played(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What the campaign says."""
    command = [sys.executable, str(CAMPAIGN), *arguments]
    surroundings = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=surroundings)


@pytest.mark.anvil
@pytest.mark.slow
def test_honest_people_lose_nothing_and_no_channel_is_stuck() -> None:
    if anvil_executable() is None:
        pytest.skip("no anvil: set ANVIL or run make tools")
    campaign = played("--runs", str(RUNS), "--seed", str(SEED))
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert f"{RUNS} runs" in campaign.stdout


def test_the_short_part_has_every_fault_and_every_moment() -> None:
    plans = [Plan.drawn(seed) for seed in range(SEED, SEED + RUNS)]
    assert {plan.fault for plan in plans} == set(FAULTS)
    assert {plan.moment for plan in plans} == set(MOMENTS)
    assert {plan.beside for plan in plans} >= {"", "spike", "reorg", "outage", "crash"}


def test_a_seed_always_gives_the_same_plan_and_run_i_has_the_seed_s_plus_i() -> None:
    lines = played("--runs", "3", "--seed", "70", "--plan").stdout.splitlines()
    assert lines == ["RUNS=3 SEED=70", *(f"{seed}: {Plan.drawn(seed)}" for seed in (70, 71, 72))]


def test_without_a_seed_the_one_that_was_chosen_is_printed() -> None:
    first, plan = played("--runs", "1", "--plan").stdout.splitlines()
    seed = first.partition("SEED=")[2]
    assert plan.startswith(f"{seed}: ")

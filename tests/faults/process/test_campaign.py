"""A short part of the campaign (make faults): wherever a node is killed, no payment, version or wei is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plugins.chain_ethereum.tests.chain_backend.conftest import anvil_executable
from tests.faults.process.boundaries import ELSEWHERE, ONE_SIDED, SCENES, TARGETS, kinds, required, unmentioned
from tests.faults.process.launcher import Trap
from tests.faults.process.story import Plan

CAMPAIGN = Path(__file__).parent / "campaign.py"
RUNS, SEED = 32, 7
STEP = -(-len(TARGETS) // RUNS)
TIMEOUT = 240.0


def played(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the campaign says."""
    command = [sys.executable, str(CAMPAIGN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.anvil
@pytest.mark.slow
def test_whoever_is_killed_comes_back_with_every_payment_and_every_wei(tmp_path: Path) -> None:
    if anvil_executable() is None:
        pytest.skip("no anvil: set ANVIL or run make tools")
    campaign = played("--runs", str(RUNS), "--seed", str(SEED), "--step", str(STEP), "--keep", str(tmp_path))
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert f"{RUNS} runs" in campaign.stdout


def test_the_short_part_has_every_scene() -> None:
    plans = [Plan.drawn(SEED + number * STEP) for number in range(RUNS)]
    assert {plan.target.scene for plan in plans} == set(SCENES)
    assert {plan.victim for plan in plans} == {0, 1}
    assert any(plan.both for plan in plans) and any(plan.again for plan in plans)


def test_every_kind_of_effect_is_a_place_to_die_on_both_sides_or_it_is_said_why_not() -> None:
    assert unmentioned() == ()
    assert set(ONE_SIDED) | set(ELSEWHERE) <= set(kinds())
    labels = {label for label, _, _ in required()}
    assert labels == set(kinds()) - set(ELSEWHERE)
    assert len(required()) == 2 * (2 * len(labels) - len(ONE_SIDED))


def test_a_kind_that_no_scene_mentions_fails_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(each for each in TARGETS if each.label != "Send.Update")
    monkeypatch.setattr("tests.faults.process.boundaries.TARGETS", others)
    assert unmentioned() == ("Send.Update",)


def test_as_many_runs_as_there_are_places_have_every_place() -> None:
    seeds = range(1000, 1000 + len(TARGETS))
    assert {Plan.drawn(seed).target for seed in seeds} == set(TARGETS)


def test_a_seed_always_gives_the_same_plan_and_run_i_has_the_seed_s_plus_i() -> None:
    lines = played("--runs", "3", "--seed", "70", "--plan").stdout.splitlines()
    assert lines == ["RUNS=3 SEED=70", *(f"{seed}: {Plan.drawn(seed)}" for seed in (70, 71, 72))]


def test_without_a_seed_the_one_that_was_chosen_is_printed() -> None:
    first, plan = played("--runs", "1", "--plan").stdout.splitlines()
    seed = first.partition("SEED=")[2]
    assert plan.startswith(f"{seed}: ")


def test_a_trap_is_sprung_once_at_the_named_time_it_is_reached(tmp_path: Path) -> None:
    ours, theirs = Trap(tmp_path / "trap"), Trap(tmp_path / "trap")
    assert not theirs.is_sprung_by(("Send",), "before")
    ours.set("Send", "before", 2)
    sprung = [
        theirs.is_sprung_by(("Persist",), "before"),
        theirs.is_sprung_by(("Send",), "after"),
        theirs.is_sprung_by(("Send",), "before"),
        theirs.is_sprung_by(("Send",), "before"),
        theirs.is_sprung_by(("Send",), "before"),
    ]
    assert sprung == [False, False, False, True, False]
    ours.clear()
    assert not theirs.is_sprung_by(("Send",), "before")

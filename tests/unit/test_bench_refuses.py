"""Figures of payments that are not durable would mean nothing, so none are given."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import harness
from perun_core.cli.generate import generate
from perun_store_sqlite.store import SqliteStore


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Demo configuration, as the benchmark's nodes have it."""
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(generate).exit_code == 0
    return tmp_path


async def test_the_benchmark_accepts_stores_that_wait_for_the_disk(world: Path) -> None:
    await harness.check_durable(world)


async def test_the_benchmark_refuses_a_store_that_does_not_wait_for_the_disk(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteStore, "pragma_synchronous", lambda store: 1)
    with pytest.raises(harness.Refused, match="PRAGMA synchronous of alice's store is 1"):
        await harness.check_durable(world)


async def test_the_benchmark_refuses_a_store_that_does_not_tell(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SqliteStore, "pragma_synchronous")
    with pytest.raises(harness.Refused, match="does not tell whether its commits are durable"):
        await harness.check_durable(world)

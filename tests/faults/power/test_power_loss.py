"""A short part of the campaign (make faults-power), and proof that it would notice a store that forgets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from perun_core.ports.store import Store, StoreContext
from perun_core.testing.power import missing_tool
from perun_core.testing.store import StoreConformance
from perun_store_sqlite.store import SqliteConfig, SqliteStore, open_sqlite
from tests.faults.power.campaign import SqliteOnThisDisk, recorded

POINTS = 70
"""At how many points power is lost here; the campaign does it at all of them."""


@asynccontextmanager
async def open_without_syncing(path: Path) -> AsyncIterator[Store]:
    async with open_sqlite(SqliteConfig(), StoreContext(path)) as store:
        assert isinstance(store, SqliteStore)
        store._db.execute("PRAGMA synchronous = OFF")
        yield store


class Forgetful(StoreConformance):
    """Acknowledges what the disk has not."""

    def open_store(self, path: Path) -> AbstractAsyncContextManager[Store]:
        return open_without_syncing(path)


@pytest.fixture(autouse=True)
def _strace() -> None:
    if problem := missing_tool():
        pytest.skip(problem)


@pytest.mark.slow
async def test_what_was_acknowledged_is_there_after_power_was_lost(tmp_path: Path) -> None:
    recording = await asyncio.to_thread(recorded, SqliteOnThisDisk, tmp_path)
    every = [cut for cut in recording.cuts() if recording.changes_at(cut)]
    chosen = sorted(random.Random(5).sample(every, POINTS))
    tried = await SqliteOnThisDisk().expect_power_cuts_survived(recording, chosen, tmp_path / "rebuilt", seed=5)
    assert tried == 3 * POINTS


@pytest.mark.slow
async def test_a_store_that_acknowledges_too_early_is_found_out(tmp_path: Path) -> None:
    from perun_core.testing.store import record_writer

    recording = await asyncio.to_thread(record_writer, Forgetful, tmp_path)
    middle = list(recording.cuts())[len(recording.events) // 2 : len(recording.events) - 60 : 20]
    with pytest.raises(AssertionError, match=r"lost|in part"):
        await Forgetful().expect_power_cuts_survived(recording, middle, tmp_path / "rebuilt")

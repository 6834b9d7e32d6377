#!/usr/bin/env python3
"""Every point at which power can be lost in a run of the SQLite store: make faults-power SEED=s.

A process opens, commits from several tasks, closes and opens again, under strace. For every point between two of its
calls the files are rebuilt three times, with nothing, some and all of what was not synced, and opened: everything that
was acknowledged must be there, no batch in part, and nobody may suspect a rollback. Exit code 1 when that fails.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))

from perun_core.ports.store import Store, StoreContext
from perun_core.testing.power import Recording, SyncDirectory, SyncFile, missing_tool
from perun_core.testing.store import StoreConformance, record_writer
from perun_store_sqlite.store import SqliteConfig, open_sqlite


class SqliteOnThisDisk(StoreConformance):
    """The store with a log so short that it is moved into the database several times during the run."""

    def open_store(self, path: Path) -> AbstractAsyncContextManager[Store]:
        return open_sqlite(SqliteConfig(wal_autocheckpoint=30), StoreContext(path))


def recorded(conformance: type[StoreConformance], scratch: Path) -> Recording:
    """A run of the store. Raises: AssertionError when the recording cannot be what a durable store does."""
    recording = record_writer(conformance, scratch)
    syncs = sum(isinstance(event, SyncFile | SyncDirectory) for event in recording.events)
    assert recording.output_before(len(recording.events)).count(b"\n") > 50, "the run did not acknowledge its commits"
    assert syncs > 50, "the run did not sync its files"
    return recording


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0, help="decides what of the unsynced is lost")
    arguments.add_argument("--every", type=int, default=1, help="try every Nth point only")
    given = arguments.parse_args()
    if problem := missing_tool():
        sys.exit(f"cannot record: {problem}")
    with tempfile.TemporaryDirectory(prefix="power-") as folder:
        scratch = Path(folder)
        recording = recorded(SqliteOnThisDisk, scratch)
        cuts = [cut for cut in recording.cuts() if recording.changes_at(cut)][:: given.every]
        print(f"{len(recording.events)} writes, syncs and renames; power is lost at {len(cuts)} points")
        tried = asyncio.run(
            SqliteOnThisDisk().expect_power_cuts_survived(recording, cuts, scratch / "rebuilt", seed=given.seed)
        )
        print(f"{tried} losses of power survived (seed {given.seed})")


if __name__ == "__main__":
    main()

"""The benchmark of restoring measures what it says: records as a node writes them, and a verdict that can be bad."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from bench.restore import LIMIT, VERSION, Case, Result, fill, table, verdict
from perun_core.apps.registry import NO_APPS
from perun_core.channel import Phase
from perun_core.ports.store import StoreContext, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import RecordCodec
from perun_core.values import Address
from perun_store_sqlite.store import SqliteConfig, open_sqlite

HOLDER, ADJUDICATOR = Address(b"\xe0" * 20), Address(b"\xad" * 20)


async def test_the_database_has_open_and_closed_channels_with_all_their_marks(tmp_path: Path) -> None:
    await fill(tmp_path / "ns", Case(3, 5), holder=HOLDER, adjudicator=ADJUDICATOR)
    codec = RecordCodec(PROFILE, NO_APPS)
    async with open_sqlite(SqliteConfig(), StoreContext(tmp_path / "ns")) as store:
        records = [codec.decode(key, value) for key, value in await store.scan(Table.CHANNELS)]
        archived = [codec.decode(key, value) for key, value in await store.scan(Table.ARCHIVE)]
        assert len(await store.scan(Table.USED)) == len(await store.scan(Table.SIGNED)) == 8
    assert [record.phase for record in records] == [Phase.ACTING] * 3
    assert [record.phase for record in archived] == [Phase.WITHDRAWN] * 5
    for record in records:
        state = record.current.state
        assert state is not None and state.version == VERSION
        for signer, sig in zip(record.params.parts, record.current.sigs, strict=True):
            assert sig is not None
            PROFILE.verify(PROFILE.state_hash(state), sig, signer)


def result(case: Case, *, seconds: float = 1.0, cpu: float = 1.0, grown: float = 10.0) -> Result:
    return Result(case, seconds, cpu, 3.0, grown, 5.0)


@pytest.mark.parametrize(
    ("largest", "problem"),
    [
        (result(Case(1000, 9000)), ""),
        (result(Case(1000, 9000), seconds=LIMIT + 1), "more than"),
        (result(Case(1000, 9000), cpu=3.0), "s of CPU"),
        (result(Case(1000, 9000), grown=40.0), "MiB"),
    ],
)
def test_slow_opening_and_costly_history_are_found(largest: Result, problem: str) -> None:
    results = [result(Case(200, 0), grown=4.0), result(Case(1000, 0)), largest]
    found = verdict(results)
    assert (problem in found[0]) if problem else found == []
    assert "each further open channel" in table(results)

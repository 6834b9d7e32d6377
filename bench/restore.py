#!/usr/bin/env python3
"""How long a session with many channels takes to open, and how much memory a channel takes (make bench).

Databases are written through the store plugin with records as a node writes them, signed by both demonstration keys:
some channels open, many closed long ago. Then a node, a process of its own on a chain of its own, is told to open the
session. Every case has a fresh node. Exit code 1 when the largest case takes longer than `LIMIT`, or when closed
channels cost time or memory that matters.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import harness
from harness import CHAIN_ID, MARKER, NODE, ROOT, Process, Refused

sys.path.append(str(ROOT))
from perun_core.apps.registry import AppRegistry
from perun_core.channel import Allocation, Asset, Params, Phase, State, Transaction
from perun_core.cli.generate import USERS
from perun_core.config import load_node
from perun_core.keys import Secret, sign_message
from perun_core.ports.store import Op, PutNew, StoreContext, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord, RecordCodec, guard_key, sequence_mark
from perun_core.values import Address
from perun_store_sqlite.store import SqliteConfig, open_sqlite
from tests.integration.clients import Client

LIMIT: Final = 10.0
"""Seconds within which the largest case must be open (the bar of this project)."""
VERSION: Final = 25
"""Payments made in every channel."""
BATCH: Final = 200
QUIET: Final = 0.03
"""CPU seconds per second below which the node has nothing left to do."""


@dataclass(frozen=True)
class Case:
    """What is in the database."""

    open: int
    closed: int


@dataclass(frozen=True)
class Result:
    """What opening it took."""

    case: Case
    seconds: float
    """Until the node answered."""
    cpu: float
    """CPU seconds of the node until then."""
    quiet: float
    """Seconds until the node had nothing left to do, disputes of all channels looked up."""
    grown: float
    """MiB of resident memory more than before, once it was quiet."""
    stored: float
    """MiB of the database."""

    def as_json(self) -> dict[str, object]:
        return {
            "open": self.case.open,
            "closed": self.case.closed,
            "open_s": round(self.seconds, 3),
            "cpu_s": round(self.cpu, 3),
            "quiet_s": round(self.quiet, 3),
            "memory_mib": round(self.grown, 2),
            "database_mib": round(self.stored, 2),
        }


async def fill(database: Path, case: Case, *, holder: Address, adjudicator: Address) -> None:
    """Write the channels of `case` between alice, whose database it is, and bob."""
    alice, bob = USERS[0].off_chain, USERS[1].off_chain
    keys = [Secret.from_hex(key.private_key) for key in (alice, bob)]
    parts = (Address.parse(alice.address), Address.parse(bob.address))
    codec = RecordCodec(PROFILE, AppRegistry())
    async with open_sqlite(SqliteConfig(), StoreContext(database)) as store:
        batch: list[Op] = []
        for number in range(1, case.open + case.closed + 1):
            closed = number <= case.closed
            params = Params(600, parts, None, number, True, False)
            channel_id = PROFILE.channel_id(params)
            allocation = Allocation((Asset(holder),), ((10**18 + number, 10**18),))
            state = State(channel_id, VERSION, allocation, is_final=closed)
            digest = PROFILE.state_hash(state)
            record = ChannelRecord(
                channel_id=channel_id,
                sequence=number,
                params=params,
                own_index=0,
                peer=parts[1],
                chain_id=CHAIN_ID,
                adjudicator=adjudicator,
                phase=Phase.WITHDRAWN if closed else Phase.ACTING,
                current=Transaction(state, tuple(sign_message(key, digest) for key in keys)),
            )
            batch += codec.operations(record, claim=True, archive=closed)
            batch.append(PutNew(Table.SIGNED, guard_key(channel_id, VERSION, 0), bytes(digest)))
            if number % BATCH == 0 or number == case.open + case.closed:
                await store.commit([*batch, sequence_mark(number)])
                batch.clear()


async def measure(directory: Path, case: Case) -> Result:
    """Open a session with the channels of `case` in a fresh node."""
    node = load_node(directory / "node.yaml", {}, {})
    name = f"database-{case.open}-{case.closed}"
    await fill(directory / "alice" / name, case, holder=node.asseteth_address(), adjudicator=node.adjudicator_address())
    stored = (directory / "alice" / name / "store.db").stat().st_size / 2**20
    text = (directory / "alice/session.yaml").read_text(encoding="utf-8")
    session = directory / "alice" / f"{name}.yaml"
    session.write_text(re.sub(r"^databasedir: .*$", f"databasedir: alice/{name}", text, flags=re.MULTILINE), "utf-8")
    command = (NODE, "run", "--grpcport", harness.free_port())
    async with harness.process(command, cwd=directory, marker=MARKER) as process, Client(process.port) as client:
        await client.time()
        before, cpu, started = process.rss_mib, process.cpu_seconds, time.perf_counter()
        _, restored = await client.open_session(str(session))
        seconds = time.perf_counter() - started
        cpu = process.cpu_seconds - cpu
        await until_quiet(process)
        quiet = time.perf_counter() - started
        grown = process.rss_mib - before
    if len(restored) != case.open:
        raise Refused(f"{len(restored)} channels were restored, not {case.open}")
    return Result(case, seconds, cpu, quiet, grown, stored)


async def until_quiet(process: Process) -> None:
    """Wait until the node uses next to no CPU. Raises: Refused when it does not end within two minutes."""
    for _ in range(120):
        used = process.cpu_seconds
        await asyncio.sleep(1)
        if process.cpu_seconds - used < QUIET:
            return
    raise Refused("the node never came to rest")


async def run(cases: list[Case], chain: str) -> list[Result]:
    """Every case, one after the other."""
    with tempfile.TemporaryDirectory(prefix="bench-restore-") as folder:
        directory = Path(folder)
        async with harness.two_nodes(directory, chain=chain):
            return [await measure(directory, case) for case in cases]


def verdict(results: list[Result]) -> list[str]:
    """What is worse than it may be, in words."""
    problems = []
    by_case = {result.case: result for result in results}
    largest = max(results, key=lambda result: result.case.open + result.case.closed)
    if largest.seconds > LIMIT:
        problems.append(f"opening took {largest.seconds:.1f} s, more than {LIMIT:.0f} s")
    for case, result in by_case.items():
        without = by_case.get(Case(case.open, 0))
        if case.closed and without is not None:
            if result.cpu > 1.5 * without.cpu + 0.3:
                problems.append(f"{case.closed} closed channels cost {result.cpu - without.cpu:.2f} s of CPU")
            if result.grown > 1.5 * without.grown + 5:
                problems.append(f"{case.closed} closed channels cost {result.grown - without.grown:.1f} MiB")
    return problems


def table(results: list[Result]) -> str:
    """For people."""
    lines = ["  open  closed   opened in   CPU      at rest    memory    per open channel   database"]
    for result in results:
        each = 1024 * result.grown / result.case.open
        lines.append(
            f"{result.case.open:6} {result.case.closed:7} {result.seconds:9.2f} s {result.cpu:6.2f} s "
            f"{result.quiet:8.1f} s {result.grown:6.1f} MiB {each:13.1f} KiB {result.stored:8.1f} MiB"
        )
    few, many = results[0], max(results, key=lambda result: result.case.open)
    if many.case.open > few.case.open:
        growth = 2**20 * (many.grown - few.grown) / (many.case.open - few.case.open)
        lines.append(f"each further open channel: {growth:,.0f} bytes")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="write the figures to this file")
    arguments.add_argument("--quick", action="store_true", help="a tenth of the channels")
    arguments.add_argument("--chain", choices=("anvil", "embedded"), default="anvil")
    given = arguments.parse_args()
    scale = 10 if given.quick else 1
    sizes = ((200, 0), (200, 9000), (1000, 0), (1000, 9000))
    cases = [Case(open // scale, closed // scale) for open, closed in sizes]
    try:
        results = asyncio.run(run(cases, given.chain))
    except Refused as error:
        sys.exit(f"refused: {error}")
    print(table(results))
    problems = verdict(results)
    if given.json:
        harness.write_json(given.json, {"results": [result.as_json() for result in results], "problems": problems})
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Many runs of `story`, several at once: make faults RUNS=n SEED=s. Run i has the seed s + i.

Every failing run is printed with its seed, and what its nodes did and said is kept; RUNS=1 SEED=that plays it again.
Exit code 1 when a run failed, or when a full campaign did not kill at every kind of effect.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[3]))

from tests.faults.chain.ground import Ground, fresh_ground
from tests.faults.process.boundaries import TARGETS, required, unmentioned
from tests.faults.process.people import Origin, Player
from tests.faults.process.story import Outcome, Plan, play
from tests.integration.world import PORTS, World, ports

AT_ONCE: Final = 4
"""Runs at the same time; each has a chain and two nodes of its own."""
PURSE: Final = 10_000 * 10**18
RESPONSE_TIMEOUT: Final = "1s"
FULL: Final = 2 * len(TARGETS)
"""Runs from which on every kind of effect must have been hit."""


@contextlib.asynccontextmanager
async def company(
    home: Path, ground: Ground, origin: Origin, free_ports: Iterator[int]
) -> AsyncIterator[tuple[Player, Player]]:
    """alice and bob, with configured nodes that do not run yet."""
    contracts = ground.contracts
    addresses = {"adjudicator": contracts.adjudicator, "eth": contracts.eth, "token": "", "erc20": ""}
    world = World("anvil", home, ground.url, ground.http, addresses, free_ports=free_ports)
    people = world.friends("alice", "bob", response_timeout=RESPONSE_TIMEOUT)
    players = []
    for person in people:
        await ground.give(person.on_chain, PURSE)
        node = world.node(f"{person.alias}-node", asseterc20s={}, loglevel="info", onchaintxtimeout="10s")
        person.configure(onchaintxtimeout="10s")
        players.append(Player(person, node, origin, home))
    try:
        yield players[0], players[1]
    finally:
        for player in players:
            if player.is_alive:
                await player.kill()
            else:
                await player.leave()


def untaken_ports() -> Iterator[int]:
    """Ports that are nobody's, even while the process that uses one is dead."""
    taken: set[int] = set()
    for port in ports():
        if len(taken) == PORTS:  # whoever had the first ones is long gone
            taken.clear()
        if port not in taken:
            taken.add(port)
            yield port


async def run(seeds: Sequence[int], home: Path, *, at_once: int, tell: Callable[[Outcome], None]) -> None:
    """Play the runs of `seeds`, `at_once` of them at the same time."""
    todo, free_ports = iter(seeds), untaken_ports()

    async def lane(number: int, origin: Origin) -> None:
        for lap, seed in enumerate(todo):
            async with contextlib.AsyncExitStack() as stack:
                folder = home / f"{number}-{lap}"
                folder.mkdir()
                ground = await stack.enter_async_context(fresh_ground())
                players = await stack.enter_async_context(company(folder, ground, origin, free_ports))
                ticking = asyncio.ensure_future(ground.tick())
                try:
                    outcome = await play(seed, ground, players)
                    tell(outcome)
                    while not outcome.problems:  # what a failed run leaves must not disturb the next one
                        if (seed := next(todo, -1)) < 0:
                            return
                        outcome = await play(seed, ground, players)
                        tell(outcome)
                finally:
                    ticking.cancel()
                    await asyncio.gather(ticking, return_exceptions=True)

    async with Origin.running() as origin, asyncio.TaskGroup() as lanes:
        for number in range(min(at_once, len(seeds))):
            lanes.create_task(lane(number, origin))


class Report:
    """What came of all runs."""

    def __init__(self, *, verbose: bool, keep: Path) -> None:
        self.outcomes: list[Outcome] = []
        self._verbose = verbose
        self._keep = keep
        self._begun = time.monotonic()

    @property
    def failed(self) -> list[Outcome]:
        """Runs with problems, by seed."""
        return sorted((each for each in self.outcomes if each.problems), key=lambda each: each.plan.seed)

    @property
    def hit(self) -> Counter[tuple[str, str, str]]:
        """(label, moment, role) → how often a process died there."""
        return Counter(place for outcome in self.outcomes for place in outcome.hit)

    @property
    def missed(self) -> list[tuple[str, str, str]]:
        """Places of effects where nobody died."""
        return sorted(required() - set(self.hit))

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def tell(self, outcome: Outcome) -> None:
        """Note an outcome; print failures at once, and how far we are."""
        self.outcomes.append(outcome)
        if outcome.problems or self._verbose:
            word = "FAILED" if outcome.problems else "ok"
            died = "" if outcome.hit else " (nobody died)"
            print(f"{word} seed {outcome.plan.seed}: {outcome.plan}: {outcome.ended}{died} ({outcome.seconds:.1f} s)")
            for line in outcome.problems:
                print(f"    {line}")
        if outcome.evidence:
            self._keep.mkdir(parents=True, exist_ok=True)
            (self._keep / f"{outcome.plan.seed}.txt").write_text(f"{outcome.plan}\n{outcome.evidence}\n")
        if len(self.outcomes) % 50 == 0:
            print(f"{len(self.outcomes)} runs, {len(self.failed)} failed, {self.elapsed:.0f} s")
        sys.stdout.flush()

    def summary(self) -> str:
        """The figures."""
        outcomes, failed = self.outcomes, self.failed
        places: dict[str, Counter[str]] = {}
        for (label, moment, role), count in self.hit.items():
            places.setdefault(label, Counter())[f"{moment}/{role}"] += count
        endings = Counter(each.ended for each in outcomes)
        lines = [
            f"{len(outcomes)} runs in {self.elapsed:.0f} s, {self.elapsed / max(len(outcomes), 1):.2f} s per run",
            "deaths: " + str(sum(self.hit.values())),
            *(f"    {label}: {_counted(places[label])}" for label in sorted(places)),
            f"channels in the end: {_counted(endings)}",
            f"failed runs: {len(failed)}",
            *(f"    SEED={each.plan.seed} RUNS=1   {each.plan}: {each.problems[0]}" for each in failed),
        ]
        return "\n".join(lines)


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name or 'not known'} {count}" for name, count in sorted(counter.items()))


def verdict(report: Report, runs: int) -> list[str]:
    """Why the campaign as a whole fails; empty when it does not."""
    reasons = [f"{len(report.failed)} runs failed"] if report.failed else []
    if unmentioned():
        reasons.append("no scene kills at: " + ", ".join(unmentioned()))
    if runs >= FULL and report.missed:
        missed = ", ".join(f"{moment} {label} ({role})" for label, moment, role in report.missed)
        reasons.append(f"nobody died {missed}")
    return reasons


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None, help="seed of the first run; by default any")
    parser.add_argument("--step", type=int, default=1, help="between the seeds of two runs")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="runs at the same time")
    parser.add_argument("--keep", type=Path, default=Path("build/faults"), help="where evidence of failures goes")
    parser.add_argument("--only", default="", help="of the runs those whose plan has this text")
    parser.add_argument("--plan", action="store_true", help="print what would happen, and stop")
    parser.add_argument("--reached", action="store_true", help="print how often places were reached, too")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    print(f"RUNS={options.runs} SEED={seed}", flush=True)
    numbers = range(seed, seed + options.runs * options.step, options.step)
    seeds = [each for each in numbers if options.only in str(Plan.drawn(each))]
    if options.plan:
        print("\n".join(f"{each}: {Plan.drawn(each)}" for each in seeds))
        return 0
    report = Report(verbose=len(seeds) <= 20, keep=options.keep)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        asyncio.run(run(seeds, Path(folder), at_once=options.at_once, tell=report.tell))
    print(report.summary())
    if options.reached:
        for outcome in report.outcomes:
            counts = {f"{role} {label}": n for (role, label), n in sorted(outcome.reached.items())}
            print(outcome.plan.seed, outcome.plan.target.scene, json.dumps(counts))
    reasons = verdict(report, len(seeds))
    for reason in reasons:
        print(f"failed: {reason}")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())

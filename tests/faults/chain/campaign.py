#!/usr/bin/env python3
"""Many runs of `story`, several at once: make faults-chain RUNS=n SEED=s. Run i has the seed s + i.

Every failing run is printed with its seed; RUNS=1 SEED=that plays it again alone, with the logs of its nodes.
Exit code 1 when a run failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import queue
import secrets
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parents[3]))

from tests.faults.chain.ground import fresh_ground
from tests.faults.chain.players import Company
from tests.faults.chain.story import Outcome, Plan, play
from tests.integration.world import ports

AT_ONCE: Final = 5
"""Runs at the same time in one process; each has a chain of its own."""
PROCESSES: Final = 2
PATIENCE: Final = 300.0


async def run(seeds: Sequence[int], home: Path, *, at_once: int, tell: Callable[[Outcome], None]) -> None:
    """Play the runs of `seeds`, `at_once` of them at the same time."""
    company, todo, free = Company(), iter(seeds), ports()
    taken: set[int] = set()

    async def lane() -> None:
        async with contextlib.AsyncExitStack() as stack:
            ground = await stack.enter_async_context(fresh_ground())
            for seed in todo:
                # What a failed run leaves must not disturb the next one; anvil goes back far only while it is young.
                if ground.used and (ground.spoilt or Plan.drawn(seed).has_reorg):
                    await stack.aclose()
                    ground = await stack.enter_async_context(fresh_ground())
                pair = next(free), next(free)
                while taken.intersection(pair):
                    pair = next(free), next(free)
                taken.update(pair)
                ground.used = True
                outcome = await play(seed, ground, company, home, pair)
                ground.spoilt = bool(outcome.problems)
                taken.difference_update(pair)
                tell(outcome)

    await asyncio.gather(*(lane() for _ in range(min(at_once, len(seeds)))))


ORDERLY_END = 15.0
"""Seconds a process gets to end its chains after its last run."""


def campaign(seeds: Sequence[int], *, processes: int, at_once: int, tell: Callable[[Outcome], None]) -> None:
    """Play the runs of `seeds` in several processes."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        home = Path(folder)
        if processes == 1 or len(seeds) == 1:
            asyncio.run(run(seeds, home, at_once=at_once, tell=tell))
            return
        context = multiprocessing.get_context("spawn")
        results: Any = context.Queue()
        slices = [seeds[number::processes] for number in range(processes)]
        workers = [
            context.Process(target=_work, args=(part, str(home / str(number)), at_once, results), daemon=False)
            for number, part in enumerate(slices)
            if part
        ]
        for worker in workers:
            worker.start()
        try:
            for outcome in _collected(results, workers, len(seeds)):
                tell(outcome)
        finally:
            for worker in workers:
                worker.join(ORDERLY_END)  # it ends its chains itself; whoever is cut short leaves them behind
                worker.terminate()
                worker.join()


def _collected(results: Any, workers: Sequence[Any], count: int) -> Iterator[Outcome]:
    for _ in range(count):
        waited = time.monotonic()
        while True:
            try:
                yield results.get(timeout=1)
                break
            except queue.Empty:
                if all(worker.exitcode is not None for worker in workers) or time.monotonic() - waited > PATIENCE:
                    raise RuntimeError("the processes of the campaign ended early") from None


def _work(seeds: Sequence[int], home: str, at_once: int, results: Any) -> None:
    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(run(seeds, Path(home), at_once=at_once, tell=results.put))
    except Exception:
        traceback.print_exc()
        raise


class Report:
    """What came of all runs."""

    def __init__(self, *, verbose: bool) -> None:
        self.outcomes: list[Outcome] = []
        self._verbose = verbose
        self._begun = time.monotonic()

    @property
    def failed(self) -> list[Outcome]:
        """Runs with problems, by seed."""
        return sorted((each for each in self.outcomes if each.problems), key=lambda each: each.plan.seed)

    def tell(self, outcome: Outcome) -> None:
        """Note an outcome; print failures at once, and how far we are."""
        self.outcomes.append(outcome)
        if outcome.problems or self._verbose:
            word = "FAILED" if outcome.problems else "ok"
            print(f"{word} seed {outcome.plan.seed}: {outcome.plan} ({outcome.seconds:.1f} s)", flush=True)
            for line in (*outcome.problems, *outcome.reverted, *outcome.notes):
                print(f"    {line}", flush=True)
        elif len(self.outcomes) % 50 == 0:
            print(f"{len(self.outcomes)} runs, {len(self.failed)} failed, {self.elapsed:.0f} s", flush=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def summary(self) -> str:
        """The figures."""
        outcomes, failed = self.outcomes, self.failed
        mix = Counter(each.plan.fault for each in outcomes)
        reverts = Counter(line.partition(": ")[2][:100] for each in outcomes for line in each.reverted)
        phases = Counter(f"{each.plan.fault} {each.struck}" for each in outcomes if each.struck)
        missed = sum("nothing to cheat with" in each.notes for each in outcomes)
        concluded = sum(each.version is not None for each in outcomes)
        lines = [
            f"{len(outcomes)} runs in {self.elapsed:.0f} s, {self.elapsed / max(len(outcomes), 1):.2f} s per run",
            "faults: " + _counted(mix),
            "phases of victim/other when it struck: " + _counted(phases),
            f"cheats that found nothing to cheat with: {missed}",
            f"channels that came to the chain: {concluded}",
            f"blocks {sum(each.blocks for each in outcomes)}, transactions {sum(each.sent for each in outcomes)}",
            f"transactions that failed and nobody could know: {_counted(reverts) or 'none'}",
            f"failed runs: {len(failed)}",
            *(f"    SEED={each.plan.seed} RUNS=1   {each.plan}: {each.problems[0]}" for each in failed),
        ]
        return "\n".join(lines)


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="seed of the first run; by default any")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="runs at the same time per process")
    parser.add_argument("--plan", action="store_true", help="print what would happen, and stop")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    print(f"RUNS={options.runs} SEED={seed}", flush=True)
    seeds = range(seed, seed + options.runs)
    if options.plan:
        print("\n".join(f"{each}: {Plan.drawn(each)}" for each in seeds))
        return 0
    if options.runs == 1:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    else:
        logging.disable(logging.CRITICAL)
    report = Report(verbose=options.runs <= 20)
    campaign(seeds, processes=options.processes, at_once=options.at_once, tell=report.tell)
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())

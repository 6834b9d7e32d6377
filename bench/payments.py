#!/usr/bin/env python3
"""Payments between two nodes on a chain, durable, beside the floors measured in the same run.

Two node processes, one client process with a connection for each of the two users, and the chain share the machine.
Alice pays, Bob's client accepts every payment as soon as it is notified. Prints a table; with --json FILE also writes
it. Exit code 2 when the figures would mean nothing: above all when a store does not wait for the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import harness
from harness import ROOT, Floors, Rate, Refused, Times, World

sys.path.append(str(ROOT))
from tests.integration.clients import Client, ClientError, Stream, Update, User

WIDTHS: Final = (1, 8, 32)
BALANCE: Final = "1"
AMOUNT: Final = "0.000000001"
CHALLENGE_SECONDS: Final = 600
"""Also how long deposits may take; nothing is disputed here."""
OPENING_SECONDS: Final = 180
"""How long opening all channels may take."""
AT_ONCE: Final = 16
"""Channels opened at the same time."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    serial: int
    seconds: float
    widths: tuple[int, ...]
    floor_count: int
    floor_seconds: float


FULL_PLAN: Final = Plan(serial=600, seconds=6.0, widths=WIDTHS, floor_count=1000, floor_seconds=2.0)
QUICK_PLAN: Final = Plan(serial=30, seconds=0.5, widths=WIDTHS, floor_count=50, floor_seconds=0.2)


class Payer:
    """Alice's side of one channel."""

    def __init__(self, user: User, channel: str, payee: str) -> None:
        self._user = user
        self._channel = channel
        self._payments = (("ETH", payee, AMOUNT),)

    async def pay(self) -> None:
        """One payment, until both sides agreed on it."""
        await self._user.pay(self._channel, self._payments)


class Acceptor:
    """Bob, who accepts whatever comes."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[str] = []

    def follow(self, channel: str, updates: Stream[Update]) -> None:
        """Accept every update of `channel` from now on."""
        self._start(self._follow(channel, updates))

    async def _follow(self, channel: str, updates: Stream[Update]) -> None:
        async for update in updates:
            # The next notification must not wait for the answer to this call.
            self._start(self._accept(channel, update.id))

    async def _accept(self, channel: str, update: str) -> None:
        try:
            await self._user.client.respond_update(self._user.session, channel, update, accept=True)
        except ClientError as error:
            self.failures.append(str(error))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End every task."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(frozen=True)
class Opened:
    """The channels, and how long they took to open."""

    payers: tuple[Payer, ...]
    seconds: float


async def open_channels(alice: User, bob: User, acceptor: Acceptor, *, count: int) -> Opened:
    """`count` channels in ETH proposed by alice, some at a time; bob listens on each. Raises: ClientError."""
    start = time.perf_counter()
    room = asyncio.Semaphore(AT_ONCE)
    proposals = await bob.client.proposals(bob.session)

    async def accept_proposals() -> list[str]:
        answers = [
            asyncio.ensure_future(
                bob.client.respond_proposal(bob.session, (await proposals.next(OPENING_SECONDS)).id, accept=True)
            )
            for _ in range(count)
        ]
        return [channel.id for channel in await asyncio.gather(*answers)]

    async def propose() -> str:
        async with room:
            return (await alice.propose("bob", {"ETH": (BALANCE, BALANCE)}, CHALLENGE_SECONDS)).id

    async with asyncio.timeout(OPENING_SECONDS):
        accepted, ids = await asyncio.gather(accept_proposals(), asyncio.gather(*(propose() for _ in range(count))))
    await bob.client.unsubscribe_proposals(bob.session)
    assert sorted(accepted) == sorted(ids)
    took = time.perf_counter() - start
    for channel in accepted:
        acceptor.follow(channel, await bob.client.updates(bob.session, channel))
    return Opened(tuple(Payer(alice, channel, "bob") for channel in accepted), took)


@dataclass(frozen=True)
class Concurrent:
    """Payments over several channels at once, and the CPU time of a payment by process, seconds."""

    rate: Rate
    cpu: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    serial: Times
    concurrent: Mapping[int, Concurrent]
    opened: Opened
    startup: tuple[float, float]
    rss_before: tuple[float, float]
    rss_after: tuple[float, float]
    floors: Floors
    surroundings: Mapping[str, object]

    def as_json(self) -> dict[str, object]:
        """For machines; times in ms unless the name says otherwise."""
        floors = self.floors
        ratios: dict[str, float] = {
            "payment_p50_to_floor": round(self.serial.p50 / floors.payment, 2),
            "payment_p50_to_grpc_echo": round(self.serial.p50 / floors.echo.p50, 2),
            "payment_p50_to_grpc_echo_paused": round(self.serial.p50 / floors.paused_echo.p50, 2),
            "payment_p50_to_sign": round(self.serial.p50 / floors.sign.p50, 1),
            "payment_p50_to_recover": round(self.serial.p50 / floors.recover.p50, 1),
            "payment_p50_to_sqlite_commit": round(self.serial.p50 / floors.commit.p50, 2),
        }
        for width, measured in self.concurrent.items():
            echo = floors.echo_rates[width].per_second
            ratios[f"grpc_echo_rate_to_payment_rate_{width}"] = round(echo / measured.rate.per_second, 2)
        return {
            "surroundings": dict(self.surroundings),
            "serial": self.serial.as_json(),
            "concurrent": {
                str(width): {
                    **measured.rate.as_json(),
                    "cpu_ms_per_payment": {name: round(1e3 * cpu, 3) for name, cpu in measured.cpu.items()},
                }
                for width, measured in self.concurrent.items()
            },
            "channels_opened": {"count": len(self.opened.payers), "seconds": round(self.opened.seconds, 2)},
            "startup_s": [round(each, 3) for each in self.startup],
            "rss_before_mib": [round(each, 1) for each in self.rss_before],
            "rss_after_mib": [round(each, 1) for each in self.rss_after],
            "floors": floors.as_json(),
            "ratios": ratios,
        }

    def lines(self) -> Iterable[str]:
        """For people."""
        floors, serial = self.floors, self.serial
        yield "  ".join(f"{name} {value}" for name, value in self.surroundings.items())
        yield ""
        yield f"{'':<34}{'p50 ms':>10}{'p99 ms':>10}{'payment / this':>16}"
        yield row("payment, serial", serial)
        yield row("floor: gRPC echo", floors.echo, serial)
        yield row("floor: gRPC echo after a pause", floors.paused_echo, serial)
        yield row("floor: sign", floors.sign, serial)
        yield row("floor: recover", floors.recover, serial)
        yield row("floor: durable SQLite commit", floors.commit, serial)
        parts = "floor: 2 echo, 2 sign, 2 rec, 3 com"
        yield f"{parts:<34}{1e3 * floors.payment:>9.3f}{'':>10}{serial.p50 / floors.payment:>16.1f}"
        yield ""
        names = list(next(iter(self.concurrent.values())).cpu)
        yield f"{'':<34}{'per s':>10}{'echoes/s':>10}{'ratio':>8}   CPU ms of one: {', '.join(names)}"
        for width, measured in self.concurrent.items():
            rate, echo = measured.rate.per_second, floors.echo_rates[width].per_second
            cpu = "  ".join(f"{1e3 * each:.2f}" for each in measured.cpu.values())
            label = f"payments over {width} channel{'s' if width > 1 else ''}"
            yield f"{label:<34}{rate:>10.0f}{echo:>10.0f}{echo / rate:>8.1f}   {cpu}"
        yield ""
        yield f"{len(self.opened.payers)} channels opened in {self.opened.seconds:.1f} s"
        for index, name in enumerate(("alice's node", "bob's node")):
            yield (
                f"{name}: started in {self.startup[index]:.2f} s, "
                f"{self.rss_before[index]:.0f} MiB before, {self.rss_after[index]:.0f} MiB after"
            )


def row(label: str, times: Times, payment: Times | None = None) -> str:
    """One row of times, with how often it fits into a payment."""
    ratio = "" if payment is None else f"{payment.p50 / times.p50:>16.1f}"
    return f"{label:<34}{1e3 * times.p50:>10.3f}{1e3 * times.p99:>10.3f}{ratio}"


async def measure(directory: Path, plan: Plan, *, chain: str) -> Results:
    """Everything, in a world that is built in `directory` and gone afterwards. Raises: Refused, ClientError."""
    about = harness.surroundings(directory)
    floors = await harness.measure_floors(
        directory, widths=plan.widths, count=plan.floor_count, seconds=plan.floor_seconds
    )
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(harness.two_nodes(directory, chain=chain))
        rss_before = world.nodes[0].rss_mib, world.nodes[1].rss_mib
        clients = [await stack.enter_async_context(Client(node.port)) for node in world.nodes]
        alice, bob = [
            await User.open(client, str(file)) for client, file in zip(clients, world.session_files, strict=True)
        ]
        acceptor = Acceptor(bob)
        stack.push_async_callback(acceptor.stop)
        opened = await open_channels(alice, bob, acceptor, count=max(plan.widths))
        first = opened.payers[0]
        await harness.timed_calls(first.pay, count=max(plan.serial // 10, 5))  # warm up
        serial = await harness.timed_calls(first.pay, count=plan.serial)
        concurrent = {width: await pay_at_once(world, opened.payers[:width], plan.seconds) for width in plan.widths}
        rss_after = world.nodes[0].rss_mib, world.nodes[1].rss_mib
        if acceptor.failures:
            raise Refused(f"{len(acceptor.failures)} payments could not be accepted, the first: {acceptor.failures[0]}")
        startup = world.nodes[0].startup, world.nodes[1].startup
    return Results(serial, concurrent, opened, startup, rss_before, rss_after, floors, about)


async def pay_at_once(world: World, payers: Iterable[Payer], seconds: float) -> Concurrent:
    """Payments on every channel, each channel serially and all concurrently."""
    before = cpu_times(world)
    rate = await harness.at_once([payer.pay for payer in payers], seconds=seconds)
    after = cpu_times(world)
    return Concurrent(rate, {name: (after[name] - before[name]) / rate.count for name in after})


def cpu_times(world: World) -> dict[str, float]:
    """CPU time spent so far, by process; both users' clients are this process."""
    alice, bob = world.nodes
    return {"alice's node": alice.cpu_seconds, "bob's node": bob.cpu_seconds, "clients": time.process_time()}


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Payments between two nodes, beside the floors of their parts.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="a short run that shows that it works, not how fast")
    parser.add_argument("--chain", choices=("anvil", "embedded"), default="anvil", help="chain to run on")
    arguments = parser.parse_args()
    scratch = ROOT / "build"  # not in the system's temporary directory, which may be in memory only
    scratch.mkdir(exist_ok=True)
    plan = QUICK_PLAN if arguments.quick else FULL_PLAN
    try:
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as directory,
            asyncio.Runner(loop_factory=harness.event_loop) as runner,
        ):
            results = runner.run(measure(Path(directory), plan, chain=arguments.chain))
    except Refused as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 2
    print("\n".join(results.lines()))
    if arguments.json:
        harness.write_json(arguments.json, results.as_json())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

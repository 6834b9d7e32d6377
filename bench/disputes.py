#!/usr/bin/env python3
"""Many channels of one node under dispute at once: how long, and what, it takes to get everybody's money back.

Alice and Bob open N channels through the API of their nodes and make one payment on each. Bob's node ends. Somebody
registers version 0 of all N channels from a copy of Bob's database, as fast as blocks can hold them. Alice's node must
refute every one before its deadline, conclude and withdraw; the chain's clock is moved on in between, everything else
is real. Prints how the cost of a channel changes with N; with --json FILE also writes it. Exit code 1 when a channel
was not resolved in time, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import harness
import psutil
from chainside import CallCounter, Town, records, shown, town, until
from harness import ROOT, Refused

from perun_chain_ethereum import abi
from perun_core.protocol.records import ChannelRecord
from perun_core.values import keccak256
from tests.integration.clients import Channel, Client, User

SIZES: Final = (50, 200, 500)
QUICK_SIZES: Final = (8, 16)
CHALLENGE_SECONDS: Final = 600
AT_ONCE: Final = 32
"""Channels opened, and payments made, at the same time."""
DEPOSIT: Final = "0.001"
AMOUNT: Final = "0.0004"
GWEI: Final = 10**9
REGISTER_GAS: Final = 150_000
LONGEST: Final = 300.0
"""Seconds until a step counts as failed."""
WITHDRAWN: Final = "0x" + keccak256(b"Withdrawn(bytes32,uint256,address)").hex()
CHANNEL_UPDATE: Final = "0x" + abi.CHANNEL_UPDATE.hex()


@dataclass(frozen=True)
class Step:
    """One half of the way: wall time, CPU time of alice's node, and its questions to the chain."""

    seconds: float
    cpu: float
    calls: Counter[str]

    def as_json(self, channels: int) -> dict[str, object]:
        return {
            "seconds": round(self.seconds, 2),
            "cpu_s": round(self.cpu, 2),
            "calls": dict(self.calls),
            "cpu_ms_per_channel": round(1e3 * self.cpu / channels, 2),
            "calls_per_channel": round(sum(self.calls.values()) / channels, 2),
        }


@dataclass(frozen=True)
class Round:
    """N channels, from the registration of outdated states to the last withdrawal."""

    channels: int
    opening_seconds: float
    refuting: Step
    collecting: Step
    """Concluding and withdrawing."""
    in_time: int
    """Channels whose newest state stood when the time was over."""
    least_margin: int
    """Seconds of block time between the last refutation that was needed and its deadline."""
    stuck: int
    """Channels that are not withdrawn and archived at the end."""
    lost_wei: int
    rss_before: float
    rss_peak: float

    @property
    def cpu_per_channel(self) -> float:
        return (self.refuting.cpu + self.collecting.cpu) / self.channels

    @property
    def calls_per_channel(self) -> float:
        return (self.refuting.calls + self.collecting.calls).total() / self.channels

    @property
    def is_resolved(self) -> bool:
        """Whether everybody got what is theirs, in time."""
        return self.in_time == self.channels and not self.stuck and not self.lost_wei

    def as_json(self) -> dict[str, object]:
        return {
            "channels": self.channels,
            "opening_s": round(self.opening_seconds, 2),
            "refuting": self.refuting.as_json(self.channels),
            "collecting": self.collecting.as_json(self.channels),
            "refuted_in_time": self.in_time,
            "least_margin_s": self.least_margin,
            "challenge_s": CHALLENGE_SECONDS,
            "stuck": self.stuck,
            "lost_wei": self.lost_wei,
            "rss_before_mib": round(self.rss_before, 1),
            "rss_peak_mib": round(self.rss_peak, 1),
        }


class Registry:
    """What the contracts' events say, read by the onlooker."""

    def __init__(self, place: Town) -> None:
        self._place = place
        self._from = 0

    def _logs(self, contract: str, topic: str) -> list[Any]:
        query = {"address": contract, "topics": [topic], "fromBlock": hex(self._from), "toBlock": "latest"}
        logs: list[Any] = self._place.world.rpc("eth_getLogs", query)
        return logs

    def restart(self) -> None:
        """Count from the latest block on."""
        self._from = self._place.head()[0]

    def updates(self) -> list[tuple[str, int, int, int, int]]:
        """(channel, version, phase, timeout, block) of every event of the adjudicator."""
        found = []
        for entry in self._logs(self._place.world.contracts["adjudicator"], CHANNEL_UPDATE):
            data = bytes.fromhex(entry["data"][2:])
            version, phase, timeout = (int.from_bytes(data[at : at + 32], "big") for at in (0, 32, 64))
            found.append((entry["topics"][1][2:], version, phase, timeout, int(entry["blockNumber"], 16)))
        return found

    def withdrawals(self) -> dict[str, int]:
        """Wei withdrawn by funding ID."""
        found: Counter[str] = Counter()
        for entry in self._logs(self._place.world.contracts["eth"], WITHDRAWN):
            found[entry["topics"][1][2:]] += int(entry["data"][2:66], 16)
        return dict(found)


class Meter:
    """Costs of alice's node between two moments."""

    def __init__(self, place: Town) -> None:
        self._process = psutil.Process(place.alice_node.running.process.pid)
        self._proxy = place.proxy
        self.peak = self.rss
        self.start()

    @property
    def rss(self) -> float:
        """Resident MiB."""
        return float(self._process.memory_info().rss) / 2**20

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def start(self) -> None:
        """Begin a step."""
        self._counter, self._began, self._cpu_before = CallCounter(self._proxy), time.perf_counter(), self._cpu()

    def look(self) -> None:
        """Remember the memory if it is the most so far."""
        self.peak = max(self.peak, self.rss)

    def stop(self) -> Step:
        """The step since `start`."""
        self.look()
        return Step(time.perf_counter() - self._began, self._cpu() - self._cpu_before, self._counter.methods)


async def measure(directory: Path, size: int) -> Round:
    """One round in a world of its own. Raises: Refused, ClientError."""
    async with AsyncExitStack() as stack:
        place = stack.enter_context(town(directory))
        alice_home, bob_home = place.people(ether=1000, response_timeout="60s")
        clients = [await stack.enter_async_context(Client(node.port)) for node in (place.alice_node, place.bob_node)]
        alice = await User.open(clients[0], str(alice_home.session_file))
        bob = await User.open(clients[1], str(bob_home.session_file))
        began = time.perf_counter()
        channels = await open_channels(alice, bob, size)
        opening_seconds = time.perf_counter() - began
        old = await records(bob_home.home / "database", directory / "copy")
        await pay_once(alice, bob, channels)
        assert place.bob_node.process is not None
        place.bob_node.process.stop()

        registry, meter = Registry(place), Meter(place)
        rss_before = meter.rss
        place.stop_blocks()
        raw = outdated_registrations(place, old)
        registry.restart()
        for each in raw:
            place.world.rpc("eth_sendRawTransaction", each)
        meter.start()
        place.go_on()

        def all_refuted() -> bool:
            meter.look()
            return len({channel for channel, version, *_ in registry.updates() if version}) == size

        await until(all_refuted, seconds=LONGEST, what=f"refuting {size} channels")
        refuting = meter.stop()
        margins = refutation_margins(place, registry)

        meter.start()
        place.world.rpc("evm_increaseTime", CHALLENGE_SECONDS)

        def all_withdrawn() -> bool:
            meter.look()
            return len(registry.withdrawals()) == size

        await until(all_withdrawn, seconds=LONGEST, what=f"withdrawing from {size} channels")
        collecting = meter.stop()
        withdrawn = sum(registry.withdrawals().values())
        due = int((float(DEPOSIT) - float(AMOUNT)) * 10**6) * 10**12 * size
        await asyncio.sleep(3)  # the node sees the last receipts
        place.alice_node.running.stop()
        left = await records(alice_home.home / "database", directory / "copy-after")
    return Round(
        channels=size,
        opening_seconds=opening_seconds,
        refuting=refuting,
        collecting=collecting,
        in_time=sum(margin > 0 for margin in margins),
        least_margin=min(margins, default=0),
        stuck=len(left),
        lost_wei=due - withdrawn,
        rss_before=rss_before,
        rss_peak=meter.peak,
    )


async def open_channels(alice: User, bob: User, count: int) -> list[str]:
    """`count` channels proposed by alice and accepted by bob, some at a time; their IDs. Raises: ClientError."""
    room = asyncio.Semaphore(AT_ONCE)
    proposals = await bob.client.proposals(bob.session)

    async def accept_all() -> list[Channel]:
        answers = []
        for _ in range(count):
            proposal = await proposals.next(LONGEST)
            answers.append(asyncio.ensure_future(bob.client.respond_proposal(bob.session, proposal.id, accept=True)))
        return await asyncio.gather(*answers)

    async def propose() -> str:
        async with room:
            return (await alice.propose("bob", {"ETH": (DEPOSIT, DEPOSIT)}, CHALLENGE_SECONDS)).id

    accepted, opened = await asyncio.gather(accept_all(), asyncio.gather(*(propose() for _ in range(count))))
    await bob.client.unsubscribe_proposals(bob.session)
    assert sorted(channel.id for channel in accepted) == sorted(opened)
    return opened


async def pay_once(alice: User, bob: User, channels: Iterable[str]) -> None:
    """A payment of alice to bob on every channel. Raises: ClientError."""
    room = asyncio.Semaphore(AT_ONCE)

    async def pay(channel: str) -> None:
        async with room:
            updates = await bob.client.updates(bob.session, channel)

            async def accept() -> None:
                update = await updates.next(LONGEST)
                await bob.client.respond_update(bob.session, channel, update.id, accept=True)

            await asyncio.gather(alice.pay(channel, [("ETH", "bob", AMOUNT)]), accept())
            await bob.client.unsubscribe_updates(bob.session, channel)

    await asyncio.gather(*map(pay, channels))


def outdated_registrations(place: Town, old: Iterable[ChannelRecord]) -> list[str]:
    """Signed transactions of a stranger that register the version each record holds."""
    from eth_account import Account

    world = place.world
    stranger = Account.create()
    world.rpc("anvil_setBalance", stranger.address, hex(1000 * harness.ETHER))
    raw = []
    for nonce, record in enumerate(old):
        assert record.current.state is not None and record.current.state.version == 0
        signed = stranger.sign_transaction(
            {
                "type": 2,
                "chainId": harness.CHAIN_ID,
                "nonce": nonce,
                "gas": REGISTER_GAS,
                "maxFeePerGas": 100 * GWEI,
                "maxPriorityFeePerGas": 2 * GWEI,
                "to": world.contracts["adjudicator"],
                "value": 0,
                "data": abi.call_register(record.params, record.current),
            }
        )
        raw.append("0x" + bytes(signed.raw_transaction).hex())
    return raw


def refutation_margins(place: Town, registry: Registry) -> list[int]:
    """For every channel the seconds of block time between its refutation and its deadline."""
    times: dict[int, int] = {}
    margins = []
    for _, version, _, timeout, block in registry.updates():
        if version == 0:
            continue
        if block not in times:
            times[block] = int(place.world.rpc("eth_getBlockByNumber", hex(block), False)["timestamp"], 16)
        margins.append(timeout - times[block])
    return margins


def lines(rounds: Iterable[Round], surroundings: Mapping[str, object]) -> Iterable[str]:
    """For people."""
    rounds = tuple(rounds)
    first = rounds[0]
    yield "  ".join(f"{name} {value}" for name, value in surroundings.items())
    yield ""
    yield (
        f"{'channels':>8}{'refuted in':>12}{'margin':>9}{'collected in':>14}{'CPU s':>8}{'CPU ms':>9}{'ratio':>7}"
        f"{'calls':>8}{'ratio':>7}{'MiB before':>12}{'peak':>7}{'stuck':>7}"
    )
    for each in rounds:
        yield (
            f"{each.channels:>8}{each.refuting.seconds:>10.1f} s{each.least_margin:>7} s"
            f"{each.collecting.seconds:>12.1f} s"
            f"{each.refuting.cpu + each.collecting.cpu:>8.2f}{1e3 * each.cpu_per_channel:>9.1f}"
            f"{each.cpu_per_channel / first.cpu_per_channel:>7.2f}{each.calls_per_channel:>8.1f}"
            f"{each.calls_per_channel / first.calls_per_channel:>7.2f}{each.rss_before:>12.0f}{each.rss_peak:>7.0f}"
            f"{each.stuck:>7}"
        )
    yield ""
    yield "CPU ms and calls are for one channel from registration to withdrawal; ratio: to those of the first row"
    last = rounds[-1]
    for name, step in (("refuting", last.refuting), ("collecting", last.collecting)):
        yield f"{name} {last.channels}: {shown(step.calls)}"


def as_json(rounds: Iterable[Round], surroundings: Mapping[str, object]) -> dict[str, object]:
    """For machines."""
    rounds = tuple(rounds)
    first = rounds[0]
    return {
        "surroundings": dict(surroundings),
        "rounds": [each.as_json() for each in rounds],
        "ratios": {
            str(each.channels): {
                "cpu_per_channel": round(each.cpu_per_channel / first.cpu_per_channel, 2),
                "calls_per_channel": round(each.calls_per_channel / first.calls_per_channel, 2),
            }
            for each in rounds
        },
    }


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Many channels of one node under dispute at once.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="a short run that shows that it works, not how fast")
    parser.add_argument("--sizes", metavar="N,N,…", help="numbers of channels instead of 50,200,500")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    if arguments.sizes:
        sizes = tuple(int(each) for each in arguments.sizes.split(","))
    scratch = ROOT / "build"
    scratch.mkdir(exist_ok=True)
    surroundings = harness.surroundings(scratch)
    rounds = []
    try:
        for size in sizes:
            with (
                tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as directory,
                asyncio.Runner(loop_factory=harness.event_loop) as runner,
            ):
                rounds.append(runner.run(measure(Path(directory), size)))
    except Refused as error:
        print(f"not measured: {error}")
        return 2
    print("\n".join(lines(rounds, surroundings)))
    if arguments.json:
        harness.write_json(arguments.json, as_json(rounds, surroundings))
    return 0 if all(each.is_resolved for each in rounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env python3
"""What a session asks the chain: per opening, payment, settlement and dispute, and per block while nothing happens.

Alice's node reaches its chain through a proxy that counts. Bob's node is at the other end of real channels; for the
idle node, copies of a channel under other IDs are written into Alice's database before her session is opened. Blocks
are made one by one where calls per block are counted. With --json FILE also writes the figures. Exit code 2 when
nothing could be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import harness
from chainside import CallCounter, Town, records, shown, town, until, write_records
from harness import ROOT, Refused
from msgspec.structs import replace

from perun_core.channel import Phase, Transaction
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord
from tests.integration.clients import Client, User

IDLE_SIZES: Final = (0, 10, 100, 1000)
QUICK_IDLE_SIZES: Final = (0, 10)
PAYMENTS: Final = 20
BLOCKS: Final = 10
"""Blocks made while nothing happens."""
REPEATS: Final = 3
"""Channels over which an operation is averaged."""
CHALLENGE_SECONDS: Final = 60
LONGEST: Final = 60.0
"""Seconds until a step counts as failed."""
KEEP_ALIVE: Final = "eth_getBlockByNumber"
"""Asked every half minute without a new block, in case the node forgot to tell of one."""


@dataclass(frozen=True)
class Operation:
    """Questions that one operation costs alice's node, beside the log query of every block."""

    name: str
    repeats: int
    calls: Counter[str]
    """Of all repeats together."""

    @property
    def each(self) -> float:
        """Questions of one."""
        return self.calls.total() / self.repeats

    def as_json(self) -> dict[str, object]:
        return {"repeats": self.repeats, "calls_each": round(self.each, 2), "calls": dict(self.calls)}


@dataclass(frozen=True)
class Idle:
    """Questions of a session with `channels` idle channels."""

    channels: int
    opening: Counter[str]
    """When the session is opened."""
    blocks: int
    per_block: Counter[str]
    """In all `blocks` together."""

    @property
    def each_block(self) -> float:
        """Questions per block."""
        return self.per_block.total() / self.blocks

    def as_json(self) -> dict[str, object]:
        return {
            "channels": self.channels,
            "opening": dict(self.opening),
            "calls_per_block": round(self.each_block, 2),
            "calls": dict(self.per_block),
            "blocks": self.blocks,
        }


async def operations(place: Town) -> tuple[Operation, ...]:
    """An opening, payments, a settlement with Bob and one without. Raises: Refused, ClientError."""
    async with AsyncExitStack() as stack:
        alice_home, bob_home = place.people(ether=100)
        alice, bob = [
            await User.open(await stack.enter_async_context(Client(node.port)), str(person.session_file))
            for node, person in ((place.alice_node, alice_home), (place.bob_node, bob_home))
        ]
        channels = []
        counter = CallCounter(place.proxy)
        for _ in range(REPEATS):
            channels.append(await open_channel(alice, bob))
        found = [Operation("open", REPEATS, counter.beside_blocks)]
        found.append(Operation("pay", PAYMENTS, await payment_calls(place, alice, bob, channels[0])))
        counter = CallCounter(place.proxy)
        for channel in channels[:-1]:
            await asyncio.gather(alice.close(channel), bob.answer_update(channel, accept=True))
        found.append(Operation("settle together", REPEATS - 1, counter.beside_blocks))
        await pay(alice, bob, channels[-1])
        await bob.leave(force=True)
        counter = CallCounter(place.proxy)
        closing = asyncio.ensure_future(alice.close(channels[-1]))
        await until(lambda: counter.methods["eth_sendRawTransaction"] > 0, seconds=LONGEST, what="registering")
        await asyncio.sleep(2)
        place.world.rpc("evm_increaseTime", CHALLENGE_SECONDS)
        await closing
        found.append(Operation("settle alone, by a dispute", 1, counter.beside_blocks))
        await alice.leave(force=True)
    return tuple(found)


async def payment_calls(place: Town, alice: User, bob: User, channel: str) -> Counter[str]:
    """Questions that come while payments are made and no block is. Raises: Refused, ClientError."""
    place.stop_blocks()
    try:
        await settled(place)
        counter = CallCounter(place.proxy)
        for _ in range(PAYMENTS):
            await pay(alice, bob, channel)
        calls = counter.methods
    finally:
        place.go_on()
    calls.pop(KEEP_ALIVE, None)
    return calls


async def settled(place: Town) -> None:
    """Until nothing was asked for a second. Raises: Refused."""
    counted = -1
    for _ in range(int(LONGEST)):
        now = len(place.proxy.seen)
        if now == counted:
            return
        counted = now
        await asyncio.sleep(1)
    raise Refused("the session does not come to rest")


async def idle(place: Town, template: ChannelRecord, size: int) -> Idle:
    """A session of somebody with `size` copies of `template`. Raises: Refused, ClientError."""
    alice_home, _ = place.people(ether=1)
    await write_records(alice_home.home / "database", copies(template, size))
    place.stop_blocks()
    try:
        async with Client(place.alice_node.port) as client:
            counter = CallCounter(place.proxy)
            alice = await User.open(client, str(alice_home.session_file))
            if len(alice.restored) != size:
                raise Refused(f"{len(alice.restored)} of {size} channels were restored")
            await settled(place)
            opening = counter.methods
            per_block = await block_calls(place, BLOCKS)
            await alice.leave(force=True)
    finally:
        place.go_on()
    return Idle(size, opening, BLOCKS, per_block)


async def block_calls(place: Town, blocks: int) -> Counter[str]:
    """Questions while `blocks` blocks are made one after the other, each seen before the next. Raises: Refused."""
    counter = CallCounter(place.proxy)
    for number in range(1, blocks + 1):
        place.world.rpc("evm_mine")

        def seen(number: int = number) -> bool:
            return counter.methods["eth_getLogs"] >= number

        await until(seen, seconds=LONGEST, what="a look at a new block")
    await settled(place)
    return counter.methods


def copies(template: ChannelRecord, count: int) -> Iterator[ChannelRecord]:
    """`template` under `count` other IDs, open, without valid signatures, as nobody will look at them."""
    state = template.current.state
    assert state is not None
    for number in range(1, count + 1):
        params = replace(template.params, nonce=template.params.nonce + number)
        channel_id = PROFILE.channel_id(params)
        yield replace(
            template,
            channel_id=channel_id,
            sequence=number,
            params=params,
            phase=Phase.ACTING,
            current=Transaction(replace(state, id=channel_id), template.current.sigs),
        )


async def open_channel(alice: User, bob: User) -> str:
    """A channel with ETH on both sides. Raises: ClientError."""
    opened, _ = await asyncio.gather(
        alice.propose("bob", {"ETH": ("0.01", "0.01")}, CHALLENGE_SECONDS), bob.answer_proposal(accept=True)
    )
    return opened.id


async def pay(alice: User, bob: User, channel: str) -> None:
    """A payment of alice. Raises: ClientError."""
    await asyncio.gather(alice.pay(channel, [("ETH", "bob", "0.00001")]), bob.answer_update(channel, accept=True))


async def template_of(place: Town, scratch: Path) -> ChannelRecord:
    """The record of a channel that was really opened. Raises: ClientError."""
    alice_home, bob_home = place.people(ether=10)
    async with Client(place.alice_node.port) as at_alice, Client(place.bob_node.port) as at_bob:
        alice = await User.open(at_alice, str(alice_home.session_file))
        bob = await User.open(at_bob, str(bob_home.session_file))
        await open_channel(alice, bob)
        await alice.leave(force=True)
        await bob.leave(force=True)
    (record,) = await records(alice_home.home / "database", scratch)
    return record


@dataclass(frozen=True)
class Results:
    """Everything that was counted."""

    operations: tuple[Operation, ...]
    idle: tuple[Idle, ...]

    def as_json(self, surroundings: Mapping[str, object]) -> dict[str, object]:
        """For machines."""
        return {
            "surroundings": dict(surroundings),
            "operations": {each.name: each.as_json() for each in self.operations},
            "idle": [each.as_json() for each in self.idle],
        }

    def lines(self) -> Iterable[str]:
        """For people."""
        yield f"{'one':<28}{'calls':>8}   of which (all repeats)"
        for operation in self.operations:
            yield f"{operation.name:<28}{operation.each:>8.1f}   {operation.repeats} x: {shown(operation.calls)}"
        yield ""
        yield f"{'idle channels':<28}{'per block':>10}   in {BLOCKS} blocks; when the session was opened"
        for each in self.idle:
            yield f"{each.channels:<28}{each.each_block:>10.1f}   {shown(each.per_block)}; {shown(each.opening)}"


async def measure(directory: Path, idle_sizes: Iterable[int]) -> Results:
    """Everything, in a world of its own. Raises: Refused, ClientError."""
    with town(directory) as place:
        counted = await operations(place)
        template = await template_of(place, directory / "copy")
        return Results(counted, tuple([await idle(place, template, size) for size in idle_sizes]))


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="What a session asks the chain.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="up to 10 idle channels instead of 1,000")
    arguments = parser.parse_args()
    scratch = ROOT / "build"
    scratch.mkdir(exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as directory,
            asyncio.Runner(loop_factory=harness.event_loop) as runner,
        ):
            results = runner.run(measure(Path(directory), QUICK_IDLE_SIZES if arguments.quick else IDLE_SIZES))
    except Refused as error:
        print(f"not measured: {error}")
        return 2
    print("\n".join(results.lines()))
    if arguments.json:
        harness.write_json(arguments.json, results.as_json(harness.surroundings(scratch)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Hostile requests to every method: a typed error, never a crash, a leak or a slow answer to others.

The campaign with more requests: `make fuzz-api RUNS=10000`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest

from tests.faults.api.hostile import GROWTH, METHODS, Target, bombard, target, undisturbed
from tests.integration.clients import Client
from tests.integration.world import Node, World, gathering, running_world

RUNS = int(os.environ.get("FUZZ_RUNS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "20"))
CLIENTS = 200
WARM_UP = 40

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world("embedded", tmp_path_factory.mktemp("fort"), nodes=0) as world:
        node = world.node("fort", loglevel="error")
        node.service = "fundwatch"
        node.start()
        yield world


@pytest.fixture
async def besieged(fort: World) -> AsyncIterator[Target]:
    node: Node = fort.nodes[0]
    async with gathering(fort) as party, target(fort, party, node) as besieged:
        yield besieged


async def test_hostile_requests_to_every_method_are_answered_with_typed_errors(besieged: Target) -> None:
    assert set(besieged.good()) == set(METHODS)
    for method in METHODS:  # what is loaded and cached once is no leak
        await bombard(besieged, method, WARM_UP, seed=SEED - 1)
    async with undisturbed(besieged) as honest:
        for method in METHODS:
            answers = await bombard(besieged, method, RUNS, seed=SEED)
            assert sum(answers.values()) == RUNS
            figures = f"{besieged.memory >> 20} MiB, slowest honest answer {honest.slowest():.2f} s"
            print(f"{method}: {dict(answers.most_common())}, {figures}")
    assert "Traceback" not in besieged.node.running.output


async def test_two_hundred_clients_are_served_at_once(besieged: Target) -> None:
    async def client() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with Client(besieged.node.port) as mine:
            await mine.channel.close(None)
            mine.channel = grpc.aio.insecure_channel(f"127.0.0.1:{besieged.node.port}", options=options)
            mine.stub = type(mine.stub)(mine.channel)
            for _ in range(3):
                assert await mine.time()
                assert (await mine.info(besieged.alice.session, besieged.channel)).id == besieged.channel

    async with undisturbed(besieged):
        await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def test_clients_that_subscribe_and_never_read_hold_neither_memory_nor_others(besieged: Target) -> None:
    """bob's stream is read by nobody while alice asks again and again; a third session is used all the while."""
    alice, bob, channel = besieged.alice, besieged.bob, besieged.channel
    await bob.client.unsubscribe_updates(bob.session, channel)
    before = besieged.memory
    async with Client(besieged.node.port) as lazy, undisturbed(besieged):
        unread = await lazy.updates(bob.session, channel)
        for number in range(60):
            asked = asyncio.ensure_future(alice.pay(channel, [("ETH", "bob", "0.0001")]))
            version = int((await alice.info(channel)).version) + 1
            while True:
                try:
                    await bob.client.respond_update(bob.session, channel, f"{channel}_{version}", accept=True)
                    break
                except Exception:
                    assert not asked.done() or not asked.exception(), asked
                    await asyncio.sleep(0.01)
            assert (await asked).version == str(version), number
        unread.cancel()
    assert besieged.memory - before < GROWTH

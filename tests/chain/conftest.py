"""Real chain nodes and a misbehaving one: what the tests of the chain side at whole-node level run on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from perun_chain_ethereum.testkeys import TEST_ACCOUNTS
from plugins.chain_ethereum.tests.chain_backend.conftest import (
    ETHER,
    Ledger,
    anvil_ledger,
    deployed,
    funded,
    instant,
)
from tests.integration.conftest import pytest_runtest_makereport
from tests.integration.world import ANVIL, MARKER, Party, Person, World, gathering, ports, running_world
from tests.servers.fault_proxy import FaultProxy
from tests.servers.geth import NO_GETH, Geth, running_geth
from tools.build_geth import geth_path

__all__ = ["funded", "instant", "pytest_runtest_makereport"]

Funded = Callable[..., Any]


class GethLedger(Ledger):
    """Contracts on geth, where time cannot be moved: it passes."""

    async def mine(self, blocks: int = 1) -> None:
        head = await self._head()
        while int((await self._head())["number"], 16) < int(head["number"], 16) + blocks:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.1)

    async def pass_time(self, seconds: int) -> None:
        begun = int((await self._head())["timestamp"], 16)
        while int((await self._head())["timestamp"], 16) < begun + seconds:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.1)

    async def _head(self) -> Any:
        return await self.rpc("eth_getBlockByNumber", "latest", False)


@pytest.fixture(scope="session")
def geth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Geth]:
    """geth in development mode, the published test accounts funded."""
    if geth_path() is None:
        pytest.skip(NO_GETH)
    free = ports()
    home = tmp_path_factory.mktemp("geth")
    with running_geth(home, http_port=next(free), ws_port=next(free)) as node:
        node.give({account.address: 100_000 * ETHER for account in TEST_ACCOUNTS})
        yield node


@pytest.fixture(scope="session")
def geth_ledger(geth: Geth) -> GethLedger:
    """Contracts on geth, reached over WebSocket."""
    return GethLedger(url=geth.ws, http=geth.http, contracts=deployed(geth.http), socket=geth.ipc)


@pytest.fixture(scope="session")
def ticking() -> Iterator[Ledger]:
    """anvil with a block every second."""
    with anvil_ledger("--block-time", "1") as ledger:
        yield ledger


@pytest.fixture
def proxied(instant: Ledger) -> Iterator[FaultProxy]:
    """A fault proxy before anvil that mines at once."""
    with FaultProxy(instant.http) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def needs_anvil() -> None:
    """Skips where there is no anvil."""
    if not (os.environ.get("ANVIL") or ANVIL.is_file()):
        pytest.skip("no anvil: set ANVIL, or run tools/fetch_node_tools.py on Linux x86-64")


@pytest.fixture(scope="session")
def geth_world(geth: Geth, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes on geth."""
    with running_world("geth", tmp_path_factory.mktemp("geth-world"), nodes=2, url=geth.ws, http=geth.http) as world:
        yield world


class Town:
    """alice's node talks to the chain through a proxy, bob's directly. bob is the one who may cheat."""

    def __init__(self, world: World, proxy: FaultProxy) -> None:
        self.world = world
        self.proxy = proxy
        self.honest, self.other = world.nodes

    def people(self, **terms: Any) -> tuple[Person, Person]:
        """alice, whose session uses the proxy too, and bob."""
        alice, bob = self.world.friends("alice", "bob", **terms)
        alice.configure(chainurl=self.proxy.ws, chainconntimeout="3s")
        return alice, bob


@pytest.fixture(scope="module")
def town(needs_anvil: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Two nodes on anvil with a block every second, the first one behind a proxy."""
    with running_world("anvil", tmp_path_factory.mktemp("town"), nodes=0) as world, FaultProxy(world.http_url) as proxy:
        honest = world.node("honest", chainurl=proxy.ws, chainconntimeout="3s")
        other = world.node("other")
        for node in (honest, other):
            node.launch()
        for node in (honest, other):
            node.running.wait_for(MARKER)
        try:
            yield Town(world, proxy)
        finally:
            # Nodes end before the proxy does.
            for node in (honest, other):
                if node.process is not None and node.process.process.poll() is None:
                    node.process.stop()


@pytest.fixture(autouse=True)
def everything_works_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did to the proxy, the chain or a node, the next one finds them at work."""
    yield
    if "town" not in request.fixturenames:
        return
    town: Town = request.getfixturevalue("town")
    proxy, world = town.proxy, town.world
    proxy.faults.clear()
    proxy.half_open, proxy.repeat_heads, proxy.stuck_at = False, 1, None
    proxy.mend()
    world.rpc("evm_setIntervalMining", 1)
    for node in (town.honest, town.other):
        if node.process is None or node.process.process.poll() is not None:
            node.start()


@pytest.fixture
async def party(town: Town) -> AsyncIterator[Party]:
    """People at the nodes of `town`."""
    async with gathering(town.world) as party:
        yield party

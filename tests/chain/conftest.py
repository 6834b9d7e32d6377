"""Real chain nodes and a misbehaving one: what the tests of the chain side at whole-node level run on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
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
from tests.integration.world import ANVIL, World, ports, running_world
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

"""One world for all scenarios of a process: two nodes; users of one node, and then of two."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.integration.clients import User
from tests.integration.world import ANVIL, Party, Person, World, running_world


class Company(Party):
    """alice at the first node, bob at the same or at the second one."""

    def __init__(self, world: World, stack: AsyncExitStack, *, bobs_node: int) -> None:
        super().__init__(world, stack)
        self.bobs_node = bobs_node

    def hurry(self) -> None:
        """Let the chain's clock catch up with its blocks, so that the next transactions are mined at once.

        Not while a channel is being opened or settled: its time would be over.
        """
        self.world.rpc("evm_increaseTime", 10)
        self.world.rpc("evm_mine")

    async def seat(self, alice: Person, bob: Person) -> tuple[User, User]:
        """Both online, each at the node of this company."""
        return await self.join(alice, 0), await self.join(bob, self.bobs_node)

    async def pair(self, **terms: Any) -> tuple[User, User]:
        """alice and bob, who know each other, online."""
        alice, bob = self.world.friends("alice", "bob", **terms)
        return await self.seat(alice, bob)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes on the embedded chain, which every scenario shares and none harms."""
    with running_world("embedded", tmp_path_factory.mktemp("scenarios"), nodes=2) as world:
        yield world


@pytest.fixture(scope="session")
def anvil() -> None:
    """Skips where there is no anvil."""
    if not (os.environ.get("ANVIL") or ANVIL.is_file()):
        pytest.skip("no anvil: set ANVIL, or run tools/fetch_node_tools.py on Linux x86-64")


@pytest.fixture(scope="module")
def world(town: World) -> World:
    return town


@pytest.fixture(params=[0, 1], ids=["one-node", "two-nodes"])
async def company(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Company]:
    """Two users of one node, and once more of two nodes."""
    async with AsyncExitStack() as stack:
        company = Company(world, stack, bobs_node=request.param)
        company.hurry()
        yield company

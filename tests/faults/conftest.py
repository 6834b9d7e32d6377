"""Worlds for fault tests; what fails shows the logs of its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.integration.conftest import pytest_runtest_makereport
from tests.integration.world import Party, World, gathering, running_world

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One node on the embedded chain, shared by the tests of a module."""
    with running_world("embedded", tmp_path_factory.mktemp("faults"), nodes=1) as world:
        yield world


@pytest.fixture
async def party(world: World) -> AsyncIterator[Party]:
    """People at the node."""
    async with gathering(world) as party:
        yield party

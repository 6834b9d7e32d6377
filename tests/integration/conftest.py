"""Worlds for integration tests, and the logs of their processes beside whatever fails."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from tests.integration.world import ANVIL, Party, World, gathering, running_world


def _running(kind: str, home: Path, *, nodes: int) -> Iterator[World]:
    if kind == "anvil" and not (os.environ.get("ANVIL") or ANVIL.is_file()):
        pytest.skip("no anvil: set ANVIL, or run tools/fetch_node_tools.py on Linux x86-64")
    with running_world(kind, home, nodes=nodes) as world:
        yield world


@pytest.fixture(scope="module", params=["embedded", pytest.param("anvil", marks=pytest.mark.anvil)])
def real_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes on the embedded chain, and once more on anvil with a block per second."""
    yield from _running(request.param, tmp_path_factory.mktemp(request.param), nodes=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One node on the embedded chain, shared by the tests of a module; everybody brings people of their own."""
    yield from _running("embedded", tmp_path_factory.mktemp("world"), nodes=1)


@pytest.fixture
async def party(world: World) -> AsyncIterator[Party]:
    """People at the nodes of `world`."""
    async with gathering(world) as party:
        yield party


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, World):
                report.sections.append(("processes", value.logs()))
    return report

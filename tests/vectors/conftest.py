"""Feeds the cases of golden vectors to the tests that declare to read them, see `reads`."""

from __future__ import annotations

from pathlib import Path

import pytest

from perun_core.apps import AppRegistry

from .loader import OWN_SET, Case, Vectors
from .values import app_registry


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark behind `loader.reads`."""
    config.addinivalue_line("markers", "reads(file, list): the test reads this list of this vector file")


def vectors_of(config: pytest.Config) -> Vectors:
    """The set of vectors this run is about."""
    directory: Path | None = config.getoption("--vectors", default=None)
    return Vectors(OWN_SET if directory is None else directory)


def declared(node: pytest.Item | pytest.Function) -> tuple[str, str]:
    """File and list the test `node` reads."""
    mark = node.get_closest_marker("reads")
    assert mark is not None, "a vector test declares what it reads"
    file, name = mark.args
    return file, name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case for tests that ask for a `case`."""
    if "case" in metafunc.fixturenames:
        found = vectors_of(metafunc.config).cases(*declared(metafunc.definition))
        names = [str(case.get("name", index)) for index, case in enumerate(found)]
        metafunc.parametrize("case", found, ids=names)


@pytest.fixture(scope="session")
def vectors(pytestconfig: pytest.Config) -> Vectors:
    """The whole set."""
    return vectors_of(pytestconfig)


@pytest.fixture
def cases(request: pytest.FixtureRequest, vectors: Vectors) -> list[Case]:
    """All cases of the declared list, for tests that look at them together."""
    return vectors.cases(*declared(request.node))


@pytest.fixture
def apps(request: pytest.FixtureRequest, vectors: Vectors) -> AppRegistry:
    """The apps that the declared file speaks of."""
    return app_registry(vectors.header(declared(request.node)[0], "apps"))


@pytest.fixture
def keys(request: pytest.FixtureRequest, vectors: Vectors) -> dict[str, bytes]:
    """Private keys of the declared file by their names and addresses."""
    found: dict[str, bytes] = {}
    for key in vectors.cases(declared(request.node)[0], "keys"):
        found[key["name"]] = found[key["address"]] = bytes.fromhex(key["private_key"])
    return found

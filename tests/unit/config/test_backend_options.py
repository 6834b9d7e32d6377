"""Option tables become the frozen config types of backends."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import Struct

from perun_core.config import backend_options
from perun_core.configfile import Table
from perun_core.durations import Duration
from perun_core.errors import ConfigError
from perun_core.plugin.declare import NoOptions
from perun_core.values import Address


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    path: Path
    attempts: int = 3
    ratio: float = 0.5
    durable: bool = True
    hosts: tuple[str, ...] = ()
    timeout: Duration = Duration(0)
    owner: Address | None = None
    passWord: str = ""


def test_texts_become_the_types_of_the_fields() -> None:
    table = Table({
        "path": "data/x", "attempts": "5", "ratio": "0.25", "durable": "false", "hosts": ("a", "b"), "timeout": "1m",
        "password": "secret",
    })  # fmt: skip
    options = backend_options(Options, table, "plugins.store_x")
    assert options == Options(
        path=Path("data/x"), attempts=5, ratio=0.25, durable=False, hosts=("a", "b"), timeout=Duration.parse("1m"),
        passWord="secret",
    )  # fmt: skip


def test_what_is_not_given_keeps_its_default() -> None:
    assert backend_options(Options, Table({"path": "x"}), "plugins.store_x").attempts == 3
    assert backend_options(NoOptions, Table(), "plugins.comm_tcp") == NoOptions()


def test_an_unknown_option_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'attempts'") as caught:
        backend_options(Options, Table({"path": "x", "atempts": "5"}), "plugins.store_x")
    assert caught.value.name == "plugins.store_x.atempts"


@pytest.mark.parametrize(
    "table",
    [
        {"attempts": "5"},
        {"path": "x", "attempts": "hunter2"},
        {"path": "x", "durable": "hunter2"},
        {"path": "x", "hosts": "hunter2"},
        {"path": ("hunter2",)},
        {"path": "x", "owner": Table({"a": "hunter2"})},
    ],
)
def test_a_bad_option_is_named_by_its_table_and_never_quoted(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        backend_options(Options, Table(table), "user.onchainwallet")
    assert caught.value.name == "user.onchainwallet"
    assert "hunter2" not in str(caught.value)

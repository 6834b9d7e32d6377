"""The node file: perun-node's keys, their layers, and what stops a start (API.md 4.1, 4.5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from perun_core.config import FLAG_KEYS, NodeConfig, check_plugin_tables, load_node
from perun_core.durations import Duration
from perun_core.errors import ConfigError
from perun_core.values import Address

NODE = """\
loglevel: debug
logfile: ""
chainurl: ws://127.0.0.1:8545
chainid: 1337
adjudicator: 0x9daedacb21dce86af8604ba1a1d7f9bfe55ddd63
assetETH: 5992089d61cE79B6CF90506F70DD42B8E42FB21d
assetERC20s:
    0x44cb7cd4C2B6435dA126F4263AafC3b837f49AbB: 0xb79708b3f6a4Be039BDE75281656c099163e7a5d
chainconntimeout: 10s
onchaintxtimeout: 1m0s
responsetimeout: 10s
commtypes: [carrier-pigeon]
idprovidertypes: [oracle]
currencyinterpreters: [SHELL]
"""


class Load(Protocol):
    def __call__(
        self, text: str = NODE, *, flags: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> NodeConfig: ...


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(
        text: str = NODE, *, flags: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> NodeConfig:
        path = tmp_path / "node.yaml"
        path.write_text(text)
        return load_node(path, flags or {}, environ or {})

    return load


def test_a_file_of_perun_node_works_unchanged(load: Load) -> None:
    config = load()
    assert (config.loglevel, config.logfile, config.chainid) == ("debug", "", 1337)
    assert config.chainurl == "ws://127.0.0.1:8545"
    assert config.onchaintxtimeout == Duration.parse("1m")
    assert config.asseterc20s == (
        ("0x44cb7cd4c2b6435da126f4263aafc3b837f49abb", "0xb79708b3f6a4Be039BDE75281656c099163e7a5d"),
    )
    assert config.warnings == ()


def test_addresses_are_echoed_verbatim_and_parsed_on_demand(load: Load) -> None:
    config = load()
    assert config.adjudicator == "0x9daedacb21dce86af8604ba1a1d7f9bfe55ddd63"
    assert config.asseteth == "5992089d61cE79B6CF90506F70DD42B8E42FB21d"
    assert config.adjudicator_address() == Address.parse("9daEdAcb21dce86Af8604Ba1A1D7F9BFE55ddd63")
    assert config.asseteth_address() == Address.parse(config.asseteth)
    assert config.asseterc20_addresses()[0][0] == Address.parse("44cb7cd4C2B6435dA126F4263AafC3b837f49AbB")


def test_lists_that_perun_node_ignores_keep_their_values(load: Load) -> None:
    config = load()
    assert (config.commtypes, config.idprovidertypes, config.currencyinterpreters) == (("tcp",), ("local",), ("ETH",))


@pytest.mark.parametrize("text", ["invalid-addr", "", "0x", "0x0", "0x" + "1" * 41])
def test_an_address_that_is_none_is_named(load: Load, text: str) -> None:
    config = load(environ={"PERUN_ADJUDICATOR": text})
    with pytest.raises(ConfigError) as caught:
        config.adjudicator_address()
    assert caught.value.name == "adjudicator"


def test_flags_win_over_environment_and_environment_over_file(load: Load) -> None:
    environ = {"PERUN_LOGLEVEL": "info", "PERUN_CHAINURL": "ws://env", "HOME": "/somewhere"}
    config = load(flags={"chainurl": "ws://flag"}, environ=environ)
    assert (config.loglevel, config.chainurl, config.chainid) == ("info", "ws://flag", 1337)


def test_an_empty_flag_overrides_too(load: Load) -> None:
    assert load(flags={"loglevel": ""}).loglevel == ""


def test_without_a_file_the_flags_are_enough() -> None:
    config = load_node(None, dict.fromkeys(FLAG_KEYS, "1s"), {})
    assert (config.chainid, config.asseterc20s, config.chainconntimeout) == (None, (), Duration.of_seconds(1))


@pytest.mark.parametrize(
    "value", ["@int 5", "@format {env[HOME]}", "@read_file /etc/hostname", "@del", "{a=1}", "@json 1"]
)
def test_no_value_is_ever_interpreted(load: Load, value: str) -> None:
    assert load(environ={"PERUN_CHAINURL": value}).chainurl == value
    assert load(flags={"logfile": value}).logfile == value
    assert load(NODE.replace('logfile: ""', f"logfile: '{value}'")).logfile == value


@pytest.mark.parametrize("key", ["includes", "dynaconf_include", "yaml", "loaders_for_dynaconf", "dynaconf_merge"])
def test_keys_that_steer_the_layering_library_are_only_unknown_keys(load: Load, key: str) -> None:
    config = load(NODE + f"{key}: [/etc/passwd]\n")
    assert config.chainid == 1337
    assert key in config.warnings[0]


@pytest.mark.parametrize("variable", ["LOADERS_FOR_DYNACONF", "SETTINGS_FILE_FOR_DYNACONF", "DYNACONF_LOGLEVEL"])
def test_variables_that_steer_the_layering_library_stop_the_start(load: Load, variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={variable: "x"})
    assert caught.value.name == variable


def test_the_process_environment_cannot_steer_it_either(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_LOADERS_FOR_DYNACONF", '["YAML"]')
    with pytest.raises(ConfigError, match="CORE_LOADERS_FOR_DYNACONF"):
        load()


def test_two_loads_share_nothing(load: Load) -> None:
    assert load(flags={"logfile": "one"}).logfile == "one"
    assert load().logfile == ""


def test_an_unknown_key_is_a_warning_with_a_suggestion(load: Load) -> None:
    config = load(NODE + "responsetimout: 3s\n")
    assert config.warnings == ("unknown key 'responsetimout' is ignored; did you mean 'responsetimeout'?",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chainid", "many"),
        ("chainid", "-1"),
        ("chainid", "1_337"),
        ("chainconntimeout", "soon"),
        ("chainconntimeout", "0s"),
        ("chainconntimeout", "-1s"),
        ("responsetimeout", "10 s"),
        ("finalitydepth", "0"),
        ("logformat", "xml"),
        ("loglevel", "[a]"),
        ("asseterc20s", "[a]"),
    ],
)
def test_a_bad_value_names_its_key(load: Load, key: str, value: str) -> None:
    text = "".join(line for line in NODE.splitlines(keepends=True) if not line.lower().startswith((key, "    0x")))
    with pytest.raises(ConfigError) as caught:
        load(text.replace("assetERC20s:\n", "") + f"{key}: {value}\n")
    assert caught.value.name == key


@pytest.mark.parametrize(("text", "chain_id"), [("1337", 1337), ("0x539", 1337), ("0", None), ("", None)])
def test_a_chain_id_is_a_number_or_any(load: Load, text: str, chain_id: int | None) -> None:
    assert load(environ={"PERUN_CHAINID": text}).chainid == chain_id


def test_a_bare_integer_duration_is_nanoseconds(load: Load) -> None:
    assert load(flags={"chainconntimeout": "5000000000"}).chainconntimeout == Duration.of_seconds(5)


def test_listening_beyond_loopback_needs_a_directory_of_session_files(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(NODE + "host: 0.0.0.0\n")
    assert caught.value.name == "sessiondir"
    assert not load(NODE + "host: 0.0.0.0\nsessiondir: sessions\n").is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_nothing(load: Load, host: str) -> None:
    assert load(flags={}, environ={"PERUN_HOST": host}).is_loopback


class TestPlugins:
    def test_the_default_set_is_enabled_when_nothing_is_said(self, load: Load) -> None:
        assert load().plugins.enabled is None
        assert dict(load().plugins.of("store_sqlite")) == {}

    def test_names_and_option_tables_are_read(self, load: Load) -> None:
        plugins = load(NODE + "plugins:\n  enabled: [store_sqlite, comm_tcp]\n  Store_SQLite: {Sync: FULL}\n").plugins
        assert plugins.enabled == ("store_sqlite", "comm_tcp")
        assert dict(plugins.of("store_sqlite")) == {"sync": "FULL"}

    def test_the_environment_reaches_into_tables(self, load: Load) -> None:
        environ = {"PERUN_PLUGINS__STORE_SQLITE__SYNC": "FULL", "PERUN_PLUGINS__ENABLED": "store_sqlite, comm_tcp"}
        plugins = load(NODE + "plugins:\n  store_sqlite: {sync: OFF, cache: 1}\n", environ=environ).plugins
        assert plugins.enabled == ("store_sqlite", "comm_tcp")
        assert dict(plugins.of("store_sqlite")) == {"sync": "FULL", "cache": "1"}

    def test_a_table_of_a_plugin_nobody_installed_is_an_error_with_a_suggestion(self, load: Load) -> None:
        plugins = load(NODE + "plugins:\n  stroe_sqlite: {sync: OFF}\n").plugins
        with pytest.raises(ConfigError, match="did you mean 'store_sqlite'") as caught:
            check_plugin_tables(plugins, ["store_sqlite", "comm_tcp"])
        assert caught.value.name == "plugins.stroe_sqlite"

    @pytest.mark.parametrize("text", ["plugins: [a]", "plugins: {enable: [a]}", "plugins: {enabled: {a: b}}"])
    def test_another_shape_is_an_error(self, load: Load, text: str) -> None:
        with pytest.raises(ConfigError, match="plugins"):
            load(NODE + text + "\n")

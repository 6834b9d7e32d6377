"""Which plugins a node runs, and what a user is told when one of them is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest

from perun_core.apps import PaymentApp
from perun_core.errors import PluginError
from perun_core.plugin import Backend, Frontend, hookimpl
from perun_core.plugin.declare import NoOptions
from perun_core.plugin.manager import DEFAULT_PLUGINS, Kind, PluginHost
from perun_core.values import Address

APP_ADDRESS = Address(bytes(19) + b"\1")

Install = Callable[..., None]


def never_opened(config: object, context: object) -> object:
    raise AssertionError("nothing is opened while plugins are loaded")


def backend(name: str) -> Backend:  # type: ignore[type-arg]
    return Backend(name=name, config=NoOptions, open=never_opened)  # type: ignore[arg-type]


def plugin(**hooks: Callable[..., object]) -> SimpleNamespace:
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def store(name: str = "mem") -> SimpleNamespace:
    return plugin(perun_register_store=lambda: backend(name))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with one plugin module, as pip would, in a folder of this test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(name: str, source: str, *, distribution: str = "", version: str = "1.2.3", module: str = "") -> None:
        distribution = distribution or f"perun-{name.replace('_', '-')}"
        module = module or f"made_for_test_{distribution.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[perun.plugins]\n{name} = {module}\n")

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("made_for_test_"):
            del sys.modules[name]


GOOD = """\
from perun_core.plugin import Backend, hookimpl
from perun_core.plugin.declare import NoOptions

@hookimpl
def perun_register_store():
    return Backend(name="probe", config=NoOptions, open=lambda config, context: None)
"""


class TestChoosing:
    def test_a_backend_is_found_by_kind_and_name(self) -> None:
        host = PluginHost.load([], extra=[("store_mem", store()), ("store_other", store("other"))])
        assert host.store("mem").name == "mem"
        assert host.names(Kind.STORE) == ("mem", "other")
        assert host.plugin_of(Kind.STORE, "other") == "store_other"

    def test_every_kind_has_its_own_names(self) -> None:
        both = plugin(perun_register_store=lambda: backend("x"), perun_register_comm=lambda: backend("x"))
        host = PluginHost.load([], extra=[("many", both)])
        assert host.store("x").name == host.comm("x").name == "x"
        with pytest.raises(PluginError, match="no enabled plugin provides keymgr 'x'"):
            host.keymgr("x")

    def test_a_missing_backend_comes_with_the_likeliest_name_or_the_way_to_install_it(self) -> None:
        host = PluginHost.load([], extra=[("store_mem", store("memory"))])
        with pytest.raises(PluginError, match="did you mean 'memory'"):
            host.store("memry")
        with pytest.raises(PluginError, match="pip install perun-store-redis"):
            host.store("redis")

    def test_a_backend_that_is_installed_but_not_enabled_says_so(self, install: Install) -> None:
        install("store_probe", GOOD)
        with pytest.raises(PluginError, match=r"add it to plugins\.enabled"):
            PluginHost.load([]).store("probe")

    def test_all_api_servers_are_started_in_the_order_of_their_names(self) -> None:
        def api(name: str) -> SimpleNamespace:
            return plugin(perun_register_api=lambda: Frontend(name=name, config=NoOptions, serve=never_opened))  # type: ignore[arg-type]

        host = PluginHost.load([], extra=[("api_web", api("web")), ("api_grpc2", api("grpc2"))])
        assert [each.name for each in host.apis()] == ["grpc2", "web"]

    def test_apps_are_registered_by_the_address_of_their_contract(self) -> None:
        app = PaymentApp()
        host = PluginHost.load([], extra=[("app_pay", plugin(perun_register_app=lambda: (APP_ADDRESS, app)))])
        assert host.apps().get(APP_ADDRESS) is app
        assert host.apps().get(Address(bytes(20))) is None

    def test_two_hosts_share_nothing(self) -> None:
        PluginHost.load([], extra=[("store_mem", store())])
        with pytest.raises(PluginError):
            PluginHost.load([]).store("mem")


class TestInstalledIsNotEnabled:
    def test_an_enabled_plugin_is_loaded_from_its_distribution(self, install: Install) -> None:
        install("store_probe", GOOD)
        host = PluginHost.load(["store_probe"])
        assert host.store("probe").name == "probe"
        info = next(info for info in host.installed() if info.name == "store_probe")
        assert (info.distribution, info.version, info.enabled, info.error) == ("perun-store-probe", "1.2.3", True, "")
        assert info.provides == ("store probe",)

    def test_a_plugin_that_is_not_enabled_is_listed_and_never_imported(self, install: Install) -> None:
        install("store_probe", "raise SystemExit('imported')")
        info = next(info for info in PluginHost.load([]).installed() if info.name == "store_probe")
        assert not info.enabled

    def test_the_default_set_is_what_the_documentation_says(self) -> None:
        assert DEFAULT_PLUGINS == (
            "idprovider_local", "keymgr_ethkeystore", "store_sqlite", "comm_tcp", "chain_ethereum", "api_grpc",
        )  # fmt: skip

    def test_an_enabled_name_that_nobody_installed_names_the_remedy(self) -> None:
        with pytest.raises(
            PluginError, match="'store_redis' is enabled but not installed: pip install perun-store-redis"
        ):
            PluginHost.load(["store_redis"])

    def test_a_misspelt_name_is_corrected(self, install: Install) -> None:
        install("store_probe", GOOD)
        with pytest.raises(PluginError, match="did you mean 'store_probe'"):
            PluginHost.load(["store_prob"])

    def test_a_name_claimed_by_two_distributions_names_both(self, install: Install) -> None:
        install("store_probe", GOOD)
        install("store_probe", GOOD, distribution="evil-twin")
        with pytest.raises(PluginError, match=r"evil-twin 1\.2\.3 and perun-store-probe 1\.2\.3"):
            PluginHost.load(["store_probe"])


def loading(name: str, what: object) -> str:
    with pytest.raises(PluginError) as caught:
        PluginHost.load([], extra=[(name, what)])
    assert repr(name) in str(caught.value)
    return str(caught.value)


class TestBrokenPlugins:
    def test_an_import_error_names_plugin_distribution_cause_and_remedy(self, install: Install) -> None:
        install("store_probe", "import a_library_nobody_has\n")
        with pytest.raises(PluginError, match=r"perun-store-probe.*a_library_nobody_has.*pip install"):
            PluginHost.load(["store_probe"])

    @pytest.mark.parametrize("source", ["raise SystemExit(3)", "1/0", "def broken(:"])
    def test_whatever_an_import_raises_is_a_plugin_error(self, install: Install, source: str) -> None:
        install("store_probe", source)
        with pytest.raises(PluginError, match="cannot be imported"):
            PluginHost.load(["store_probe"])

    def test_a_misspelt_hook_is_corrected(self) -> None:
        misspelt = plugin(perun_register_stroe=lambda: backend("x"))
        assert "did you mean 'perun_register_store'" in loading("store_x", misspelt)

    def test_a_forgotten_marker_is_found(self) -> None:
        unmarked = SimpleNamespace(perun_register_store=lambda: backend("x"))
        assert "not marked" in loading("store_x", unmarked)

    def test_a_module_without_hooks_is_no_plugin(self) -> None:
        assert "no hook" in loading("store_x", ModuleType("empty"))

    def test_an_unknown_argument_of_a_hook_is_named(self) -> None:
        assert "surprise" in loading("store_x", plugin(perun_register_store=lambda surprise: backend("x")))

    @pytest.mark.parametrize(
        "value",
        [None, "sqlite", Frontend(name="x", config=NoOptions, serve=never_opened)],  # type: ignore[arg-type]
    )
    def test_a_wrong_return_type_is_named(self, value: object) -> None:
        problem = loading("store_x", plugin(perun_register_store=lambda: value))
        assert f"must return a Backend, not {type(value).__name__}" in problem

    @pytest.mark.parametrize(
        "value",
        [
            Backend(name="", config=NoOptions, open=never_opened),  # type: ignore[arg-type]
            Backend(name=7, config=NoOptions, open=never_opened),  # type: ignore[arg-type]
            Backend(name="x", config=dict, open=never_opened),  # type: ignore[arg-type]
            Backend(name="x", config=NoOptions(), open=never_opened),  # type: ignore[arg-type]
            Backend(name="x", config=NoOptions, open=None),  # type: ignore[arg-type]
        ],
    )
    def test_a_declaration_is_checked_field_by_field(self, value: object) -> None:
        assert loading("store_x", plugin(perun_register_store=lambda: value))

    @pytest.mark.parametrize("value", [None, PaymentApp(), (APP_ADDRESS,), ("0x01", PaymentApp()), (APP_ADDRESS, 7)])
    def test_an_app_needs_its_address_and_all_methods(self, value: object) -> None:
        assert "address" in loading("app_x", plugin(perun_register_app=lambda: value))

    def test_a_hook_that_raises_is_named(self) -> None:
        def perun_register_store() -> object:
            raise LookupError("no library")

        assert "perun_register_store failed: LookupError: no library" in loading(
            "store_x", plugin(perun_register_store=perun_register_store)
        )

    def test_a_hook_declares_and_wraps_nothing(self) -> None:
        def perun_register_store() -> Iterator[None]:
            yield

        wrapper = SimpleNamespace(perun_register_store=hookimpl(wrapper=True)(perun_register_store))
        assert "not wrap" in loading("store_x", wrapper)

    def test_another_interface_version_is_refused(self) -> None:
        late = store()
        late.perun_interface = 99
        problem = loading("store_x", late)
        assert "version 99" in problem
        assert "version 1" in problem

    def test_two_plugins_with_one_backend_name_are_both_named(self) -> None:
        with pytest.raises(PluginError, match=r"store 'mem' is claimed by the plugins 'store_a' and 'store_b'"):
            PluginHost.load([], extra=[("store_a", store()), ("store_b", store())])

    def test_without_strictness_the_others_still_load_and_the_error_is_kept(self, install: Install) -> None:
        install("store_probe", GOOD)
        broken = plugin(perun_register_comm=lambda: backend("x"), perun_register_store=lambda: None)
        host = PluginHost.load(["store_probe", "store_redis"], extra=[("many", broken)], strict=False)
        errors = {info.name: info.error for info in host.installed()}
        assert host.store("probe").name == "probe"
        assert "pip install" in errors["store_redis"]
        assert "must return a Backend" in errors["many"]
        assert host.names(Kind.COMM) == ()  # a plugin is enabled as a whole or not at all


class TestCommands:
    def test_plugins_add_commands(self) -> None:
        def perun_add_commands(cli: click.Group) -> None:
            cli.add_command(click.Command("keys"))

        cli = click.Group()
        assert PluginHost.load([], extra=[("x", plugin(perun_add_commands=perun_add_commands))]).add_commands(cli) == ()
        assert list(cli.commands) == ["keys"]

    def test_a_plugin_replaces_no_command_of_the_node(self) -> None:
        run = click.Command("run")
        cli = click.Group(commands={"run": run})
        problems = PluginHost.load([], extra=[("x", adds("run"))]).add_commands(cli)
        assert cli.commands == {"run": run}
        assert "'run'" in problems[0]

    def test_a_command_claimed_twice_is_given_to_neither(self) -> None:
        cli = click.Group()
        problems = PluginHost.load([], extra=[("a", adds("keys")), ("b", adds("keys"))]).add_commands(cli)
        assert cli.commands == {}
        assert "'a' and 'b'" in problems[0]

    def test_a_failing_plugin_does_not_take_the_command_line_away(self) -> None:
        def perun_add_commands(cli: click.Group) -> None:
            raise RuntimeError("broken")

        cli = click.Group()
        host = PluginHost.load([], extra=[("a", plugin(perun_add_commands=perun_add_commands)), ("b", adds("keys"))])
        assert "broken" in host.add_commands(cli)[0]
        assert list(cli.commands) == ["keys"]


def adds(name: str) -> SimpleNamespace:
    def perun_add_commands(cli: click.Group) -> None:
        cli.add_command(click.Command(name))

    return plugin(perun_add_commands=perun_add_commands)


def test_for_the_help_text_no_backend_is_declared(install: Install) -> None:
    source = """\
import click
from perun_core.plugin import hookimpl

@hookimpl
def perun_register_store():
    raise AssertionError("called for a help text")

@hookimpl
def perun_add_commands(cli):
    cli.add_command(click.Command("keys"))
"""
    install("store_probe", source)
    host = PluginHost.load_commands(["store_probe", "store_nobody"])
    cli = click.Group()
    assert host.add_commands(cli) == ()
    assert list(cli.commands) == ["keys"]
    assert "pip install" in next(info.error for info in host.installed() if info.name == "store_nobody")

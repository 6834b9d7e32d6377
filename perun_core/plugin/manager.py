"""Finds, selects and diagnoses plugins.

Installed is not enabled: only the modules of enabled names are imported, and for each of them exactly one installed
distribution must stand. Hooks run once, here, and only declare; configuration chooses among what was declared by
name, so the order of installation means nothing. Every `PluginHost` stands for itself: two nodes in one process share
nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, cast

import click
import pluggy
from msgspec import Struct

from ..apps import AppRegistry
from ..errors import PluginError
from ..ports.app import App
from ..ports.chain import Chain
from ..ports.comm import Comm
from ..ports.fundwatch import Funder, RemoteWatcher
from ..ports.idprovider import IDProvider
from ..ports.keymgr import KeyManager
from ..ports.policy import Policy
from ..ports.store import Store
from ..values import Address
from . import hookspecs
from .declare import ENTRY_POINT_GROUP, INTERFACE_VERSION, PROJECT, Backend, Frontend

DEFAULT_PLUGINS: Final = (
    "idprovider_local",
    "keymgr_ethkeystore",
    "store_sqlite",
    "comm_tcp",
    "chain_ethereum",
    "api_grpc",
)
"""What is enabled when no configuration says otherwise."""


class Kind(StrEnum):
    """Kinds of things plugins declare; the first part of a plugin's name."""

    STORE = "store"
    KEYMGR = "keymgr"
    IDPROVIDER = "idprovider"
    CHAIN = "chain"
    COMM = "comm"
    POLICY = "policy"
    FUNDER = "funder"
    WATCHER = "watcher"
    API = "api"
    APP = "app"

    @property
    def hook(self) -> str:
        """Name of the hook that declares this kind."""
        return f"perun_register_{self}"


_ADD_COMMANDS: Final = "perun_add_commands"
_HOOKS: Final = (*(kind.hook for kind in Kind), _ADD_COMMANDS)
_APP_METHODS: Final = ("default_data", "check_data", "check_init", "check_transition")


class PluginInfo(Struct, frozen=True):
    """What is known about one plugin, installed or only named."""

    name: str
    """KIND_NAME, as configuration files write it."""
    distribution: str
    """Installed distribution that brings it; empty when there is none."""
    version: str
    """Version of that distribution."""
    module: str
    """Import path of the plugin."""
    enabled: bool
    error: str = ""
    """Why it did not load, and the remedy; empty when it is fine or not enabled."""
    provides: tuple[str, ...] = ()
    """What it declared, as ``kind name``."""


class _Declared(Struct, frozen=True):
    plugin: str
    what: Backend[Any] | Frontend | tuple[Address, App]


class PluginHost:
    """The enabled plugins of one node and what they declared. Made by `load`, never changes afterwards."""

    def __init__(
        self,
        infos: tuple[PluginInfo, ...],
        declared: Mapping[Kind, Mapping[str, _Declared]],
        commands: tuple[tuple[str, Callable[[click.Group], None]], ...],
    ) -> None:
        self._infos = infos
        self._declared = declared
        self._commands = commands

    @classmethod
    def load(
        cls, enabled: Sequence[str] | None = None, extra: Sequence[tuple[str, object]] = (), *, strict: bool = True
    ) -> PluginHost:
        """The host of the plugins named in `enabled` (None: DEFAULT_PLUGINS) and of `extra`.

        `extra` are (name, module or object) that need not be installed, for tests and embedding; they are enabled.
        With `strict` the first plugin that does not load ends it; otherwise its error is kept in its `PluginInfo`.
        Raises: PluginError naming plugin, distribution and remedy.
        """
        return _Loading(strict=strict).run(DEFAULT_PLUGINS if enabled is None else enabled, extra)

    @classmethod
    def load_commands(cls, enabled: Sequence[str] | None = None) -> PluginHost:
        """A host that knows nothing but commands: other hooks do not run, so that the help text stays quick.

        What does not load is kept in its `PluginInfo`, as without `strict`.
        """
        return _Loading(strict=False, commands_only=True).run(DEFAULT_PLUGINS if enabled is None else enabled, ())

    def store(self, name: str) -> Backend[Store]:
        """Raises: PluginError when no enabled plugin provides it; likewise the methods below."""
        return cast("Backend[Store]", self._backend(Kind.STORE, name))

    def keymgr(self, name: str) -> Backend[KeyManager]:
        """The key manager `name`."""
        return cast("Backend[KeyManager]", self._backend(Kind.KEYMGR, name))

    def idprovider(self, name: str) -> Backend[IDProvider]:
        """The ID provider `name`."""
        return cast("Backend[IDProvider]", self._backend(Kind.IDPROVIDER, name))

    def chain(self, name: str) -> Backend[Chain]:
        """The chain backend `name`."""
        return cast("Backend[Chain]", self._backend(Kind.CHAIN, name))

    def comm(self, name: str) -> Backend[Comm]:
        """The peer transport `name`."""
        return cast("Backend[Comm]", self._backend(Kind.COMM, name))

    def policy(self, name: str) -> Backend[Policy]:
        """The policy `name`."""
        return cast("Backend[Policy]", self._backend(Kind.POLICY, name))

    def funder(self, name: str) -> Backend[Funder]:
        """The remote funder `name`."""
        return cast("Backend[Funder]", self._backend(Kind.FUNDER, name))

    def watcher(self, name: str) -> Backend[RemoteWatcher]:
        """The remote watcher `name`."""
        return cast("Backend[RemoteWatcher]", self._backend(Kind.WATCHER, name))

    def apis(self) -> tuple[Frontend, ...]:
        """All API servers of enabled plugins, ordered by name."""
        frontends = self._declared[Kind.API]
        return tuple(cast("Frontend", frontends[name].what) for name in sorted(frontends))

    def apps(self) -> AppRegistry:
        """All apps of enabled plugins."""
        return AppRegistry(dict(cast("tuple[Address, App]", d.what) for d in self._declared[Kind.APP].values()))

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Names that enabled plugins provide for `kind`, sorted."""
        return tuple(sorted(self._declared[kind]))

    def plugin_of(self, kind: Kind, name: str) -> str:
        """The plugin that provides `name`; its options are in the table ``plugins.<that>``. Raises: PluginError."""
        return self._get(kind, name).plugin

    def installed(self) -> tuple[PluginInfo, ...]:
        """Every installed plugin and every enabled name without one, sorted by name."""
        return self._infos

    def add_commands(self, cli: click.Group) -> tuple[str, ...]:
        """Let plugins add their commands to `cli`; nothing that is there already can be replaced.

        Returns what went wrong, one sentence each: a broken plugin must not take the command line away.
        """
        problems: list[str] = []
        owners: dict[str, str] = {}
        added: dict[str, click.Command] = {}
        for plugin, add in self._commands:
            scratch = click.Group()
            try:
                add(scratch)
            except Exception as e:
                problems.append(f"commands of plugin {plugin!r} are missing: {type(e).__name__}: {e}")
                continue
            for name, command in scratch.commands.items():
                if name in cli.commands:
                    problems.append(f"plugin {plugin!r} may not replace the command {name!r}")
                elif name in owners:
                    problems.append(f"command {name!r} is claimed by the plugins {owners[name]!r} and {plugin!r}")
                    added.pop(name, None)
                else:
                    owners[name], added[name] = plugin, command
        for name, command in added.items():
            cli.add_command(command, name)
        return tuple(problems)

    def _backend(self, kind: Kind, name: str) -> Backend[Any]:
        return cast("Backend[Any]", self._get(kind, name).what)

    def _get(self, kind: Kind, name: str) -> _Declared:
        found = self._declared[kind].get(name)
        if found is not None:
            return found
        names = self.names(kind)
        wanted = f"{kind}_{name}"
        if any(info.name == wanted and not info.enabled for info in self._infos):
            remedy = f"the plugin {wanted!r} is installed: add it to plugins.enabled"
        else:
            remedy = _suggestion(name, names) or f"pip install {_distribution_of(wanted)}"
        raise PluginError(f"no enabled plugin provides {kind} {name!r} (there is {_listed(names)}); {remedy}")


class _Loading:
    """One run of discovery, import, validation and declaration."""

    def __init__(self, *, strict: bool, commands_only: bool = False) -> None:
        self._strict = strict
        self._commands_only = commands_only
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._declared: dict[Kind, dict[str, _Declared]] = {kind: {} for kind in Kind}
        self._provides: dict[str, list[str]] = {}
        self._commands: list[tuple[str, Callable[[click.Group], None]]] = []
        self._errors: dict[str, str] = {}

    def run(self, enabled: Sequence[str], extra: Sequence[tuple[str, object]]) -> PluginHost:
        installed = _installed()
        wanted = {name: installed.get(name, ()) for name in enabled}
        extras = dict(extra)
        if len(extras) != len(extra):
            raise PluginError("two extra plugins have one name")
        for name, claims in wanted.items():
            if name not in extras:
                self._attempt(name, partial(_import, name, claims, installed))
        for name, plugin in extras.items():
            self._attempt(name, partial(_given, plugin))
        return PluginHost(
            tuple(self._infos(installed, {*wanted, *extras}, extras)), self._declared, tuple(self._commands)
        )

    def _attempt(self, name: str, find: Callable[[], object]) -> None:
        try:
            self._register(name, find())
        except PluginError as e:
            if self._strict:
                raise
            self._errors[name] = str(e)
            self._forget(name)

    def _register(self, name: str, plugin: object) -> None:
        _check_interface(name, plugin)
        try:
            self._manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError, TypeError) as e:
            raise PluginError(f"plugin {name!r}: {' '.join(str(e).split())}; correct the hook or update it") from e
        callers = self._manager.get_hookcallers(plugin) or []
        _check_hook_names(name, plugin, {caller.name for caller in callers})
        for caller in callers:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    self._declare(name, caller.name, implementation)

    def _declare(self, name: str, hook: str, implementation: pluggy.HookImpl) -> None:
        if implementation.hookwrapper or implementation.wrapper:
            raise PluginError(f"plugin {name!r}: hook {hook} must declare, not wrap others; remove the wrapper option")
        if hook == _ADD_COMMANDS:
            takes_group = bool(implementation.argnames)
            function = cast("Callable[..., None]", implementation.function)
            self._commands.append((name, function if takes_group else lambda _: function()))
            return
        if self._commands_only:
            return
        kind = next(kind for kind in Kind if kind.hook == hook)
        try:
            what = implementation.function()
        except Exception as e:
            raise PluginError(f"plugin {name!r}: hook {hook} failed: {type(e).__name__}: {e}; report it") from e
        key = _checked(name, kind, what)
        other = self._declared[kind].get(key)
        if other is not None:
            raise PluginError(
                f"{kind} {key!r} is claimed by the plugins {other.plugin!r} and {name!r}: enable only one of them"
            )
        self._declared[kind][key] = _Declared(name, cast("Any", what))
        self._provides.setdefault(name, []).append(f"{kind} {key}")

    def _forget(self, name: str) -> None:
        """A plugin that is wrong in one declaration is not half enabled."""
        for declarations in self._declared.values():
            for key in [key for key, declared in declarations.items() if declared.plugin == name]:
                del declarations[key]
        self._commands = [(plugin, add) for plugin, add in self._commands if plugin != name]
        self._provides.pop(name, None)

    def _infos(
        self, installed: Mapping[str, Sequence[EntryPoint]], enabled: set[str], extras: Mapping[str, object]
    ) -> Iterator[PluginInfo]:
        for name in sorted({*installed, *enabled}):
            claims = () if name in extras else installed.get(name, ())
            yield PluginInfo(
                name=name,
                distribution=" and ".join(_owner(claim) for claim in claims),
                version=" and ".join(_version(claim) for claim in claims),
                module=" and ".join(claim.value for claim in claims),
                enabled=name in enabled,
                error=self._errors.get(name, ""),
                provides=tuple(self._provides.get(name, ())),
            )


# ----------------------------------------------------------------------------------------------------------- discovery


def _installed() -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by plugin name; reads metadata only, imports nothing."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        found[point.name] = (*found.get(point.name, ()), point)
    return {name: tuple(sorted(points, key=_owner)) for name, points in found.items()}


def _import(name: str, claims: Sequence[EntryPoint], installed: Iterable[str]) -> object:
    """The module of the one distribution that brings plugin `name`. Raises: PluginError."""
    if not claims:
        close = _suggestion(name, installed)
        remedy = f"pip install {_distribution_of(name)}" + (f", or {close}" if close else "")
        raise PluginError(f"plugin {name!r} is enabled but not installed: {remedy}")
    if len(claims) > 1:
        owners = " and ".join(f"{_owner(claim)} {_version(claim)}" for claim in claims)
        raise PluginError(f"plugin {name!r} is claimed by the distributions {owners}: pip uninstall all but one")
    try:
        return claims[0].load()
    except (Exception, SystemExit) as e:
        raise PluginError(
            f"plugin {name!r} of distribution {_owner(claims[0])} cannot be imported: {type(e).__name__}: {e}; "
            f"pip install --force-reinstall {_owner(claims[0])}, or remove the name from plugins.enabled"
        ) from e


def _given(plugin: object) -> object:
    return plugin


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _version(point: EntryPoint) -> str:
    return point.dist.version if point.dist else ""


def _distribution_of(name: str) -> str:
    return f"perun-{name.replace('_', '-')}"


# ---------------------------------------------------------------------------------------------------------- validation


def _check_interface(name: str, plugin: object) -> None:
    version = getattr(plugin, "perun_interface", INTERFACE_VERSION)
    if version != INTERFACE_VERSION:
        raise PluginError(
            f"plugin {name!r} is made for interface version {version}, this node has version {INTERFACE_VERSION}: "
            "install a version of the plugin that fits this perun-core"
        )


def _check_hook_names(name: str, plugin: object, implemented: set[str]) -> None:
    """Misspelt hooks and forgotten markers would otherwise do nothing, silently."""
    for hook in sorted(implemented):
        if hook not in _HOOKS:
            raise PluginError(f"plugin {name!r} implements the unknown hook {hook!r}{_or_nothing(hook)}")
    for hook in _HOOKS:
        if hook not in implemented and callable(getattr(plugin, hook, None)):
            raise PluginError(f"plugin {name!r}: {hook} is not marked; put @perun_core.plugin.hookimpl in front of it")
    if not implemented:
        raise PluginError(f"plugin {name!r} implements no hook; see perun_core.plugin.hookspecs")


def _or_nothing(hook: str) -> str:
    close = _suggestion(hook, _HOOKS)
    return f"; {close}" if close else f"; hooks are {_listed(_HOOKS)}"


def _checked(plugin: str, kind: Kind, what: object) -> str:
    """The name under which `what` is chosen. Raises: PluginError unless it is what the hook of `kind` returns."""
    if kind is Kind.APP:
        return _checked_app(plugin, what)
    expected: type[Frontend] | type[Backend[Any]] = Frontend if kind is Kind.API else Backend
    if not isinstance(what, expected):
        raise PluginError(
            f"plugin {plugin!r}: {kind.hook} must return a {expected.__name__}, not {type(what).__name__}"
        )
    # Frozen values do not check the types of their fields; what a stranger put there is looked at, not believed.
    name: object = what.name
    config: object = what.config
    enter: object = what.open if isinstance(what, Backend) else what.serve
    if not (isinstance(name, str) and name):
        raise PluginError(f"plugin {plugin!r}: {kind.hook} must give a name, not {name!r}")
    if not (isinstance(config, type) and issubclass(config, Struct)):
        raise PluginError(f"plugin {plugin!r}: config of {kind} {name!r} must be a msgspec Struct type")
    if not callable(enter):
        raise PluginError(f"plugin {plugin!r}: {kind} {name!r} cannot be opened: not callable")
    return name


def _checked_app(plugin: str, what: object) -> str:
    match what:
        case (Address() as address, app) if all(callable(getattr(app, method, None)) for method in _APP_METHODS):
            return address.checksum
    raise PluginError(f"plugin {plugin!r}: {Kind.APP.hook} must return the address of the app's contract and an App")


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, tuple(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"

"""Configuration of the node and of sessions: files, environment and flags become frozen, typed values, once.

Files are read as text only: every scalar stays the text that was written, so that ``0x…`` is never a number and nothing
in a file can execute. dynaconf layers file → environment (``PERUN_…``) → flags for the node file; no other module
knows it. Session files are named by API clients and go through the same plain loader without any layering.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Struct

from .configfile import Table, load_table
from .durations import Duration
from .errors import ConfigError, PluginError
from .values import Address

ENVIRONMENT_PREFIX: Final = "PERUN_"

S = TypeVar("S", bound=Struct)


# ------------------------------------------------------------------------------------------------------------ the node


class PluginsConfig(Struct, frozen=True):
    """The ``plugins`` table of the node file."""

    enabled: tuple[str, ...] | None = None
    """Names of the enabled plugins (KIND_NAME); None means the default set."""
    options: Table = Table()
    """Option table of each plugin by its name."""

    def of(self, plugin: str) -> Table:
        """Options of `plugin`; empty when the file has none."""
        return cast("Table", self.options.get(plugin, _EMPTY))


class NodeConfig(Struct, frozen=True):
    """Effective configuration of a node (API.md 4.1 and the additions of this implementation).

    Addresses are kept as they were written, because clients read them back verbatim; `adjudicator_address` and its
    siblings parse them.
    """

    loglevel: str = ""
    """panic, fatal, error, warn, warning, info, debug or trace in any case; empty or unknown stops the start."""
    logfile: str = ""
    """Empty: standard output. Otherwise a file that is appended to, created with mode 0600."""
    logformat: str = "text"
    """``text`` or ``json``."""
    chainurl: str = ""
    """Chain node: ws://, wss://, http://, https:// or the path of an IPC socket."""
    chainid: int | None = None
    """Compared with the chain's at start; None (missing, empty or 0) accepts any."""
    adjudicator: str = ""
    """Address of the adjudicator contract."""
    asseteth: str = ""
    """Address of the ETH asset holder contract."""
    asseterc20s: tuple[tuple[str, str], ...] = ()
    """Pairs (token, asset holder) registered at start."""
    chainconntimeout: Duration = Duration(0)
    """Time limit for connecting to the chain."""
    onchaintxtimeout: Duration = Duration(0)
    """Accepted for compatibility; sessions bring their own."""
    responsetimeout: Duration = Duration(0)
    """Accepted for compatibility; sessions bring their own."""
    commtypes: tuple[str, ...] = ("tcp",)
    """Always this value, whatever a file says."""
    idprovidertypes: tuple[str, ...] = ("local",)
    """Always this value, whatever a file says."""
    currencyinterpreters: tuple[str, ...] = ("ETH",)
    """Always this value, whatever a file says."""
    finalitydepth: int = 1
    """Blocks that contain or follow a transaction or event until it counts; at least 1."""
    host: str = "127.0.0.1"
    """Address the APIs listen on. Anything but loopback needs `sessiondir` and a protected API."""
    statedir: str = ""
    """Directory of the node's own store (registered currencies). Empty: nothing node-wide is kept."""
    sessiondir: str = ""
    """Session files must lie below this directory. Empty: any regular file."""
    plugins: PluginsConfig = PluginsConfig()
    """Which plugins are enabled, and their options."""
    warnings: tuple[str, ...] = ()
    """What was ignored while loading, one sentence each; not part of the configuration."""

    def adjudicator_address(self) -> Address:
        """Raises: ConfigError("adjudicator")."""
        return parse_address("adjudicator", self.adjudicator)

    def asseteth_address(self) -> Address:
        """Raises: ConfigError("asseteth")."""
        return parse_address("asseteth", self.asseteth)

    def asseterc20_addresses(self) -> tuple[tuple[Address, Address], ...]:
        """Pairs (token, asset holder). Raises: ConfigError("asseterc20s")."""
        return tuple(
            (parse_address("asseterc20s", token), parse_address("asseterc20s", asset))
            for token, asset in self.asseterc20s
        )

    @property
    def is_loopback(self) -> bool:
        """Whether the APIs can be reached from this host only."""
        return is_loopback(self.host)


_ALWAYS: Final = ("commtypes", "idprovidertypes", "currencyinterpreters")
NODE_KEYS: Final = tuple(field for field in NodeConfig.__struct_fields__ if field != "warnings")
FLAG_KEYS: Final = (
    "loglevel",
    "logfile",
    "chainurl",
    "adjudicator",
    "asseteth",
    "chainconntimeout",
    "onchaintxtimeout",
    "responsetimeout",
)
"""Keys that have a command-line flag. The file is ignored if and only if all of them are given (API.md 4.5)."""


def load_node(path: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]) -> NodeConfig:
    """The effective node configuration: the file at `path` (if any), over it `environ`, over it `flags`.

    Raises: ConfigError naming the file, key or variable.
    """
    _refuse_foreign_settings(environ)
    layers = (
        load_table(path, name="configfile") if path is not None else _EMPTY,
        _from_environment(environ),
        Table(flags),
    )
    warnings = tuple(_unknown(key, NODE_KEYS) for layer in layers for key in layer if key not in NODE_KEYS)
    return _node_from(_layered(layers), warnings)


def _node_from(table: Table, warnings: tuple[str, ...]) -> NodeConfig:
    text = _TextReader(table)
    config = NodeConfig(
        loglevel=text.get("loglevel"),
        logfile=text.get("logfile"),
        logformat=text.get("logformat").lower() or "text",
        chainurl=text.get("chainurl"),
        chainid=text.integer("chainid") or None,
        adjudicator=text.get("adjudicator"),
        asseteth=text.get("asseteth"),
        asseterc20s=text.pairs("asseterc20s"),
        chainconntimeout=text.duration("chainconntimeout"),
        onchaintxtimeout=text.duration("onchaintxtimeout"),
        responsetimeout=text.duration("responsetimeout"),
        finalitydepth=text.integer("finalitydepth", 1),
        host=text.get("host") or "127.0.0.1",
        statedir=text.get("statedir"),
        sessiondir=text.get("sessiondir"),
        plugins=_plugins_from(text.table("plugins")),
        warnings=warnings,
    )
    _check_node(config)
    return config


def _check_node(config: NodeConfig) -> None:
    if config.chainid is not None and config.chainid < 0:
        raise ConfigError("chainid", str(config.chainid), "must be positive")
    if config.finalitydepth < 1:
        raise ConfigError("finalitydepth", str(config.finalitydepth), "must be at least 1")
    if config.logformat not in ("text", "json"):
        raise ConfigError("logformat", config.logformat, "must be text or json")
    if config.chainconntimeout <= 0:
        raise ConfigError("chainconntimeout", str(config.chainconntimeout), "must be a positive duration such as 10s")
    if not config.is_loopback and not config.sessiondir:
        raise ConfigError("sessiondir", "", f"is required because the APIs listen on {config.host}, not on loopback")


def _plugins_from(table: Table) -> PluginsConfig:
    enabled = table.get("enabled")
    if isinstance(enabled, str):  # an environment variable, or a list of one
        enabled = tuple(name.strip() for name in enabled.split(",") if name.strip())
    if enabled is not None and not (isinstance(enabled, tuple) and all(isinstance(name, str) for name in enabled)):
        raise ConfigError("plugins.enabled", "", "must be a list of plugin names such as store_sqlite")
    options = {}
    for name, value in table.items():
        if name == "enabled":
            continue
        if value == "":
            value = _EMPTY
        if not isinstance(value, Table):
            raise ConfigError(f"plugins.{name}", "", "must be a table of options" + _suggest(name, ("enabled",)))
        options[name] = value
    return PluginsConfig(enabled=enabled, options=Table(options))


def check_plugin_tables(plugins: PluginsConfig, known: Iterable[str]) -> None:
    """Every option table belongs to a plugin in `known` (the installed ones).

    Raises: ConfigError naming the table, with the likeliest correction.
    """
    names = tuple(known)
    for name in plugins.options:
        if name not in names:
            raise ConfigError(f"plugins.{name}", "", "no such plugin is installed" + _suggest(name, names))


# ------------------------------------------------------------------------------------------------------------ sessions


class UserConfig(Struct, frozen=True):
    """The ``user`` block of a session file; checked where the session is opened, in the order of API.md 5.1."""

    alias: str = ""
    """For people; the session knows itself as ``self``."""
    onchainaddr: str = ""
    """Account that pays gas, deposits and receives."""
    onchainwallet: Table = Table()
    """Options of the key manager that holds the on-chain key."""
    partaddrs: tuple[str, ...] = ()
    """Accepted for compatibility, unused."""
    offchainaddr: str = ""
    """Network identity and channel signing key."""
    offchainwallet: Table = Table()
    """Options of the key manager that holds the off-chain key."""
    commaddr: str = ""
    """Where peers reach this session."""
    commtype: str = ""
    """Peer transport as peers are told."""


class SessionConfig(Struct, frozen=True):
    """A session file (API.md 4.2 and the additions of this implementation). Paths are relative to the node.

    Fields are as written; a missing one is empty, a missing duration 0. The API keys are hidden in the repr.
    """

    user: UserConfig = UserConfig()
    idprovidertype: str = ""
    idproviderurl: str = ""
    chainurl: str = ""
    chainid: int | None = None
    """Verified against the chain; None accepts any."""
    chainconntimeout: Duration = Duration(0)
    """Time limit for connecting to the chain; 0 always fails."""
    onchaintxtimeout: Duration = Duration(0)
    """Time until an unmined transaction is reported (T)."""
    responsetimeout: Duration = Duration(0)
    """Time that peers and users have for an answer (R)."""
    databasedir: str = ""
    """Directory of the session's store; created when missing."""
    peerreconntimeout: Duration = Duration(0)
    """Bounds the restore step."""
    fundingtype: str = "local"
    fundingurl: str = ""
    fundingapikey: str = ""
    watchertype: str = "local"
    watcherurl: str = ""
    watcherapikey: str = ""
    keymgr: str = "ethkeystore"
    """Key manager of both roles; its options are the ``user.*wallet`` tables."""
    idprovider: str = ""
    """ID provider; by default what `idprovidertype` says."""
    store: str = "sqlite"
    """Persistence backend."""
    comm: str = ""
    """Peer transport; by default what `user.commtype` says."""
    policy: str = ""
    """Policy that decides before the user is asked; empty: none."""
    rescuefile: str = ""
    """File that is kept up to date with what settling every open channel needs, encrypted; empty: none is kept."""
    rescuekey: str = ""
    """Public key of that file, as ``perunnode rescue key`` printed it."""
    warnings: tuple[str, ...] = ()
    """What was ignored while loading, one sentence each; not part of the configuration."""

    def __repr__(self) -> str:
        hidden = ("fundingapikey", "watcherapikey")
        shown = (f"{name}={'***' if name in hidden else getattr(self, name)!r}" for name in self.__struct_fields__)
        return f"SessionConfig({', '.join(shown)})"


SESSION_KEYS: Final = tuple(field for field in SessionConfig.__struct_fields__ if field != "warnings")
USER_KEYS: Final = UserConfig.__struct_fields__


def load_session(path: Path, *, sessiondir: str = "") -> SessionConfig:
    """The session file at `path`, which must resolve to a place below `sessiondir` when that is set.

    Raises: ConfigError("configFile") with the path as it was given: not readable, not of a known type, malformed, a
    value of the wrong type, or outside of `sessiondir`. Addresses, types and wallets are checked by the caller.
    """
    if sessiondir and not _resolves_below(path, Path(sessiondir)):
        raise ConfigError("configFile", str(path), "lies outside of the directory of session files")
    table = load_table(path, name="configFile")
    try:
        return _session_from(table)
    except ConfigError as e:
        raise ConfigError("configFile", str(path), f"{e.name}: {e.problem}") from e


def _session_from(table: Table) -> SessionConfig:
    text = _TextReader(table)
    user_table = text.table("user")
    warnings = tuple(_unknown(key, SESSION_KEYS) for key in table if key not in SESSION_KEYS) + tuple(
        _unknown(f"user.{key}", [f"user.{known}" for known in USER_KEYS]) for key in user_table if key not in USER_KEYS
    )
    user = _TextReader(user_table, "user.")
    commtype, idprovidertype = user.get("commtype"), text.get("idprovidertype")
    return SessionConfig(
        user=UserConfig(
            alias=user.get("alias"),
            onchainaddr=user.get("onchainaddr"),
            onchainwallet=user.table("onchainwallet"),
            partaddrs=user.texts("partaddrs"),
            offchainaddr=user.get("offchainaddr"),
            offchainwallet=user.table("offchainwallet"),
            commaddr=user.get("commaddr"),
            commtype=commtype,
        ),
        idprovidertype=idprovidertype,
        idproviderurl=text.get("idproviderurl"),
        chainurl=text.get("chainurl"),
        chainid=text.integer("chainid") or None,
        chainconntimeout=text.duration("chainconntimeout"),
        onchaintxtimeout=text.duration("onchaintxtimeout"),
        responsetimeout=text.duration("responsetimeout"),
        databasedir=text.get("databasedir"),
        peerreconntimeout=text.duration("peerreconntimeout"),
        fundingtype=text.get("fundingtype") or "local",
        fundingurl=text.get("fundingurl"),
        fundingapikey=text.get("fundingapikey"),
        watchertype=text.get("watchertype") or "local",
        watcherurl=text.get("watcherurl"),
        watcherapikey=text.get("watcherapikey"),
        keymgr=text.get("keymgr") or "ethkeystore",
        idprovider=text.get("idprovider") or idprovidertype,
        store=text.get("store") or "sqlite",
        comm=text.get("comm") or commtype,
        policy="" if text.get("policy") == "none" else text.get("policy"),
        rescuefile=text.get("rescuefile"),
        rescuekey=text.get("rescuekey"),
        warnings=warnings,
    )


def _resolves_below(path: Path, directory: Path) -> bool:
    try:
        return path.resolve().is_relative_to(directory.resolve(strict=True))
    except (OSError, RuntimeError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------- options of backends


def backend_options(config_type: type[S], table: Mapping[str, object], where: str) -> S:
    """`table` as an instance of a backend's `config_type`; texts become the types that its fields state.

    `where` is the key path users know, for example ``plugins.store_sqlite`` or ``user.onchainwallet``. Values are not
    repeated in errors, because options may be secrets.
    Raises: ConfigError naming the key; an unknown key comes with the likeliest correction. PluginError when
    `config_type` has fields of a type that no text can become.
    """
    fields = msgspec.structs.fields(config_type)
    names = {field.encode_name.lower(): field.encode_name for field in fields}
    for key in table:
        if key not in names:
            raise ConfigError(f"{where}.{key}", "", "no such option" + _suggest(key, names))
    try:
        return msgspec.convert(
            {names[key]: _plain(value) for key, value in table.items()}, config_type, strict=False, dec_hook=_option
        )
    except msgspec.ValidationError as e:
        raise ConfigError(where, "", _without_values(e)) from None


def _plain(value: object) -> object:
    if isinstance(value, Table):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _option(kind: type, value: object) -> object:
    """A value of a type that msgspec does not know. Raises: ValueError, PluginError."""
    if not isinstance(value, str):
        raise ValueError("expected a single value")
    if issubclass(kind, Duration):
        try:
            return kind.parse(value)
        except ValueError:
            raise ValueError("expected a duration such as 10s") from None
    if issubclass(kind, Path):
        return kind(value)
    if issubclass(kind, Address):
        return kind.parse(value)
    raise PluginError(f"options of type {kind.__name__} cannot be read from a configuration file")


def _without_values(error: msgspec.ValidationError) -> str:
    """The library's message, which says what was expected where; of enumerations it would repeat the value."""
    text = str(error)
    return "not one of the allowed values" if text.startswith("Invalid enum value") else text


# ----------------------------------------------------------------------------------------------------- layers of a node


class _Verbatim(Struct, frozen=True):
    """A value that dynaconf stores without looking into it: text in files must never be interpreted."""

    value: object


def load(settings: Any, env: str | None = None, silent: bool = True, key: str | None = None) -> None:
    """dynaconf's hook for loaders: lays the prepared layers over each other, later ones win."""
    for layer in settings.get("PERUN_LAYERS").value:
        for name, value in layer.items():
            below = settings.get(f"PERUN_KEY_{name.upper()}")
            if isinstance(value, Table) and below is not None and isinstance(below.value, Table):
                value = value.over(below.value)
            settings.set(f"PERUN_KEY_{name.upper()}", _Verbatim(value))


def _layered(layers: Sequence[Table]) -> Table:
    """One table from several, later ones win; only keys of the node go through."""
    from dynaconf import Dynaconf

    known = tuple(Table({key: value for key, value in layer.items() if key in NODE_KEYS}) for layer in layers)
    settings = Dynaconf(
        core_loaders=[],
        loaders=[__name__],
        load_dotenv=False,
        environments=False,
        envvar_prefix=None,
        settings_files=[],
        perun_layers=_Verbatim(known),
    )
    values = ((key, settings.get(f"PERUN_KEY_{key.upper()}")) for key in NODE_KEYS)
    return Table({key: held.value for key, held in values if held is not None})


def _refuse_foreign_settings(environ: Mapping[str, str]) -> None:
    """Variables that would steer dynaconf itself could make it read other files: not with a node's money."""
    for variable in sorted({*environ, *os.environ}):
        if variable.endswith("_FOR_DYNACONF") or variable.startswith("DYNACONF_"):
            raise ConfigError(variable, "", "this environment variable must not be set for a node")


def _from_environment(environ: Mapping[str, str]) -> Table:
    """``PERUN_CHAINURL`` is `chainurl`, ``PERUN_PLUGINS__STORE_SQLITE__PATH`` is `plugins.store_sqlite.path`."""
    table = _EMPTY
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        *outer, inner = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        branch = Table({inner: value})
        for key in reversed(outer):
            branch = Table({key: branch})
        table = branch.over(table)
    return table


_EMPTY: Final = Table()


# ------------------------------------------------------------------------------------------------- from text to values


class _TextReader:
    """Takes typed values out of a table; a missing key is empty, zero or an empty table. Raises: ConfigError."""

    def __init__(self, table: Table, prefix: str = "") -> None:
        self._table = table
        self._prefix = prefix

    def get(self, key: str) -> str:
        value = self._table.get(key, "")
        if not isinstance(value, str):
            raise ConfigError(self._prefix + key, "", "must be a single value")
        return value

    def integer(self, key: str, default: int = 0) -> int:
        text = self.get(key)
        if not text:
            return default
        try:
            if len(text) > 80 or "_" in text:
                raise ValueError
            return int(text, 16 if text[:2] in ("0x", "0X") else 10)
        except ValueError:
            raise ConfigError(self._prefix + key, text[:80], "must be a whole number") from None

    def duration(self, key: str) -> Duration:
        text = self.get(key)
        try:
            return Duration.parse(text) if text else Duration(0)
        except ValueError as e:
            raise ConfigError(self._prefix + key, text[:80], str(e)) from None

    def table(self, key: str) -> Table:
        value = self._table.get(key, "")
        if value == "":
            return _EMPTY
        if not isinstance(value, Table):
            raise ConfigError(self._prefix + key, "", "must be a table of keys and values")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._table.get(key, ())
        if value == "":
            return ()
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise ConfigError(self._prefix + key, "", "must be a list of texts")
        return value

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        table = _TextReader(self.table(key), f"{self._prefix}{key}.")
        return tuple((name, table.get(name)) for name in table._table)


def parse_address(name: str, text: str) -> Address:
    """`text` as an address; the zero address is none. Raises: ConfigError(`name`)."""
    try:
        address = Address.parse(text)
    except ValueError as e:
        raise ConfigError(name, text[:80], f"not an address: {e}") from None
    if address.is_zero:
        raise ConfigError(name, text, "not an address: missing or zero")
    return address


def is_loopback(host: str) -> bool:
    """Whether listening on `host` can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _unknown(key: str, known: Iterable[str]) -> str:
    return f"unknown key {key!r} is ignored" + _suggest(key, known)


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, tuple(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

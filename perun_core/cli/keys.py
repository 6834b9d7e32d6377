"""``perunnode keys``: create, import, list, check and move keys, wherever the chosen key manager keeps them.

No password, token or key is ever taken from the command line or printed: they come from prompts, files and variables.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_args, get_origin, get_type_hints

import click
from msgspec import Meta, Struct

from ..errors import KeyExists, KeyManagerError, PerunError
from ..secret import Secret, wipe
from ..values import Address

if TYPE_CHECKING:
    from ..ports.keymgr import KeyCustody

F = TypeVar("F", bound=Callable[..., object])

_ROLES: Final = {"on-chain": "onchainwallet", "off-chain": "offchainwallet"}
_MAX_SECRET: Final = 64 * 1024


class Place(Struct, frozen=True):
    """Where keys are kept, as the command line names it."""

    prefix: str
    session: Path | None
    role: str | None
    manager: str | None
    options: tuple[str, ...]
    secrets: tuple[str, ...]

    def flag(self, name: str) -> str:
        """The option `name` of this place as users write it."""
        return f"--{self.prefix}{name}"


_PARAMETERS: Final = {"": "place", "from-": "source", "to-": "target"}


def _place(prefix: str = "", where: str = "where the keys are") -> Callable[[F], F]:
    """The options that say where keys are; the command gets them as one `Place`, named as in `_PARAMETERS`."""
    names = ("session", "role", "manager", "option", "secret")
    options = (
        click.option(
            f"--{prefix}session",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help=f"Session file whose wallet says {where}.",
        ),
        click.option(f"--{prefix}role", type=click.Choice(list(_ROLES)), help="Which wallet of the session file."),
        click.option(f"--{prefix}manager", metavar="NAME", help="Key manager, when no session file is given."),
        click.option(f"--{prefix}option", multiple=True, metavar="NAME=VALUE", help="An option of that manager."),
        click.option(
            f"--{prefix}secret",
            multiple=True,
            metavar="NAME=SOURCE",
            help="A secret option of that manager; SOURCE is prompt, file:PATH or env:VARIABLE.",
        ),
    )

    def decorate(command: F) -> F:
        @wraps(command)
        def called(**given: Any) -> object:
            values = (given.pop(f"{prefix}{name}".replace("-", "_")) for name in names)
            given[_PARAMETERS[prefix]] = Place(prefix, *values)
            return command(**given)

        wrapped: Any = called
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped  # type: ignore[no-any-return]

    return decorate


_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


# ------------------------------------------------------------------------------------------------------------ commands


@click.group()
def keys() -> None:
    """Create, import, list, check and move keys.

    Where the keys are is said by a session file (--session, and --role when its wallets differ), or by the name of a
    key manager and its options.
    """


@keys.command()
@_place(where="where the new key goes")
@_json
def new(place: Place, as_json: bool) -> None:
    """Create a key and print its address.

    New key files are protected with scrypt's standard strength: opening one takes about a second and 256 MiB.
    """

    async def create() -> list[dict[str, str]]:
        async with _custody(place, confirm=True) as custody:
            with _fresh_key() as key:
                return [await _added(custody, key)]

    _print_places(_run(create), as_json)


@keys.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--file-password", metavar="SOURCE", help="Opens FILE: prompt, file:PATH or env:VARIABLE. By default: a prompt."
)
@_place(where="where the key goes")
@_json
def import_(file: Path, file_password: str | None, place: Place, as_json: bool) -> None:
    """Copy the key in FILE: an Ethereum key file of version 3, or 64 hex digits. FILE stays as it is."""

    async def copy() -> list[dict[str, str]]:
        with _read_file(file, file_password) as key:
            async with _custody(place, confirm=True) as custody:
                return [await _added(custody, key)]

    _print_places(_run(copy), as_json)


@keys.command("list")
@_place()
@_json
def list_(place: Place, as_json: bool) -> None:
    """List addresses, and where their keys lie."""

    async def find() -> list[dict[str, str]]:
        async with _custody(place, unlock=False) as custody:
            found = await custody.addresses()
            return [{"address": address.checksum, "place": await _place_of(custody, address)} for address in found]

    _print_places(_run(find), as_json)


@keys.command()
@click.argument("addresses", nargs=-1)
@_place()
@_json
def check(addresses: tuple[str, ...], place: Place, as_json: bool) -> None:
    """Open the keys of ADDRESSES, by default all, and see whether each signs for its address.

    With a session file, the address that its session uses in that role has to be among them. Weak protection is a
    warning. Exit code 1 when a key cannot be opened or is another address's.
    """

    async def look() -> list[dict[str, Any]]:
        async with _custody(place) as custody:
            wanted = tuple(map(_address, addresses)) or (
                *await custody.addresses(),
                *(() if place.session is None else _addresses_of_session(place)),
            )
            return [await _examined(custody, address) for address in dict.fromkeys(wanted)]

    rows = _run(look)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    for row in () if as_json else rows:
        click.echo(f"{row['address']}  {row['problem'] or 'ok'}")
        for warning in row["warnings"]:
            click.echo(f"    warning: {warning}")
    if any(row["problem"] for row in rows):
        sys.exit(1)


@keys.command()
@click.argument("addresses", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every key of the source.")
@click.option("--remove", is_flag=True, help="Remove each key from the source once its copy was read back.")
@_place("from-")
@_place("to-", "where the copies go")
@_json
def migrate(
    addresses: tuple[str, ...], everything: bool, remove: bool, source: Place, target: Place, as_json: bool
) -> None:
    """Copy the keys of ADDRESSES from one key manager to another.

    Each copy is read back and tried before the next one is made. A key that the target has already is left alone there.
    Without --remove the source keeps its keys.
    """
    if bool(addresses) == everything:
        raise click.UsageError("name the addresses, or say --all")

    async def copy() -> list[dict[str, str]]:
        async with _custody(source) as old, _custody(target, confirm=True) as new:
            wanted = await old.addresses() if everything else tuple(map(_address, addresses))
            return [await _copied(old, new, address, remove=remove) for address in wanted]

    _print_places(_run(copy), as_json)


# -------------------------------------------------------------------------------------------------------- one key each


def _fresh_key() -> Secret:
    while True:
        try:
            return Secret.of(bytearray(secrets.token_bytes(Secret.SIZE)))
        except ValueError:  # zero or beyond the curve's order, once in 2^128
            continue


async def _added(custody: KeyCustody, key: Secret) -> dict[str, str]:
    """Keep `key` and make sure that it can be used. Raises: KeyManagerError."""
    address = await custody.add(key)
    await _read_back(custody, address, key)
    return {"address": address.checksum, "place": await custody.place(address)}


async def _copied(old: KeyCustody, new: KeyCustody, address: Address, *, remove: bool) -> dict[str, str]:
    key, warnings = await old.read(address)
    with key:
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
        try:
            await new.add(key)
        except KeyExists as error:
            click.echo(f"Warning: {error}", err=True)
        # A key is removed only after its copy was seen, and never when source and target are one place.
        await _read_back(new, address, key)
        place = await new.place(address)
        if remove:
            if place == await old.place(address):
                raise KeyManagerError(f"{place} is source and target: nothing was removed")
            await old.remove(address)
    return {"address": address.checksum, "place": place}


async def _read_back(custody: KeyCustody, address: Address, key: Secret) -> None:
    found, _ = await custody.read(address)
    with found:
        if found.buffer != key.buffer:
            raise KeyManagerError(f"the key kept for {address.checksum} is not the one that was given")


async def _place_of(custody: KeyCustody, address: Address) -> str:
    try:
        return await custody.place(address)
    except KeyManagerError as error:
        return f"({error})"


async def _examined(custody: KeyCustody, address: Address) -> dict[str, Any]:
    warnings: tuple[str, ...] = ()
    problem = ""
    try:
        key, warnings = await custody.read(address)
        key.wipe()
    except KeyManagerError as error:
        problem = str(error)
    return {"address": address.checksum, "problem": problem, "warnings": list(warnings)}


def _read_file(path: Path, password: str | None) -> Secret:
    """The key in a key file or hex file. Raises: KeyManagerError."""
    from ..keys.keyfile import MAX_FILE_SIZE, decrypt

    with path.open("rb") as file:
        content = bytearray(file.read(MAX_FILE_SIZE + 1))
    try:
        if not content.lstrip().startswith(b"{"):
            try:
                return Secret.from_hex(content.decode("ascii"))
            except ValueError:
                raise KeyManagerError(f"{path} holds neither a key file nor a private key of 64 hex digits") from None
        opener = _secret_from(password or "prompt", f"Password of {path}", "--file-password")

        def warn(text: str) -> None:
            click.echo(f"Warning: {path} {text}", err=True)

        try:
            return decrypt(bytes(content), opener, warn=warn)
        except KeyManagerError as error:
            raise type(error)(f"{path}: {error}") from None
    finally:
        wipe(content)


# -------------------------------------------------------------------------------------------------- places and options


@asynccontextmanager
async def _custody(place: Place, *, confirm: bool = False, unlock: bool = True) -> AsyncIterator[KeyCustody]:
    """Open what `place` names. `confirm`: a password that is asked for protects something new. `unlock`: ask for it.

    Raises: PerunError, click.UsageError.
    """
    from ..config import backend_options
    from ..plugin.custody import KeyManagerBackend
    from ..plugin.manager import PluginHost

    name, table, where = _named(place)
    backend = PluginHost.load([f"keymgr_{name}"]).keymgr(name)
    if not isinstance(backend, KeyManagerBackend):
        raise KeyManagerError(f"key manager {name!r} does not let others manage its keys")
    options: dict[str, object] = {**table, **_options(place, backend.config)}
    for field in _asked(backend.config) if unlock else ():
        if not {field, f"{field}file"} & options.keys():
            options[field] = _prompted(f"{field.capitalize()} of {name}", place.flag("secret"), confirm=confirm)
    config = backend_options(backend.config, options, where)
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(backend.custody(config))


def _named(place: Place) -> tuple[str, Mapping[str, object], str]:
    """Key manager, its option table, and what to call that table in errors. Raises: click.UsageError, ConfigError."""
    if (place.session is None) == (place.manager is None):
        raise click.UsageError(f"one of {place.flag('session')} and {place.flag('manager')} is needed")
    if place.session is None:
        return str(place.manager), {}, f"options of {place.manager}"
    from ..config import load_session

    session = load_session(place.session)
    wallets = {role: getattr(session.user, wallet) for role, wallet in _ROLES.items()}
    if place.role is None and dict(wallets["on-chain"]) != dict(wallets["off-chain"]):
        raise click.UsageError(f"{place.session} has two wallets: say {place.flag('role')} on-chain or off-chain")
    role = place.role or "off-chain"
    return session.keymgr, wallets[role], f"user.{_ROLES[role]}"


def _addresses_of_session(place: Place) -> tuple[Address, ...]:
    from ..config import load_session, parse_address

    assert place.session is not None
    user = load_session(place.session).user
    texts = {"on-chain": ("onchainaddr", user.onchainaddr), "off-chain": ("offchainaddr", user.offchainaddr)}
    roles = [place.role] if place.role is not None else list(texts)
    return tuple(parse_address(f"user.{texts[role][0]}", texts[role][1]) for role in roles)


def _options(place: Place, config: type[Struct]) -> dict[str, object]:
    """Options of the command line. Raises: click.UsageError when a secret is among the plain ones."""
    hidden = {name for name, extra in _marks(config).items() if extra.get("secret")}
    options: dict[str, object] = {}
    for text in place.options:
        name, value = _split(text, place.flag("option"))
        if name in hidden:
            raise click.UsageError(f"{name} is a secret: use {place.flag('secret')} {name}=prompt, file:… or env:…")
        options[name] = value
    for text in place.secrets:
        name, source = _split(text, place.flag("secret"))
        options[name] = _secret_from(source, name.capitalize(), place.flag("secret"))
    return options


def _split(text: str, flag: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise click.UsageError(f"{flag} takes NAME=VALUE")
    return name.lower(), value


def _marks(config: type[Struct]) -> dict[str, dict[str, Any]]:
    """What the types of a Struct's fields say beside the type (`perun_core.secret.SecretText`, `AskedText`)."""
    marks: dict[str, dict[str, Any]] = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        if get_origin(hint) is Annotated:
            extras = [mark.extra or {} for mark in get_args(hint)[1:] if isinstance(mark, Meta)]
            marks[name] = {key: value for extra in extras for key, value in extra.items()}
    return marks


def _asked(config: type[Struct]) -> tuple[str, ...]:
    return tuple(name for name, extra in _marks(config).items() if extra.get("ask"))


def _secret_from(source: str, what: str, flag: str) -> str:
    """A secret from where `source` says. Raises: click.UsageError, KeyManagerError; neither shows it."""
    kind, _, where = source.partition(":")
    if source == "prompt":
        return _prompted(what, flag, confirm=False)
    if kind == "env" and where:
        if where not in os.environ:
            raise KeyManagerError(f"{flag}: there is no environment variable {where}")
        return os.environ[where]
    if kind == "file" and where:
        try:
            with Path(where).open(encoding="utf-8") as file:
                return file.readline(_MAX_SECRET).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise KeyManagerError(f"{flag}: {where} cannot be read") from error
    # What stands there may be the secret itself, so it is not repeated.
    raise click.UsageError(f"{flag}: a secret comes from prompt, file:PATH or env:VARIABLE")


def _prompted(what: str, flag: str, *, confirm: bool) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}: nobody can be asked here; use {flag} with file:PATH or env:VARIABLE")
    # An empty answer is an answer: some keys have no password.
    text: str = click.prompt(
        what, hide_input=True, confirmation_prompt=confirm, default="", show_default=False, err=True
    )
    return text


def _address(text: str) -> Address:
    from ..config import parse_address

    return parse_address("address", text)


# --------------------------------------------------------------------------------------------------------------- output

T = TypeVar("T")


def _run(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`; what cannot be done ends the command with exit code 1."""
    import asyncio

    async def all_of_it() -> T:
        return await work()

    try:
        return asyncio.run(all_of_it())
    except (PerunError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _print_places(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['address']}  {row['place']}")

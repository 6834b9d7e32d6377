"""``perunnode rescue``: the key of rescue files, what is in them, and channels back from them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from ..config import load_node, load_session
from ..errors import BackupError, PerunError
from ..keys import Secret
from ..node.absence import shown_time
from ..node.backups import ImportSummary, Namespaces, Source, import_rescue, session_source
from ..node.rescue import RescueEntry, public_key_of, read_entries
from ..plugin.manager import PluginHost
from ..profile.gp090 import PROFILE
from ..protocol.records import ChannelRecord
from ..values import Address

_KEY_FILE = click.option(
    "--key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True, help="Private key."
)
_PASSWORD_FILE = click.option(
    "--password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the password of the key; without it the password is asked for.",
)
_CONFIGFILE = click.option("--configfile", default="node.yaml", show_default=True, help="Node configuration.")


@click.group()
def rescue() -> None:
    """Rescue files: what is needed to settle every open channel, kept by the node, readable with your key only."""


@rescue.command()
@click.argument("file", type=click.Path(path_type=Path))
@_PASSWORD_FILE
def key(file: Path, password_file: Path | None) -> None:
    """Make a key for rescue files in FILE, and print its public half for `rescuekey` of session files.

    Keep FILE and its password away from the node: who has both can read rescue files, and nobody else can.
    """
    from ..keys.keyfile import encrypt

    with _told(), Secret(_fresh_key()) as secret:
        content = encrypt(secret, _password(password_file, confirm=True))
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise BackupError(f"{file} cannot be made: {error.strerror}") from error
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        click.echo(public_key_of(secret))


@rescue.command(name="list")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_KEY_FILE
@_PASSWORD_FILE
@click.option("--json", "as_json", is_flag=True, help="Everything: parameters, transaction, signatures, addresses.")
@_CONFIGFILE
def show(file: Path, key_file: Path, password_file: Path | None, configfile: str, *, as_json: bool) -> None:
    """Show the open channels in FILE."""
    with _told():
        codec = _namespaces(configfile).codec()
        entries = _entries(file, key_file, password_file)
        found = [(entry, codec.decode(entry.channel_id, entry.record)) for entry in entries]
        if as_json:
            click.echo(json.dumps([_exported(entry, record) for entry, record in found], indent=2))
        else:
            for line in _lines(found):
                click.echo(line)


@rescue.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("session_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_KEY_FILE
@_PASSWORD_FILE
@_CONFIGFILE
def take_over(file: Path, session_file: Path, key_file: Path, password_file: Path | None, configfile: str) -> None:
    """Bring the channels in FILE into the database of SESSION_FILE, where that is missing or older.

    The session must not be open. It opens in recovery mode afterwards and settles with its peers, or by the contract.
    """
    with _told():
        config = load_node(Path(configfile), {}, os.environ)
        namespaces = _namespaces(configfile)
        source = session_source(session_file, load_session(session_file, sessiondir=config.sessiondir))
        entries = _entries(file, key_file, password_file)
        strangers = {entry.own for entry in entries} - {bytes(Address.parse(source.owner))}
        if strangers:
            raise BackupError(f"{file} belongs to {Address(strangers.pop()).checksum}, not to this session")
        summary = asyncio.run(_import(namespaces, source, entries))
        click.echo(
            f"{summary.added} channels added, {summary.renewed} brought to a newer state, {summary.kept} kept; "
            "the session opens in recovery mode"
        )


async def _import(namespaces: Namespaces, source: Source, entries: Sequence[RescueEntry]) -> ImportSummary:
    async with namespaces.open(source.backend, source.database) as store:
        return await import_rescue(store, entries, codec=namespaces.codec(), profile=PROFILE)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except PerunError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _fresh_key() -> bytes:
    from coincurve import PrivateKey

    secret = PrivateKey().secret
    assert isinstance(secret, bytes)
    return secret


def _password(file: Path | None, *, confirm: bool = False) -> str:
    if file is None:
        answer = click.prompt("Password of the rescue key", hide_input=True, confirmation_prompt=confirm)
        return str(answer)
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BackupError(f"{file} cannot be read") from error


def _entries(file: Path, key_file: Path, password_file: Path | None) -> list[RescueEntry]:
    from ..keys.keyfile import decrypt

    with decrypt(key_file.read_bytes(), _password(password_file)) as secret:
        entries, lost = read_entries(file, secret)
    if lost:
        click.echo(f"Warning: {lost} bytes of {file} are damaged and were skipped", err=True)
    return entries


def _namespaces(configfile: str) -> Namespaces:
    config = load_node(Path(configfile), {}, os.environ)
    return Namespaces(config, PluginHost.load(config.plugins.enabled))


def _lines(found: Sequence[tuple[RescueEntry, ChannelRecord]]) -> Iterator[str]:
    for entry, record in found:
        state = record.current.state
        version = "-" if state is None else str(state.version)
        peer = entry.peer_alias or record.peer.checksum
        when = shown_time(entry.written_at)
        yield f"{record.channel_id.hex()}  {record.phase}  version {version}  with {peer}  {when}"
        if state is None:
            continue
        for asset, row in zip(state.allocation.assets, state.allocation.balances, strict=True):
            ours, theirs = row[record.own_index], row[1 - record.own_index]
            yield f"    asset holder {asset.holder.checksum}: ours {ours}, theirs {theirs}"
    yield f"{len(found)} open channels"


def _exported(entry: RescueEntry, record: ChannelRecord) -> dict[str, object]:
    """One channel for other programs; bytes are hex, transaction and parameters have the form of the wire."""
    state = record.current.state
    return {
        "channel": record.channel_id.hex(),
        "phase": record.phase.value,
        "version": None if state is None else state.version,
        "final": state is not None and state.is_final,
        "chain_id": record.chain_id,
        "adjudicator": record.adjudicator.checksum,
        "own_index": record.own_index,
        "own": Address(entry.own).checksum,
        "receiver": Address(entry.receiver).checksum,
        "peer": record.peer.checksum,
        "peer_alias": entry.peer_alias,
        "peer_address": entry.peer_address,
        "params": PROFILE.encode_params(record.params).hex(),
        "transaction": PROFILE.encode_transaction(record.current).hex(),
        "staged": None if record.staged is None else PROFILE.state_hash(record.staged.state).hex(),
        "written_at": entry.written_at,
    }

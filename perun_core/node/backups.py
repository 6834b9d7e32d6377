"""Backups of namespaces, whatever store keeps them: written from a snapshot while the owner works, read back in doubt.

A backup is one file per namespace: a header, every record of every table, and a hash over all of it. It contains what
was signed and with whom, but no key and no password.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import IO, Final

import msgspec
from msgspec import Struct

from ..config import NodeConfig, SessionConfig, backend_options
from ..errors import BackupError, ConfigError
from ..plugin.manager import Kind, PluginHost
from ..ports.store import Doubt, Op, Put, Store, StoreContext, Table
from ..profile import Profile
from ..profile.gp090 import PROFILE
from ..protocol.records import SEQUENCE, ChannelRecord, RecordCodec, guard_key, sequence_mark
from .rescue import RescueEntry

MAGIC: Final = b"PERUN-BACKUP-1\n"
SUFFIX: Final = ".perunbackup"
PAGE: Final = 500
"""Records read in one step."""
MAX_FRAME: Final = 1 << 30


class BackupHeader(Struct, frozen=True):
    """What a backup is of."""

    identity: str
    """Of the namespace, see `StoreStatus`."""
    generation: int
    created: int
    """Unix seconds."""
    database: str
    """Directory of the namespace as the configuration named it."""
    owner: str
    """Off-chain address of the session; empty for the node's own namespace."""


class BackupSummary(Struct, frozen=True):
    """A backup that was written or read."""

    header: BackupHeader
    records: int
    channels: int
    """Not closed."""


class _Row(Struct, frozen=True, array_like=True):
    table: str
    key: bytes
    value: bytes


class Namespaces:
    """The stores that a configuration names, opened one at a time without the sessions they belong to."""

    def __init__(self, config: NodeConfig, plugins: PluginHost) -> None:
        self._config = config
        self._plugins = plugins

    def open(self, backend: str, path: str, *, snapshot: bool = False) -> AbstractAsyncContextManager[Store]:
        """The store at `path`, kept by the backend of that name. Raises: PluginError, ConfigError, StoreError."""
        found = self._plugins.store(backend)
        plugin = self._plugins.plugin_of(Kind.STORE, backend)
        options: Struct = backend_options(found.config, self._config.plugins.of(plugin), f"plugins.{plugin}")
        opened: AbstractAsyncContextManager[Store] = found.open(options, StoreContext(Path(path), snapshot=snapshot))
        return opened

    def codec(self) -> RecordCodec:
        """For the records in them."""
        return RecordCodec(PROFILE, self._plugins.apps())


class Source(Struct, frozen=True):
    """A namespace to back up, or to restore."""

    name: str
    """Of the file in the backup, without its ending."""
    backend: str
    database: str
    owner: str
    """Off-chain address of the session; empty for the node."""


def node_source(config: NodeConfig) -> tuple[Source, ...]:
    """The node's own namespace, if it keeps one."""
    return (Source("node", SessionConfig().store, config.statedir, ""),) if config.statedir else ()


def session_source(file: Path, config: SessionConfig) -> Source:
    """The namespace of a session. Raises: ConfigError when the file names none."""
    if not config.databasedir:
        raise ConfigError("databasedir", "", f"{file} names no database")
    owner = config.user.offchainaddr.lower()
    return Source(f"session-{owner.removeprefix('0x')}", config.store, config.databasedir, owner)


async def back_up(sources: Sequence[Source], target: Path, namespaces: Namespaces, now: int) -> list[BackupSummary]:
    """One file for each of `sources` in the directory `target`, each a snapshot of its own moment.

    Raises: BackupError, StoreError, PluginError, ConfigError. What was written before an error is complete and stays.
    """
    await asyncio.to_thread(_make_directory, target)
    written = []
    for source in sources:
        async with namespaces.open(source.backend, source.database, snapshot=True) as store:
            status = store.status()
            header = BackupHeader(status.identity, status.generation, now, source.database, source.owner)
            written.append(await write_backup(store, target / f"{source.name}{SUFFIX}", header))
    return written


async def bring_back(sources: Sequence[Source], origin: Path, namespaces: Namespaces) -> list[BackupSummary]:
    """Restore each of `sources` from its file in the directory `origin`, or from `origin` itself if that is a file.

    All files are checked before anything is written. Raises: BackupError, StoreError, PluginError, ConfigError.
    """
    whole = await asyncio.to_thread(origin.is_dir)
    files = [origin / f"{source.name}{SUFFIX}" if whole else origin for source in sources]
    for source, file in zip(sources, files, strict=True):
        summary, _ = read_backup(file)
        if summary.header.owner != source.owner:
            whose = summary.header.owner or "the node"
            raise BackupError(f"{file} belongs to {whose}, not to {source.owner or 'the node'}")
    restored = []
    for source, file in zip(sources, files, strict=True):
        async with namespaces.open(source.backend, source.database) as store:
            restored.append(await restore_backup(store, file))
    return restored


async def write_backup(store: Store, target: Path, header: BackupHeader) -> BackupSummary:
    """Write everything in `store`, a snapshot, to the new file `target`, durably.

    Raises: BackupError (the file exists, or cannot be written; no file is left), StoreError.
    """
    fresh = target.with_name(f"{target.name}.part")
    try:
        with _created(fresh) as file:
            digest = hashlib.sha256()
            records = channels = 0

            def put(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            put(MAGIC)
            put(_framed(msgspec.json.encode(header)))
            async with aclosing(_pages(store)) as pages:
                async for table, page in pages:
                    put(_framed(msgspec.msgpack.encode([_Row(table.value, key, value) for key, value in page])))
                    records += len(page)
                    channels += len(page) if table is Table.CHANNELS else 0
            put(_framed(b""))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.link(fresh, target)
        _sync_directory(target.parent)
    except FileExistsError as error:
        raise BackupError(f"{target} exists; a backup is never overwritten") from error
    except OSError as error:
        raise BackupError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return BackupSummary(header, records, channels)


async def _pages(store: Store) -> AsyncGenerator[tuple[Table, Sequence[tuple[bytes, bytes]]], None]:
    for table in Table:
        after: bytes | None = None
        while page := await store.scan(table, after=after, limit=PAGE):
            yield table, page
            after = page[-1][0]


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackupError(f"{path} cannot be made: {error.strerror}") from error


def _created(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb")


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_backup(source: Path) -> tuple[BackupSummary, tuple[Op, ...]]:
    """A whole backup as the batch that restores it. Raises: BackupError; nothing of a damaged one is given."""
    try:
        content = source.read_bytes()
    except OSError as error:
        raise BackupError(f"{source} cannot be read: {error.strerror}") from error
    if not content.startswith(MAGIC):
        raise BackupError(f"{source} is no backup of perunnode")
    body, digest = content[:-32], content[-32:]
    if hashlib.sha256(body).digest() != digest:
        raise BackupError(f"{source} is damaged or incomplete; nothing of it is used")
    try:
        frames = list(_frames(body))
        header = msgspec.json.decode(frames[0], type=BackupHeader)
        rows = [row for frame in frames[1:-1] for row in msgspec.msgpack.decode(frame, type=list[_Row])]
        ops = tuple(Put(Table(row.table), row.key, row.value) for row in rows)
    except (IndexError, ValueError, msgspec.MsgspecError) as error:
        raise BackupError(f"{source} is of another version of the software: {error}") from error
    channels = sum(op.table is Table.CHANNELS for op in ops)
    return BackupSummary(header, len(ops), channels), ops


def _frames(body: bytes) -> Iterator[bytes]:
    position = len(MAGIC)
    while position < len(body):
        length = int.from_bytes(body[position : position + 4], "big")
        frame = body[position + 8 : position + 8 + length]
        if length > MAX_FRAME or zlib.crc32(frame).to_bytes(4, "big") != body[position + 4 : position + 8]:
            raise ValueError("a part is malformed")
        yield frame
        position += 8 + length


async def restore_backup(store: Store, source: Path) -> BackupSummary:
    """Put a backup into an empty namespace, all of it or nothing; it is in doubt from before the first record.

    Raises: BackupError (damaged, or `store` is not empty), StoreError.
    """
    summary, ops = read_backup(source)
    if not await is_empty(store):
        raise BackupError("there are records already; a backup is restored into an empty database only")
    await store.distrust(Doubt.RESTORED, f"restored from a backup with generation {summary.header.generation}")
    if ops:
        await store.commit(ops)
    return summary


async def is_empty(store: Store) -> bool:
    """Whether no table has a record."""
    for table in Table:
        if await store.scan(table, limit=1):
            return False
    return True


class ImportSummary(Struct, frozen=True):
    """What became of the records of a rescue file."""

    added: int
    renewed: int
    """The store had an older state."""
    kept: int
    """The store had the same state or a newer one."""


async def import_rescue(
    store: Store, entries: Sequence[RescueEntry], *, codec: RecordCodec, profile: Profile
) -> ImportSummary:
    """Take over what the store lacks, in one batch; the namespace is in doubt from before the first record.

    With the records come their marks in the signing guard, so that nothing else can be signed for these versions.
    Raises: StoreError.
    """
    await store.distrust(Doubt.RESTORED, f"{len(entries)} channels were imported from a rescue file")
    ops: list[Op] = []
    added = renewed = kept = 0
    highest = int.from_bytes(await store.get(Table.META, SEQUENCE) or b"", "big")
    for entry in entries:
        record = codec.decode(entry.channel_id, entry.record)
        if await store.get(Table.ARCHIVE, entry.channel_id) is not None:
            kept += 1
            continue
        before = await store.get(Table.CHANNELS, entry.channel_id)
        if before is not None:
            if _version(codec, entry.channel_id, before) >= _version(codec, entry.channel_id, entry.record):
                kept += 1
                continue
            renewed += 1
        else:
            added += 1
        highest = max(highest, record.sequence)
        ops.append(Put(Table.CHANNELS, entry.channel_id, entry.record))
        ops.append(Put(Table.USED, entry.channel_id, record.sequence.to_bytes(8, "big")))
        ops += [Put(Table.SIGNED, key, digest) for key, digest in _marks(record, profile)]
    if ops:
        await store.commit((*ops, sequence_mark(highest)))
    return ImportSummary(added, renewed, kept)


def _version(codec: RecordCodec, key: bytes, value: bytes) -> int:
    state = codec.decode(key, value).current.state
    return -1 if state is None else state.version


def _marks(record: ChannelRecord, profile: Profile) -> Iterator[tuple[bytes, bytes]]:
    """What the signing guard has to know about the states in `record`."""
    channel_id, state = record.channel_id, record.current.state
    if state is None:
        return
    yield guard_key(channel_id, state.version, 0), bytes(profile.state_hash(state))
    following = [*record.candidates]
    if record.staged is not None and (staged := profile.state_hash(record.staged.state)) not in following:
        following.append(staged)
    for number, digest in enumerate(following):
        yield guard_key(channel_id, state.version + 1, number), bytes(digest)

"""The channel rescue file: what is needed to settle every open channel, kept up to date beside the store, encrypted.

The node knows only the public half of a key that the operator made (`perunnode rescue key`), so whoever takes the file,
or the node, cannot read it. Every record is sealed by itself, and records are appended only. Their heads are not
secret: a tag by which the node recognises a channel without opening anything, whether it is open, and its version. So
the node sees at every opening whether the file knows more than its store, which proves that the store is an old copy.

Appending happens after the store's commit, in a task of its own: it never delays a payment and never fails one.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from ..errors import BackupError
from ..protocol.records import ChannelRecord, RecordCodec
from ..secret import Secret
from ..values import Address, ChannelID

log = logging.getLogger(__name__)

MAGIC: Final = b"PERUN-RESCUE-1\n"
SALT: Final = 16
KEY: Final = 33
HEADER: Final = len(MAGIC) + SALT + KEY
MARKER: Final = b"\xf7PRF"
"""Begins a frame; after damage the next one is looked for."""
HEAD: Final = struct.Struct(">4sIBQ16s")
"""Marker, length of the sealed part, kind, version, tag."""
OPEN: Final = 1
CLOSED: Final = 2
MAX_SEALED: Final = 1 << 26
COALESCE: Final = 0.2
"""Seconds for which changes are collected before they are appended."""
LATE: Final = 10.0
"""Seconds after which a file that is behind is told."""
RETRY: Final = 5.0
"""Seconds until a failed append is tried again."""
COMPACT_FROM: Final = 4 << 20
"""Bytes below which a file is not rewritten."""
WASTE: Final = 4
"""A file is rewritten when it is so many times as long as what counts in it."""


class RescueEntry(Struct, frozen=True):
    """What one sealed record says."""

    channel_id: bytes
    record: bytes
    """As the store keeps it: parameters, own index, peer, chain, adjudicator, newest transaction, staged state."""
    own: bytes
    """Our off-chain address, whose key authorises the withdrawal."""
    receiver: bytes
    """Our on-chain address, to which the money goes."""
    peer_alias: str
    peer_address: str
    """Where the peer listens, as far as the contacts knew it."""
    written_at: int
    """Unix seconds."""
    closed: bool = False


class Frame(NamedTuple):
    """One record as it is in the file, sealed."""

    kind: int
    version: int
    tag: bytes
    data: bytes
    """All of its bytes."""


class Lag(Struct, frozen=True):
    """What the store knows and the file not yet."""

    channels: int
    seconds: float
    """Age of the oldest change that is missing in the file."""


# ------------------------------------------------------------------------------------------------------- the format


def _key_for(shared: bytes, salt: bytes, context: bytes) -> bytes:
    from Crypto.Hash import SHA256
    from Crypto.Protocol.KDF import HKDF

    derived = HKDF(shared, 32, salt, SHA256, context=b"perun rescue 1" + context)
    assert isinstance(derived, bytes)
    return derived


def seal(entry: RescueEntry, version: int, *, public_key: bytes, salt: bytes) -> bytes:
    """A frame that only the holder of the private key can open. Every frame has a key of its own."""
    from coincurve import PrivateKey
    from Crypto.Cipher import ChaCha20_Poly1305

    plain = msgspec.msgpack.encode(entry)
    once = PrivateKey()
    once_public = once.public_key.format()
    length = KEY + len(plain) + 16
    kind = CLOSED if entry.closed else OPEN
    head = HEAD.pack(MARKER, length, kind, version, tag_of(entry.channel_id, salt))
    shared = once.ecdh(public_key)
    cipher = ChaCha20_Poly1305.new(key=_key_for(shared, salt, once_public + head), nonce=bytes(12))
    cipher.update(salt + head)
    body, check = cipher.encrypt_and_digest(plain)
    frame = head + once_public + body + check
    return frame + zlib.crc32(frame).to_bytes(4, "big")


def unseal(frame: Frame, *, secret: Secret, salt: bytes) -> RescueEntry:
    """Raises: BackupError when it was not sealed for this key, or was changed."""
    from coincurve import PrivateKey
    from Crypto.Cipher import ChaCha20_Poly1305

    head, sealed = frame.data[: HEAD.size], frame.data[HEAD.size : -4]
    once_public, body, check = sealed[:KEY], sealed[KEY:-16], sealed[-16:]
    try:
        shared = PrivateKey(bytes(secret.buffer)).ecdh(once_public)
        cipher = ChaCha20_Poly1305.new(key=_key_for(shared, salt, once_public + head), nonce=bytes(12))
        cipher.update(salt + head)
        entry = msgspec.msgpack.decode(cipher.decrypt_and_verify(body, check), type=RescueEntry)
    except (ValueError, msgspec.MsgspecError) as error:
        raise BackupError("a record was changed, or sealed for another key") from error
    if tag_of(entry.channel_id, salt) != frame.tag:
        raise BackupError("a record names another channel than its head")
    return entry


def tag_of(channel_id: bytes, salt: bytes) -> bytes:
    """By which a channel is recognised in one file, and in no other."""
    return hashlib.blake2b(channel_id, key=salt, digest_size=16).digest()


def split(content: bytes) -> tuple[bytes, bytes, list[Frame], int]:
    """Salt, public key, whole frames in order, and how many bytes belong to none. Raises: BackupError."""
    if len(content) < HEADER or not content.startswith(MAGIC):
        raise BackupError("this is no rescue file")
    salt = content[len(MAGIC) : len(MAGIC) + SALT]
    public_key = content[len(MAGIC) + SALT : HEADER]
    frames, position, lost = [], HEADER, 0
    while position < len(content):
        frame = _frame_at(content, position)
        if frame is not None:
            frames.append(frame)
            position += len(frame.data)
            continue
        following = content.find(MARKER, position + 1)
        end = len(content) if following < 0 else following
        lost += end - position
        position = end
    return salt, public_key, frames, lost


def _frame_at(content: bytes, position: int) -> Frame | None:
    if position + HEAD.size > len(content):
        return None
    marker, length, kind, version, tag = HEAD.unpack_from(content, position)
    end = position + HEAD.size + length + 4
    if marker != MARKER or length > MAX_SEALED or end > len(content):
        return None
    data = content[position:end]
    if zlib.crc32(data[:-4]).to_bytes(4, "big") != data[-4:]:
        return None
    return Frame(kind, version, tag, data)


def newest(frames: Iterable[Frame]) -> Mapping[bytes, Frame]:
    """The last frame of the highest version of every channel that is not closed, by tag.

    A store that was put back appends older versions than the file has; they take nothing away.
    """
    found: dict[bytes, Frame] = {}
    for frame in frames:
        known = found.get(frame.tag)
        if frame.kind == CLOSED:
            found.pop(frame.tag, None)
        elif known is None or frame.version >= known.version:
            found[frame.tag] = frame
    return found


def read_entries(path: Path, secret: Secret) -> tuple[list[RescueEntry], int]:
    """The newest record of every open channel, and how many bytes were damaged. Raises: BackupError."""
    try:
        salt, _, frames, lost = split(path.read_bytes())
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}") from error
    return [unseal(frame, secret=secret, salt=salt) for frame in newest(frames).values()], lost


def public_key_of(secret: Secret) -> str:
    """As it is written into a session file."""
    from coincurve import PrivateKey

    return PrivateKey(bytes(secret.buffer)).public_key.format().hex()


# ------------------------------------------------------------------------------------------------------- the writer


class RescueFile:
    """The rescue file of one open session. Belongs to the loop that opened it."""

    def __init__(
        self,
        path: Path,
        public_key: bytes,
        *,
        codec: RecordCodec,
        own: Address,
        receiver: Address,
        contact: Callable[[Address], Awaitable[tuple[str, str]]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises: BackupError."""
        self.path = path
        self._public_key = public_key
        self._codec = codec
        self._own, self._receiver = own, receiver
        self._contact = contact
        self._clock = clock
        self._changed: dict[ChannelID, tuple[ChannelRecord, bool, float]] = {}
        self._appending: tuple[float, int] | None = None
        self._told = float("-inf")
        self._wake = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._caught_up.set()
        self._ending = False
        self._descriptor = _open_file(path, public_key)
        try:
            content = path.read_bytes()
            self._salt, _, frames, lost = split(content)
        except (OSError, BackupError):
            os.close(self._descriptor)
            raise
        if lost:
            log.warning("%s: %d bytes are damaged and skipped", path, lost)
        self._known = newest(frames)
        self._size = len(content)
        self._live = {tag: len(frame.data) for tag, frame in self._known.items()}

    # -- what the session calls -------------------------------------------------------------------------------------

    def note(self, record: ChannelRecord, *, closed: bool = False) -> None:
        """Append `record` soon. Call it after the store's commit; never waits, never raises."""
        before = self._changed.pop(record.channel_id, None)
        since = time.monotonic() if before is None else before[2]
        self._changed[record.channel_id] = (record, closed, since)
        self._caught_up.clear()
        self._wake.set()
        self._tell_when_late()

    def _tell_when_late(self) -> None:
        """A disk that neither works nor fails is told too, once a minute."""
        now, lag = time.monotonic(), self.lag()
        if lag.seconds > LATE and now - self._told > 60:
            self._told = now
            log.warning(
                "%s is %.0f seconds behind, %d channels are missing in it", self.path, lag.seconds, lag.channels
            )

    async def caught_up(self) -> None:
        """Wait until nothing is missing in the file."""
        await self._caught_up.wait()

    def lag(self) -> Lag:
        """How far the file is behind."""
        oldest = [since for _, _, since in self._changed.values()]
        count = len(self._changed)
        if self._appending is not None:
            oldest.append(self._appending[0])
            count += self._appending[1]
        return Lag(count, time.monotonic() - min(oldest) if oldest else 0.0)

    def lacks(self, records: Iterable[ChannelRecord]) -> bool:
        """Whether the file has open channels that are not in `records`."""
        return not {tag_of(bytes(record.channel_id), self._salt) for record in records}.issuperset(self._known)

    def ahead_of(self, records: Iterable[ChannelRecord], closed: Iterable[bytes]) -> str:
        """Why the file proves that the store is an old copy, in words; empty when it does not.

        `records` are all open channels of the store, `closed` the IDs of those it knows as closed; these matter only
        when `lacks` says so. Also notes the records of which the file knows less than the store.
        """
        missing = dict(self._known)
        behind = 0
        for record in records:
            state = record.current.state
            known = missing.pop(tag_of(bytes(record.channel_id), self._salt), None)
            version = 0 if state is None else state.version
            if known is not None and known.version > version:
                behind += 1
            elif known is None or known.version < version:
                self.note(record)
        for channel_id in closed:
            missing.pop(tag_of(channel_id, self._salt), None)
        if behind or missing:
            return f"{self.path} has newer states of {behind} channels, and {len(missing)} channels the store lacks"
        return ""

    # -- the task ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Append what is noted, until `end`. A failure is told, and tried again."""
        while not (self._ending and not self._changed):
            await self._wake.wait()
            self._wake.clear()
            if not self._ending:
                await asyncio.sleep(COALESCE)
            if self._changed and not await self._append() and self._ending:
                return

    async def _append(self) -> bool:
        taken, self._changed = self._changed, {}
        self._appending = (min(since for _, _, since in taken.values()), len(taken))
        try:
            contacts = {peer: await self._contact(peer) for peer in {record.peer for record, _, _ in taken.values()}}
            await asyncio.to_thread(self._write, taken, contacts)
        except OSError as error:
            log.warning("%s cannot be written: %s; %d channels are missing in it", self.path, error, len(taken))
            self._changed = {**taken, **self._changed}
            if not self._ending:
                asyncio.get_running_loop().call_later(RETRY, self._wake.set)
            return False
        finally:
            self._appending = None
        if not self._changed:
            self._caught_up.set()
        return True

    def _write(
        self,
        taken: Mapping[ChannelID, tuple[ChannelRecord, bool, float]],
        contacts: Mapping[Address, tuple[str, str]],
    ) -> None:
        frames = []
        for channel_id, (record, closed, _) in taken.items():
            state = record.current.state
            alias, address = contacts[record.peer]
            entry = RescueEntry(
                bytes(channel_id),
                self._codec.encode(record),
                bytes(self._own),
                bytes(self._receiver),
                alias,
                address,
                int(self._clock()),
                closed,
            )
            version = 0 if state is None else state.version
            frames.append(seal(entry, version, public_key=self._public_key, salt=self._salt))
            tag = tag_of(bytes(channel_id), self._salt)
            if closed:
                self._live.pop(tag, None)
            else:
                self._live[tag] = len(frames[-1])
        data = b"".join(frames)
        if os.write(self._descriptor, data) != len(data):
            raise OSError(28, "the disk is full")
        os.fsync(self._descriptor)
        self._size += len(data)
        if self._size > max(COMPACT_FROM, WASTE * sum(self._live.values())):
            self._compact()

    def _compact(self) -> None:
        """Keep the newest frame of every open channel, exactly as it is; the others are of no use to anybody."""
        content = self.path.read_bytes()
        kept = newest(split(content)[2])
        fresh = self.path.with_name(f"{self.path.name}.new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = content[:HEADER] + b"".join(frame.data for frame in kept.values())
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
            if len(newest(split(fresh.read_bytes())[2])) < len(kept):
                raise OSError(5, f"{fresh} does not hold what was written")
            os.replace(fresh, self.path)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                fresh.unlink()
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = len(data)
        _sync_directory(self.path.parent)

    def end(self) -> None:
        """Let `run` append what is left and return."""
        self._ending = True
        self._wake.set()

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


def _open_file(path: Path, public_key: bytes) -> int:
    """The file, locked, with a header. Raises: BackupError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise BackupError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        header = os.pread(descriptor, HEADER, 0)
        if len(header) < HEADER and os.fstat(descriptor).st_size == len(header):
            # New, or a crash cut the very first write short.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, MAGIC + os.urandom(SALT) + public_key)
            os.fsync(descriptor)
            _sync_directory(path.parent)
        elif not header.startswith(MAGIC):
            raise BackupError(f"{path} is no rescue file; it is left alone")
        elif header[len(MAGIC) + SALT :] != public_key:
            raise BackupError(f"{path} was begun with another key; move it to a safe place first")
    except BlockingIOError as error:
        os.close(descriptor)
        raise BackupError(f"{path} is in use by another session") from error
    except OSError as error:
        os.close(descriptor)
        raise BackupError(f"{path} cannot be written: {error.strerror}") from error
    except BackupError:
        os.close(descriptor)
        raise
    return descriptor


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def parse_public_key(text: str) -> bytes:
    """The key of a session file. Raises: BackupError."""
    from coincurve import PublicKey

    try:
        return PublicKey(bytes.fromhex(text.removeprefix("0x"))).format()
    except ValueError as error:
        raise BackupError("not a public key as `perunnode rescue key` prints it") from error


@asynccontextmanager
async def open_rescue(
    path: Path,
    public_key: str,
    *,
    codec: RecordCodec,
    own: Address,
    receiver: Address,
    contact: Callable[[Address], Awaitable[tuple[str, str]]],
) -> AsyncIterator[RescueFile]:
    """Keep the file at `path` up to date until the context ends. Raises: BackupError."""
    file = await asyncio.to_thread(
        lambda: RescueFile(path, parse_public_key(public_key), codec=codec, own=own, receiver=receiver, contact=contact)
    )
    task = asyncio.get_running_loop().create_task(file.run())
    try:
        yield file
    finally:
        file.end()
        await task
        file.close()

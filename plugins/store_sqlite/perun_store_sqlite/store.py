"""The store: staging on the event loop, one physical commit at a time in a thread.

Statements that stage a batch change pages in memory (some tens of µs; a page that is not cached is read first), so the
loop runs them itself. The physical commit waits for the disk, so a thread runs it: one hand-over to it and one back per
group, however many operations a group has. While one group is on its way to the disk, commits collect for the next.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple

from msgspec import Struct

from perun_core.errors import StoreBroken, StoreConflict, StoreError
from perun_core.ports.store import Delete, Op, Put, PutNew, StoreContext, Table

from .errors import is_busy, is_full, renamed
from .namespace import Namespace

_log = logging.getLogger(__name__)

_PUT: Final = {t: f'INSERT INTO "{t}" VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value' for t in Table}
_PUT_NEW: Final = {t: f'INSERT INTO "{t}" VALUES (?, ?) ON CONFLICT DO NOTHING' for t in Table}
_DELETE: Final = {t: f'DELETE FROM "{t}" WHERE key = ?' for t in Table}
_GET: Final = {t: f'SELECT value FROM "{t}" WHERE key = ?' for t in Table}
_SCAN: Final = {t: f'SELECT key, value FROM "{t}" WHERE key >= ? ORDER BY key LIMIT ?' for t in Table}
_SCAN_BELOW: Final = {t: f'SELECT key, value FROM "{t}" WHERE key >= ? AND key < ? ORDER BY key LIMIT ?' for t in Table}


class SqliteConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the store ``sqlite``. The defaults suit a node with some hundred channels."""

    wal_autocheckpoint: int = 1000
    """Pages (4 KiB) in the write-ahead log after which a commit moves them into the database. At least 1."""
    max_bytes: int = 0
    """Size beyond which the database of one namespace must not grow (StoreFull); 0 is the size of the disk."""

    def __post_init__(self) -> None:
        """Raises: ValueError."""
        if self.wal_autocheckpoint < 1:
            raise ValueError("wal_autocheckpoint must be at least 1")
        if self.max_bytes < 0:
            raise ValueError("max_bytes must not be negative")


class _Request(NamedTuple):
    """One call of `commit` that waits for its outcome."""

    batch: tuple[Op, ...]
    outcome: asyncio.Future[None]

    def succeed(self) -> None:
        _resolve(self.outcome)

    def fail(self, error: StoreError, cause: BaseException | None = None) -> None:
        if not self.outcome.done():
            error.__cause__ = cause
            self.outcome.set_exception(error)


class SqliteStore:
    """One open namespace; implements `perun_core.ports.store.Store`. Use it on the loop that opened it."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._db = namespace.writer
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Request] = deque()
        self._alone: deque[_Request] = deque()
        """Requests of a group for which there was no room: each gets a transaction of its own."""
        self._turn_planned = False
        self._in_flight = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._released = False
        self._broken_by: BaseException | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="perun-store-sqlite", daemon=True)
        self._thread.start()

    # ----------------------------------------------------------------------------------------------------------- port

    async def commit(self, batch: Sequence[Op]) -> None:
        """See `Store.commit`. Commits that are called while another is on its way to the disk share the next one."""
        self._refuse_when_unusable()
        request = _Request(_checked(batch), self._loop.create_future())
        self._waiting.append(request)
        self._idle.clear()
        if not self._in_flight:
            self._plan_turn()
        await request.outcome

    async def get(self, table: Table, key: bytes) -> bytes | None:
        """See `Store.get`. Answers on the loop: a lookup takes some µs."""
        self._refuse_when_unusable()
        rows = self._read(_GET[table], (key,))
        return rows[0][0] if rows else None

    async def scan(
        self, table: Table, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """See `Store.scan`. Answers on the loop; `limit` bounds how long that takes."""
        self._refuse_when_unusable()
        # The least key greater than `after` is `after` with a zero byte behind it.
        start = prefix if after is None else max(prefix, after + b"\x00")
        end = _first_behind(prefix)
        if end is None:
            return self._read(_SCAN[table], (start, max(limit, 0)))
        return self._read(_SCAN_BELOW[table], (start, end, max(limit, 0)))

    def pragma_synchronous(self) -> int:
        """What SQLite says about this namespace's writing connection now; 2 means that commits wait for the disk."""
        self._refuse_when_unusable()
        (value,) = self._db.execute("PRAGMA synchronous").fetchone()
        return int(value)

    # -------------------------------------------------------------------------------------------------------- reading

    def _read(self, statement: str, parameters: tuple[object, ...]) -> list[Any]:
        try:
            return self._namespace.reader.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise renamed(error, self._namespace.path) from error

    def _refuse_when_unusable(self) -> None:
        if self._closed:
            raise StoreBroken(f"the store at {self._namespace.path} is closed")
        if self._broken_by is not None:
            raise self._broken() from self._broken_by

    def _broken(self) -> StoreBroken:
        return StoreBroken(f"the store at {self._namespace.path} failed earlier and must be opened again")

    # ------------------------------------------------------------------------------------------------- group commit

    def _plan_turn(self) -> None:
        """Take the next group at the end of this loop iteration, so that everybody who is awake can join it."""
        if not self._turn_planned:
            self._turn_planned = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_planned = False
        if self._released:
            self._fail_everybody(f"the store at {self._namespace.path} is closed")
        elif group := self._next_group():
            self._start(group)
        else:
            self._idle.set()

    def _next_group(self) -> list[_Request]:
        if self._alone:
            return [self._alone.popleft()]
        group = list(self._waiting)
        self._waiting.clear()
        return group

    def _start(self, group: list[_Request]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            staged = [request for request in group if self._staged(request)]
            if not staged:
                self._db.execute("ROLLBACK")
        except Exception as error:  # whatever it is, the futures of the group must end
            self._give_up(group, error)
        else:
            self._in_flight = bool(staged)
            if staged:
                self._jobs.put(lambda: self._commit_in_thread(staged))
                return
        self._plan_turn()

    def _staged(self, request: _Request) -> bool:
        """Apply a batch inside the open transaction, all of it or nothing; False when it met a conflict."""
        self._db.execute("SAVEPOINT batch")
        for op in request.batch:
            if not self._apply(op):
                self._db.execute("ROLLBACK TO batch")
                self._db.execute("RELEASE batch")
                request.fail(StoreConflict(f"another value is stored under {op.table}/{op.key.hex()}"))
                return False
        self._db.execute("RELEASE batch")
        return True

    def _apply(self, op: Op) -> bool:
        match op:
            case Put():
                self._db.execute(_PUT[op.table], (op.key, op.value))
            case PutNew():
                if self._db.execute(_PUT_NEW[op.table], (op.key, op.value)).rowcount == 0:
                    (value,) = self._db.execute(_GET[op.table], (op.key,)).fetchone()
                    return bool(value == op.value)
            case Delete():
                self._db.execute(_DELETE[op.table], (op.key,))
        return True

    def _commit_in_thread(self, group: list[_Request]) -> None:
        failure: Exception | None = None
        try:
            self._db.execute("COMMIT")
        except Exception as error:
            failure = error
        self._tell_loop(lambda: self._finish(group, failure))

    def _finish(self, group: list[_Request], failure: Exception | None) -> None:
        self._in_flight = False
        if failure is None:
            for request in group:
                request.succeed()
        else:
            self._give_up(group, failure)
        self._plan_turn()

    def _give_up(self, group: list[_Request], error: Exception) -> None:
        """Undo the open transaction and decide who may try again.

        After a full disk or a foreign lock the database is as it was before the group. After anything else (an I/O
        error of fsync above all) nobody can say what a later commit would make durable: the store refuses from here.
        """
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as failed_rollback:
            error = failed_rollback
        if is_full(error) and len(group) > 1:
            self._alone.extend(request for request in group if not request.outcome.done())
            return
        for request in group:
            request.fail(renamed(error, self._namespace.path), error)
        if not (is_full(error) or is_busy(error)):
            self._broken_by = error
            self._fail_everybody(str(self._broken()))

    def _fail_everybody(self, problem: str) -> None:
        for request in (*self._alone, *self._waiting):
            request.fail(StoreBroken(problem), self._broken_by)
        self._alone.clear()
        self._waiting.clear()
        self._idle.set()

    # --------------------------------------------------------------------------------------------------------- thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _tell_loop(self, news: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(news)
        except RuntimeError:
            _log.debug("the event loop ended before a result of the store reached it")

    async def aclose(self) -> None:
        """Let the commits that were called finish, then release the namespace. Safe to cancel: it still closes."""
        if self._closed:
            return
        self._closed = True
        closed: asyncio.Future[None] = self._loop.create_future()
        try:
            await self._idle.wait()
        finally:
            self._released = True
            self._jobs.put(lambda: self._close_in_thread(closed))
            self._jobs.put(None)
            await asyncio.shield(closed)
            self._thread.join()

    def _close_in_thread(self, closed: asyncio.Future[None]) -> None:
        try:
            self._namespace.close()
        except StoreError as error:
            _log.warning("%s; nothing is lost, the log is read at the next opening", error)
        finally:
            self._tell_loop(lambda: _resolve(closed))


def _resolve(future: asyncio.Future[None]) -> None:
    """Whoever waited may have been cancelled meanwhile."""
    if not future.done():
        future.set_result(None)


def _checked(batch: Sequence[Op]) -> tuple[Op, ...]:
    """Raises: ValueError for an empty batch, TypeError for what is not made of bytes: both are the caller's bugs."""
    if not batch:
        raise ValueError("an empty batch is never committed")
    for op in batch:
        if not isinstance(op.key, bytes):
            raise TypeError("a key is bytes")
        if not isinstance(op, Delete) and not isinstance(op.value, bytes):
            raise TypeError("a value is bytes")
    return tuple(batch)


def _first_behind(prefix: bytes) -> bytes | None:
    """The least key that is greater than every key with this prefix; None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


@asynccontextmanager
async def open_sqlite(config: SqliteConfig, context: StoreContext) -> AsyncIterator[SqliteStore]:
    """Open the namespace at `context.path` and own it until the context ends.

    Raises: StoreLocked, StoreTooNew (nothing was touched), StoreFull, StoreBroken.
    """
    namespace = await asyncio.to_thread(
        Namespace, context.path, wal_autocheckpoint=config.wal_autocheckpoint, max_bytes=config.max_bytes
    )
    store = SqliteStore(namespace)
    try:
        yield store
    finally:
        await store.aclose()

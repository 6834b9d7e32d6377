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
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Final, NamedTuple

from msgspec import Struct

from perun_core.errors import StoreBroken, StoreConflict, StoreError, StoreFenced
from perun_core.ports.store import Delete, Doubt, Op, Put, PutNew, Store, StoreContext, StoreStatus, Table

from .errors import is_busy, is_full, renamed
from .fence import COMMITS_PER_GENERATION, SECONDS_PER_GENERATION, FenceRow
from .namespace import DATABASE, Namespace
from .reading import TableReader, open_snapshot
from .schema import checksum

_log = logging.getLogger(__name__)

FENCE_RETRY: Final = 5.0
"""Seconds until a fence that could not be written is tried again."""

_PUT: Final = {
    t: f'INSERT INTO "{t}" VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, sum = excluded.sum'
    for t in Table
}
_PUT_NEW: Final = {t: f'INSERT INTO "{t}" VALUES (?, ?, ?) ON CONFLICT DO NOTHING' for t in Table}
_DELETE: Final = {t: f'DELETE FROM "{t}" WHERE key = ?' for t in Table}
_VALUE: Final = {t: f'SELECT value FROM "{t}" WHERE key = ?' for t in Table}


class SqliteConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the store ``sqlite``. The defaults suit a node with some hundred channels."""

    wal_autocheckpoint: int = 1000
    """Pages (4 KiB) in the write-ahead log after which a commit moves them into the database. At least 1."""
    max_bytes: int = 0
    """Size beyond which the database of one namespace must not grow (StoreFull); 0 is the size of the disk."""
    fencedir: str = ""
    """Directory for the fence files, by which an older copy that was put back is noticed. It must exist, survive
    restarts, and be part of no backup. Empty: a hidden file beside the directory of the namespace."""

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
        self._database = namespace.path / DATABASE
        self._reader = TableReader(namespace.reader, self._database)
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Request] = deque()
        self._alone: deque[_Request] = deque()
        """Requests of a group for which there was no room: each gets a transaction of its own."""
        self._special: deque[tuple[Callable[[], None], asyncio.Future[None]]] = deque()
        """What needs the database for itself and waits for the disk: changes of the doubt."""
        self._turn_planned = False
        self._in_flight = False
        self._fence = namespace.fence
        self._fence_follows = False
        self._fence_again_at = 0.0
        self._fenced_by: StoreFenced | None = None
        self._commits_of_generation = 0
        self._generation_since = self._loop.time()
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
        self._refuse_commits()
        request = _Request(_checked(batch), self._loop.create_future())
        self._waiting.append(request)
        self._idle.clear()
        if not self._in_flight:
            self._plan_turn()
        await request.outcome

    async def get(self, table: Table, key: bytes) -> bytes | None:
        """See `Store.get`. Answers on the loop: a lookup takes some µs."""
        self._refuse_when_unusable()
        return self._reader.get(table, key)

    async def scan(
        self, table: Table, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """See `Store.scan`. Answers on the loop; `limit` bounds how long that takes."""
        self._refuse_when_unusable()
        return self._reader.scan(table, prefix, after, limit)

    def status(self) -> StoreStatus:
        """See `Store.status`."""
        return self._fence.status()

    async def distrust(self, doubt: Doubt, reason: str) -> None:
        """See `Store.distrust`."""
        await self._alone_with_the_database(lambda: self._fence.put_in_doubt(doubt, reason))

    async def trust(self, prefix: bytes = b"") -> None:
        """See `Store.trust`."""
        await self._alone_with_the_database(lambda: self._fence.release(prefix))

    async def _alone_with_the_database(self, work: Callable[[], None]) -> None:
        self._refuse_commits()
        outcome: asyncio.Future[None] = self._loop.create_future()
        self._special.append((work, outcome))
        self._idle.clear()
        if not self._in_flight:
            self._plan_turn()
        await outcome

    def pragma_synchronous(self) -> int:
        """What SQLite says about this namespace's writing connection now; 2 means that commits wait for the disk."""
        self._refuse_when_unusable()
        (value,) = self._db.execute("PRAGMA synchronous").fetchone()
        return int(value)

    def _refuse_when_unusable(self) -> None:
        if self._closed:
            raise StoreBroken(f"the store at {self._namespace.path} is closed")
        if self._broken_by is not None:
            raise self._broken() from self._broken_by

    def _refuse_commits(self) -> None:
        self._refuse_when_unusable()
        if self._fenced_by is not None:
            raise StoreFenced(str(self._fenced_by)) from self._fenced_by

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
            self._fail_everybody(StoreBroken(f"the store at {self._namespace.path} is closed"))
        elif self._special:
            work, outcome = self._special.popleft()
            self._in_flight = True
            self._jobs.put(lambda: self._work_in_thread(work, outcome))
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
            self._fence.check()
            staged = [request for request in group if self._staged(request)]
            row = self._next_generation() if staged else None
            if not staged:
                self._db.execute("ROLLBACK")
        except Exception as error:  # whatever it is, the futures of the group must end
            self._give_up(group, error)
        else:
            self._in_flight = bool(staged)
            if staged:
                self._jobs.put(lambda: self._commit_in_thread(staged, row))
                return
        self._plan_turn()

    def _next_generation(self) -> FenceRow | None:
        """Let the generation grow with this group, when enough happened since and the fence has caught up."""
        self._commits_of_generation += 1
        due = self._commits_of_generation >= COMMITS_PER_GENERATION
        if not due and self._loop.time() - self._generation_since < SECONDS_PER_GENERATION:
            return None
        if not self._fence.may_advance():
            return None
        self._commits_of_generation = 0
        self._generation_since = self._loop.time()
        return self._fence.advance()

    def _staged(self, request: _Request) -> bool:
        """Apply a batch inside the open transaction, all of it or nothing; False when it was refused."""
        if self._fence.in_doubt:
            status = self._fence.status()
            for op in request.batch:
                if isinstance(op, PutNew) and op.table is Table.SIGNED and not status.may_sign(op.key):
                    request.fail(StoreFenced(f"the store is in doubt, so nothing is signed: {status.reason}"))
                    return False
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
                self._db.execute(_PUT[op.table], (op.key, op.value, checksum(op.table, op.key, op.value)))
            case PutNew():
                row = (op.key, op.value, checksum(op.table, op.key, op.value))
                if self._db.execute(_PUT_NEW[op.table], row).rowcount == 0:
                    (value,) = self._db.execute(_VALUE[op.table], (op.key,)).fetchone()
                    return bool(value == op.value)
            case Delete():
                self._db.execute(_DELETE[op.table], (op.key,))
        return True

    def _commit_in_thread(self, group: list[_Request], row: FenceRow | None) -> None:
        failure: Exception | None = None
        try:
            self._db.execute("COMMIT")
            if row is not None:
                self._fence.advanced(row)
        except Exception as error:
            failure = error
        self._tell_loop(lambda: self._finish(group, failure))

    def _let_fence_follow(self) -> None:
        """In another thread than commits, which do not wait for it."""
        if self._fence_follows or self._fence.may_advance() or self._loop.time() < self._fence_again_at:
            return

        def followed(_: asyncio.Future[None]) -> None:
            self._fence_follows = False
            if not self._fence.may_advance():
                self._fence_again_at = self._loop.time() + FENCE_RETRY

        self._fence_follows = True
        self._loop.run_in_executor(None, self._follow).add_done_callback(followed)

    def _follow(self) -> None:
        """Until it is done the row is one ahead of the fence, which is no rollback."""
        try:
            self._fence.follow()
        except StoreError as error:
            _log.error("%s", error)  # the next commit meets the same and is refused
        except OSError as error:
            _log.warning("the fence %s cannot be written: %s; it is tried again", self._fence.file, error)

    def _work_in_thread(self, work: Callable[[], None], outcome: asyncio.Future[None]) -> None:
        failure: Exception | None = None
        try:
            work()
        except Exception as error:
            failure = error
        self._tell_loop(lambda: self._finish_alone(outcome, failure))

    def _finish_alone(self, outcome: asyncio.Future[None], failure: Exception | None) -> None:
        self._in_flight = False
        if failure is None:
            _resolve(outcome)
        elif not outcome.done():
            refused = self._renamed(failure)
            refused.__cause__ = failure
            outcome.set_exception(refused)
        self._plan_turn()

    def _renamed(self, error: Exception) -> StoreError:
        if isinstance(error, StoreFenced):
            self._fenced_by = error
        return error if isinstance(error, StoreError) else renamed(error, self._database)

    def _finish(self, group: list[_Request], failure: Exception | None) -> None:
        self._in_flight = False
        if failure is None:
            for request in group:
                request.succeed()
            self._let_fence_follow()
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
        if isinstance(error, StoreFenced):
            self._fenced_by = error
            for request in group:
                request.fail(StoreFenced(str(error)), error)
            self._fail_everybody(error)
            return
        for request in group:
            request.fail(renamed(error, self._database), error)
        if not (is_full(error) or is_busy(error)):
            self._broken_by = error
            self._fail_everybody(self._broken())

    def _fail_everybody(self, error: StoreError) -> None:
        for request in (*self._alone, *self._waiting):
            request.fail(type(error)(str(error)), self._broken_by)
        for _, outcome in self._special:
            if not outcome.done():
                outcome.set_exception(type(error)(str(error)))
        self._alone.clear()
        self._waiting.clear()
        self._special.clear()
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


@asynccontextmanager
async def open_sqlite(config: SqliteConfig, context: StoreContext) -> AsyncIterator[Store]:
    """Open the namespace at `context.path`, and own it until the context ends unless a snapshot is asked for.

    Raises: StoreLocked, StoreTooNew (nothing was touched), StoreFull, StoreBroken.
    """
    if context.snapshot:
        async with open_snapshot(context.path) as snapshot:
            yield snapshot
        return
    async with _owned(config, context.path) as store:
        yield store


@asynccontextmanager
async def _owned(config: SqliteConfig, path: Path) -> AsyncIterator[SqliteStore]:
    namespace = await asyncio.to_thread(
        Namespace,
        path,
        wal_autocheckpoint=config.wal_autocheckpoint,
        max_bytes=config.max_bytes,
        fence_directory=Path(config.fencedir) if config.fencedir else None,
    )
    store = SqliteStore(namespace)
    try:
        yield store
    finally:
        await store.aclose()

"""Two people with a node process each, and the origin their processes are forked from."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio

from tests.faults.process.launcher import Trap
from tests.integration.clients import Channel, Client, ClientError, Stream, Update
from tests.integration.world import MARKER, Node, Person

LAUNCHER: Final = Path(__file__).parent / "launcher.py"
LOOK: Final = 0.02
"""Seconds between two looks at something outside this process."""
START_LIMIT: Final = 30.0


class Died(Exception):
    """The process ended while it was waited for."""


class Origin:
    """The process that node processes are forked from."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._born: dict[str, asyncio.Future[int]] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Origin]:
        """An origin that ends, with all its nodes, at the end."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, str(LAUNCHER), stdin=pipe, stdout=pipe)
        assert process.stdout is not None and process.stdin is not None
        ready = await process.stdout.readline()
        if not ready:
            raise RuntimeError("the origin of the nodes did not start")
        origin = cls(process)
        try:
            yield origin
        finally:
            process.stdin.close()
            await process.wait()
            await origin._reading

    async def fork(self, order: dict[str, object]) -> tuple[int, asyncio.Future[int]]:
        """A new node: its process ID, and how it ends."""
        name = str(order["name"])
        born = self._born[name] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = await born
        return pid, self._ends[pid]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            news = json.loads(line)
            if "born" in news:
                self._ends[news["pid"]] = asyncio.get_running_loop().create_future()
                self._born.pop(news["born"]).set_result(news["pid"])
            elif "died" in news:
                self._ends.pop(news["pid"]).set_result(news["code"])


@dataclass(eq=False)
class Player:
    """A person, the node process that serves it, and the client with which it uses the node."""

    person: Person
    node: Node
    origin: Origin
    home: Path
    refuses: bool = False
    """Says no to updates instead of yes."""
    silent: bool = False
    """Does not answer updates."""
    client: Client | None = None
    session: str = ""
    channel: str = ""
    """The channel of the run, once it is known."""
    lives: int = 0
    told: Callable[[Player, Update, Channel | ClientError], None] | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Its node asked about an update."""
    _pid: int = 0
    _end: asyncio.Future[int] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _watched: set[str] = field(default_factory=set)

    @property
    def alias(self) -> str:
        """Its name."""
        return self.person.alias

    @property
    def account(self) -> str:
        """Its on-chain account."""
        return self.person.on_chain

    @property
    def trap(self) -> Trap:
        """Where its process dies."""
        return Trap(self.home / f"{self.alias}.trap")

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.home / f"{self.alias}.log"

    @property
    def trace(self) -> Path:
        """What its processes did."""
        return self.home / f"{self.alias}.trace"

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._end is not None and not self._end.done()

    async def death(self) -> int:
        """Wait until the process is gone; how it ended."""
        assert self._end is not None
        return await asyncio.shield(self._end)

    async def start(self) -> None:
        """Have a process that serves. Raises: Died."""
        for file in (self.log, self.trace):
            file.touch()
        at = self.log.stat().st_size
        order: dict[str, object] = {
            "name": f"{self.home.name} {self.node.name} {self.lives}",
            "home": str(self.home),
            "log": str(self.log),
            "trap": str(self.home / f"{self.alias}.trap"),
            "trace": str(self.trace),
            "arguments": ["run", "--configfile", str(self.node.config), "--grpcport", str(self.node.port)],
        }
        _ = self.trap  # the file exists before the process does
        self.lives += 1
        self._pid, self._end = await self.origin.fork(order)
        async with asyncio.timeout(START_LIMIT):
            with self.log.open("rb") as log:
                log.seek(at)
                said = b""
                while MARKER.encode() not in (said := said + log.read()):
                    if self._end.done():
                        raise Died(f"{self.alias}'s node ended with {self._end.result()}: {said.decode()[-2000:]}")
                    await asyncio.sleep(LOOK)
        self.client = Client(self.node.port)

    async def join(self) -> tuple[Channel, ...]:
        """Open the session and listen to it; what was restored. Raises: ClientError; Died when the node did."""
        assert self.client is not None
        try:
            self.session, restored = await self.client.open_session(str(self.person.session_file))
            proposals = await self.client.proposals(self.session)
        except grpc.aio.AioRpcError as error:
            raise Died(str(error.code())) from error
        self._spawn(self._answer_proposals(proposals))
        for channel in restored:
            await self.watch(channel.id)
        return restored

    async def kill(self) -> None:
        """kill -9, from outside."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        await self.bury()

    async def bury(self) -> None:
        """After a death: forget what belonged to the process."""
        await self.death()
        await self.leave()

    async def leave(self) -> None:
        """Drop everything that uses the session."""
        tasks, self._tasks = self._tasks, set()
        self._watched = set()
        self.session = ""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self.is_alive and self.client is not None:
            await self.client.channel.close(None)
            self.client = None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(lambda task: None if task.cancelled() else task.exception())

    # ---- what a person does with its client -------------------------------------------------------------------------

    async def _answer_proposals(self, proposals: Any) -> None:
        assert self.client is not None
        async for proposal in proposals:
            with suppress(ClientError):
                opened = await self.client.respond_proposal(self.session, proposal.id, accept=True)
                self.channel = opened.id
                await self.watch(opened.id)

    async def watch(self, channel: str) -> None:
        """Answer updates of a channel from now on; no effect when that is done already."""
        if channel in self._watched or self.client is None or not self.session:
            return
        self._watched.add(channel)
        try:
            stream = await self.client.updates(self.session, channel)
        except (ClientError, grpc.aio.AioRpcError):
            self._watched.discard(channel)
            return
        self.channel = channel
        self._spawn(self._answer_updates(channel, stream))

    async def _answer_updates(self, channel: str, updates: Stream[Update]) -> None:
        async for update in updates:
            if update.type == "closed":
                continue
            self.asked.set()
            if not self.silent:
                self._spawn(self._answer(channel, update))
        self._watched.discard(channel)

    async def _answer(self, channel: str, update: Update) -> None:
        assert self.client is not None
        result: Channel | ClientError
        try:
            result = await self.client.respond_update(self.session, channel, update.id, accept=not self.refuses)
        except ClientError as error:
            result = error
        if self.told is not None:
            self.told(self, update, result)

"""Kit for peer transports: a proof of the port, and a network in memory whose faults a test controls.

A transport is proven by subclassing `CommConformance` and giving its two fixtures::

    class TestMyTransport(CommConformance):
        @pytest.fixture
        async def comm(self):
            async with open_mine(MyOptions(), CommContext()) as comm:
                yield comm

        @pytest.fixture
        def free_address(self):
            return lambda: "..."          # an address that nobody listens on, another one at each call

`MemoryNetwork` is for tests of what uses a transport::

    network = MemoryNetwork()
    alice, bob = network.comm("alice-host"), network.comm("bob-host")
    network.segment = 1                   # every byte arrives on its own
    network.hold(); ...; network.release()
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import pytest

from ..errors import AddressInUse, AddressInvalid, ConnectionLost, PeerUnreachable
from ..ports.comm import Authentication, Comm, Connection, Listener

CAPACITY: Final = 1 << 16
"""Bytes that one direction of a connection in memory holds before its writer waits."""

PATIENCE: Final = 10.0
"""Seconds after which the kit gives up waiting for something that must happen."""


# ---------------------------------------------------------------------------------------------------------- the fake


class MemoryNetwork:
    """Transports of one network reach each other; all faults are set here. Belongs to one event loop.

    `segment`: bytes per piece into which what is written is cut; 0 keeps every write whole.
    `delay`: seconds that bytes and ends are underway.
    `unreachable`: addresses at which nobody answers a dial; the dialler waits until its time is over.
    `dials`: the addresses dialled so far, in order.
    """

    def __init__(self) -> None:
        self.segment = 0
        self.delay = 0.0
        self.unreachable: set[str] = set()
        self.dials: list[str] = []
        self.held = False
        self._ends: list[MemoryConnection] = []
        self._listeners: dict[str, MemoryListener] = {}
        self._last_port = 49151

    def comm(self, host: str = "127.0.0.1") -> MemoryComm:
        """A transport on the machine named `host`."""
        return MemoryComm(self, host)

    @property
    def connections(self) -> int:
        """Connections of which at least one end is still open."""
        return len({end.wire for end in self._ends if not end.closed})

    def hold(self) -> None:
        """Keep everything that is written, and every end, underway until `release`."""
        self.held = True

    def release(self) -> None:
        """Let arrive what is underway, and what is written from now on."""
        self.held = False
        for end in self._ends:
            end.incoming.pump()

    def cut(self) -> None:
        """Break every connection; both ends notice at once."""
        for end in self._ends:
            end.incoming.break_off()

    def silence(self) -> None:
        """Make every connection half-open: what is written from now on vanishes, and no end notices the other's."""
        for end in self._ends:
            end.incoming.silent = True

    def bind(self, listener: MemoryListener) -> None:
        """Raises: AddressInUse."""
        if listener.address in self._listeners:
            raise AddressInUse(f"{listener.address} is in use")
        self._listeners[listener.address] = listener

    def unbind(self, address: str) -> None:
        """Free `address`."""
        self._listeners.pop(address, None)

    async def connect(self, address: str, host: str, timeout: float) -> MemoryConnection:
        """A connection from `host` to who listens on `address`. Raises: PeerUnreachable."""
        self.dials.append(address)
        await asyncio.sleep(0)
        if address in self.unreachable:
            await asyncio.sleep(timeout)
            raise PeerUnreachable(f"{address} did not answer")
        listener = self._listeners.get(address)
        if listener is None:
            raise PeerUnreachable(f"nobody listens on {address}")
        self._last_port += 1
        wire, there, back = self._last_port, _Pipe(self), _Pipe(self)
        near = MemoryConnection(self, wire, address, incoming=back, outgoing=there)
        far = MemoryConnection(self, wire, f"{host}:{wire}", incoming=there, outgoing=back)
        self._ends = [end for end in self._ends if not end.closed] + [near, far]
        listener.serve(far)
        return near


class _Pipe:
    """One direction of a connection."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._underway: deque[tuple[float, bytes]] = deque()
        self._arrived: deque[bytes] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self.silent = False
        self.broken = False

    def send(self, piece: bytes) -> None:
        """Put a piece on its way; the empty piece is the end."""
        if self.silent or self.broken:
            return
        self._size += len(piece)
        self._underway.append((self._loop.time() + self._network.delay, piece))
        if self._network.delay:
            self._loop.call_later(self._network.delay, self.pump)
        self.pump()

    @property
    def ended(self) -> bool:
        """Whether the end has arrived; it is the last piece."""
        return bool(self._arrived) and not self._arrived[-1]

    def pump(self) -> None:
        """Let everything arrive whose time has come."""
        now = self._loop.time() + 0.001  # timers of the loop may fire that much early
        while self._underway and not self._network.held and self._underway[0][0] <= now:
            self._arrived.append(self._underway.popleft()[1])
        self.wake()

    def wake(self) -> None:
        """Have everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def break_off(self) -> None:
        """Nothing goes through any more."""
        self.broken = True
        self.wake()

    async def room(self, closed: Callable[[], bool]) -> None:
        """Wait until the writer may go on. Raises: ConnectionLost."""
        while self._size > CAPACITY and not self.broken and not closed():
            await self._changed.wait()
        if self.broken or closed():
            raise ConnectionLost("the connection ended while writing")

    async def receive(self, closed: Callable[[], bool]) -> bytes:
        """The next piece; nothing at the end or when the reader's own end is closed. Raises: ConnectionLost."""
        while not closed():
            if self._arrived and not self._arrived[0]:
                return b""  # the end stays where it is
            if self._arrived:
                piece = self._arrived.popleft()
                self._size -= len(piece)
                self.wake()
                return piece
            if self.broken:
                raise ConnectionLost("the connection was cut")
            await self._changed.wait()
        return b""


class MemoryConnection:
    """One end of a connection; implements `ports.comm.Connection`."""

    def __init__(self, network: MemoryNetwork, wire: int, remote: str, *, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._network = network
        self._remote = remote
        self._outgoing = outgoing
        self.incoming = incoming
        self.wire = wire
        self.closed = False

    def _is_closed(self) -> bool:
        return self.closed

    @property
    def remote(self) -> str:
        """Where the other end is."""
        return self._remote

    @property
    def ended(self) -> bool:
        """Whether the end of the other side has arrived, read or not."""
        return self.incoming.ended

    @property
    def authentication(self) -> Authentication:
        """Nothing is proven."""
        return Authentication.NONE

    async def read(self) -> bytes:
        """One piece as it was sent. Raises: ConnectionLost."""
        return await self.incoming.receive(self._is_closed)

    async def write(self, data: bytes) -> None:
        """Send `data` in pieces of the network's segment size. Raises: ConnectionLost."""
        if self.closed or self._outgoing.broken:
            raise ConnectionLost("the connection is closed")
        size = self._network.segment or len(data)
        for start in range(0, len(data), size):
            self._outgoing.send(data[start : start + size])
        await self._outgoing.room(self._is_closed)

    async def close(self) -> None:
        """Send the end behind everything written."""
        if not self.closed:
            self.closed = True
            self._outgoing.send(b"")
            self._outgoing.wake()
            self.incoming.wake()


class MemoryListener:
    """Implements `ports.comm.Listener`."""

    def __init__(self, network: MemoryNetwork, address: str, accept: Callable[[Connection], Awaitable[None]]) -> None:
        self.address = address
        self._network = network
        self._accept = accept
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, connection: MemoryConnection) -> None:
        """Run `accept` for a new connection in a task of its own."""
        task = asyncio.get_running_loop().create_task(self._run(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, connection: MemoryConnection) -> None:
        try:
            with suppress(Exception):
                await self._accept(connection)
        finally:
            await connection.close()

    async def close(self) -> None:
        """Free the address; connections stay."""
        self._network.unbind(self.address)


class MemoryComm:
    """Implements `ports.comm.Comm` with type ``memory``; addresses are ``name:port``."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network = network
        self._host = host

    @property
    def type(self) -> str:
        """``memory``"""
        return "memory"

    def check_address(self, address: str) -> None:
        """Raises: AddressInvalid unless `address` is ``name:port``."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise AddressInvalid(f"{address!r} is not name:port")

    async def listen(self, address: str, accept: Callable[[Connection], Awaitable[None]]) -> Listener:
        """Raises: AddressInvalid, AddressInUse."""
        self.check_address(address)
        listener = MemoryListener(self._network, address, accept)
        self._network.bind(listener)
        return listener

    async def dial(self, address: str, *, timeout: float) -> Connection:
        """Raises: AddressInvalid, PeerUnreachable."""
        self.check_address(address)
        return await self._network.connect(address, self._host, timeout)


# ------------------------------------------------------------------------------------------------------ conformance


class _Peers:
    """Collects what a listener accepted; every accepted connection stays open until the test ends."""

    def __init__(self) -> None:
        self._accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self.over = asyncio.Event()

    async def accept(self, connection: Connection) -> None:
        self._accepted.put_nowait(connection)
        await self.over.wait()

    async def next(self) -> Connection:
        return await asyncio.wait_for(self._accepted.get(), PATIENCE)


async def _pair(comm: Comm, address: str) -> tuple[Connection, Connection, Listener, _Peers]:
    peers = _Peers()
    listener = await comm.listen(address, peers.accept)
    dialled = await comm.dial(address, timeout=PATIENCE)
    return dialled, await peers.next(), listener, peers


async def _read_exactly(connection: Connection, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = await asyncio.wait_for(connection.read(), PATIENCE)
        assert data, f"the stream ended after {len(received)} of {size} bytes"
        received += data
    return received


class CommConformance:
    """Proof of `ports.comm.Comm`; see the module's docstring for the fixtures a subclass gives.

    Needs pytest-asyncio in auto mode.
    """

    async def test_bytes_arrive_unchanged_and_in_order_in_both_directions(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """Whatever is written on one end is read on the other."""
        near, far, *_ = await _pair(comm, free_address())
        await near.write(b"first ")
        await near.write(b"second")
        assert await _read_exactly(far, 12) == b"first second"
        await far.write(bytes(range(256)))
        assert await _read_exactly(near, 256) == bytes(range(256))

    async def test_a_large_write_arrives_whole(self, comm: Comm, free_address: Callable[[], str]) -> None:
        """One mebibyte goes through while the other end reads."""
        near, far, *_ = await _pair(comm, free_address())
        data = bytes(range(256)) * 4096
        writing = asyncio.create_task(near.write(data))
        assert await _read_exactly(far, len(data)) == data
        await asyncio.wait_for(writing, PATIENCE)

    async def test_the_other_end_reads_everything_and_then_a_clean_end(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """Closing loses nothing that was written before, and the end stays readable."""
        near, far, *_ = await _pair(comm, free_address())
        await near.write(b"good-bye")
        closing = asyncio.create_task(near.close())
        assert await _read_exactly(far, 8) == b"good-bye"
        assert await asyncio.wait_for(far.read(), PATIENCE) == b""
        assert await asyncio.wait_for(far.read(), PATIENCE) == b""
        await far.close()
        await asyncio.wait_for(closing, PATIENCE)

    async def test_closing_a_connection_nothing_was_sent_on_is_a_clean_end(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """The other end is told, not left waiting."""
        near, far, *_ = await _pair(comm, free_address())
        await far.close()
        assert await asyncio.wait_for(near.read(), PATIENCE) == b""

    async def test_closing_twice_and_at_once_is_harmless(self, comm: Comm, free_address: Callable[[], str]) -> None:
        """`close` is idempotent."""
        near, _, *_ = await _pair(comm, free_address())
        await near.write(b"x")
        await asyncio.wait_for(asyncio.gather(near.close(), near.close()), PATIENCE)
        await near.close()

    async def test_closing_ends_in_time_when_the_other_end_never_reads(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """`close` is bounded even with a full buffer, and a writer that waits is released with ConnectionLost."""
        near, _, *_ = await _pair(comm, free_address())

        async def flood() -> None:
            while True:
                await near.write(bytes(1 << 16))

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0.1)
        await asyncio.wait_for(near.close(), PATIENCE)
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(flooding, PATIENCE)

    async def test_a_waiting_reader_is_released_when_its_own_end_closes(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """The read ends, with nothing or with ConnectionLost."""
        near, _, *_ = await _pair(comm, free_address())
        reading = asyncio.create_task(near.read())
        await asyncio.sleep(0)
        await near.close()
        with suppress(ConnectionLost):
            assert await asyncio.wait_for(reading, PATIENCE) == b""

    async def test_writing_after_close_is_an_error(self, comm: Comm, free_address: Callable[[], str]) -> None:
        """Bytes never vanish without a word."""
        near, _, *_ = await _pair(comm, free_address())
        await near.close()
        with pytest.raises(ConnectionLost):
            await near.write(b"too late")

    async def test_a_writer_waits_while_nobody_reads(self, comm: Comm, free_address: Callable[[], str]) -> None:
        """Back-pressure: a bounded amount is taken ahead of the reader, and all of it arrives once it reads."""
        near, far, *_ = await _pair(comm, free_address())
        taken = 0

        async def flood() -> None:
            nonlocal taken
            while taken < 64 << 20:
                await near.write(bytes(1 << 18))
                taken += 1 << 18

        flooding = asyncio.create_task(flood())
        before = -1
        while before != taken:
            before = taken
            await asyncio.sleep(0.1)
        assert taken < 64 << 20, "the transport took 64 MiB without anybody reading"
        assert not flooding.done()
        await _read_exactly(far, taken)
        flooding.cancel()
        with suppress(asyncio.CancelledError):
            await flooding

    async def test_dialling_where_nobody_listens_is_unreachable(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """The error comes within the given time."""
        with pytest.raises(PeerUnreachable):
            await asyncio.wait_for(comm.dial(free_address(), timeout=1.0), PATIENCE)

    async def test_malformed_addresses_are_refused(self, comm: Comm) -> None:
        """By every method that takes one."""
        with pytest.raises(AddressInvalid):
            comm.check_address("invalid-addr")
        with pytest.raises(AddressInvalid):
            await comm.dial("invalid-addr", timeout=1.0)
        with pytest.raises(AddressInvalid):
            await comm.listen("invalid-addr", _Peers().accept)

    async def test_an_address_is_listened_on_once(self, comm: Comm, free_address: Callable[[], str]) -> None:
        """The second listener is refused, the first stays."""
        address = free_address()
        peers = _Peers()
        listener = await comm.listen(address, peers.accept)
        with pytest.raises(AddressInUse):
            await comm.listen(address, peers.accept)
        await comm.dial(address, timeout=PATIENCE)
        await peers.next()
        await listener.close()

    async def test_a_closed_listener_frees_its_address_and_keeps_connections(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """At once, while accepted connections live on."""
        address = free_address()
        near, far, listener, _ = await _pair(comm, address)
        await listener.close()
        await listener.close()
        again = await comm.listen(address, _Peers().accept)
        await near.write(b"still here")
        assert await _read_exactly(far, 10) == b"still here"
        await again.close()

    async def test_a_connection_is_closed_when_its_accept_returns(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """Nothing has to be closed by hand."""
        address = free_address()

        async def accept(connection: Connection) -> None:
            await connection.write(b"hello")

        await comm.listen(address, accept)
        near = await comm.dial(address, timeout=PATIENCE)
        assert await _read_exactly(near, 5) == b"hello"
        assert await asyncio.wait_for(near.read(), PATIENCE) == b""

    async def test_an_error_in_accept_ends_that_connection_only(
        self, comm: Comm, free_address: Callable[[], str]
    ) -> None:
        """The listener goes on, and so do the others."""
        address = free_address()
        peers = _Peers()
        first = True

        async def accept(connection: Connection) -> None:
            nonlocal first
            if first:
                first = False
                raise RuntimeError("a bug in accept")
            await peers.accept(connection)

        await comm.listen(address, accept)
        broken = await comm.dial(address, timeout=PATIENCE)
        with suppress(ConnectionLost):
            assert await asyncio.wait_for(broken.read(), PATIENCE) == b""
        near = await comm.dial(address, timeout=PATIENCE)
        await near.write(b"works")
        assert await _read_exactly(await peers.next(), 5) == b"works"

    async def test_the_remote_end_is_named(self, comm: Comm, free_address: Callable[[], str]) -> None:
        """Host before the last colon, the same for connections from one machine; authentication is stated."""
        address = free_address()
        peers = _Peers()
        await comm.listen(address, peers.accept)
        ends = []
        for _ in range(2):
            await comm.dial(address, timeout=PATIENCE)
            ends.append(await peers.next())
        hosts = {end.remote.rpartition(":")[0] for end in ends}
        assert len(hosts) == 1
        assert hosts != {""}
        assert all(isinstance(end.authentication, Authentication) for end in ends)

    async def test_the_type_is_a_word(self, comm: Comm) -> None:
        """It is written in session files and peer IDs."""
        assert comm.type.isidentifier()

"""Connections, listeners and dialling over asyncio's TCP transports."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

from perun_core.errors import AddressInUse, AddressInvalid, CommError, ConnectionLost, PeerUnreachable
from perun_core.ports.comm import Authentication, Comm, CommContext, Connection, Listener

from .address import joined_address, split_address
from .options import TCPOptions

log = logging.getLogger(__name__)

BUFFER: Final = 1 << 16
"""Bytes one `read` gives at most; with more than this unread, the other end is made to wait. Also what may be
written ahead of a slow reader before `write` waits."""

_UNUSABLE: Final = (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT)
"""What the operating system says of a listening address that is not one of this machine."""


class TCPConnection(asyncio.Protocol):
    """One TCP connection; implements `ports.comm.Connection`. One task reads at a time."""

    def __init__(self, options: TCPOptions, opened: Callable[[TCPConnection], None]) -> None:
        """`opened` is called once, when the connection stands."""
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._opened = opened
        self._remote = ""
        self._inbox = bytearray()
        self._reading_paused = False
        self._arrival: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._wrote = False
        self._ended = False  # the other end finished, or the connection is gone
        self._closing = False  # this end finished
        self._error: Exception | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()

    # ------------------------------------------------------------------------------------------- called by users

    @property
    def remote(self) -> str:
        """``host:port`` of the other end."""
        return self._remote

    @property
    def authentication(self) -> Authentication:
        """TCP proves nothing."""
        return Authentication.NONE

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done when nothing of the connection is left in this process."""
        return self._gone

    async def read(self) -> bytes:
        """Whatever is there, up to 64 KiB; empty at a clean end and after `close`. Raises: ConnectionLost."""
        while not self._inbox:
            if self._error is not None and not self._closing:
                raise ConnectionLost(f"connection with {self._remote} lost: {self._error}") from self._error
            if self._ended or self._closing:
                return b""
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        if len(self._inbox) <= BUFFER:
            data = bytes(self._inbox)
            self._inbox.clear()
        else:
            data = bytes(self._inbox[:BUFFER])
            del self._inbox[:BUFFER]
        if self._reading_paused and len(self._inbox) <= BUFFER:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Hand over `data` in one piece, then wait until the buffer has room again. Raises: ConnectionLost."""
        self._check_open()
        self._wrote = True
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            self._check_open()

    def _check_open(self) -> None:
        if self._closing or self._transport.is_closing():
            raise ConnectionLost(f"connection with {self._remote} is closed") from self._error

    async def close(self) -> None:
        """Hand over what was written, end the stream, and wait a bounded time for the other end to do the same.

        Closing a socket that still receives would make the operating system reset it, and the other end could lose
        what we wrote last; therefore the stream is ended first. Without anything written there is nothing to lose.
        """
        if not self._closing:
            self._closing = True
            self._inbox.clear()
            self._wake_reader()
            self._writable.set()
            self._end_stream()
        if self._gone.done():
            return
        try:
            await asyncio.wait((self._gone,), timeout=self._options.linger)
        finally:
            if not self._gone.done():
                self._transport.abort()
        await asyncio.wait((self._gone,), timeout=1)

    def _end_stream(self) -> None:
        if self._ended or not self._wrote:
            self._transport.close()
            return
        try:
            self._transport.write_eof()
            if self._reading_paused:
                self._transport.resume_reading()
        except (OSError, RuntimeError):  # it broke just before
            self._transport.abort()

    def _wake_reader(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # ----------------------------------------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass of it
        transport.set_write_buffer_limits(high=BUFFER)
        peer = transport.get_extra_info("peername")
        self._remote = joined_address(peer[0], peer[1]) if peer else "unknown:0"
        try:
            _tune(transport.get_extra_info("socket"), self._options.keepalive)
        except OSError as error:  # reset by the other end before we looked at it
            self._error = error
            transport.abort()
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._closing:
            return
        self._inbox += data
        if len(self._inbox) > BUFFER and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        """The other end finished. Our direction stays open until `close`."""
        self._ended = True
        self._wake_reader()
        return not self._closing

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The write buffer has room."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come or go."""
        self._error = self._error or exc
        self._ended = True
        self._wake_reader()
        self._writable.set()
        if not self._gone.done():
            self._gone.set_result(None)


def _tune(sock: socket.socket, keepalive: int) -> None:
    """Send at once what is written, and notice an end that vanished without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not keepalive:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", keepalive),
        ("TCP_KEEPINTVL", max(1, keepalive // 3)),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 2000 * keepalive),  # milliseconds; probes stop while data waits to be acknowledged
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class TCPListener:
    """Implements `ports.comm.Listener`."""

    def __init__(self, server: asyncio.Server, forget: Callable[[TCPListener], None]) -> None:
        """`forget` is called when the listener closes."""
        self._server = server
        self._forget = forget

    async def close(self) -> None:
        """Stop listening."""
        self._forget(self)
        # Not wait_closed(): from Python 3.12 on that waits for the accepted connections, which stay.
        self._server.close()
        await asyncio.sleep(0)


class TCPComm:
    """Implements `ports.comm.Comm`."""

    def __init__(self, options: TCPOptions) -> None:
        self._options = options
        self._listeners: set[TCPListener] = set()
        self._connections: set[TCPConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def type(self) -> str:
        """``tcp``"""
        return "tcp"

    def check_address(self, address: str) -> None:
        """Raises: AddressInvalid unless `address` is ``host:port``."""
        split_address(address)

    async def listen(self, address: str, accept: Callable[[Connection], Awaitable[None]]) -> Listener:
        """Listen on every network address the host of `address` stands for.

        Raises: AddressInvalid (malformed, or not an address of this machine), AddressInUse, CommError.
        """
        host, port = split_address(address)

        def opened(connection: TCPConnection) -> None:
            self._remember(connection)
            task = asyncio.get_running_loop().create_task(self._run(accept, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: TCPConnection(self._options, opened), host, port, backlog=self._options.backlog
            )
        except (socket.gaierror, UnicodeError) as error:
            raise AddressInvalid(f"{address}: the host is not known") from error
        except OSError as error:
            raise _listen_error(address, error) from error
        listener = TCPListener(server, self._listeners.discard)
        self._listeners.add(listener)
        return listener

    async def dial(self, address: str, *, timeout: float) -> Connection:
        """Resolve and connect. Raises: AddressInvalid, PeerUnreachable."""
        host, port = split_address(address)
        try:
            async with asyncio.timeout(timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: TCPConnection(self._options, self._remember), host, port
                )
        except TimeoutError as error:
            raise PeerUnreachable(f"{address} did not answer within {timeout:g} s") from error
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PeerUnreachable(f"cannot connect to {address}: {reason}") from error
        return connection

    async def close(self) -> None:
        """Close every listener and connection of this transport and end their tasks."""
        for listener in tuple(self._listeners):
            await listener.close()
        await asyncio.gather(*(connection.close() for connection in tuple(self._connections)))
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _remember(self, connection: TCPConnection) -> None:
        self._connections.add(connection)
        connection.gone.add_done_callback(lambda _: self._connections.discard(connection))

    async def _run(self, accept: Callable[[Connection], Awaitable[None]], connection: TCPConnection) -> None:
        try:
            await accept(connection)
        except Exception:
            log.exception("error while serving the connection from %s", connection.remote)
        finally:
            await connection.close()


def _listen_error(address: str, error: OSError) -> CommError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{address} is in use")
    if error.errno in _UNUSABLE or error.errno is None:
        return AddressInvalid(f"{address} is not an address of this machine")
    return CommError(f"cannot listen on {address}: {error.strerror}")


@asynccontextmanager
async def open_tcp(options: TCPOptions, context: CommContext) -> AsyncIterator[Comm]:
    """The transport; leaving closes everything that was opened through it."""
    comm = TCPComm(options)
    try:
        yield comm
    finally:
        await comm.close()

"""All peer connections of one session: handshake, tie-break, limits, sending and receiving (PROTOCOL.md 4, 10).

At most one connection per peer is written to. Which one that is when both sides dial at once is decided by
`protocol.handshake.tie_break` alone; a connection that decision may still take away is *unsettled*: it is read at
once, but written to only after a short grace in which its end would show. Peers with the greater address, and whoever
is called by one, never wait. A replaced connection is still read for the same time, so that what the peer wrote before
it learned of the replacement is not lost.

Sending means handing to the local socket. There is no retransmission; whoever needs an answer asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from ..apps.registry import AppRegistry
from ..errors import (
    ConnectionLost,
    DecodeError,
    EncodeError,
    IDProviderError,
    PeerUnreachable,
    PerunError,
    PortError,
    RuleViolated,
)
from ..ports.comm import Comm, Connection, Listener
from ..profile import Profile
from ..protocol import handshake
from ..values import Address
from ..wire import StreamDamaged
from ..wire.messages import AuthResponse, Envelope, Message, Ping, Pong, Shutdown
from .limits import PeerLimits, Refused, make_room
from .link import Link, host_of

log = logging.getLogger(__name__)

SEND_ATTEMPTS: Final = 3
"""Connections one message is offered to when each ends before any of it was written."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds a transport may take to close a connection; the port promises less."""

_IGNORED: Final = frozenset((Ping, Pong, Shutdown, AuthResponse))
"""Tolerated after the handshake without any effect (PROTOCOL.md 4.6)."""


def _ignore_peer(peer: Address) -> None:
    """Default of the two notifications."""


class PeerHub:
    """The peer connections of one session.

    `own`: our network identity. `resolve`: finds the transport address of an identity; raises PeerUnknown (passed on
    to senders) or PeerUnreachable. `deliver(peer, message)`: called for every message, in order per connection; while
    an awaitable it returned is pending, only that connection is not read. An error in it closes that connection.
    `connected` and `disconnected`: a peer became reachable over some connection, or lost its last one; short, must not
    block. The identity of a peer is what the peer claims, nothing more (PROTOCOL.md 4.8 rule 2).
    """

    def __init__(
        self,
        *,
        own: Address,
        comm: Comm,
        profile: Profile,
        apps: AppRegistry,
        resolve: Callable[[Address], Awaitable[str]],
        deliver: Callable[[Address, Message], Awaitable[None] | None],
        connected: Callable[[Address], None] = _ignore_peer,
        disconnected: Callable[[Address], None] = _ignore_peer,
        limits: PeerLimits | None = None,
    ) -> None:
        self._own = own
        self._comm = comm
        self._profile = profile
        self._apps = apps
        self._resolve = resolve
        self._deliver = deliver
        self._connected = connected
        self._disconnected = disconnected
        self._limits = limits or PeerLimits()
        self._listener: Listener | None = None
        self._open: dict[Link, None] = {}  # every connection until it is closed, oldest first
        self._links: dict[Address, Link] = {}  # the one per peer that is written to
        self._dials: dict[Address, asyncio.Task[Link]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # ---------------------------------------------------------------------------------------------- used by sessions

    async def start(self, listen_address: str) -> None:
        """Accept peers on `listen_address`. Raises: AddressInvalid, AddressInUse, CommError."""
        self._listener = await self._comm.listen(listen_address, self._accept)

    def is_connected(self, peer: Address) -> bool:
        """Whether there is a connection with `peer`; it may turn out to be dead."""
        return peer in self._links

    @property
    def connections(self) -> int:
        """Connections of any kind, those in handshake and in closing included."""
        return len(self._open)

    async def connect(self, peer: Address) -> None:
        """Have a connection with `peer` that may be written to, dialling when there is none.

        Raises: PeerUnknown, PeerUnreachable.
        """
        await self._usable(peer)

    async def send(self, peer: Address, message: Message, *, timeout: float | None = None) -> None:
        """Hand `message` to the local socket of the connection with `peer`, dialling when there is none.

        Concurrent senders share one dial; every call tries anew after a failure. `timeout` in seconds bounds the
        whole call, without it the limits bound every step. When the call is cancelled while its bytes are being
        written, the connection is closed, because half an envelope makes it unusable.
        Returning says nothing about arrival.
        Raises: EncodeError (before any byte is written), PeerUnknown, PeerUnreachable (nothing was written),
        ConnectionLost (it may or may not have arrived).
        """
        data = self._profile.encode(Envelope(self._own, peer, message))
        if len(data) > self._limits.message_limit:
            raise EncodeError(f"an envelope of {len(data)} bytes, more than peers accept")
        writing = False
        try:
            async with asyncio.timeout(timeout):
                for _ in range(SEND_ATTEMPTS):
                    writing = False
                    link = self._links.get(peer)
                    if link is None or not link.settled:
                        link = await self._usable(peer)
                    writing = True
                    if await self._write(link, data):
                        return
        except TimeoutError as error:
            if writing:
                raise ConnectionLost(f"{peer.checksum} did not take the message within {timeout} s") from error
            raise PeerUnreachable(f"no connection with {peer.checksum} within {timeout} s") from error
        raise PeerUnreachable(f"{peer.checksum} closes every connection")

    async def close(self) -> None:
        """Stop accepting, end every connection gracefully, and end all tasks. Idempotent, bounded, never raises."""
        self._closed = True
        if self._listener is not None:
            try:
                await self._listener.close()
            except Exception:
                log.exception("the transport failed to close its listener")
        for dial in self._dials.values():
            dial.cancel()
        for link in tuple(self._open):
            self._drop(link)
            if link.task is not None and link.task is not asyncio.current_task():
                link.task.cancel()  # it may wait for a receiver that will not come; it still closes its connection
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CLOSE_TIMEOUT + 1
        while (tasks := self._running_tasks()) and loop.time() < give_up:
            await asyncio.wait(tasks, timeout=give_up - loop.time())
        for task in tasks:
            task.cancel()

    def _running_tasks(self) -> set[asyncio.Task[Any]]:
        owners = {link.task for link in self._open if link.task is not None}
        return (owners | self._tasks | set(self._dials.values())) - {asyncio.current_task()}

    # ------------------------------------------------------------------------------------------------------- sending

    async def _usable(self, peer: Address) -> Link:
        """A settled connection with `peer`. Raises: PeerUnknown, PeerUnreachable."""
        link = self._links.get(peer) or await self._dialed(peer)
        while not link.settled:
            await link.decided.wait()
            if link.settled:
                break
            other = self._links.get(peer)
            if other is None:
                raise PeerUnreachable(
                    f"{peer.checksum} ended the connection right after the handshake; it may still hold an earlier one"
                )
            link = other
        return link

    async def _write(self, link: Link, data: bytes) -> bool:
        """Whether `data` was written; False when `link` went out of use before its turn. Raises: ConnectionLost."""
        if link.queued + len(data) > self._limits.send_queue_bytes:
            raise ConnectionLost(f"too much waits to be sent to {link.connection.remote}")
        link.queued += len(data)
        try:
            async with link.turn:
                if link.closing or link.retired:
                    return False
                try:
                    async with asyncio.timeout(self._limits.send_timeout):
                        await link.connection.write(data)
                except BaseException:  # also cancellation: part of the envelope may be on its way
                    self._drop(link)
                    raise
        except TimeoutError as error:
            raise ConnectionLost(f"{link.connection.remote} does not read") from error
        except PortError:
            raise
        except Exception as error:
            raise ConnectionLost(f"the transport failed to write to {link.connection.remote}") from error
        finally:
            link.queued -= len(data)
        link.carried = True
        return True

    # ------------------------------------------------------------------------------------------------------- dialling

    async def _dialed(self, peer: Address) -> Link:
        """The connection that results from dialling `peer`, at most once at a time."""
        if self._closed:
            raise PeerUnreachable("the session is closed")
        if peer == self._own:
            raise PeerUnreachable("that is our own address")
        task = self._dials.get(peer)
        if task is None:
            task = self._dials[peer] = asyncio.create_task(self._dial(peer))
            task.add_done_callback(lambda done: self._on_dial_done(peer, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            sender = asyncio.current_task()
            if not task.cancelled() or (sender is not None and sender.cancelling()):
                raise
        link = self._links.get(peer)  # the dial was given up for this one, or the session closes
        if link is None:
            raise PeerUnreachable("the session is closing")
        return link

    def _on_dial_done(self, peer: Address, task: asyncio.Task[Link]) -> None:
        del self._dials[peer]
        if not task.cancelled():
            task.exception()  # every sender may have given up; then nobody else looks at it
        link = self._links.get(peer)
        if link is not None and not link.dialed:
            self._settle(link)  # our dial can no longer replace it

    async def _dial(self, peer: Address) -> Link:
        """Raises: PeerUnknown, PeerUnreachable."""
        try:
            return await self._shake_as_dialer(await self._connect(peer), peer)
        except Exception as error:
            accepted = self._links.get(peer)
            if accepted is not None:
                return accepted
            if isinstance(error, (PeerUnreachable, IDProviderError)):
                raise
            if not isinstance(error, (PerunError, TimeoutError)):
                log.exception("error while dialling %s", peer.checksum)
            raise PeerUnreachable(f"dialling {peer.checksum} failed: {str(error) or 'no answer in time'}") from error

    async def _connect(self, peer: Address) -> Connection:
        timeout = self._limits.dial_timeout
        async with asyncio.timeout(timeout):
            return await self._comm.dial(await self._resolve(peer), timeout=timeout)

    async def _shake_as_dialer(self, connection: Connection, peer: Address) -> Link:
        link = self._admit(connection, peer)
        try:
            async with asyncio.timeout(self._limits.handshake_timeout):
                await connection.write(self._profile.encode(handshake.hello(self._own, peer)))
                handshake.check_answer(await link.first_envelope(self._limits.handshake_bytes), self._own, peer)
            if not self._install(link, peer):
                self._spawn(self._end(link))
                return self._links.get(peer) or link
        except Exception:
            self._spawn(self._end(link))  # senders need not wait for it
            raise
        except asyncio.CancelledError:
            await self._end(link)
            raise
        link.task = asyncio.create_task(self._serve(link, peer))
        return link

    # ------------------------------------------------------------------------------------------------------ accepting

    async def _accept(self, connection: Connection) -> None:
        """What the transport runs for every connection somebody opened; it closes the connection afterwards."""
        if self._closed:
            return
        try:
            victim = make_room(host_of(connection), self._open, self._limits)
        except Refused as reason:
            log.debug("refused a connection from %s: %s", connection.remote, reason)
            return
        if victim is not None:
            log.debug("closing the unused connection with %s for another one", victim.connection.remote)
            self._drop(victim)
        link = self._admit(connection, None)
        link.task = asyncio.current_task()
        peer: Address | None = None
        try:
            async with asyncio.timeout(self._limits.handshake_timeout):
                first = await link.first_envelope(self._limits.handshake_bytes)
                await connection.write(self._profile.encode(handshake.answer(first, self._own)))
            if not link.closing and self._install(link, first.sender):
                peer = first.sender
        except (TimeoutError, ConnectionLost):
            log.debug("no handshake from %s", connection.remote)
        except PerunError as error:
            log.info("closing the connection from %s: %s", connection.remote, error)
        finally:
            if peer is None:
                await self._end(link)
        if peer is not None:
            await self._serve(link, peer)

    # ------------------------------------------------------------------------------------- which connection is in use

    def _admit(self, connection: Connection, peer: Address | None) -> Link:
        decoder = self._profile.decoder(self._apps, limit=self._limits.message_limit)
        link = Link(connection, decoder, peer)
        self._open[link] = None
        return link

    def _install(self, link: Link, peer: Address) -> bool:
        """Put `link` into use unless the one in use stays (PROTOCOL.md 4.3); then the caller closes it."""
        link.peer = peer
        old = self._links.get(peer)
        if old is not None:
            if not handshake.tie_break(self._own, peer, link.dialed):
                log.debug("keeping the earlier connection with %s", peer.checksum)
                return False
            self._retire(old)
        self._links[peer] = link
        final = handshake.tie_break(self._own, peer, link.dialed)  # nothing but another one like it replaces it
        if final or not (link.dialed or peer in self._dials):
            self._settle(link)
        else:
            self._after(self._limits.grace, self._settle, link)
        if final and not link.dialed and peer in self._dials:
            self._dials[peer].cancel()  # the connection it is working on would lose against this one
        if old is None:
            self._tell(self._connected, peer)
        return True

    def _settle(self, link: Link) -> None:
        if not (link.closing or link.retired):
            link.settled = True
            link.decided.set()

    def _retire(self, link: Link) -> None:
        link.retired = True
        link.settled = False
        link.decided.set()
        self._after(self._limits.grace, self._drop, link)

    def _after(self, delay: float, action: Callable[[Link], None], link: Link) -> asyncio.TimerHandle:
        timer = asyncio.get_running_loop().call_later(delay, action, link)
        link.timers.append(timer)
        return timer

    def _release(self, link: Link) -> None:
        """Take `link` out of use. Whoever calls this closes it."""
        if link.closing:
            return
        link.closing = True
        link.settled = False
        link.decided.set()
        for timer in link.timers:
            timer.cancel()
        if link.peer is not None and self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._tell(self._disconnected, link.peer)

    @staticmethod
    def _tell(notify: Callable[[Address], None], peer: Address) -> None:
        try:
            notify(peer)
        except Exception:
            log.exception("error while noting a change of the connection with %s", peer.checksum)

    def _drop(self, link: Link) -> None:
        """Take `link` out of use and close it; its reader ends by itself."""
        if not link.closing:
            self._release(link)
            self._spawn(self._close_connection(link))

    async def _end(self, link: Link) -> None:
        """The last step of whoever owns `link`."""
        self._release(link)
        try:
            await self._close_connection(link)
        finally:
            self._open.pop(link, None)

    async def _close_connection(self, link: Link) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await link.connection.close()
        except Exception:
            log.exception("the transport failed to close the connection with %s", link.connection.remote)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------------------------------ receiving

    async def _serve(self, link: Link, peer: Address) -> None:
        """Read until the connection ends, then close it. One task per connection, errors stay here."""
        try:
            await self._receive(link, peer)
        except ConnectionLost as error:
            log.debug("connection with %s: %s", peer.checksum, error)
        except (DecodeError, RuleViolated) as error:
            log.info("closing the connection with %s at %s: %s", peer.checksum, link.connection.remote, error)
        except Exception:
            log.exception("closing the connection with %s after an error in this node", peer.checksum)
        finally:
            await self._end(link)

    async def _receive(self, link: Link, peer: Address) -> None:
        """Decode straight from the stream. Raises: ConnectionLost, DecodeError, RuleViolated("4.8")."""
        read, feed = link.connection.read, link.decoder.feed
        if link.pending:
            await self._dispatch(link, peer, link.pending)
            link.pending = []
        deadline: asyncio.TimerHandle | None = None
        while not link.closing:
            if deadline is None and link.is_inside_envelope():
                deadline = self._after(self._limits.message_timeout, self._on_slow_message, link)
            data = await read()
            if not data:
                if not link.closing:
                    link.decoder.end()
                return
            try:
                envelopes = feed(data)
            except StreamDamaged as error:
                await self._dispatch(link, peer, error.complete)
                raise
            if envelopes:
                if deadline is not None:
                    deadline.cancel()
                    link.timers.remove(deadline)
                    deadline = None
                await self._dispatch(link, peer, envelopes)

    async def _dispatch(self, link: Link, peer: Address, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            if link.closing:
                return
            if envelope.sender != peer or envelope.recipient != self._own:
                raise RuleViolated("4.8", f"message from {envelope.sender.checksum} to {envelope.recipient.checksum}")
            message = envelope.message
            if type(message) in _IGNORED:
                continue
            link.carried = True
            waiting = self._deliver(peer, message)
            if waiting is not None:
                await waiting

    def _on_slow_message(self, link: Link) -> None:
        log.info("closing the connection with %s: a message takes too long to arrive", link.connection.remote)
        self._drop(link)

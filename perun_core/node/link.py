"""One peer connection and where it is in its life; `node.peers` decides about it."""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import ConnectionLost, DecodeError
from ..ports.comm import Connection
from ..profile import EnvelopeDecoder
from ..values import Address
from ..wire.messages import Envelope


def host_of(connection: Connection) -> str:
    """The network address of the other end without its port."""
    return connection.remote.rpartition(":")[0]


class Link:
    """A connection with what the hub knows about it.

    Its life: open, then shaken (the handshake is over); then one of two fates. In use: settled at once or after a
    grace, and retired if another connection takes its place. Or refused. In the end closing.
    """

    __slots__ = (
        "carried",
        "closing",
        "connection",
        "decided",
        "decoder",
        "dialed",
        "host",
        "peer",
        "pending",
        "queued",
        "retired",
        "settled",
        "task",
        "timers",
        "turn",
    )

    def __init__(self, connection: Connection, decoder: EnvelopeDecoder, peer: Address | None) -> None:
        """`peer`: whom we dialled; None for an accepted connection, until its handshake is over."""
        self.connection = connection
        self.decoder = decoder
        self.peer = peer
        self.dialed = peer is not None
        self.host = host_of(connection)
        self.pending: list[Envelope] = []  # arrived together with the handshake
        self.task: asyncio.Task[Any] | None = None  # who reads and finally closes it
        self.timers: list[asyncio.TimerHandle] = []
        self.turn = asyncio.Lock()  # one writer at a time, in order
        self.queued = 0  # bytes of writers that wait for their turn or for room
        self.decided = asyncio.Event()  # settled, retired or closing
        self.settled = False  # may be written to
        self.retired = False  # another one is written to instead
        self.carried = False  # a message went over it
        self.closing = False

    @property
    def shaken(self) -> bool:
        """Whether the handshake is over."""
        return self.peer is not None

    def is_inside_envelope(self) -> bool:
        """Whether part of an envelope has arrived; that is what the decoder would say of an end here."""
        try:
            self.decoder.end()
        except DecodeError:
            return True
        return False

    async def first_envelope(self, most: int) -> Envelope:
        """The first envelope, for which at most `most` bytes may arrive; `pending` are those that came with it.

        Raises: ConnectionLost, DecodeError.
        """
        received = 0
        while received <= most:
            data = await self.connection.read()
            if not data:
                raise ConnectionLost("the connection ended during the handshake")
            received += len(data)
            envelopes = self.decoder.feed(data)
            if envelopes:
                self.pending = envelopes[1:]
                return envelopes[0]
        raise DecodeError("no handshake")

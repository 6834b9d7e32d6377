"""Envelopes out of a byte stream that arrives in pieces of any size (PROTOCOL.md 3.1, 4.1)."""

from __future__ import annotations

from ..apps.registry import AppRegistry
from ..errors import DecodeError
from .decoding import parse_envelope
from .messages import DEFAULT_MESSAGE_LIMIT, Envelope
from .perunio import Parser


class StreamDamaged(DecodeError):
    """The stream cannot be read any further; `complete` are the envelopes of this piece before the damage."""

    def __init__(self, problem: str, complete: tuple[Envelope, ...]) -> None:
        super().__init__(problem)
        self.complete = complete


class StreamDecoder:
    """Incremental decoder of one stream; one per connection, not shared.

    Every byte is looked at once, however the stream is cut. What is kept between two pieces is the unfinished value
    and fewer bytes than its next field has, so at most the limit.
    """

    def __init__(self, apps: AppRegistry, *, limit: int = DEFAULT_MESSAGE_LIMIT) -> None:
        """`apps`: apps whose data can be read. `limit`: most bytes of one envelope."""
        self._apps = apps
        self._limit = limit
        self._rest = bytearray()
        self._damaged = False
        self._restart()

    def _restart(self) -> None:
        self._parser: Parser[Envelope] = parse_envelope(self._apps)
        self._needed = next(self._parser)
        self._taken = 0

    def feed(self, data: bytes) -> list[Envelope]:
        """All envelopes that `data` completes, in order.

        Raises: DecodeError (a `StreamDamaged`), after which the decoder is unusable and the connection must be closed.
        """
        if self._damaged:
            raise DecodeError("the stream was damaged before")
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        complete: list[Envelope] = []
        try:
            self._consume(data, complete)
        except DecodeError as error:
            self._damaged = True
            raise StreamDamaged(str(error), tuple(complete)) from error
        return complete

    def _consume(self, data: bytes, complete: list[Envelope]) -> None:
        position, end = 0, len(data)
        while end - position >= self._needed:
            chunk = data[position : position + self._needed]
            position += self._needed
            self._taken += self._needed
            try:
                self._needed = self._parser.send(chunk)
            except StopIteration as done:
                complete.append(done.value)
                self._restart()
            if self._taken + self._needed > self._limit:
                raise DecodeError(f"an envelope of more than {self._limit} bytes")
        self._rest += data[position:]

    def end(self) -> None:
        """The stream ended. Raises: DecodeError when it ended inside an envelope."""
        if self._damaged:
            raise DecodeError("the stream was damaged before")
        if self._taken or self._rest:
            raise DecodeError(f"the stream ended inside an envelope, after {self._taken + len(self._rest)} bytes of it")

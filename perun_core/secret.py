"""Private keys in memory: 32 bytes that are never shown, never copied by accident, and overwritten after use."""

from __future__ import annotations

from types import TracebackType
from typing import Annotated, ClassVar, Final, NoReturn, Self

from msgspec import Meta

SecretText = Annotated[str, Meta(extra={"secret": True})]
"""Type of an option that is a password or token: commands take it from a file, a variable or a prompt only."""

AskedText = Annotated[str, Meta(extra={"secret": True, "ask": True})]
"""As `SecretText`; commands ask for it when nothing else gives it, neither the option nor one named OPTIONfile."""

_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of secp256k1; keys are 1 … order − 1."""


class NeverCopied:
    """Base of what holds keys: it can neither be pickled nor copied, and its repr is its own business."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds keys and is not copied")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__reduce__()


class Secret(NeverCopied):
    """One private key in a buffer of its own. Whoever holds it ends it with `wipe`, or uses it as a context manager.

    Python keeps copies of `bytes` and `str` as long as it likes; what was in such before it came here, and what
    `reveal` gives, is not overwritten.
    """

    SIZE: ClassVar[int] = 32
    __slots__ = ("_buffer",)

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        """Raises: ValueError, which never shows the value, unless it is 32 bytes and a key of secp256k1."""
        if len(value) != self.SIZE or not 0 < int.from_bytes(value, "big") < _ORDER:
            raise ValueError("not a private key")
        self._buffer = bytearray(value)

    @classmethod
    def of(cls, buffer: bytearray) -> Self:
        """A copy of `buffer`, which is overwritten whatever happens. Raises: ValueError as above."""
        try:
            return cls(buffer)
        finally:
            wipe(buffer)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """From 64 hex digits, with or without ``0x``. Raises: ValueError as above."""
        try:
            return cls.of(bytearray.fromhex(text.strip().removeprefix("0x")))
        except ValueError:
            raise ValueError("not a private key of 64 hex digits") from None

    @property
    def buffer(self) -> bytearray:
        """The key itself, for code that signs or encrypts; it is not to be kept. Raises: ValueError once wiped."""
        if not self._buffer:
            raise ValueError("the key was wiped")
        return self._buffer

    def reveal(self) -> str:
        """64 hex digits, for a place that keeps keys as text. This copy cannot be overwritten."""
        return self.buffer.hex()

    def copy(self) -> Secret:
        """Another buffer with the same key. Raises: ValueError once wiped."""
        return Secret(self.buffer)

    def wipe(self) -> None:
        """Overwrite the key. Doing it again has no effect."""
        wipe(self._buffer)
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "Secret(***)"


def wipe(buffer: bytearray) -> None:
    """Overwrite with zeros, in place."""
    buffer[:] = bytes(len(buffer))

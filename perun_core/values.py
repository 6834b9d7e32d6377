"""Sized, frozen values that everything else is made of. Constructing one checks it; an instance is always valid.

Bytes and integers live inside the node; hexadecimal and decimal text exists only at the edges (API, CLI, files).
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

import sha3

MAX_UINT64: Final = 2**64 - 1
MAX_UINT256: Final = 2**256 - 1


def keccak256(data: bytes) -> bytes:
    """The 32-byte Keccak-256 digest that Ethereum uses (not FIPS-202 SHA3)."""
    return sha3.keccak_256(data).digest()  # type: ignore[no-any-return]


class _Sized(bytes):
    """Immutable bytes of one fixed length."""

    SIZE: ClassVar[int]

    def __new__(cls, value: bytes) -> Self:
        """Raises: ValueError when `value` has not exactly SIZE bytes."""
        if len(value) != cls.SIZE:
            raise ValueError(f"{cls.__name__} has {cls.SIZE} bytes, not {len(value)}")
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """From exactly 2·SIZE hex digits, with or without ``0x``. Raises: ValueError."""
        return cls(bytes.fromhex(text.removeprefix("0x")))


class Address(_Sized):
    """20-byte Ethereum address: a wire identity, a channel participant, an app, a contract or an account.

    Ordering and equality are those of the bytes (PROTOCOL.md 2.1).
    """

    SIZE = 20

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a user's text: optional ``0x``, at most 40 hex digits of any case, left-padded (API.md 3.4).

        The checksum of mixed-case text is not verified. Raises: ValueError.
        """
        digits = text[2:] if text[:2] in ("0x", "0X") else text
        if len(digits) > 40:
            raise ValueError("hex string too long, should be <= 40 chars")
        if any(c not in "0123456789abcdefABCDEF" for c in digits):
            raise ValueError("not a hexadecimal address")
        return cls(bytes.fromhex(digits.rjust(40, "0")))

    @property
    def checksum(self) -> str:
        """EIP-55 text: ``0x`` and 40 digits."""
        digits = self.hex()
        nibbles = keccak256(digits.encode()).hex()
        return "0x" + "".join(c.upper() if n >= "8" else c for c, n in zip(digits, nibbles, strict=False))

    @property
    def is_zero(self) -> bool:
        """Whether this is the zero address, which is never a participant or an identity."""
        return self == ZERO_ADDRESS


ZERO_ADDRESS: Final = Address(bytes(20))


class Bytes32(_Sized):
    """Any 32 bytes: hashes, nonce shares, proposal IDs."""

    SIZE = 32


class ChannelID(Bytes32):
    """Hash of a channel's parameters; the same on both sides and on chain (PROTOCOL.md 5.3)."""


class ProposalID(Bytes32):
    """32 random bytes chosen by the proposer of a channel (PROTOCOL.md 3.5)."""


class Sig(_Sized):
    """65-byte signature R ‖ S ‖ V as it goes over the wire; being well formed says nothing about validity."""

    SIZE = 65


def amount(value: int) -> int:
    """`value` as an amount in base units. Raises: ValueError unless 0 ≤ value ≤ 2^256 − 1."""
    if not 0 <= value <= MAX_UINT256:
        raise ValueError(f"amount out of range: {value}")
    return value

"""The wire form of profile gp090 as whole values: bytes in, value out, and back (PROTOCOL.md 1–3)."""

from __future__ import annotations

from ..apps.registry import AppRegistry
from ..channel import Params, Transaction
from .decoding import parse_envelope, parse_params, parse_transaction
from .encoding import write_envelope, write_params, write_transaction
from .messages import Envelope
from .perunio import run


def encode(envelope: Envelope) -> bytes:
    """The whole envelope, in the one canonical form. Raises: EncodeError before anything is written anywhere."""
    out = bytearray()
    write_envelope(out, envelope)
    return bytes(out)


def decode(data: bytes, apps: AppRegistry) -> Envelope:
    """Exactly one envelope. Raises: DecodeError. For streams see `StreamDecoder`."""
    return run(parse_envelope(apps), data)


def encode_params(params: Params) -> bytes:
    """Wire form of channel parameters. Raises: EncodeError."""
    out = bytearray()
    write_params(out, params)
    return bytes(out)


def decode_params(data: bytes) -> Params:
    """Exactly these bytes; the app may be any. Raises: DecodeError."""
    return run(parse_params(None), data)


def encode_transaction(tx: Transaction) -> bytes:
    """Wire form of an optional state with signatures. Raises: EncodeError."""
    out = bytearray()
    write_transaction(out, tx)
    return bytes(out)


def decode_transaction(data: bytes, apps: AppRegistry) -> Transaction:
    """Exactly these bytes. Raises: DecodeError."""
    return run(parse_transaction(apps), data)

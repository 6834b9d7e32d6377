"""The first exchange on a fresh connection, and which of two connections stays (PROTOCOL.md 4.2, 4.3).

The dialer sends `hello` and reads one envelope; the listener reads one envelope and sends `answer`. Nothing is signed:
a peer is who it claims to be only as far as the transport vouches for it. Time limits and sockets are the caller's.
"""

from __future__ import annotations

from ..errors import RuleViolated
from ..values import Address
from ..wire.messages import AuthResponse, Envelope


def hello(own: Address, peer: Address) -> Envelope:
    """What the dialer sends at once; nothing else may follow before the answer has been checked.

    Raises: RuleViolated("4.2") when `peer` is nobody, or ourselves.
    """
    _check_peer(own, peer)
    return Envelope(own, peer, AuthResponse())


def check_answer(envelope: Envelope, own: Address, peer: Address) -> None:
    """The dialer's check of what came back: the answer of `peer` to `own`, both addresses.

    Raises: RuleViolated("4.2"), after which the connection must be closed.
    """
    _check_type(envelope)
    if envelope.sender != peer or envelope.recipient != own:
        raise RuleViolated("4.2", f"answer from {envelope.sender.checksum} to {envelope.recipient.checksum}")


def answer(envelope: Envelope, own: Address) -> Envelope:
    """The listener's answer to the first envelope of a connection, whose sender is the identity of the connection.

    Raises: RuleViolated("4.2"), after which the connection must be closed with nothing sent.
    """
    _check_type(envelope)
    if envelope.recipient != own:
        raise RuleViolated("4.2", f"meant for {envelope.recipient.checksum}")
    _check_peer(own, envelope.sender)
    return Envelope(own, envelope.sender, AuthResponse())


def _check_type(envelope: Envelope) -> None:
    if not isinstance(envelope.message, AuthResponse):
        raise RuleViolated("4.2", f"handshake with a message of type {envelope.message.TYPE}")


def _check_peer(own: Address, peer: Address) -> None:
    if peer.is_zero or peer == own:
        raise RuleViolated("4.2", "the peer has the zero address or our own")


def tie_break(own: Address, remote: Address, new_dialed_by_us: bool) -> bool:
    """Whether the new one of two connections with `remote` stays and the old one is closed, or else the reverse.

    The one dialed by the greater address wins over whatever was there; both sides come to the same result.
    """
    return own > remote if new_dialed_by_us else remote > own

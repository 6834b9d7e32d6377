"""The parameters of a channel: fixed for its life, hashed into its ID by the profile."""

from __future__ import annotations

from msgspec import Struct

from ..values import Address


class Params(Struct, frozen=True):
    """What both participants fixed when they opened the channel (PROTOCOL.md 5.2)."""

    challenge_duration: int
    """Seconds of block time in which a registered state may be refuted; 1 … 2^63 − 1."""
    parts: tuple[Address, ...]
    """Signing addresses, proposer first. Not the network identities, although users may choose them equal."""
    app: Address | None
    """Address of the app's contract; None for a payment channel without app."""
    nonce: int
    """Makes the channel ID unique; 0 … 2^256 − 1, derived from both nonce shares (PROTOCOL.md 5.1)."""
    ledger_channel: bool
    """Funded directly on chain."""
    virtual_channel: bool
    """Funded from two parent channels through an intermediary."""

"""Phases of a channel's life: ours, and the numbers that stand for them on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final


class WirePhase(IntEnum):
    """Phase numbers of a ChannelSync message (PROTOCOL.md 3.3)."""

    INIT_ACTING = 0
    INIT_SIGNING = 1
    FUNDING = 2
    ACTING = 3
    SIGNING = 4
    FINAL = 5
    REGISTERING = 6
    REGISTERED = 7
    PROGRESSING = 8
    PROGRESSED = 9
    WITHDRAWING = 10
    WITHDRAWN = 11


class Phase(StrEnum):
    """Phases of an opened channel in this node. The transitions are the table of `protocol.channel`."""

    OPENING = "opening"
    """Our signature on version 0 is recorded; the peer's is awaited. Nothing is deposited."""
    FUNDING = "funding"
    """Version 0 is fully signed; deposits are being made and awaited."""
    ACTING = "acting"
    """Open and idle: either side may propose the next version."""
    SIGNING = "signing"
    """Our update is signed and sent (or about to be); the peer's answer is awaited."""
    DECIDING = "deciding"
    """The peer's update passed all checks; our user (or policy) decides."""
    ACCEPTING = "accepting"
    """Our user agreed; our signature on the peer's update is being recorded and made."""
    UNKNOWN = "unknown"
    """We signed an update and do not know whether the peer holds it fully signed (PROTOCOL.md 7.3.4)."""
    FINAL = "final"
    """The last state is agreed and final; it is being concluded on chain."""
    REGISTERING = "registering"
    """A dispute is being opened by us."""
    REGISTERED = "registered"
    """A dispute is open on chain; its timeout is awaited."""
    PROGRESSING = "progressing"
    """Our progression of the registered state is on its way; only in channels with an app."""
    CONCLUDING = "concluding"
    """Our conclude transaction is on its way."""
    WITHDRAWING = "withdrawing"
    """Concluded on chain; our holdings are being withdrawn."""
    WITHDRAWN = "withdrawn"
    """Everything we own is withdrawn; the channel is archived."""


WIRE: Final[Mapping[Phase, WirePhase]] = {
    Phase.OPENING: WirePhase.INIT_SIGNING,
    Phase.FUNDING: WirePhase.FUNDING,
    Phase.ACTING: WirePhase.ACTING,
    Phase.SIGNING: WirePhase.SIGNING,
    Phase.DECIDING: WirePhase.ACTING,
    Phase.ACCEPTING: WirePhase.SIGNING,
    Phase.UNKNOWN: WirePhase.SIGNING,
    Phase.FINAL: WirePhase.FINAL,
    Phase.REGISTERING: WirePhase.REGISTERING,
    Phase.REGISTERED: WirePhase.REGISTERED,
    Phase.PROGRESSING: WirePhase.PROGRESSING,
    Phase.CONCLUDING: WirePhase.REGISTERED,
    Phase.WITHDRAWING: WirePhase.WITHDRAWING,
    Phase.WITHDRAWN: WirePhase.WITHDRAWN,
}
"""What a ChannelSync says about each of our phases."""

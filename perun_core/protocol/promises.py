"""Why the two sides never hold different fully signed states of one version.

A refusal names a version, not a state, and messages may be lost, repeated or late. So a refusal alone cannot tell which
of several attempts it is about. Two states of one version become fully signed only if each side signs, as the one who
answers, a proposal of the other while a proposal of its own is still about. Two rules make that impossible:

* Participant 0 keeps promises. Every proposal for the next version that it refuses is recorded before the refusal
  leaves. As long as it has itself signed another state of that version, it never signs a recorded one.
* Participant 1 signs a proposal of participant 0, while it has itself signed another state of that version, only when
  that was its only attempt: then whatever refusal it got was about it, and participant 0 keeps its promise.

When both sides propose the same state at the same time, participant 0 completes it; participant 1 waits to be answered.
Pure functions of what a record holds (PROTOCOL.md 7.3.3 to 7.3.5).
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ..channel import State
from ..errors import RuleViolated
from ..values import Bytes32
from .records import ChannelRecord

MAX_CANDIDATES: Final = 4
"""How many states of one version we sign at the most (PROTOCOL.md 7.3.5 e)."""

MAX_REFUSED: Final = 64
"""Refusals of one version that are remembered; with more than that nothing else of this version is signed."""


def check_second_signature(record: ChannelRecord, digest: Bytes32, *, answering: bool) -> None:
    """7.3.5: whether the state with `digest` may be signed although others of its version may have been.

    `answering`: it is a proposal of the peer, not our own. Raises: RuleViolated("7.3.5").
    """
    others = [candidate for candidate in record.candidates if candidate != digest]
    if not others:
        return
    if digest not in record.candidates and len(record.candidates) >= MAX_CANDIDATES:
        raise RuleViolated("7.3.5", "too many different updates of this version are signed already")
    if record.own_index == 0:
        if digest in record.refused or len(record.refused) >= MAX_REFUSED:
            raise RuleViolated("7.3.5", "this update was refused before, while another one of this version is signed")
    elif answering and len(others) > 1:
        raise RuleViolated("7.3.5", "several other updates of this version are signed already")


def check_after_recovery(record: ChannelRecord, *, old: State, new: State) -> None:
    """7.3.5 after a rollback: the first new version must not leave us with less of any asset than the last agreed one.

    Another state of that version may carry a signature of ours that our storage forgot, so the peer may be able to
    choose between the two. One that is no worse for us than what it can enforce anyway costs nothing; once it is fully
    signed, whatever was forgotten is outdated and the channel is as any other. Raises: RuleViolated("7.3.5").
    """
    if record.recovered is None or new.version != record.recovered + 1:
        return
    own = record.own_index
    if any(row[own] < before[own] for row, before in zip(new.balances, old.balances, strict=True)):
        raise RuleViolated(
            "7.3.5",
            "after a recovery the first update must not lower what this side owns; "
            "let the peer pay first, agree on an update that changes nothing, or close the channel",
        )


def with_refusal(record: ChannelRecord, digest: Bytes32) -> ChannelRecord:
    """`record` after refusing the peer's proposal with `digest`; durable before the refusal is sent."""
    if record.own_index != 0 or digest in record.refused or len(record.refused) >= MAX_REFUSED:
        return record
    return replace(record, refused=(*record.refused, digest))

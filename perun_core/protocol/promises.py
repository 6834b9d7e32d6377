"""Why the two sides never hold different fully signed states of one version.

A refusal names a version, not a state, and messages may be lost, repeated or late. So a refusal alone cannot tell which
of several attempts it is about. Two states of one version become fully signed only if each side signs, as the one who
answers, a proposal of the other while a proposal of its own is still about. These rules make that impossible:

* Both sides keep promises. Every proposal for the next version that is refused is recorded before the refusal leaves;
  only participant 1's "concurrent update" is no promise, as it will be asked for that update again.
* A refusal says which proposal it is about, at the end of its text, as soon as it is not the first one of its version.
  So whoever proposes knows which of its attempts were *surely refused*: one that was named, or the only one there was.
* Participant 1 signs a proposal of participant 0, while it has itself signed other states of that version, only when
  all of those were surely refused, and never one that it refused itself.
* Participant 0 signs, while it has itself signed other states of that version, a proposal it refused before only when
  all of those were surely refused; any other proposal freely.

Why that is enough: let participant 0 sign x, proposed by 1, and participant 1 sign y, proposed by 0. Participant 0
signed y before it signed x, and participant 1 signed x before y. So at 1 x was surely refused, hence recorded at 0
before it was signed there; then y was surely refused by 1, hence recorded there, and 1 did not sign it.

When both sides propose the same state at the same time, participant 0 completes it; participant 1 waits to be answered.
Pure functions of what a record holds (PROTOCOL.md 7.3.3 to 7.3.5).
"""

from __future__ import annotations

import re
from typing import Final

from msgspec.structs import replace

from ..channel import State
from ..errors import RuleViolated
from ..values import Bytes32
from .records import ChannelRecord

MAX_CANDIDATES: Final = 32
"""How many states of one version we sign at the most (PROTOCOL.md 7.3.5 e): refusals in a row that a user may get."""

NAME_DIGITS: Final = 16
"""Hexadecimal digits by which a refusal names a state: enough among the few that one side signed for one version."""

NAMED: Final = re.compile(rf" \(of ([0-9a-f]{{{NAME_DIGITS}}})\)$")

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
    surely_refused = all(candidate in record.given_up for candidate in others)
    refused_before = digest in record.refused or len(record.refused) >= MAX_REFUSED
    if record.own_index == 0:
        if refused_before and not surely_refused:
            raise RuleViolated("7.3.5", "this update was refused before, while another one of this version is signed")
    elif answering and not surely_refused:
        raise RuleViolated("7.3.5", "another update of this version is signed already, and may be accepted still")
    elif answering and refused_before:
        raise RuleViolated("7.3.5", "this update was refused before, while another one of this version is signed")


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
    if digest in record.refused or len(record.refused) >= MAX_REFUSED:
        return record
    return replace(record, refused=(*record.refused, digest))


def refusal_text(record: ChannelRecord, digest: Bytes32, reason: str) -> str:
    """What the peer is told: `reason`, and which proposal is meant when the version alone does not tell."""
    if record.refused == (digest,) or digest not in record.refused:
        return reason
    return f"{reason} (of {digest.hex()[:NAME_DIGITS]})"


def read_refusal(text: str) -> tuple[str, str]:
    """The reason for people, and the name of the refused proposal, empty when it is not named."""
    found = NAMED.search(text)
    return (text, "") if found is None else (text[: found.start()], found[1])


def names(name: str, digest: Bytes32) -> bool:
    """Whether a name of `read_refusal` means the state with `digest`."""
    return digest.hex().startswith(name)


def with_given_up(record: ChannelRecord, name: str) -> ChannelRecord:
    """`record` knowing that the peer refused the candidate with this name; unchanged when there is no such one."""
    if not name:
        return record
    new = [digest for digest in record.candidates if names(name, digest) and digest not in record.given_up]
    return replace(record, given_up=(*record.given_up, *new)) if new else record

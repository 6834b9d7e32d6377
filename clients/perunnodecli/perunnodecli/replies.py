"""What a command answers and what a notification tells: lines for people, an object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .failures import Json


class Tone(Enum):
    """How a line is meant, which decides its colour."""

    GOOD = "good"
    BAD = "bad"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; shown on terminals in place of the lines of its reply."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Lines are safe for a terminal already. `value`, when there is one, is what a script wants: it is all that a
    single command prints to standard output, and the lines go to standard error."""

    lines: tuple[str, ...]
    data: Json
    tone: Tone = Tone.GOOD
    table: Table | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened without being asked for; `event` names it for programs."""

    event: str
    lines: tuple[str, ...]
    data: dict[str, Json]
    tone: Tone = Tone.GOOD


def reply(lines: str | Sequence[str], data: Json = None, *, value: str | None = None) -> Reply:
    """A plain success."""
    return Reply((lines,) if isinstance(lines, str) else tuple(lines), data, value=value)

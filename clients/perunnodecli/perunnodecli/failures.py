"""Everything that can go wrong, and the exit code that says so.

    Failure
    ├── UsageFailure        2  the command is wrong, or names something this client does not know
    ├── NodeFailure         3  no usable answer: not reachable, connection lost, unknown answer
    ├── ApiFailure        4-7  the node answered with an error; one code for each category of the API
    ├── ChainFailure        8  the chain node gave no usable answer
    └── NothingCame         9  what was waited for did not come in time

0 is success, 1 a defect of this program, 130 an interruption by the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, TypeAlias

from .escape import shown

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"
"""What answers are made of for programs. No floating point: amounts are text."""

OK: Final = 0
DEFECT: Final = 1
INTERRUPTED: Final = 130


class Failure(Exception):
    """Base of all; `str` of it is for people and safe for a terminal."""

    exit_code: ClassVar[int] = DEFECT
    kind: ClassVar[str] = "failure"

    @property
    def code(self) -> int:
        """The exit code of a program that ends with this."""
        return self.exit_code

    def to_json(self) -> dict[str, Json]:
        """The failure for programs."""
        return {"kind": self.kind, "exitCode": self.code, "message": str(self)}


class UsageFailure(Failure):
    """The command as it was typed makes no sense; nothing was sent."""

    exit_code = 2
    kind = "usage"


class NodeFailure(Failure):
    """No usable answer from the node; whether it did what was asked is not known.

    `status` is the name of the gRPC status, or empty.
    """

    exit_code = 3
    kind = "node"

    def __init__(self, message: str, *, status: str = "") -> None:
        super().__init__(message)
        self.status = status

    def to_json(self) -> dict[str, Json]:
        return {**super().to_json(), "status": self.status}


class ChainFailure(Failure):
    """No usable answer from the chain node."""

    exit_code = 8
    kind = "chain"


class NothingCame(Failure):
    """The wait for a notification is over."""

    exit_code = 9
    kind = "timeout"


CATEGORIES: Final[Mapping[str, int]] = {
    "ParticipantError": 4,
    "ClientError": 5,
    "ProtocolError": 6,
    "InternalError": 7,
}
"""Exit codes by category of the API's errors."""


class ApiFailure(Failure):
    """An error the node answered with.

    `info` holds the fields of the additional information as they are; `str` renders all with escapes.
    """

    kind = "api"

    def __init__(
        self, *, category: str, number: int, name: str, message: str, info: Mapping[str, Json] | None = None
    ) -> None:
        super().__init__(number, name)
        self.category = category
        self.number = number
        self.name = name
        self.message = message
        self.info: Mapping[str, Json] = info or {}

    @property
    def code(self) -> int:
        return CATEGORIES.get(self.category, CATEGORIES["InternalError"])

    def __str__(self) -> str:
        told = ", ".join(f"{name}: {_flat(value)}" for name, value in self.info.items())
        return (
            f"category: {shown(self.category)}, code: {self.number}, message: {shown(self.message)}, "
            f"additional info: {{{told}}}"
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "kind": self.kind,
            "exitCode": self.code,
            "category": self.category,
            "code": self.number,
            "name": self.name,
            "message": self.message,
            "info": dict(self.info),
        }


def _flat(value: Json) -> str:
    """A field on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flat(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flat, value)) + "]"
    return shown(str(value))

"""Port of apps: rules for channels that carry data (PROTOCOL.md 5.7)."""

from __future__ import annotations

from typing import Protocol

from ..channel import Params, State


class App(Protocol):
    """Deterministic and pure: same arguments, same verdict, no clock, no I/O. Bounded in time."""

    def default_data(self) -> bytes:
        """Data of a state whose message carried none."""
        ...

    def check_data(self, data: bytes) -> None:
        """Whether these bytes are data of this app. Called while decoding. Raises: RuleViolated("T8")."""
        ...

    def check_init(self, params: Params, state: State) -> None:
        """Whether `state` may start a channel with `params`. Raises: RuleViolated("T8")."""
        ...

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        """Whether participant `actor` may move `old` to `new`. Raises: RuleViolated("T8")."""
        ...

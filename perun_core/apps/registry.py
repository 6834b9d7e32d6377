"""Which apps this node runs, and the bundled payment app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..channel import Params, State
from ..errors import RuleViolated
from ..ports.app import App
from ..values import Address


class AppRegistry:
    """App definitions by contract address. A message that names any other app cannot be decoded."""

    def __init__(self, apps: Mapping[Address, App] | None = None) -> None:
        self._apps = dict(apps or {})

    def get(self, address: Address) -> App | None:
        """The app defined at `address`, or None when this node does not run it."""
        return self._apps.get(address)


class PaymentApp:
    """Payments only from the actor to others: per asset nobody but the actor may lose (PROTOCOL.md 5.7).

    Carries no data; locked funds are not its concern.
    """

    def default_data(self) -> bytes:
        """No data."""
        return b""

    def check_data(self, data: bytes) -> None:
        """Raises: RuleViolated("T8") when there is any data."""
        if data:
            raise RuleViolated("T8", "payment channels carry no app data")

    def check_init(self, params: Params, state: State) -> None:
        """Every distribution may start a channel; the data must be empty. Raises: RuleViolated("T8")."""
        self.check_data(state.data)

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        """Raises: RuleViolated("T8") when the actor gains or somebody else loses in any asset."""
        self.check_data(new.data)
        for asset, (before, after) in enumerate(zip(old.balances, new.balances, strict=True)):
            if len(before) != len(after):
                raise RuleViolated("T8", f"asset {asset}: number of participants changed")
            for part, (was, now) in enumerate(zip(before, after, strict=True)):
                if part == actor and now > was:
                    raise RuleViolated("T8", f"asset {asset}: the paying participant gains")
                if part != actor and now < was:
                    raise RuleViolated("T8", f"asset {asset}: participant {part} loses")


NO_APPS: Final = AppRegistry()

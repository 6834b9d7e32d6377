"""Ports of a session for which somebody else funds and watches: remote funder and remote watcher (API.md 2.6, 2.7).

Both talk to a service that acts on the chain with an account of its own. What the service says is never taken for
granted: after every step the session reads the result on its own chain connection.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from ..channel import Params, State, Transaction
from ..values import ChannelID


class FunderContext(Struct, frozen=True):
    """What a funder is opened with. Opening does not connect: the service may come later."""

    url: str
    """`fundingurl` of the session."""
    api_key: str
    """`fundingapikey` of the session; whoever knows it can spend what the service holds."""


class WatchContext(Struct, frozen=True):
    """What a remote watcher is opened with. Opening does not connect: the service may come later."""

    url: str
    """`watcherurl` of the session."""
    api_key: str
    """`watcherapikey` of the session."""


class Funder(Protocol):
    """Funds, registers and withdraws with the account of a service instead of the session's own.

    Every method may be repeated without a second effect. Raises: ApiError (what the service answered), NotReachable
    (it did not answer; the step may have happened).
    """

    async def fund(self, params: Params, state: State, index: int) -> None:
        """Deposit participant `index`'s share of `state` and wait until everybody's deposit is there."""
        ...

    async def register(self, params: Params, tx: Transaction, index: int) -> None:
        """Register the fully signed `tx` on chain unless it, or a newer version, is registered."""
        ...

    async def withdraw(self, params: Params, tx: Transaction, index: int, *, secondary: bool) -> None:
        """Conclude the channel where that is left to do, then withdraw everything participant `index` holds.

        `tx` is the registered state, or a fully signed final one. `secondary` leaves concluding to the other side for
        a few blocks. Returns when the withdrawal is final.
        """
        ...


class RemoteWatcher(Protocol):
    """Watches channels while this node may be away. Every method returns at once; the work is done behind it.

    What cannot be delivered is tried again until it can be, and said in the log.
    """

    def watch(self, params: Params, tx: Transaction) -> None:
        """`tx` is the newest fully signed transaction of its channel, durable here; replaces older ones."""
        ...

    def release(self, channel_id: ChannelID) -> None:
        """Nothing of the channel concerns us any more; the service may forget it."""
        ...

    def holds(self, channel_id: ChannelID, version: int) -> bool:
        """Whether the service was given `version` or a newer one and watches the channel now."""
        ...

"""Whether a chain node is up with its chain: it says so itself, and its latest block is not old.

Nothing that protects money waits for a node that is behind: what it tells is still the best that is known. Only new
risks are not taken on with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from .connection import Connection, Head, NodeRefused

logger: Final = logging.getLogger(__name__)

MAX_HEAD_AGE: Final = 600
"""Seconds by which the latest block may be older than this machine's clock: fifty blocks of the main network."""

DEVELOPMENT_CHAINS: Final = frozenset({1337, 31337})
"""Chain IDs of chains that make blocks only when there is something to put in, or whose clock is moved by hand."""

SYNC_TOLERANCE: Final = 3
"""Blocks that a node may say it is behind without being regarded so: the next ones may be on their way."""


class Freshness:
    """Judges the node of `connection`, and says in the log when its heads become old, and when they no longer are."""

    def __init__(
        self, connection: Connection, *, max_head_age: int | None, clock: Callable[[], float] = time.time
    ) -> None:
        """`max_head_age` is in seconds, 0 is no limit; None is `MAX_HEAD_AGE`, and no limit on development chains."""
        self._connection = connection
        self._max_age = max_head_age
        self._clock = clock
        self._was_old = False

    def observe(self, head: Head) -> None:
        """Take note of a head that was told."""
        problem = self.old(head)
        if problem and not self._was_old:
            logger.warning("%s", problem)
        elif self._was_old and not problem:
            logger.info("the chain node is up with its chain again at block %d", head.ref.number)
        self._was_old = bool(problem)

    def old(self, head: Head) -> str:
        """What is wrong with the age of `head`, the latest; "" when nothing is. A chain may be ahead of our clock."""
        limit = self._max_age
        if limit is None:
            limit = 0 if self._connection.chain_id in DEVELOPMENT_CHAINS else MAX_HEAD_AGE
        age = int(self._clock()) - head.ref.timestamp
        if not limit or age <= limit:
            return ""
        return (
            f"the chain node is behind, or this machine's clock is wrong: its latest block {head.ref.number} is "
            f"{age} s old, more than {limit} s"
        )

    async def problem(self, head: Head) -> str:
        """Why the node, whose latest block is `head`, is not to be relied on for new business; "" when it is.

        Raises: NotReachable, WrongChain.
        """
        return self.old(head) or await self._synchronizing()

    async def _synchronizing(self) -> str:
        try:
            behind = await self._connection.blocks_behind()
        except NodeRefused:
            return ""  # the question is not answered everywhere
        if behind is None or 0 <= behind <= SYNC_TOLERANCE:
            return ""
        amount = "" if behind < 0 else f", {behind} blocks behind"
        return f"the chain node is synchronizing{amount}"

"""The runner of one channel opening, on either side."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..errors import RuleViolated
from ..protocol.effects import Effects
from ..protocol.events import OpeningEvent
from ..protocol.opening import Opening, Stage
from ..values import Address
from .runner import Outside, Requests, Runner

log = logging.getLogger(__name__)


class LiveOpening(Runner[OpeningEvent]):
    """An opening under way. It tells its session when the channel ID is known and when it ended."""

    def __init__(
        self,
        machine: Opening,
        peer: Address,
        *,
        outside: Outside,
        requests: Requests,
        on_progress: Callable[[LiveOpening], None],
    ) -> None:
        super().__init__(f"opening {machine.proposal.base.proposal_id.hex()[:16]}", peer, outside, requests)
        self.machine = machine
        self.request = 0
        self._on_progress = on_progress

    def handle(self, event: OpeningEvent) -> Effects:
        return self.machine.handle(event)

    def on_settled(self) -> None:
        self._on_progress(self)

    def on_violation(self, error: RuleViolated) -> None:
        log.info("%s: %s", self.name, error)
        if self.machine.stage is Stage.PROPOSED:  # terms or an acceptance that must not be signed
            self.call(lambda: self.machine.abort(str(error)))

    def on_broken(self, problem: str) -> None:
        self.machine.stage = Stage.FAILED
        self._on_progress(self)

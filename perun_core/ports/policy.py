"""Port of policies: decide on incoming proposals and updates before the user is asked."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from ..channel import Balances


class Verdict(StrEnum):
    """What a policy says."""

    ACCEPT = "accept"
    REJECT = "reject"
    ASK = "ask"


class Decision(Struct, frozen=True):
    """A verdict with the rule that led to it; `reason` goes to the peer when the verdict is REJECT."""

    verdict: Verdict
    rule: str = ""
    reason: str = "rejected by policy"


ASK_USER = Decision(Verdict.ASK)


class ProposalView(Struct, frozen=True):
    """What a policy sees of a channel proposal. Amounts in base units."""

    peer: str
    currencies: tuple[str, ...]
    balances: Balances
    own_index: int
    challenge_duration: int


class UpdateView(Struct, frozen=True):
    """What a policy sees of an update. Amounts in base units."""

    peer: str
    channel: str
    currencies: tuple[str, ...]
    current: Balances
    proposed: Balances
    own_index: int
    version: int
    is_final: bool


class PolicyContext(Struct, frozen=True):
    """What a policy is opened with."""

    session: str
    """Alias of the session's user, for logs."""


class Policy(Protocol):
    """Decides in bounded time without side effects. Any error or delay means: ask the user."""

    async def on_proposal(self, proposal: ProposalView) -> Decision:
        """About an incoming channel proposal that passed all protocol checks."""
        ...

    async def on_update(self, update: UpdateView) -> Decision:
        """About an incoming update that passed all protocol checks."""
        ...

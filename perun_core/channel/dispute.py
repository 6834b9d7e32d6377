"""What the adjudicator contract stores about a registered channel (CHAIN.md 1.3)."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

from ..values import Bytes32


class DisputePhase(IntEnum):
    """Phase of a registered channel on chain (CHAIN.md 1.3)."""

    DISPUTE = 0
    FORCE_EXEC = 1
    CONCLUDED = 2


class Dispute(Struct, frozen=True):
    """What the adjudicator stores about a channel; `registered` False means it knows nothing. Times in block time."""

    registered: bool
    timeout: int = 0
    challenge_duration: int = 0
    version: int = 0
    has_app: bool = False
    phase: DisputePhase = DisputePhase.DISPUTE
    state_hash: Bytes32 = Bytes32(bytes(32))

    @property
    def concluded(self) -> bool:
        """Whether the outcome is fixed and can be withdrawn."""
        return self.registered and self.phase is DisputePhase.CONCLUDED

    @property
    def concludable_at(self) -> int:
        """Block time from which `conclude` succeeds (CHAIN.md 1.3.3 step 4)."""
        waits_for_app = self.has_app and self.phase is DisputePhase.DISPUTE
        return self.timeout + (self.challenge_duration if waits_for_app else 0)

"""States of a channel: who owns what, at which version. All frozen; amounts are base units of their asset."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..values import Address, ChannelID, Sig

Balances = tuple[tuple[int, ...], ...]
"""Amounts in base units: outer index asset, inner index participant."""


class Asset(Struct, frozen=True):
    """An asset as a channel knows it: the contract that holds the deposits (PROTOCOL.md 2.1).

    `chain_id` and `backend_id` name the ledger in profiles that write them; the default 0 / 1 is "the ledger of the
    channel", which is the only one profile gp090 can express.
    """

    holder: Address
    chain_id: int = 0
    backend_id: int = 1


class SubAlloc(Struct, frozen=True):
    """Funds locked in a sub-channel or virtual channel: its ID, one total per asset, and the participant mapping."""

    id: ChannelID
    balances: tuple[int, ...]
    index_map: tuple[int, ...] = ()
    """Entry p is the parent's index that stands for sub-participant p; empty means identity."""


class Allocation(Struct, frozen=True):
    """Distribution of a channel's funds; rows of `balances` follow `assets`."""

    assets: tuple[Asset, ...]
    balances: Balances
    locked: tuple[SubAlloc, ...] = ()

    def sums(self) -> tuple[int, ...]:
        """Total per asset including locked funds, base units."""
        return tuple(
            sum(row) + sum(entry.balances[index] for entry in self.locked) for index, row in enumerate(self.balances)
        )


class State(Struct, frozen=True):
    """One state of a channel. What is signed is its ABI encoding, made by the profile (PROTOCOL.md 5.5)."""

    id: ChannelID
    version: int
    allocation: Allocation
    is_final: bool = False
    app: Address | None = None
    data: bytes = b""

    @property
    def balances(self) -> Balances:
        """Shorthand for the allocation's balances."""
        return self.allocation.balances

    def next(self, *, balances: Balances | None = None, is_final: bool = False) -> State:
        """The successor with the version raised by one; balances default to unchanged. Checks nothing."""
        rows = self.allocation.balances if balances is None else balances
        return replace(
            self, version=self.version + 1, allocation=replace(self.allocation, balances=rows), is_final=is_final
        )


class Transaction(Struct, frozen=True):
    """A state with one signature slot per participant; `state` None is the empty transaction of the wire format."""

    state: State | None
    sigs: tuple[Sig | None, ...] = ()

    @property
    def fully_signed(self) -> bool:
        """Whether every slot is filled. Says nothing about validity of the signatures."""
        return self.state is not None and all(sig is not None for sig in self.sigs)


def transaction(state: State, sigs: Sequence[Sig | None]) -> Transaction:
    """`state` with `sigs`, one slot per participant."""
    return Transaction(state, tuple(sigs))

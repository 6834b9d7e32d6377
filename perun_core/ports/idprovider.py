"""Port of ID providers: they map unique aliases to peers."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from ..values import Address

OWN_ALIAS = "self"
"""The alias under which a session knows itself; no ID provider may hold it."""


class PeerID(Struct, frozen=True):
    """A peer as a user knows it: alias, network identity and signing address, and where to reach it."""

    alias: str
    address: Address
    """Off-chain address: identity in the peer network; equal addresses are one peer, however they are written."""
    comm_address: str
    comm_type: str
    address_text: str = ""
    """The off-chain address as the user wrote it; echoed on the API. Empty: the checksummed form."""

    @property
    def shown_address(self) -> str:
        """The off-chain address as it is shown to users."""
        return self.address_text or self.address.checksum

    def same_as(self, other: PeerID) -> bool:
        """Whether both name the same peer with the same data, compared by value (API.md 4.3)."""
        return (self.alias, self.address, self.comm_address, self.comm_type) == (
            other.alias,
            other.address,
            other.comm_address,
            other.comm_type,
        )


class IDProviderContext(Struct, frozen=True):
    """What an ID provider is opened with."""

    url: str
    """Where the directory lives: a path for file-based providers."""


class IDProvider(Protocol):
    """A directory of peers. Aliases are unique and so are addresses; lookups compare addresses by value."""

    async def by_alias(self, alias: str) -> PeerID:
        """Raises: PeerUnknown, IDProviderBroken."""
        ...

    async def by_address(self, address: Address) -> PeerID:
        """Raises: PeerUnknown, IDProviderBroken."""
        ...

    async def add(self, peer: PeerID) -> None:
        """Add `peer`; whether it is written back to the directory is the provider's configuration.

        Raises: PeerExists (same data, or another alias with this address), AliasTaken (alias with other data, or
        the reserved alias), PeerInvalid (empty alias), IDProviderBroken.
        """
        ...

    async def remove(self, alias: str) -> None:
        """Raises: PeerUnknown, IDProviderBroken."""
        ...

    async def peers(self) -> tuple[PeerID, ...]:
        """All peers ordered by alias. Raises: IDProviderBroken."""
        ...

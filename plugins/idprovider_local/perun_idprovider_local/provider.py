"""The ID provider: the peers of a file in memory, written back when configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from perun_core.errors import AliasTaken, IDProviderBroken, PeerExists, PeerInvalid, PeerUnknown
from perun_core.ports.idprovider import OWN_ALIAS, IDProviderContext, PeerID
from perun_core.values import Address

from .peerfile import MAX_FILE_SIZE, parse, read_bytes, render, replace


class LocalConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the ID provider ``local``."""

    write_back: bool = False
    """Whether added and removed peers change the file too. Comments in it are lost then. Off: only the session's
    memory changes."""


class LocalProvider:
    """Peers of one file; implements `perun_core.ports.idprovider.IDProvider`."""

    def __init__(self, path: Path, content: bytes, *, write_back: bool) -> None:
        self._path = path
        self._content = content
        self._write_back = write_back
        self._changing = asyncio.Lock()
        self._index(parse(content, path))

    async def by_alias(self, alias: str) -> PeerID:
        """See `IDProvider.by_alias`."""
        if (peer := self._by_alias.get(alias)) is None:
            raise PeerUnknown(f"no peer with alias {alias!r}")
        return peer

    async def by_address(self, address: Address) -> PeerID:
        """See `IDProvider.by_address`."""
        if (peer := self._by_address.get(address)) is None:
            raise PeerUnknown(f"no peer with off-chain address {Address(address).checksum}")
        return peer

    async def add(self, peer: PeerID) -> None:
        """See `IDProvider.add`. With write-back the file is durable before this returns, or nothing changed.

        A cancelled call may still take effect, in memory and file alike.
        """
        # Shielded with its lock: the next change must start from the file as this one leaves it.
        await asyncio.shield(self._add(peer))

    async def remove(self, alias: str) -> None:
        """See `IDProvider.remove`. With write-back the file is durable before this returns, or nothing changed.

        A cancelled call may still take effect, in memory and file alike.
        """
        await asyncio.shield(self._remove(alias))

    async def peers(self) -> tuple[PeerID, ...]:
        """See `IDProvider.peers`."""
        return tuple(self._by_alias[alias] for alias in sorted(self._by_alias))

    def _check_new(self, peer: PeerID) -> None:
        """API.md 2.4.1, AddPeerID. Raises: PeerInvalid, AliasTaken, PeerExists."""
        if not peer.alias:
            raise PeerInvalid("alias", "", "must not be empty")
        if peer.address.is_zero:
            raise PeerInvalid("off_chain_address", peer.shown_address, "the zero address is nobody")
        if peer.alias == OWN_ALIAS:
            raise AliasTaken(f"the alias {OWN_ALIAS!r} is reserved for the session's own entry")
        known = self._by_alias.get(peer.alias)
        if known is not None and not known.same_as(peer):
            raise AliasTaken(f"alias {peer.alias!r} belongs to a peer with other data")
        if (other := self._by_address.get(peer.address)) is not None:
            raise PeerExists(other.alias)

    async def _add(self, peer: PeerID) -> None:
        async with self._changing:
            self._check_new(peer)
            await self._become((*self._by_alias.values(), peer))

    async def _remove(self, alias: str) -> None:
        async with self._changing:
            await self.by_alias(alias)
            await self._become(tuple(peer for peer in self._by_alias.values() if peer.alias != alias))

    async def _become(self, peers: tuple[PeerID, ...]) -> None:
        if self._write_back:
            content = render(peers)
            await asyncio.to_thread(_replace_unchanged, self._path, self._content, content)
            self._content = content
        self._index(peers)

    async def settled(self) -> None:
        """Return once no change is under way."""
        async with self._changing:
            pass

    def _index(self, peers: tuple[PeerID, ...]) -> None:
        self._by_alias = {peer.alias: peer for peer in peers}
        self._by_address = {peer.address: peer for peer in peers}


def _replace_unchanged(path: Path, expected: bytes, content: bytes) -> None:
    """Replace the file unless somebody edited it since it was read. Raises: IDProviderBroken."""
    if read_bytes(path) != expected:
        raise IDProviderBroken(f"ID provider file {str(path)!r} was changed by somebody else; open the session again")
    if len(content) > MAX_FILE_SIZE:
        raise IDProviderBroken(f"ID provider file {str(path)!r} would become too large")
    replace(path, content)


@asynccontextmanager
async def open_local(config: LocalConfig, context: IDProviderContext) -> AsyncIterator[LocalProvider]:
    """The peers of the file at `context.url`. Raises: IDProviderBroken for a missing or malformed file."""
    if not context.url:
        raise IDProviderBroken("no ID provider file is configured")
    provider = await asyncio.to_thread(_load, Path(context.url), config.write_back)
    try:
        yield provider
    finally:
        await provider.settled()


def _load(path: Path, write_back: bool) -> LocalProvider:
    return LocalProvider(path, read_bytes(path), write_back=write_back)

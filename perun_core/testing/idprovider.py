"""Proof of `perun_core.ports.idprovider.IDProvider`, and peers in memory for tests of code that looks them up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from perun_core.errors import AliasTaken, IDProviderError, PeerExists, PeerInvalid, PeerUnknown
from perun_core.ports.idprovider import OWN_ALIAS, IDProvider, PeerID
from perun_core.values import ZERO_ADDRESS, Address


class InMemoryPeers:
    """An `IDProvider` whose directory is a dictionary. `failure`, when set, is raised by every method."""

    def __init__(self, peers: Iterable[PeerID] = ()) -> None:
        self._peers = {peer.alias: peer for peer in peers}
        self.failure: IDProviderError | None = None

    async def by_alias(self, alias: str) -> PeerID:
        """See `IDProvider.by_alias`."""
        self._fail()
        if alias not in self._peers:
            raise PeerUnknown(f"no peer with alias {alias!r}")
        return self._peers[alias]

    async def by_address(self, address: Address) -> PeerID:
        """See `IDProvider.by_address`."""
        self._fail()
        for peer in self._peers.values():
            if peer.address == address:
                return peer
        raise PeerUnknown(f"no peer with address {address.checksum}")

    async def add(self, peer: PeerID) -> None:
        """See `IDProvider.add`."""
        self._fail()
        if not peer.alias:
            raise PeerInvalid("alias", "", "must not be empty")
        if peer.address == ZERO_ADDRESS:
            raise PeerInvalid("off_chain_address", peer.shown_address, "the zero address is nobody")
        known = self._peers.get(peer.alias)
        if peer.alias == OWN_ALIAS or (known is not None and not known.same_as(peer)):
            raise AliasTaken(f"alias {peer.alias!r} belongs to a peer with other data")
        for other in self._peers.values():
            if other.address == peer.address:
                raise PeerExists(other.alias)
        self._peers[peer.alias] = peer

    async def remove(self, alias: str) -> None:
        """See `IDProvider.remove`."""
        self._fail()
        if self._peers.pop(alias, None) is None:
            raise PeerUnknown(f"no peer with alias {alias!r}")

    async def peers(self) -> tuple[PeerID, ...]:
        """See `IDProvider.peers`."""
        self._fail()
        return tuple(self._peers[alias] for alias in sorted(self._peers))

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def open_peers_in_memory(peers: Iterable[PeerID]) -> AsyncIterator[InMemoryPeers]:
    """A directory in memory, opened the way a session opens an ID provider."""
    yield InMemoryPeers(peers)


class IDProviderConformance:
    """Every promise of the `IDProvider` port. Subclass as ``class TestMine(IDProviderConformance)``."""

    ALICE: ClassVar[PeerID] = PeerID(
        alias="alice",
        address=Address(b"\x1a" * 20),
        comm_address="127.0.0.1:5751",
        comm_type="tcp",
        address_text="0X" + "1A" * 20,
    )
    BOB: ClassVar[PeerID] = PeerID(
        alias="bob",
        address=Address(bytes(19) + b"\x0b"),
        comm_address="peer.example:5752",
        comm_type="tcp",
        address_text="b",
    )
    CAROL: ClassVar[PeerID] = PeerID(
        alias="Carol Ünïcode: #1", address=Address(b"\xca" * 20), comm_address="[::1]:5753", comm_type="tcp"
    )

    def open_directory(self, path: Path, peers: tuple[PeerID, ...]) -> AbstractAsyncContextManager[IDProvider]:
        """Prepare below the empty directory `path` an ID provider that knows `peers`, and open it."""
        raise NotImplementedError

    async def test_peers_are_found_by_alias_and_by_address(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.ALICE, self.BOB)) as directory:
            for peer in (self.ALICE, self.BOB):
                assert (await directory.by_alias(peer.alias)).same_as(peer)
                assert (await directory.by_address(peer.address)).same_as(peer)

    async def test_peers_that_are_not_there_are_not_found(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.ALICE,)) as directory:
            for alias in ("bob", "Alice", "", OWN_ALIAS):
                with pytest.raises(PeerUnknown):
                    await directory.by_alias(alias)
            for address in (self.BOB.address, ZERO_ADDRESS):
                with pytest.raises(PeerUnknown):
                    await directory.by_address(address)

    async def test_an_address_is_found_by_value_and_shown_as_it_was_written(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.ALICE, self.BOB)) as directory:
            assert (await directory.by_address(self.BOB.address)).shown_address == "b"
            assert (await directory.by_alias("alice")).shown_address == self.ALICE.address_text

    async def test_an_empty_directory_is_a_directory(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, ()) as directory:
            assert await directory.peers() == ()
            await directory.add(self.ALICE)
            assert [peer.alias for peer in await directory.peers()] == ["alice"]

    async def test_peers_are_listed_in_the_order_of_their_aliases(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.BOB, self.ALICE)) as directory:
            await directory.add(self.CAROL)
            assert [peer.alias for peer in await directory.peers()] == [self.CAROL.alias, "alice", "bob"]

    async def test_an_added_peer_is_found(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.ALICE,)) as directory:
            await directory.add(self.CAROL)
            assert (await directory.by_alias(self.CAROL.alias)).same_as(self.CAROL)
            assert (await directory.by_address(self.CAROL.address)).shown_address == self.CAROL.address.checksum

    async def test_adding_a_known_peer_again_names_it(self, tmp_path: Path) -> None:
        written_differently = _changed(self.ALICE, address_text="")
        async with self.open_directory(tmp_path, (self.ALICE,)) as directory:
            for again in (self.ALICE, written_differently):
                with pytest.raises(PeerExists) as caught:
                    await directory.add(again)
                assert caught.value.alias == "alice"
            assert (await directory.by_alias("alice")).shown_address == self.ALICE.address_text

    async def test_one_address_cannot_have_two_aliases(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.ALICE,)) as directory:
            with pytest.raises(PeerExists) as caught:
                await directory.add(_changed(self.ALICE, alias="mallory"))
            assert caught.value.alias == "alice"
            with pytest.raises(PeerUnknown):
                await directory.by_alias("mallory")

    async def test_one_alias_cannot_have_two_meanings(self, tmp_path: Path) -> None:
        others = (
            _changed(self.ALICE, address=self.BOB.address),
            _changed(self.ALICE, comm_address="127.0.0.1:1"),
            _changed(self.ALICE, comm_type="carrier pigeon"),
        )
        async with self.open_directory(tmp_path, (self.ALICE,)) as directory:
            for other in others:
                with pytest.raises(AliasTaken):
                    await directory.add(other)
            assert (await directory.by_alias("alice")).same_as(self.ALICE)

    async def test_the_own_alias_is_reserved(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.ALICE,)) as directory:
            for address in (self.ALICE.address, self.BOB.address):
                with pytest.raises(AliasTaken):
                    await directory.add(_changed(self.BOB, alias=OWN_ALIAS, address=address))
            with pytest.raises(PeerUnknown):
                await directory.by_alias(OWN_ALIAS)

    async def test_a_peer_without_alias_or_identity_is_invalid(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, ()) as directory:
            with pytest.raises(PeerInvalid) as caught:
                await directory.add(_changed(self.BOB, alias=""))
            assert caught.value.field == "alias"
            with pytest.raises(PeerInvalid) as caught:
                await directory.add(_changed(self.BOB, address=ZERO_ADDRESS))
            assert caught.value.field == "off_chain_address"
            assert await directory.peers() == ()

    async def test_a_removed_peer_is_gone_and_can_be_added_again(self, tmp_path: Path) -> None:
        async with self.open_directory(tmp_path, (self.ALICE, self.BOB)) as directory:
            await directory.remove("alice")
            with pytest.raises(PeerUnknown):
                await directory.by_alias("alice")
            with pytest.raises(PeerUnknown):
                await directory.by_address(self.ALICE.address)
            with pytest.raises(PeerUnknown):
                await directory.remove("alice")
            await directory.add(_changed(self.ALICE, comm_address="127.0.0.1:9"))
            assert (await directory.by_alias("alice")).comm_address == "127.0.0.1:9"
            assert (await directory.by_alias("bob")).same_as(self.BOB)


def _changed(
    peer: PeerID,
    *,
    alias: str | None = None,
    address: Address | None = None,
    comm_address: str | None = None,
    comm_type: str | None = None,
    address_text: str | None = None,
) -> PeerID:
    """`peer` with some fields replaced; a replaced address is shown in its checksummed form."""
    text = peer.address_text if address is None else ""
    return PeerID(
        alias=peer.alias if alias is None else alias,
        address=peer.address if address is None else address,
        comm_address=peer.comm_address if comm_address is None else comm_address,
        comm_type=peer.comm_type if comm_type is None else comm_type,
        address_text=text if address_text is None else address_text,
    )

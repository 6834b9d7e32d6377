"""The local ID provider, with and without write-back, and the kit's peers in memory keep every promise of the port."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar

from perun_core.ports.idprovider import IDProvider, IDProviderContext, PeerID
from perun_core.testing.idprovider import IDProviderConformance, open_peers_in_memory
from perun_idprovider_local.peerfile import render
from perun_idprovider_local.provider import LocalConfig, open_local


class TestLocalProvider(IDProviderConformance):
    write_back: ClassVar[bool] = False

    def open_directory(self, path: Path, peers: tuple[PeerID, ...]) -> AbstractAsyncContextManager[IDProvider]:
        (path / "idprovider.yaml").write_bytes(render(peers))
        config = LocalConfig(write_back=self.write_back)
        return open_local(config, IDProviderContext(url=str(path / "idprovider.yaml")))


class TestLocalProviderWithWriteBack(TestLocalProvider):
    write_back = True


class TestInMemoryPeers(IDProviderConformance):
    def open_directory(self, path: Path, peers: tuple[PeerID, ...]) -> AbstractAsyncContextManager[IDProvider]:
        return open_peers_in_memory(peers)

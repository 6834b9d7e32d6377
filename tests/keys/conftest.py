"""Real places of keys that tests share: a Vault server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.vault_server import NO_VAULT, Vault, running_vault
from tools.build_vault import vault_path


@pytest.fixture(scope="session")
def vault_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """One server for all tests of a process; whoever seals or stops it opens it again."""
    if vault_path() is None:
        pytest.skip(NO_VAULT)
    with running_vault(tmp_path_factory.mktemp("vault")) as vault:
        yield vault


@pytest.fixture
def vault(vault_server: Vault) -> Iterator[Vault]:
    """The server, unsealed before and after the test."""
    yield vault_server
    if vault_server.process is None:
        vault_server.start()
    vault_server.unseal()

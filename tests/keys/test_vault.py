"""Keys in a real Vault: both engines, three ways to log in, tokens that end, a server that is sealed, slow or away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perun_core.errors import KeyExists, KeyLocked, KeyManagerError, KeyNotFound, KeysUnreachable
from perun_core.keys import Secret
from perun_core.ports.keymgr import KeyManager, KeyManagerContext, KeyRole
from perun_core.testing.keymgr import KeyManagerConformance, address_of, message_digest, recovered
from perun_core.values import Address, Bytes32, keccak256
from perun_keymgr_vault.config import Auth, Keep, VaultConfig
from perun_keymgr_vault.keymgr import open_vault, open_vault_custody
from tests.servers.kubernetes import running_cluster
from tests.servers.vault_server import Vault

ALICE, BOB = b"\x11" * 32, b"\x22" * 32
DIGEST = Bytes32(keccak256(b"a state"))


def config(vault: Vault, **terms: Any) -> VaultConfig:
    if not {"token", "tokenfile", "auth"} & terms.keys():
        terms["token"] = vault.token()
    return VaultConfig(address=vault.url, **terms)


def opened(vault: Vault, *addresses: Address, **terms: Any) -> AbstractAsyncContextManager[KeyManager]:
    context = KeyManagerContext(KeyRole.OFF_CHAIN, addresses or (address_of(ALICE),))
    return open_vault(config(vault, **terms), context)


def with_approle(vault: Vault, name: str, **terms: Any) -> dict[str, Any]:
    role, secret = vault.approle(name, **terms)
    return {"auth": Auth.APPROLE, "roleid": role, "secretid": secret}


async def signs(keys: KeyManager, key: bytes = ALICE) -> None:
    address = address_of(key)
    assert recovered(message_digest(DIGEST), await keys.sign_message(address, DIGEST)) == address


@pytest.fixture(autouse=True)
def _keys(vault: Vault) -> None:
    vault.put(ALICE, address_of(ALICE))


# --------------------------------------------------------------------------------------------------------- conformance


class _InVault(KeyManagerConformance):
    KEEP: Keep
    MOUNT = "secret"

    @pytest.fixture(autouse=True)
    def _server(self, vault: Vault) -> None:
        self._vault = vault

    def _config(self, **terms: Any) -> VaultConfig:
        return config(self._vault, keep=self.KEEP, mount=self.MOUNT, **terms)

    @asynccontextmanager
    async def open_keys(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AsyncIterator[KeyManager]:
        for key in held:
            self._vault.put(key, address_of(key), mount=self.MOUNT)
        async with open_vault(self._config(), KeyManagerContext(KeyRole.OFF_CHAIN, wanted)) as keys:
            yield keys


class TestKeptForTheSession(_InVault):
    KEEP = Keep.SESSION


class TestFetchedForEverySignature(_InVault):
    KEEP = Keep.SIGNATURE
    MOUNT = "old"

    @asynccontextmanager
    async def open_silent(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AsyncIterator[KeyManager]:
        for key in held:
            self._vault.put(key, address_of(key), mount=self.MOUNT)
        async with open_vault(self._config(timeout=0.5), KeyManagerContext(KeyRole.OFF_CHAIN, wanted)) as keys:
            with self._vault.silent():
                yield keys


# ----------------------------------------------------------------------------------------------------- finding the key


@pytest.mark.parametrize("version", [0, 1])
async def test_the_first_version_of_the_engine_is_found_out_or_stated(vault: Vault, version: int) -> None:
    vault.put(ALICE, address_of(ALICE), mount="old")
    async with opened(vault, mount="old", version=version) as keys:
        await signs(keys)


@pytest.mark.parametrize("version", [0, 2])
async def test_the_second_version_of_the_engine_is_found_out_or_stated(vault: Vault, version: int) -> None:
    async with opened(vault, version=version) as keys:
        await signs(keys)


async def test_an_address_without_key_is_told_from_a_folder_that_is_denied(vault: Vault) -> None:
    with pytest.raises(KeyNotFound):
        async with opened(vault, address_of(b"\x44" * 32)):
            pass
    with pytest.raises(KeyLocked):
        async with opened(vault, path="somebody/else"):
            pass


async def test_a_key_of_another_address_and_what_is_no_key_are_refused(vault: Vault) -> None:
    vault.put(BOB, address_of(b"\x45" * 32))
    with pytest.raises(KeyManagerError, match="another address"):
        async with opened(vault, address_of(b"\x45" * 32)):
            pass
    vault.put(b"short", address_of(b"\x46" * 32))
    with pytest.raises(KeyManagerError) as caught:
        async with opened(vault, address_of(b"\x46" * 32)):
            pass
    assert b"short".hex() not in str(caught.value)


async def test_two_openings_at_the_same_time_do_not_disturb_each_other(vault: Vault) -> None:
    async with opened(vault) as one, opened(vault, keep=Keep.SIGNATURE) as other:
        await asyncio.gather(*(signs(keys) for keys in (one, other) * 5))


# -------------------------------------------------------------------------------------------------------- logging in


async def test_an_approle_logs_in_and_gives_its_token_back(vault: Vault) -> None:
    terms = with_approle(vault, "tidy")
    before = vault.tokens()
    async with opened(vault, **terms) as keys:
        assert vault.tokens() == before, "with the keys in memory no token is needed"
        await signs(keys)
    async with opened(vault, **terms, keep=Keep.SIGNATURE) as keys:
        assert vault.tokens() == before + 1
        await signs(keys)
    assert vault.tokens() == before


async def test_a_token_that_was_given_to_the_node_is_not_revoked(vault: Vault) -> None:
    token = vault.token()
    for _ in range(2):
        async with opened(vault, token=token) as keys:
            await signs(keys)


async def test_credentials_may_lie_in_files(vault: Vault, tmp_path: Path) -> None:
    role, secret = vault.approle("files")
    (tmp_path / "secret-id").write_text(secret + "\n")
    async with opened(vault, auth=Auth.APPROLE, roleid=role, secretidfile=str(tmp_path / "secret-id")) as keys:
        await signs(keys)
    (tmp_path / "token").write_text(vault.token() + "\n")
    async with opened(vault, tokenfile=str(tmp_path / "token")) as keys:
        await signs(keys)


async def test_wrong_credentials_and_tokens_without_rights_are_refused_at_once(vault: Vault) -> None:
    role, _ = vault.approle("wrong")
    for terms in (
        {"token": "hvs.nonsense"},
        {"token": vault.token(policies=("default",))},
        {"auth": Auth.APPROLE, "roleid": role, "secretid": "nonsense"},
        with_approle(vault, "powerless", policies=("default",)),
    ):
        with pytest.raises(KeyLocked) as caught:
            async with opened(vault, timeout=60, **terms):
                pass
        assert "nonsense" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ tokens that end


async def test_a_token_is_renewed_before_it_expires(vault: Vault) -> None:
    token = vault.token(ttl="5s")
    async with opened(vault, token=token, keep=Keep.SIGNATURE) as keys:
        until_when = time.monotonic() + 7
        while time.monotonic() < until_when:  # longer than its first life
            await signs(keys)
            await asyncio.sleep(0.2)


async def test_when_a_token_cannot_be_renewed_any_more_the_node_logs_in_again(vault: Vault) -> None:
    terms = with_approle(vault, "short", ttl="2s", max_ttl="3s")
    async with opened(vault, **terms, keep=Keep.SIGNATURE) as keys:
        until_when = time.monotonic() + 6
        while time.monotonic() < until_when:  # twice the longest life of a token
            await signs(keys)
            await asyncio.sleep(0.2)


async def test_a_revoked_token_is_replaced_when_it_is_missed(vault: Vault) -> None:
    terms = with_approle(vault, "revoked")
    async with opened(vault, **terms, keep=Keep.SIGNATURE) as keys:
        with vault.operator() as client:
            own = client.auth.token.lookup_self()["data"]["accessor"]
            for accessor in client.auth.token.list_accessors()["data"]["keys"]:
                if accessor != own and "auth/approle" in client.auth.token.lookup_accessor(accessor)["data"]["path"]:
                    client.auth.token.revoke_accessor(accessor)
        await signs(keys)


async def test_a_given_token_that_ended_is_a_typed_error_and_a_new_one_in_its_file_is_taken(
    vault: Vault, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(vault.token(ttl="1s", explicit_max_ttl="1s"))
    async with opened(vault, tokenfile=str(file), keep=Keep.SIGNATURE) as keys:
        await signs(keys)
        with pytest.raises(KeyLocked):
            async with asyncio.timeout(30):
                while True:
                    await signs(keys)
                    await asyncio.sleep(0.1)
        file.write_text(vault.token())
        await signs(keys)


# ------------------------------------------------------------------------------------------------- a server in trouble


async def test_keys_kept_for_the_session_sign_on_while_vault_is_sealed_and_stopped(vault: Vault) -> None:
    async with opened(vault) as keys:
        vault.seal()
        await signs(keys)
        vault.stop()
        await signs(keys)


async def test_a_sealed_vault_locks_the_keys_until_somebody_unseals_it(vault: Vault) -> None:
    async with opened(vault, keep=Keep.SIGNATURE) as keys:
        vault.seal()
        with pytest.raises(KeyLocked, match="sealed"):
            await signs(keys)
        with pytest.raises(KeyLocked, match="sealed"):
            async with opened(vault, token="any"):
                pass
        vault.unseal()
        await signs(keys)


async def test_a_vault_that_is_restarted_is_waited_for(vault: Vault) -> None:
    async with opened(vault, keep=Keep.SIGNATURE, timeout=30) as keys:
        await signs(keys)
        vault.stop()
        waiting = asyncio.ensure_future(signs(keys))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        vault.start()
        with pytest.raises(KeyLocked, match="sealed"):  # it starts sealed, and says so
            await waiting
        vault.unseal()
        await signs(keys)


async def test_a_vault_that_is_away_is_reported_within_the_time_limit(vault: Vault) -> None:
    async with opened(vault, keep=Keep.SIGNATURE, timeout=0.5) as keys:
        vault.stop()
        with pytest.raises(KeysUnreachable):
            await signs(keys)
    with pytest.raises(KeysUnreachable):
        async with opened(vault, token="any", timeout=0.5):
            pass


async def test_a_slow_vault_never_blocks_the_loop_and_is_taken_up_again(vault: Vault) -> None:
    async with opened(vault, keep=Keep.SIGNATURE, timeout=0.5) as keys:
        with vault.silent():
            beats = 0
            asking = asyncio.ensure_future(signs(keys))
            while not asking.done():
                beats += 1
                await asyncio.sleep(0.01)
            with pytest.raises(KeysUnreachable):
                await asking
        assert beats > 10
        await signs(keys)


# --------------------------------------------------------------------------------------------------------- the custody


@pytest.mark.parametrize("mount", ["secret", "old"])
async def test_the_custody_keeps_lists_gives_and_removes_keys(vault: Vault, mount: str) -> None:
    terms = {"mount": mount, "path": "perun/custody"}
    key, address = Secret(b"\x51" * 32), address_of(b"\x51" * 32)
    async with open_vault_custody(config(vault, **terms)) as custody:
        assert await custody.addresses() == ()
        assert await custody.add(key) == address
        with pytest.raises(KeyExists):
            await custody.add(key)
        assert await custody.addresses() == (address,)
        assert await custody.place(address) == f"{mount}/perun/custody/{address.hex()}"
        with (await custody.read(address))[0] as found:
            assert found.buffer == b"\x51" * 32
    async with opened(vault, address, **terms) as keys:
        await signs(keys, b"\x51" * 32)
    async with open_vault_custody(config(vault, **terms)) as custody:
        await custody.remove(address)
        assert await custody.addresses() == ()
        with pytest.raises(KeyNotFound):
            await custody.remove(address)


# -------------------------------------------------------------------------------------------------------------- secrets


async def test_no_token_and_no_key_gets_into_the_log(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    terms = with_approle(vault, "quiet")
    token = vault.token()
    for credentials in (terms, {"token": token}):
        async with opened(vault, **credentials, keep=Keep.SIGNATURE) as keys:
            await signs(keys)
    for secret in (terms["secretid"], token, ALICE.hex()):
        assert secret not in caplog.text


# ---------------------------------------------------------------------------------------------------------- kubernetes


async def test_a_pod_logs_in_with_the_token_of_its_service_account(vault: Vault, tmp_path: Path) -> None:
    """Vault's own Kubernetes login; the cluster behind it is played by a server that answers its one question."""
    file = tmp_path / "token"
    with running_cluster() as cluster:
        with vault.operator() as client:
            client.sys.enable_auth_method("kubernetes", path="cluster")
            client.auth.kubernetes.configure(
                kubernetes_host=cluster.url,
                token_reviewer_jwt="reviewer",
                disable_local_ca_jwt=True,
                mount_point="cluster",
            )
            client.auth.kubernetes.create_role(
                "node",
                bound_service_account_names=["perunnode"],
                bound_service_account_namespaces=["payments"],
                policies=["perun"],
                ttl="2s",
                mount_point="cluster",
            )
        terms = {"auth": Auth.KUBERNETES, "authmount": "cluster", "role": "node", "jwtfile": str(file)}
        file.write_text(cluster.service_account("payments", "perunnode"))
        async with opened(vault, **terms, keep=Keep.SIGNATURE) as keys:
            await signs(keys)
        file.write_text(cluster.service_account("payments", "somebody"))
        with pytest.raises(KeyLocked):
            async with opened(vault, **terms):
                pass
    with pytest.raises(KeyManagerError, match="jwtfile"):
        async with opened(vault, **(terms | {"jwtfile": str(tmp_path / "missing")})):
            pass

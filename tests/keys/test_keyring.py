"""Keys in a real Secret Service: kept, found again, locked, silent, missing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perun_core.errors import KeyExists, KeyLocked, KeyManagerError, KeyNotFound, KeysUnreachable
from perun_core.keys import Secret
from perun_core.ports.keymgr import KeyManager, KeyManagerContext, KeyRole
from perun_core.testing.keymgr import KeyManagerConformance, address_of, message_digest, recovered
from perun_core.values import Address, Bytes32
from perun_keymgr_keyring.keymgr import KeyringConfig, open_keyring, open_keyring_custody
from perun_keymgr_keyring.secretstore import SecretStore, Store
from tests.servers.secretservice import NO_SERVICE, SecretService, available, running_secret_service

ALICE, BOB = b"\x11" * 32, b"\x22" * 32
CONTEXT = KeyManagerContext(KeyRole.OFF_CHAIN, (address_of(ALICE),))
BUS = "DBUS_SESSION_BUS_ADDRESS"

pytestmark = pytest.mark.skipif(not available(), reason=NO_SERVICE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretService]:
    with running_secret_service(tmp_path_factory.mktemp("ss")) as service:
        yield service


@pytest.fixture
def service(shared: SecretService, monkeypatch: pytest.MonkeyPatch) -> SecretService:
    """An unlocked service; tests keep their keys apart by names of their own."""
    monkeypatch.setenv(BUS, shared.bus)
    return shared


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a path short enough for sockets, for a service that only one test has."""
    return tmp_path_factory.mktemp("own")


async def put(name: str, *keys: bytes) -> None:
    async with open_keyring_custody(KeyringConfig(service=name)) as custody:
        for key in keys:
            await custody.add(Secret(key))


async def signs(keys: KeyManager) -> None:
    sig = await keys.sign_message(address_of(ALICE), Bytes32(bytes(32)))
    assert recovered(message_digest(bytes(32)), sig) == address_of(ALICE)


class TestKeyring(KeyManagerConformance):
    @pytest.fixture(autouse=True)
    def _service(self, service: SecretService) -> None:
        pass

    @asynccontextmanager
    async def open_keys(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AsyncIterator[KeyManager]:
        await put(str(path), *held)
        config = KeyringConfig(service=str(path))
        async with open_keyring(config, KeyManagerContext(KeyRole.OFF_CHAIN, wanted)) as keys:
            yield keys


async def test_the_custody_keeps_lists_gives_and_removes_keys(service: SecretService) -> None:
    alice, bob = sorted((address_of(ALICE), address_of(BOB)))
    async with open_keyring_custody(KeyringConfig(service="custody")) as custody:
        assert await custody.addresses() == ()
        await custody.add(Secret(ALICE))
        await custody.add(Secret(BOB))
        with pytest.raises(KeyExists):
            await custody.add(Secret(ALICE))
        assert await custody.addresses() == (alice, bob)
        assert await custody.place(alice) == f"custody/{alice.checksum}"
        assert (await custody.read(address_of(ALICE)))[0].buffer == ALICE
        await custody.remove(address_of(ALICE))
        assert await custody.addresses() == (address_of(BOB),)
        for gone in (custody.remove, custody.read):
            with pytest.raises(KeyNotFound):
                await gone(address_of(ALICE))


async def test_keys_survive_the_end_of_the_service_and_are_locked_with_it(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_secret_service(own, password="right") as first:
        monkeypatch.setenv(BUS, first.bus)
        await put("perunnode", ALICE)
        async with open_keyring(KeyringConfig(), CONTEXT) as keys:
            first.lock()
            await signs(keys)  # what is open stays open
        with pytest.raises(KeyLocked):
            async with open_keyring(KeyringConfig(timeout=5), CONTEXT):
                pass
        with pytest.raises(KeyLocked):
            await put("perunnode", BOB)
    with running_secret_service(own, password="right") as second:
        monkeypatch.setenv(BUS, second.bus)
        async with open_keyring(KeyringConfig(), CONTEXT) as keys:
            await signs(keys)


async def test_a_system_without_secret_service_is_named_as_such(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_secret_service(own, daemon=False) as bus_only:
        for bus in (bus_only.bus, f"unix:path={own}/nothing", "nonsense"):
            monkeypatch.setenv(BUS, bus)
            with pytest.raises(KeysUnreachable):
                async with open_keyring(KeyringConfig(timeout=5), CONTEXT):
                    pass


async def test_a_service_that_does_not_answer_costs_its_time_limit_and_no_more(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_secret_service(own) as slow:
        monkeypatch.setenv(BUS, slow.bus)
        await put("perunnode", ALICE)
        with slow.silent():
            beats = 0

            async def open_it() -> None:
                async with open_keyring(KeyringConfig(timeout=0.2), CONTEXT):
                    pass

            opening = asyncio.ensure_future(open_it())
            while not opening.done():
                beats += 1
                await asyncio.sleep(0.01)
            with pytest.raises(KeysUnreachable, match="did not answer"):
                await opening
        assert beats > 10, "the loop went on"
        async with open_keyring(KeyringConfig(), CONTEXT) as keys:
            await signs(keys)


@pytest.mark.parametrize("text", ["", "no key", "00" * 32, "ff" * 32, "11" * 31])
async def test_an_entry_that_is_no_key_is_refused_without_showing_it(service: SecretService, text: str) -> None:
    name = f"damaged {text}"
    store = SecretStore(Store.SECRET_SERVICE, name, 5)
    await store.put(address_of(ALICE).checksum, text)
    store.close()
    with pytest.raises(KeyManagerError) as caught:
        async with open_keyring(KeyringConfig(service=name), CONTEXT):
            pass
    assert not text or text not in str(caught.value)


async def test_a_key_of_another_address_is_refused(service: SecretService) -> None:
    store = SecretStore(Store.SECRET_SERVICE, "mixed up", 5)
    await store.put(address_of(ALICE).checksum, BOB.hex())
    store.close()
    with pytest.raises(KeyManagerError, match="another address"):
        async with open_keyring(KeyringConfig(service="mixed up"), CONTEXT):
            pass


async def test_neither_environment_nor_files_choose_another_store(
    service: SecretService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await put("chosen", ALICE)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "python_keyring").mkdir()
    (tmp_path / "python_keyring" / "keyringrc.cfg").write_text(
        "[backend]\ndefault-keyring=keyring.backends.null.Keyring\n"
    )
    async with open_keyring(KeyringConfig(service="chosen"), CONTEXT) as keys:
        await signs(keys)


@pytest.mark.parametrize("terms", [{"service": ""}, {"timeout": 0}, {"timeout": 601}])
async def test_options_that_cannot_work_are_refused(terms: dict[str, Any]) -> None:
    (named,) = terms
    with pytest.raises(KeyManagerError, match=named):
        async with open_keyring(KeyringConfig(**terms), CONTEXT):
            pass


async def test_no_key_gets_into_the_log(service: SecretService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await put("quiet", ALICE)
    async with open_keyring(KeyringConfig(service="quiet"), CONTEXT) as keys:
        await signs(keys)
    assert ALICE.hex() not in caplog.text

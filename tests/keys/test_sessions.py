"""Sessions whose keys lie in the system's secret store, in Vault, or in a remote signer: they pay, and lose nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from perun_core.plugin.manager import DEFAULT_PLUGINS
from tests.integration.clients import ClientError, User
from tests.integration.world import ETHER, Party, Person, World, command, gathering, open_channel, pay, settle, until
from tests.servers.secretservice import NO_SERVICE, SecretService, available, running_secret_service
from tests.servers.signer import Signer, running_signer
from tests.servers.vault_server import Vault

pytestmark = pytest.mark.slow

EXAMPLE: Final = Path(__file__).resolve().parents[2] / "examples" / "keymgr_web3signer"
GAS_LIMIT: Final = ETHER // 50


@pytest.fixture(scope="module")
def secret_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretService | None]:
    """None where there is no such program; then the tests that need it are skipped, the others are not."""
    if not available():
        yield None
        return
    with running_secret_service(tmp_path_factory.mktemp("ss")) as service:
        yield service


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, secret_service: SecretService | None) -> Iterator[World]:
    """One node that knows all key managers, the example installed beside them as a user would install it."""
    home = tmp_path_factory.mktemp("world")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(home / "plugins"), str(EXAMPLE)], check=True, timeout=120)
    world = World("embedded", home)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(home / "plugins"))
        if secret_service is not None:
            environment.setenv("DBUS_SESSION_BUS_ADDRESS", secret_service.bus)
        try:
            world.start_chain()
            enabled = [*DEFAULT_PLUGINS, "keymgr_keyring", "keymgr_vault", "keymgr_web3signer"]
            world.node("node", plugins={"enabled": enabled}).start()
            yield world
        finally:
            world.stop()


@pytest.fixture
async def party(world: World) -> AsyncIterator[Party]:
    async with gathering(world) as party:
        yield party


def move_keys(person: Person, manager: str, **options: object) -> None:
    """Change the session file to another key manager, and move both keys there as an operator would."""
    keystore = json.loads(person.session_file.read_text())["user"]["onchainwallet"]["keystorepath"]
    person.configure(keymgr=manager, user__onchainwallet=options, user__offchainwallet=options)
    source = ["--from-manager", "ethkeystore", "--from-option", f"keystorepath={keystore}"]
    target = ["--to-session", person.session_file]
    password = ["--from-secret", "password=file:/dev/null"]
    arguments = command("keys", "migrate", "--all", "--remove", *source, *password, *target)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert list(Path(keystore).iterdir()) == []


def balances(world: World, *people: Person) -> list[int]:
    return [world.balance(person.on_chain) for person in people]


async def refusal(answer: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        await answer
    return caught.value


async def reopened(party: Party, user: User, person: Person) -> User:
    await user.leave(force=True)
    return await party.join(person)


async def the_payment_goes_on(payer: User, payee: User, channel: str, agreed: tuple[str, str]) -> None:
    """What was decided durably before it could not be signed is proposed again when the session is back."""
    await payee.answer_update(channel, accept=True)

    async def is_agreed() -> bool:
        return (await payer.info(channel)).balances == (await payee.info(channel)).balances == {"ETH": agreed}

    await until(is_agreed)


# ------------------------------------------------------------------------------------------------------------- stories


async def test_keys_of_secret_store_and_vault_pay_and_settle_while_both_are_locked_in_the_middle(
    party: Party, secret_service: SecretService | None, vault: Vault
) -> None:
    if secret_service is None:
        pytest.skip(NO_SERVICE)
    people = alice, bob = party.world.friends("alice", "bob")
    move_keys(alice, "keyring", service="alice")
    role, secret = vault.approle("bob")
    move_keys(bob, "vault", address=vault.url, auth="approle", roleid=role, secretid=secret)
    before = balances(party.world, *people)
    users = await party.join(alice), await party.join(bob)
    channel = await open_channel(*users, {"ETH": ("2", "1")})
    vault.seal()
    secret_service.lock()
    await pay(*users, channel, ("ETH", "bob", "0.5"))
    await pay(users[1], users[0], channel, ("ETH", "alice", "0.2"))
    closed, _ = await settle(*users, channel)
    assert closed.balances == {"ETH": ("1.7", "1.3")}
    gained = [now - then for now, then in zip(balances(party.world, *people), before, strict=True)]
    assert -0.3 * ETHER - GAS_LIMIT < gained[0] < -0.3 * ETHER
    assert 0.3 * ETHER - GAS_LIMIT < gained[1] < 0.3 * ETHER


async def test_with_a_key_per_signature_a_sealed_vault_stops_payments_and_loses_nothing(
    party: Party, vault: Vault
) -> None:
    people = alice, bob = party.world.friends("alice", "bob")
    role, secret = vault.approle("alice")
    move_keys(alice, "vault", address=vault.url, auth="approle", roleid=role, secretid=secret, keep="signature")
    before = balances(party.world, *people)
    one, other = await party.join(alice), await party.join(bob)
    channel = await open_channel(one, other, {"ETH": ("2", "1")})
    await pay(one, other, channel, ("ETH", "bob", "0.5"))

    vault.seal()
    error = await refusal(one.pay(channel, [("ETH", "bob", "0.25")]))
    assert error.code == 401 and "sealed" in str(error)
    assert (await other.info(channel)).balances == {"ETH": ("1.5", "1.5")}
    vault.unseal()

    one = await reopened(party, one, alice)
    await the_payment_goes_on(one, other, channel, ("1.25", "1.75"))
    await pay(other, one, channel, ("ETH", "alice", "0.05"))
    closed, _ = await settle(one, other, channel)
    assert closed.balances == {"ETH": ("1.3", "1.7")}
    gained = [now - then for now, then in zip(balances(party.world, *people), before, strict=True)]
    assert -0.7 * ETHER - GAS_LIMIT < gained[0] < -0.7 * ETHER
    assert 0.7 * ETHER - GAS_LIMIT < gained[1] < 0.7 * ETHER


async def test_who_accepts_and_then_cannot_sign_loses_nothing_either(party: Party, vault: Vault) -> None:
    alice, bob = party.world.friends("alice", "bob", response_timeout="3s")
    role, secret = vault.approle("bob-per-signature")
    move_keys(bob, "vault", address=vault.url, auth="approle", roleid=role, secretid=secret, keep="signature")
    before = balances(party.world, alice, bob)
    one, other = await party.join(alice), await party.join(bob)
    channel = await open_channel(one, other, {"ETH": ("2", "1")})

    vault.seal()
    paying = asyncio.ensure_future(refusal(one.pay(channel, [("ETH", "bob", "0.5")])))
    error = await refusal(other.answer_update(channel, accept=True))
    assert error.code == 401 and "sealed" in str(error)
    assert (await paying).code == 101, "for the payer it is a peer that does not answer"
    vault.unseal()

    other = await reopened(party, other, bob)

    async def is_paid() -> bool:
        infos = [await user.info(channel) for user in (one, other)]
        return [info.balances for info in infos] == [{"ETH": ("1.5", "1.5")}] * 2

    await until(is_paid)
    await settle(one, other, channel)
    gained = [now - then for now, then in zip(balances(party.world, alice, bob), before, strict=True)]
    assert -0.5 * ETHER - GAS_LIMIT < gained[0] < -0.5 * ETHER
    assert 0.5 * ETHER - GAS_LIMIT < gained[1] < 0.5 * ETHER


async def test_a_vault_that_is_sealed_or_away_refuses_the_session_by_name(party: Party, vault: Vault) -> None:
    (alice,) = party.world.friends("alice")
    role, secret = vault.approle("refused")
    move_keys(alice, "vault", address=vault.url, auth="approle", roleid=role, secretid=secret, timeout="1")
    for trouble in (vault.seal, vault.stop):
        trouble()
        error = await refusal(party.join(alice))
        assert error.code == 205 and error.info["name"] == "onChainWallet"
        assert secret not in str(error)
    vault.start()
    vault.unseal()
    await party.join(alice)


@pytest.fixture
def signer() -> Iterator[Signer]:
    with running_signer() as signer:
        yield signer


def remote(person: Person, signer: Signer, **options: object) -> None:
    """Give the keys of `person` to a remote signer and delete the files."""
    from perun_keymgr_ethkeystore.keyfiles import decrypt_key_file

    for path in (person.home / "keystore").iterdir():
        with decrypt_key_file(path, "")[0] as key:
            signer.hold(bytes(key.buffer))
        path.unlink()
    wallet = {"url": signer.url, **options}
    person.configure(keymgr="web3signer", user__onchainwallet=wallet, user__offchainwallet=wallet)


async def test_a_slow_remote_signer_pays_and_settles(party: Party, signer: Signer) -> None:
    people = alice, bob = party.world.friends("alice", "bob", response_timeout="10s")
    remote(alice, signer)
    before = balances(party.world, *people)
    users = await party.join(alice), await party.join(bob)
    signer.delay = 0.7
    channel = await open_channel(*users, {"ETH": ("2", "1")}, duration=30)
    await pay(*users, channel, ("ETH", "bob", "0.5"))
    await pay(users[1], users[0], channel, ("ETH", "alice", "0.2"))
    closed, _ = await settle(*users, channel)
    assert closed.balances == {"ETH": ("1.7", "1.3")}
    gained = [now - then for now, then in zip(balances(party.world, *people), before, strict=True)]
    assert -0.3 * ETHER - GAS_LIMIT < gained[0] < -0.3 * ETHER
    assert 0.3 * ETHER - GAS_LIMIT < gained[1] < 0.3 * ETHER


async def test_a_remote_signer_that_falls_silent_stops_one_channel_and_no_other(party: Party, signer: Signer) -> None:
    people = party.world.friends("alice", "bob", "carol", response_timeout="4s")
    alice = people[0]
    remote(alice, signer, timeout="1")
    one, other, third = [await party.join(person) for person in people]
    channel = await open_channel(one, other, {"ETH": ("2", "1")})
    neighbours = await open_channel(third, other, {"ETH": ("1", "1")})
    signer.slow = threading.Event()
    failing = asyncio.ensure_future(refusal(one.pay(channel, [("ETH", "bob", "0.5")])))
    await pay(third, other, neighbours, ("ETH", "bob", "0.5"))
    error = await failing
    assert error.code == 401 and "did not answer" in str(error)
    signer.slow.set()
    signer.slow = None

    one = await reopened(party, one, alice)
    await the_payment_goes_on(one, other, channel, ("1.5", "1.5"))
    closed, _ = await settle(one, other, channel)
    assert closed.balances == {"ETH": ("1.5", "1.5")}
    assert 9.5 * ETHER - GAS_LIMIT < party.world.balance(alice.on_chain) < 9.5 * ETHER

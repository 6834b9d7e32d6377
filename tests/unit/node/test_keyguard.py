"""What a key manager does wrong ends at the guard: typed, in time, and with nothing signed that must not be (U-13)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import structs

from perun_core.errors import KeyLocked, KeyManagerError, KeyNotFound, KeysUnreachable, SigningFailed
from perun_core.keys import HeldKeys, Secret
from perun_core.node.keyguard import KeyGuard, guarded
from perun_core.testing.keymgr import InMemoryKeys, KeyManagerConformance, address_of
from perun_core.values import Bytes32

ALICE, BOB = b"\x11" * 32, b"\x22" * 32
OWN = address_of(ALICE)
DIGEST = Bytes32(b"\x07" * 32)
TX = KeyManagerConformance.TX


class Misbehaving(InMemoryKeys):
    """Right until `instead` is set."""

    def __init__(self) -> None:
        super().__init__([ALICE, BOB])
        self.instead: Callable[[], Awaitable[Any]] | None = None

    async def sign_message(self, address: Any, digest: Any) -> Any:
        return await (self.instead() if self.instead else super().sign_message(address, digest))

    async def sign_transaction(self, address: Any, tx: Any) -> Any:
        return await (self.instead() if self.instead else super().sign_transaction(address, tx))


async def gives(value: object) -> Any:
    return value


async def raises(error: BaseException) -> Any:
    raise error


async def hangs() -> Any:
    await asyncio.Event().wait()


async def test_what_is_right_goes_through() -> None:
    keys = Misbehaving()
    guard = await guarded(keys, (OWN,))
    assert await guard.sign_message(OWN, DIGEST) == await keys.sign_message(OWN, DIGEST)
    assert await guard.sign_transaction(OWN, TX) == await keys.sign_transaction(OWN, TX)
    assert await guard.addresses() == (OWN, address_of(BOB))


@pytest.mark.parametrize("way", ["sign_message", "sign_transaction"])
@pytest.mark.parametrize(
    "instead",
    [
        lambda: gives(None),
        lambda: gives("0x" + "11" * 65),
        lambda: gives(b""),
        lambda: gives(bytes(65)),
        lambda: gives(b"\x02" + bytes(1 << 20)),
        lambda: raises(RuntimeError("key 1111")),
        lambda: raises(TimeoutError()),
        lambda: raises(SystemExit(1)),
        lambda: Misbehaving().sign_message(address_of(BOB), DIGEST),
        lambda: Misbehaving().sign_message(OWN, Bytes32(bytes(32))),
        lambda: Misbehaving().sign_transaction(address_of(BOB), TX),
        lambda: Misbehaving().sign_transaction(OWN, structs.replace(TX, value=TX.value + 1)),
    ],
)
async def test_what_is_wrong_is_a_typed_error_that_repeats_nothing(
    way: str, instead: Callable[[], Awaitable[Any]]
) -> None:
    keys = Misbehaving()
    guard = await guarded(keys, (OWN,))
    keys.instead = instead
    with pytest.raises(SigningFailed) as caught:
        await (guard.sign_message(OWN, DIGEST) if way == "sign_message" else guard.sign_transaction(OWN, TX))
    assert "1111" not in str(caught.value)
    keys.instead = None
    await guard.sign_message(OWN, DIGEST)


async def test_a_manager_that_never_answers_is_given_up() -> None:
    keys = Misbehaving()
    guard = await guarded(keys, (OWN,), limit=0.02)
    keys.instead = hangs
    for request in (guard.sign_message(OWN, DIGEST), guard.sign_transaction(OWN, TX)):
        with pytest.raises(KeysUnreachable):
            await request


@pytest.mark.parametrize("error", [KeyLocked("sealed"), KeyNotFound("gone"), KeysUnreachable("away")])
async def test_its_own_typed_errors_stay_what_they_are(error: KeyManagerError) -> None:
    keys = Misbehaving()
    guard = await guarded(keys, (OWN,))
    keys.instead = lambda: raises(error)
    with pytest.raises(type(error)) as caught:
        await guard.sign_message(OWN, DIGEST)
    assert caught.value is error


async def test_a_cancelled_caller_is_cancelled() -> None:
    keys = Misbehaving()
    guard = KeyGuard(keys)
    keys.instead = hangs
    waiting = asyncio.ensure_future(guard.sign_message(OWN, DIGEST))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_manager_whose_key_is_another_ones_is_refused_when_it_is_opened() -> None:
    mixed_up = HeldKeys({OWN: Secret(BOB)})
    with pytest.raises(SigningFailed):
        await guarded(mixed_up, (OWN,))


async def test_keys_in_memory_are_checked_once_and_then_sign_without_a_detour() -> None:
    keys = HeldKeys({OWN: Secret(ALICE)})
    assert await guarded(keys, (OWN,)) is keys

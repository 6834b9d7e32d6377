"""The example of a remote signer: it keeps the port's promises, and believes nothing that comes back."""

from __future__ import annotations

import importlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from perun_core.errors import KeyManagerError, KeyNotFound, KeysUnreachable, SigningFailed
from perun_core.keys import Secret, check_signature, check_transaction, sign_message, sign_transaction
from perun_core.ports.keymgr import KeyManager, KeyManagerContext, KeyRole
from perun_core.testing.keymgr import HALF_ORDER, KeyManagerConformance, address_of
from perun_core.values import Address, Bytes32
from tests.servers.signer import Signer, running_signer

EXAMPLE: Final = Path(__file__).resolve().parents[2] / "examples" / "keymgr_web3signer"
ORDER: Final = 2 * HALF_ORDER + 1
ALICE, BOB = b"\x11" * 32, b"\x22" * 32
DIGEST = Bytes32(b"\x77" * 32)
TX = KeyManagerConformance.TX


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("perun_keymgr_web3signer.keymgr")


@pytest.fixture
def signer() -> Iterator[Signer]:
    with running_signer() as signer:
        signer.hold(ALICE)
        yield signer


class TestWeb3Signer(KeyManagerConformance):
    @pytest.fixture(autouse=True)
    def _parts(self, example: ModuleType, signer: Signer) -> None:
        self._example, self._signer = example, signer

    @asynccontextmanager
    async def open_keys(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...], timeout: float = 10
    ) -> AsyncIterator[KeyManager]:
        for key in held:
            self._signer.hold(key)
        config = self._example.Web3SignerConfig(url=self._signer.url, timeout=timeout)
        async with self._example.open_web3signer(config, KeyManagerContext(KeyRole.OFF_CHAIN, wanted)) as keys:
            yield keys

    @asynccontextmanager
    async def open_silent(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AsyncIterator[KeyManager]:
        async with self.open_keys(path, held=held, wanted=wanted, timeout=0.3) as keys:
            self._signer.slow = threading.Event()
            yield keys
            self._signer.slow.set()


def opened(example: ModuleType, url: str, **terms: Any) -> Any:
    context = KeyManagerContext(KeyRole.OFF_CHAIN, (address_of(ALICE),))
    return example.open_web3signer(example.Web3SignerConfig(url=url, **terms), context)


def in_hex(data: bytes) -> str:
    return "0x" + data.hex()


def high_s(sig: bytes) -> bytes:
    """The other signature of the same key over the same digest, which contracts refuse."""
    s = ORDER - int.from_bytes(sig[32:64], "big")
    return sig[:32] + s.to_bytes(32, "big") + bytes([27 + 28 - sig[64]])


def by_bob(digest: bytes) -> bytes:
    return bytes(sign_message(Secret(BOB), Bytes32(digest)))


BAD_SIGNATURES: dict[str, Callable[[bytes], Any]] = {
    "another key's": lambda sig: in_hex(by_bob(DIGEST)),
    "another digest's": lambda sig: in_hex(sign_message(Secret(ALICE), Bytes32(bytes(32)))),
    "v 0 or 1": lambda sig: in_hex(sig[:64] + bytes([sig[64] - 27])),
    "high s": lambda sig: in_hex(high_s(sig)),
    "short": lambda sig: in_hex(sig[:64]),
    "zero": lambda sig: in_hex(bytes(64) + b"\x1b"),
    "no hex": lambda sig: "zz",
    "no text": lambda sig: None,
    "a list": lambda sig: [1, 2],
}


@pytest.mark.parametrize("bad", BAD_SIGNATURES)
async def test_a_wrong_signature_never_leaves_the_node(example: ModuleType, signer: Signer, bad: str) -> None:
    """Rule U-13, for every signature of a remote signer."""
    async with opened(example, signer.url) as keys:
        signer.twist = lambda method, result: BAD_SIGNATURES[bad](bytes.fromhex(result[2:]))
        with pytest.raises(SigningFailed):
            await keys.sign_message(address_of(ALICE), DIGEST)
        signer.twist = lambda method, result: result
        assert await keys.sign_message(address_of(ALICE), DIGEST) == sign_message(Secret(ALICE), DIGEST)


@pytest.mark.parametrize("change", ["nonce", "value", "gas", "to", "data", "signer", "cut", "longer", "empty"])
async def test_another_transaction_than_the_one_asked_for_never_leaves_the_node(
    example: ModuleType, signer: Signer, change: str
) -> None:
    from msgspec import structs

    right = sign_transaction(Secret(ALICE), TX)
    others = {
        "nonce": lambda: sign_transaction(Secret(ALICE), structs.replace(TX, nonce=8)),
        "value": lambda: sign_transaction(Secret(ALICE), structs.replace(TX, value=2 * TX.value)),
        "gas": lambda: sign_transaction(Secret(ALICE), structs.replace(TX, gas=1)),
        "to": lambda: sign_transaction(Secret(ALICE), structs.replace(TX, to=Address(b"\xbb" * 20))),
        "data": lambda: sign_transaction(Secret(ALICE), structs.replace(TX, data=b"\x01")),
        "signer": lambda: sign_transaction(Secret(BOB), TX),
        "cut": lambda: right[:-1],
        "longer": lambda: right + b"\0",
        "empty": lambda: b"",
    }
    async with opened(example, signer.url) as keys:
        signer.twist = lambda method, result: in_hex(others[change]())
        with pytest.raises(SigningFailed):
            await keys.sign_transaction(address_of(ALICE), TX)
        signer.twist = lambda method, result: result
        assert await keys.sign_transaction(address_of(ALICE), TX) == right


async def test_a_signer_that_signs_bare_digests_is_refused_when_the_session_opens(
    example: ModuleType, signer: Signer
) -> None:
    import coincurve

    def bare(method: str, result: Any) -> Any:
        if method != "eth_sign":
            return result
        sig = coincurve.PrivateKey(ALICE).sign_recoverable(DIGEST, hasher=None)
        return in_hex(sig[:64] + bytes([27 + sig[64]]))

    signer.twist = bare
    with pytest.raises(SigningFailed):
        async with opened(example, signer.url):
            pass


async def test_a_missing_key_and_a_missing_signer_are_told_apart(example: ModuleType, signer: Signer) -> None:
    signer.keys.clear()
    with pytest.raises(KeyNotFound):
        async with opened(example, signer.url):
            pass
    with pytest.raises(KeysUnreachable):
        async with opened(example, "http://127.0.0.1:1", timeout=2):
            pass
    for url in ("", "ftp://x", "http://signer.example.org"):
        with pytest.raises(KeyManagerError):
            async with opened(example, url):
                pass


def test_the_checks_give_back_what_is_right() -> None:
    sig = sign_message(Secret(ALICE), DIGEST)
    assert check_signature(bytes(sig), DIGEST, address_of(ALICE)) == sig
    raw = sign_transaction(Secret(ALICE), TX)
    assert check_transaction(raw, TX, address_of(ALICE)) == raw

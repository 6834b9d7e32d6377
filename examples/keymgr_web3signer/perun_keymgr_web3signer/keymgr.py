"""The key manager: asks a remote signer for every signature, and checks every answer."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from perun_core.errors import KeyLocked, KeyManagerError, KeyNotFound, KeysUnreachable, SigningFailed
from perun_core.keys import BlockingCalls, check_signature, check_transaction
from perun_core.ports.keymgr import KeyManager, KeyManagerContext, UnsignedTx
from perun_core.values import Address, Bytes32, Sig, keccak256

MAX_ANSWER = 1 << 20


class Web3SignerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the key manager ``web3signer``."""

    url: str = ""
    """The signer: https, or http on loopback."""
    timeout: float = 10.0
    """Seconds one signature may take."""


class Web3Signer:
    """Implements `perun_core.ports.keymgr.KeyManager`."""

    def __init__(self, config: Web3SignerConfig, addresses: tuple[Address, ...]) -> None:
        url = urlsplit(config.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise KeyManagerError("url must name a signer, such as https://signer.example.org:9000")
        if url.scheme == "http" and url.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise KeyManagerError("url: what is signed travels over https only, except on loopback")
        self._url, self._timeout, self._addresses = url, config.timeout, addresses
        self._calls = BlockingCalls("web3signer")
        self._closed = False

    def __reduce__(self) -> str:
        raise TypeError("a key manager is not copied")

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyManager.addresses`."""
        self._refuse_when_closed()
        return self._addresses

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        """See `KeyManager.sign_message`. `eth_sign` applies the prefix; the check proves that it did."""
        self._refuse_when_closed(address)
        answer = await self._ask("eth_sign", [address.checksum, "0x" + digest.hex()])
        return check_signature(_bytes(answer), digest, address)

    async def sign_transaction(self, address: Address, tx: UnsignedTx) -> bytes:
        """See `KeyManager.sign_transaction`."""
        self._refuse_when_closed(address)
        numbers = {
            "chainId": tx.chain_id,
            "nonce": tx.nonce,
            "maxPriorityFeePerGas": tx.max_priority_fee,
            "maxFeePerGas": tx.max_fee,
            "gas": tx.gas,
            "value": tx.value,
        }
        fields: dict[str, str] = {name: hex(number) for name, number in numbers.items()}
        fields |= {"type": "0x2", "from": address.checksum, "data": "0x" + tx.data.hex()}
        if tx.to is not None:
            fields["to"] = tx.to.checksum
        return check_transaction(_bytes(await self._ask("eth_signTransaction", [fields])), tx, address)

    async def prove(self) -> None:
        """Every address signs a digest of no use to anybody, as rule U-13 wants. Raises: KeyManagerError."""
        found = await self._ask("eth_accounts", [])
        held = {text.lower() for text in found if isinstance(text, str)} if isinstance(found, list) else set()
        for address in self._addresses:
            if f"0x{address.hex()}" not in held:
                raise KeyNotFound(f"the signer has no key for {address.checksum}")
            await self.sign_message(address, Bytes32(keccak256(b"web3signer: is this the right key?")))

    def close(self) -> None:
        """Nothing is signed any more."""
        self._closed = True
        self._calls.close()

    def _refuse_when_closed(self, address: Address | None = None) -> None:
        if self._closed:
            raise KeyLocked("the key manager is closed")
        if address is not None and address not in self._addresses:
            raise KeyNotFound(f"no key for {Address(address).checksum} was opened")

    async def _ask(self, method: str, params: list[Any]) -> Any:
        try:
            answer = await self._calls.run(lambda: self._request(method, params), timeout=self._timeout)
        except TimeoutError:
            raise KeysUnreachable(f"the signer did not answer within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise KeysUnreachable(f"the signer cannot be reached: {type(error).__name__}") from error
        except ValueError as error:
            raise SigningFailed("the signer's answer is not understood") from error
        if not isinstance(answer, dict) or "result" not in answer:
            raise SigningFailed(f"the signer refused {method}")
        return answer["result"]

    def _request(self, method: str, params: list[Any]) -> Any:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout)
        try:
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            connection.request("POST", self._url.path or "/", body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read(MAX_ANSWER))
        finally:
            connection.close()


def _bytes(answer: object) -> bytes:
    try:
        return bytes.fromhex(str(answer).removeprefix("0x"))
    except ValueError as error:
        raise SigningFailed("the signer's answer is not understood") from error


@asynccontextmanager
async def open_web3signer(config: Web3SignerConfig, context: KeyManagerContext) -> AsyncIterator[KeyManager]:
    """Make sure that the signer has the keys of `context.addresses` and signs as it should."""
    signer = Web3Signer(config, tuple(dict.fromkeys(context.addresses)))
    try:
        await signer.prove()
        yield signer
    finally:
        signer.close()

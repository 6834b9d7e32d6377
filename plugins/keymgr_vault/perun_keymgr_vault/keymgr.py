"""The key manager: keys from Vault for the session's whole life, or for one signature at a time; and their custody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from perun_core.errors import KeyLocked, KeyManagerError, KeyNotFound, KeysUnreachable
from perun_core.keys import BlockingCalls, HeldKeys, NeverCopied, Secret, address_of, sign_message, sign_transaction
from perun_core.ports.keymgr import KeyManager, KeyManagerContext, UnsignedTx
from perun_core.values import Address, Bytes32, Sig

from .config import Keep, VaultConfig

if TYPE_CHECKING:
    from .server import VaultServer

T = TypeVar("T")

_log = logging.getLogger(__name__)

_GRACE: Final = 1.0
"""Seconds after its own deadline until a request counts as stuck."""
_LEAVING: Final = 2.0
"""Seconds that giving a token back may take when a session closes."""
_RETRY: Final = 1.0
"""Seconds between attempts to renew a token."""


class Link(NeverCopied):
    """A Vault server as seen from the loop: requests run one after the other in a thread, each with a time limit."""

    def __init__(self, config: VaultConfig) -> None:
        self._config = config
        self._server = _server(config)
        self._calls = BlockingCalls("vault")

    def __repr__(self) -> str:
        return f"Link({self._config.address!r})"

    async def do(self, request: Callable[[VaultServer], T]) -> T:
        """What `request` gives. Raises: KeyManagerError and its kinds."""
        server = self._server
        try:
            return await self._calls.run(lambda: request(server), timeout=self._config.timeout + _GRACE)
        except TimeoutError:
            # The thread that hangs keeps its connection; what comes next starts afresh.
            self._server = _server(self._config)
            raise KeysUnreachable(f"no answer from {self._config.address} within {self._config.timeout:g} s") from None

    def renewal_in(self) -> float | None:
        """See `VaultServer.renewal_in`."""
        return self._server.renewal_in()

    async def leave(self) -> None:
        """Give the token back and end. What fails is logged: the token expires by itself."""
        server = self._server
        try:
            await self._calls.run(server.leave, timeout=_LEAVING)
        except (KeyManagerError, TimeoutError) as error:
            _log.info("the Vault token was not given back: %s", str(error) or "no answer in time")
        finally:
            self._calls.close()


def _server(config: VaultConfig) -> VaultServer:
    from .server import VaultServer  # brings the HTTP libraries, which a start without Vault does not need

    return VaultServer(config)


class VaultHeldKeys(HeldKeys):
    """Keys that were fetched when the session opened."""


class VaultKeys(NeverCopied):
    """Keys that stay in Vault; implements `perun_core.ports.keymgr.KeyManager`. A signature takes a request."""

    def __init__(self, link: Link, addresses: tuple[Address, ...]) -> None:
        self._link = link
        self._addresses = addresses
        self._closed = False

    def __repr__(self) -> str:
        return f"VaultKeys({len(self._addresses)} keys)"

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyManager.addresses`. Raises: KeyLocked once closed."""
        self._refuse_when_closed()
        return self._addresses

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        """See `KeyManager.sign_message`."""
        with await self._key(address) as key:
            return sign_message(key, digest)

    async def sign_transaction(self, address: Address, tx: UnsignedTx) -> bytes:
        """See `KeyManager.sign_transaction`."""
        with await self._key(address) as key:
            return sign_transaction(key, tx)

    async def look_after_token(self) -> None:
        """Renew the token before it expires, for ever. A failure is logged and tried again."""
        while (wait := self._link.renewal_in()) is not None:
            await asyncio.sleep(wait)
            try:
                await self._link.do(lambda server: server.renew())
            except KeyManagerError as error:
                _log.warning("the Vault token could not be renewed: %s", error)
                await asyncio.sleep(_RETRY)

    def close(self) -> None:
        """No more signatures."""
        self._closed = True

    async def _key(self, address: Address) -> Secret:
        """The key, which signs for `address` (U-13 at every fetch)."""
        self._refuse_when_closed()
        if address not in self._addresses:
            raise KeyNotFound(f"no key for {Address(address).checksum} was opened")
        return await self._link.do(lambda server: server.fetch(address))

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise KeyLocked("the key manager is closed")


@asynccontextmanager
async def open_vault(config: VaultConfig, context: KeyManagerContext) -> AsyncIterator[KeyManager]:
    """Fetch the keys of `context.addresses` and check them.

    With ``keep: session`` Vault is not needed afterwards: the token of a login is given back and the connection closed.
    With ``keep: signature`` each signature fetches its key again, and the token is renewed before it expires.
    Raises: KeyNotFound, KeyLocked (sealed, refused, expired), KeysUnreachable, KeyManagerError.
    """
    link = Link(config)
    try:
        await link.do(lambda server: server.login())
        fetched = await _fetch_all(link, context.addresses)
    except BaseException:
        await link.leave()
        raise
    if config.keep is Keep.SESSION:
        held = VaultHeldKeys(fetched)
        try:
            await link.leave()
            yield held
        finally:
            held.close()
        return
    for key in fetched.values():
        key.wipe()
    keys = VaultKeys(link, tuple(fetched))
    renewal = asyncio.create_task(keys.look_after_token(), name="vault token")
    try:
        yield keys
    finally:
        keys.close()
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)
        await link.leave()


async def _fetch_all(link: Link, addresses: tuple[Address, ...]) -> dict[Address, Secret]:
    fetched: dict[Address, Secret] = {}
    try:
        for address in dict.fromkeys(addresses):
            fetched[address] = await link.do(lambda server, wanted=address: server.fetch(wanted))  # type: ignore[misc]
    except BaseException:
        for key in fetched.values():
            key.wipe()
        raise
    return fetched


# ------------------------------------------------------------------------------------------------------------- custody


class VaultCustody:
    """The keys in a folder of Vault; implements `perun_core.ports.keymgr.KeyCustody`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyCustody.addresses`."""
        return await self._link.do(lambda server: server.addresses())

    async def place(self, address: Address) -> str:
        """See `KeyCustody.place`."""
        return await self._link.do(lambda server: server.place(address))

    async def add(self, key: Secret) -> Address:
        """See `KeyCustody.add`."""
        address = address_of(key)
        await self._link.do(lambda server: server.store(address, key))
        return address

    async def read(self, address: Address) -> tuple[Secret, tuple[str, ...]]:
        """See `KeyCustody.read`."""
        return await self._link.do(lambda server: server.fetch(address)), ()

    async def remove(self, address: Address) -> None:
        """See `KeyCustody.remove`."""
        await self._link.do(lambda server: server.remove(address))


@asynccontextmanager
async def open_vault_custody(config: VaultConfig) -> AsyncIterator[VaultCustody]:
    """Log in, and give the token back at the end. Raises: KeyManagerError and its kinds."""
    link = Link(config)
    try:
        await link.do(lambda server: server.login())
        yield VaultCustody(link)
    finally:
        await link.leave()

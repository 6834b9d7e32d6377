"""The operating system's secret store behind three blocking calls, with every error renamed."""

from __future__ import annotations

import sys
from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from perun_core.errors import KeyLocked, KeyManagerError, KeysUnreachable
from perun_core.keys import BlockingCalls

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

_GRACE: Final = 1.0
"""Seconds after the time a prompt has, until the store counts as stuck."""


class Store(StrEnum):
    """Secret stores by the name they have in the configuration."""

    SECRET_SERVICE = "secretservice"
    KWALLET = "kwallet"
    MACOS = "macos"
    WINDOWS = "windows"
    SYSTEM = ""


class SecretStore:
    """Entries (service, name) → text. A store that does not answer costs a thread until it does, never the loop.

    Every method raises KeyLocked, KeysUnreachable (no store, or no answer in time) or KeyManagerError.
    """

    def __init__(self, store: Store, service: str, timeout: float) -> None:
        self._store = store
        self._service = service
        self._timeout = timeout
        self._calls = BlockingCalls("keyring")

    def __repr__(self) -> str:
        return f"SecretStore({self._service!r})"

    async def get(self, name: str) -> str | None:
        """The text of an entry; None when there is none."""
        found: str | None = await self._ask(lambda backend: backend.get_password(self._service, name))
        return found

    async def put(self, name: str, text: str) -> None:
        """Keep `text`, and make sure that it can be read back."""
        await self._ask(lambda backend: backend.set_password(self._service, name, text))
        if await self.get(name) != text:
            raise KeyManagerError("the secret store did not keep what it was given")

    async def remove(self, name: str) -> None:
        """Delete an entry that is there."""
        await self._ask(lambda backend: backend.delete_password(self._service, name))

    def close(self) -> None:
        """End; a question that hangs is not waited for."""
        self._calls.close()

    async def _ask(self, question: Any) -> Any:
        try:
            return await self._calls.run(lambda: self._answer(question), timeout=self._timeout + _GRACE)
        except TimeoutError:
            raise KeysUnreachable(
                f"the secret store did not answer within {self._timeout:g} s; it may be waiting for a password"
            ) from None

    def _answer(self, question: Any) -> Any:
        from keyring.errors import InitError, KeyringError, KeyringLocked, NoKeyringError

        backend = _backend(self._store, self._timeout)
        try:
            return question(backend)
        except KeyManagerError:
            raise
        except KeyringLocked as error:
            raise KeyLocked("the secret store is locked") from error
        except (InitError, NoKeyringError) as error:
            raise KeysUnreachable(f"no secret store: {error}") from error
        except KeyringError as error:
            raise KeyManagerError(f"the secret store failed: {type(error).__name__}") from error
        except TimeoutError as error:
            raise KeysUnreachable("the secret store did not answer in time") from error
        except Exception as error:  # of D-Bus, KWallet, the keychain: each brings its own
            raise KeysUnreachable(f"the secret store failed: {type(error).__name__}") from error


def _backend(store: Store, timeout: float) -> KeyringBackend:
    """The store by its name; never what the library's own configuration or environment names."""
    match store or _of_this_system():
        case Store.SECRET_SERVICE:
            return _secret_service(timeout)
        case Store.KWALLET:
            from keyring.backends.kwallet import DBusKeyring

            return DBusKeyring()  # type: ignore[no-untyped-call]
        case Store.MACOS:
            from keyring.backends.macOS import Keyring

            return Keyring()  # type: ignore[no-untyped-call]
        case Store.WINDOWS:
            from keyring.backends.Windows import WinVaultKeyring

            return WinVaultKeyring()  # type: ignore[no-untyped-call]
    raise KeysUnreachable(f"no secret store is known for {sys.platform}")


def _of_this_system() -> Store:
    if sys.platform == "darwin":
        return Store.MACOS
    return Store.WINDOWS if sys.platform == "win32" else Store.SECRET_SERVICE


def _secret_service(timeout: float) -> KeyringBackend:
    import secretstorage
    from keyring.backends.SecretService import Keyring
    from keyring.errors import PasswordDeleteError
    from secretstorage.exceptions import (
        LockedException,
        PromptDismissedException,
        SecretServiceNotAvailableException,
        SecretStorageException,
    )

    class SecretService(Keyring):
        """The library's backend, whose connections are closed on every path and whose dialogs end."""

        def get_preferred_collection(self) -> Any:
            try:
                bus = secretstorage.dbus_init()
            except SecretServiceNotAvailableException as error:
                raise KeysUnreachable(f"no Secret Service: {error}") from error
            try:
                collection = secretstorage.get_default_collection(bus)
                if collection.is_locked():
                    collection.unlock(timeout=timeout)
                    if collection.is_locked():
                        raise KeyLocked("the secret store is locked, and nobody unlocked it")
            except TimeoutError as error:
                bus.close()
                raise KeyLocked(f"the secret store is locked, and nobody unlocked it within {timeout:g} s") from error
            except (LockedException, PromptDismissedException) as error:
                bus.close()
                raise KeyLocked("the secret store is locked, or has no collection yet") from error
            except SecretServiceNotAvailableException as error:
                bus.close()
                raise KeysUnreachable(f"no Secret Service: {error}") from error
            except SecretStorageException as error:
                bus.close()
                raise KeysUnreachable(f"the Secret Service failed: {type(error).__name__}") from error
            except BaseException:
                bus.close()
                raise
            return collection

        def delete_password(self, service: str, username: str) -> None:
            collection = self.get_preferred_collection()
            with closing(collection.connection):
                items = list(collection.search_items(self._query(service, username)))
                if not items:
                    raise PasswordDeleteError("no such entry")
                for item in items:
                    item.delete()

    return SecretService()  # type: ignore[no-untyped-call]

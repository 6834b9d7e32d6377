"""One conversation with a Vault server, blocking: logging in, reading and writing keys, every error renamed.

An object of this class belongs to one thread at a time. Connections are reused; what may be a passing trouble is tried
again until the operation's deadline.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import hvac
import requests
from hvac import exceptions as failures

from perun_core.errors import (
    KeyExists,
    KeyLocked,
    KeyManagerError,
    KeyNotFound,
    KeysUnreachable,
)
from perun_core.keys import Secret, check_key
from perun_core.values import Address

from .config import Auth, VaultConfig

T = TypeVar("T")

FIELD: Final = "private_key"
"""Name of the value in a key's secret."""
_LOGIN: Final = "logging in"
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_MAX_CREDENTIAL: Final = 64 * 1024
_PASSING: Final = (
    failures.RateLimitExceeded,
    failures.BadGateway,
    failures.InternalServerError,
    failures.UnexpectedError,
    failures.VaultDown,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class _Rejected(KeyManagerError):
    """Vault understood the request and did not like it."""


class _Session(requests.Session):
    """Requests that end by `deadline`, and that no variable of the environment sends elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.deadline = 0.0

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = max(self.deadline - time.monotonic(), 0.01)
        return super().request(*args, **kwargs)


class VaultServer:
    """Raises from every method: KeyLocked (sealed, refused, expired), KeysUnreachable, KeyManagerError."""

    def __init__(self, config: VaultConfig) -> None:
        """Raises: KeyManagerError when the options do not fit together or `cacert` is no file."""
        config.check()
        if config.cacert and not Path(config.cacert).is_file():
            raise KeyManagerError(f"cacert: {config.cacert!r} is not a file")
        self._config = config
        self._session = _Session()
        self._session.verify = config.cacert or True
        self._client = hvac.Client(
            url=config.address.rstrip("/"),
            token="",  # not the one of the environment
            verify=config.cacert or True,
            namespace=config.namespace or None,
            session=self._session,
            allow_redirects=False,  # the token goes to the configured server only
        )
        self._version = config.version
        self._lifetime = 0.0
        self._expires: float | None = None
        self._renewable = False
        self._logged_in = False

    def __repr__(self) -> str:
        return f"VaultServer({self._config.address!r})"

    # ---- keys -------------------------------------------------------------------------------------------------------

    def fetch(self, address: Address) -> Secret:
        """The key of `address`, which signs for it (U-13). Raises: KeyNotFound, KeyManagerError."""
        place = self.place(address)
        found = self._ask(f"reading {place}", lambda: self._read(address), missing=f"no key for {address.checksum}")
        text = found.get(FIELD) if isinstance(found, dict) else None
        try:
            key = Secret.from_hex(text if isinstance(text, str) else "")
        except ValueError:
            raise KeyManagerError(f"{place} has no private key of 64 hex digits in its field {FIELD}") from None
        try:
            check_key(key, address)
        except KeyManagerError:
            key.wipe()
            raise
        return key

    def place(self, address: Address) -> str:
        """Where in Vault the key of `address` lies, or would."""
        return f"{self._config.mount.strip('/')}/{self._path(address)}"

    def addresses(self) -> tuple[Address, ...]:
        """Addresses of all keys in the folder."""
        folder, mount = self._config.path.strip("/"), self._config.mount.strip("/")

        def ask() -> Any:
            return self._engine().list_secrets(path=folder, mount_point=mount)

        try:
            names = self._ask(f"listing {mount}/{folder}", ask)["data"]["keys"]
        except KeyNotFound:
            return ()
        return tuple(sorted(Address.from_hex(name) for name in names if re.fullmatch("[0-9a-f]{40}", name)))

    def store(self, address: Address, key: Secret) -> None:
        """Keep a copy of `key`. Raises: KeyExists."""
        mount, path = self._config.mount.strip("/"), self._path(address)
        value = {FIELD: key.reveal(), "address": address.checksum}
        exists = KeyExists(f"{self.place(address)} is there already")

        def write() -> Any:
            if self._is_v2():
                return self._engine().create_or_update_secret(path=path, secret=value, cas=0, mount_point=mount)
            return self._engine().create_or_update_secret(path=path, secret=value, mount_point=mount)

        try:
            self.fetch(address).wipe()
        except KeyNotFound:
            pass
        else:
            raise exists
        try:
            self._ask(f"writing {self.place(address)}", write)
        except _Rejected as error:
            # Version 2 refuses to overwrite: another process was faster, or the key was deleted but not destroyed.
            raise exists from error

    def remove(self, address: Address) -> None:
        """Keep the key of `address` no longer, in no version. Raises: KeyNotFound."""
        self.fetch(address).wipe()
        mount, path = self._config.mount.strip("/"), self._path(address)

        def delete() -> Any:
            if self._is_v2():
                return self._engine().delete_metadata_and_all_versions(path=path, mount_point=mount)
            return self._engine().delete_secret(path=path, mount_point=mount)

        self._ask(f"removing {self.place(address)}", delete)

    def _path(self, address: Address) -> str:
        return f"{self._config.path.strip('/')}/{address.hex()}"

    def _read(self, address: Address) -> Any:
        mount, path = self._config.mount.strip("/"), self._path(address)
        if not self._is_v2():
            return self._engine().read_secret(path=path, mount_point=mount)["data"]
        answer = self._engine().read_secret_version(path=path, mount_point=mount, raise_on_deleted_version=True)
        return answer["data"]["data"]

    def _engine(self) -> Any:
        kv = self._client.secrets.kv
        return kv.v2 if self._is_v2() else kv.v1

    def _is_v2(self) -> bool:
        if not self._version:
            mount = self._config.mount.strip("/")
            answer = self._client.adapter.get(f"/v1/sys/internal/ui/mounts/{mount}")
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, dict) or data.get("type") not in ("kv", "generic"):
                raise KeyManagerError(f"{mount} is not a key-value engine")
            self._version = 2 if (data.get("options") or {}).get("version") == "2" else 1
        return self._version == 2

    # ---- tokens -----------------------------------------------------------------------------------------------------

    def login(self) -> None:
        """Get a token, for `auth: token` from its file or option, and learn how long it lasts."""
        with self._limited():
            self._retry(_LOGIN, self._login)

    def renewal_in(self) -> float | None:
        """Seconds until `renew` is due, a third of the token's life before its end; None: it lasts for ever."""
        if self._expires is None:
            return None
        return max(self._expires - self._lifetime / 3 - time.monotonic(), 0.1)

    def renew(self) -> None:
        """Give the token more life, or get another one when it cannot have half of what it had."""
        if self._renewable:
            try:
                with self._limited():
                    answer = self._retry("renewing the token", lambda: self._client.auth.token.renew_self())
                granted = float(answer["auth"]["lease_duration"])
                if granted >= self._lifetime / 2:
                    self._expires = time.monotonic() + granted
                    return
            except (KeyLocked, _Rejected):
                pass  # it is over already: the login below says what there is to say
        self.login()

    def _login(self) -> None:
        config, auth = self._config, self._client.auth
        if self._logged_in:
            # The token before; mostly it has expired. Otherwise it must not pile up with others until it does.
            with suppress(failures.VaultError):
                auth.token.revoke_self()
            self._logged_in = False
        match config.auth:
            case Auth.TOKEN:
                self._client.token = config.token or _credential("tokenfile", config.tokenfile)
                self._note_token()
                return
            case Auth.APPROLE:
                secret_id = config.secretid or _credential("secretidfile", config.secretidfile)
                self._client.token = ""
                answer = auth.approle.login(config.roleid, secret_id, mount_point=config.auth_mount)
            case Auth.KUBERNETES:
                jwt = _credential("jwtfile", config.jwtfile)
                self._client.token = ""
                answer = auth.kubernetes.login(config.role, jwt, mount_point=config.auth_mount)
        granted = answer["auth"]
        self._note_life(float(granted["lease_duration"]), renewable=bool(granted["renewable"]))
        self._logged_in = True

    def _note_token(self) -> None:
        try:
            found = self._client.auth.token.lookup_self()["data"]
        except failures.Forbidden as error:
            raise KeyLocked("Vault refuses the token: it is invalid or has expired") from error
        self._note_life(float(found["ttl"]), renewable=bool(found.get("renewable")))

    def _note_life(self, seconds: float, *, renewable: bool) -> None:
        self._lifetime = seconds
        self._expires = time.monotonic() + seconds if seconds else None
        self._renewable = renewable

    def leave(self) -> None:
        """Revoke a token that a login gave, and close connections. Raises: KeyManagerError, closed nevertheless."""
        try:
            if self._logged_in:
                self._logged_in = False
                with self._limited():
                    self._retry("revoking the token", lambda: self._client.auth.token.revoke_self())
        finally:
            self.close()

    def close(self) -> None:
        """Close connections and forget the token."""
        self._client.token = ""
        self._session.close()

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _limited(self) -> _Limit:
        return _Limit(self._session, self._config.timeout)

    def _ask(self, what: str, request: Callable[[], T], *, missing: str = "") -> T:
        """The answer to a request that needs a token; a refused one is followed by one more login and attempt."""
        with self._limited():
            if not self._client.token:
                self._retry(_LOGIN, self._login)
                return self._retry(what, request, missing=missing)
            try:
                return self._retry(what, request, missing=missing)
            except KeyLocked as error:
                if not isinstance(error.__cause__, failures.Forbidden):
                    raise
            self._retry(_LOGIN, self._login)
            return self._retry(what, request, missing=missing)

    def _retry(self, what: str, request: Callable[[], T], *, missing: str = "") -> T:
        pause = _FIRST_PAUSE
        while True:
            try:
                return request()
            except (failures.Forbidden, failures.Unauthorized) as error:
                raise KeyLocked(f"{what}: Vault refuses; the token has expired or may not do this") from error
            except failures.InvalidPath as error:
                raise KeyNotFound(f"{what}: {missing or 'nothing there'}") from error
            except failures.InvalidRequest as error:
                if what == _LOGIN:
                    raise KeyLocked(f"{what}: Vault does not accept the credentials") from error
                raise _Rejected(f"{what}: Vault rejects the request") from error
            except failures.VaultNotInitialized as error:
                raise KeyLocked("Vault is not initialised") from error
            except requests.exceptions.SSLError as error:
                raise KeysUnreachable(
                    f"no trusted connection to {self._config.address}: {_tls_problem(error)}"
                ) from None
            except _PASSING as error:
                if isinstance(error, failures.VaultDown) and "sealed" in str(error):
                    raise KeyLocked("Vault is sealed") from error
                if time.monotonic() + pause >= self._session.deadline:
                    raise KeysUnreachable(
                        f"{what}: no answer from {self._config.address} within {self._config.timeout:g} s "
                        f"({type(error).__name__})"
                    ) from error
            except (failures.VaultError, requests.RequestException, KeyError, TypeError, ValueError) as error:
                # What was read may be in the library's text.
                raise KeyManagerError(f"{what}: Vault's answer is not understood ({type(error).__name__})") from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


class _Limit:
    """Sets the deadline of the requests inside; a limit within a limit changes nothing."""

    def __init__(self, session: _Session, seconds: float) -> None:
        self._session = session
        self._seconds = seconds
        self._mine = False

    def __enter__(self) -> None:
        if not self._session.deadline:
            self._session.deadline = time.monotonic() + self._seconds
            self._mine = True

    def __exit__(self, *_: object) -> None:
        if self._mine:
            self._session.deadline = 0.0


def _credential(option: str, path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_MAX_CREDENTIAL).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyManagerError(f"{option}: {path!r} cannot be read") from error
    if not text:
        raise KeyManagerError(f"{option}: {path!r} is empty")
    return text


def _tls_problem(error: BaseException) -> str:
    found = re.search(r"certificate verify failed[^'\")]*", str(error))
    return found.group(0).strip(" (_") if found else "TLS handshake failed"

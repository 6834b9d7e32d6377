"""Options of the key manager ``vault``, and the check that they fit together."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import NoReturn
from urllib.parse import urlsplit

from msgspec import Struct

from perun_core.errors import KeyManagerError
from perun_core.keys import SecretText


class Auth(StrEnum):
    """How the node proves to Vault who it is."""

    TOKEN = "token"
    APPROLE = "approle"
    KUBERNETES = "kubernetes"


class Keep(StrEnum):
    """How long a key that was fetched stays in memory."""

    SESSION = "session"
    SIGNATURE = "signature"


class VaultConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options: the block ``user.onchainwallet`` or ``user.offchainwallet`` of a session with ``keymgr: vault``."""

    address: str = ""
    """URL of the server, https; plain http is accepted on loopback only."""
    namespace: str = ""
    """Namespace of all requests."""
    mount: str = "secret"
    """Where the key-value engine is mounted."""
    path: str = "perun/keys"
    """Folder of the keys; the secret of an address is named by its 40 hex digits in lower case."""
    version: int = 0
    """Version of the key-value engine, 1 or 2; 0 asks the server."""
    auth: Auth = Auth.TOKEN
    """token, approle or kubernetes."""
    authmount: str = ""
    """Where the method of `auth` is mounted; by default the method's name."""
    token: SecretText = ""
    """For `auth: token`."""
    tokenfile: str = ""
    """File with the token, instead of `token`; read again whenever a token is needed."""
    roleid: str = ""
    """For `auth: approle`."""
    secretid: SecretText = ""
    """For `auth: approle`."""
    secretidfile: str = ""
    """File with the secret ID, instead of `secretid`; read again at every login."""
    role: str = ""
    """For `auth: kubernetes`."""
    jwtfile: str = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    """For `auth: kubernetes`: file with the service account's token; read again at every login."""
    cacert: str = ""
    """File with the certificates of authorities that the server's certificate may come from; empty: the system's."""
    timeout: float = 10.0
    """Seconds that one operation may take, repetitions included."""
    keep: Keep = Keep.SESSION
    """``session``: fetched when the session opens. ``signature``: fetched for every signature, then overwritten."""

    def __repr__(self) -> str:
        hidden = ("token", "secretid")
        shown = (f"{name}={'***' if name in hidden else getattr(self, name)!r}" for name in self.__struct_fields__)
        return f"VaultConfig({', '.join(shown)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("options with secrets are not copied")

    def __rich_repr__(self) -> list[tuple[str, object]]:
        hidden = ("token", "secretid")
        return [(name, "***" if name in hidden else getattr(self, name)) for name in self.__struct_fields__]

    @property
    def auth_mount(self) -> str:
        """Where the authentication method is mounted."""
        return self.authmount or str(self.auth)

    def check(self) -> None:
        """Raises: KeyManagerError naming the option that is missing or does not fit."""
        url = urlsplit(self.address)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise KeyManagerError("address must be the URL of a Vault server such as https://vault.example.org:8200")
        if url.scheme == "http" and not _is_loopback(url.hostname):
            raise KeyManagerError("address: keys travel over https only, except on loopback")
        if url.username or url.password or url.query or url.fragment:
            raise KeyManagerError("address must be a plain URL, without user or parameters")
        if self.version not in (0, 1, 2):
            raise KeyManagerError("version must be 1 or 2, or 0 to ask the server")
        if not 0 < self.timeout <= 600:
            raise KeyManagerError("timeout must be positive and at most 600 seconds")
        if not self.mount.strip("/") or not self.path.strip("/"):
            raise KeyManagerError("mount and path must not be empty")
        self._check_credentials()

    def _check_credentials(self) -> None:
        match self.auth:
            case Auth.TOKEN:
                _exactly_one("token", self.token, "tokenfile", self.tokenfile)
            case Auth.APPROLE:
                if not self.roleid:
                    raise KeyManagerError("auth approle needs roleid")
                _exactly_one("secretid", self.secretid, "secretidfile", self.secretidfile)
            case Auth.KUBERNETES:
                if not self.role or not self.jwtfile:
                    raise KeyManagerError("auth kubernetes needs role and jwtfile")


def _exactly_one(first: str, first_value: str, second: str, second_value: str) -> None:
    if bool(first_value) == bool(second_value):
        raise KeyManagerError(f"exactly one of {first} and {second} is needed")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

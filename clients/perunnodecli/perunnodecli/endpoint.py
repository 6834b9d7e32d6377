"""Where the node is and how to talk to it safely."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .failures import UsageFailure

if TYPE_CHECKING:
    import grpc.aio

DEFAULT_NODE: Final = ":50001"
LARGEST_MESSAGE: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class Security:
    """TLS and access token. Without `tls_ca` the connection is in the clear, as the original client's."""

    tls_ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Endpoint:
    """A node's address as the user wrote it, with how to talk to it."""

    written: str
    security: Security = Security()

    @property
    def target(self) -> str:
        """`HOST:PORT`; an empty host is this machine, and so is a port alone. Raises: UsageFailure."""
        host, _, port = self.written.rpartition(":")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise UsageFailure(f"{self.written!r} is not the address of a node: HOST:PORT or :PORT is expected")
        return f"{host or '127.0.0.1'}:{port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nothing leaves this machine."""
        host = self.target.rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.security.token}"),) if self.security.token else ()

    def dial(self) -> grpc.aio.Channel:
        """A channel; it connects when the first call is made. Needs a running loop.

        Raises: UsageFailure (address, certificate files, a token that would travel in the clear).
        """
        import grpc
        import grpc.aio

        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
            # A node that comes back is found again within two seconds, not after a growing pause.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if self.is_loopback:
            options.append(("grpc.enable_http_proxy", 0))
        security = self.security
        if security.tls_ca is None:
            if security.cert or security.key or security.server_name:
                raise UsageFailure("a certificate is of no use without --tls-ca")
            if security.token and not self.is_loopback:
                raise UsageFailure("an access token is not sent over a network in the clear: use --tls-ca")
            return grpc.aio.insecure_channel(self.target, options=options)
        if (security.cert is None) != (security.key is None):
            raise UsageFailure("--cert and --key belong together")
        if security.server_name:
            options.append(("grpc.ssl_target_name_override", security.server_name))
        options += [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(security.tls_ca),
            private_key=_read(security.key) if security.key else None,
            certificate_chain=_read(security.cert) if security.cert else None,
        )
        return grpc.aio.secure_channel(self.target, credentials, options=options)


def read_token(path: Path) -> str:
    """The token in a file: its only line. Raises: UsageFailure."""
    try:
        token = _read(path).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise UsageFailure(f"{path} holds no access token") from error
    if not token or any(character.isspace() for character in token) or not token.isprintable():
        raise UsageFailure(f"{path} holds no access token")
    return token


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageFailure(f"{path} cannot be read: {error.strerror}") from error

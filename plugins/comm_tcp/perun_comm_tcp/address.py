"""Addresses of the transport: ``host:port`` (API.md 4.2)."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from perun_core.errors import AddressInvalid

_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_NUMERIC: Final = re.compile(r"[0-9.]+")


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of `address`; names are not resolved.

    Raises: AddressInvalid when the host is empty or malformed, or the port is not 1 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise AddressInvalid(f"{address!r} is not host:port with a port from 1 to 65535")
    try:
        return _checked_host(host), int(port)
    except ValueError as error:
        raise AddressInvalid(f"{address!r} is not host:port: {error}") from error


def _checked_host(host: str) -> str:
    if not host:
        raise ValueError("the host is missing")
    if host.startswith("[") and host.endswith("]"):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError as error:
            raise ValueError("not an IPv6 address in brackets") from error
        return host[1:-1]
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets")
    if _NUMERIC.fullmatch(host):
        IPv4Address(host)
    elif len(host) > 253 or not all(_NAME.fullmatch(label) for label in host.removesuffix(".").split(".")):
        raise ValueError("not a host name")
    return host


def joined_address(host: str, port: int) -> str:
    """The address as text, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""Options and fixtures that every test of this repository may use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from coincurve import PrivateKey

from perun_core.profile.gp090 import digest
from perun_core.values import Bytes32, Sig


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--vectors DIR`: run the vector tests on another set of the same schema."""
    parser.addoption("--vectors", type=Path, default=None, metavar="DIR", help="another set of golden vectors")


@pytest.fixture(scope="session")
def sign() -> Callable[[bytes, Bytes32], Sig]:
    """Signs a hash with a private key as a key manager would: EIP-191 prefix, deterministic, low S, V 27 or 28."""

    def sign_hash(private_key: bytes, hash32: Bytes32) -> Sig:
        signed = PrivateKey(private_key).sign_recoverable(digest(hash32), hasher=None)
        return Sig(signed[:64] + bytes((signed[64] + 27,)))

    return sign_hash

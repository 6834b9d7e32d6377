"""Key files of the demo users: version 3 format with weak encryption (API.md 4.4). For public keys only."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from ..values import keccak256

# Weak parameters, stated by the specification for generated keys: anybody knows these keys, opening must be fast.
N: Final = 2
R: Final = 8
P: Final = 1
KEY_LENGTH: Final = 32


def weak_key_file(private_key: bytes, *, address: str, password: str, salt: bytes, iv: bytes) -> str:
    """The JSON text that holds `private_key` encrypted under `password`; `salt` 32 and `iv` 16 random bytes."""
    from Crypto.Cipher import AES

    derived = hashlib.scrypt(password.encode(), salt=salt, n=N, r=R, p=P, dklen=KEY_LENGTH)
    ciphertext = AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=iv).encrypt(private_key)
    content = {
        "address": address.removeprefix("0x").lower(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "ciphertext": ciphertext.hex(),
            "cipherparams": {"iv": iv.hex()},
            "kdf": "scrypt",
            "kdfparams": {"dklen": KEY_LENGTH, "n": N, "p": P, "r": R, "salt": salt.hex()},
            "mac": keccak256(derived[16:] + ciphertext).hex(),
        },
        "id": str(UUID(bytes=keccak256(salt + iv)[:16], version=4)),
        "version": 3,
    }
    return json.dumps(content)


def file_name(address: str, now: datetime) -> str:
    """``UTC--<time, colons as dashes, nanoseconds>Z--<40 hex digits>``."""
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    return f"UTC--{stamp}000Z--{address.removeprefix('0x').lower()}"

"""The declaration of a key manager whose keys an operator can manage with ``perunnode keys``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from ..ports.keymgr import KeyCustody, KeyManager
from .declare import Backend


class KeyManagerBackend(Backend[KeyManager], frozen=True):
    """What `perun_register_keymgr` may return instead of a plain `Backend`.

    `custody(config)` gives, for the same options that a session opens the manager with, the place where it keeps keys.
    A manager whose keys cannot be listed, added or taken out returns a plain `Backend`.
    """

    custody: Callable[[Any], AbstractAsyncContextManager[KeyCustody]]

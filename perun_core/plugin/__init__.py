"""How plugins declare themselves. This is the whole interface a plugin needs beside the ports."""

from .custody import KeyManagerBackend
from .declare import INTERFACE_VERSION, Backend, Frontend, hookimpl

__all__ = ["INTERFACE_VERSION", "Backend", "Frontend", "KeyManagerBackend", "hookimpl"]

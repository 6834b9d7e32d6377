"""Declarations that hooks return: a name, the type of the options, and how to open the thing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Generic, TypeVar

import pluggy
from msgspec import Struct

T = TypeVar("T")

PROJECT: Final = "perun"
ENTRY_POINT_GROUP: Final = "perun.plugins"

INTERFACE_VERSION: Final = 1
"""Version of hooks and ports. A plugin module may state the one it was made for as ``perun_interface = 1``."""

hookimpl: Final = pluggy.HookimplMarker(PROJECT)
hookspec: Final = pluggy.HookspecMarker(PROJECT)


class Backend(Struct, Generic[T], frozen=True):
    """An implementation of a port, chosen by `name` in a configuration file.

    `config` is a frozen msgspec Struct with documented fields; the host converts the configured table into it and
    refuses unknown keys. `open(config, context)` gives an async context manager that is entered in the exit stack of
    the node or of the session that owns it; leaving releases everything.
    """

    name: str
    config: type[Struct]
    open: Callable[[Any, Any], AbstractAsyncContextManager[T]]


class Frontend(Struct, frozen=True):
    """A server for users, fed with `ports.api.ApiContext`; entering `serve(config, context)` binds, leaving drains."""

    name: str
    config: type[Struct]
    serve: Callable[[Any, Any], AbstractAsyncContextManager[None]]


class NoOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """For backends without options."""

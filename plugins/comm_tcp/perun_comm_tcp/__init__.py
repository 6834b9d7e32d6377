"""TCP as a peer transport: the one every Perun node of the gp090 family speaks (PROTOCOL.md 4)."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from perun_core.plugin import Backend, hookimpl
from perun_core.ports.comm import Comm, CommContext

from .options import TCPOptions


@hookimpl
def perun_register_comm() -> Backend[Comm]:
    """The transport named ``tcp``."""
    return Backend(name="tcp", config=TCPOptions, open=_open)


def _open(options: TCPOptions, context: CommContext) -> AbstractAsyncContextManager[Comm]:
    from .transport import open_tcp

    return open_tcp(options, context)

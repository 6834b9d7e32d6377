"""The published gRPC API of the node (API.md): package ``pb``, health and reflection, on loopback.

Both ends of it: the server, and what a session uses when another node funds (``remote``) or watches (``grpc``) for it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import click

from perun_core.plugin import Backend, Frontend, hookimpl
from perun_core.ports.api import ApiContext
from perun_core.ports.fundwatch import Funder, FunderContext, RemoteWatcher, WatchContext

from .config import GrpcConfig


@hookimpl
def perun_register_api() -> Frontend:
    """The frontend named ``grpc``."""
    return Frontend(name="grpc", config=GrpcConfig, serve=_serve)


@hookimpl
def perun_register_funder() -> Backend[Funder]:
    """The funder named ``remote``: another node in fundwatch mode."""
    return Backend(name="remote", config=GrpcConfig, open=_open_funder)


@hookimpl
def perun_register_watcher() -> Backend[RemoteWatcher]:
    """The watcher named ``grpc``: another node in fundwatch mode."""
    return Backend(name="grpc", config=GrpcConfig, open=_open_watcher)


@hookimpl
def perun_add_commands(cli: click.Group) -> None:
    """Adds ``demo``; what it needs is imported when it runs."""
    from .demo.command import demo

    cli.add_command(demo)


def _open_funder(config: GrpcConfig, context: FunderContext) -> AbstractAsyncContextManager[Funder]:
    from .remote import open_funder

    return open_funder(config, context)


def _open_watcher(config: GrpcConfig, context: WatchContext) -> AbstractAsyncContextManager[RemoteWatcher]:
    from .remote import open_watcher

    return open_watcher(config, context)


def _serve(config: GrpcConfig, context: ApiContext) -> AbstractAsyncContextManager[None]:
    from .server import serve

    return serve(config, context)

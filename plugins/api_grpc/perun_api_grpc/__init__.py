"""The published gRPC API of the node (API.md): package ``pb``, health and reflection, on loopback."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import click

from perun_core.plugin import Frontend, hookimpl
from perun_core.ports.api import ApiContext

from .config import GrpcConfig


@hookimpl
def perun_register_api() -> Frontend:
    """The frontend named ``grpc``."""
    return Frontend(name="grpc", config=GrpcConfig, serve=_serve)


@hookimpl
def perun_add_commands(cli: click.Group) -> None:
    """Adds ``demo``; what it needs is imported when it runs."""
    from .demo.command import demo

    cli.add_command(demo)


def _serve(config: GrpcConfig, context: ApiContext) -> AbstractAsyncContextManager[None]:
    from .server import serve

    return serve(config, context)

"""The published gRPC API of the node (API.md): package ``pb``, health and reflection, on loopback."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from perun_core.plugin import Frontend, hookimpl
from perun_core.ports.api import ApiContext

from .config import GrpcConfig


@hookimpl
def perun_register_api() -> Frontend:
    """The frontend named ``grpc``."""
    return Frontend(name="grpc", config=GrpcConfig, serve=_serve)


def _serve(config: GrpcConfig, context: ApiContext) -> AbstractAsyncContextManager[None]:
    from .server import serve

    return serve(config, context)

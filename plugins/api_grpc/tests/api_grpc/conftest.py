"""A served scripted node and a connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from perun_api_grpc.config import GrpcConfig
from perun_api_grpc.pb.payment_service_pb2_grpc import Payment_APIStub
from perun_api_grpc.server import listening
from perun_core.ports.api import ApiContext

from .scripted import Ready, ScriptedNode

Serve = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]


@pytest.fixture
async def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
def serve(node: ScriptedNode) -> Serve:
    """Serve the node and connect to it, while entered."""

    @asynccontextmanager
    async def serve(
        *, ready: Ready | None = None, service: str = "payment", **options: Any
    ) -> AsyncIterator[grpc.aio.Channel]:
        context = ApiContext(node=node, host="127.0.0.1", port=0, service=service, ready=ready or Ready(ready=True))
        async with (
            listening(GrpcConfig(**options), context) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            yield channel

    return serve


@pytest.fixture
async def stub(serve: Serve) -> AsyncIterator[Any]:
    """Payment_API of a node that is ready."""
    async with serve() as channel:
        yield Payment_APIStub(channel)

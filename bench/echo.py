"""A gRPC server that answers what it is asked: the floor under every call of the API.

Built like the node's: grpc.aio, uvloop where it exists, plaintext on loopback. Prints its port when it serves.
"""

from __future__ import annotations

import asyncio

import grpc.aio
from harness import event_loop

METHOD = "/bench.Echo/Echo"


async def echo(request: bytes, _call: object) -> bytes:
    """The request."""
    return request


async def main() -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"echo at {port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(main())

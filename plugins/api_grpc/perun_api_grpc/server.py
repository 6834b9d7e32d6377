"""The server: binds, serves when the node is ready, drains when it is left."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import grpc.aio
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from perun_core.errors import AddressInUse, CommError, ConfigError
from perun_core.ports.api import ApiContext, NodeAPI

from .binding import Raw, answering, bind
from .config import GrpcConfig
from .funding import Funding
from .gate import Gate
from .health import HEALTH, Health
from .payment import Payment
from .pb import errors_pb2, funding_service_pb2, nodetypes_pb2, payment_service_pb2, sdktypes_pb2, watching_service_pb2
from .streams import PaymentStreams
from .watching import Watching

logger: Final = logging.getLogger(__name__)

PAYMENT: Final[ServiceDescriptor] = payment_service_pb2.DESCRIPTOR.services_by_name["Payment_API"]
FUNDING: Final[ServiceDescriptor] = funding_service_pb2.DESCRIPTOR.services_by_name["Funding_API"]
WATCHING: Final[ServiceDescriptor] = watching_service_pb2.DESCRIPTOR.services_by_name["Watching_API"]

SERVICES: Final[Mapping[str, tuple[ServiceDescriptor, ...]]] = {
    "payment": (PAYMENT,),
    "fundwatch": (PAYMENT, FUNDING, WATCHING),
}
"""What is served in which mode (API.md 1.1)."""

REFLECTED: Final[tuple[FileDescriptor, ...]] = (
    nodetypes_pb2.DESCRIPTOR,
    errors_pb2.DESCRIPTOR,
    payment_service_pb2.DESCRIPTOR,
    sdktypes_pb2.DESCRIPTOR,
    funding_service_pb2.DESCRIPTOR,
    watching_service_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
)
"""Definitions that reflection shows, each after those it imports."""


@asynccontextmanager
async def serve(config: GrpcConfig, context: ApiContext) -> AsyncIterator[None]:
    """`Frontend.serve`: see `listening`."""
    async with listening(config, context):
        yield


@asynccontextmanager
async def listening(config: GrpcConfig, context: ApiContext) -> AsyncIterator[int]:
    """Serve on the address of `context` while entered; gives the port, which matters when 0 was asked for.

    Before the node is ready, health says NOT_SERVING and everything else answers UNAVAILABLE. Leaving refuses new
    calls, ends streams with UNAVAILABLE, and waits for other calls at most `config.drain_seconds`.
    Raises: ConfigError (address that is not loopback, unknown mode), AddressInUse, CommError.
    """
    if context.service not in SERVICES:
        raise ConfigError("service", context.service, f"must be one of {', '.join(SERVICES)}")
    address = loopback(context.host)
    gate = Gate(context.ready)
    server = grpc.aio.server(options=options(config), maximum_concurrent_rpcs=config.max_concurrent_calls)
    served = SERVICES[context.service]
    server.add_generic_rpc_handlers([bind(service, handlers(service, context.node, gate)) for service in served])
    names = [service.full_name for service in (*served, HEALTH)]
    health = Health(gate, names)
    server.add_generic_rpc_handlers([bind(HEALTH, {"Check": health.check, "Watch": health.watch})])
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server, reflected())

    port = listen(server, address, context.port)
    await server.start()
    logger.info("API on %s port %d", address, port)
    try:
        yield port
    finally:
        await gate.drain(config.drain_seconds)
        await server.stop(0)


def options(config: GrpcConfig) -> list[tuple[str, int]]:
    """Channel arguments of gRPC. Ports are not shared: a second node on the same port must fail (API.md 1.1)."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.keepalive_time_ms", round(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


def handlers(service: ServiceDescriptor, node: NodeAPI, gate: Gate) -> dict[str, Raw]:
    """A handler for each method of `service`."""
    unary: object
    streams: object
    if service is PAYMENT:
        unary, streams = Payment(node), PaymentStreams(node, gate)
    else:
        unary = streams = Funding(node, gate) if service is FUNDING else Watching(node, gate)
    return {
        method.name: (
            getattr(streams, method.name)
            if method.server_streaming
            else answering(method, getattr(unary, method.name), gate)
        )
        for method in service.methods
    }


def reflected() -> DescriptorPool:
    """The definitions reflection shows, and nothing else of this process."""
    pool = DescriptorPool()
    for file in REFLECTED:
        pool.AddSerializedFile(file.serialized_pb)
    return pool


def loopback(host: str) -> str:
    """The numeric address to bind for `host`. ``localhost`` means 127.0.0.1, which original clients expect.

    Raises: ConfigError for anything but loopback: without encryption and access tokens nobody else may connect.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigError("grpc host", host, "must be a loopback address") from None
    if not address.is_loopback:
        raise ConfigError("grpc host", host, "only loopback addresses are served, such as 127.0.0.1")
    return str(address)


def listen(server: grpc.aio.Server, address: str, port: int) -> int:
    """Bind `server`; gives the port. Raises: AddressInUse, CommError."""
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        bound = server.add_insecure_port(target)
    except RuntimeError as error:
        raise refused(address, port) from error
    if bound == 0:
        raise refused(address, port)
    return bound


def refused(address: str, port: int) -> CommError:
    """Why an address cannot be bound: gRPC does not say it, so it is tried once more."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return CommError(f"cannot listen on {address} port {port}: {error.strerror}")
    return AddressInUse(f"{address} port {port} is in use")

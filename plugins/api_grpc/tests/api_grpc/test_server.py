"""The server as a whole: starting, health, reflection, modes, addresses, limits, draining."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

import perun_api_grpc
from perun_api_grpc.config import GrpcConfig
from perun_api_grpc.pb import funding_service_pb2, watching_service_pb2
from perun_api_grpc.pb import payment_service_pb2 as pb
from perun_api_grpc.pb.funding_service_pb2_grpc import Funding_APIStub
from perun_api_grpc.pb.payment_service_pb2_grpc import Payment_APIStub
from perun_api_grpc.pb.watching_service_pb2_grpc import Watching_APIStub
from perun_api_grpc.server import PAYMENT, listening
from perun_core.errors import AddressInUse, ConfigError
from perun_core.ports.api import ApiContext

from .conftest import Serve
from .scripted import CHANNEL, SESSION, Held, Ready, ScriptedNode
from .test_payment import INFO, INFO_MSG

HealthState = health_pb2.HealthCheckResponse
UNAVAILABLE, UNIMPLEMENTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED


async def code_of(call: Any) -> grpc.StatusCode:
    return await asyncio.wait_for(call.code(), 10)


def payment_calls(channel: grpc.aio.Channel) -> list[Any]:
    """One call of every method of Payment_API, with an empty request."""
    stub: Any = Payment_APIStub(channel)
    requests = {method.name: getattr(pb, method.input_type.name) for method in PAYMENT.methods}
    return [getattr(stub, name)(request()) for name, request in requests.items()]


def reflect(channel: grpc.aio.Channel, **query: Any) -> Any:
    stub: Any = ServerReflectionStub(channel)
    return stub.ServerReflectionInfo(iter([ServerReflectionRequest(**query)])).read()


# ------------------------------------------------------------------------------------------------------------ starting


async def test_before_the_node_is_ready_only_health_is_answered(serve: Serve, node: ScriptedNode) -> None:
    ready = Ready(ready=False)
    async with serve(ready=ready) as channel:
        assert {await code_of(call) for call in payment_calls(channel)} == {UNAVAILABLE}
        assert node.calls == []
        health: Any = HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == HealthState.NOT_SERVING

        ready.now()

        assert (await health.Check(health_pb2.HealthCheckRequest())).status == HealthState.SERVING
        assert (await Payment_APIStub(channel).Time(pb.TimeReq())).time == 1_700_000_000


async def test_watching_health_tells_when_the_node_becomes_ready(serve: Serve) -> None:
    ready = Ready(ready=False)
    async with serve(ready=ready) as channel:
        health: Any = HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="pb.Payment_API"))
        assert (await watch.read()).status == HealthState.NOT_SERVING
        ready.now()
        assert (await asyncio.wait_for(watch.read(), 10)).status == HealthState.SERVING


async def test_health_of_an_unknown_service_is_unknown(serve: Serve) -> None:
    async with serve() as channel:
        health: Any = HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="pb.Funding_API")
        assert await code_of(health.Check(request)) == grpc.StatusCode.NOT_FOUND
        assert (await health.Watch(request).read()).status == HealthState.SERVICE_UNKNOWN


# ------------------------------------------------------------------------------------------------- modes, reflection


async def test_payment_mode_serves_the_payment_service_only(serve: Serve) -> None:
    async with serve() as channel:
        assert await code_of(Funding_APIStub(channel).Fund(funding_service_pb2.FundReq())) == UNIMPLEMENTED
        assert await code_of(Watching_APIStub(channel).StopWatching(watching_service_pb2.StopWatchingReq())) == (
            UNIMPLEMENTED
        )
        listed = (await reflect(channel, list_services="")).list_services_response.service
        assert {service.name for service in listed} == {
            "pb.Payment_API",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


async def test_fundwatch_mode_lists_all_services(serve: Serve) -> None:
    async with serve(service="fundwatch") as channel:
        listed = (await reflect(channel, list_services="")).list_services_response.service
        assert {"pb.Payment_API", "pb.Funding_API", "pb.Watching_API"} <= {service.name for service in listed}
        unknown = await Funding_APIStub(channel).Fund(funding_service_pb2.FundReq(sessionID="nobody"))
        assert unknown.error.code == 201 and unknown.error.ErrInfoResourceNotFound.id == "nobody"
        stream = Watching_APIStub(channel).StartWatchingLedgerChannel()
        await stream.write(watching_service_pb2.StartWatchingLedgerChannelReq(sessionID="nobody"))
        assert (await stream.read()).error.code == 201
        assert await stream.code() == grpc.StatusCode.OK
        assert (await Payment_APIStub(channel).Time(pb.TimeReq())).time == 1_700_000_000


@pytest.mark.parametrize("symbol", ["pb.Payment_API", "pb.MsgError", "grpc.health.v1.Health"])
async def test_reflection_describes_what_is_served(serve: Serve, symbol: str) -> None:
    async with serve() as channel:
        answer = await reflect(channel, file_containing_symbol=symbol)
        assert answer.file_descriptor_response.file_descriptor_proto


async def test_an_unknown_mode_is_a_configuration_error(serve: Serve) -> None:
    with pytest.raises(ConfigError):
        async with serve(service="both"):
            pass


# --------------------------------------------------------------------------------------------------------- addresses


def context(node: ScriptedNode, *, host: str = "127.0.0.1", port: int = 0) -> ApiContext:
    return ApiContext(node=node, host=host, port=port, service="payment", ready=Ready(ready=True))


async def test_a_second_node_on_the_same_port_does_not_start(node: ScriptedNode) -> None:
    async with listening(GrpcConfig(), context(node)) as port:
        with pytest.raises(AddressInUse, match=str(port)):
            async with listening(GrpcConfig(), context(node, port=port)):
                pass
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert (await Payment_APIStub(channel).Time(pb.TimeReq())).time == 1_700_000_000


async def test_a_port_is_free_again_after_the_node_left(node: ScriptedNode) -> None:
    async with listening(GrpcConfig(), context(node)) as port:
        pass
    async with listening(GrpcConfig(), context(node, port=port)) as again:
        assert again == port


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
async def test_nothing_but_loopback_is_served(node: ScriptedNode, host: str) -> None:
    with pytest.raises(ConfigError):
        async with listening(GrpcConfig(), context(node, host=host)):
            pass


async def test_localhost_is_reachable_as_original_clients_dial_it(node: ScriptedNode) -> None:
    async with (
        listening(GrpcConfig(), context(node, host="localhost")) as port,
        grpc.aio.insecure_channel(f"localhost:{port}") as channel,
    ):
        assert (await Payment_APIStub(channel).Time(pb.TimeReq())).time == 1_700_000_000


# ------------------------------------------------------------------------------------------------------------- limits


async def test_a_request_larger_than_the_limit_is_refused_and_the_node_lives(serve: Serve) -> None:
    async with serve(max_message_bytes=10_000) as channel:
        stub: Any = Payment_APIStub(channel)
        large = stub.OpenSession(pb.OpenSessionReq(configFile="x" * 20_000))
        assert await code_of(large) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Time(pb.TimeReq())).time == 1_700_000_000


@pytest.mark.parametrize("table", [{"max_message_bytes": "0"}, {"keepalive_seconds": "-1"}, {"keepalive": "60"}])
def test_wrong_options_are_refused(table: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, GrpcConfig, strict=False)


def test_the_plugin_declares_a_frontend_that_its_options_describe() -> None:
    frontend = perun_api_grpc.perun_register_api()
    assert (frontend.name, frontend.config) == ("grpc", GrpcConfig)
    assert msgspec.convert({"drain_seconds": "0.5"}, frontend.config, strict=False) == GrpcConfig(drain_seconds=0.5)


async def test_the_plugin_serves_as_it_declares(node: ScriptedNode) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with (
        perun_api_grpc.perun_register_api().serve(GrpcConfig(), context(node, port=port)),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert (await Payment_APIStub(channel).Time(pb.TimeReq())).time == 1_700_000_000


# ------------------------------------------------------------------------------------------------------------ leaving


async def test_leaving_ends_streams_as_unavailable_and_frees_their_subscriptions(
    node: ScriptedNode,
) -> None:
    async with listening(GrpcConfig(drain_seconds=30), context(node)) as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        stub: Any = Payment_APIStub(channel)
        health: Any = HealthStub(channel)
        streams = [
            stub.SubPayChProposals(pb.SubPayChProposalsReq(sessionID=SESSION)),
            stub.SubPayChUpdates(pb.SubpayChUpdatesReq(sessionID=SESSION, chID=CHANNEL)),
            health.Watch(health_pb2.HealthCheckRequest()),
        ]
        for stream in streams:
            await stream.wait_for_connection()
        await streams[-1].read()
    assert {await code_of(stream) for stream in streams} == {UNAVAILABLE}
    assert node.proposals.subscription is node.updates.subscription is None
    assert await code_of(stub.Time(pb.TimeReq())) == UNAVAILABLE
    await channel.close()


async def test_leaving_lets_calls_finish_within_the_time_allowed(node: ScriptedNode) -> None:
    held = node.answers["close_channel"] = Held()

    async def finish() -> None:
        await held.began.wait()
        while True:  # until draining began, which refuses new calls
            if await code_of(Payment_APIStub(other).Time(pb.TimeReq())) == UNAVAILABLE:
                break
        held.result.set_result(INFO)

    async with listening(GrpcConfig(drain_seconds=30), context(node)) as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        other = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        closing = Payment_APIStub(channel).ClosePayCh(pb.ClosePayChReq(sessionID=SESSION, chID=CHANNEL))
        finisher = asyncio.create_task(finish())
        await held.began.wait()
    await finisher
    assert (await closing).msgSuccess.closedPayChInfo == INFO_MSG
    await channel.close()
    await other.close()


async def test_leaving_gives_up_calls_that_take_longer(node: ScriptedNode) -> None:
    held = node.answers["close_channel"] = Held()
    async with listening(GrpcConfig(drain_seconds=0.05), context(node)) as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        closing = Payment_APIStub(channel).ClosePayCh(pb.ClosePayChReq(sessionID=SESSION, chID=CHANNEL))
        await held.began.wait()
    assert held.cancelled.is_set()
    assert await code_of(closing) == UNAVAILABLE
    await channel.close()


async def test_bytes_that_are_no_message_are_refused_and_the_connection_goes_on(serve: Serve) -> None:
    async with serve(service="fundwatch") as channel:
        unary = channel.unary_unary("/pb.Payment_API/OpenSession")
        assert await code_of(unary(b"\xac")) == grpc.StatusCode.INTERNAL
        stream = channel.stream_stream("/pb.Watching_API/StartWatchingLedgerChannel")()
        await stream.write(b"\xac")
        answer = watching_service_pb2.StartWatchingLedgerChannelResp.FromString(await stream.read())
        assert answer.error.code == 203
        assert (await Payment_APIStub(channel).Time(pb.TimeReq())).time == 1_700_000_000

"""From the service definitions to gRPC: every method gets its handler, its message types and the mapping of errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from perun_core.errors import InvalidArgument

from .errors import answer_to
from .gate import Call, Gate

logger: Final = logging.getLogger(__name__)

Unary = Callable[..., Awaitable[Message]]
"""Takes a request; gives the success member of the response, or the response itself where it has no error member."""

Raw = Callable[..., object]
"""What gRPC calls: takes a request, or an iterator of requests, and the call."""


def bind(service: ServiceDescriptor, handlers: Mapping[str, Raw]) -> grpc.GenericRpcHandler[Message, Message]:
    """Serve `service` with `handlers` by method name; methods without one answer UNIMPLEMENTED."""
    methods = {method.name: _typed(method, handlers.get(method.name)) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _typed(method: MethodDescriptor, handler: Raw | None) -> grpc.RpcMethodHandler[Message, Message]:
    """`handler` with the message types and the kind of `method`."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    served = handler or unimplemented
    return kinds[method.client_streaming, method.server_streaming](
        readable(served) if method.client_streaming else understood(served),
        request_deserializer=reading(GetMessageClass(method.input_type)),
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


class Undecodable:
    """Bytes that are no message of the method."""


def reading(kind: type[Message]) -> Callable[[bytes], Message | Undecodable]:
    """From bytes to a message of `kind`. Never raises: what is wrong is told by `understood` and `readable`."""

    def read(data: bytes) -> Message | Undecodable:
        try:
            return kind.FromString(data)
        except DecodeError:
            return Undecodable()

    return read


def understood(handler: Raw) -> Raw:
    """`handler` for requests that could be read; others end with INTERNAL, as gRPC prescribes."""

    async def handle(request: Message | Undecodable, call: Call) -> object:
        if isinstance(request, Undecodable):
            await call.abort(grpc.StatusCode.INTERNAL, "the request cannot be decoded")
        return await cast("Awaitable[object]", handler(request, call))

    return handle


def readable(handler: Raw) -> Raw:
    """`handler` for a stream of requests that could be read; reading another one raises InvalidArgument."""

    async def checked(requests: AsyncIterable[Message | Undecodable]) -> AsyncGenerator[Message, None]:
        async for request in requests:
            if isinstance(request, Undecodable):
                raise InvalidArgument("request", "", "the request cannot be decoded")
            yield request

    async def handle(requests: AsyncIterable[Message | Undecodable], call: Call) -> object:
        async with aclosing(checked(requests)) as stream:
            return await cast("Awaitable[object]", handler(stream, call))

    return handle


async def unimplemented(_request: object, call: Call) -> None:
    """Answer UNIMPLEMENTED."""
    await call.abort(grpc.StatusCode.UNIMPLEMENTED, "this method is not served")


def answering(method: MethodDescriptor, handler: Unary, gate: Gate) -> Raw:
    """The wrapper of every unary method: refuses while `gate` is closed, and answers errors inside the response.

    Exactly one member of the response's oneof is set (API.md 1.5); a response that has nothing but an error member is
    empty on success (API.md 2.6). Cancellation by the client passes through to the
    handler and thereby to the node; cancellation by draining answers UNAVAILABLE.
    """
    response = GetMessageClass(method.output_type)
    chooses = "response" in method.output_type.oneofs_by_name
    in_band = "error" in method.output_type.fields_by_name
    name = method.name

    async def answer(request: Message, call: Call) -> Message:
        if not gate.is_open:
            await gate.refuse(call)
        return await gate.run(call, respond(request, call), endless=False)

    async def respond(request: Message, call: Call) -> Message:
        try:
            result = await handler(request)
            answer = response(msgSuccess=result) if chooses else result
        except Exception as failure:
            error, message = answer_to(failure, method=name)
            _log(name, request, error.code)
            if not in_band:
                await call.abort(grpc.StatusCode.INTERNAL, error.message)
            return response(error=message)
        _log(name, request, 0)
        return answer

    return answer


def _log(method: str, request: Message, code: int) -> None:
    """One debug line for each answer; a session is recognisable in it, but its ID not usable (API.md 4.6)."""
    if logger.isEnabledFor(logging.DEBUG):
        session = getattr(request, "sessionID", "")[:8]
        fields = {"method": method, "session-id": session, "channel-id": getattr(request, "chID", ""), "code": code}
        logger.debug("%s answered %s", method, code or "success", extra={k: v for k, v in fields.items() if v})

"""Health of the server, by the standard protocol ``grpc.health.v1``; answered from the moment the port is bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1.health_pb2 import DESCRIPTOR, HealthCheckRequest, HealthCheckResponse

from .gate import Call, Gate

HEALTH: Final[ServiceDescriptor] = DESCRIPTOR.services_by_name["Health"]


class Health:
    """NOT_SERVING while the node starts and while it drains, SERVING between, for every service and the whole ("")."""

    def __init__(self, gate: Gate, services: Iterable[str]) -> None:
        self._gate = gate
        self._services = frozenset(("", *services))

    async def check(self, request: HealthCheckRequest, call: Call) -> HealthCheckResponse:
        """The state now; NOT_FOUND for services that are not here."""
        if request.service not in self._services:
            await call.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._state(request.service)

    async def watch(self, request: HealthCheckRequest, call: Call) -> None:
        """The state now and when it changes. Ends with UNAVAILABLE when the server drains."""
        await self._gate.run(call, self._report(request.service, call), endless=True)

    async def _report(self, service: str, call: Call) -> None:
        reported = self._state(service)
        await call.write(reported)
        await self._gate.wait_ready()
        if reported.status == HealthCheckResponse.NOT_SERVING:
            await call.write(self._state(service))
        await asyncio.Event().wait()

    def _state(self, service: str) -> HealthCheckResponse:
        if service not in self._services:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        open_ = self._gate.is_open
        return HealthCheckResponse(status=HealthCheckResponse.SERVING if open_ else HealthCheckResponse.NOT_SERVING)

"""The streams of Payment_API (API.md 2.1.4, 2.2.4): one subscription of the node for each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

import grpc

from perun_core.ports.api import NodeAPI, ProposalNotification, Subscription, UpdateNotification

from .convert import proposal_to, update_to
from .errors import answer_to
from .gate import Call, Gate
from .pb import errors_pb2
from .pb import payment_service_pb2 as pb

T = TypeVar("T")

MOST_METADATA: Final = 3000
"""Bytes of an error in the trailing metadata, of which clients take 8 KiB in all."""
MOST_TEXT: Final = 300

ERROR_METADATA: Final = "perun-error-bin"
"""Trailing metadata that holds the serialised MsgError of a stream that failed."""


class PaymentStreams:
    """The streaming methods. A stream ends with OK when its subscription ends, and ends that when the client goes."""

    def __init__(self, node: NodeAPI, gate: Gate) -> None:
        self._node = node
        self._gate = gate

    async def SubPayChProposals(self, request: pb.SubPayChProposalsReq, call: Call) -> None:
        """Incoming proposals of a session."""

        def response(proposal: ProposalNotification) -> pb.SubPayChProposalsResp:
            return pb.SubPayChProposalsResp(notify=proposal_to(proposal))

        def subscribe() -> Subscription[ProposalNotification]:
            return self._node.session(request.sessionID).subscribe_proposals()

        await self._serve("SubPayChProposals", call, subscribe, response)

    async def SubPayChUpdates(self, request: pb.SubpayChUpdatesReq, call: Call) -> None:
        """Incoming updates of a channel, and its closing."""

        def response(update: UpdateNotification) -> pb.SubPayChUpdatesResp:
            error = answer_to(update.error, method="SubPayChUpdates")[1] if update.error else None
            return pb.SubPayChUpdatesResp(notify=update_to(update, error))

        def subscribe() -> Subscription[UpdateNotification]:
            return self._node.session(request.sessionID).channel(request.chID).subscribe_updates()

        await self._serve("SubPayChUpdates", call, subscribe, response)

    async def _serve(
        self,
        method: str,
        call: Call,
        subscribe: Callable[[], Subscription[T]],
        response: Callable[[T], pb.SubPayChProposalsResp | pb.SubPayChUpdatesResp],
    ) -> None:
        if not self._gate.is_open:
            await self._gate.refuse(call)
        try:
            subscription = subscribe()
        except Exception as failure:
            await fail(call, failure, method=method, situation="cannot register subscription")
        await self._gate.run(call, self._forward(method, call, subscription, response), endless=True)

    async def _forward(
        self,
        method: str,
        call: Call,
        subscription: Subscription[T],
        response: Callable[[T], pb.SubPayChProposalsResp | pb.SubPayChUpdatesResp],
    ) -> None:
        try:
            await call.send_initial_metadata(())  # tells the client that the subscription stands
            notifications = aiter(subscription)
            while True:
                try:
                    message = response(await anext(notifications))
                except StopAsyncIteration:
                    return
                except Exception as failure:
                    await fail(call, failure, method=method, situation="subscription failed")
                await call.write(message)
        finally:
            subscription.cancel()


async def fail(call: Call, failure: Exception, *, method: str, situation: str) -> NoReturn:
    """End a stream with status UNKNOWN, the error as text, and as a message in the trailing metadata (API.md 2.1.4)."""
    error, message = answer_to(failure, method=method)
    if message.ByteSize() > MOST_METADATA:  # clients refuse more; what is that long was sent by them
        message = clipped(message)
    trailer = ((ERROR_METADATA, message.SerializeToString()),)
    await call.abort(grpc.StatusCode.UNKNOWN, f"{situation}: {error.embedded[:MOST_TEXT]}", trailer)


def clipped(message: errors_pb2.MsgError) -> errors_pb2.MsgError:
    """`message` with its texts cut."""
    short = errors_pb2.MsgError(category=message.category, code=message.code, message=message.message[:MOST_TEXT])
    which = message.WhichOneof("addInfo")
    if which is not None:
        info = getattr(short, which)
        for field, value in getattr(message, which).ListFields():
            if isinstance(value, str | int):
                setattr(info, field.name, value[:MOST_TEXT] if isinstance(value, str) else value)
        info.SetInParent()
    return short

"""The node as a set of awaitable questions. One method for each method of the public API.

Every method raises ApiFailure for an error the node answers with, and NodeFailure when there is no usable answer.
No call has a time limit: the node bounds each by its own configuration, and an operation that others have seen runs
to its end whatever the client does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar

import grpc

from .endpoint import Endpoint
from .escape import shown
from .failures import ApiFailure, NodeFailure
from .pb import errors_pb2
from .pb import payment_service_pb2 as pb
from .pb.payment_service_pb2_grpc import Payment_APIStub
from .values import Balances, Channel, Payment, Peer, Proposal, Update, api_failure, channels

if TYPE_CHECKING:
    from .pb.payment_service_pb2_grpc import Payment_APIAsyncStub

S = TypeVar("S")
T = TypeVar("T")
S_co = TypeVar("S_co", covariant=True)

ERROR_METADATA: Final = "perun-error-bin"
"""Trailing metadata with the error of a subscription that could not be set up."""
CONFIRMATION_SECONDS: Final = 2.0
"""How long to wait for the word that a subscription stands; a node that never says so is believed."""


class _Answer(Protocol[S_co]):
    """What responses with an error member have in common."""

    @property
    def msgSuccess(self) -> S_co: ...
    @property
    def error(self) -> errors_pb2.MsgError: ...
    def HasField(self, field_name: Any, /) -> bool: ...


class Notifications(Generic[T]):
    """What a subscription brings. Iteration ends when the node ends the subscription."""

    def __init__(self, call: Any, read: Callable[[Any], T], node: Node) -> None:
        self._call = call  # gRPC's published types lack much of what a call has
        self._read = read
        self._node = node

    async def confirmed(self) -> Self:
        """This, once the node confirmed the subscription. Raises: ApiFailure, NodeFailure."""
        connected = asyncio.ensure_future(self._call.wait_for_connection())
        try:
            await asyncio.wait([connected], timeout=CONFIRMATION_SECONDS)
            if connected.done():
                connected.result()
        except grpc.RpcError as error:
            raise self._node.failure(error) from error
        finally:
            if not connected.done():
                connected.cancel()
        return self

    async def __aiter__(self) -> AsyncIterator[T]:
        """Raises: ApiFailure, NodeFailure."""
        try:
            while message := await self._call.read():
                if message.HasField("error"):
                    raise api_failure(message.error)
                if not message.HasField("notify"):
                    raise NodeFailure("the node sent a notification without content")
                yield self._read(message.notify)
        except grpc.RpcError as error:
            raise self._node.failure(error) from error

    def cancel(self) -> None:
        """Leave; the node keeps what comes later for the next subscription."""
        self._call.cancel()


class Node:
    """A connection to a node. Enter it in a running loop; leaving closes it."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises: UsageFailure."""
        self.endpoint = endpoint
        self._channel = endpoint.dial()
        self._stub: Payment_APIAsyncStub = Payment_APIStub(self._channel)
        self._metadata = endpoint.metadata or None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and every subscription on it."""
        await self._channel.close(None)

    def failure(self, error: grpc.RpcError) -> ApiFailure | NodeFailure:
        """What a status means for the user."""
        if not isinstance(error, grpc.aio.AioRpcError):
            return NodeFailure(f"the connection failed: {shown(str(error))}")
        trailer: Any = error.trailing_metadata()
        told = dict(trailer or ()).get(ERROR_METADATA)
        if isinstance(told, bytes):
            return api_failure(errors_pb2.MsgError.FromString(told))
        status, details = error.code().name, shown(error.details() or "no details")
        where = shown(self.endpoint.written)
        match status:
            case "UNAVAILABLE":
                text = f"the node at {where} cannot be reached: {details}"
            case "UNAUTHENTICATED" | "PERMISSION_DENIED":
                text = f"the node at {where} refuses the access token: {details}"
            case "UNIMPLEMENTED":
                text = f"the node at {where} does not offer this: {details}"
            case _:
                text = f"the node at {where} answered {status}: {details}"
        return NodeFailure(text, status=status)

    async def _ask(self, method: Callable[..., Any], request: object) -> Any:
        try:
            return await method(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self.failure(error) from error

    async def _success(self, method: Callable[..., Any], request: object) -> Any:
        answer: _Answer[Any] = await self._ask(method, request)
        if answer.HasField("error"):
            raise api_failure(answer.error)
        if not answer.HasField("msgSuccess"):
            raise NodeFailure("the node sent an answer without content")
        return answer.msgSuccess

    async def time(self) -> int:
        """The node's clock, Unix seconds."""
        told: pb.TimeResp = await self._ask(self._stub.Time, pb.TimeReq())
        return told.time

    async def config(self) -> pb.GetConfigResp:
        """How the node is configured."""
        told: pb.GetConfigResp = await self._ask(self._stub.GetConfig, pb.GetConfigReq())
        return told

    async def services(self) -> tuple[str, ...]:
        """Names of the services it offers."""
        told: pb.HelpResp = await self._ask(self._stub.Help, pb.HelpReq())
        return tuple(told.apis)

    async def register_currency(self, token: str, asset: str) -> str:
        """The symbol of the currency."""
        request = pb.RegisterCurrencyReq(tokenAddr=token, assetAddr=asset)
        told: pb.RegisterCurrencyResp.MsgSuccess = await self._success(self._stub.RegisterCurrency, request)
        return told.symbol

    async def deploy_asset(self, session: str, token: str) -> str:
        """The address of a new asset holder for a token."""
        request = pb.DeployAssetERC20Req(sessionID=session, tokenAddr=token)
        told: pb.DeployAssetERC20Resp.MsgSuccess = await self._success(self._stub.DeployAssetERC20, request)
        return told.AssetAddr

    async def open_session(self, config_file: str) -> tuple[str, tuple[Channel, ...]]:
        """Session ID and the channels it has from earlier."""
        request = pb.OpenSessionReq(configFile=config_file)
        told: pb.OpenSessionResp.MsgSuccess = await self._success(self._stub.OpenSession, request)
        return told.sessionID, channels(told.restoredChs)

    async def close_session(self, session: str, *, force: bool) -> tuple[Channel, ...]:
        """The channels that stay open."""
        request = pb.CloseSessionReq(sessionID=session, force=force)
        told: pb.CloseSessionResp.MsgSuccess = await self._success(self._stub.CloseSession, request)
        return channels(told.openPayChsInfo)

    async def add_peer(self, session: str, peer: Peer) -> None:
        request = pb.AddPeerIDReq(sessionID=session, peerID=peer.message())
        await self._success(self._stub.AddPeerID, request)

    async def get_peer(self, session: str, alias: str) -> Peer:
        request = pb.GetPeerIDReq(sessionID=session, alias=alias)
        told: pb.GetPeerIDResp.MsgSuccess = await self._success(self._stub.GetPeerID, request)
        return Peer.read(told.peerID)

    async def open_channel(self, session: str, balances: Balances, challenge: int) -> Channel:
        """Propose a channel; returns when both have deposited."""
        request = pb.OpenPayChReq(sessionID=session, openingBalInfo=balances.message(), challengeDurSecs=challenge)
        told: pb.OpenPayChResp.MsgSuccess = await self._success(self._stub.OpenPayCh, request)
        return Channel.read(told.openedPayChInfo)

    async def open_channels(self, session: str) -> tuple[Channel, ...]:
        """Channels that are not closed, in opening order."""
        request = pb.GetPayChsInfoReq(sessionID=session)
        told: pb.GetPayChsInfoResp.MsgSuccess = await self._success(self._stub.GetPayChsInfo, request)
        return channels(told.openPayChsInfo)

    async def channel(self, session: str, channel: str) -> Channel:
        """The last agreed state."""
        request = pb.GetPayChInfoReq(sessionID=session, chID=channel)
        told: pb.GetPayChInfoResp.MsgSuccess = await self._success(self._stub.GetPayChInfo, request)
        return Channel.read(told.payChInfo)

    async def close_channel(self, session: str, channel: str) -> Channel:
        """Close and settle; returns when the user's share is withdrawn."""
        request = pb.ClosePayChReq(sessionID=session, chID=channel)
        told: pb.ClosePayChResp.MsgSuccess = await self._success(self._stub.ClosePayCh, request)
        return Channel.read(told.closedPayChInfo)

    async def pay(self, session: str, channel: str, payments: Iterable[Payment]) -> Channel:
        """Propose one update with all payments and wait for the peer's answer."""
        request = pb.SendPayChUpdateReq(
            sessionID=session, chID=channel, payments=[payment.message() for payment in payments]
        )
        told: pb.SendPayChUpdateResp.MsgSuccess = await self._success(self._stub.SendPayChUpdate, request)
        return Channel.read(told.updatedPayChInfo)

    async def proposals(self, session: str) -> Notifications[Proposal]:
        """Subscribe to proposals; returns when the subscription stands."""
        call = self._stub.SubPayChProposals(pb.SubPayChProposalsReq(sessionID=session), metadata=self._metadata)
        return await Notifications(call, Proposal.read, self).confirmed()

    async def unsubscribe_proposals(self, session: str) -> None:
        await self._success(self._stub.UnsubPayChProposals, pb.UnsubPayChProposalsReq(sessionID=session))

    async def respond_proposal(self, session: str, proposal: str, *, accept: bool) -> Channel | None:
        """Answer a proposal; an accepted one returns when both have deposited, a rejected one gives nothing."""
        request = pb.RespondPayChProposalReq(sessionID=session, proposalID=proposal, accept=accept)
        told: pb.RespondPayChProposalResp.MsgSuccess = await self._success(self._stub.RespondPayChProposal, request)
        return Channel.read(told.openedPayChInfo) if accept else None

    async def updates(self, session: str, channel: str) -> Notifications[Update]:
        """Subscribe to updates of a channel; returns when the subscription stands."""
        call = self._stub.SubPayChUpdates(
            pb.SubpayChUpdatesReq(sessionID=session, chID=channel), metadata=self._metadata
        )
        return await Notifications(call, Update.read, self).confirmed()

    async def unsubscribe_updates(self, session: str, channel: str) -> None:
        request = pb.UnsubPayChUpdatesReq(sessionID=session, chID=channel)
        await self._success(self._stub.UnsubPayChUpdates, request)

    async def respond_update(self, session: str, channel: str, update: str, *, accept: bool) -> Channel:
        """Answer an update; an accepted final one returns when the channel is settled."""
        request = pb.RespondPayChUpdateReq(sessionID=session, chID=channel, updateID=update, accept=accept)
        told: pb.RespondPayChUpdateResp.MsgSuccess = await self._success(self._stub.RespondPayChUpdate, request)
        return Channel.read(told.updatedPayChInfo)

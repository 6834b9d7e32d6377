"""A client of the node's published API for tests and benchmarks: plain values in and out, errors raised.

It speaks to a node over the network like anybody's client does. `Client` has a method for each call of Payment_API;
`User` adds what a person remembers between calls. `Client.stub` is the bare stub, for requests that are malformed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import grpc.aio

from perun_api_grpc.pb import errors_pb2, nodetypes_pb2
from perun_api_grpc.pb import payment_service_pb2 as pb
from perun_api_grpc.pb.payment_service_pb2_grpc import Payment_APIStub

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Balances = Mapping[str, tuple[str, ...]]
Info = Mapping[str, object]
PEER_FIELDS = ("alias", "offChainAddress", "commAddress", "commType")


class Peer(NamedTuple):
    """A peer ID."""

    alias: str
    off_chain_address: str
    comm_address: str
    comm_type: str = "tcp"


class Channel(NamedTuple):
    """A channel's state; `balances[currency]` is in the order of `parts`."""

    id: str
    parts: tuple[str, ...]
    balances: Balances
    version: str


class Proposal(NamedTuple):
    """An incoming channel proposal."""

    id: str
    parts: tuple[str, ...]
    balances: Balances
    challenge_duration: int
    expiry: int


class Update(NamedTuple):
    """An incoming update; `type` is open, final or closed."""

    id: str
    channel: Channel
    type: str
    expiry: int
    error: ClientError | None


class ClientError(Exception):
    """An error the node answered with; `info` holds the fields of its additional information."""

    def __init__(self, code: int, info: Info, message: str) -> None:
        super().__init__(f"{code} {dict(info)}: {message}")
        self.code, self.info, self.message = code, info, message

    @classmethod
    def of(cls, error: errors_pb2.MsgError) -> ClientError:
        """The error a message tells."""
        kind = error.WhichOneof("addInfo")
        info: dict[str, object] = {}
        if kind is not None:
            more = getattr(error, kind)
            info = {field.name: getattr(more, field.name) for field in more.DESCRIPTOR.fields}
        if "chs" in info:
            info["chs"] = tuple(channel_of(each) for each in error.ErrInfoFailedPreCondUnclosedChs.chs)
        if "ContractErrInfos" in info:
            contracts = error.ErrInfoInvalidContracts.ContractErrInfos
            info["ContractErrInfos"] = tuple((each.name, each.address, each.error) for each in contracts)
        return cls(int(error.code), info, error.message)


def rows_of(info: nodetypes_pb2.BalInfo) -> dict[str, tuple[str, ...]]:
    """Balances by currency."""
    return {currency: tuple(row.bal) for currency, row in zip(info.currencies, info.bals, strict=True)}


def channel_of(info: nodetypes_pb2.PayChInfo) -> Channel:
    """A channel as a value."""
    return Channel(info.chID, tuple(info.balInfo.parts), rows_of(info.balInfo), info.version)


def bal_info(parts: Iterable[str], balances: Balances) -> nodetypes_pb2.BalInfo:
    """Balances as a message."""
    rows = [nodetypes_pb2.BalInfo.bal(bal=row) for row in balances.values()]
    return nodetypes_pb2.BalInfo(currencies=list(balances), parts=list(parts), bals=rows)


class Stream(Generic[T]):
    """Notifications of one subscription; iteration ends when the node ends the stream with OK."""

    def __init__(self, call: object, convert: Callable[..., T]) -> None:
        self.call: Any = call  # the published types of gRPC lack much of what a call has
        self._convert = convert

    async def __anext__(self) -> T:
        """Raises: StopAsyncIteration, ClientError, grpc.aio.AioRpcError."""
        try:
            message = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise stream_error(error) from error
        if not message:  # gRPC's end of file
            raise StopAsyncIteration
        return self._convert(message.notify)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def confirmed(self) -> Self:
        """This stream, when the node confirmed the subscription. Raises: ClientError, grpc.aio.AioRpcError."""
        try:
            await self.call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise stream_error(error) from error
        return self

    async def next(self, timeout: float = 30) -> T:
        """The next notification within `timeout` seconds. Raises: TimeoutError, and as iteration does."""
        async with asyncio.timeout(timeout):
            return await anext(self)

    async def ended(self, timeout: float = 30) -> None:
        """Until the stream ended with OK. Raises: AssertionError when another notification comes."""
        async with asyncio.timeout(timeout):
            async for notification in self:
                raise AssertionError(f"stream goes on with {notification}")

    def cancel(self) -> None:
        """Go away without unsubscribing."""
        self.call.cancel()


def proposal_of(notify: pb.SubPayChProposalsResp.Notify) -> Proposal:
    """A proposal as a value."""
    info = notify.openingBalInfo
    return Proposal(notify.proposalID, tuple(info.parts), rows_of(info), notify.challengeDurSecs, notify.expiry)


def update_of(notify: pb.SubPayChUpdatesResp.Notify) -> Update:
    """An update as a value."""
    kind = pb.SubPayChUpdatesResp.Notify.ChUpdateType.Name(notify.Type)
    error = ClientError.of(notify.error) if notify.HasField("error") else None
    return Update(notify.updateID, channel_of(notify.proposedPayChInfo), kind, notify.expiry, error)


class Answer(Protocol[T_co]):
    """What all responses with an error member look like."""

    @property
    def msgSuccess(self) -> T_co: ...
    @property
    def error(self) -> errors_pb2.MsgError: ...
    def WhichOneof(self, oneof_group: Literal["response"], /) -> str | None: ...


async def success(call: Awaitable[Answer[T]]) -> T:
    """The success member of the answer to `call`. Raises: ClientError."""
    answer = await call
    if answer.WhichOneof("response") != "msgSuccess":
        raise ClientError.of(answer.error)
    return answer.msgSuccess


def stream_error(error: grpc.aio.AioRpcError) -> Exception:
    """The application's error behind a stream's status, or the status itself."""
    trailer: Any = error.trailing_metadata()
    told = dict(trailer).get("perun-error-bin")
    return error if told is None else ClientError.of(errors_pb2.MsgError.FromString(told))


class Client:
    """A connection to a node. Every method raises ClientError for what the node answers as an error."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        # A connection of its own: one that is shared with an earlier client would still be sulking after a restart.
        own = ("grpc.use_local_subchannel_pool", 1)
        self.channel = grpc.aio.insecure_channel(f"{host}:{port}", options=(own,))
        self.stub = Payment_APIStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.channel.close(None)

    async def time(self) -> int:
        return (await self.stub.Time(pb.TimeReq())).time

    async def help(self) -> tuple[str, ...]:
        return tuple((await self.stub.Help(pb.HelpReq())).apis)

    async def config(self) -> pb.GetConfigResp:
        return await self.stub.GetConfig(pb.GetConfigReq())

    async def register_currency(self, token: str, asset: str) -> str:
        request = pb.RegisterCurrencyReq(tokenAddr=token, assetAddr=asset)
        return (await success(self.stub.RegisterCurrency(request))).symbol

    async def open_session(self, config_file: str) -> tuple[str, tuple[Channel, ...]]:
        opened = await success(self.stub.OpenSession(pb.OpenSessionReq(configFile=config_file)))
        return opened.sessionID, tuple(map(channel_of, opened.restoredChs))

    async def close_session(self, session: str, *, force: bool) -> tuple[Channel, ...]:
        closed = await success(self.stub.CloseSession(pb.CloseSessionReq(sessionID=session, force=force)))
        return tuple(map(channel_of, closed.openPayChsInfo))

    async def add_peer(self, session: str, peer: Peer) -> None:
        peer_id = nodetypes_pb2.PeerID(**dict(zip(PEER_FIELDS, peer, strict=True)))
        await success(self.stub.AddPeerID(pb.AddPeerIDReq(sessionID=session, peerID=peer_id)))

    async def get_peer(self, session: str, alias: str) -> Peer:
        peer_id = (await success(self.stub.GetPeerID(pb.GetPeerIDReq(sessionID=session, alias=alias)))).peerID
        return Peer(*(getattr(peer_id, field) for field in PEER_FIELDS))

    async def deploy_asset(self, session: str, token: str) -> str:
        request = pb.DeployAssetERC20Req(sessionID=session, tokenAddr=token)
        return (await success(self.stub.DeployAssetERC20(request))).AssetAddr

    async def open_channel(self, session: str, parts: Iterable[str], balances: Balances, duration: int) -> Channel:
        opening = bal_info(parts, balances)
        request = pb.OpenPayChReq(sessionID=session, openingBalInfo=opening, challengeDurSecs=duration)
        return channel_of((await success(self.stub.OpenPayCh(request))).openedPayChInfo)

    async def channels(self, session: str) -> tuple[Channel, ...]:
        answer = await success(self.stub.GetPayChsInfo(pb.GetPayChsInfoReq(sessionID=session)))
        return tuple(map(channel_of, answer.openPayChsInfo))

    async def proposals(self, session: str) -> Stream[Proposal]:
        """Returns when the node confirmed the subscription."""
        call = self.stub.SubPayChProposals(pb.SubPayChProposalsReq(sessionID=session))
        return await Stream(call, proposal_of).confirmed()

    async def unsubscribe_proposals(self, session: str) -> None:
        await success(self.stub.UnsubPayChProposals(pb.UnsubPayChProposalsReq(sessionID=session)))

    async def respond_proposal(self, session: str, proposal: str, *, accept: bool) -> Channel:
        request = pb.RespondPayChProposalReq(sessionID=session, proposalID=proposal, accept=accept)
        return channel_of((await success(self.stub.RespondPayChProposal(request))).openedPayChInfo)

    async def pay(self, session: str, channel: str, payments: Iterable[tuple[str, str, str]]) -> Channel:
        """Payments are (currency, payee, amount)."""
        items = [nodetypes_pb2.Payment(currency=each[0], payee=each[1], amount=each[2]) for each in payments]
        request = pb.SendPayChUpdateReq(sessionID=session, chID=channel, payments=items)
        return channel_of((await success(self.stub.SendPayChUpdate(request))).updatedPayChInfo)

    async def updates(self, session: str, channel: str) -> Stream[Update]:
        """Returns when the node confirmed the subscription."""
        call = self.stub.SubPayChUpdates(pb.SubpayChUpdatesReq(sessionID=session, chID=channel))
        return await Stream(call, update_of).confirmed()

    async def unsubscribe_updates(self, session: str, channel: str) -> None:
        await success(self.stub.UnsubPayChUpdates(pb.UnsubPayChUpdatesReq(sessionID=session, chID=channel)))

    async def respond_update(self, session: str, channel: str, update: str, *, accept: bool) -> Channel:
        request = pb.RespondPayChUpdateReq(sessionID=session, chID=channel, updateID=update, accept=accept)
        return channel_of((await success(self.stub.RespondPayChUpdate(request))).updatedPayChInfo)

    async def info(self, session: str, channel: str) -> Channel:
        answer = await success(self.stub.GetPayChInfo(pb.GetPayChInfoReq(sessionID=session, chID=channel)))
        return channel_of(answer.payChInfo)

    async def close_channel(self, session: str, channel: str) -> Channel:
        answer = await success(self.stub.ClosePayCh(pb.ClosePayChReq(sessionID=session, chID=channel)))
        return channel_of(answer.closedPayChInfo)


class User(NamedTuple):
    """A person with an open session."""

    client: Client
    session: str
    restored: tuple[Channel, ...] = ()

    @classmethod
    async def open(cls, client: Client, session_file: str) -> User:
        """Open a session."""
        return cls(client, *await client.open_session(session_file))

    async def propose(self, peer: str, balances: Balances, duration: int = 10) -> Channel:
        """Open a channel; balances are (own, peer's) by currency."""
        return await self.client.open_channel(self.session, ("self", peer), balances, duration)

    async def answer_proposal(self, *, accept: bool, timeout: float = 30) -> Channel:
        """Wait for a proposal and answer it."""
        proposals = await self.client.proposals(self.session)
        proposal = await proposals.next(timeout)
        await self.client.unsubscribe_proposals(self.session)
        return await self.client.respond_proposal(self.session, proposal.id, accept=accept)

    async def pay(self, channel: str, payments: Iterable[tuple[str, str, str]]) -> Channel:
        """Propose an update with payments (currency, payee, amount)."""
        return await self.client.pay(self.session, channel, payments)

    async def answer_update(self, channel: str, *, accept: bool, timeout: float = 30) -> Channel:
        """Wait for an update and answer it."""
        updates = await self.client.updates(self.session, channel)
        update = await updates.next(timeout)
        await self.client.unsubscribe_updates(self.session, channel)
        return await self.client.respond_update(self.session, channel, update.id, accept=accept)

    async def info(self, channel: str) -> Channel:
        """The channel's last agreed state."""
        return await self.client.info(self.session, channel)

    async def close(self, channel: str) -> Channel:
        """Close the channel; returns when the funds are withdrawn."""
        return await self.client.close_channel(self.session, channel)

    async def leave(self, *, force: bool = False) -> tuple[Channel, ...]:
        """Close the session."""
        return await self.client.close_session(self.session, force=force)

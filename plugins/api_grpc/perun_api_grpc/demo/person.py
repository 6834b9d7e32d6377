"""A person with a session on some node: a plain client of the published API that remembers its IDs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc.aio

from ..pb import nodetypes_pb2
from ..pb import payment_service_pb2 as pb
from ..pb.payment_service_pb2_grpc import Payment_APIStub
from .failure import DemoFailed
from .money import units

if TYPE_CHECKING:
    from ..pb.payment_service_pb2_grpc import Payment_APIAsyncStub

CALL_SECONDS: Final = 120.0
"""Longest wait for one answer; opening and closing wait for blocks."""

REJECTED_BY_PEER: Final = 102


class Refused(Exception):
    """The peer said no."""


@dataclass(frozen=True)
class Channel:
    """A channel as one of its two people sees it; `balances[currency]` is (own, peer's) in base units."""

    id: str
    version: int
    balances: Mapping[str, tuple[int, int]]


@dataclass(eq=False)
class Person:
    """Somebody who uses the API. Every method raises DemoFailed when the node answers with an error."""

    name: str
    stub: Payment_APIAsyncStub
    session: str
    _proposals: AsyncIterator[Any] | None = None
    _updates: dict[str, AsyncIterator[Any]] = field(default_factory=dict)

    @classmethod
    async def arrive(cls, name: str, connection: grpc.aio.Channel, session_file: str) -> Person:
        """Open the session of a file that lies at the node, and listen to proposals."""
        stub = Payment_APIStub(connection)
        opened = await answered(
            name, stub.OpenSession(pb.OpenSessionReq(configFile=session_file), timeout=CALL_SECONDS)
        )
        person = cls(name, stub, opened.sessionID)
        call = stub.SubPayChProposals(pb.SubPayChProposalsReq(sessionID=person.session))
        person._proposals = await confirmed(name, call)
        return person

    async def look_up(self, alias: str) -> nodetypes_pb2.PeerID:
        """The peer that this person knows as `alias`."""
        request = pb.GetPeerIDReq(sessionID=self.session, alias=alias)
        found = await answered(self.name, self.stub.GetPeerID(request, timeout=CALL_SECONDS))
        peer: nodetypes_pb2.PeerID = found.peerID
        return peer

    async def propose(self, peer: str, deposits: Mapping[str, tuple[str, str]], *, challenge_seconds: int) -> Channel:
        """Propose a channel with `deposits` (own, peer's) by currency; returns when both have paid in."""
        rows = [nodetypes_pb2.BalInfo.bal(bal=row) for row in deposits.values()]
        opening = nodetypes_pb2.BalInfo(currencies=list(deposits), parts=["self", peer], bals=rows)
        request = pb.OpenPayChReq(sessionID=self.session, openingBalInfo=opening, challengeDurSecs=challenge_seconds)
        opened = await answered(self.name, self.stub.OpenPayCh(request, timeout=CALL_SECONDS))
        return await self._enter(opened.openedPayChInfo)

    async def accept_proposal(self) -> Channel:
        """Wait for a proposal and accept it; returns when both have paid in."""
        assert self._proposals is not None
        proposal = await received(self.name, self._proposals)
        request = pb.RespondPayChProposalReq(sessionID=self.session, proposalID=proposal.notify.proposalID, accept=True)
        opened = await answered(self.name, self.stub.RespondPayChProposal(request, timeout=CALL_SECONDS))
        return await self._enter(opened.openedPayChInfo)

    async def _enter(self, info: nodetypes_pb2.PayChInfo) -> Channel:
        call = self.stub.SubPayChUpdates(pb.SubpayChUpdatesReq(sessionID=self.session, chID=info.chID))
        self._updates[info.chID] = await confirmed(self.name, call)
        return channel_of(info)

    async def pay(self, channel: str, payee: str, amounts: Mapping[str, str]) -> Channel:
        """Propose one update with all `amounts`; with payee ``self`` it is a request to be paid.

        Raises: Refused when the peer says no.
        """
        payments = [
            nodetypes_pb2.Payment(currency=currency, payee=payee, amount=amount) for currency, amount in amounts.items()
        ]
        request = pb.SendPayChUpdateReq(sessionID=self.session, chID=channel, payments=payments)
        paid = await answered(self.name, self.stub.SendPayChUpdate(request, timeout=CALL_SECONDS))
        return channel_of(paid.updatedPayChInfo)

    async def answer(self, channel: str, *, accept: bool) -> Channel:
        """Wait for an update and answer it; an accepted final one returns when the money is withdrawn."""
        update = (await received(self.name, self._updates[channel])).notify
        request = pb.RespondPayChUpdateReq(
            sessionID=self.session, chID=channel, updateID=update.updateID, accept=accept
        )
        answered_update = await answered(self.name, self.stub.RespondPayChUpdate(request, timeout=CALL_SECONDS))
        return channel_of(answered_update.updatedPayChInfo)

    async def close(self, channel: str) -> Channel:
        """Ask the peer to end the channel; returns when the money is withdrawn."""
        request = pb.ClosePayChReq(sessionID=self.session, chID=channel)
        closed = await answered(self.name, self.stub.ClosePayCh(request, timeout=CALL_SECONDS))
        return channel_of(closed.closedPayChInfo)

    async def leave(self) -> None:
        """Close the session, which is refused while a channel is open."""
        request = pb.CloseSessionReq(sessionID=self.session, force=False)
        await answered(self.name, self.stub.CloseSession(request, timeout=CALL_SECONDS))


async def answered(name: str, call: Awaitable[Any]) -> Any:
    """What the node answered in success. Raises: Refused, DemoFailed."""
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        raise DemoFailed(f"{name}'s node does not answer: {error.code().name}: {error.details()}") from error
    if response.WhichOneof("response") == "msgSuccess":
        return response.msgSuccess
    if int(response.error.code) == REJECTED_BY_PEER:
        raise Refused(response.error.message)
    raise DemoFailed(f"{name}'s node answers with error {int(response.error.code)}: {response.error.message}")


async def confirmed(name: str, call: Any) -> AsyncIterator[Any]:
    """The messages of a subscription, once the node confirmed that it stands. Raises: DemoFailed."""
    try:
        await call.wait_for_connection()
    except grpc.aio.AioRpcError as error:
        raise DemoFailed(f"{name} cannot subscribe: {error.details()}") from error
    messages: AsyncIterator[Any] = aiter(call)
    return messages


async def received(name: str, messages: AsyncIterator[Any]) -> Any:
    """The next message of a subscription. Raises: DemoFailed when it ends instead."""
    try:
        return await anext(messages)
    except StopAsyncIteration:
        raise DemoFailed(f"{name}'s subscription ended while something was expected") from None
    except grpc.aio.AioRpcError as error:
        raise DemoFailed(f"{name}'s subscription broke: {error.code().name}: {error.details()}") from error


def channel_of(info: nodetypes_pb2.PayChInfo) -> Channel:
    """A channel with exact amounts, own first."""
    own = list(info.balInfo.parts).index("self")
    balances = {
        currency: (units(row.bal[own]), units(row.bal[1 - own]))
        for currency, row in zip(info.balInfo.currencies, info.balInfo.bals, strict=True)
    }
    return Channel(info.chID, int(info.version), balances)

"""Subscriptions: delivered in order, freed when the client leaves, ended with the right status."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from perun_api_grpc.pb import errors_pb2
from perun_api_grpc.pb import payment_service_pb2 as pb
from perun_api_grpc.pb.payment_service_pb2_grpc import Payment_APIStub
from perun_core.errors import FailedPrecondition, TransactionTimedOut
from perun_core.ports.api import ProposalNotification, UpdateNotification, UpdateType

from .conftest import Serve
from .scripted import CHANNEL, SESSION, ScriptedNode
from .test_payment import BALANCES, BALANCES_MSG, INFO, INFO_MSG

PROPOSALS = pb.SubPayChProposalsReq(sessionID=SESSION)
UPDATES = pb.SubpayChUpdatesReq(sessionID=SESSION, chID=CHANNEL)


def proposal(number: int) -> ProposalNotification:
    return ProposalNotification(f"p{number}", BALANCES, 10, 1_700_000_010)


def update(number: int, type: UpdateType = UpdateType.OPEN) -> UpdateNotification:
    return UpdateNotification(f"{CHANNEL}_{number}", INFO, type, 1_700_000_010)


async def next_of(stream: Any) -> Any:
    return await asyncio.wait_for(stream.read(), 10)


async def status_of(stream: Any) -> grpc.StatusCode:
    return await asyncio.wait_for(stream.code(), 10)


async def test_a_proposal_is_notified_with_all_it_says(stub: Any, node: ScriptedNode) -> None:
    stream = stub.SubPayChProposals(PROPOSALS)
    node.proposals.notify(proposal(1))
    expected = pb.SubPayChProposalsResp.Notify(
        proposalID="p1", openingBalInfo=BALANCES_MSG, challengeDurSecs=10, expiry=1_700_000_010
    )
    assert await next_of(stream) == pb.SubPayChProposalsResp(notify=expected)


@pytest.mark.parametrize("type", UpdateType)
async def test_an_update_is_notified_with_all_it_says(stub: Any, node: ScriptedNode, type: UpdateType) -> None:
    stream = stub.SubPayChUpdates(UPDATES)
    node.updates.notify(update(8, type))
    expected = pb.SubPayChUpdatesResp.Notify(
        updateID=f"{CHANNEL}_8", proposedPayChInfo=INFO_MSG, Type=type.value, expiry=1_700_000_010
    )
    assert await next_of(stream) == pb.SubPayChUpdatesResp(notify=expected)


async def test_a_closing_that_failed_is_notified_with_its_error_and_is_the_last_message(
    stub: Any, node: ScriptedNode
) -> None:
    stream = stub.SubPayChUpdates(UPDATES)
    await stream.wait_for_connection()
    failure = TransactionTimedOut("withdraw", "0xff", "1m0s")
    node.updates.notify(UpdateNotification(f"{CHANNEL}_8_closed", INFO, UpdateType.CLOSED, 0, failure))
    notify = (await next_of(stream)).notify
    node.updates.end()

    assert notify.error.code == 301
    assert notify.error.ErrInfoTxTimedOut.txType == "withdraw"
    assert await next_of(stream) is grpc.aio.EOF
    assert await status_of(stream) == grpc.StatusCode.OK


async def test_notifications_arrive_in_order(stub: Any, node: ScriptedNode) -> None:
    node.updates.notify(*(update(number) for number in range(100)))
    stream = stub.SubPayChUpdates(UPDATES)
    node.updates.notify(*(update(number) for number in range(100, 200)))
    received = [(await next_of(stream)).notify.updateID for _ in range(200)]
    assert received == [f"{CHANNEL}_{number}" for number in range(200)]


async def test_headers_confirm_a_subscription_before_anything_is_notified(stub: Any, node: ScriptedNode) -> None:
    stream = stub.SubPayChProposals(PROPOSALS)
    await asyncio.wait_for(stream.wait_for_connection(), 10)
    assert node.proposals.subscription is not None


async def test_a_second_subscription_is_refused_with_text_and_metadata(stub: Any) -> None:
    first = stub.SubPayChUpdates(UPDATES)
    await first.wait_for_connection()

    second = stub.SubPayChUpdates(UPDATES)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second.read()

    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    assert caught.value.details() == (
        f"cannot register subscription: Client 202:updatesSub with ID: {CHANNEL} already exists"
    )
    told = errors_pb2.MsgError.FromString(dict(await second.trailing_metadata())["perun-error-bin"])
    assert told.code == 202
    assert told.ErrInfoResourceExists == errors_pb2.ErrInfoResourceExists(type="updatesSub", id=CHANNEL)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pb.SubpayChUpdatesReq(sessionID="nobody", chID=CHANNEL), "Client 201:session with ID: nobody not found"),
        (pb.SubpayChUpdatesReq(sessionID=SESSION, chID="nothing"), "Client 201:channel with ID: nothing not found"),
    ],
)
async def test_unknown_sessions_and_channels_are_a_status(stub: Any, request_: Any, text: str) -> None:
    stream = stub.SubPayChUpdates(request_)
    assert await status_of(stream) == grpc.StatusCode.UNKNOWN
    assert await stream.details() == f"cannot register subscription: {text}"


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (
            FailedPrecondition("action not allowed on a closed session"),
            "Client 204:action not allowed on a closed session",
        ),
        (RuntimeError("secret"), "Internal 401:internal error, see the log of the node"),
    ],
)
async def test_a_subscription_that_fails_while_it_is_set_up_is_a_status(
    stub: Any, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch, failure: Exception, text: str
) -> None:
    def refuse() -> None:
        raise failure

    monkeypatch.setattr(node, "subscribe_proposals", refuse)
    stream = stub.SubPayChProposals(PROPOSALS)
    assert await status_of(stream) == grpc.StatusCode.UNKNOWN
    assert await stream.details() == f"cannot register subscription: {text}"


async def test_a_subscription_that_breaks_later_is_a_status_and_is_dropped(stub: Any, node: ScriptedNode) -> None:
    stream = stub.SubPayChProposals(PROPOSALS)
    node.proposals.notify(proposal(1), RuntimeError("secret"))
    await next_of(stream)
    assert await status_of(stream) == grpc.StatusCode.UNKNOWN
    assert await stream.details() == "subscription failed: Internal 401:internal error, see the log of the node"
    await asyncio.wait_for(node.proposals.dropped.wait(), 10)


async def test_unsubscribing_ends_the_stream_with_ok_and_the_next_subscription_stands_at_once(
    stub: Any, node: ScriptedNode
) -> None:
    first = stub.SubPayChProposals(PROPOSALS)
    await first.wait_for_connection()

    assert (await stub.UnsubPayChProposals(pb.UnsubPayChProposalsReq(sessionID=SESSION))).msgSuccess.success
    second = stub.SubPayChProposals(PROPOSALS)
    node.proposals.notify(proposal(1))

    assert await next_of(first) is grpc.aio.EOF
    assert await status_of(first) == grpc.StatusCode.OK
    assert (await next_of(second)).notify.proposalID == "p1"


async def test_a_client_that_cancels_frees_the_subscription_and_later_notifications_wait_for_the_next(
    stub: Any, node: ScriptedNode
) -> None:
    first = stub.SubPayChUpdates(UPDATES)
    await first.wait_for_connection()
    first.cancel()
    await asyncio.wait_for(node.updates.dropped.wait(), 10)

    node.updates.notify(update(8))
    second = stub.SubPayChUpdates(UPDATES)

    assert (await next_of(second)).notify.updateID == f"{CHANNEL}_8"


async def test_a_client_whose_connection_ends_frees_the_subscription(serve: Serve, node: ScriptedNode) -> None:
    async with serve() as channel:
        stream = Payment_APIStub(channel).SubPayChProposals(PROPOSALS)
        await stream.wait_for_connection()
        await channel.close()
        await asyncio.wait_for(node.proposals.dropped.wait(), 10)


async def test_a_client_that_does_not_read_holds_up_nobody(stub: Any, node: ScriptedNode) -> None:
    stub.SubPayChUpdates(UPDATES)
    proposals = stub.SubPayChProposals(PROPOSALS)
    node.updates.notify(*(update(number) for number in range(5_000)))
    node.proposals.notify(proposal(1))
    assert (await next_of(proposals)).notify.proposalID == "p1"
    assert (await stub.Time(pb.TimeReq())).time == 1_700_000_000


async def test_an_error_that_repeats_a_huge_request_still_reaches_the_client(stub: Any) -> None:
    call = stub.SubPayChProposals(pb.SubPayChProposalsReq(sessionID="A" * 1_000_000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.wait_for_connection()
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    told = errors_pb2.MsgError.FromString(dict(caught.value.trailing_metadata())["perun-error-bin"])  # type: ignore[arg-type]
    assert told.code == 201 and told.ErrInfoResourceNotFound.type == "session"
    assert told.ErrInfoResourceNotFound.id.startswith("AAAA")

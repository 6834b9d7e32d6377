"""Every unary method hands the request to the node as values and the result to the client as the published message."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest

from perun_api_grpc.pb import errors_pb2, nodetypes_pb2
from perun_api_grpc.pb import payment_service_pb2 as pb
from perun_core import errors
from perun_core.ports.api import BalInfo, NodeInfo, OpenedSession, PayChInfo, PaymentItem, PeerIDInfo

from .scripted import CHANNEL, SESSION, Held, ScriptedNode

BALANCES = BalInfo(("ETH", "PRN"), ("self", "bob"), (("1", "2"), ("0.5", "4")))
INFO = PayChInfo(CHANNEL, BALANCES, "7")
OTHER = PayChInfo("0a" * 32, BalInfo(("ETH",), ("bob", "self"), (("3", "0"),)), "0")
NOTHING = PayChInfo("", BalInfo(), "")
BOB = PeerIDInfo("bob", "0x931D387731bBbC988B312206c74F77D004D6B84b", "127.0.0.1:5751", "tcp")

ROW = nodetypes_pb2.BalInfo.bal
BALANCES_MSG = nodetypes_pb2.BalInfo(
    currencies=["ETH", "PRN"], parts=["self", "bob"], bals=[ROW(bal=["1", "2"]), ROW(bal=["0.5", "4"])]
)
INFO_MSG = nodetypes_pb2.PayChInfo(chID=CHANNEL, balInfo=BALANCES_MSG, version="7")
OTHER_MSG = nodetypes_pb2.PayChInfo(
    chID="0a" * 32,
    balInfo=nodetypes_pb2.BalInfo(currencies=["ETH"], parts=["bob", "self"], bals=[ROW(bal=["3", "0"])]),
    version="0",
)
NOTHING_MSG = nodetypes_pb2.PayChInfo(balInfo=nodetypes_pb2.BalInfo())
BOB_MSG = nodetypes_pb2.PeerID(
    alias="bob", offChainAddress=BOB.off_chain_address, commAddress=BOB.comm_address, commType="tcp"
)

Case = tuple[str, Any, tuple[Any, ...], Any, Any]

CASES: list[Case] = [
    (
        "GetConfig",
        pb.GetConfigReq(),
        ("config",),
        NodeInfo("ws://localhost:8545", "0xad", "0xe7", ("tcp",), ("local",)),
        pb.GetConfigResp(
            chainAddress="ws://localhost:8545",
            adjudicator="0xad",
            assetETH="0xe7",
            commTypes=["tcp"],
            idProviderTypes=["local"],
        ),
    ),
    ("Time", pb.TimeReq(), ("time",), 1_700_000_000, pb.TimeResp(time=1_700_000_000)),
    ("Help", pb.HelpReq(), ("services",), ("payment",), pb.HelpResp(apis=["payment"])),
    (
        "RegisterCurrency",
        pb.RegisterCurrencyReq(tokenAddr="0x70", assetAddr="0xa5"),
        ("register_currency", "0x70", "0xa5"),
        "PRN",
        pb.RegisterCurrencyResp.MsgSuccess(symbol="PRN"),
    ),
    (
        "OpenSession",
        pb.OpenSessionReq(configFile="alice/session.yaml"),
        ("open_session", "alice/session.yaml"),
        OpenedSession(SESSION, (INFO, OTHER)),
        pb.OpenSessionResp.MsgSuccess(sessionID=SESSION, restoredChs=[INFO_MSG, OTHER_MSG]),
    ),
    (
        "AddPeerID",
        pb.AddPeerIDReq(sessionID=SESSION, peerID=BOB_MSG),
        ("add_peer_id", BOB),
        None,
        pb.AddPeerIDResp.MsgSuccess(success=True),
    ),
    (
        "GetPeerID",
        pb.GetPeerIDReq(sessionID=SESSION, alias="bob"),
        ("get_peer_id", "bob"),
        BOB,
        pb.GetPeerIDResp.MsgSuccess(peerID=BOB_MSG),
    ),
    (
        "OpenPayCh",
        pb.OpenPayChReq(sessionID=SESSION, openingBalInfo=BALANCES_MSG, challengeDurSecs=10),
        ("open_channel", BALANCES, 10),
        INFO,
        pb.OpenPayChResp.MsgSuccess(openedPayChInfo=INFO_MSG),
    ),
    (
        "GetPayChsInfo",
        pb.GetPayChsInfoReq(sessionID=SESSION),
        ("channels",),
        (OTHER, INFO),
        pb.GetPayChsInfoResp.MsgSuccess(openPayChsInfo=[OTHER_MSG, INFO_MSG]),
    ),
    (
        "RespondPayChProposal",
        pb.RespondPayChProposalReq(sessionID=SESSION, proposalID="p1", accept=True),
        ("respond_proposal", "p1", True),
        INFO,
        pb.RespondPayChProposalResp.MsgSuccess(openedPayChInfo=INFO_MSG),
    ),
    (
        "RespondPayChProposal",
        pb.RespondPayChProposalReq(sessionID=SESSION, proposalID="p1"),
        ("respond_proposal", "p1", False),
        NOTHING,
        pb.RespondPayChProposalResp.MsgSuccess(openedPayChInfo=NOTHING_MSG),
    ),
    (
        "CloseSession",
        pb.CloseSessionReq(sessionID=SESSION, force=True),
        ("close_session", True),
        (INFO,),
        pb.CloseSessionResp.MsgSuccess(openPayChsInfo=[INFO_MSG]),
    ),
    (
        "CloseSession",
        pb.CloseSessionReq(sessionID=SESSION),
        ("close_session", False),
        (),
        pb.CloseSessionResp.MsgSuccess(),
    ),
    (
        "DeployAssetERC20",
        pb.DeployAssetERC20Req(sessionID=SESSION, tokenAddr="0x70"),
        ("deploy_asset_erc20", "0x70"),
        "0xA5",
        pb.DeployAssetERC20Resp.MsgSuccess(AssetAddr="0xA5"),
    ),
    (
        "SendPayChUpdate",
        pb.SendPayChUpdateReq(
            sessionID=SESSION,
            chID=CHANNEL,
            payments=[
                nodetypes_pb2.Payment(currency="ETH", payee="bob", amount="0.1"),
                nodetypes_pb2.Payment(currency="PRN", payee="self", amount="2"),
            ],
        ),
        ("send_update", (PaymentItem("ETH", "bob", "0.1"), PaymentItem("PRN", "self", "2"))),
        INFO,
        pb.SendPayChUpdateResp.MsgSuccess(updatedPayChInfo=INFO_MSG),
    ),
    (
        "RespondPayChUpdate",
        pb.RespondPayChUpdateReq(sessionID=SESSION, chID=CHANNEL, updateID="u1", accept=True),
        ("respond_update", "u1", True),
        INFO,
        pb.RespondPayChUpdateResp.MsgSuccess(updatedPayChInfo=INFO_MSG),
    ),
    (
        "GetPayChInfo",
        pb.GetPayChInfoReq(sessionID=SESSION, chID=CHANNEL),
        ("info",),
        INFO,
        pb.GetPayChInfoResp.MsgSuccess(payChInfo=INFO_MSG),
    ),
    (
        "ClosePayCh",
        pb.ClosePayChReq(sessionID=SESSION, chID=CHANNEL),
        ("close_channel",),
        INFO,
        pb.ClosePayChResp.MsgSuccess(closedPayChInfo=INFO_MSG),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)])
async def test_a_request_reaches_the_node_and_its_result_the_client(stub: Any, node: ScriptedNode, case: Case) -> None:
    method, request, call, result, expected = case
    node.answers[call[0]] = result

    answer = await getattr(stub, method)(request)

    assert node.calls == [call]
    if "Success" in type(expected).__qualname__:
        assert answer.WhichOneof("response") == "msgSuccess"
        answer = answer.msgSuccess
    assert answer == expected


@pytest.mark.parametrize("bals", [[["1"], ["1", "2", "3"]], [], [[]]], ids=["ragged", "none", "an empty row"])
async def test_malformed_balances_reach_the_node_as_they_were_sent(
    stub: Any, node: ScriptedNode, bals: list[list[str]]
) -> None:
    node.answers["open_channel"] = errors.InvalidArgument("openingBalInfo", "", "rows do not match")
    info = nodetypes_pb2.BalInfo(currencies=["ETH"], parts=["self"], bals=[ROW(bal=row) for row in bals])

    answer = await stub.OpenPayCh(pb.OpenPayChReq(sessionID=SESSION, openingBalInfo=info))

    assert answer.error.code == 203
    assert node.calls == [("open_channel", BalInfo(("ETH",), ("self",), tuple(map(tuple, bals))), 0)]


async def test_a_rejected_proposal_is_answered_with_an_empty_but_present_balance_info(
    stub: Any, node: ScriptedNode
) -> None:
    node.answers["respond_proposal"] = NOTHING
    answer = await stub.RespondPayChProposal(pb.RespondPayChProposalReq(sessionID=SESSION, proposalID="p1"))
    assert answer.msgSuccess.HasField("openedPayChInfo")
    assert answer.msgSuccess.openedPayChInfo.HasField("balInfo")


async def test_unsubscribing_without_a_subscription_is_not_found(stub: Any) -> None:
    proposals = await stub.UnsubPayChProposals(pb.UnsubPayChProposalsReq(sessionID=SESSION))
    updates = await stub.UnsubPayChUpdates(pb.UnsubPayChUpdatesReq(sessionID=SESSION, chID=CHANNEL))
    assert proposals.error.ErrInfoResourceNotFound.type == "proposalsSub"
    assert updates.error.ErrInfoResourceNotFound.id == CHANNEL


# ------------------------------------------------------------------------------------------------------------- errors

ERRORS: list[tuple[errors.ApiError, int, Any]] = [
    (
        errors.PeerRequestTimedOut("bob", "10s"),
        0,
        errors_pb2.ErrInfoPeerRequestTimedOut(peerAlias="bob", timeout="10s"),
    ),
    (
        errors.PeerRejected("bob", "rejected by user"),
        0,
        errors_pb2.ErrInfoPeerRejected(peerAlias="bob", reason="rejected by user"),
    ),
    (errors.PeerNotFunded("bob"), 0, errors_pb2.ErrInfoPeerNotFunded(peerAlias="bob")),
    (errors.UserResponseTimedOut(100, 101), 0, errors_pb2.ErrInfoUserResponseTimedOut(expiry=100, receivedAt=101)),
    (errors.ResourceNotFound("peerID", "x"), 1, errors_pb2.ErrInfoResourceNotFound(type="peerID", id="x")),
    (errors.ResourceExists("currency", "PRN"), 1, errors_pb2.ErrInfoResourceExists(type="currency", id="PRN")),
    (
        errors.InvalidArgument("amount", "1..2", "invalid amount", "a decimal number"),
        1,
        errors_pb2.ErrInfoInvalidArgument(name="amount", value="1..2", requirement="a decimal number"),
    ),
    (errors.FailedPrecondition("action not allowed on a closed channel"), 1, None),
    (
        errors.FailedPrecondition("unclosed channels", [INFO, OTHER]),
        1,
        errors_pb2.ErrInfoFailedPreCondUnclosedChs(chs=[INFO_MSG, OTHER_MSG]),
    ),
    (
        errors.InvalidConfig("commAddr", "x", "not an address"),
        1,
        errors_pb2.ErrInfoInvalidConfig(name="commAddr", value="x"),
    ),
    (
        errors.InvalidContracts([("PRN", "0xa5", "no code"), ("adjudicator", "0xad", "unknown code")]),
        1,
        errors_pb2.ErrInfoInvalidContracts(
            ContractErrInfos=[
                errors_pb2.ContractErrInfo(name="PRN", address="0xa5", error="no code"),
                errors_pb2.ContractErrInfo(name="adjudicator", address="0xad", error="unknown code"),
            ]
        ),
    ),
    (
        errors.TransactionTimedOut("fund", "0xff", "1m0s"),
        2,
        errors_pb2.ErrInfoTxTimedOut(txType="fund", txID="0xff", txTimeout="1m0s"),
    ),
    (errors.ChainUnreachable("ws://x"), 2, errors_pb2.ErrInfoChainNotReachable(chainURL="ws://x")),
    (errors.UnknownInternal("the account cannot pay its gas"), 3, None),
    (
        errors.PeerRejected("bob", "no").within("proposing channel"),
        0,
        errors_pb2.ErrInfoPeerRejected(peerAlias="bob", reason="no"),
    ),
]


@pytest.mark.parametrize(("error", "category", "info"), ERRORS, ids=lambda value: type(value).__name__)
async def test_an_error_is_told_with_category_code_message_and_information(
    stub: Any, node: ScriptedNode, error: errors.ApiError, category: int, info: Any
) -> None:
    node.answers["close_session"] = error

    answer = await stub.CloseSession(pb.CloseSessionReq(sessionID=SESSION))

    assert answer.WhichOneof("response") == "error"
    told = answer.error
    assert (told.category, told.code, told.message) == (category, error.code, error.message)
    kind = told.WhichOneof("addInfo")
    assert (kind and getattr(told, kind)) == info
    assert kind == (info and type(info).__name__)


def test_every_published_code_has_a_case() -> None:
    assert {error.code for error, _, _ in ERRORS} == set(errors_pb2.ErrorCode.values()) - {0}


async def test_unknown_sessions_and_channels_are_named(stub: Any) -> None:
    session = (await stub.GetPayChInfo(pb.GetPayChInfoReq(sessionID="nobody", chID=CHANNEL))).error
    channel = (await stub.GetPayChInfo(pb.GetPayChInfoReq(sessionID=SESSION, chID="nothing"))).error
    assert session.ErrInfoResourceNotFound == errors_pb2.ErrInfoResourceNotFound(type="session", id="nobody")
    assert channel.ErrInfoResourceNotFound == errors_pb2.ErrInfoResourceNotFound(type="channel", id="nothing")


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("AddPeerID", pb.AddPeerIDReq(sessionID=SESSION), "peerID"),
        ("OpenPayCh", pb.OpenPayChReq(sessionID=SESSION, challengeDurSecs=10), "openingBalInfo"),
    ],
)
async def test_a_missing_part_of_a_request_is_an_invalid_argument(
    stub: Any, node: ScriptedNode, method: str, request_: Any, field: str
) -> None:
    node.answers["channels"] = ()
    error = (await getattr(stub, method)(request_)).error
    assert (error.code, error.ErrInfoInvalidArgument.name) == (203, field)

    node.answers["channels"] = errors.FailedPrecondition("action not allowed on a closed session")
    assert (await getattr(stub, method)(request_)).error.code == 204

    assert (await stub.Time(pb.TimeReq())).time == 1_700_000_000


@pytest.mark.parametrize(
    "bug",
    [
        RuntimeError("secret detail"),
        errors.StoreBroken("secret detail"),
        errors.ApiError("secret detail"),
        errors.FailedPrecondition("secret detail", ["not a channel"]),
        errors.UserResponseTimedOut(-(2**70), 0),
    ],
    ids=["unexpected", "an error of a port", "an error without code", "wrong information", "a number too large"],
)
async def test_what_is_not_a_published_error_is_logged_and_answered_without_details(
    stub: Any, node: ScriptedNode, caplog: pytest.LogCaptureFixture, bug: Exception
) -> None:
    node.answers["info"] = bug

    answer = await stub.GetPayChInfo(pb.GetPayChInfoReq(sessionID=SESSION, chID=CHANNEL))

    assert (answer.error.category, answer.error.code) == (3, 401)
    assert "secret" not in answer.error.message
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert "GetPayChInfo" in record.getMessage()
    assert record.exc_info
    assert (await stub.Time(pb.TimeReq())).time == 1_700_000_000


async def test_a_result_that_does_not_fit_its_message_is_answered_without_details(
    stub: Any, node: ScriptedNode
) -> None:
    node.answers["open_session"] = OpenedSession(42, ())  # type: ignore[arg-type]
    assert (await stub.OpenSession(pb.OpenSessionReq())).error.code == 401


async def test_a_bug_in_a_method_without_error_member_is_a_status(stub: Any, node: ScriptedNode) -> None:
    node.answers["time"] = RuntimeError("secret detail")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Time(pb.TimeReq())
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")


async def test_session_ids_stay_out_of_the_log(stub: Any, node: ScriptedNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="perun_api_grpc")
    node.answers["info"] = INFO
    await stub.GetPayChInfo(pb.GetPayChInfoReq(sessionID=SESSION, chID=CHANNEL))

    assert [record.method for record in caplog.records if hasattr(record, "method")] == ["GetPayChInfo"]
    assert all(SESSION not in str(vars(record)) for record in caplog.records)


# ------------------------------------------------------------------------------------------------- clients that leave


async def test_a_client_that_leaves_cancels_the_call_of_the_node(stub: Any, node: ScriptedNode) -> None:
    held = node.answers["open_channel"] = Held()
    call = stub.OpenPayCh(pb.OpenPayChReq(sessionID=SESSION, openingBalInfo=BALANCES_MSG))
    await held.began.wait()

    call.cancel()

    await asyncio.wait_for(held.cancelled.wait(), 10)
    assert (await stub.Time(pb.TimeReq())).time == 1_700_000_000


async def test_reads_are_answered_while_another_call_takes_long(stub: Any, node: ScriptedNode) -> None:
    held = node.answers["close_channel"] = Held()
    node.answers["info"] = INFO
    closing = stub.ClosePayCh(pb.ClosePayChReq(sessionID=SESSION, chID=CHANNEL))
    await held.began.wait()

    read = await stub.GetPayChInfo(pb.GetPayChInfoReq(sessionID=SESSION, chID=CHANNEL))
    assert read.msgSuccess.payChInfo == INFO_MSG

    held.result.set_result(INFO)
    assert (await closing).msgSuccess.closedPayChInfo == INFO_MSG

"""What the client makes of a node that misbehaves, refuses, or is reached through TLS: a server of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from perunnodecli.desk import Desk
from perunnodecli.endpoint import Endpoint, Security, read_token
from perunnodecli.failures import ApiFailure, Failure, NodeFailure, UsageFailure
from perunnodecli.node import Node
from perunnodecli.pb import errors_pb2, nodetypes_pb2
from perunnodecli.pb import payment_service_pb2 as pb
from perunnodecli.pb.payment_service_pb2_grpc import Payment_APIServicer, add_Payment_APIServicer_to_server
from perunnodecli.replies import Notice
from tests.servers.certificates import write_certificates

SESSION = "5e" * 32
CHANNEL = "c4" * 32


class Scripted(Payment_APIServicer):
    """Answers with what the test put into it."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.tokens: list[str | bytes | None] = []

    async def Time(self, request: pb.TimeReq, context: Any) -> pb.TimeResp:
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        return pb.TimeResp(time=1_000)

    async def GetPayChsInfo(self, request: pb.GetPayChsInfoReq, context: Any) -> pb.GetPayChsInfoResp:
        if "refuse" in self.answers:
            await context.abort(self.answers["refuse"], "no\x1b[31m")
        return self.answers["GetPayChsInfo"]

    async def GetPayChInfo(self, request: pb.GetPayChInfoReq, context: Any) -> pb.GetPayChInfoResp:
        return self.answers["GetPayChInfo"]

    async def SubPayChProposals(
        self, request: pb.SubPayChProposalsReq, context: Any
    ) -> AsyncIterator[pb.SubPayChProposalsResp]:
        if "trailer" in self.answers:
            context.set_trailing_metadata((("perun-error-bin", self.answers["trailer"].SerializeToString()),))
            await context.abort(grpc.StatusCode.UNKNOWN, "cannot register subscription")
        for message in self.answers["SubPayChProposals"]:
            yield message

    async def SubPayChUpdates(
        self, request: pb.SubpayChUpdatesReq, context: Any
    ) -> AsyncIterator[pb.SubPayChUpdatesResp]:
        for message in self.answers["SubPayChUpdates"]:
            yield message


@asynccontextmanager
async def serving(scripted: Scripted, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_Payment_APIServicer_to_server(scripted, server)
    bind = server.add_secure_port if credentials else server.add_insecure_port
    port = bind("127.0.0.1:0", *((credentials,) if credentials else ()))  # type: ignore[operator]
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def conversing(scripted: Scripted) -> AsyncIterator[Node]:
    async with serving(scripted) as port, Node(Endpoint(f":{port}")) as node:
        yield node


def info(
    *rows: tuple[str, ...], parts: tuple[str, ...] = ("self", "bob"), version: str = "0"
) -> nodetypes_pb2.PayChInfo:
    bals = [nodetypes_pb2.BalInfo.bal(bal=row) for row in rows]
    told = nodetypes_pb2.BalInfo(currencies=[f"C{at}" for at in range(len(rows))], parts=parts, bals=bals)
    return nodetypes_pb2.PayChInfo(chID=CHANNEL, balInfo=told, version=version)


@pytest.mark.parametrize(
    "answer",
    [
        pb.GetPayChsInfoResp(),
        pb.GetPayChsInfoResp(msgSuccess=pb.GetPayChsInfoResp.MsgSuccess(openPayChsInfo=[info(("1",))])),
    ],
    ids=["no content", "ragged balances"],
)
async def test_an_answer_without_sense_is_a_failure_of_the_node(answer: pb.GetPayChsInfoResp) -> None:
    scripted = Scripted()
    scripted.answers["GetPayChsInfo"] = answer
    async with conversing(scripted) as node:
        with pytest.raises(NodeFailure):
            await node.open_channels(SESSION)


async def test_a_code_that_a_newer_node_knows_is_shown_by_number() -> None:
    scripted = Scripted()
    scripted.answers["GetPayChsInfo"] = pb.GetPayChsInfoResp(
        error=errors_pb2.MsgError(category=9, code=999, message="?")
    )  # type: ignore[arg-type]
    async with conversing(scripted) as node:
        with pytest.raises(ApiFailure, match=r"category: 9, code: 999, message: \?"):
            await node.open_channels(SESSION)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "cannot be reached"),
        (grpc.StatusCode.UNAUTHENTICATED, "refuses the access token"),
        (grpc.StatusCode.UNIMPLEMENTED, "does not offer this"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "answered RESOURCE_EXHAUSTED"),
    ],
)
async def test_a_status_is_told_in_words_with_its_name_for_programs(status: grpc.StatusCode, text: str) -> None:
    scripted = Scripted()
    scripted.answers["refuse"] = status
    async with conversing(scripted) as node:
        with pytest.raises(NodeFailure, match=text) as caught:
            await node.open_channels(SESSION)
    assert caught.value.to_json()["status"] == status.name
    assert "\x1b" not in str(caught.value)


async def test_a_subscription_that_cannot_be_set_up_tells_the_error_of_the_api() -> None:
    scripted = Scripted()
    scripted.answers["trailer"] = errors_pb2.MsgError(category=1, code=202, message="exists")  # type: ignore[arg-type]
    async with conversing(scripted) as node:
        with pytest.raises(ApiFailure, match="code: 202"):
            await node.proposals(SESSION)


@asynccontextmanager
async def listening(scripted: Scripted) -> AsyncIterator[tuple[Desk, list[Notice]]]:
    """A live client at the scripted node, and what it is told."""
    notices: list[Notice] = []
    async with serving(scripted) as port:
        desk = Desk(tell=notices.append, live=True)
        await desk.use_node(Node(Endpoint(f":{port}")))
        desk.book.session = SESSION
        try:
            yield desk, notices
        finally:
            await desk.use_node(None)


async def test_a_proposal_of_a_stranger_cannot_be_answered_and_cannot_forge_text() -> None:
    scripted = Scripted()
    terms = info(("1", "2"), parts=("\x1b[2J0xdead", "self")).balInfo
    notify = pb.SubPayChProposalsResp.Notify(proposalID="p", openingBalInfo=terms, challengeDurSecs=10, expiry=0)
    scripted.answers["SubPayChProposals"] = [pb.SubPayChProposalsResp(notify=notify)]
    async with listening(scripted) as (desk, notices):
        await desk.follow_proposals()
        await desk.ended(desk.book.proposals_reader)
        assert desk.book.requests == {}
    told = "\n".join(line for notice in notices for line in notice.lines)
    assert "There is nothing to answer." in told and "\\x1b[2J0xdead" in told and "\x1b" not in told
    assert notices[-1].lines == ("Channel opening request subscription closed.",)


def update(version: str, *amounts: str) -> pb.SubPayChUpdatesResp:
    notify = pb.SubPayChUpdatesResp.Notify(
        updateID=f"{CHANNEL}_{version}", proposedPayChInfo=info(amounts, version=version), expiry=1_020
    )
    return pb.SubPayChUpdatesResp(notify=notify)


async def test_a_newer_update_takes_the_place_of_the_one_before_and_wants_to_be_read_first() -> None:
    from perunnodecli.commands import perform
    from perunnodecli.grammar import Call, parse

    scripted = Scripted()
    scripted.answers["GetPayChInfo"] = pb.GetPayChInfoResp(
        msgSuccess=pb.GetPayChInfoResp.MsgSuccess(payChInfo=info(("5", "5")))
    )
    scripted.answers["SubPayChUpdates"] = [update("1", "6", "4"), update("2", "0", "10")]
    async with listening(scripted) as (desk, notices):
        held = desk.adopt(await desk.connected.channel(SESSION, CHANNEL))
        await desk.follow(held)
        await desk.ended(held.reader)
        assert held.pending is not None and held.pending.update.id.endswith("_2")
        accept = parse(["payment", "accept", "ch_1_bob"])
        assert isinstance(accept, Call)
        with pytest.raises(UsageFailure, match="Read it, then answer again"):
            await perform(desk, accept)
    first, second, _ = notices
    assert "You get 1 C0." in first.lines and "You pay 5 C0." in second.lines
    assert "Dropping older (now obsolete) notification received on this channel." in second.lines


async def test_an_unknown_type_of_update_ends_the_subscription_with_an_error() -> None:
    scripted = Scripted()
    notify = pb.SubPayChUpdatesResp.Notify(proposedPayChInfo=info(("1", "2")), Type=7)  # type: ignore[arg-type]
    scripted.answers["SubPayChUpdates"] = [pb.SubPayChUpdatesResp(notify=notify)]
    scripted.answers["GetPayChInfo"] = pb.GetPayChInfoResp(
        msgSuccess=pb.GetPayChInfoResp.MsgSuccess(payChInfo=info(("5", "5")))
    )
    async with listening(scripted) as (desk, notices):
        held = desk.adopt(await desk.connected.channel(SESSION, CHANNEL))
        await desk.follow(held)
        await desk.ended(held.reader)
    assert "unknown type 7" in notices[-1].lines[0]


async def test_a_failed_settlement_is_told_and_the_channel_loses_its_name() -> None:
    scripted = Scripted()
    error = errors_pb2.MsgError(category=2, code=302, message="chain gone")  # type: ignore[arg-type]
    notify = pb.SubPayChUpdatesResp.Notify(
        updateID=f"{CHANNEL}_1_closed",
        proposedPayChInfo=info(("1", "2"), version="1"),
        Type=pb.SubPayChUpdatesResp.Notify.ChUpdateType.closed,
        error=error,
    )
    scripted.answers["SubPayChUpdates"] = [pb.SubPayChUpdatesResp(notify=notify)]
    scripted.answers["GetPayChInfo"] = pb.GetPayChInfoResp(
        msgSuccess=pb.GetPayChInfoResp.MsgSuccess(payChInfo=info(("5", "5")))
    )
    async with listening(scripted) as (desk, notices):
        held = desk.adopt(await desk.connected.channel(SESSION, CHANNEL))
        await desk.follow(held)
        await desk.ended(held.reader)
        assert desk.book.channels == {}
    assert "Error settling the state:" in notices[0].lines
    assert any("code: 302" in line for line in notices[0].lines)


async def test_tls_and_the_access_token_reach_the_node(tmp_path: Path) -> None:
    certificate, key, authority = write_certificates(tmp_path)
    (tmp_path / "token").write_text("secret-token\n")
    pair = (key.read_bytes(), certificate.read_bytes())
    scripted = Scripted()
    async with serving(scripted, grpc.ssl_server_credentials([pair])) as port:
        security = Security(tls_ca=authority, token=read_token(tmp_path / "token"))
        async with Node(Endpoint(f"127.0.0.1:{port}", security)) as node:
            assert await node.time() == 1_000
        async with Node(Endpoint(f"127.0.0.1:{port}")) as node:
            with pytest.raises(NodeFailure):
                await node.time()
    assert scripted.tokens == ["Bearer secret-token"]
    assert "secret-token" not in repr(security)


async def test_a_node_that_wants_a_certificate_gets_ours(tmp_path: Path) -> None:
    certificate, key, authority = write_certificates(tmp_path)
    pair = (key.read_bytes(), certificate.read_bytes())
    wanting = grpc.ssl_server_credentials([pair], authority.read_bytes(), require_client_auth=True)
    async with serving(Scripted(), wanting) as port:
        ours = Security(tls_ca=authority, cert=certificate, key=key)
        async with Node(Endpoint(f"127.0.0.1:{port}", ours)) as node:
            assert await node.time() == 1_000
        async with Node(Endpoint(f"127.0.0.1:{port}", Security(tls_ca=authority))) as node:
            with pytest.raises(NodeFailure):
                await node.time()


@pytest.mark.parametrize(
    ("address", "security"),
    [
        ("node.example:50001", Security(token="t")),
        ("127.0.0.1:50001", Security(cert=Path("c"), key=Path("k"))),
        ("127.0.0.1:50001", Security(tls_ca=Path(__file__), cert=Path("c"))),
        ("127.0.0.1:50001", Security(tls_ca=Path("no such file"))),
        ("127.0.0.1", Security()),
        ("127.0.0.1:0", Security()),
        (":", Security()),
    ],
    ids=["token in the clear", "certificate without TLS", "no key", "no authority", "no port", "port 0", "nothing"],
)
async def test_a_connection_that_would_be_unsafe_or_senseless_is_refused(address: str, security: Security) -> None:
    with pytest.raises(Failure):
        Endpoint(address, security).dial()


@pytest.mark.parametrize(
    ("written", "target"), [(":50001", "127.0.0.1:50001"), ("50001", "127.0.0.1:50001"), ("[::1]:7", "[::1]:7")]
)
def test_an_address_without_host_is_this_machine(written: str, target: str) -> None:
    assert Endpoint(written).target == target
    assert Endpoint(written).is_loopback


@pytest.mark.parametrize("text", ["", "two words", "tök"])
def test_a_file_without_token_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(UsageFailure):
        read_token(tmp_path / "token")

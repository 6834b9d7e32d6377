"""Hostile clients of all three services of one node, and an honest one beside them that must notice nothing."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from perun_api_grpc.pb import errors_pb2, sdktypes_pb2
from perun_api_grpc.pb import funding_service_pb2 as fund
from perun_api_grpc.pb import nodetypes_pb2 as nodetypes
from perun_api_grpc.pb import payment_service_pb2 as pay
from perun_api_grpc.pb import watching_service_pb2 as watch
from perun_core.channel import Params
from perun_core.profile.gp090 import PROFILE
from perun_core.values import Address
from tests.faults.api.mutation import Mutator
from tests.integration.clients import Client, User
from tests.integration.world import Node, Party, World, open_channel

SERVICES: Final = tuple(next(iter(module.DESCRIPTOR.services_by_name.values())) for module in (pay, fund, watch))
METHODS: Final = {method.name: (service, method) for service in SERVICES for method in service.methods}
CODES: Final = {value.number for value in errors_pb2.ErrorCode.DESCRIPTOR.values} - {0}
ERROR_METADATA: Final = "perun-error-bin"
REFUSED_BY_GRPC: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""What is no message of the method, or is too large, does not reach the node."""
PATIENCE: Final = 30.0
"""Seconds after which a request counts as hanging."""
HONEST_PATIENCE: Final = 10.0
"""Seconds within which an honest client is answered whatever others send."""
AT_ONCE: Final = 8
GROWTH: Final = 64 << 20
"""Bytes the node may grow by, whatever is sent."""
FUNDED: Final = b"\x07" * 20
"""An asset nobody registered: requests to fund come as far as that."""


class Target:
    """A node with three users: alice and bob have a channel, mallory has neither money nor channels."""

    def __init__(self, node: Node, party: Party, alice: User, bob: User, mallory: User, channel: str) -> None:
        self.node, self.party, self.alice, self.bob, self.mallory, self.channel = (
            node,
            party,
            alice,
            bob,
            mallory,
            channel,
        )

    @property
    def memory(self) -> int:
        """Resident bytes of the node."""
        return self.node.running.memory

    def good(self) -> Mapping[str, Message]:
        """A request for each method that goes as far as it can without anything lasting."""
        session, mine, channel = self.mallory.session, self.alice.session, self.channel
        opening = nodetypes.BalInfo(
            currencies=["ETH"], parts=["self", "bob"], bals=[nodetypes.BalInfo.bal(bal=["1", "2"])]
        )
        peer = nodetypes.PeerID(alias="bob", offChainAddress="0x1", commAddress="127.0.0.1:1", commType="tcp")
        payment = nodetypes.Payment(currency="ETH", payee="bob", amount="0.001")
        params, state, request = adjudicator_request()
        agreement, channel_id = state.allocation.balances, state.id
        signed = sdktypes_pb2.SignedState(params=params, state=state)
        return {
            "GetConfig": pay.GetConfigReq(),
            "OpenSession": pay.OpenSessionReq(configFile="no/such/session.yaml"),
            "Time": pay.TimeReq(),
            "RegisterCurrency": pay.RegisterCurrencyReq(tokenAddr="0x1", assetAddr="0x2"),
            "Help": pay.HelpReq(),
            "AddPeerID": pay.AddPeerIDReq(sessionID=session, peerID=peer),
            "GetPeerID": pay.GetPeerIDReq(sessionID=session, alias="self"),
            "OpenPayCh": pay.OpenPayChReq(sessionID=session, openingBalInfo=opening, challengeDurSecs=10),
            "GetPayChsInfo": pay.GetPayChsInfoReq(sessionID=mine),
            "SubPayChProposals": pay.SubPayChProposalsReq(sessionID=session),
            "UnsubPayChProposals": pay.UnsubPayChProposalsReq(sessionID=session),
            "RespondPayChProposal": pay.RespondPayChProposalReq(sessionID=session, proposalID="x", accept=True),
            "CloseSession": pay.CloseSessionReq(sessionID="x", force=True),
            "DeployAssetERC20": pay.DeployAssetERC20Req(sessionID=session, tokenAddr="no address"),
            "SendPayChUpdate": pay.SendPayChUpdateReq(sessionID=mine, chID=channel, payments=[payment] * 2),
            "SubPayChUpdates": pay.SubpayChUpdatesReq(sessionID=mine, chID=channel),
            "UnsubPayChUpdates": pay.UnsubPayChUpdatesReq(sessionID=mine, chID=channel),
            "RespondPayChUpdate": pay.RespondPayChUpdateReq(sessionID=mine, chID=channel, updateID=f"{channel}_9"),
            "GetPayChInfo": pay.GetPayChInfoReq(sessionID=mine, chID=channel),
            "ClosePayCh": pay.ClosePayChReq(sessionID=mine, chID="x"),
            "RegisterAssetERC20": fund.RegisterAssetERC20Req(
                sessionID=session, asset=FUNDED, tokenAddr="0x1", deposiorAcc="0x1"
            ),
            "IsAssetRegistered": fund.IsAssetRegisteredReq(sessionID=session, asset=FUNDED),
            "Fund": fund.FundReq(sessionID=session, params=params, state=state, idx=0, agreement=agreement),
            "Register": fund.RegisterReq(sessionID=session, adjReq=request, signedStates=[signed]),
            "Withdraw": fund.WithdrawReq(sessionID=session, adjReq=request),
            "Progress": fund.ProgressReq(sessionID=session, adjReq=request, newState=state, sig=b"x"),
            "Subscribe": fund.SubscribeReq(sessionID=session, chID=channel_id),
            "Unsubscribe": fund.UnsubscribeReq(sessionID=session, chID=channel_id),
            "StartWatchingLedgerChannel": watch.StartWatchingLedgerChannelReq(
                sessionID=session, params=params, state=state, sigs=[b"s" * 65] * 2
            ),
            "StopWatching": watch.StopWatchingReq(sessionID=session, chID=channel_id),
        }


def adjudicator_request() -> tuple[sdktypes_pb2.Params, sdktypes_pb2.State, sdktypes_pb2.AdjudicatorReq]:
    """Parameters, a state of that channel, and a request with it whose signatures are nobody's."""
    parts = (Address(b"\x01" * 20), Address(b"\x02" * 20))
    channel_id = PROFILE.channel_id(
        Params(challenge_duration=10, parts=parts, app=None, nonce=3, ledger_channel=True, virtual_channel=False)
    )
    params = sdktypes_pb2.Params(challenge_duration=10, parts=map(bytes, parts), nonce=b"\x03", ledger_channel=True)
    balances = sdktypes_pb2.Balances(balances=[sdktypes_pb2.Balance(balance=[b"\x01", b"\x02"])])
    allocation = sdktypes_pb2.Allocation(assets=[FUNDED], balances=balances)
    state = sdktypes_pb2.State(id=bytes(channel_id), version=1, allocation=allocation)
    tx = sdktypes_pb2.Transaction(state=state, sigs=[b"s" * 65] * 2)
    return params, state, sdktypes_pb2.AdjudicatorReq(params=params, acc=bytes(parts[0]), tx=tx)


@asynccontextmanager
async def target(world: World, party: Party, node: Node) -> AsyncIterator[Target]:
    """Three users at `node`; bob refuses whatever alice is made to pay."""
    alice, bob = world.friends("alice", "bob", response_timeout="20s")
    mallory = world.person("mallory", ether=0)
    mallory.know(bob)
    users = [await party.join(person, node) for person in (alice, bob, mallory)]
    channel = await open_channel(users[0], users[1], {"ETH": ("1", "1")}, duration=3600)
    updates = await users[1].client.updates(users[1].session, channel)

    async def refuse() -> None:
        async for update in updates:
            try:
                await users[1].client.respond_update(users[1].session, channel, update.id, accept=False)
            except Exception:
                continue

    refusing = asyncio.ensure_future(refuse())
    try:
        yield Target(node, party, *users, channel)
    finally:
        refusing.cancel()
        await asyncio.gather(refusing, return_exceptions=True)


async def bombard(target: Target, method: str, runs: int, *, seed: int) -> Counter[str]:
    """Send `runs` mutated requests to `method`; what came back, counted. Raises: AssertionError."""
    mutator = Mutator(seed ^ zlib.crc32(method.encode()))
    good = target.good()[method]
    answers: Counter[str] = Counter()
    remaining = iter(range(runs))

    async def client() -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.node.port}", options=options) as channel:
            for _ in remaining:
                answers[await send(channel, method, mutator.mutated(good))] += 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return answers


async def send(channel: grpc.aio.Channel, method: str, request: Message | bytes) -> str:
    """Send one request; its answer in a word, when it is one that a client can understand. Raises: AssertionError."""
    service, definition = METHODS[method]
    data = request if isinstance(request, bytes) else request.SerializeToString()
    kind = ("stream" if definition.client_streaming else "unary") + (
        "_stream" if definition.server_streaming else "_unary"
    )
    call = getattr(channel, kind)(
        f"/{service.full_name}/{method}",
        request_serializer=None,
        response_deserializer=GetMessageClass(definition.output_type).FromString,
    )
    shown = data[:300]
    try:
        async with asyncio.timeout(PATIENCE):
            if kind == "unary_unary":
                return judged(await call(data), shown)
            return await first_of(call, data, shown, streams=definition.client_streaming)
    except TimeoutError:
        raise AssertionError(f"{method} did not answer {shown!r}") from None
    except grpc.aio.AioRpcError as error:
        trailer: Any = error.trailing_metadata()
        told = dict(trailer or ()).get(ERROR_METADATA)
        if told is not None:
            return judged(errors_pb2.MsgError.FromString(told), shown)
        assert error.code() in REFUSED_BY_GRPC, f"{method}: {error.code()} {error.details()} for {shown!r}"
        return error.code().name


async def first_of(call: Any, data: bytes, shown: bytes, *, streams: bool) -> str:
    """What a stream says first; one that stands is left at once."""
    if streams:
        stream = call()
        await stream.write(data)
        await stream.done_writing()
    else:
        stream = call(data)
    try:
        await stream.initial_metadata()
        if not streams:
            if stream.done():
                await stream.read()
            stand = asyncio.ensure_future(stream.read())
            done, _ = await asyncio.wait((stand,), timeout=0.02)
            if not done:
                stand.cancel()
                return "subscribed"
            answer = stand.result()
        else:
            answer = await stream.read()
        return judged(answer, shown) if answer else "ended"
    finally:
        stream.cancel()


def judged(answer: Message, shown: bytes) -> str:
    """The answer in a word. Raises: AssertionError when it is no proper one."""
    error: Any = answer
    if not isinstance(answer, errors_pb2.MsgError):
        names = answer.DESCRIPTOR.fields_by_name
        if "response" in answer.DESCRIPTOR.oneofs_by_name:
            assert answer.WhichOneof("response"), f"an answer that is neither success nor error to {shown!r}"
        if "error" not in names or not answer.HasField("error"):
            return "success"
        error = getattr(answer, "error")  # noqa: B009 - every message has other fields
    assert error.code in CODES and error.category == error.code // 100 - 1, f"{error} to {shown!r}"
    assert error.message and "see the log" not in error.message, f"a bug answered {shown!r}: {error}"
    return str(error.code)


class Honest:
    """A client that asks all the time and must be answered."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.answers = 0
        self._slowest = 0.0

    def slowest(self) -> float:
        """Seconds of the slowest answer since the last time this was asked."""
        seconds, self._slowest = self._slowest, 0.0
        return seconds

    async def run(self) -> None:
        """Raises: TimeoutError, or what the call raises."""
        async with Client(self._target.node.port) as client:
            while True:
                begun = time.monotonic()
                async with asyncio.timeout(HONEST_PATIENCE):
                    await client.time()
                    await client.info(self._target.alice.session, self._target.channel)
                self.answers += 1
                self._slowest = max(self._slowest, time.monotonic() - begun)
                await asyncio.sleep(0.02)


@asynccontextmanager
async def undisturbed(target: Target) -> AsyncIterator[Honest]:
    """An honest client is answered all the time, and the node hardly grows. Raises: AssertionError."""
    before, honest = target.memory, Honest(target)
    running = asyncio.ensure_future(honest.run())
    try:
        yield honest
        assert not running.done(), f"the honest client was not answered: {running.exception()!r}"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert honest.answers, "the honest client never asked"
    grown = target.memory - before
    assert grown < GROWTH, f"the node grew by {grown >> 20} MiB"

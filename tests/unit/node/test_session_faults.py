"""Two sessions in one process, on backends that fail when the test says so: nobody hangs, nothing signed is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from perun_core.apps.registry import NO_APPS
from perun_core.channel import Phase
from perun_core.durations import Duration
from perun_core.errors import (
    ApiError,
    ChainUnreachable,
    FailedPrecondition,
    NotReachable,
    PeerNotFunded,
    PeerRejected,
    PeerRequestTimedOut,
    SigningFailed,
    StoreBroken,
    StoreFull,
    TransactionTimedOut,
    TxTimedOut,
    UnknownInternal,
)
from perun_core.node.currencies import CurrencyRegistry
from perun_core.node.rescue import RescueFile
from perun_core.node.session import MAX_PENDING_PER_PEER, Session, SessionParts
from perun_core.ports.api import BalInfo, PayChInfo, PaymentItem
from perun_core.ports.idprovider import PeerID
from perun_core.ports.policy import Decision, Policy, ProposalView, UpdateView, Verdict
from perun_core.ports.store import StoreStatus, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.testing.chain import MemoryChain
from perun_core.testing.comm import MemoryNetwork
from perun_core.testing.conversation import ADDRESSES, KEYS
from perun_core.testing.idprovider import InMemoryPeers
from perun_core.testing.keymgr import InMemoryKeys
from perun_core.testing.store import MemoryStore, Rows
from perun_core.values import Address, Bytes32, ChannelID, Sig

ACCOUNTS = (Address(b"\x0a" * 20), Address(b"\x0b" * 20))
HOLDER = Address(b"\xe0" * 20)
NAMES = ("alice", "bob")
WEALTH = 10**19
SIGNED = Table.SIGNED
PATIENT = 5.0
"""Seconds within which everything that works without waiting for anybody must have happened."""


class GuardedKeys(InMemoryKeys):
    """Sign nothing of which the store holds no mark: the guard comes first, at every place and in every order (7.3.5).

    A mark is the digest of a state, or the receiver of a withdrawal under channel, holder and amount.
    """

    def __init__(self, index: int, rows: Rows) -> None:
        super().__init__((KEYS[index],))
        self._participant = ADDRESSES[index]
        self._rows = rows

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        assert any(self._marks(key, value, digest) for (table, key), value in self._rows.items() if table is SIGNED), (
            "signed without a durable mark"
        )
        return await super().sign_message(address, digest)

    def _marks(self, key: bytes, value: bytes, digest: Bytes32) -> bool:
        if len(value) == Bytes32.SIZE:
            return value == digest
        channel_id, amount = ChannelID(key[: ChannelID.SIZE]), int.from_bytes(key[-32:], "big")
        return PROFILE.withdrawal_hash(channel_id, self._participant, Address(value), amount) == digest


class Home:
    """What one user has, and the session that is open now."""

    def __init__(self, index: int, bed: Bed) -> None:
        self.index = index
        self.bed = bed
        self.rows: Rows = {}
        self.keys: InMemoryKeys = GuardedKeys(index, self.rows)
        self.chain = bed.chain if index == 0 else bed.chain.seen_by(ACCOUNTS[1], wei=WEALTH)
        self.policy: Policy | None = None
        self.rescue: RescueFile | None = None
        self.status: StoreStatus | None = None
        self.sync_delay = 0.05
        self.store = MemoryStore(self.rows)
        self.session: Session | None = None
        self.restored: tuple[PayChInfo, ...] = ()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{6001 + self.index}"

    @property
    def online(self) -> Session:
        assert self.session is not None
        return self.session

    async def open(self) -> Home:
        other = 1 - self.index
        peer = PeerID(NAMES[other], ADDRESSES[other], f"127.0.0.1:{6001 + other}", "tcp", ADDRESSES[other].checksum)
        parts = SessionParts(
            id=f"session of {NAMES[self.index]}",
            profile=PROFILE,
            apps=NO_APPS,
            currencies=CurrencyRegistry(HOLDER),
            keys=self.keys,
            id_provider=InMemoryPeers((peer,)),
            comm=self.bed.network.comm(),
            chain=self.chain,
            chain_url="ws://chain",
            adjudicator=Address(b"\xad" * 20),
            policy=self.policy,
            on_chain=ACCOUNTS[self.index],
            off_chain=ADDRESSES[self.index],
            comm_address=self.address,
            response_timeout=Duration.parse("10s"),
            tx_timeout=Duration.parse("1m"),
            challenge_durations=(1, 2**31),
            clock=lambda: self.bed.now,
            random_bytes=self.bed.random.randbytes,
            on_closed=lambda session: None,
            rescue=self.rescue,
            sync_delay=self.sync_delay,
        )
        session = Session(parts)
        await session.listen()
        self.store = MemoryStore(self.rows, status=self.status)
        session.store = self.store
        self.restored = await session.restore()
        self.session = session
        return self

    async def crash(self) -> None:
        """Gone in the middle of everything; what is on disk stays."""
        if self.session is not None:
            await self.session.shut_down()
            self.status = self.store.status()
        self.session = None

    async def reopen(self) -> Home:
        await self.crash()
        self.keys.failure = None
        return await self.open()

    async def propose(self, mine: str = "1", theirs: str = "1", duration: int = 60) -> PayChInfo:
        balances = BalInfo(("ETH",), ("self", NAMES[1 - self.index]), ((mine, theirs),))
        return await self.online.open_channel(balances, duration)

    async def answer_proposal(self, *, accept: bool = True) -> PayChInfo:
        async for proposal in (reader := self.online.subscribe_proposals()):
            reader.cancel()
            return await self.online.respond_proposal(proposal.proposal_id, accept=accept)
        raise AssertionError("the stream ended")

    async def pay(self, channel: str, amount: str = "0.1") -> PayChInfo:
        item = PaymentItem("ETH", NAMES[1 - self.index], amount)
        return await self.online.channel(channel).send_update((item,))

    async def answer_update(self, channel: str, *, accept: bool = True) -> PayChInfo:
        live = self.online.channel(channel)
        async for update in (reader := live.subscribe_updates()):
            reader.cancel()
            return await live.respond_update(update.update_id, accept=accept)
        raise AssertionError("the stream ended")

    def state(self, channel: str) -> tuple[str, tuple[tuple[str, ...], ...]]:
        info = self.online.channel(channel).info()
        return info.version, info.bal_info.bals


class Bed:
    """One chain, one network, two homes."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.random = random.Random(1)
        self.network = MemoryNetwork()
        self.chain = MemoryChain(PROFILE, ACCOUNTS[0], wei=WEALTH)
        self.alice, self.bob = Home(0, self), Home(1, self)

    async def channel(self) -> str:
        opened, accepted = await both(self.alice.propose(), self.bob.answer_proposal())
        assert opened.channel_id == accepted.channel_id
        return opened.channel_id

    async def payment(self, channel: str) -> None:
        await both(self.alice.pay(channel), self.bob.answer_update(channel))
        assert self.alice.state(channel) == self.bob.state(channel)


async def both(first: Awaitable[PayChInfo], second: Awaitable[PayChInfo]) -> tuple[PayChInfo, PayChInfo]:
    """Two calls that wait for each other."""
    async with asyncio.timeout(PATIENT):
        return await asyncio.gather(first, second)


async def outcome(call: Awaitable[object]) -> object:
    """What a call ends with, value or error; that it ends is the point."""
    async with asyncio.timeout(PATIENT):
        try:
            return await call
        except ApiError as error:
            return error


async def settle_down() -> None:
    """Everything that can go on by itself has done so."""
    for _ in range(200):
        await asyncio.sleep(0)


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    bed = Bed()
    await bed.alice.open()
    await bed.bob.open()
    yield bed
    for home in (bed.alice, bed.bob):
        await home.crash()
    assert bed.network.connections == 0, "a closed session leaves connections"


# ---- the store -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_whichever_write_of_a_payment_fails_both_agree_after_a_restart(bed: Bed, who: str, nth: int) -> None:
    """The caller is told, nothing is signed twice, another channel goes on, and reopening heals."""
    channel, other = await bed.channel(), await bed.channel()
    home: Home = getattr(bed, who)
    home.store.fail_commit(nth, StoreFull("no room left on the device"))
    answering = asyncio.ensure_future(outcome(bed.bob.answer_update(channel)))
    paying = asyncio.ensure_future(outcome(bed.alice.pay(channel)))
    await settle_down()
    if who == "alice" and nth == 1:
        assert isinstance(await paying, UnknownInternal)
        told = await outcome(bed.alice.pay(channel))
        assert isinstance(told, UnknownInternal)
    if who == "bob":
        assert isinstance(await answering, UnknownInternal)
    await bed.payment(other)
    for task in (paying, answering):
        task.cancel()
    await asyncio.gather(paying, answering, return_exceptions=True)
    await bed.alice.reopen()
    await bed.bob.reopen()
    async with asyncio.timeout(PATIENT):
        while not agreed(bed, channel):
            await drain_questions(bed.bob, channel)
            await asyncio.sleep(0.02)
    await both(bed.bob.pay(channel, "0.05"), bed.alice.answer_update(channel))
    assert bed.alice.state(channel) == bed.bob.state(channel)


def agreed(bed: Bed, channel: str) -> bool:
    """Both are idle and hold the same."""
    idle = [home.online.channel(channel).machine.phase is Phase.ACTING for home in (bed.alice, bed.bob)]
    return all(idle) and bed.alice.state(channel) == bed.bob.state(channel)


async def drain_questions(home: Home, channel: str) -> None:
    """Accept what the other side asks again after its restart, if anything."""
    live = home.online.channel(channel)
    question = live.machine.question
    if question is not None:
        await outcome(live.respond_update(f"{channel}_{question.version}", accept=True))


@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_whichever_write_of_an_opening_fails_nobody_hangs_and_no_money_is_lost(
    bed: Bed, who: str, nth: int
) -> None:
    home: Home = getattr(bed, who)
    home.store.fail_commit(nth, StoreBroken("input/output error"))
    proposing = asyncio.ensure_future(bed.alice.propose("1", "1", 30))
    answering = asyncio.ensure_future(bed.bob.answer_proposal())
    failing = proposing if who == "alice" else answering
    error = await outcome(failing)
    assert isinstance(error, UnknownInternal), error
    other = answering if failing is proposing else proposing
    for _ in range(40):  # block time passes until the side that is well has its deposit back
        bed.chain.mine(10)
        await settle_down()
    if other.done():
        assert isinstance(other.exception(), PeerNotFunded | PeerRequestTimedOut | UnknownInternal)
    else:
        other.cancel()  # it waits for an answer in real time
    await asyncio.gather(other, return_exceptions=True)
    await home.reopen()
    for _ in range(40):
        bed.chain.mine(10)
        await settle_down()
    for index, account in enumerate(ACCOUNTS):
        assert bed.chain.balances[(account, None)] == WEALTH, f"{NAMES[index]} misses money"
    assert await bed.channel()


# ---- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_manager_that_refuses_stops_the_channel_and_reopening_finishes_the_payment(bed: Bed) -> None:
    channel = await bed.channel()
    bed.alice.keys.failure = SigningFailed("the token was removed")
    assert isinstance(await outcome(bed.alice.pay(channel)), UnknownInternal)
    assert bed.bob.state(channel)[0] == "0"
    await bed.alice.reopen()
    assert [each.channel_id for each in bed.alice.restored] == [channel]
    answered = await outcome(bed.bob.answer_update(channel))
    assert isinstance(answered, PayChInfo) and answered.version == "1"
    await settle_down()
    assert bed.alice.state(channel) == bed.bob.state(channel)


# ---- the chain -------------------------------------------------------------------------------------------------------


async def test_a_failed_deposit_is_told_and_settled_by_itself(bed: Bed) -> None:
    bed.alice.chain.fail("deposit", TxTimedOut("fund", "0xab"))
    proposing = asyncio.ensure_future(outcome(bed.alice.propose("1", "1", 30)))
    answering = asyncio.ensure_future(outcome(bed.bob.answer_proposal()))
    await settle_down()
    assert isinstance(await proposing, TransactionTimedOut)
    for _ in range(40):
        bed.chain.mine(10)
        await settle_down()
    assert isinstance(await answering, ApiError)
    assert [bed.chain.balances[(account, None)] for account in ACCOUNTS] == [WEALTH, WEALTH]
    assert bed.alice.online.channels() == bed.bob.online.channels() == ()


async def test_settling_goes_on_over_a_restart_until_the_money_is_there(bed: Bed) -> None:
    channel = await bed.channel()
    await bed.payment(channel)
    bed.alice.chain.fail("withdraw", NotReachable("gone"))
    closing = asyncio.ensure_future(outcome(bed.alice.online.channel(channel).close()))
    agreeing = asyncio.ensure_future(outcome(bed.bob.answer_update(channel)))
    assert isinstance(await closing, ChainUnreachable)
    await bed.alice.reopen()
    for _ in range(5):
        bed.chain.mine()
        await settle_down()
    assert isinstance(await agreeing, PayChInfo)
    assert bed.chain.balances[(ACCOUNTS[0], None)] == WEALTH - 10**17
    assert bed.chain.balances[(ACCOUNTS[1], None)] == WEALTH + 10**17


async def test_a_dispute_opened_while_the_session_is_closed_is_answered_after_reopening(bed: Bed) -> None:
    channel = await bed.channel()
    old = bed.bob.online.channel(channel).snapshot
    await bed.payment(channel)
    await bed.alice.crash()
    await bed.bob.crash()  # his own watcher would be as honest as ours
    await bed.bob.chain.register(old.params, old.current)
    await bed.alice.open()
    await settle_down()
    assert "register" in bed.alice.chain.calls, "an old state was not refuted"
    for _ in range(20):
        bed.chain.mine(10)
        await settle_down()
    await bed.bob.open()
    await settle_down()
    assert bed.chain.balances[(ACCOUNTS[0], None)] == WEALTH - 10**17
    assert bed.chain.balances[(ACCOUNTS[1], None)] == WEALTH + 10**17


async def test_a_dispute_opened_while_the_event_feed_is_broken_is_answered_when_it_works_again(bed: Bed) -> None:
    """In the very first session too, when no earlier one left a cursor behind."""
    channel = await bed.channel()
    old = bed.bob.online.channel(channel).snapshot
    await bed.payment(channel)
    await bed.bob.crash()  # his own watcher would be as honest as ours
    bed.alice.chain.fail("events", NotReachable("gone"))
    bed.chain.mine()
    await settle_down()  # the feed broke; it is opened again after a pause
    await bed.bob.chain.register(old.params, old.current)
    async with asyncio.timeout(PATIENT):
        async for batch in bed.chain.events(0):
            if any(event.version == 1 for event in batch.events):
                break


# ---- policies --------------------------------------------------------------------------------------------------------


class Rule:
    """A policy that does what a test says."""

    def __init__(self, say: Callable[[], Awaitable[object]]) -> None:
        self._say = say

    async def on_proposal(self, proposal: ProposalView) -> Decision:
        return await self._say()  # type: ignore[return-value]

    async def on_update(self, update: UpdateView) -> Decision:
        return await self._say()  # type: ignore[return-value]


async def says(verdict: Verdict) -> Decision:
    return Decision(verdict, reason="not today")


async def test_a_policy_may_accept_everything_without_the_user(bed: Bed) -> None:
    bed.bob.policy = Rule(lambda: says(Verdict.ACCEPT))
    await bed.bob.reopen()
    opened = await outcome(bed.alice.propose())
    assert isinstance(opened, PayChInfo)
    paid = await outcome(bed.alice.pay(opened.channel_id))
    assert isinstance(paid, PayChInfo) and paid.version == "1"


async def test_a_policy_s_refusal_carries_its_reason(bed: Bed) -> None:
    channel = await bed.channel()
    bed.bob.policy = Rule(lambda: says(Verdict.REJECT))
    await bed.bob.reopen()
    for call in (bed.alice.propose(), bed.alice.pay(channel)):
        error = await outcome(call)
        assert isinstance(error, PeerRejected) and error.info["reason"] == "not today"


async def nonsense() -> object:
    return "yes"


async def fails() -> object:
    raise ZeroDivisionError


@pytest.mark.parametrize("say", [lambda: says(Verdict.ASK), nonsense, fails])
async def test_a_policy_that_cannot_decide_leaves_it_to_the_user(
    bed: Bed, say: Callable[[], Awaitable[object]]
) -> None:
    bed.bob.policy = Rule(say)
    await bed.bob.reopen()
    channel = await bed.channel()
    await bed.payment(channel)


# ---- peers -----------------------------------------------------------------------------------------------------------


async def test_a_peer_cannot_fill_the_session_with_proposals(bed: Bed) -> None:
    proposing = [asyncio.ensure_future(outcome(bed.alice.propose())) for _ in range(MAX_PENDING_PER_PEER)]
    await settle_down()
    assert not any(each.done() for each in proposing)
    for _ in range(3):
        error = await outcome(bed.alice.propose())
        assert isinstance(error, PeerRejected) and "pending" in str(error.info["reason"])
    for each in proposing:
        each.cancel()
    await asyncio.gather(*proposing, return_exceptions=True)


async def test_a_broken_connection_is_dialled_again_by_the_next_payment(bed: Bed) -> None:
    channel = await bed.channel()
    for _ in range(3):
        bed.network.cut()
        await settle_down()
        await bed.payment(channel)
    assert bed.alice.state(channel)[0] == "3"


async def test_closing_a_session_answers_everybody_who_waits(bed: Bed) -> None:
    channel = await bed.channel()
    paying = asyncio.ensure_future(outcome(bed.alice.pay(channel)))
    proposing = asyncio.ensure_future(outcome(bed.alice.propose()))
    await settle_down()
    listed = await bed.alice.online.close(force=True)
    assert [each.channel_id for each in listed] == [channel]
    for waiting in (paying, proposing):
        assert isinstance(await waiting, FailedPrecondition)

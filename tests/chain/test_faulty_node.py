"""The backend on a chain node that misbehaves (CHAIN.md 6.2: B21; B5 over a lossy connection).

Whatever the node does, a question is answered, refused or timed out within its time; a write may be repeated and has
its effect once; events come complete and in order.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Any

import pytest

from perun_chain_ethereum.opening import EthereumConfig
from perun_core.errors import ChainError, NotReachable, PerunError, TxTimedOut, WrongChain
from perun_core.ports.chain import BlockEvents, Chain, ChannelEvent, DisputePhase
from perun_core.testing.store import MemoryStore
from plugins.chain_ethereum.tests.chain_backend.conftest import ETHER, Channel, Key, Ledger, anvil, anvil_ledger
from tests.chain.conftest import Funded
from tests.servers.fault_proxy import INTERNAL, RATE_LIMITED, FaultProxy, every, log_ranges_up_to

pytestmark = pytest.mark.anvil

TIMEOUT = 2.0
"""Seconds a question may take here."""


@pytest.fixture(params=["ws", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Side:
    """anvil as seen directly, and as seen through the proxy."""

    def __init__(self, direct: Ledger, proxy: FaultProxy, scheme: str) -> None:
        self.direct = direct
        self.proxy = proxy
        self.behind = replace(direct, url=getattr(proxy, scheme))

    def open(self, signer: Key | None = None, **changes: Any) -> AbstractAsyncContextManager[Chain]:
        return self.behind.open(signer, **{"connect_timeout": TIMEOUT, "tx_timeout": 20.0, **changes})


@pytest.fixture
def side(instant: Ledger, proxied: FaultProxy, scheme: str) -> Side:
    return Side(instant, proxied, scheme)


@pytest.fixture
def pushed(instant: Ledger, proxied: FaultProxy) -> Side:
    """Over WebSocket, where the node tells heads by itself."""
    return Side(instant, proxied, "ws")


async def collected(feed: AsyncIterator[BlockEvents], count: int) -> list[ChannelEvent]:
    """The next `count` events, and none besides them."""
    events: list[ChannelEvent] = []
    async with asyncio.timeout(30):
        while len(events) < count:
            events += (await anext(feed)).events
    assert len(events) == count
    return events


async def repeated(call: Callable[[], Any], *, times: int = 40) -> Any:
    """`call` as a channel's step does it: again after every failure of the chain."""
    for _ in range(times):
        try:
            return await call()
        except ChainError:
            await asyncio.sleep(0.1)
    return await call()


async def sent_by(ledger: Ledger, key: Key) -> int:
    return int(await ledger.rpc("eth_getTransactionCount", key.address.checksum, "latest"), 16)


# ---- questions -------------------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_not_reachable_and_later_questions_connect_again(side: Side) -> None:
    async with side.open() as chain:
        with side.proxy.outage(), pytest.raises(NotReachable):
            await chain.head()
        assert (await chain.head()).number >= 0


async def test_a_connection_dropped_between_questions_is_replaced(side: Side) -> None:
    async with side.open() as chain:
        before = await chain.head()
        side.proxy.drop()
        assert await repeated(chain.head) == before


@pytest.mark.parametrize("fault", ["half_answer", "lose_answer"])
async def test_a_connection_that_ends_in_an_answer_fails_that_question_only(side: Side, fault: str) -> None:
    async with side.open() as chain:
        side.proxy.add(method="eth_getBalance", times=2, **{fault: True})
        balance = side.behind.eth_holder
        with pytest.raises(NotReachable):
            await chain.balance(balance)
        assert await repeated(lambda: chain.balance(balance)) >= 0


async def test_a_delayed_answer_arrives_and_one_delayed_too_long_is_given_up(side: Side) -> None:
    async with side.open() as chain:
        with side.proxy.failing(method="eth_getBalance", delay=TIMEOUT / 4):
            assert await chain.balance(side.behind.eth_holder) >= 0
        begun = time.monotonic()
        with side.proxy.failing(method="eth_getBalance", delay=10 * TIMEOUT), pytest.raises(NotReachable):
            await chain.balance(side.behind.eth_holder)
        assert time.monotonic() - begun < 2 * TIMEOUT
        assert await chain.balance(side.behind.eth_holder) >= 0


async def test_answers_that_come_twice_count_once(pushed: Side) -> None:
    async with pushed.open() as chain:
        with pushed.proxy.failing(twice=True):
            for _ in range(3):
                assert (await chain.head()) == (await chain.head())


async def test_a_rate_limit_is_a_refusal_that_passes(side: Side, scheme: str) -> None:
    async with side.open() as chain:
        terms: dict[str, Any] = {"error": RATE_LIMITED} if scheme == "ws" else {"status": 429}
        with side.proxy.failing(method="eth_getBalance", **terms), pytest.raises(ChainError):
            await chain.balance(side.behind.eth_holder)
        assert await chain.balance(side.behind.eth_holder) >= 0


@pytest.mark.parametrize(
    "terms",
    [
        {"status": 429, "error": RATE_LIMITED},
        {"error": RATE_LIMITED},
        {"error": (-32029, "slow down")},
        {"error": (429, "Too Many Requests")},
    ],
    ids=["status 429", "-32005", "-32029", "429"],
)
async def test_a_node_that_refuses_every_third_question_for_haste_costs_no_failure(
    side: Side, funded: Funded, terms: dict[str, Any]
) -> None:
    """No caller repeats anything: a whole life on chain goes through in one attempt, every transaction once."""
    payer = await funded(side.direct)
    channel = Channel((side.direct.eth_holder,), ((ETHER, ETHER),))
    key = channel.keys[0]
    async with side.open(payer) as chain:
        with side.proxy.failing(matches=every(3), **terms) as fault:
            await chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), 2 * ETHER)
            await chain.conclude_final(channel.params, channel.signed(3, is_final=True))
            authorise = key.authorise(channel.id, payer.address)
            assert await chain.withdraw(side.behind.eth_holder, channel.id, key.address, payer.address, authorise)
        assert fault.used > 5
    assert await sent_by(side.direct, payer) == 3


async def test_a_limit_of_log_ranges_is_not_taken_for_haste(side: Side) -> None:
    """It is not asked again in vain: the range is made shorter at once."""
    async with side.open() as chain:
        await side.direct.mine(8)
        head = (await chain.head()).number
        side.proxy.add(**log_ranges_up_to(4))
        async with aclosing(chain.events(head - 7)) as feed, asyncio.timeout(10):
            while (await anext(feed)).cursor < head:
                pass
        ranges = [each.params[0] for each in side.proxy.seen if each.method == "eth_getLogs"]
        asked = [(each["fromBlock"], each["toBlock"]) for each in ranges if "toBlock" in each]
        assert len(asked) == len(set(asked))


async def test_an_internal_error_of_the_node_is_a_refusal_that_passes(side: Side) -> None:
    async with side.open() as chain:
        with side.proxy.failing(error=INTERNAL), pytest.raises(ChainError, match="internal error"):
            await chain.head()
        assert (await chain.head()).number >= 0


async def test_a_half_open_socket_is_noticed_within_the_time_of_a_question(side: Side) -> None:
    async with side.open() as chain:
        before = await chain.head()
        side.proxy.half_open = True
        begun = time.monotonic()
        with pytest.raises(NotReachable):
            await chain.head()
        assert time.monotonic() - begun < 2 * TIMEOUT
        side.proxy.half_open = False
        side.proxy.drop()
        assert await repeated(chain.head) == before


async def test_a_node_that_accepts_and_never_answers_is_not_reachable_at_the_start(side: Side) -> None:
    side.proxy.half_open = True
    with pytest.raises(NotReachable):
        async with side.open():
            pass


async def test_another_chain_behind_the_same_address_is_refused_for_reading_and_writing(
    side: Side, funded: Funded
) -> None:
    payer = await funded(side.direct)
    channel = Channel((side.direct.eth_holder,), ((ETHER, 0),))
    with anvil(chain_id=5) as other:
        async with side.open(payer) as chain:
            side.proxy.retarget(other)
            with side.proxy.outage(), pytest.raises(NotReachable):
                await chain.head()
            with pytest.raises(WrongChain):
                await chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), 1)
            with pytest.raises(WrongChain):
                await chain.head()
            side.proxy.retarget(side.direct.http)
            side.proxy.drop()
            await repeated(lambda: chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), ETHER))
            assert await chain.holdings(side.behind.eth_holder, channel.funding_id(0)) == ETHER


async def test_another_chain_on_a_new_connection_is_noticed_before_anything_is_asked(side: Side) -> None:
    with anvil(chain_id=5) as other:
        async with side.open() as chain:
            side.proxy.retarget(other)
            side.proxy.drop()
            with pytest.raises((WrongChain, NotReachable)):
                await chain.head()
            with pytest.raises(WrongChain):
                await chain.head()
        methods = [each.method for each in side.proxy.seen]
        assert methods[-1] == "eth_chainId"


async def test_many_questions_at_once_over_new_connections_reach_no_other_chain(
    instant: Ledger, proxied: FaultProxy
) -> None:
    """Each connection of the pool is asked for its chain before anything else, however many are made at a time."""
    side = Side(instant, proxied, "http")
    with anvil(chain_id=5) as other:
        async with side.open() as chain:
            await asyncio.gather(*(chain.head() for _ in range(20)))
            side.proxy.retarget(other)
            side.proxy.drop()
            asked = len(side.proxy.seen)
            answers = await asyncio.gather(*(chain.head() for _ in range(40)), return_exceptions=True)
            assert all(isinstance(answer, WrongChain | NotReachable) for answer in answers)
            assert any(isinstance(answer, WrongChain) for answer in answers)
            assert {each.method for each in side.proxy.seen[asked:]} == {"eth_chainId"}
            side.proxy.retarget(side.direct.http)
            side.proxy.drop()
            assert len(set(await repeated(lambda: asyncio.gather(*(chain.head() for _ in range(40)))))) == 1


async def test_a_node_that_ends_every_connection_is_asked_for_its_chain_each_time(
    instant: Ledger, proxied: FaultProxy
) -> None:
    side = Side(instant, proxied, "http")
    side.proxy.one_answer = True
    with anvil(chain_id=5) as other:
        async with side.open() as chain:
            head = await chain.head()
            assert await chain.head() == head
            side.proxy.retarget(other)
            with pytest.raises(WrongChain):
                await chain.head()


# ---- writes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms",
    [
        {"method": "eth_sendRawTransaction", "lose_answer": True, "times": 1},
        {"method": "eth_sendRawTransaction", "half_answer": True, "times": 1},
        {"method": "eth_sendRawTransaction", "error": RATE_LIMITED, "times": 2},
        {"method": "eth_sendRawTransaction", "error": INTERNAL, "times": 2},
        {"method": "eth_estimateGas", "error": RATE_LIMITED, "times": 2},
        {"method": "eth_getTransactionReceipt", "lose_answer": True, "times": 2},
        {"method": "eth_getTransactionReceipt", "error": RATE_LIMITED, "times": 2},
        {"method": "eth_call", "status": 503, "error": INTERNAL, "times": 3},
    ],
    ids=lambda terms: " ".join(str(each) for name, each in terms.items() if name != "times"),
)
async def test_a_deposit_disturbed_anywhere_is_made_exactly_once(
    side: Side, funded: Funded, terms: dict[str, Any]
) -> None:
    payer = await funded(side.direct)
    channel = Channel((side.direct.eth_holder,), ((ETHER, 0),))
    async with side.open(payer) as chain:
        side.proxy.add(**terms)
        await repeated(lambda: chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), ETHER))
        assert await chain.holdings(side.behind.eth_holder, channel.funding_id(0)) == ETHER
    assert await sent_by(side.direct, payer) == 1


async def test_a_transaction_of_an_unknown_fate_is_found_again_after_a_restart(side: Side, funded: Funded) -> None:
    """The answer to the broadcast is lost and the node ends: the next start finds it mined and pays nothing twice."""
    payer, store = await funded(side.direct), MemoryStore()
    channel = Channel((side.direct.eth_holder,), ((ETHER, 0),))
    async with side.open(payer, store=store) as chain:
        with side.proxy.failing(method="eth_sendRawTransaction", lose_answer=True), pytest.raises(NotReachable):
            await chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), ETHER)
    async with side.open(payer, store=store) as chain:
        await chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), ETHER)
        assert await chain.holdings(side.behind.eth_holder, channel.funding_id(0)) == ETHER
    assert await sent_by(side.direct, payer) == 1


async def test_an_outage_around_a_broadcast_loses_nothing(side: Side, funded: Funded) -> None:
    payer = await funded(side.direct)
    channel = Channel((side.direct.eth_holder,), ((0, 0),))
    async with side.open(payer) as chain:
        away = asyncio.Event()

        async def note(tx_hash: str) -> None:
            if not away.is_set():
                side.proxy.cut()
                away.set()

        registering = asyncio.ensure_future(
            repeated(lambda: chain.register(channel.params, channel.signed(4), sent=note))
        )
        await away.wait()
        with pytest.raises(NotReachable):
            await chain.head()
        side.proxy.mend()
        assert (await registering).version == 4
    assert await sent_by(side.direct, payer) == 1


# ---- heads and events ------------------------------------------------------------------------------------------------


@pytest.fixture
def channels(instant: Ledger) -> Callable[[int], list[Channel]]:
    return lambda count: [Channel((instant.eth_holder,), ((0, 0),)) for _ in range(count)]


async def registered(side: Side, payer: Key, channels: list[Channel]) -> None:
    """Register each of `channels` directly, with its position from 1 as version."""
    async with side.direct.open(payer) as chain:
        for number, channel in enumerate(channels, 1):
            await chain.register(channel.params, channel.signed(number))


async def test_events_are_complete_where_the_node_limits_log_ranges(
    side: Side, funded: Funded, channels: Callable[[int], list[Channel]]
) -> None:
    payer, ours = await funded(side.direct), channels(4)
    async with side.open() as chain:
        start = (await chain.head()).number
        await registered(side, payer, ours[:2])
        await side.direct.mine(12)
        await registered(side, payer, ours[2:])
        side.proxy.add(**log_ranges_up_to(3))
        async with aclosing(chain.events(start)) as feed:
            seen = await collected(feed, 4)
    assert [event.channel_id for event in seen] == [channel.id for channel in ours]


@pytest.mark.parametrize("error", [RATE_LIMITED, INTERNAL], ids=["rate limit", "internal error"])
async def test_events_are_complete_when_log_queries_fail_now_and_then(
    side: Side, funded: Funded, channels: Callable[[int], list[Channel]], error: tuple[int, str]
) -> None:
    payer, ours = await funded(side.direct), channels(3)
    async with side.open() as chain:
        start = (await chain.head()).number
        async with aclosing(chain.events(start)) as feed:
            await anext(feed)
            side.proxy.add(method="eth_getLogs", error=error, times=3)
            await registered(side, payer, ours)
            seen = await collected(feed, 3)
    assert [(event.channel_id, event.version) for event in seen] == [
        (channel.id, number) for number, channel in enumerate(ours, 1)
    ]


async def test_events_are_complete_and_single_when_heads_come_twice_and_connections_drop(
    pushed: Side, funded: Funded, channels: Callable[[int], list[Channel]]
) -> None:
    """B5: whatever is told twice or between two connections is delivered once."""
    payer, ours = await funded(pushed.direct), channels(4)
    pushed.proxy.repeat_heads = 2
    async with pushed.open() as chain, aclosing(chain.events((await chain.head()).number)) as feed:
        await anext(feed)
        seen: list[ChannelEvent] = []
        async with pushed.direct.open(payer) as direct:
            for number, channel in enumerate(ours, 1):
                if number % 2 == 0:
                    pushed.proxy.drop()
                await direct.register(channel.params, channel.signed(number))
                seen += await collected(feed, 1)
        await pushed.direct.mine()
        assert (await anext(feed)).events == ()
    assert [event.channel_id for event in seen] == [channel.id for channel in ours]


async def test_several_events_of_one_block_are_all_delivered_in_order(
    pushed: Side, funded: Funded, channels: Callable[[int], list[Channel]]
) -> None:
    ours = channels(3)
    payers = [await funded(pushed.direct) for _ in ours]
    async with pushed.open() as chain, aclosing(chain.events((await chain.head()).number)) as feed:
        await pushed.direct.rpc("evm_setAutomine", False)
        try:
            sending = [
                asyncio.ensure_future(registered(pushed, payer, [channel]))
                for payer, channel in zip(payers, ours, strict=True)
            ]
            async with asyncio.timeout(10):
                while int((await pushed.direct.rpc("txpool_status"))["pending"], 16) < len(ours):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await pushed.direct.mine()
        finally:
            await pushed.direct.rpc("evm_setAutomine", True)
        await asyncio.gather(*sending)
        seen = await collected(feed, 3)
    assert {event.channel_id for event in seen} == {channel.id for channel in ours}
    assert len({event.block_hash for event in seen}) == 1
    assert [event.log_index for event in seen] == sorted(event.log_index for event in seen)


async def test_a_socket_on_which_heads_stop_is_noticed_by_asking(pushed: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perun_chain_ethereum.heads.QUIET", 0.3)
    async with pushed.open() as chain, aclosing(chain.blocks()) as blocks:
        before = await anext(blocks)
        pushed.proxy.repeat_heads = 0
        await pushed.direct.mine(2)
        async with asyncio.timeout(10):
            assert (await anext(blocks)).number == before.number + 2


async def test_a_node_that_is_synchronizing_delays_events_but_loses_none(
    side: Side, funded: Funded, channels: Callable[[int], list[Channel]]
) -> None:
    """Its latest block lags behind; what it does not know yet comes when it has caught up."""
    payer, ours = await funded(side.direct), channels(2)
    async with side.open() as chain:
        head = (await chain.head()).number
        async with aclosing(chain.events(head)) as feed:
            assert (await anext(feed)).cursor == head
            side.proxy.stuck_at = head
            await registered(side, payer, ours)
            assert (await chain.head()).number == head
            assert not (await chain.dispute(ours[0].id)).registered
            side.proxy.stuck_at = None
            await side.direct.mine()
            seen = await collected(feed, 2)
    assert [event.channel_id for event in seen] == [channel.id for channel in ours]


async def test_a_write_through_a_synchronizing_node_is_confirmed_only_when_the_node_shows_it(
    side: Side, funded: Funded
) -> None:
    payer = await funded(side.direct)
    channel = Channel((side.direct.eth_holder,), ((ETHER, 0),))
    async with side.open(payer, tx_timeout=1.0) as chain:
        side.proxy.stuck_at = (await chain.head()).number
        with pytest.raises(TxTimedOut):
            await chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), ETHER)
        side.proxy.stuck_at = None
        await chain.deposit(side.behind.eth_holder, None, channel.funding_id(0), ETHER)
        assert await chain.holdings(side.behind.eth_holder, channel.funding_id(0)) == ETHER
    assert await sent_by(side.direct, payer) == 1


async def test_with_a_synchronizing_node_nothing_is_begun_but_what_exists_is_protected(
    side: Side, funded: Funded
) -> None:
    payer = await funded(side.direct)
    channel = Channel((side.direct.eth_holder,), ((0, 0),))
    async with side.open(payer, tx_timeout=1.0) as chain:
        assert await chain.staleness() == ""
        assert await chain.quote_open(((None, ETHER),)) > 0
        side.proxy.stuck_at = (await chain.head()).number
        assert "synchronizing" in await chain.staleness()
        with pytest.raises(NotReachable, match="synchronizing"):
            await chain.quote_open(((None, ETHER),))
        with pytest.raises(TxTimedOut):  # sent, but the node does not show it yet
            await chain.register(channel.params, channel.signed(4))
        async with side.direct.open() as direct:
            assert (await direct.dispute(channel.id)).version == 4
        side.proxy.stuck_at = None
        await side.direct.mine()
        assert await chain.staleness() == ""
        assert (await chain.register(channel.params, channel.signed(4))).version == 4
    assert await sent_by(side.direct, payer) == 1


# ---- clocks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[-3 * 3600, 3 * 3600], ids=["chain behind", "chain ahead"])
def skewed(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """anvil whose clock differs by hours from that of this machine."""
    with anvil_ledger("--timestamp", str(int(time.time()) + request.param)) as ledger:
        yield ledger


async def test_deadlines_are_judged_by_the_clock_of_the_chain(skewed: Ledger, funded: Funded) -> None:
    payer = await funded(skewed)
    channel = Channel((skewed.eth_holder,), ((ETHER, 0),), challenge_duration=600)
    async with skewed.open(payer) as chain:
        await chain.deposit(skewed.eth_holder, None, channel.funding_id(0), ETHER)
        dispute = await chain.register(channel.params, channel.signed(2))
        head = await chain.head()
        assert abs(dispute.concludable_at - head.timestamp - 600) < 60
        assert abs(head.timestamp - time.time()) > 2 * 3600
        with pytest.raises(PerunError):
            await chain.conclude(channel.params, channel.state(1))
        await skewed.pass_time(600)
        assert (await chain.conclude(channel.params, channel.state(2))).phase is DisputePhase.CONCLUDED


async def test_a_head_that_is_old_by_our_clock_stops_new_openings_only(
    skewed: Ledger, funded: Funded, caplog: pytest.LogCaptureFixture
) -> None:
    """Development chains, known by their ID, may be as old as they like, unless the operator says otherwise; a chain
    that is ahead never is."""
    payer = await funded(skewed)
    channel = Channel((skewed.eth_holder,), ((0, 0),))
    ahead = (await rpc_head(skewed)) > time.time()
    async with skewed.open(payer) as chain:
        assert await chain.staleness() == ""
        assert await chain.quote_open(((None, ETHER),)) > 0
    async with skewed.open(payer, config=EthereumConfig(poll_interval=0.1, max_head_age=3600)) as chain:
        async with aclosing(chain.blocks()) as blocks:
            await anext(blocks)
        told = [record.message for record in caplog.records if "the chain node is behind" in record.message]
        assert len(told) == (0 if ahead else 1)
        if ahead:
            assert await chain.quote_open(((None, ETHER),)) > 0
        else:
            assert "s old, more than 3600 s" in await chain.staleness()
            with pytest.raises(NotReachable, match="behind"):
                await chain.quote_open(((None, ETHER),))
        assert (await chain.register(channel.params, channel.signed(1))).version == 1


async def rpc_head(ledger: Ledger) -> int:
    return int((await ledger.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16)


# ---- a gate ----------------------------------------------------------------------------------------------------------


async def test_closing_while_an_answer_is_outstanding_ends_at_once(side: Side) -> None:
    gate = threading.Event()
    with side.proxy.failing(method="eth_getBalance", gate=gate):
        async with side.open(connect_timeout=30.0) as chain:
            asking = asyncio.ensure_future(chain.balance(side.behind.eth_holder))
            async with asyncio.timeout(5):
                while not side.proxy.count("eth_getBalance"):  # noqa: ASYNC110 - another thread
                    await asyncio.sleep(0.02)
            begun = time.monotonic()
            if side.behind.url.startswith("http"):
                asking.cancel()
        assert time.monotonic() - begun < 5
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], BaseException)

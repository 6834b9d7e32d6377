"""A node killed at every step of a channel's life on chain loses nothing and sends nothing twice (CHAIN.md 6.3: N7).

alice's node is killed at the named moment, which the proxy before the chain or the chain itself shows. After its
restart she opens her session, and the rest happens by itself: every wei and every token is where it belongs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from perun_chain_ethereum import abi
from perun_core.values import Address, Bytes32
from tests.chain.conftest import Town
from tests.chain.onlooker import Purse, dispute_of, eventually, head_time, pass_time, stored_channels
from tests.integration.clients import User
from tests.integration.world import Party, open_channel, pay, settle
from tests.servers.fault_proxy import Message, raw_calls

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

ETHER = 10**18
DURATION = 60
CONCLUDED = 2
APPROVE = abi.call_approve(Address(bytes(20)), 1)[:4]
DEPOSIT = abi.call_deposit(Bytes32(bytes(32)), 1)[:4]
REGISTER, CONCLUDE, WITHDRAW = map(bytes.fromhex, ("e30194b7", "97f5a097", "4ed4283c"))


class Life:
    """A channel of alice, whose node will be killed, with bob."""

    def __init__(self, town: Town, party: Party) -> None:
        self.town, self.world, self.proxy, self.party = town, town.world, town.proxy, party
        self.alice, self.bob = town.people(tokens=10 * ETHER)
        self.purses = (Purse(self.world, self.alice), Purse(self.world, self.bob))
        self.channel = ""
        self.seen = len(self.proxy.seen)

    async def begin(self) -> None:
        self.user = await self.party.join(self.alice, self.town.honest)
        self.peer = await self.party.join(self.bob, self.town.other)

    def propose(self) -> asyncio.Task[str]:
        """Both begin to deposit ETH and PRN."""
        return asyncio.ensure_future(
            open_channel(self.user, self.peer, {"ETH": ("1", "1"), "PRN": ("2", "2")}, duration=DURATION)
        )

    async def open_and_pay(self) -> None:
        self.channel = await self.propose()
        await pay(self.user, self.peer, self.channel, ("ETH", "bob", "0.25"), ("PRN", "bob", "0.5"))

    async def close_alone(self) -> asyncio.Task[object]:
        """bob is away, so alice's node goes to the chain; nothing but her node acts from then on."""
        await self.peer.leave(force=True)
        return asyncio.ensure_future(quietly(self.user.close(self.channel)))

    def has_sent(self, selector: bytes, times: int = 1) -> bool:
        """Whether alice's node has handed over so many transactions of this kind."""
        matches = raw_calls(selector)
        seen = self.proxy.seen[self.seen :]
        return sum(matches({"method": each.method, "params": each.params}) for each in seen) >= times

    async def sent(self, selector: bytes, times: int = 1) -> None:
        """Until `has_sent`."""
        await eventually(lambda: self.has_sent(selector, times))

    async def kill_and_return(self) -> User:
        """The node is killed and started again; what the chain has not mined waits there."""
        self.town.honest.running.kill()
        self.proxy.faults.clear()
        self.proxy.mend()
        self.world.rpc("evm_setIntervalMining", 1)
        self.town.honest.start()
        return await self.party.join(self.alice, self.town.honest)

    def stop_blocks(self) -> None:
        self.world.rpc("evm_setIntervalMining", 0)

    def mined(self, selector: bytes) -> int:
        """How many transactions of this kind alice's account has made, failed ones included."""
        first, last = self.purses[0].block + 1, int(self.world.rpc("eth_blockNumber"), 16)
        blocks = (self.world.rpc("eth_getBlockByNumber", hex(number), True) for number in range(first, last + 1))
        return sum(
            tx["from"].lower() == self.alice.on_chain.lower() and tx["input"].startswith("0x" + selector.hex())
            for block in blocks
            for tx in block["transactions"]
        )

    @property
    def phase(self) -> int:
        return dispute_of(self.world, self.channel)[2]

    async def dispute_runs_out(self) -> None:
        await eventually(lambda: dispute_of(self.world, self.channel)[0] > 0)
        left = dispute_of(self.world, self.channel)[0] - head_time(self.world)
        if left > 0:
            await pass_time(self.world, left)

    async def gained(self, ether: float, tokens: float, *, who: int = 0) -> None:
        purse = self.purses[who]
        await eventually(lambda: (purse.gained(), purse.gained_tokens()) == (ether * ETHER, tokens * ETHER))


async def quietly(call: Coroutine[object, object, object]) -> object:
    """What a call gives, or the error it ends with."""
    return (await asyncio.gather(call, return_exceptions=True))[0]


@pytest.fixture
async def life(town: Town, party: Party) -> Life:
    life = Life(town, party)
    await life.begin()
    return life


Moment = Callable[[Life], Awaitable[None]]


# ---- funding ---------------------------------------------------------------------------------------------------------


async def eth_deposit_sent(life: Life) -> None:
    life.stop_blocks()
    await life.sent(DEPOSIT)


async def eth_deposit_mined_unseen(life: Life) -> None:
    life.stop_blocks()
    await life.sent(DEPOSIT)
    life.proxy.cut()
    life.world.rpc("evm_mine")


async def approve_sent(life: Life) -> None:
    life.proxy.add(method="eth_getTransactionReceipt", matches=lambda request: life.has_sent(APPROVE), silent=True)
    await life.sent(APPROVE)


@pytest.mark.parametrize("moment", [eth_deposit_sent, eth_deposit_mined_unseen, approve_sent])
async def test_a_deposit_comes_back_after_a_kill_in_the_middle_of_funding(life: Life, moment: Moment) -> None:
    """N7: what was not deposited before is not deposited any more (O-22); the deadline decides, both get theirs."""
    opening = life.propose()
    await moment(life)
    await life.kill_and_return()
    (life.channel,) = await stored_channels(life.alice)
    assert life.mined(DEPOSIT) <= 1
    await pass_time(life.world, DURATION + 1)
    await life.dispute_runs_out()
    await life.gained(0, 0)
    await life.gained(0, 0, who=1)
    assert life.mined(DEPOSIT) == 1
    assert isinstance((await asyncio.gather(opening, return_exceptions=True))[0], BaseException)


async def test_a_node_killed_while_the_last_deposit_is_awaited_finds_the_channel_open(life: Life) -> None:
    opening = life.propose()
    await life.sent(DEPOSIT, 2)
    user = await life.kill_and_return()
    await asyncio.gather(opening, return_exceptions=True)

    async def is_open() -> bool:
        return len(await user.client.channels(user.session)) == 1

    await eventually(is_open)
    (channel,) = await user.client.channels(user.session)
    await pay(user, life.peer, channel.id, ("ETH", "bob", "0.25"))
    await settle(life.peer, user, channel.id)
    await life.gained(-0.25, 0)
    await life.gained(0.25, 0, who=1)
    assert life.mined(DEPOSIT) == 2


# ---- settling --------------------------------------------------------------------------------------------------------


async def register_sent(life: Life) -> None:
    life.stop_blocks()
    await life.sent(REGISTER)


async def waiting_for_the_timeout(life: Life) -> None:
    await eventually(lambda: dispute_of(life.world, life.channel)[1] == 1)


async def conclude_sent(life: Life) -> None:
    await eventually(lambda: dispute_of(life.world, life.channel)[1] == 1)
    life.stop_blocks()
    life.world.rpc("evm_setNextBlockTimestamp", dispute_of(life.world, life.channel)[0])
    life.world.rpc("evm_mine")
    await life.sent(CONCLUDE)


async def concluded_and_nothing_withdrawn(life: Life) -> None:
    life.proxy.add(matches=raw_calls(WITHDRAW), silent=True)
    await life.dispute_runs_out()
    await eventually(lambda: life.phase == CONCLUDED)


async def one_of_two_assets_withdrawn(life: Life) -> None:
    withdraws, count = raw_calls(WITHDRAW), 0

    def is_second(request: Message) -> bool:
        nonlocal count
        count += withdraws(request)
        return count > 1 and withdraws(request)

    life.proxy.add(matches=is_second, silent=True)
    await life.dispute_runs_out()
    await eventually(lambda: life.mined(WITHDRAW) == 1)


@pytest.mark.parametrize(
    "moment",
    [
        register_sent,
        waiting_for_the_timeout,
        conclude_sent,
        concluded_and_nothing_withdrawn,
        one_of_two_assets_withdrawn,
    ],
)
async def test_a_dispute_is_finished_after_a_kill_and_every_step_is_paid_once(life: Life, moment: Moment) -> None:
    """N7."""
    await life.open_and_pay()
    closing = await life.close_alone()
    await moment(life)
    await life.kill_and_return()
    await life.dispute_runs_out()
    await life.gained(-0.25, -0.5)
    assert [life.mined(each) for each in (REGISTER, CONCLUDE, WITHDRAW)] == [1, 1, 2]
    await closing
    await life.party.join(life.bob, life.town.other)
    await life.gained(0.25, 0.5, who=1)

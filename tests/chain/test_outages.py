"""Whole nodes while their chain is away or misbehaves: nothing is lost, and no user is needed afterwards (X8, B21, N8).

alice's node reaches the chain through a proxy; bob's does so directly.
"""

from __future__ import annotations

import asyncio

import pytest

from perun_chain_ethereum import abi
from perun_core.values import Bytes32
from tests.chain.conftest import Town
from tests.chain.onlooker import (
    Purse,
    dispute_of,
    eventually,
    head_time,
    pass_time,
    register_directly,
    stored,
)
from tests.integration.clients import ClientError, User
from tests.integration.world import Party, Person, open_channel, pay, refused, settle, until
from tests.servers.fault_proxy import RATE_LIMITED, log_ranges_up_to, raw_calls

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

SHORT_OUTAGE = 2.0
"""Seconds."""
DISPUTE, FORCEEXEC, CONCLUDED = range(3)
DEPOSIT = abi.call_deposit(Bytes32(bytes(32)), 1)[:4]
ETHER = 10**18


async def joined(town: Town, party: Party) -> tuple[tuple[Person, Person], tuple[Purse, Purse], User, User]:
    """alice and bob online, with what they own now."""
    alice, bob = town.people()
    purses = (Purse(town.world, alice), Purse(town.world, bob))
    return (alice, bob), purses, await party.join(alice, town.honest), await party.join(bob, town.other)


async def test_an_old_state_registered_during_an_outage_is_refuted_when_the_chain_is_back(
    town: Town, party: Party
) -> None:
    world = town.world
    (_, cheater), purses, alice, bob = await joined(town, party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=120)
    old = await stored(cheater, channel)
    await pay(bob, alice, channel, ("ETH", "alice", "0.75"))
    await bob.leave(force=True)
    with town.proxy.outage():
        await register_directly(world, cheater, old)
        await pass_time(world, 60)
    await eventually(lambda: dispute_of(world, channel)[1] == 1)
    timeout, _, phase = dispute_of(world, channel)
    assert phase == DISPUTE and head_time(world) < timeout
    await pass_time(world, timeout - head_time(world))
    await eventually(lambda: purses[0].gained() == 3 * ETHER // 4)


async def test_a_dispute_of_the_newest_state_during_an_outage_is_finished_when_the_chain_is_back(
    town: Town, party: Party
) -> None:
    """The peer registered what both agreed on, concluded it and took its share; ours follows."""
    world = town.world
    (_, other), purses, alice, bob = await joined(town, party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=60)
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    with town.proxy.outage():
        await register_directly(world, other, await stored(other, channel))
        await pass_time(world, 61)
        await eventually(lambda: purses[1].gained() == ETHER // 4)
        assert dispute_of(world, channel)[2] == CONCLUDED
    await eventually(lambda: purses[0].gained() == -ETHER // 4)

    async def nothing_is_open() -> bool:
        return await alice.client.channels(alice.session) == ()

    await until(nothing_is_open)  # the money is back before the block that says so is final


async def test_a_channel_closed_with_agreement_during_an_outage_pays_both(town: Town, party: Party) -> None:
    """Off-chain life goes on without a chain: a payment and the closing; the money comes when the chain is back."""
    world = town.world
    _, purses, alice, bob = await joined(town, party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=60)
    town.proxy.cut()
    await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    closing = asyncio.ensure_future(settle(bob, alice, channel))
    await eventually(lambda: purses[1].gained() == ETHER // 2)
    town.proxy.mend()
    await eventually(lambda: purses[0].gained() == -ETHER // 2)
    await asyncio.gather(closing, return_exceptions=True)
    assert dispute_of(world, channel)[2] == CONCLUDED


async def test_a_user_is_told_when_the_chain_cannot_be_reached(town: Town, party: Party) -> None:
    """N8: 302 with the chain's address; the channel that exists goes on, and closing works later."""
    _, purses, alice, bob = await joined(town, party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=60)
    with town.proxy.outage():
        with pytest.raises(ClientError) as proposing:
            await alice.propose("bob", {"ETH": ("1", "1")})
        refused(proposing.value, 302, {"chainURL": town.proxy.ws})
        await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    await settle(alice, bob, channel)
    assert [purse.gained() for purse in purses] == [-ETHER // 2, ETHER // 2]


async def test_a_transaction_that_is_not_mined_in_time_is_told_and_settled_later(town: Town, party: Party) -> None:
    """N8: 301 with type and time; the closing finishes without anybody asking again."""
    world = town.world
    alice_files, bob_files = town.people()
    alice_files.configure(onchaintxtimeout="2s")
    purses = (Purse(world, alice_files), Purse(world, bob_files))
    alice, bob = await party.join(alice_files, town.honest), await party.join(bob_files, town.other)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=60)
    world.rpc("evm_setIntervalMining", 0)
    closing = asyncio.ensure_future(alice.close(channel))
    await bob_answers(bob, channel)
    with pytest.raises(ClientError) as late:
        await closing
    refused(late.value, 301, {"txType": "concludeFinal", "txTimeout": "2s"})
    world.rpc("evm_setIntervalMining", 1)
    await eventually(lambda: [purse.gained() for purse in purses] == [0, 0])
    assert dispute_of(world, channel)[2] == CONCLUDED


async def bob_answers(bob: User, channel: str) -> None:
    """Accept the closing without waiting for the money, which needs blocks."""
    updates = await bob.client.updates(bob.session, channel)
    update = await updates.next()
    asyncio.ensure_future(_quietly(bob, channel, update.id))  # noqa: RUF006 - ends with the session


async def _quietly(bob: User, channel: str, update: str) -> None:
    try:
        await bob.client.respond_update(bob.session, channel, update, accept=True)
    except Exception as error:
        assert isinstance(error, ClientError) or type(error).__name__ == "AioRpcError"


@pytest.mark.parametrize(
    "trouble",
    ["rate limits", "short log ranges", "lost answers", "notifications twice", "slow"],
)
async def test_a_whole_channel_life_on_a_troubled_node_costs_and_pays_exactly(
    town: Town, party: Party, trouble: str
) -> None:
    """B21: the closing and the withdrawal meet the trouble again and again."""
    world, proxy = town.world, town.proxy
    _, purses, alice, bob = await joined(town, party)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=60)
    asked = 0

    def every_third(request: object) -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    match trouble:
        case "rate limits":
            proxy.add(matches=every_third, error=RATE_LIMITED, times=8)
        case "short log ranges":
            proxy.add(**log_ranges_up_to(1))
        case "lost answers":
            proxy.add(matches=every_third, lose_answer=True, times=8)
        case "notifications twice":
            proxy.repeat_heads = 2
            proxy.add(twice=True)
        case "slow":
            proxy.add(delay=0.2)
    await pay(alice, bob, channel, ("ETH", "bob", "0.5"))
    await asyncio.gather(alice.close(channel), bob.answer_update(channel, accept=True), return_exceptions=True)
    await eventually(lambda: [purse.gained() for purse in purses] == [-ETHER // 2, ETHER // 2], timeout=60)
    assert dispute_of(world, channel)[2] == CONCLUDED


async def test_a_short_outage_while_the_peer_s_deposit_is_awaited_does_not_end_the_funding(
    town: Town, party: Party
) -> None:
    world, proxy = town.world, town.proxy
    _, purses, alice, bob = await joined(town, party)
    world.rpc("evm_setIntervalMining", 0)
    opening = asyncio.ensure_future(open_channel(alice, bob, {"ETH": ("1", "1")}, duration=120))
    await eventually(lambda: any(raw_calls(DEPOSIT)({"method": s.method, "params": s.params}) for s in proxy.seen))
    await eventually(lambda: int(world.rpc("txpool_status")["pending"], 16) == 2)
    with proxy.outage():
        world.rpc("evm_mine")
        await asyncio.sleep(SHORT_OUTAGE)
    world.rpc("evm_setIntervalMining", 1)
    channel = await opening
    await settle(alice, bob, channel)
    assert [purse.gained() for purse in purses] == [0, 0]


async def test_a_deposit_whose_broadcast_was_never_answered_is_not_forgotten(town: Town, party: Party) -> None:
    """The chain took the deposit, but the connection ended before it said so, and stays away past the deadline.

    Both deposits are there, so the channel is too, and everything comes back when it is closed.
    """
    world, proxy = town.world, town.proxy
    _, purses, alice, bob = await joined(town, party)
    fault = proxy.add(matches=raw_calls(DEPOSIT), lose_answer=True, times=1)
    opening = asyncio.ensure_future(open_channel(alice, bob, {"ETH": ("2", "1")}, duration=20))
    await eventually(lambda: fault.used == 1)
    proxy.add(silent=True)
    await pass_time(world, 21)
    proxy.faults.clear()
    proxy.drop()
    channel = await opening
    await settle(alice, bob, channel)
    assert [purse.gained() for purse in purses] == [0, 0]


async def test_whoever_waits_in_vain_for_a_deposit_is_told_whose(town: Town, party: Party) -> None:
    """B7: here the proposer's never comes; the responder's money comes back."""
    world, proxy = town.world, town.proxy
    _, purses, alice, bob = await joined(town, party)
    proxy.add(matches=raw_calls(DEPOSIT), error=(-32000, "no transactions today"))
    proposing = asyncio.ensure_future(alice.propose("bob", {"ETH": ("1", "1")}, 20))
    answering = asyncio.ensure_future(bob.answer_proposal(accept=True))
    await eventually(lambda: purses[1].gained() == -ETHER)
    await pass_time(world, 21)
    mine, theirs = await asyncio.gather(proposing, answering, return_exceptions=True)
    assert isinstance(mine, ClientError) and isinstance(theirs, ClientError)
    refused(theirs, 103, {"peerAlias": "alice"})
    for _ in range(2):
        await pass_time(world, 21)
    await eventually(lambda: [purse.gained() for purse in purses] == [0, 0])

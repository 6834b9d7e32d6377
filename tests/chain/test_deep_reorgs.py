"""A reorg that takes a finished settlement back costs nobody anything (CHAIN.md 6.2: B2, B22).

Both nodes count a transaction after one block. Twelve blocks are exchanged, in which everybody had got his money
already. What comes back comes in another order, so that a withdrawal is mined before the conclusion it needs, fails,
and has used up its nonce: nothing is left that could be broadcast again.
"""

from __future__ import annotations

from typing import Any

import pytest

from perun_core.profile.gp090 import PROFILE
from perun_core.values import Address, ChannelID
from tests.chain.conftest import Town
from tests.chain.onlooker import Purse, dispute_of, eventually, stored_channels
from tests.integration.world import ETHER, Party, Person, World, open_channel, pay, settle

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

DEPTH = 12
CONCLUDED = 2
CONCLUDE_FINAL, WITHDRAW = "0x66e7b564", "0x4ed4283c"


def height(world: World) -> int:
    return int(world.rpc("eth_blockNumber"), 16)


def settling(world: World, first: int) -> list[Any]:
    """The transactions since block `first`, in their order."""
    blocks = (world.rpc("eth_getBlockByNumber", hex(number), True) for number in range(first, height(world) + 1))
    return [tx for block in blocks for tx in block["transactions"]]


def holdings(world: World, channel: str, person: Person) -> int:
    """What the ETH holder keeps for somebody."""
    key = PROFILE.funding_id(ChannelID.from_hex(channel), Address.from_hex(person.off_chain))
    call = {"to": world.contracts["eth"], "data": "0xae9ee18c" + key.hex()}
    return int(world.rpc("eth_call", call, "latest"), 16)


@pytest.mark.parametrize("restarted", [False, True], ids=["while it runs", "while it is down"])
async def test_b22_a_withdrawal_that_a_deep_reorg_undid_is_made_again_without_a_hand(
    town: Town, party: Party, restarted: bool
) -> None:
    world = town.world
    alice, bob = town.people()
    purses = (Purse(world, alice), Purse(world, bob))
    user, peer = await party.join(alice, town.honest), await party.join(bob, town.other)
    channel = await open_channel(user, peer, {"ETH": ("2", "2")}, duration=120)
    await pay(user, peer, channel, ("ETH", "bob", "0.5"))
    world.rpc("anvil_mine", hex(DEPTH))
    first = height(world)
    await settle(user, peer, channel)
    await eventually(lambda: [purse.gained() for purse in purses] == [-ETHER // 2, ETHER // 2])
    if restarted:
        town.other.running.kill()

    world.rpc("evm_setIntervalMining", 0)
    txs = settling(world, first)
    raws = {tx["hash"]: world.rpc("eth_getRawTransactionByHash", tx["hash"]) for tx in txs}
    assert height(world) - first < DEPTH, "the whole settlement has to be in the blocks that are exchanged"
    (concluding,) = (tx for tx in txs if tx["input"].startswith(CONCLUDE_FINAL))
    early = [tx for tx in txs if tx["input"].startswith(WITHDRAW) and tx["from"].lower() == bob.on_chain.lower()]
    assert concluding["from"].lower() == alice.on_chain.lower() and len(early) == 1
    rest = [tx for tx in txs if tx not in early]
    history = [[raws[tx["hash"]], offset] for offset, tx in enumerate((*early, *rest))]
    world.rpc("anvil_reorg", DEPTH, history)
    assert dispute_of(world, channel)[2] == CONCLUDED and holdings(world, channel, bob) == 5 * ETHER // 2
    world.rpc("evm_setIntervalMining", 1)

    if restarted:
        town.other.start()
        peer = await party.join(bob, town.other)
    await eventually(lambda: holdings(world, channel, bob) == 0)
    await eventually(lambda: [purse.gained() for purse in purses] == [-ETHER // 2, ETHER // 2])
    for person in (alice, bob):
        await eventually(lambda person=person: _is_archived(person))  # type: ignore[misc]
    assert await peer.client.channels(peer.session) == (), "its user has nothing to do with it"


async def _is_archived(person: Person) -> bool:
    return await stored_channels(person) == []


async def test_b22_a_conclusion_whose_transactions_are_lost_for_good_is_made_anew(town: Town, party: Party) -> None:
    """The blocks come back empty, and the pool has forgotten everything."""
    world = town.world
    alice, bob = town.people()
    purses = (Purse(world, alice), Purse(world, bob))
    user, peer = await party.join(alice, town.honest), await party.join(bob, town.other)
    channel = await open_channel(user, peer, {"ETH": ("2", "2")}, duration=120)
    await pay(user, peer, channel, ("ETH", "bob", "0.5"))
    world.rpc("anvil_mine", hex(DEPTH))
    await settle(user, peer, channel)
    await eventually(lambda: [purse.gained() for purse in purses] == [-ETHER // 2, ETHER // 2])
    world.rpc("evm_setIntervalMining", 0)
    world.rpc("anvil_reorg", DEPTH, [])
    world.rpc("anvil_dropAllTransactions")
    assert dispute_of(world, channel)[2] != CONCLUDED
    world.rpc("evm_setIntervalMining", 1)
    await eventually(lambda: dispute_of(world, channel)[2] == CONCLUDED)
    await eventually(lambda: [purse.gained() for purse in purses] == [-ETHER // 2, ETHER // 2])
    for person in (alice, bob):
        assert holdings(world, channel, person) == 0
        await eventually(lambda person=person: _is_archived(person))  # type: ignore[misc]

"""A node that comes too late, or whose storage is behind, still gets out what the chain has for it (PROTOCOL.md 7.9).

It does not hold the state that is registered, and nobody else concludes it: bob's node is away. alice's takes the state
from the transaction that registered it, concludes it and withdraws her share.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chain.conftest import Town
from tests.chain.onlooker import Purse, dispute_of, eventually, head_time, pass_time, register_directly, stored
from tests.chain.test_cheating_peer import CONCLUDED, Cheat
from tests.integration.world import ETHER, Party, open_channel, pay

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

DURATION = 120


async def test_a_node_that_slept_through_a_challenge_concludes_what_was_registered(town: Town, party: Party) -> None:
    """Nothing can bring the newest state back; what is left must not stay in the contract for ever."""
    cheat = await Cheat.prepared(town, party)
    town.honest.running.kill()
    await register_directly(town.world, cheat.bob, cheat.old)
    await pass_time(town.world, DURATION + 1)
    assert cheat.dispute[1:] == (1, 0) and head_time(town.world) > cheat.dispute[0]
    town.honest.start()
    await party.join(cheat.alice, town.honest)
    await eventually(lambda: cheat.dispute[1:] == (1, CONCLUDED))
    await eventually(lambda: cheat.purses[0].gained() == -ETHER // 2)
    await eventually(lambda: cheat.purses[0].gained_tokens() == 0)
    said = town.honest.running.output
    assert "stands on chain although we hold 2" in said and "was taken from the chain to be concluded" in said
    await party.join(cheat.bob, town.other)
    await eventually(lambda: cheat.purses[1].gained() == ETHER // 2)


async def test_a_node_with_an_older_copy_of_its_storage_concludes_the_newer_state_of_the_chain(
    town: Town, party: Party, tmp_path: Path
) -> None:
    world = town.world
    alice, bob = town.people()
    purses = (Purse(world, alice), Purse(world, bob))
    user, peer = await party.join(alice, town.honest), await party.join(bob, town.other)
    channel = await open_channel(user, peer, {"ETH": ("1", "3")}, duration=DURATION)
    await pay(user, peer, channel, ("ETH", "bob", "0.25"))
    await user.leave(force=True)
    shutil.copytree(alice.home / "database", tmp_path / "older")
    user = await party.join(alice, town.honest)
    await pay(user, peer, channel, ("ETH", "bob", "0.25"))
    newest = await stored(bob, channel)
    await peer.leave(force=True)
    await user.leave(force=True)
    shutil.rmtree(alice.home / "database")
    shutil.copytree(tmp_path / "older", alice.home / "database")

    await register_directly(world, bob, newest)
    await party.join(alice, town.honest)
    await eventually(lambda: "our storage is behind" in town.honest.running.output)
    await pass_time(world, DURATION + 1)
    await eventually(lambda: dispute_of(world, channel)[1:] == (2, CONCLUDED))
    await eventually(lambda: purses[0].gained() == -ETHER // 2)
    await party.join(bob, town.other)
    await eventually(lambda: purses[1].gained() == ETHER // 2)

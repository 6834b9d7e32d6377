"""What survives: closing and reopening, a killed node, an orderly end (API.md 5.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from tests.integration.clients import ClientError
from tests.integration.world import (
    ETHER,
    Party,
    World,
    gathering,
    open_channel,
    pay,
    refused,
    running_world,
    settle,
    until,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two nodes, of which the first is ended and started again by these tests."""
    with running_world("embedded", tmp_path_factory.mktemp("restarts"), nodes=2) as world:
        yield world


async def test_a_reopened_session_has_its_channels_in_order_and_pays_on(party: Party) -> None:
    people = party.world.friends("alice", "bob")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    first = await open_channel(alice, bob, {"ETH": ("1", "1")})
    second = await open_channel(bob, alice, {"ETH": ("1", "0")}, peer="alice")
    await pay(alice, bob, first, ("ETH", "bob", "0.5"))
    before = await alice.client.channels(alice.session)
    assert [each.id for each in before] == [first, second]
    assert await alice.leave(force=True) == before

    with pytest.raises(ClientError) as caught:
        await bob.pay(first, [("ETH", "self", "0.1")])
    refused(caught.value, 101, {"peerAlias": "alice"})

    again = await party.join(people[0], 0)
    assert again.session != alice.session and again.restored == before
    await pay(bob, again, first, ("ETH", "alice", "0.25"))
    await pay(again, bob, second, ("ETH", "self", "0.125"))
    assert (await again.info(first)).balances == {"ETH": ("0.75", "1.25")}
    await settle(again, bob, first)
    assert await again.leave(force=True) == await_one(second, await again_channels(party, again, second))


def await_one(channel: str, listed: tuple[str, ...]) -> tuple[str, ...]:
    assert listed == (channel,)
    return listed


async def again_channels(party: Party, user: object, channel: str) -> tuple[str, ...]:
    return (channel,)

"""Notifications as a client sees them: once, in order, kept while nobody listens (API.md 2.2.4)."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.clients import ClientError, Stream, Update
from tests.integration.world import Party, open_channel, refused


async def test_a_proposal_waits_for_its_subscriber_and_comes_once(party: Party) -> None:
    alice, bob = await party.two()
    opening = asyncio.ensure_future(alice.propose("bob", {"ETH": ("1", "0")}))
    first = await bob.client.proposals(bob.session)
    with pytest.raises(ClientError) as taken:
        await bob.client.proposals(bob.session)
    refused(taken.value, 202, {"type": "proposalsSub", "id": bob.session})
    proposal = await first.next()
    await bob.client.unsubscribe_proposals(bob.session)
    await first.ended()
    with pytest.raises(ClientError) as nothing:
        await bob.client.unsubscribe_proposals(bob.session)
    refused(nothing.value, 201, {"type": "proposalsSub", "id": bob.session})
    second = await bob.client.proposals(bob.session)  # at once, and without what was delivered
    opened = await bob.client.respond_proposal(bob.session, proposal.id, accept=True)
    assert (await opening).id == opened.id
    with pytest.raises(TimeoutError):
        await second.next(0.3)


async def test_updates_come_in_order_whoever_reads_and_the_news_of_the_closing_is_the_last(party: Party) -> None:
    alice, bob = await party.two(response_timeout="20s")
    channel = await open_channel(alice, bob, {"ETH": ("1", "0")})
    seen = []

    async def read(updates: Stream[Update], count: int) -> None:
        for _ in range(count):
            update = await updates.next()
            seen.append(int(update.channel.version))
            await bob.client.respond_update(bob.session, channel, update.id, accept=True)

    payments = [asyncio.ensure_future(alice.pay(channel, [("ETH", "bob", "0.001")])) for _ in range(6)]
    updates = await bob.client.updates(bob.session, channel)
    with pytest.raises(ClientError) as taken:
        await bob.client.updates(bob.session, channel)
    refused(taken.value, 202, {"type": "updatesSub", "id": channel})
    await read(updates, 3)
    updates.cancel()  # gone without a word: what was not read is kept for the next
    resubscribed = await resubscribe(party, bob.session, channel)
    await read(resubscribed, 3)
    assert [(await payment).version for payment in payments] == ["1", "2", "3", "4", "5", "6"]
    assert seen == [1, 2, 3, 4, 5, 6]

    mine = await alice.client.updates(alice.session, channel)
    closing = asyncio.ensure_future(alice.close(channel))
    final = await resubscribed.next()
    assert final.type == "final" and final.channel.balances == {"ETH": ("0.994", "0.006")}
    await bob.client.respond_update(bob.session, channel, final.id, accept=True)
    await closing
    for stream in (mine, resubscribed):
        closed = await stream.next()
        assert (closed.type, closed.expiry, closed.error) == ("closed", 0, None)
        await stream.ended()
    with pytest.raises(ClientError) as caught:
        await alice.client.updates(alice.session, channel)
    refused(caught.value, 204)
    assert (await alice.info(channel)).balances == {"ETH": ("0.994", "0.006")}


async def resubscribe(party: Party, session: str, channel: str) -> Stream[Update]:
    """The node learns of a cancelled stream in its own time; until then it says that somebody is subscribed."""
    client = await party.client()
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.updates(session, channel)
            except ClientError as error:
                refused(error, 202)
                await asyncio.sleep(0.05)


async def test_a_closed_session_ends_its_streams_and_refuses_every_call(party: Party) -> None:
    alice, bob = await party.two()
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")})
    client, session = alice.client, alice.session
    proposals, updates = await client.proposals(session), await client.updates(session, channel)
    with pytest.raises(ClientError) as unclosed:
        await alice.leave()
    refused(unclosed.value, 204)
    (listed,) = unclosed.value.info["chs"]  # type: ignore[misc]
    assert listed.id == channel
    (kept,) = await alice.leave(force=True)
    assert kept.id == channel
    await proposals.ended()
    await updates.ended()
    peer = await bob.client.get_peer(bob.session, "alice")
    for call in (
        client.add_peer(session, peer),
        client.get_peer(session, "bob"),
        client.open_channel(session, ("self", "bob"), {"ETH": ("1", "1")}, 10),
        client.respond_proposal(session, "00", accept=True),
        client.unsubscribe_proposals(session),
        client.channels(session),
        client.deploy_asset(session, "0x0"),
        client.pay(session, channel, [("ETH", "bob", "1")]),
        client.info(session, channel),
        client.close_channel(session, channel),
        client.close_session(session, force=True),
        client.proposals(session),
        client.updates(session, channel),
    ):
        with pytest.raises(ClientError) as caught:
            await call
        refused(caught.value, 204, {})
        assert "action not allowed on a closed session" in caught.value.message

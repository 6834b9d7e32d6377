"""What the published clients do, call by call in their order (API.md 6.3, 7.8)."""

from __future__ import annotations

import asyncio

from tests.integration.clients import Channel, Stream, Update, User
from tests.integration.scenarios.conftest import Company
from tests.integration.scenarios.telling import ONE_TWO, refuses, told_closed
from tests.integration.world import open_channel, settle


async def shown(user: User, updates: Stream[Update], channel: str) -> Update:
    """A notification as the command line client prints it: it asks for time and channel before it says anything."""
    update = await updates.next()
    async with asyncio.timeout(5):
        info = await user.info(channel)
        assert update.type == "closed" or update.expiry >= await user.client.time() - 1
    well_formed(info)
    well_formed(update.channel)
    return update


def well_formed(channel: Channel) -> None:
    """Nothing in it that makes a client of the published API stumble."""
    assert channel.balances and all(len(row) == len(channel.parts) == 2 for row in channel.balances.values())
    assert channel.version == str(int(channel.version)) and len(channel.id) == 64


async def accepts(user: User, channel: str) -> Update:
    """Subscribe, wait, show, accept, unsubscribe: one step of the command line client."""
    updates = await user.client.updates(user.session, channel)
    update = await shown(user, updates, channel)
    well_formed(await user.client.respond_update(user.session, channel, update.id, accept=True))
    await user.client.unsubscribe_updates(user.session, channel)
    return update


async def test_X10_a_day_at_the_command_line_with_closing_by_force_and_reopening_on_both_sides(
    company: Company,
) -> None:
    alice, bob = company.world.person("alice"), company.world.person("bob")
    a, b = await company.seat(alice, bob)
    mine, theirs = await a.client.get_peer(a.session, "self"), await b.client.get_peer(b.session, "self")
    await a.client.add_peer(a.session, theirs._replace(alias="bob"))
    await b.client.add_peer(b.session, mine._replace(alias="alice"))
    channel = await open_channel(a, b, ONE_TWO)
    for payee in ("bob", "self"):
        paid, _ = await asyncio.gather(a.pay(channel, [("ETH", payee, "0.25")]), accepts(b, channel))
        well_formed(paid)
    # Without anything pending the client answers with an empty ID.
    await refuses(b.client.respond_update(b.session, channel, "", accept=True), 201, type="update", id="")
    # A refused closing of the session: it unsubscribes and subscribes again at once.
    proposals = await a.client.proposals(a.session)
    await refuses(a.leave(), 204)
    await a.client.unsubscribe_proposals(a.session)
    await proposals.ended()
    await a.client.proposals(a.session)
    old = a.session, b.session
    for user in (a, b):
        (kept,) = await user.leave(force=True)
        assert kept.id == channel and kept.version == "2"
        well_formed(kept)
    alice.know(bob)
    bob.know(alice)
    a, b = await company.seat(alice, bob)
    assert [each.id for each in (*a.restored, *b.restored)] == [channel] * 2
    for user, before in zip((a, b), old, strict=True):
        await refuses(user.client.channels(before), 204)  # it keeps using the old ID
    paid, _ = await asyncio.gather(b.pay(channel, [("ETH", "alice", "0.5")]), accepts(a, channel))
    assert paid.version == "3" and paid.balances == {"ETH": ("1.5", "1.5")}
    await settle(a, b, channel)
    assert await a.leave() == await b.leave() == ()


async def test_X11_a_dashboard_on_one_side_sees_a_channel_from_its_opening_to_its_end(company: Company) -> None:
    """It subscribes once, shows what a refusal returns, and reads its notifications after its own calls."""
    a, b = await company.pair()
    channel = await open_channel(a, b, ONE_TWO, duration=3)
    dashboard = await a.client.updates(a.session, channel)
    paying = asyncio.ensure_future(b.pay(channel, [("ETH", "alice", "2")]))
    asked = await shown(a, dashboard, channel)
    well_formed(await a.client.respond_update(a.session, channel, asked.id, accept=True))
    paid = await paying
    assert paid.balances == {"ETH": ("3", "0")}  # a zero can be read again too
    requesting = asyncio.ensure_future(refuses(b.pay(channel, [("ETH", "self", "1")]), 102))
    asked = await shown(a, dashboard, channel)
    answer = await a.client.respond_update(a.session, channel, asked.id, accept=False)
    well_formed(answer)
    assert answer.version == "1"
    await requesting
    ending = asyncio.ensure_future(a.close(channel))
    await b.answer_update(channel, accept=False)
    well_formed(await ending)  # the notification waited unread all the while
    told = await told_closed(dashboard)
    assert told.error is None and told.channel.balances == paid.balances

"""Payments, notifications and closing of channels (API.md 7.5, 7.8)."""

from __future__ import annotations

import asyncio

from tests.integration.clients import Channel, ClientError, Stream, Update, User
from tests.integration.scenarios.conftest import Company
from tests.integration.scenarios.telling import ONE_TWO, closing, ends, failure, quiet, refuses, told_closed
from tests.integration.world import ETHER, World, open_channel, pay, until, until_past

GAS = ETHER // 20
CLOSED = "action not allowed on a closed channel"


async def agreed(a: User, b: User, channel: str) -> Channel:
    """What both sides hold, which is the same."""
    mine, theirs = await a.info(channel), await b.info(channel)
    assert (mine.version, mine.balances) == (theirs.version, theirs.balances)
    return mine


async def test_C1_C2_C3_payments_are_agreed_or_refused_by_the_payee(company: Company) -> None:
    a, b = await company.pair()
    channels = [await open_channel(a, b, ONE_TWO), await open_channel(b, a, ONE_TWO, peer="alice")]
    for user in (a, b):
        assert [each.id for each in await user.client.channels(user.session)] == channels
    channel = channels[0]
    paid = await pay(b, a, channel, ("ETH", "alice", "0.5"))
    assert (paid.version, paid.balances, paid.parts) == ("1", {"ETH": ("1.5", "1.5")}, ("alice", "self"))
    assert (await agreed(a, b, channel)).version == "1"
    for item in (("ETH", "bob", "0.5"), ("ETH", "self", "0.5")):
        call = refuses(a.pay(channel, [item]), 102, peerAlias="bob", reason="rejected by user")
        _, answer = await asyncio.gather(call, b.answer_update(channel, accept=False))
        assert answer == await b.info(channel) and answer.version == "1"
    assert (await agreed(a, b, channel)).balances == {"ETH": ("1.5", "1.5")}


async def test_C4_C8_an_unanswered_payment_is_a_time_out_and_the_channel_goes_on(company: Company) -> None:
    a, b = await company.pair(response_timeout="1s")
    channel = await open_channel(a, b, ONE_TWO)
    updates = await b.client.updates(b.session, channel)
    call = refuses(a.pay(channel, [("ETH", "bob", "0.5")]), 101, peerAlias="bob", timeout="1s")
    paying = asyncio.ensure_future(call)
    update = await updates.next()
    await until_past(b.client, update.expiry)
    respond = b.client.respond_update
    late = await refuses(respond(b.session, channel, update.id, accept=True), 104, expiry=update.expiry)
    assert isinstance(late.info["receivedAt"], int) and late.info["receivedAt"] > update.expiry
    for unknown in (update.id, "", "unknown", f"{channel}_999", f"{channel}_0_closed"):
        call = refuses(respond(b.session, channel, unknown, accept=False), 201, type="update", id=unknown)
        await call
    await paying
    await b.client.unsubscribe_updates(b.session, channel)
    assert (await pay(a, b, channel, ("ETH", "bob", "0.25"))).version == "1"


async def test_C5_U1_D17_payments_that_cannot_be_are_refused_before_the_peer_hears_of_them(company: Company) -> None:
    """D17: what is printed is exact, so that it can be read again."""
    a, b = await company.pair()
    channel = await open_channel(a, b, {"ETH": ("1.000000000000000001", "0.12345678")})
    updates = await b.client.updates(b.session, channel)
    numbers = ("invalid-currency-string", "", ".", "0", "0.0", "-1", "5e-19", "5E-19", "NaN", "Inf", "1 ", "1,5", "0x1")
    for text in (*numbers, "0.0000000000000000005", "1e999999999"):
        call = a.pay(channel, [("ETH", "bob", text)])
        await refuses(call, 203, text="invalid amount", name="amount", value=text)
    for payee in ("nobody", "", "alice", "Self"):
        await refuses(a.pay(channel, [("ETH", payee, "1")]), 203, text="invalid payee", name="payee", value=payee)
    await refuses(a.pay(channel, [("XYZ", "bob", "1")]), 201, type="currency", id="XYZ")
    too_much = [("ETH", "bob", "0.5"), ("ETH", "bob", "0.6")]
    await refuses(a.pay(channel, too_much), 203, name="amount", value="0.6")
    await refuses(a.pay(channel, [("ETH", "self", "1.1")]), 203, name="amount", value="1.1")
    await refuses(a.pay("00" * 32, [("ETH", "bob", "1")]), 201, type="channel", id="00" * 32)
    silence = await quiet(updates)
    await b.client.unsubscribe_updates(b.session, channel)
    await ends(silence)
    amounts = ("0.5", ".25", "5e-18", "5E-18", "0.000000000000000005", "+1e-2", "00.01")
    paid = await pay(a, b, channel, *(("ETH", "bob", text) for text in amounts))
    assert paid.version == "1" and paid.balances == {"ETH": ("0.229999999999999986", "0.893456780000000015")}


async def test_C6_C7_updates_have_one_subscriber_and_come_once(company: Company) -> None:
    a, b = await company.pair()
    channel = await open_channel(a, b, ONE_TWO)
    for early in (True, False):
        paying = asyncio.ensure_future(a.pay(channel, [("ETH", "bob", "0.1")])) if early else None
        updates = await b.client.updates(b.session, channel)
        paying = paying or asyncio.ensure_future(a.pay(channel, [("ETH", "bob", "0.1")]))
        update = await updates.next()
        assert update.type == "open" and update.id == f"{channel}_{update.channel.version}"
        await refuses(b.client.updates(b.session, channel), 202, type="updatesSub", id=channel)
        await b.client.unsubscribe_updates(b.session, channel)
        await updates.ended()
        await refuses(b.client.unsubscribe_updates(b.session, channel), 201, type="updatesSub", id=channel)
        second = await b.client.updates(b.session, channel)
        silence = await quiet(second)
        await b.client.unsubscribe_updates(b.session, channel)
        await ends(silence)
        await b.client.respond_update(b.session, channel, update.id, accept=True)
        await paying
    ending = asyncio.ensure_future(a.close(channel))
    updates = await b.client.updates(b.session, channel)
    final = await updates.next()
    assert final.type == "final" and final.id == f"{channel}_3"
    await b.client.respond_update(b.session, channel, final.id, accept=True)
    await ending
    await told_closed(updates)


async def test_C10_C12_C13_C15_C17_D18_an_agreed_closing_pays_both_and_leaves_a_channel_that_only_tells(
    company: Company,
) -> None:
    world = company.world
    alice, bob = world.friends("alice", "bob", tokens=5 * ETHER)
    a, b = await company.seat(alice, bob)
    channel = await open_channel(a, b, {"ETH": ("1", "2"), "PRN": ("1", "2")})
    await pay(a, b, channel, ("ETH", "bob", "0.1"), ("PRN", "bob", "0.1"))
    before = [(world.balance(one.on_chain), world.tokens(one.on_chain)) for one in (alice, bob)]
    company.hurry()
    told = await closing(a, b, channel, agree=True)
    for update in told:
        assert update.id == f"{channel}_2_closed" and update.channel.version == "2" and update.error is None
        assert update.channel.balances == {"ETH": ("0.9", "2.1"), "PRN": ("0.9", "2.1")}
    for one, (ether, tokens), tenths in zip((alice, bob), before, (9, 21), strict=True):
        assert world.tokens(one.on_chain) - tokens == tenths * ETHER // 10
        assert 0 < ether + tenths * ETHER // 10 - world.balance(one.on_chain) < GAS
    for user, peer in ((a, "bob"), (b, "alice")):
        client, session = user.client, user.session
        for call in (
            user.pay(channel, [("ETH", peer, "0.1")]),
            client.updates(session, channel),
            client.unsubscribe_updates(session, channel),
            client.respond_update(session, channel, f"{channel}_2_closed", accept=True),
            user.close(channel),
        ):
            assert (await refuses(call, 204, text=CLOSED)).info == {}
        assert (await user.info(channel)).version == "2"
        assert await client.channels(session) == ()
    assert await a.leave() == await b.leave(force=True) == ()


async def test_C11_X4_a_refused_closing_is_settled_by_the_chain_while_reads_are_answered(company: Company) -> None:
    world = company.world
    alice, bob = world.friends("alice", "bob")
    a, b = await company.seat(alice, bob)
    channel = await open_channel(a, b, ONE_TWO, duration=4)
    await pay(a, b, channel, ("ETH", "bob", "0.5"))
    before = [world.balance(one.on_chain) for one in (alice, bob)]
    ending = asyncio.ensure_future(closing(a, b, channel, agree=False))
    while not ending.done():
        async with asyncio.timeout(1):
            await asyncio.gather(
                a.info(channel), a.client.channels(a.session), a.client.time(), b.info(channel), b.client.time()
            )
        await asyncio.sleep(0.3)
    for update in await ending:
        assert update.id == f"{channel}_1_closed" and update.error is None
        assert update.channel.balances == {"ETH": ("0.5", "2.5")}
    for one, old, tenths in zip((alice, bob), before, (5, 25), strict=True):
        assert 0 < old + tenths * ETHER // 10 - world.balance(one.on_chain) < GAS
    assert await a.leave() == await b.leave() == ()


async def test_C16_a_session_with_a_channel_being_settled_cannot_be_closed(company: Company) -> None:
    a, b = await company.pair()
    channel = await open_channel(a, b, ONE_TWO, duration=4)
    updates = await b.client.updates(b.session, channel)
    ending = asyncio.ensure_future(a.close(channel))
    final = await updates.next()
    await b.client.respond_update(b.session, channel, final.id, accept=False)

    async def is_registered() -> bool:
        return await dispute_begun(company.world, channel)

    await until(is_registered)
    for force in (True, False):
        error = await refuses(a.client.close_session(a.session, force=force), 204)
        assert [each.id for each in error.info["chs"]] == [channel]  # type: ignore[attr-defined]
    await ending
    assert await a.leave() == ()


async def dispute_begun(world: World, channel: str) -> bool:
    """Whether the adjudicator has ever said anything about the channel."""
    query = {"fromBlock": "0x0", "address": world.contracts["adjudicator"], "topics": [None, "0x" + channel]}
    return bool(world.rpc("eth_getLogs", query))


# ---- what else is required ------------------------------------------------------------------------------------------


async def test_X1_D12_a_client_that_vanishes_frees_its_streams_and_loses_nothing(company: Company) -> None:
    a, b = await company.pair()
    channel = await open_channel(a, b, ONE_TWO)
    (await b.client.updates(b.session, channel)).cancel()
    (await b.client.proposals(b.session)).cancel()
    paying = asyncio.ensure_future(a.pay(channel, [("ETH", "bob", "0.1")]))
    opening = asyncio.ensure_future(failure(a.propose("bob", ONE_TWO)))
    updates = await resubscribed(b, channel)
    update = await updates.next()
    await b.client.respond_update(b.session, channel, update.id, accept=True)
    assert (await paying).version == "1"
    await b.answer_proposal(accept=False)
    assert (await opening).code == 102


async def resubscribed(user: User, channel: str) -> Stream[Update]:
    """The node learns of a cancelled stream in its own time; until then it says that somebody is subscribed."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await user.client.updates(user.session, channel)
            except ClientError as error:
                assert error.code == 202
                await asyncio.sleep(0.05)


async def test_X2_D5_an_opening_whose_client_vanishes_is_finished(company: Company) -> None:
    a, b = await company.pair()
    proposals = await b.client.proposals(b.session)
    opening = asyncio.ensure_future(a.propose("bob", ONE_TWO))
    proposal = await proposals.next()
    accepting = asyncio.ensure_future(b.client.respond_proposal(b.session, proposal.id, accept=True))
    opening.cancel()
    opened = await accepting

    async def listed() -> bool:
        return [each.id for each in await a.client.channels(a.session)] == [opened.id]

    await until(listed)
    await pay(a, b, opened.id, ("ETH", "bob", "0.5"))


async def test_X3_D5_a_closing_whose_client_vanishes_is_finished(company: Company) -> None:
    world = company.world
    alice, bob = world.friends("alice", "bob")
    a, b = await company.seat(alice, bob)
    channel = await open_channel(a, b, ONE_TWO, duration=3)
    before = world.balance(alice.on_chain)
    mine = await a.client.updates(a.session, channel)
    updates = await b.client.updates(b.session, channel)
    ending = asyncio.ensure_future(a.close(channel))
    final = await updates.next()
    ending.cancel()
    await b.client.respond_update(b.session, channel, final.id, accept=False)
    assert (await told_closed(mine)).error is None
    assert 0 < before + ETHER - world.balance(alice.on_chain) < GAS


async def test_X6_D6_crossing_payments_end_with_one_truth(company: Company) -> None:
    a, b = await company.pair(response_timeout="2s")
    channel = await open_channel(a, b, {"ETH": ("1", "2"), "PRN": ("0", "0")})

    async def accept_what_comes(user: User) -> None:
        async for update in await user.client.updates(user.session, channel):
            if update.type != "open":
                return
            await user.client.respond_update(user.session, channel, update.id, accept=True)

    answering = [asyncio.ensure_future(accept_what_comes(user)) for user in (a, b)]
    for _ in range(3):
        results = await asyncio.gather(
            a.pay(channel, [("ETH", "bob", "0.1")]), b.pay(channel, [("ETH", "alice", "0.2")]), return_exceptions=True
        )
        for result in results:
            assert isinstance(result, Channel) or (isinstance(result, ClientError) and result.code in (101, 102))
        await agreed(a, b, channel)
    for user in (a, b):
        await user.client.unsubscribe_updates(user.session, channel)
    await asyncio.gather(*answering)
    await pay(b, a, channel, ("ETH", "alice", "0.125"))


async def test_D16_D23_payments_without_pause_arrive_in_order_and_none_is_dropped(company: Company) -> None:
    a, b = await company.pair(response_timeout="20s")
    channel = await open_channel(a, b, ONE_TWO)
    updates = await b.client.updates(b.session, channel)
    payments = [asyncio.ensure_future(a.pay(channel, [("ETH", "bob", "0.001")])) for _ in range(12)]
    for version in range(1, 13):
        update = await updates.next()
        assert update.channel.version == str(version)
        await b.client.respond_update(b.session, channel, update.id, accept=True)
    assert sorted(int(paid.version) for paid in await asyncio.gather(*payments)) == list(range(1, 13))
    await b.client.unsubscribe_updates(b.session, channel)


async def test_D22_the_responder_of_a_channel_dials_the_proposer_when_the_connection_is_gone(company: Company) -> None:
    alice, bob = company.world.friends("alice", "bob")
    a, b = await company.seat(alice, bob)
    channel = await open_channel(a, b, ONE_TWO)
    await a.leave(force=True)
    a = await company.join(alice, 0)
    assert [each.id for each in a.restored] == [channel]
    assert (await pay(b, a, channel, ("ETH", "alice", "0.5"))).version == "1"


async def test_F1_F2_F3_F4_F5_F6_F7_F8_F9_F10_F11_F12_the_complete_story(company: Company) -> None:
    world: World = company.world
    alice, bob = world.person("alice", tokens=20 * ETHER), world.person("bob", tokens=20 * ETHER)
    a, b = await company.seat(alice, bob)
    for user in (a, b):
        assert await user.client.time() and await user.client.help() == ("payment",)
        assert (await user.client.config()).adjudicator == world.contracts["adjudicator"]
    assert await a.client.deploy_asset(a.session, world.contracts["token"])  # a new holder is registered in N11
    own = [await user.client.get_peer(user.session, "self") for user in (a, b)]
    await a.client.add_peer(a.session, own[1]._replace(alias="bob"))
    await b.client.add_peer(b.session, own[0]._replace(alias="alice"))
    terms = ({"ETH": ("1", "2"), "PRN": ("1", "2")}, ONE_TWO, {"PRN": ("1", "2")})
    channels = []
    for each in terms:
        company.hurry()
        channels.append(await open_channel(a, b, each))
    both, ether, tokens = channels
    for user in (a, b):
        error = await refuses(user.leave(), 204)
        assert [each.id for each in error.info["chs"]] == channels  # type: ignore[attr-defined]
    await asyncio.gather(refuses(b.propose("alice", ONE_TWO), 102), a.answer_proposal(accept=False))

    send, request = "alice", "self"
    lists = [
        (channel, tuple((currency, payee, "0.1") for currency, payee in zip(currencies, payees, strict=True)))
        for channel, currencies, all_payees in (
            (both, ("ETH",), ((send,), (request,))),
            (both, ("PRN",), ((send,), (request,))),
            (both, ("ETH", "PRN"), ((send, request), (request, send), (send, send), (request, request))),
            (ether, ("ETH",), ((send,), (request,))),
            (tokens, ("PRN",), ((send,), (request,))),
        )
        for payees in all_payees
    ]
    assert len(lists) == 12
    for channel, payments in lists:
        before = await agreed(a, b, channel)
        await pay(b, a, channel, *payments)
        after = await agreed(a, b, channel)
        assert int(after.version) == int(before.version) + 1
        await asyncio.gather(refuses(b.pay(channel, payments), 102), a.answer_update(channel, accept=False))
        assert await agreed(a, b, channel) == after
    for channel in channels:
        company.hurry()
        told = await closing(b, a, channel, agree=True)
        await failure(b.client.respond_update(b.session, channel, told[0].id, accept=True))
    assert await a.leave() == await b.leave() == ()
    for call in (
        b.propose("alice", ONE_TWO),
        a.client.proposals(a.session),
        a.client.respond_proposal(a.session, "", accept=True),
        a.client.unsubscribe_proposals(a.session),
    ):
        await refuses(call, 204)

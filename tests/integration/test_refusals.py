"""Everything a user, a peer or a circumstance can refuse while a channel is opened and used (API.md 2.4, 2.5)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable

import pytest

from tests.integration.clients import ClientError, User
from tests.integration.world import ETHER, Party, open_channel, pay, refused, until, until_past

ONE_EACH = {"ETH": ("1", "1")}


async def failure(call: Awaitable[object]) -> ClientError:
    """The error a call ends with."""
    with pytest.raises(ClientError) as caught:
        await call
    return caught.value


# ---- opening ---------------------------------------------------------------------------------------------------------


async def test_a_refused_proposal_leaves_nothing_behind_and_may_be_made_again(party: Party) -> None:
    alice, bob = await party.two()
    error, answer = await asyncio.gather(failure(alice.propose("bob", ONE_EACH)), bob.answer_proposal(accept=False))
    refused(error, 102, {"peerAlias": "bob", "reason": "rejected by user"})
    assert "proposing channel" in error.message
    assert answer.id == "" and await alice.client.channels(alice.session) == ()
    assert await open_channel(alice, bob, ONE_EACH)


async def test_a_request_that_cannot_be_meant_is_refused_with_the_word_that_is_wrong(party: Party) -> None:
    alice, _ = await party.two()
    client, session = alice.client, alice.session
    refused(await failure(alice.propose("carol", ONE_EACH)), 201, {"type": "peerID", "id": "carol"})
    refused(
        await failure(client.open_channel(session, ("carol", "dave"), ONE_EACH, 10)),
        201,
        {"type": "peerID", "id": "carol,dave"},
    )
    refused(await failure(alice.propose("bob", {"XYZ": ("1", "1")})), 201, {"type": "currency", "id": "XYZ"})
    for text in ("-1", "one", "0x10", "1e400", ""):
        error = await failure(alice.propose("bob", {"ETH": (text, "1")}))
        refused(error, 203, {"name": "amount", "value": text})
    refused(await failure(alice.propose("bob", ONE_EACH, 0)), 203, {"name": "challengeDurSecs"})
    error = await failure(client.open_channel(session, ("self", "self"), ONE_EACH, 10))
    refused(error, 203, {"name": "peerAlias"})
    assert "found repeated entries but each value should be unique" in error.message
    error = await failure(client.open_channel(session, ("bob",), {"ETH": ("1",)}, 10))
    refused(error, 203, {"name": "peerAlias"})
    assert "own peer alias (self) not found" in error.message
    refused(await failure(client.open_channel(session, ("self", "bob"), {}, 10)), 203)
    refused(await failure(client.open_channel("0" * 64, ("self", "bob"), ONE_EACH, 10)), 201, {"type": "session"})


async def test_who_cannot_pay_learns_it_before_the_peer_is_asked(party: Party) -> None:
    alice, bob = await party.two(ether=0.5)
    proposals = await bob.client.proposals(bob.session)
    error = await failure(alice.propose("bob", ONE_EACH))
    refused(error, 401)
    assert "ETH" in error.message and "lacks" in error.message
    error = await failure(alice.propose("bob", {"PRN": ("1", "0")}))
    assert "PRN" in error.message
    with pytest.raises(TimeoutError):
        await proposals.next(0.5)


async def test_a_peer_that_is_not_there_or_does_not_speak_is_a_time_out(party: Party) -> None:
    """Not listening, and listening without ever answering: 101 with the alias, and the session goes on."""
    alice, bob, mute = party.world.friends("alice", "bob", "mute", response_timeout="1s")
    host, port = mute.comm_address.split(":")
    with socket.create_server((host, int(port))):
        user = await party.join(alice)
        away, silent = await asyncio.gather(
            failure(user.propose("bob", ONE_EACH)), failure(user.propose("mute", ONE_EACH))
        )
    refused(away, 101, {"peerAlias": "bob", "timeout": "1s"})
    refused(silent, 101, {"peerAlias": "mute", "timeout": "1s"})
    other = await party.join(bob)
    assert await open_channel(user, other, ONE_EACH)


async def test_a_proposal_nobody_answers_times_out_and_a_late_answer_is_told_so(party: Party) -> None:
    alice, bob = await party.two(response_timeout="1s")
    proposals = await bob.client.proposals(bob.session)
    asked = asyncio.ensure_future(failure(alice.propose("bob", ONE_EACH)))
    proposal = await proposals.next()
    assert proposal.balances == ONE_EACH and proposal.parts == ("alice", "self")
    await until_past(bob.client, proposal.expiry)
    late = await failure(bob.client.respond_proposal(bob.session, proposal.id, accept=True))
    refused(late, 104, {"expiry": proposal.expiry})
    received_at = late.info["receivedAt"]
    assert isinstance(received_at, int) and received_at > proposal.expiry
    again = await failure(bob.client.respond_proposal(bob.session, proposal.id, accept=True))
    refused(again, 201, {"type": "proposal", "id": proposal.id})
    refused(await asked, 101, {"peerAlias": "bob", "timeout": "1s"})


async def test_a_proposal_of_a_stranger_is_refused_and_shown(party: Party) -> None:
    world = party.world
    alice, bob = world.person("alice"), world.person("bob")
    alice.know(bob)
    user, other = await party.join(alice), await party.join(bob)
    proposals = await other.client.proposals(other.session)
    refused(await failure(user.propose("bob", ONE_EACH)), 102, {"peerAlias": "bob"})
    shown = await proposals.next()
    assert shown.expiry == 0 and shown.parts == (alice.off_chain, "self")
    error = await failure(other.client.respond_proposal(other.session, shown.id, accept=True))
    refused(error, 201, {"type": "proposal", "id": shown.id})


async def test_a_deposit_comes_back_by_itself_when_the_peer_does_not_fund(party: Party) -> None:
    world = party.world
    alice, bob = world.person("alice"), world.person("bob", ether=0)
    alice.know(bob)
    bob.know(alice)
    user, other = await party.join(alice), await party.join(bob)
    before = world.balance(alice.on_chain)
    mine, theirs = await asyncio.gather(
        failure(user.propose("bob", {"ETH": ("5", "1")}, 6)), failure(other.answer_proposal(accept=True))
    )
    refused(mine, 103, {"peerAlias": "bob"})
    refused(theirs, 401)
    assert "fund" in theirs.message
    await until(lambda: world.balance(alice.on_chain) > before - ETHER // 50)
    assert await user.client.channels(user.session) == ()


# ---- paying ----------------------------------------------------------------------------------------------------------


async def two_with_channel(party: Party, **terms: object) -> tuple[User, User, str]:
    alice, bob = await party.two(tokens=10 * ETHER, **terms)
    return alice, bob, await open_channel(alice, bob, {"ETH": ("1", "1"), "PRN": ("5", "5")}, duration=20)


async def test_refused_payments_and_requests_change_nothing(party: Party) -> None:
    alice, bob, channel = await two_with_channel(party)
    start = await alice.info(channel)
    for payments in (
        [("ETH", "bob", "0.5")],
        [("ETH", "self", "0.5")],
        [("ETH", "bob", "0.5"), ("PRN", "self", "5")],
    ):
        error, _ = await asyncio.gather(failure(alice.pay(channel, payments)), bob.answer_update(channel, accept=False))
        refused(error, 102, {"peerAlias": "bob", "reason": "rejected by user"})
        assert await alice.info(channel) == start
    agreed = await pay(bob, alice, channel, ("ETH", "alice", "1"), ("PRN", "self", "0.000000000000000001"))
    assert agreed.balances == {"ETH": ("2", "0"), "PRN": ("4.999999999999999999", "5.000000000000000001")}


async def test_payments_that_cannot_be_are_refused_before_the_peer_hears_of_them(party: Party) -> None:
    alice, bob, channel = await two_with_channel(party)
    updates = await bob.client.updates(bob.session, channel)
    refused(await failure(alice.pay(channel, [("XYZ", "bob", "1")])), 201, {"type": "currency", "id": "XYZ"})
    refused(await failure(alice.pay(channel, [("ETH", "carol", "1")])), 203, {"name": "payee", "value": "carol"})
    for text in ("0", "-1", "1e-19", "much"):
        refused(await failure(alice.pay(channel, [("ETH", "bob", text)])), 203, {"name": "amount", "value": text})
    error = await failure(alice.pay(channel, [("ETH", "bob", "0.5"), ("ETH", "bob", "0.6")]))
    refused(error, 203, {"name": "amount", "value": "0.6"})
    refused(await failure(alice.pay(channel, [("ETH", "self", "1.1")])), 203, {"name": "amount", "value": "1.1"})
    refused(await failure(alice.pay("00" * 32, [("ETH", "bob", "1")])), 201, {"type": "channel", "id": "00" * 32})
    refused(await failure(alice.pay("nonsense", [("ETH", "bob", "1")])), 201, {"type": "channel"})
    with pytest.raises(TimeoutError):
        await updates.next(0.3)


async def test_a_payment_nobody_answers_times_out_and_the_channel_goes_on(party: Party) -> None:
    alice, bob, channel = await two_with_channel(party, response_timeout="1s")
    updates = await bob.client.updates(bob.session, channel)
    paying = asyncio.ensure_future(failure(alice.pay(channel, [("ETH", "bob", "0.5")])))
    update = await updates.next()
    await until_past(bob.client, update.expiry)
    late = await failure(bob.client.respond_update(bob.session, channel, update.id, accept=True))
    refused(late, 104, {"expiry": update.expiry})
    again = await failure(bob.client.respond_update(bob.session, channel, update.id, accept=True))
    refused(again, 201, {"type": "update", "id": update.id})
    refused(await paying, 101, {"peerAlias": "bob", "timeout": "1s"})
    await bob.client.unsubscribe_updates(bob.session, channel)
    agreed = await pay(alice, bob, channel, ("ETH", "bob", "0.25"))
    assert agreed.balances["ETH"] == ("0.75", "1.25") and agreed.version == "1"


async def test_crossing_payments_never_make_two_truths(party: Party) -> None:
    alice, bob, channel = await two_with_channel(party, response_timeout="2s")
    alice_pays, bob_pays = alice.pay(channel, [("ETH", "bob", "0.5")]), bob.pay(channel, [("PRN", "alice", "1")])

    async def accept_what_comes(user: User) -> None:
        updates = await user.client.updates(user.session, channel)
        async for update in updates:
            if update.type != "open":
                return
            await user.client.respond_update(user.session, channel, update.id, accept=True)

    answering = [asyncio.ensure_future(accept_what_comes(user)) for user in (alice, bob)]
    results = await asyncio.gather(alice_pays, bob_pays, return_exceptions=True)
    for result in results:
        assert not isinstance(result, BaseException) or (isinstance(result, ClientError) and result.code in (101, 102))
    agreed = sum(not isinstance(result, BaseException) for result in results)
    mine, theirs = await alice.info(channel), await bob.info(channel)
    assert (mine.version, mine.balances) == (theirs.version, theirs.balances)
    assert mine.version == str(agreed)
    for user in (alice, bob):
        await user.client.unsubscribe_updates(user.session, channel)
    await asyncio.gather(*answering)
    await pay(bob, alice, channel, ("ETH", "alice", "0.125"))

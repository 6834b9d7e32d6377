"""Sessions, contacts and the opening of channels (API.md 7.3)."""

from __future__ import annotations

import asyncio
import socket

from tests.integration.clients import Peer
from tests.integration.scenarios.conftest import Company
from tests.integration.scenarios.telling import ONE_TWO, ends, failure, quiet, refuses
from tests.integration.world import ETHER, open_channel, until, until_past

NOBODY = "0x00000000000000000000000000000000000000aa"
CLOSED = "action not allowed on a closed session"


async def test_P1_P2_own_entry_is_self_and_unknown_aliases_are_not_found(company: Company) -> None:
    people = company.world.friends("alice", "bob", ether=0)
    for person, user in zip(people, await company.seat(*people), strict=True):
        own = await user.client.get_peer(user.session, "self")
        assert own == Peer("self", person.off_chain, person.comm_address, "tcp")
        await refuses(user.client.get_peer(user.session, "nobody"), 201, type="peerID", id="nobody")


async def test_P3_P4_P5_P6_contacts_are_added_once_under_one_alias(company: Company) -> None:
    alice, bob = company.world.person("alice", ether=0), company.world.person("bob", ether=0)
    a, b = await company.seat(alice, bob)
    as_bob = Peer("bob", bob.off_chain, bob.comm_address, "tcp")
    await a.client.add_peer(a.session, as_bob)
    await b.client.add_peer(b.session, Peer("alice", alice.off_chain, alice.comm_address, "tcp"))
    assert await a.client.get_peer(a.session, "bob") == as_bob
    await refuses(a.client.add_peer(a.session, as_bob), 202, type="peerID", id="bob")
    await refuses(
        a.client.add_peer(a.session, as_bob._replace(off_chain_address=NOBODY)), 203, name="peerAlias", value="bob"
    )
    too_long = "0x931d387731BBbc988B31221D387706c74f77d004d6b84b"
    stranger = Peer("carol", too_long, "127.0.0.1:1", "tcp")
    await refuses(a.client.add_peer(a.session, stranger), 203, name="offChainAddress", value=too_long)


async def test_P7_P8_P9_P10_terms_that_cannot_be_meant_are_refused_with_the_word_that_is_wrong(
    company: Company,
) -> None:
    a, _ = await company.pair(ether=0)

    async def wrong(parts: tuple[str, ...], code: int, *, text: str = "", **info: object) -> None:
        await refuses(
            a.client.open_channel(a.session, parts, {"ETH": ("1",) * len(parts)}, 10), code, text=text, **info
        )

    await wrong(("self", "carol"), 201, type="peerID", id="carol")
    await wrong(("carol", "self", "dave"), 201, type="peerID", id="carol,dave")
    repeated = "found repeated entries but each value should be unique"
    await wrong(("self", "bob", "bob"), 203, text=repeated, name="peerAlias", value="self,bob,bob")
    await wrong(("bob",), 203, text="own peer alias (self) not found", name="peerAlias", value="bob")
    await refuses(a.propose("bob", {"XYZ": ("1", "1")}), 201, type="currency", id="XYZ")
    for amount in ("invalid-currency-string", "", "-1", "1e400", "NaN", "0x1"):
        await refuses(a.propose("bob", {"ETH": (amount, "1")}), 203, name="amount", value=amount)


async def test_P11_P21_self_may_stand_anywhere_and_channels_are_listed_as_they_were_opened(company: Company) -> None:
    a, b = await company.pair(tokens=5 * ETHER)
    opened, accepted = await asyncio.gather(
        a.client.open_channel(a.session, ("bob", "self"), {"ETH": ("2", "1"), "PRN": ("0", "3")}, 10),
        b.answer_proposal(accept=True),
    )
    assert opened.parts == ("self", "bob") and accepted.parts == ("alice", "self")
    assert opened.balances == accepted.balances == {"ETH": ("1", "2"), "PRN": ("3", "0")}
    assert opened.version == accepted.version == "0"
    company.hurry()
    second = await open_channel(b, a, ONE_TWO, peer="alice")
    third = await open_channel(a, b, {"PRN": ("1", "0.5")})
    for user in (a, b):
        assert [each.id for each in await user.client.channels(user.session)] == [opened.id, second, third]


async def test_P12_a_refusal_names_the_peer_and_leaves_nothing_behind(company: Company) -> None:
    a, b = await company.pair()
    _, answer = await asyncio.gather(
        refuses(a.propose("bob", ONE_TWO), 102, text="proposing channel", peerAlias="bob", reason="rejected by user"),
        b.answer_proposal(accept=False),
    )
    assert (answer.id, answer.version, answer.balances) == ("", "", {})
    assert await a.client.channels(a.session) == ()
    assert await open_channel(a, b, ONE_TWO)


async def test_P13_an_unanswered_proposal_is_a_time_out_and_a_late_answer_is_told_so(company: Company) -> None:
    """D19: who cannot be reached, or is reached and says nothing, is a time-out too."""
    a, b = await company.pair(response_timeout="1s")
    proposals = await b.client.proposals(b.session)
    call = refuses(a.propose("bob", ONE_TWO), 101, text="proposing channel", peerAlias="bob", timeout="1s")
    asked = asyncio.ensure_future(call)
    proposal = await proposals.next()
    assert proposal.parts == ("alice", "self") and proposal.balances == ONE_TWO
    await until_past(b.client, proposal.expiry)
    respond = b.client.respond_proposal
    late = await refuses(respond(b.session, proposal.id, accept=True), 104, expiry=proposal.expiry)
    assert isinstance(late.info["receivedAt"], int) and late.info["receivedAt"] > proposal.expiry
    await refuses(respond(b.session, proposal.id, accept=True), 201, type="proposal", id=proposal.id)
    await asked


async def test_P13_D19_a_peer_that_is_away_or_mute_is_a_time_out(company: Company) -> None:
    alice, bob, mute = company.world.friends("alice", "bob", "mute", response_timeout="1s")
    host, port = mute.comm_address.split(":")
    with socket.create_server((host, int(port))):
        user = await company.join(alice)
        await asyncio.gather(
            refuses(user.propose("bob", ONE_TWO), 101, peerAlias="bob", timeout="1s"),
            refuses(user.propose("mute", ONE_TWO), 101, peerAlias="mute", timeout="1s"),
        )
    assert await open_channel(user, await company.join(bob, company.bobs_node), ONE_TWO)


async def test_P14_D1_a_peer_that_does_not_fund_is_named_and_the_deposit_comes_back(company: Company) -> None:
    world = company.world
    alice, bob = world.person("alice", tokens=5 * ETHER), world.person("bob", ether=0.5)
    alice.know(bob)
    bob.know(alice)
    a, b = await company.seat(alice, bob)
    before = world.balance(alice.on_chain), world.tokens(alice.on_chain)
    # Two currencies at once, of which the peer has neither (D19).
    terms = {"ETH": ("5", "1"), "PRN": ("1", "1")}
    mine, theirs = await asyncio.gather(failure(a.propose("bob", terms, 4)), failure(b.answer_proposal(accept=True)))
    assert (mine.code, mine.info) == (103, {"peerAlias": "bob"}) and "proposing channel" in mine.message
    assert theirs.code == 401 and "fund" in theirs.message
    await until(lambda: world.balance(alice.on_chain) > before[0] - ETHER // 20)
    await until(lambda: world.tokens(alice.on_chain) == before[1])

    async def none_is_left() -> bool:
        return await a.client.channels(a.session) == ()

    await until(none_is_left)


async def test_P14_a_proposer_that_cannot_fund_is_told_before_the_peer_is_asked(company: Company) -> None:
    a, b = await company.pair(ether=0.5)
    proposals = await b.client.proposals(b.session)
    await refuses(a.propose("bob", ONE_TWO), 401, text="lacks")
    await refuses(a.propose("bob", {"PRN": ("1", "0")}), 401, text="PRN")
    (await quiet(proposals)).cancel()


async def test_P14_who_could_not_pay_for_a_dispute_accepts_nothing_and_both_are_told_at_once(company: Company) -> None:
    """Bob is to deposit nothing, but has no gas either, so nobody's money is locked up."""
    alice, bob = company.world.person("alice"), company.world.person("bob", ether=0)
    alice.know(bob)
    bob.know(alice)
    a, b = await company.seat(alice, bob)
    before = company.world.balance(alice.on_chain)
    terms = {"ETH": ("1", "0")}
    mine, theirs = await asyncio.gather(failure(a.propose("bob", terms)), failure(b.answer_proposal(accept=True)))
    assert theirs.code == 401 and "lacks" in theirs.message and "gas" in theirs.message
    assert (mine.code, mine.info["peerAlias"]) == (102, "bob")
    assert company.world.balance(alice.on_chain) == before


async def test_P17_P18_proposals_have_one_subscriber_and_come_once(company: Company) -> None:
    a, b = await company.pair()
    for early in (True, False):
        opening = asyncio.ensure_future(a.propose("bob", ONE_TWO)) if early else None
        first = await b.client.proposals(b.session)
        opening = opening or asyncio.ensure_future(a.propose("bob", ONE_TWO))
        await refuses(b.client.proposals(b.session), 202, type="proposalsSub", id=b.session)
        proposal = await first.next()
        await b.client.unsubscribe_proposals(b.session)
        await first.ended()
        await refuses(b.client.unsubscribe_proposals(b.session), 201, type="proposalsSub", id=b.session)
        second = await b.client.proposals(b.session)
        silence = await quiet(second)
        await b.client.unsubscribe_proposals(b.session)
        await ends(silence)
        opened = await b.client.respond_proposal(b.session, proposal.id, accept=True)
        assert (await opening).id == opened.id


async def test_P19_unknown_proposals_are_not_found(company: Company) -> None:
    _, b = await company.pair(ether=0)
    for proposal in ("", "unknown", "ab" * 32):
        for accept in (True, False):
            call = b.client.respond_proposal(b.session, proposal, accept=accept)
            await refuses(call, 201, type="proposal", id=proposal)


async def test_P20_a_stranger_s_proposal_is_refused_and_shown_with_the_address(company: Company) -> None:
    alice, bob = company.world.person("alice"), company.world.person("bob", ether=0)
    alice.know(bob)
    a, b = await company.seat(alice, bob)
    proposals = await b.client.proposals(b.session)
    await refuses(a.propose("bob", ONE_TWO), 102, peerAlias="bob")
    shown = await proposals.next()
    assert shown.expiry == 0 and shown.parts == (alice.off_chain, "self") and shown.balances == ONE_TWO
    await refuses(b.client.respond_proposal(b.session, shown.id, accept=True), 201, type="proposal", id=shown.id)


async def test_P22_asset_holders_are_deployed_for_any_token_address(company: Company) -> None:
    a, _ = await company.pair()
    token = company.world.contracts["token"]
    for address in (token, NOBODY):
        deployed = await a.client.deploy_asset(a.session, address)
        assert len(company.world.rpc("eth_getCode", deployed, "latest")) > 200
    await refuses(a.client.deploy_asset(a.session, "invalid-addr"), 203, name="token", value="invalid-addr")


async def test_P23_P24_C9_X9_D11_a_closed_session_ends_its_streams_and_refuses_every_call_at_once(
    company: Company,
) -> None:
    a, b = await company.pair()
    channel = await open_channel(a, b, ONE_TWO)
    client, session = a.client, a.session
    peer = await b.client.get_peer(b.session, "alice")
    proposals, updates = await client.proposals(session), await client.updates(session, channel)
    unclosed = await refuses(a.leave(), 204)
    assert [each.id for each in unclosed.info["chs"]] == [channel]  # type: ignore[attr-defined]
    assert [each.id for each in await a.leave(force=True)] == [channel]
    await proposals.ended(5)
    await updates.ended(5)
    for call in (
        client.add_peer(session, peer),
        client.get_peer(session, "self"),
        client.open_channel(session, ("self", "bob"), ONE_TWO, 10),
        client.respond_proposal(session, "x", accept=True),
        client.unsubscribe_proposals(session),
        client.channels(session),
        client.deploy_asset(session, NOBODY),
        client.close_session(session, force=False),
        client.close_session(session, force=True),
        client.proposals(session),
        client.updates(session, channel),
        client.pay(session, channel, [("ETH", "bob", "1")]),
        client.info(session, channel),
        client.close_channel(session, channel),
        client.respond_update(session, channel, "x", accept=True),
        client.unsubscribe_updates(session, channel),
    ):
        async with asyncio.timeout(5):
            error = await refuses(call, 204, text=CLOSED)
        assert error.info == {}


async def test_D14_what_nobody_answers_is_bounded_and_gone_when_it_expires(company: Company) -> None:
    """A peer that asks without end is refused at once above a bound; nothing expired is told to a late subscriber."""
    a, b = await company.pair(response_timeout="6s")
    asked = [asyncio.ensure_future(failure(a.propose("bob", {"ETH": ("0", "0.001")}))) for _ in range(70)]
    errors = await asyncio.gather(*asked)
    assert sorted({error.code for error in errors}) == [101, 102]
    refused_at_once = [error for error in errors if error.code == 102]
    assert 6 <= len(refused_at_once) < 20 and all(e.info["reason"] != "rejected by user" for e in refused_at_once)
    proposals = await b.client.proposals(b.session)
    (await quiet(proposals)).cancel()

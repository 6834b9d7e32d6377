"""Peers of a session talk over one connection each, whoever dials, and strangers cannot get in the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from perun_core.apps import AppRegistry
from perun_core.errors import (
    AddressInUse,
    AddressInvalid,
    ConnectionLost,
    EncodeError,
    PeerUnknown,
    PeerUnreachable,
)
from perun_core.node.limits import PeerLimits
from perun_core.node.peers import PeerHub
from perun_core.ports.comm import Connection
from perun_core.profile.gp090 import PROFILE
from perun_core.testing.comm import MemoryConnection, MemoryNetwork
from perun_core.values import Address, ChannelID, ProposalID
from perun_core.wire.messages import AuthResponse, Envelope, Message, Ping, Pong, ProposalRej, Shutdown, UpdateRej

ALICE = Address(b"\xaa" * 20)
BOB = Address(b"\xbb" * 20)
CAROL = Address(b"\xcc" * 20)
WHERE = {ALICE: "alice:1", BOB: "bob:1", CAROL: "carol:1"}
PATIENCE = 5.0
QUICK = PeerLimits(dial_timeout=0.2, handshake_timeout=0.2, message_timeout=0.2, send_timeout=0.2, grace=0.05)


def note(text: str) -> Message:
    """A small message that arrives with its text."""
    return ProposalRej(ProposalID(bytes(32)), text)


class Node:
    """One session's hub in a network in memory, with everything it was told."""

    def __init__(self, network: MemoryNetwork, own: Address, limits: PeerLimits = QUICK) -> None:
        self.own = own
        self.received: asyncio.Queue[tuple[Address, str]] = asyncio.Queue()
        self.presence: list[str] = []
        self.book = dict(WHERE)
        self.on_message: Callable[[Message], Awaitable[None] | None] = lambda message: None
        self.hub = PeerHub(
            own=own,
            comm=network.comm(f"host-{own.hex()[:2]}"),
            profile=PROFILE,
            apps=AppRegistry(),
            resolve=self._resolve,
            deliver=self._deliver,
            connected=lambda peer: self.presence.append(f"+{peer.hex()[:2]}"),
            disconnected=lambda peer: self.presence.append(f"-{peer.hex()[:2]}"),
            limits=limits,
        )

    async def _resolve(self, peer: Address) -> str:
        if peer not in self.book:
            raise PeerUnknown(f"no peer {peer.checksum}")
        return self.book[peer]

    def _deliver(self, peer: Address, message: Message) -> Awaitable[None] | None:
        assert isinstance(message, ProposalRej | UpdateRej)
        self.received.put_nowait((peer, message.reason))
        return self.on_message(message)

    async def start(self) -> Node:
        await self.hub.start(WHERE[self.own])
        return self

    async def hears(self) -> tuple[Address, str]:
        return await asyncio.wait_for(self.received.get(), PATIENCE)


Start = Callable[..., Awaitable[Node]]


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def start(network: MemoryNetwork) -> AsyncIterator[Start]:
    nodes: list[Node] = []

    async def start(own: Address, limits: PeerLimits = QUICK) -> Node:
        nodes.append(await Node(network, own, limits).start())
        return nodes[-1]

    yield start
    for node in nodes:
        await node.hub.close()
        assert node.hub.connections == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for is told to nobody
            await asyncio.sleep(0.005)


class Stranger:
    """Somebody who writes whatever it likes on a connection of its own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._decoder = PROFILE.decoder(AppRegistry(), limit=1 << 20)
        self._envelopes: list[Envelope] = []

    @classmethod
    async def dials(cls, network: MemoryNetwork, address: str, host: str = "elsewhere") -> Stranger:
        return cls(await network.comm(host).dial(address, timeout=1))

    async def says(self, sender: Address, recipient: Address, message: Message | None = None) -> None:
        await self.connection.write(PROFILE.encode(Envelope(sender, recipient, message or AuthResponse())))

    async def hears(self) -> Envelope:
        while not self._envelopes:
            data = await asyncio.wait_for(self.connection.read(), PATIENCE)
            assert data, "the connection was closed"
            self._envelopes = self._decoder.feed(data)
        return self._envelopes.pop(0)

    async def is_closed(self) -> bool:
        while await asyncio.wait_for(self.connection.read(), PATIENCE):
            pass
        return True

    async def shakes_hands(self, own: Address, peer: Address) -> Stranger:
        await self.says(own, peer)
        assert await self.hears() == Envelope(peer, own, AuthResponse())
        return self


class Listening:
    """A peer that accepts connections and does what the test says."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Stranger] = asyncio.Queue()

    async def start(self, network: MemoryNetwork, address: str) -> Listening:
        async def accept(connection: Connection) -> None:
            self.accepted.put_nowait(Stranger(connection))
            await asyncio.Event().wait()

        await network.comm().listen(address, accept)
        return self

    async def next(self) -> Stranger:
        return await asyncio.wait_for(self.accepted.get(), PATIENCE)


# ------------------------------------------------------------------------------------------------------- conversation


@pytest.mark.parametrize(("dialer", "listener"), [(ALICE, BOB), (BOB, ALICE)])
async def test_messages_go_both_ways_over_one_connection(
    network: MemoryNetwork, start: Start, dialer: Address, listener: Address
) -> None:
    one, other = await start(dialer), await start(listener)
    await one.hub.send(listener, note("hello"))
    assert await other.hears() == (dialer, "hello")
    await other.hub.send(dialer, note("hello yourself"))
    assert await one.hears() == (listener, "hello yourself")
    assert network.dials == [WHERE[listener]]
    assert network.connections == 1
    assert one.hub.is_connected(listener)
    assert other.hub.is_connected(dialer)


async def test_messages_arrive_in_the_order_of_sending(start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    texts = [str(number) for number in range(200)]
    for text in texts:
        await bob.hub.send(ALICE, note(text))
    assert [(await alice.hears())[1] for _ in texts] == texts


async def test_messages_survive_any_segmentation(network: MemoryNetwork, start: Start) -> None:
    network.segment = 1
    alice, bob = await start(ALICE), await start(BOB)
    await alice.hub.send(BOB, note("in pieces"))
    await alice.hub.send(BOB, UpdateRej(ChannelID(bytes(32)), 7, "of one byte"))
    assert [await bob.hears(), await bob.hears()] == [(ALICE, "in pieces"), (ALICE, "of one byte")]


async def test_concurrent_senders_share_one_dial(network: MemoryNetwork, start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    await asyncio.gather(*(alice.hub.send(BOB, note(str(number))) for number in range(20)))
    assert {(await bob.hears())[1] for _ in range(20)} == {str(number) for number in range(20)}
    assert network.dials == [WHERE[BOB]]


async def test_a_connection_can_be_made_before_there_is_something_to_say(network: MemoryNetwork, start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    await alice.hub.connect(BOB)
    await alice.hub.connect(BOB)
    await bob.hub.send(ALICE, note("you called?"))
    assert await alice.hears() == (BOB, "you called?")
    assert network.dials == [WHERE[BOB]]
    with pytest.raises(PeerUnreachable):
        await alice.hub.connect(CAROL)


async def test_sessions_are_told_who_comes_and_goes(start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    await bob.hub.send(ALICE, note("hello"))
    await alice.hears()
    await bob.hub.close()
    await until(lambda: not alice.hub.is_connected(BOB))
    assert alice.presence == ["+bb", "-bb"]


async def test_control_messages_have_no_effect(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB)
    stranger = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    for message in (Ping(1), Pong(-1), Shutdown("bye"), AuthResponse(), note("still here")):
        await stranger.says(CAROL, BOB, message)
    assert await bob.hears() == (CAROL, "still here")


async def test_a_message_that_comes_together_with_the_handshake_is_heard(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB)
    stranger = await Stranger.dials(network, WHERE[BOB])
    both = PROFILE.encode(Envelope(CAROL, BOB, AuthResponse())) + PROFILE.encode(Envelope(CAROL, BOB, note("eager")))
    await stranger.connection.write(both)
    assert await bob.hears() == (CAROL, "eager")


# ------------------------------------------------------------------------------------------- dialling at the same time


async def test_of_two_connections_dialled_at_once_one_survives(network: MemoryNetwork, start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    network.delay = 0.02
    await asyncio.gather(alice.hub.send(BOB, note("from alice")), bob.hub.send(ALICE, note("from bob")))
    assert await alice.hears() == (BOB, "from bob")
    assert await bob.hears() == (ALICE, "from alice")
    assert sorted(network.dials) == sorted([WHERE[ALICE], WHERE[BOB]])
    await until(lambda: network.connections == 1)
    await asyncio.gather(alice.hub.send(BOB, note("again")), bob.hub.send(ALICE, note("again")))
    assert await alice.hears() == (BOB, "again")
    assert await bob.hears() == (ALICE, "again")
    assert len(network.dials) == 2
    await until(lambda: alice.hub.connections == bob.hub.connections == 1)


async def test_nothing_is_lost_when_both_sides_send_while_both_dial(network: MemoryNetwork, start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    network.delay = 0.005

    async def talk(node: Node, peer: Address) -> None:
        for number in range(30):
            await node.hub.send(peer, note(str(number)))
            await asyncio.sleep(0.002)

    await asyncio.gather(talk(alice, BOB), talk(bob, ALICE))
    expected = {str(number) for number in range(30)}
    assert {(await alice.hears())[1] for _ in expected} == expected
    assert {(await bob.hears())[1] for _ in expected} == expected


async def test_a_new_connection_of_the_greater_address_replaces_the_old(start: Start, network: MemoryNetwork) -> None:
    alice = await start(ALICE)
    old = await (await Stranger.dials(network, WHERE[ALICE])).shakes_hands(BOB, ALICE)
    new = await (await Stranger.dials(network, WHERE[ALICE])).shakes_hands(BOB, ALICE)
    await old.says(BOB, ALICE, note("on its way"))
    assert await alice.hears() == (BOB, "on its way")
    await alice.hub.send(BOB, note("hello"))
    assert (await new.hears()).message == note("hello")
    assert await old.is_closed()
    assert alice.presence == ["+bb"]


async def test_a_new_connection_of_the_smaller_address_is_closed_while_there_is_one(
    start: Start, network: MemoryNetwork
) -> None:
    bob = await start(BOB)
    old = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(ALICE, BOB)
    new = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(ALICE, BOB)
    assert await new.is_closed()
    await bob.hub.send(ALICE, note("hello"))
    assert (await old.hears()).message == note("hello")


async def test_a_connection_the_peer_refuses_at_once_is_not_written_to(start: Start, network: MemoryNetwork) -> None:
    alice = await start(ALICE)
    bob = await Listening().start(network, WHERE[BOB])
    sending = asyncio.create_task(alice.hub.send(BOB, note("lost?")))
    peer = await bob.next()
    assert (await peer.hears()).message == AuthResponse()
    await peer.says(BOB, ALICE)
    await peer.connection.close()
    with pytest.raises(PeerUnreachable):
        await sending


async def test_after_the_grace_the_smaller_address_writes(start: Start, network: MemoryNetwork) -> None:
    alice = await start(ALICE)
    bob = await Listening().start(network, WHERE[BOB])
    sending = asyncio.create_task(alice.hub.send(BOB, note("hello")))
    peer = await bob.next()
    assert await peer.hears() == Envelope(ALICE, BOB, AuthResponse())
    await peer.says(BOB, ALICE)
    assert (await peer.hears()).message == note("hello")
    await sending


async def test_a_dial_that_hangs_does_not_delay_a_sender_whom_the_peer_called(
    start: Start, network: MemoryNetwork
) -> None:
    alice = await start(ALICE, PeerLimits())
    network.unreachable.add(WHERE[BOB])
    sending = asyncio.create_task(alice.hub.send(BOB, note("hello")))
    await until(lambda: network.dials == [WHERE[BOB]])
    peer = await (await Stranger.dials(network, WHERE[ALICE])).shakes_hands(BOB, ALICE)
    assert (await peer.hears()).message == note("hello")
    await asyncio.wait_for(sending, PATIENCE)


# ------------------------------------------------------------------------------------------------------------ failures


async def test_a_peer_that_restarts_is_dialled_again(start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    await alice.hub.send(BOB, note("one"))
    await bob.hears()
    await bob.hub.close()
    await until(lambda: not alice.hub.is_connected(BOB))
    with pytest.raises(PeerUnreachable):
        await alice.hub.send(BOB, note("nobody there"))
    again = await start(BOB)
    await alice.hub.send(BOB, note("two"))
    assert await again.hears() == (ALICE, "two")


async def test_a_cut_connection_is_replaced_by_the_next_message(network: MemoryNetwork, start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    await bob.hub.send(ALICE, note("one"))
    await alice.hears()
    network.cut()
    await until(lambda: not (alice.hub.is_connected(BOB) or bob.hub.is_connected(ALICE)))
    await alice.hub.send(BOB, note("two"))
    assert await bob.hears() == (ALICE, "two")


async def test_a_peer_nobody_knows_is_named_so(start: Start) -> None:
    alice = await start(ALICE)
    del alice.book[BOB]
    with pytest.raises(PeerUnknown):
        await alice.hub.send(BOB, note("hello"))


async def test_a_peer_that_answers_nothing_is_unreachable_in_time(network: MemoryNetwork, start: Start) -> None:
    alice = await start(ALICE)
    network.unreachable.add(WHERE[BOB])
    with pytest.raises(PeerUnreachable):
        await asyncio.wait_for(alice.hub.send(BOB, note("hello")), PATIENCE)
    await Listening().start(network, WHERE[CAROL])
    with pytest.raises(PeerUnreachable):
        await asyncio.wait_for(alice.hub.send(CAROL, note("hello")), PATIENCE)


async def test_a_senders_own_time_limit_holds(network: MemoryNetwork, start: Start) -> None:
    alice = await start(ALICE, PeerLimits())
    network.unreachable.add(WHERE[BOB])
    with pytest.raises(PeerUnreachable):
        await asyncio.wait_for(alice.hub.send(BOB, note("hello"), timeout=0.02), PATIENCE)


@pytest.mark.parametrize(
    "reply",
    [
        Envelope(CAROL, ALICE, AuthResponse()),
        Envelope(BOB, CAROL, AuthResponse()),
        Envelope(BOB, ALICE, Ping(0)),
    ],
)
async def test_somebody_else_who_answers_is_not_the_peer(network: MemoryNetwork, start: Start, reply: Envelope) -> None:
    alice = await start(ALICE)
    bob = await Listening().start(network, WHERE[BOB])
    sending = asyncio.create_task(alice.hub.send(BOB, note("secret")))
    peer = await bob.next()
    assert (await peer.hears()).message == AuthResponse()
    await peer.says(reply.sender, reply.recipient, reply.message)
    with pytest.raises(PeerUnreachable):
        await sending
    assert await peer.is_closed()
    assert not alice.hub.is_connected(BOB)


async def test_nobody_sends_to_oneself(start: Start, network: MemoryNetwork) -> None:
    alice = await start(ALICE)
    with pytest.raises(PeerUnreachable):
        await alice.hub.send(ALICE, note("hello"))
    assert network.dials == []


async def test_what_cannot_be_encoded_costs_no_connection(start: Start, network: MemoryNetwork) -> None:
    alice, bob = await start(ALICE, PeerLimits(grace=0.0, message_limit=1000)), await start(BOB)
    for message in (note("x" * 70_000), note("x" * 1000)):
        with pytest.raises(EncodeError):
            await alice.hub.send(BOB, message)
    assert network.dials == []
    await alice.hub.send(BOB, note("hello"))
    assert await bob.hears() == (ALICE, "hello")


async def test_a_cancelled_write_ends_the_connection(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB, PeerLimits())
    reader = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)

    async def flood() -> None:
        while True:
            await bob.hub.send(CAROL, note("x" * 60_000))

    flooding = asyncio.create_task(flood())
    await asyncio.sleep(0.05)
    flooding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flooding
    assert not bob.hub.is_connected(CAROL)
    assert await reader.is_closed()


async def test_a_peer_that_does_not_read_is_given_up(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB)
    await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    with pytest.raises(ConnectionLost):
        async with asyncio.timeout(PATIENCE):
            while True:
                await bob.hub.send(CAROL, note("x" * 60_000))
    assert not bob.hub.is_connected(CAROL)


async def test_what_waits_for_one_peer_is_bounded(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB, PeerLimits(send_queue_bytes=300_000))
    await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    sends = [asyncio.create_task(bob.hub.send(CAROL, note("x" * 60_000))) for _ in range(20)]
    done, waiting = await asyncio.wait(sends, timeout=0.05)
    assert len(waiting) <= 5
    assert any(isinstance(send.exception(), ConnectionLost) for send in done)
    await bob.hub.close()
    await asyncio.wait(waiting)


async def test_an_error_in_the_receiver_closes_that_connection_only(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob, carol = await start(ALICE), await start(BOB), await start(CAROL)

    def stumble(message: Message) -> None:
        if message == note("stone"):
            raise RuntimeError("a bug")

    alice.on_message = stumble
    await carol.hub.send(ALICE, note("hello"))
    with caplog.at_level(logging.ERROR):
        await bob.hub.send(ALICE, note("stone"))
        await until(lambda: not alice.hub.is_connected(BOB))
    assert "a bug" in caplog.text
    await carol.hub.send(ALICE, note("hello again"))
    assert [await alice.hears() for _ in range(3)][-1] == (CAROL, "hello again")
    await bob.hub.send(ALICE, note("back"))
    assert await alice.hears() == (BOB, "back")


async def test_a_slow_receiver_slows_its_own_peer_only(start: Start) -> None:
    alice, bob, carol = await start(ALICE), await start(BOB), await start(CAROL)
    gate = asyncio.Event()

    async def wait(message: Message) -> None:
        await gate.wait()

    alice.on_message = lambda message: wait(message) if message == note("slow") else None
    await bob.hub.send(ALICE, note("slow"))
    assert await alice.hears() == (BOB, "slow")
    await bob.hub.send(ALICE, note("behind"))
    await carol.hub.send(ALICE, note("quick"))
    assert await alice.hears() == (CAROL, "quick")
    gate.set()
    assert await alice.hears() == (BOB, "behind")


# ----------------------------------------------------------------------------------------------------------- strangers


@pytest.mark.parametrize(
    ("sender", "recipient"), [(ALICE, BOB), (CAROL, ALICE), (BOB, BOB)], ids=["forged", "misdirected", "our own"]
)
async def test_a_wrong_sender_or_recipient_ends_the_connection(
    start: Start, network: MemoryNetwork, sender: Address, recipient: Address
) -> None:
    bob = await start(BOB)
    stranger = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    await stranger.says(sender, recipient, note("forged"))
    assert await stranger.is_closed()
    assert bob.received.empty()


@pytest.mark.parametrize(
    "first",
    [
        Envelope(CAROL, ALICE, AuthResponse()),
        Envelope(BOB, BOB, AuthResponse()),
        Envelope(CAROL, BOB, Ping(0)),
        Envelope(CAROL, BOB, note("no handshake")),
    ],
)
async def test_a_wrong_handshake_is_not_answered(start: Start, network: MemoryNetwork, first: Envelope) -> None:
    bob = await start(BOB)
    stranger = await Stranger.dials(network, WHERE[BOB])
    await stranger.says(first.sender, first.recipient, first.message)
    assert await asyncio.wait_for(stranger.connection.read(), PATIENCE) == b""
    await until(lambda: bob.hub.connections == 0)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, bytes(5000)])
async def test_garbage_ends_the_connection_without_an_answer(
    start: Start, network: MemoryNetwork, garbage: bytes
) -> None:
    bob = await start(BOB)
    before = await Stranger.dials(network, WHERE[BOB])
    await before.connection.write(garbage)
    assert await asyncio.wait_for(before.connection.read(), PATIENCE) == b""
    after = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    await after.connection.write(garbage)
    assert await asyncio.wait_for(after.connection.read(), PATIENCE) == b""
    assert not bob.hub.is_connected(CAROL)


async def test_a_message_without_end_is_cut_off_at_the_limit(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB, PeerLimits(message_limit=10_000))
    stranger = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    await stranger.says(CAROL, BOB, note("x" * 60_000))
    assert await stranger.is_closed()
    assert bob.received.empty()


async def test_a_message_that_trickles_in_is_given_up(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB)
    stranger = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    whole = PROFILE.encode(Envelope(CAROL, BOB, note("x" * 1000)))
    with pytest.raises(ConnectionLost):
        for position in range(len(whole)):
            await stranger.connection.write(whole[position : position + 1])
            await asyncio.sleep(0.01)
            if stranger_was_told(stranger):
                raise ConnectionLost("closed by bob")
    assert bob.received.empty()


def stranger_was_told(stranger: Stranger) -> bool:
    """Whether the end has arrived at the stranger."""
    assert isinstance(stranger.connection, MemoryConnection)
    return stranger.connection.ended


async def test_silence_between_messages_is_no_offence(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB)
    stranger = await (await Stranger.dials(network, WHERE[BOB])).shakes_hands(CAROL, BOB)
    await asyncio.sleep(2 * QUICK.message_timeout)
    await stranger.says(CAROL, BOB, note("patience"))
    assert await bob.hears() == (CAROL, "patience")


async def test_a_handshake_that_never_comes_is_given_up(start: Start, network: MemoryNetwork) -> None:
    bob = await start(BOB)
    stranger = await Stranger.dials(network, WHERE[BOB])
    assert await stranger.is_closed()
    await until(lambda: bob.hub.connections == 0)


async def test_a_thousand_half_open_connections_do_not_keep_a_peer_out(start: Start, network: MemoryNetwork) -> None:
    limits = PeerLimits(grace=0.01)
    bob = await start(BOB, limits)
    alice = await start(ALICE, limits)
    flood = [await Stranger.dials(network, WHERE[BOB], host=f"h{number % 50}") for number in range(1000)]
    await until(lambda: bob.hub.connections <= limits.max_half_open)
    await alice.hub.send(BOB, note("through"))
    assert await bob.hears() == (ALICE, "through")
    assert sum(not stranger_was_told(stranger) for stranger in flood) <= limits.max_half_open


async def test_connections_that_are_never_used_make_room(start: Start, network: MemoryNetwork) -> None:
    limits = PeerLimits(max_connections=10, max_per_host=5, grace=0.01)
    bob = await start(BOB, limits)
    used = await (await Stranger.dials(network, WHERE[BOB], host="friend")).shakes_hands(CAROL, BOB)
    await used.says(CAROL, BOB, note("I am here"))
    await bob.hears()
    for number in range(1, 60):
        claimed = Address(bytes([number]) * 20)
        await (await Stranger.dials(network, WHERE[BOB], host=f"h{number}")).shakes_hands(claimed, BOB)
    await until(lambda: bob.hub.connections <= limits.max_connections)
    alice = await start(ALICE, limits)
    await alice.hub.send(BOB, note("through"))
    assert await bob.hears() == (ALICE, "through")
    await used.says(CAROL, BOB, note("I still am"))
    assert await bob.hears() == (CAROL, "I still am")


async def test_one_machine_cannot_take_every_place(start: Start, network: MemoryNetwork) -> None:
    limits = PeerLimits(max_connections=10, max_per_host=3, grace=0.01)
    bob = await start(BOB, limits)
    for number in range(1, 30):
        claimed = Address(bytes([number]) * 20)
        stranger = await Stranger.dials(network, WHERE[BOB], host="busy")
        if number > limits.max_per_host:
            assert await stranger.is_closed()
            continue
        await stranger.shakes_hands(claimed, BOB)
        await stranger.says(claimed, BOB, note("used"))
        await bob.hears()
    assert bob.hub.connections == limits.max_per_host


# ----------------------------------------------------------------------------------------------------- start and close


async def test_a_wrong_or_taken_address_is_refused_at_start(start: Start, network: MemoryNetwork) -> None:
    await start(ALICE)
    with pytest.raises(AddressInUse):
        await Node(network, ALICE).start()
    with pytest.raises(AddressInvalid):
        await Node(network, BOB).hub.start("invalid-addr")


async def test_closing_ends_everything_and_frees_the_address(start: Start, network: MemoryNetwork) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    await bob.hub.send(ALICE, note("hello"))
    half_open = await Stranger.dials(network, WHERE[ALICE])
    hanging = asyncio.create_task(alice.hub.send(CAROL, note("hello")))
    network.unreachable.add(WHERE[CAROL])
    await until(lambda: alice.hub.connections == 2)
    await alice.hub.close()
    assert await half_open.is_closed()
    with pytest.raises(PeerUnreachable):
        await hanging
    await until(lambda: not bob.hub.is_connected(ALICE))
    with pytest.raises(PeerUnreachable):
        await alice.hub.send(BOB, note("closed"))
    await alice.hub.close()
    await start(ALICE)


async def test_closing_does_not_wait_for_a_receiver_that_hangs(start: Start) -> None:
    alice, bob = await start(ALICE), await start(BOB)
    never = asyncio.Event()

    async def wait(message: Message) -> None:
        await never.wait()

    alice.on_message = wait
    await bob.hub.send(ALICE, note("hello"))
    await alice.hears()
    await asyncio.wait_for(alice.hub.close(), 1)

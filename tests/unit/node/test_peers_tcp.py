"""The same hub over real sockets: what only a real network shows."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from perun_comm_tcp.options import TCPOptions
from perun_comm_tcp.transport import open_tcp
from perun_core.apps import AppRegistry
from perun_core.errors import AddressInUse, PeerUnreachable
from perun_core.node.limits import PeerLimits
from perun_core.node.peers import PeerHub
from perun_core.ports.comm import CommContext
from perun_core.profile.gp090 import PROFILE
from perun_core.values import Address, ProposalID
from perun_core.wire.messages import AuthResponse, Envelope, Message, ProposalRej

ALICE = Address(b"\xaa" * 20)
BOB = Address(b"\xbb" * 20)
PATIENCE = 10.0


def note(text: str) -> Message:
    return ProposalRej(ProposalID(bytes(32)), text)


def free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


class Town:
    """Sessions over TCP that know each other's addresses."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.where = {ALICE: free_address(), BOB: free_address()}
        self.received: dict[Address, asyncio.Queue[str]] = {ALICE: asyncio.Queue(), BOB: asyncio.Queue()}

    async def _resolve(self, peer: Address) -> str:
        return self.where[peer]

    async def session(self, own: Address, *, limits: PeerLimits | None = None) -> PeerHub:
        comm = await self._stack.enter_async_context(open_tcp(TCPOptions(linger=0.2), CommContext()))
        inbox = self.received[own]
        hub = PeerHub(
            own=own,
            comm=comm,
            profile=PROFILE,
            apps=AppRegistry(),
            resolve=self._resolve,
            deliver=lambda peer, message: inbox.put_nowait(message.reason),  # type: ignore[attr-defined]
            limits=limits or PeerLimits(grace=0.05),
        )
        await hub.start(self.where[own])
        self._stack.push_async_callback(hub.close)
        return hub

    async def hears(self, who: Address) -> str:
        return await asyncio.wait_for(self.received[who].get(), PATIENCE)

    def port(self, who: Address) -> int:
        return int(self.where[who].rpartition(":")[2])


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        yield Town(stack)


async def test_two_sessions_talk_over_tcp(town: Town) -> None:
    alice, bob = await town.session(ALICE), await town.session(BOB)
    await alice.send(BOB, note("hello"))
    assert await town.hears(BOB) == "hello"
    await bob.send(ALICE, note("x" * 60_000))
    assert await town.hears(ALICE) == "x" * 60_000
    assert alice.connections == bob.connections == 1


async def test_both_dial_at_once_over_tcp(town: Town) -> None:
    alice, bob = await town.session(ALICE), await town.session(BOB)
    await asyncio.gather(alice.send(BOB, note("from alice")), bob.send(ALICE, note("from bob")))
    assert [await town.hears(ALICE), await town.hears(BOB)] == ["from bob", "from alice"]
    async with asyncio.timeout(PATIENCE):
        while (alice.connections, bob.connections) != (1, 1):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await alice.send(BOB, note("one"))
    await bob.send(ALICE, note("two"))
    assert [await town.hears(BOB), await town.hears(ALICE)] == ["one", "two"]


async def test_a_restarted_peer_is_reached_again(town: Town) -> None:
    alice, bob = await town.session(ALICE), await town.session(BOB)
    await alice.send(BOB, note("before"))
    assert await town.hears(BOB) == "before"
    await bob.close()
    async with asyncio.timeout(PATIENCE):
        while alice.is_connected(BOB):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    with pytest.raises(PeerUnreachable):
        await alice.send(BOB, note("nobody there"))
    await town.session(BOB)
    await alice.send(BOB, note("after"))
    assert await town.hears(BOB) == "after"


async def test_a_taken_port_is_refused_and_a_closed_one_is_free(town: Town) -> None:
    alice = await town.session(ALICE)
    with pytest.raises(AddressInUse):
        await town.session(ALICE)
    await alice.close()
    await town.session(ALICE)


async def test_a_flood_of_half_open_connections_does_not_keep_a_peer_out(town: Town) -> None:
    bob = await town.session(BOB, limits=PeerLimits(max_half_open=20, grace=0.05))
    alice = await town.session(ALICE)
    loop = asyncio.get_running_loop()
    flood = []
    try:
        for _ in range(200):
            sock = socket.socket()
            sock.setblocking(False)
            flood.append(sock)
            await loop.sock_connect(sock, ("127.0.0.1", town.port(BOB)))
        await alice.send(BOB, note("through"))
        assert await town.hears(BOB) == "through"
        assert bob.connections <= 21
    finally:
        for sock in flood:
            sock.close()


async def test_the_bytes_of_a_handshake_are_those_of_the_protocol(town: Town) -> None:
    await town.session(BOB)
    reader, writer = await asyncio.open_connection("127.0.0.1", town.port(BOB))
    for byte in b"\x14\x00" + ALICE + b"\x14\x00" + BOB + b"\x03":
        writer.write(bytes((byte,)))
    assert await asyncio.wait_for(reader.readexactly(45), PATIENCE) == (
        b"\x14\x00" + BOB + b"\x14\x00" + ALICE + b"\x03"
    )
    for message in (AuthResponse(), note("hi")):
        writer.write(PROFILE.encode(Envelope(ALICE, BOB, message)))
    assert await town.hears(BOB) == "hi"
    writer.close()
    await writer.wait_closed()

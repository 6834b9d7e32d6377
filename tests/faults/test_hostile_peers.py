"""Hostile bytes on a running node's peer port: the node stays up and small, and honest users go on paying."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.handshake import hello
from perun_core.values import Address
from tests.integration.clients import User
from tests.integration.world import Party, Person, open_channel, pay

VECTORS = Path(__file__).parents[1] / "vectors" / "gp090"
ENVELOPE_ADDRESSES = 44
"""Bytes of an envelope before its type: two addresses, each behind its length."""
MEMORY = 48 << 20
"""Bytes the node may grow by, whatever strangers send: a tenth of what one of the floods carries."""
MUTATIONS = 2000
HALF_OPEN = 300
CROWD = 10_000
SPARE = 300
"""Sockets and files that everybody else in this process may need."""
FLOOD = 64 << 20
CUT_OFF = 20.0
"""Seconds after which somebody who only sends rubbish has lost the connection."""
AT_ONCE = 8


class Hall(NamedTuple):
    """alice and bob with a channel, and mallory, whom bob knows and who has no session."""

    party: Party
    alice: User
    bob: User
    bob_files: Person
    mallory: Address
    channel: str

    async def pays(self, times: int = 1) -> None:
        """Honest users notice nothing."""
        for _ in range(times):
            await pay(self.alice, self.bob, self.channel, ("ETH", "bob", "0.001"))

    @property
    def memory(self) -> int:
        return self.party.world.nodes[0].running.memory


@pytest.fixture
async def hall(party: Party) -> AsyncIterator[Hall]:
    alice, bob, mallory = party.world.friends("alice", "bob", "mallory")
    user, other = await party.join(alice), await party.join(bob)
    channel = await open_channel(user, other, {"ETH": ("1", "1")})
    hall = Hall(party, user, other, bob, Address.parse(mallory.off_chain), channel)
    await hall.pays()
    before = hall.memory
    yield hall
    await hall.pays(3)
    assert hall.memory - before < MEMORY, f"the node grew from {before} to {hall.memory} bytes"
    output = party.world.nodes[0].running.output
    assert "Traceback" not in output, "something a stranger sent was not expected"


def cases(file: str, name: str) -> list[dict[str, Any]]:
    """A list of the golden vectors."""
    content: dict[str, list[dict[str, Any]]] = json.loads((VECTORS / file).read_text())
    return content[name]


def bytes_of(case: dict[str, Any]) -> bytes:
    """The input of a case, also when it is given in parts."""
    parts = case["bytes_parts"] if "bytes_parts" in case else [(case["bytes"], 1)]
    return b"".join(bytes.fromhex(part) * count for part, count in parts)


def valid_messages() -> dict[str, bytes]:
    """Messages of every type by name."""
    return {case["name"]: bytes_of(case) for case in cases("messages.json", "messages") if not case["violations"]}


@asynccontextmanager
async def connection(person: Person) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to somebody's peer port."""
    host, port = person.comm_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def shaken(person: Person, stranger: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection after a good handshake as `stranger`."""
    envelope = PROFILE.encode(hello(stranger, Address.parse(person.off_chain)))
    async with connection(person) as (reader, writer):
        writer.write(envelope)
        await reader.readexactly(len(envelope))
        yield reader, writer


def addressed(message: bytes, sender: Address, recipient: Address) -> bytes:
    """`message` from `sender` to `recipient`."""
    head = b"\x14\x00" + bytes(sender) + b"\x14\x00" + bytes(recipient)
    assert len(head) == ENVELOPE_ADDRESSES
    return head + message[ENVELOPE_ADDRESSES:]


async def deliver(hall: Hall, stranger: Address, data: bytes) -> None:
    """Send `data` after a handshake, and no more; the node answers, closes or waits, but does not mind."""
    async with shaken(hall.bob_files, stranger) as (reader, writer):
        writer.write(data)
        try:
            writer.write_eof()
            async with asyncio.timeout(20):
                while await reader.read(1 << 16):
                    pass
        except ConnectionError:
            pass


async def deliver_all(hall: Hall, pieces: Iterator[tuple[Address, bytes]]) -> None:
    """Many deliveries, a few at a time, while alice goes on paying bob."""

    async def worker() -> None:
        for stranger, data in pieces:
            await deliver(hall, stranger, data)

    workers = [asyncio.ensure_future(worker()) for _ in range(AT_ONCE)]
    while not all(each.done() for each in workers):
        await hall.pays()
    await asyncio.gather(*workers)


async def test_damaged_messages_and_truncations_close_a_connection_and_nothing_else(hall: Hall) -> None:
    bob = Address.parse(hall.bob_files.off_chain)
    damaged = [bytes_of(case) for case in cases("invalid.json", "decode_reject")]
    assert damaged
    pieces = [(hall.mallory, data) for data in damaged]
    pieces += [(hall.mallory, addressed(data, hall.mallory, bob)) for data in damaged if len(data) > ENVELOPE_ADDRESSES]
    whole = valid_messages()
    for case in cases("invalid.json", "truncations"):
        if case["message"] in whole:
            message = addressed(whole[case["message"]], hall.mallory, bob)
            pieces.append((hall.mallory, message[: case["offset"]]))
    assert len(pieces) > 200
    await deliver_all(hall, iter(pieces))


async def test_before_the_handshake_nothing_but_a_handshake_is_looked_at(hall: Hall) -> None:
    bob = Address.parse(hall.bob_files.off_chain)
    for message in valid_messages().values():
        async with connection(hall.bob_files) as (reader, writer):
            writer.write(addressed(message, hall.mallory, bob))
            try:
                writer.write_eof()
                async with asyncio.timeout(20):
                    answer = await reader.read()
            except ConnectionError:
                answer = b""
        assert len(answer) <= ENVELOPE_ADDRESSES + 1, "a stranger was answered with more than a handshake"
    await hall.pays()


async def test_random_mutations_of_valid_messages_disturb_nobody(hall: Hall) -> None:
    """From somebody bob knows, and from nobody; with right addresses, so that everything behind them is reached."""
    bob = Address.parse(hall.bob_files.off_chain)
    chance = random.Random(2)
    messages = [message for message in valid_messages().values() if len(message) > ENVELOPE_ADDRESSES + 1]

    def mutated() -> Iterator[tuple[Address, bytes]]:
        for _ in range(MUTATIONS):
            stranger = hall.mallory if chance.random() < 0.5 else Address(chance.randbytes(20))
            data = bytearray(addressed(chance.choice(messages), stranger, bob))
            for _ in range(chance.choice((1, 1, 2, 8))):
                data[chance.randrange(ENVELOPE_ADDRESSES + 1, len(data))] = chance.randrange(256)
            yield stranger, bytes(data)

    await deliver_all(hall, mutated())


async def test_half_open_connections_keep_no_honest_peer_out(hall: Hall) -> None:
    """Hundreds that connect and say nothing, or half a handshake; somebody new still opens a channel."""
    person = hall.bob_files
    carol_files = hall.party.world.person("carol")
    bob_only = Person("bob", person.home, person.on_chain, person.off_chain, person.comm_address, person.session_file)
    carol_files.know(bob_only)
    carol = await hall.party.join(carol_files)
    me = await carol.client.get_peer(carol.session, "self")
    await hall.bob.client.add_peer(hall.bob.session, me._replace(alias="carol"))
    begun = PROFILE.encode(hello(hall.mallory, Address.parse(person.off_chain)))[:20]
    host, port = person.comm_address.split(":")
    writers = []
    try:
        for number in range(HALF_OPEN):
            _, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            writer.write(begun[: number % len(begun)])
        await hall.pays()
        assert await open_channel(carol, hall.bob, {"ETH": ("1", "0")})
    finally:
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@pytest.mark.parametrize("after_handshake", [False, True])
async def test_a_flood_is_cut_off_however_long_it_is_and_kept_nowhere(hall: Hall, after_handshake: bool) -> None:
    """What arrives while a connection is being closed is thrown away; memory is compared by the fixture."""
    flooding = shaken(hall.bob_files, hall.mallory) if after_handshake else connection(hall.bob_files)
    block = random.Random(3).randbytes(1 << 16)
    async with flooding as (_, writer):
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(CUT_OFF):
                while True:
                    writer.write(block)
                    await writer.drain()
    await hall.pays()


async def test_the_longest_message_that_is_none_is_not_kept(hall: Hall) -> None:
    """A stream that looks like the beginning of a message all the way."""
    bob = Address.parse(hall.bob_files.off_chain)
    proposal = next(data for name, data in valid_messages().items() if name.startswith("ledger-proposal"))
    async with shaken(hall.bob_files, hall.mallory) as (_, writer):
        begun = addressed(proposal, hall.mallory, bob)
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(CUT_OFF):
                writer.write(begun[:-1])
                for _ in range(FLOOD // (1 << 16)):
                    writer.write(bytes(1 << 16))
                    await writer.drain()
                while True:  # all of it went out; now it must be noticed that the other end is gone
                    writer.write(b"\0")
                    await writer.drain()
                    await asyncio.sleep(0.05)


async def test_a_message_that_never_ends_is_not_waited_for_in_memory(hall: Hall) -> None:
    """Many connections, each with the beginning of the longest message; what they make the node keep is bounded."""
    bob = Address.parse(hall.bob_files.off_chain)
    longest = max(valid_messages().values(), key=len)
    chance = random.Random(4)
    held = []
    try:
        for _ in range(40):
            stranger = Address(chance.randbytes(20))
            context = shaken(hall.bob_files, stranger)
            _, writer = await context.__aenter__()
            held.append(context)
            writer.write(addressed(longest, stranger, bob)[:-1])
            await writer.drain()
        await hall.pays(3)
    finally:
        for context in held:
            await context.__aexit__(None, None, None)


def room_for_sockets(wanted: int) -> int:
    """How many sockets this process may hold, after asking for more; some stay free for everybody else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted + SPARE if hard == resource.RLIM_INFINITY else min(wanted + SPARE, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - SPARE)


@pytest.mark.slow
async def test_ten_thousand_half_open_connections_keep_no_honest_peer_out(hall: Hall) -> None:
    """They are opened as fast as the system allows and never closed; honest users pay all the while."""
    count = room_for_sockets(CROWD)
    if count < CROWD:
        pytest.skip(f"this system allows {count} sockets, {CROWD} are needed")
    host, port = hall.bob_files.comm_address.split(":")
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []

    numbers = iter(range(count))

    async def join() -> None:
        for number in numbers:
            one = socket.socket()
            one.setblocking(False)
            sockets.append(one)
            with suppress(OSError):  # refused or reset is as good
                async with asyncio.timeout(20):
                    await loop.sock_connect(one, (host, int(port)))
                    if number % 3 == 0:
                        await loop.sock_sendall(one, b"\x14\x00")

    try:
        crowd = [asyncio.ensure_future(join()) for _ in range(AT_ONCE)]
        while not all(each.done() for each in crowd):
            await hall.pays()
            await asyncio.wait(crowd, timeout=0.1)  # what alice has must last
        await asyncio.gather(*crowd)
        await hall.pays(3)
    finally:
        for one in sockets:
            one.close()


async def test_a_peer_that_talks_all_the_time_does_not_starve_another(hall: Hall) -> None:
    """Valid messages of somebody bob knows, without a pause and without reading the answers."""
    bob = Address.parse(hall.bob_files.off_chain)
    chatter = b"".join(
        addressed(message, hall.mallory, bob)
        for name, message in valid_messages().items()
        if name.startswith(("sync", "channel-sync", "update", "channel-update", "ping"))
    )
    assert chatter
    async with shaken(hall.bob_files, hall.mallory) as (_, writer):

        async def talk() -> None:
            while True:
                writer.write(chatter * 20)
                await writer.drain()

        talking = asyncio.ensure_future(talk())
        await hall.pays(10)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)

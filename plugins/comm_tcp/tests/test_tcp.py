"""TCP fulfils the transport port, and does what is special about TCP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from perun_comm_tcp import perun_register_comm
from perun_comm_tcp.options import TCPOptions
from perun_comm_tcp.transport import BUFFER, open_tcp
from perun_core.errors import AddressInvalid, ConnectionLost, PeerUnreachable
from perun_core.ports.comm import Comm, CommContext, Connection
from perun_core.testing.comm import CommConformance


def free_tcp_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
async def comm() -> AsyncIterator[Comm]:
    async with open_tcp(TCPOptions(linger=0.2), CommContext()) as comm:
        yield comm


class TestTCP(CommConformance):
    @pytest.fixture
    def free_address(self) -> Callable[[], str]:
        return free_tcp_address


async def connect(comm: Comm) -> tuple[Connection, Connection]:
    accepted: asyncio.Queue[Connection] = asyncio.Queue()
    over = asyncio.Event()

    async def accept(connection: Connection) -> None:
        accepted.put_nowait(connection)
        await over.wait()

    address = free_tcp_address()
    await comm.listen(address, accept)
    return await comm.dial(address, timeout=5), await accepted.get()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:5750", "localhost:1", "peer_one.example.org:65535", "peer.example.:80", "[::1]:5750", "[fe80::1]:1"],
)
async def test_addresses_are_host_and_port(comm: Comm, address: str) -> None:
    comm.check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "invalid-addr",
        ":5750",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "127.0.0.1:５",
        "127.0.0.1:http",
        "127.0.0.256:1",
        "1.2.3:1",
        "::1:5750",
        "[::1]",
        "[127.0.0.1]:1",
        "[]:1",
        "a b:1",
        "a..b:1",
        "-a:1",
        f"{'a' * 64}:1",
        "tcp://127.0.0.1:1",
    ],
)
async def test_anything_else_is_not_an_address(comm: Comm, address: str) -> None:
    with pytest.raises(AddressInvalid):
        comm.check_address(address)


async def test_listening_on_another_machines_address_is_refused(comm: Comm) -> None:
    with pytest.raises(AddressInvalid):
        await comm.listen("192.0.2.1:5750", lambda connection: asyncio.sleep(0))


async def test_an_unknown_host_is_unreachable(comm: Comm) -> None:
    with pytest.raises(PeerUnreachable):
        await comm.dial("nobody.invalid:5750", timeout=5)


async def test_small_messages_are_sent_at_once_and_dead_ends_probed(comm: Comm) -> None:
    for end in await connect(comm):
        sock = end._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_a_read_gives_what_is_there_up_to_its_bound(comm: Comm) -> None:
    near, far = await connect(comm)
    writing = asyncio.create_task(near.write(bytes(10 * BUFFER)))
    sizes = []
    while sum(sizes) < 10 * BUFFER:
        sizes.append(len(await asyncio.wait_for(far.read(), 5)))
    assert max(sizes) <= BUFFER
    await writing


async def test_a_reset_by_the_other_end_is_a_lost_connection(comm: Comm) -> None:
    accepted: asyncio.Queue[Connection] = asyncio.Queue()
    over = asyncio.Event()

    async def accept(connection: Connection) -> None:
        accepted.put_nowait(connection)
        await over.wait()

    address = free_tcp_address()
    await comm.listen(address, accept)
    host, port = address.split(":")
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        connection = await accepted.get()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(connection.read(), 5)
    with pytest.raises(ConnectionLost):
        await connection.write(b"x")


async def test_leaving_the_transport_closes_what_was_opened_through_it() -> None:
    async with open_tcp(TCPOptions(linger=0.2), CommContext()) as comm:
        near, far = await connect(comm)
        await near.write(b"x")
    with pytest.raises(ConnectionLost):
        await near.write(b"y")
    with pytest.raises(ConnectionLost):
        await far.write(b"y")


def test_the_plugin_declares_the_name_users_write() -> None:
    backend = perun_register_comm()
    assert backend.name == "tcp"
    assert msgspec.convert({"keepalive": 30}, backend.config) == TCPOptions(keepalive=30)


@pytest.mark.parametrize("options", [{"backlog": 0}, {"keepalive": -1}, {"linger": 61.0}, {"nodelay": True}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, TCPOptions)

"""One run of the demo, from an empty directory to an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Final

import grpc.aio

from .failure import DemoFailed
from .money import Books, ChainReader, Contracts, reconcile
from .person import Person, Refused
from .screen import Screen
from .story import show_books, show_result, tell, together
from .world import World, free_ports, http_url, provide_money

NAMES: Final = ("alice", "bob")
ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(*, chain: str, two_nodes: bool, keep: bool) -> int:
    """Run it; the exit code: 0 when all came out right, 1 when not, 128 plus the signal's number when ended by one."""
    return asyncio.run(_run(chain=chain, two_nodes=two_nodes, keep=keep))


async def _run(*, chain: str, two_nodes: bool, keep: bool) -> int:
    screen = Screen(sys.stdout)
    story = asyncio.current_task()
    assert story is not None
    received: list[int] = []

    def end(number: int) -> None:
        if not received:
            story.cancel()
        received.append(number)

    for number in ENDING_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    with World(keep=keep) as world:
        try:
            await _play(screen, world, chain=chain, two_nodes=two_nodes)
            return 0
        except (DemoFailed, Refused) as failure:
            _report(screen, world, str(failure))
            return 1
        except asyncio.CancelledError:
            if not received:
                raise
            screen.line()
            screen.line("Interrupted; ending what was started.")
            return 128 + received[0]
        except Exception as error:
            _report(screen, world, f"unexpected {type(error).__name__}: {error}")
            raise
        finally:
            if keep:
                screen.line(f"Kept: {world.directory}")


def _report(screen: Screen, world: World, problem: str) -> None:
    """Say what went wrong, after what the processes said last."""
    screen.line()
    print(world.tails(), f"\nThe demo failed: {problem}", sep="\n", file=sys.stderr, flush=True)


async def _play(screen: Screen, world: World, *, chain: str, two_nodes: bool) -> None:
    started = time.monotonic()
    screen.line(
        "Alice and bob pay each other through payment channels. A blockchain holds their deposits and sees only"
    )
    screen.line(
        "the beginning and the end; all payments go directly from one to the other. No money of value is involved."
    )
    screen.heading("Setting up")
    reader, contracts, accounts = await _set_up_chain(screen, world, chain)
    ports = await _start_nodes(screen, world, two_nodes=two_nodes)
    before = await Books.read(reader, contracts, accounts)
    screen.heading("On the blockchain, before")
    show_books(screen, before)
    async with _sessions(ports) as (alice, bob):
        gains = await tell(screen, alice, bob)
    after = await Books.read(reader, contracts, accounts)
    fees = await reader.fees(accounts, before.block + 1, after.block)
    screen.heading("On the blockchain, after")
    checks = reconcile(before, after, gains=gains, fees=fees)
    show_result(screen, (before, after), gains, fees, checks)
    screen.line()
    screen.line(f"Done in {time.monotonic() - started:.1f} s: every unit is where it belongs.")


async def _set_up_chain(screen: Screen, world: World, choice: str) -> tuple[ChainReader, Contracts, dict[str, str]]:
    """Files, chain, money, contracts; the files name the chain and the contracts afterwards."""
    async with screen.step("keys and configuration files"):
        await world.generate()
    accounts = world.accounts(NAMES)
    where = {"embedded": "a blockchain of our own", "anvil": "a blockchain (anvil)"}.get(choice, f"the chain {choice}")
    async with screen.step(where):
        url = await world.chain(choice)
        reader = ChainReader(http_url(url))
        chain_id = await reader.number("eth_chainId")
        await provide_money(reader, accounts)
    async with screen.step("contracts that guard deposits, and a test token"):
        contracts = await world.deploy(url, NAMES[0])
    world.configure(url=url, chain_id=chain_id, contracts=contracts, names=NAMES)
    return reader, contracts, accounts


async def _start_nodes(screen: Screen, world: World, *, two_nodes: bool) -> tuple[int, ...]:
    """API ports of alice's and bob's node, which may be the same."""
    if not two_nodes:
        (port,) = free_ports(1)
        async with screen.step("a node that serves alice and bob"):
            await world.node("node", port)
        return port, port
    ports = free_ports(2)
    async with screen.step("a node for alice and a node for bob"):
        starting = (world.node(f"node of {name}", port) for name, port in zip(NAMES, ports, strict=True))
        await together(*starting)
    return tuple(ports)


@contextlib.asynccontextmanager
async def _sessions(ports: tuple[int, ...]) -> AsyncIterator[tuple[Person, Person]]:
    """Alice and bob, each connected to their node with an open session."""
    async with contextlib.AsyncExitStack() as connections:
        people = []
        for name, port in zip(NAMES, ports, strict=True):
            connection = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
            await connections.enter_async_context(connection)
            people.append(await Person.arrive(name, connection, f"{name}/session.yaml"))
        alice, bob = people
        yield alice, bob

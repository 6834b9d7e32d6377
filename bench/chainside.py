"""What benchmarks of the chain side share: two nodes on anvil, and a proxy that counts what alice's node asks it.

Nodes are processes that are started and used through public commands and the published API; anvil stands for the chain,
because its blocks can be made when they are wanted. Databases are read as copies, or while no session is open.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness import ROOT, Refused

sys.path.append(str(ROOT))
from perun_core.apps.registry import AppRegistry
from perun_core.ports.store import StoreContext, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord, RecordCodec
from perun_store_sqlite.store import SqliteConfig, open_sqlite
from tests.integration.world import ANVIL, MARKER, Node, Person, World, running_world
from tests.servers.fault_proxy import FaultProxy

PER_BLOCK: Final = ("eth_getLogs",)
"""What a session asks about every block, whatever its channels do."""


@dataclass
class Town:
    """alice's node reaches the chain through a proxy that counts; bob's node does not."""

    world: World
    proxy: FaultProxy
    alice_node: Node = field(init=False)
    bob_node: Node = field(init=False)

    def people(self, **terms: Any) -> tuple[Person, Person]:
        """alice, whose session uses the proxy too, and bob."""
        alice, bob = self.world.friends("alice", "bob", **terms)
        alice.configure(chainurl=self.proxy.ws)
        return alice, bob

    def head(self) -> tuple[int, int]:
        """Number and timestamp of the latest block."""
        block = self.world.rpc("eth_getBlockByNumber", "latest", False)
        return int(block["number"], 16), int(block["timestamp"], 16)

    def stop_blocks(self) -> None:
        """No block from now on but those that are asked for."""
        self.world.rpc("evm_setIntervalMining", 0)

    def go_on(self) -> None:
        """A block per second."""
        self.world.rpc("evm_setIntervalMining", 1)


@contextmanager
def town(home: Path) -> Iterator[Town]:
    """Both nodes running on a chain with a block per second, all of it ended afterwards. Raises: Refused."""
    if not (os.environ.get("ANVIL") or ANVIL.is_file()):
        raise Refused("no anvil: set ANVIL, or run make tools")
    home.mkdir(parents=True, exist_ok=True)
    with running_world("anvil", home, nodes=0) as world, FaultProxy(world.url.replace("ws", "http", 1)) as proxy:
        built = Town(world, proxy)
        built.alice_node = world.node("node-of-alice", chainurl=proxy.ws, loglevel="warn")
        built.bob_node = world.node("node-of-bob", loglevel="warn")
        nodes = built.alice_node, built.bob_node
        for node in nodes:
            node.launch()
        for node in nodes:
            node.running.wait_for(MARKER)
        try:
            yield built
        finally:
            for node in nodes:  # before the proxy ends
                if node.process is not None and node.process.process.poll() is None:
                    node.process.stop()


class CallCounter:
    """Questions to the chain since it was made, by method."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._from = len(proxy.seen)

    @property
    def methods(self) -> Counter[str]:
        """How often each method was asked."""
        return Counter(each.method for each in self._proxy.seen[self._from :])

    @property
    def beside_blocks(self) -> Counter[str]:
        """Without what every block costs."""
        return Counter({name: count for name, count in self.methods.items() if name not in PER_BLOCK})


async def until(holds: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Look ten times a second. Raises: Refused when `what` does not happen in time."""
    try:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - other processes tell nobody
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise Refused(f"{what}: not within {seconds:g} s") from None


# ----------------------------------------------------------------------------------------------------------- databases


def codec() -> RecordCodec:
    """For records of channels without apps."""
    return RecordCodec(PROFILE, AppRegistry())


def _copied(database: Path, scratch: Path) -> None:
    scratch.mkdir()
    source = sqlite3.connect(f"{(database / 'store.db').as_uri()}?mode=ro", uri=True)
    with closing(source), closing(sqlite3.connect(scratch / "store.db")) as copy:
        source.backup(copy)


async def records(database: Path, scratch: Path) -> list[ChannelRecord]:
    """The channels in a consistent copy of `database`, which may be in use; the copy is made in `scratch`."""
    _copied(database, scratch)
    found = []
    async with open_sqlite(SqliteConfig(), StoreContext(scratch)) as store:
        after: bytes | None = None
        while page := await store.scan(Table.CHANNELS, after=after):
            found += [codec().decode(key, value) for key, value in page]
            after = page[-1][0]
    return found


async def write_records(database: Path, channels: Iterable[ChannelRecord]) -> None:
    """Add channels to a database that nobody uses."""
    encoder = codec()
    batch = [op for record in channels for op in encoder.operations(record, claim=True)]
    if batch:
        async with open_sqlite(SqliteConfig(), StoreContext(database)) as store:
            await store.commit(batch)


# -------------------------------------------------------------------------------------------------------------- output


def shown(counts: Mapping[str, int | float]) -> str:
    """``3 eth_call, 1 eth_getLogs``, most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:g} {name}" for name, count in ordered) or "none"

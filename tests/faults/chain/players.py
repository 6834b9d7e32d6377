"""People whose node runs in this process: real plugins, real files, and a death that leaves only what was durable.

`Player.die` stands for kill -9: from one moment on the store takes nothing any more (what was being written may or may
not be there), no task of the node runs to its end, and the next `arrive` begins with a new node and the same files.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from perun_core.config import load_node
from perun_core.errors import ApiError, StoreBroken
from perun_core.node.channel import LiveChannel
from perun_core.node.node import Node
from perun_core.node.session import Session
from perun_core.plugin import Backend, hookimpl
from perun_core.plugin.declare import NoOptions
from perun_core.plugin.manager import PluginHost
from perun_core.ports.api import BalInfo, PaymentItem
from perun_core.ports.idprovider import OWN_ALIAS
from perun_core.ports.policy import Decision, Policy, PolicyContext, ProposalView, UpdateView, Verdict
from perun_core.ports.store import Doubt, Op, Store, StoreContext, StoreStatus, Table
from perun_core.values import keccak256
from perun_keymgr_ethkeystore.keyfiles import write_key_file
from perun_store_sqlite.store import SqliteConfig, open_sqlite
from plugins.chain_ethereum.tests.chain_backend.conftest import CHAIN_ID, Key
from tests.faults.chain.ground import Ground

T = TypeVar("T")

PLUGINS: Final = ("chain_ethereum", "comm_tcp", "idprovider_local", "keymgr_ethkeystore")
RESPONSE_TIMEOUT: Final = "2s"
TX_TIMEOUT: Final = "5s"


class Lifeline:
    """Whether a node lives, and when it is going to die."""

    def __init__(self) -> None:
        self.dead = False
        self.died = asyncio.Event()
        self.buried = False
        self._commits = 0
        self._last: int | None = None
        self._written = True

    def doom(self, *, after: int, written: bool) -> None:
        """Die at the `after`-th commit from now, with it or just before it is written."""
        self._last = self._commits + after
        self._written = written

    def cut(self) -> None:
        """Die now."""
        self.dead = True
        self.died.set()

    async def commit(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `write` unless that is where life ends; whoever wanted it then never hears of it again."""
        await self.check()
        self._commits += 1
        ends = self._commits == self._last
        if not ends or self._written:
            await write()
        if ends:
            self.cut()
        await self.check()

    async def check(self) -> None:
        """Return for the living only."""
        if self.dead:
            if not self.buried:
                await asyncio.Event().wait()
            raise StoreBroken("the node of this store is dead")


class MortalStore:
    """A store that ends with its node."""

    def __init__(self, store: Store, line: Lifeline) -> None:
        self._store = store
        self._line = line

    async def commit(self, batch: Sequence[Op]) -> None:
        """See `Store.commit`."""
        await self._line.commit(lambda: self._store.commit(batch))

    async def get(self, table: Table, key: bytes) -> bytes | None:
        """See `Store.get`."""
        await self._line.check()
        return await self._store.get(table, key)

    async def scan(
        self, table: Table, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """See `Store.scan`."""
        await self._line.check()
        return await self._store.scan(table, prefix, after=after, limit=limit)

    def status(self) -> StoreStatus:
        """See `Store.status`."""
        return self._store.status()

    async def distrust(self, doubt: Doubt, reason: str) -> None:
        """See `Store.distrust`."""
        await self._store.distrust(doubt, reason)

    async def trust(self, prefix: bytes = b"") -> None:
        """See `Store.trust`."""
        await self._store.trust(prefix)


class Agreeable:
    """A user who accepts everything, except that some do not like to close."""

    def __init__(self, player: Player) -> None:
        self._player = player

    async def on_proposal(self, proposal: ProposalView) -> Decision:
        """See `Policy.on_proposal`."""
        return Decision(Verdict.ACCEPT)

    async def on_update(self, update: UpdateView) -> Decision:
        """See `Policy.on_update`."""
        refused = update.is_final and self._player.clings
        return Decision(Verdict.REJECT if refused else Verdict.ACCEPT)


class Company:
    """The plugin that gives every player a mortal store and a mind of its own; one per process."""

    perun_interface = 1

    def __init__(self) -> None:
        self.players: dict[str, Player] = {}
        self.host = PluginHost.load(PLUGINS, [("store_mortal", self)])

    @hookimpl
    def perun_register_store(self) -> Backend[Store]:
        """SQLite that ends with its node."""
        return Backend(name="mortal", config=SqliteConfig, open=self._open_store)

    @hookimpl
    def perun_register_policy(self) -> Backend[Policy]:
        """The mind of the player with the session's alias."""
        return Backend(name="agreeable", config=NoOptions, open=self._open_policy)

    @asynccontextmanager
    async def _open_store(self, config: SqliteConfig, context: StoreContext) -> AsyncIterator[Store]:
        player = self.players[context.path.parent.name]
        async with open_sqlite(config, context) as store:
            yield MortalStore(store, player.line)

    @asynccontextmanager
    async def _open_policy(self, _: NoOptions, context: PolicyContext) -> AsyncIterator[Policy]:
        yield Agreeable(self.players[context.session])


@dataclass(eq=False)
class Player:
    """One person with a node of their own."""

    alias: str
    company: Company
    home: Path
    account: Key
    off_chain: Key
    comm_address: str
    clings: bool = False
    """Refuses to close by agreement."""
    line: Lifeline = field(default_factory=Lifeline)
    session: Session | None = None
    lives: int = 0
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    # ---- coming and going -------------------------------------------------------------------------------------------

    async def arrive(self) -> None:
        """Start a node and open the session. Raises: PerunError."""
        assert self.session is None, f"{self.alias} is there already"
        self.line = Lifeline()
        self.lives += 1
        async with AsyncExitStack() as stack:
            node = Node(load_node(self.home / "node.yaml", {}, {}), self.company.host)
            await node.start(stack)
            opened = await node.open_session(str(self.home / "session.yaml"))
            self.session = cast("Session", node.session(opened.session_id))
            self._stack = stack.pop_all()

    async def leave(self) -> None:
        """An orderly end; nothing happens to those who are not there."""
        session, self.session = self.session, None
        if session is not None:
            await session.shut_down()
            await self._stack.aclose()

    async def die(self) -> None:
        """As after kill -9; nothing happens to those who are not there."""
        session, self.session = self.session, None
        if session is None:
            return
        self.line.cut()
        for task in _tasks_of(session):
            task.cancel()
        await asyncio.sleep(0)
        self.line.buried = True  # from here on only memory and sockets are given back
        await session.shut_down()
        await self._stack.aclose()

    # ---- doing ------------------------------------------------------------------------------------------------------

    async def attempt(self, action: Callable[[Session], Coroutine[Any, Any, T]], *, timeout: float = 40.0) -> T | None:
        """What a user asks for, given up when it is refused or the node dies; None then."""
        session, line = self.session, self.line
        if session is None:
            return None
        task = asyncio.ensure_future(action(session))
        death = asyncio.ensure_future(line.died.wait())
        try:
            await asyncio.wait((task, death), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                with suppress(ApiError):
                    return task.result()
            return None
        finally:
            for each in (task, death):
                each.cancel()
            await asyncio.gather(task, death, return_exceptions=True)

    async def open_channel(self, peer: Player, ether: tuple[int, int], challenge: int) -> str | None:
        """Propose; the channel's ID, or None when nothing came of it."""
        rows = ((_shown(ether[0]), _shown(ether[1])),)
        balances = BalInfo(("ETH",), (OWN_ALIAS, peer.alias), rows)
        info = await self.attempt(lambda session: session.open_channel(balances, challenge))
        return None if info is None else info.channel_id

    async def pay(self, peer: Player, wei: int) -> bool:
        """Pay over the channel with `peer`; whether it was agreed."""
        live = self.channel
        if live is None or not live.is_open:
            return False
        items = (PaymentItem("ETH", peer.alias, _shown(wei)),)
        return await self.attempt(lambda _: live.send_update(items)) is not None

    async def close(self) -> None:
        """Close the channel; returns when that is done or was refused."""
        live = self.channel
        if live is not None and live.is_open:
            await self.attempt(lambda _: live.close())

    # ---- being looked at --------------------------------------------------------------------------------------------

    @property
    def channel(self) -> LiveChannel | None:
        """The one channel, when there is one; it stays visible once archived, until the node ends."""
        if self.session is None:
            return None
        return next(iter(self.session._channels.values()), None)

    @property
    def is_done(self) -> bool:
        """Whether this person is there and has nothing left to do."""
        if self.session is None or self.session._openings:
            return False
        return all(live.is_withdrawn for live in self.session._channels.values())


def _tasks_of(session: Session) -> list[asyncio.Task[Any]]:
    tasks: list[asyncio.Task[Any]] = list(session._tasks)
    for live in session._channels.values():
        tasks += [task for task in (live._task, live._step, *live._deciding, *live._late) if task is not None]
    for opening in session._openings.values():
        tasks += [task for task in (opening._task, *opening._late) if task is not None]
    return tasks


def _shown(wei: int) -> str:
    return f"{wei // 10**18}.{wei % 10**18:018d}"


def player(name: str, *, seed: int, company: Company, home: Path, port: int) -> Player:
    """Somebody with keys that follow from `name` and `seed`; knows nobody yet and has no money."""
    alias = f"{name}-{seed}"
    folder = home / alias
    keystore = folder / "keystore"
    keystore.mkdir(parents=True)
    secrets = [keccak256(f"{alias} {role}".encode()) for role in ("on-chain", "off-chain")]
    for secret in secrets:
        write_key_file(keystore, secret, "", weak=True, name_time=datetime.now(UTC))
    account, off_chain = (Key("", secret) for secret in secrets)
    made = Player(alias, company, folder, account, off_chain, f"127.0.0.1:{port}")
    company.players[alias] = made
    return made


def configure(who: Player, ground: Ground, *, url: str, finality: int, knows: Sequence[Player]) -> None:
    """Write the files of a player whose node reaches the chain at `url`."""
    contracts = ground.contracts
    node = {
        "loglevel": "debug",
        "logfile": "",
        "chainurl": url,
        "chainid": str(CHAIN_ID),
        "adjudicator": contracts.adjudicator,
        "asseteth": contracts.eth,
        "chainconntimeout": "5s",
        "onchaintxtimeout": TX_TIMEOUT,
        "responsetimeout": RESPONSE_TIMEOUT,
        "finalitydepth": str(finality),
        "plugins": {"enabled": [*PLUGINS, "store_mortal"]},
    }
    wallet = {"keystorepath": str(who.home / "keystore"), "password": ""}
    session = {
        "user": {
            "alias": who.alias,
            "onchainaddr": who.account.address.checksum,
            "onchainwallet": wallet,
            "partaddrs": [],
            "offchainaddr": who.off_chain.address.checksum,
            "offchainwallet": wallet,
            "commaddr": who.comm_address,
            "commtype": "tcp",
        },
        "idprovidertype": "local",
        "idproviderurl": str(who.home / "idprovider.yaml"),
        "chainurl": url,
        "chainid": str(CHAIN_ID),
        "chainconntimeout": "5s",
        "onchaintxtimeout": TX_TIMEOUT,
        "responsetimeout": RESPONSE_TIMEOUT,
        "databasedir": str(who.home / "database"),
        "peerreconntimeout": "5s",
        "fundingtype": "local",
        "watchertype": "local",
        "store": "mortal",
        "policy": "agreeable",
    }
    known = {
        other.alias: {
            "alias": other.alias,
            "offchain_address": other.off_chain.address.checksum,
            "comm_address": other.comm_address,
            "comm_type": "tcp",
        }
        for other in knows
    }
    for name, content in (("node", node), ("session", session), ("idprovider", known)):
        (who.home / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML

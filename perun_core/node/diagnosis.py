"""What ``perunnode doctor`` finds out: can the node start, and by when must each session be back. Changes nothing.

A session's store is opened for a moment, as only its owner may read it; a running node that owns it is not disturbed.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..channel import Dispute, Phase
from ..config import NodeConfig, SessionConfig, backend_options, load_session
from ..errors import ConfigError, IDProviderError, PerunError, StoreError, StoreLocked
from ..plugin.manager import Kind, PluginHost
from ..ports.chain import BlockRef, Chain, ChainContext, Contracts
from ..ports.idprovider import IDProvider, IDProviderContext
from ..ports.store import Store, StoreContext, Table
from ..profile.gp090 import PROFILE
from ..protocol.records import ChannelRecord, RecordCodec
from ..values import Address
from .absence import UNWATCHED, back_before, shown_span, shown_time
from .recovery import REMEDY

AT_ONCE: Final = 16
"""Questions to the chain node that may wait for an answer at the same time."""


class Level(StrEnum):
    """How bad a finding is."""

    FINE = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Struct, frozen=True):
    """One sentence about one thing."""

    level: Level
    text: str


class ChannelFinding(Struct, frozen=True):
    """A channel that is not withdrawn. Times are block times in Unix seconds."""

    channel: str
    """Channel ID, hexadecimal."""
    phase: str
    version: int
    """The newest version that both signed."""
    peer: str
    """Its alias, or its off-chain address where the contacts do not know it."""
    challenge_duration: int
    """Seconds."""
    dispute: str = ""
    """What the chain says; empty when nothing is registered, or the chain was not asked."""
    back_before: int | None = None
    """None: not known, or nothing can be lost."""
    danger: bool = False
    """An outdated state is registered."""


class SessionFinding(Struct, frozen=True):
    """What a session file leads to."""

    file: str
    alias: str = ""
    off_chain: str = ""
    in_use: bool = False
    findings: tuple[Finding, ...] = ()
    channels: tuple[ChannelFinding, ...] = ()
    back_within: int | None = None
    """Seconds after which an outdated state could stand; None when no channel is watched."""
    back_before: int | None = None
    """Block time before which the session must be open again; None when not known, or nothing can be lost."""


class Diagnosis(Struct, frozen=True):
    """Everything that was found."""

    node: tuple[Finding, ...]
    sessions: tuple[SessionFinding, ...] = ()

    @property
    def problems(self) -> int:
        """How many findings keep the node from working, or money in danger."""
        findings = [*self.node, *(finding for session in self.sessions for finding in session.findings)]
        return sum(finding.level is Level.PROBLEM for finding in findings)


async def diagnose(config: NodeConfig, plugins: PluginHost, session_files: tuple[Path, ...]) -> Diagnosis:
    """The node of `config`, and the sessions of `session_files`; whatever goes wrong is part of the answer."""
    node = _NodeDoctor(config, plugins)
    findings = await node.examine()
    return Diagnosis(findings, tuple([await _SessionDoctor(node, file).examine() for file in session_files]))


class _NodeDoctor:
    def __init__(self, config: NodeConfig, plugins: PluginHost) -> None:
        self.config = config
        self.plugins = plugins

    async def examine(self) -> tuple[Finding, ...]:
        found = [Finding(Level.WARNING, warning) for warning in self.config.warnings]
        try:
            pairs = self.config.asseterc20_addresses()
            async with self.chain(self.config.chainurl, self.config.chainid) as chain:
                head = await chain.head()
                found.append(
                    Finding(
                        Level.FINE,
                        f"chain {chain.chain_id} is reachable, latest block {head.number} of "
                        f"{shown_time(head.timestamp)}",
                    )
                )
                if stale := await chain.staleness():
                    found.append(Finding(Level.WARNING, f"{stale}; no channel is opened meanwhile"))
                found.append(await _contract("adjudicator", chain.validate_adjudicator))
                holder = self.config.asseteth_address()
                found.append(await _contract("ETH holder", lambda: chain.validate_holder("ETH", holder, None)))
                for token, token_holder in pairs:
                    found.append(await self._token(chain, token, token_holder))
        except PerunError as error:
            found.append(Finding(Level.PROBLEM, str(error)))
        return tuple(found)

    @staticmethod
    async def _token(chain: Chain, token: Address, holder: Address) -> Finding:
        try:
            symbol = (await chain.token_info(token)).symbol
        except PerunError as error:
            return Finding(Level.PROBLEM, str(error))
        return await _contract(f"{symbol} holder", lambda: chain.validate_holder(symbol, holder, token))

    @asynccontextmanager
    async def chain(self, url: str, chain_id: int | None) -> AsyncIterator[Chain]:
        """The chain at `url`, for reading. Raises: ChainError, ConfigError, PluginError."""
        names = self.plugins.names(Kind.CHAIN)
        backend = self.plugins.chain(names[0] if len(names) == 1 else "ethereum")
        config = self.config
        context = ChainContext(
            url=url,
            chain_id=chain_id,
            connect_timeout=config.chainconntimeout.seconds,
            tx_timeout=config.onchaintxtimeout.seconds,
            contracts=Contracts(config.adjudicator_address(), config.asseteth_address()),
            profile=PROFILE,
            finality_depth=config.finalitydepth,
        )
        options = self.options(backend.config, Kind.CHAIN, backend.name)
        async with backend.open(options, context) as chain:
            yield chain

    def options(self, config_type: type[Struct], kind: Kind, name: str) -> Struct:
        """The configured options of a backend. Raises: ConfigError."""
        plugin = self.plugins.plugin_of(kind, name)
        return backend_options(config_type, self.config.plugins.of(plugin), f"plugins.{plugin}")


async def _contract(name: str, validate: Callable[[], Awaitable[str]]) -> Finding:
    try:
        warning = await validate()
    except PerunError as error:
        return Finding(Level.PROBLEM, str(error))
    return Finding(Level.WARNING, warning) if warning else Finding(Level.FINE, f"{name}: known contract")


class _SessionDoctor:
    def __init__(self, node: _NodeDoctor, file: Path) -> None:
        self._node = node
        self._file = file
        self._findings: list[Finding] = []

    def _say(self, level: Level, text: str) -> None:
        self._findings.append(Finding(level, text))

    async def examine(self) -> SessionFinding:
        try:
            config = load_session(self._file, sessiondir=self._node.config.sessiondir)
        except ConfigError as error:
            self._say(Level.PROBLEM, str(error))
            return SessionFinding(str(self._file), findings=tuple(self._findings))
        for warning in config.warnings:
            self._say(Level.WARNING, warning)
        found = SessionFinding(str(self._file), config.user.alias, config.user.offchainaddr)
        try:
            records = await self._records(config)
        except StoreLocked:
            self._say(Level.FINE, "in use by a running node, which watches its channels")
            return replace(found, findings=tuple(self._findings), in_use=True)
        except PerunError as error:
            self._say(Level.PROBLEM, str(error))
            return replace(found, findings=tuple(self._findings))
        aliases = await self._aliases(config, records)
        head, disputes = await self._disputes(config, records)
        channels = tuple(self._channel(record, aliases, head, disputes) for record in records)
        return self._summed_up(found, records, channels, head)

    async def _records(self, config: SessionConfig) -> list[ChannelRecord]:
        """Channels in opening order. Raises: StoreError, PluginError, ConfigError."""
        path = Path(config.databasedir)
        if not config.databasedir or not _holds_something(path):
            self._say(Level.FINE, f"nothing is stored at {path} yet")
            return []
        plugins = self._node.plugins
        codec = RecordCodec(PROFILE, plugins.apps())
        backend = plugins.store(config.store)
        options = self._node.options(backend.config, Kind.STORE, config.store)
        records: list[ChannelRecord] = []
        async with backend.open(options, StoreContext(path)) as store:
            if (status := store.status()).doubt is not None:
                self._say(
                    Level.PROBLEM,
                    f"{path}: {status.reason}; the session opens in recovery mode and signs nothing: {REMEDY}",
                )
            async for key, value in _rows(store, Table.CHANNELS):
                records.append(codec.decode(key, value))
        return sorted(records, key=lambda record: record.sequence)

    async def _aliases(self, config: SessionConfig, records: list[ChannelRecord]) -> Mapping[Address, str]:
        found: dict[Address, str] = {}
        try:
            backend = self._node.plugins.idprovider(config.idprovider)
            options = self._node.options(backend.config, Kind.IDPROVIDER, config.idprovider)
            async with AsyncExitStack() as stack:
                provider: IDProvider = await stack.enter_async_context(
                    backend.open(options, IDProviderContext(config.idproviderurl))
                )
                for peer in {record.peer for record in records}:
                    try:
                        found[peer] = (await provider.by_address(peer)).alias
                    except IDProviderError:
                        continue
        except PerunError as error:
            self._say(Level.PROBLEM, f"contacts: {error}")
        return found

    async def _disputes(
        self, config: SessionConfig, records: list[ChannelRecord]
    ) -> tuple[BlockRef | None, Mapping[bytes, Dispute]]:
        """What the chain stores about the watched channels, no older than the block that comes with it."""
        watched = [record.channel_id for record in records if record.phase not in UNWATCHED]
        if not watched:
            return None, {}
        room = asyncio.Semaphore(AT_ONCE)
        try:
            async with self._node.chain(config.chainurl, config.chainid) as chain:
                head = await chain.head()

                async def ask(number: int) -> Dispute:
                    async with room:
                        return await chain.dispute(watched[number])

                answers = await asyncio.gather(*map(ask, range(len(watched))))
        except PerunError as error:
            self._say(Level.PROBLEM, f"disputes cannot be looked up: {error}")
            return None, {}
        return head, dict(zip(watched, answers, strict=True))

    def _channel(
        self,
        record: ChannelRecord,
        aliases: Mapping[Address, str],
        head: BlockRef | None,
        disputes: Mapping[bytes, Dispute],
    ) -> ChannelFinding:
        state = record.current.state
        version = 0 if state is None else state.version
        channel = ChannelFinding(
            channel=record.channel_id.hex(),
            phase=record.phase.value,
            version=version,
            peer=aliases.get(record.peer, record.peer.checksum),
            challenge_duration=record.params.challenge_duration,
        )
        dispute = disputes.get(record.channel_id)
        if head is None or dispute is None:
            return channel
        before = back_before(
            challenge_duration=channel.challenge_duration, version=version, dispute=dispute, as_of=head.timestamp
        )
        if not dispute.registered:
            return replace(channel, back_before=before)
        text = self._judged(record, version, dispute, head)
        return replace(channel, back_before=before, dispute=text, danger=before is not None)

    def _judged(self, record: ChannelRecord, version: int, dispute: Dispute, head: BlockRef) -> str:
        name = f"channel {record.channel_id.hex()}"
        if dispute.concluded:
            return f"concluded with version {dispute.version}"
        if dispute.version >= version:
            if dispute.version > version:
                self._say(
                    Level.PROBLEM,
                    f"{name}: version {dispute.version} is registered, newer than the {version} stored here: "
                    "is this an old copy of the database?",
                )
            return f"version {dispute.version} is registered, to be concluded from {shown_time(dispute.concludable_at)}"
        left = dispute.timeout - head.timestamp
        if left > 0:
            self._say(
                Level.PROBLEM,
                f"{name}: the outdated version {dispute.version} is registered; open the session before "
                f"{shown_time(dispute.timeout)} (in {shown_span(left)}), it then registers version {version}",
            )
        else:
            self._say(
                Level.PROBLEM,
                f"{name}: the outdated version {dispute.version} is registered and could be refuted until "
                f"{shown_time(dispute.timeout)}, which has passed",
            )
        return f"outdated version {dispute.version} is registered until {shown_time(dispute.timeout)}"

    def _summed_up(
        self,
        found: SessionFinding,
        records: list[ChannelRecord],
        channels: tuple[ChannelFinding, ...],
        head: BlockRef | None,
    ) -> SessionFinding:
        watched = [record.params.challenge_duration for record in records if record.phase not in UNWATCHED]
        within = min(watched, default=None)
        before = min((each.back_before for each in channels if each.back_before is not None), default=None)
        if within is None:
            self._say(Level.FINE, "no channel needs to be watched")
        elif head is None:
            self._say(
                Level.WARNING,
                f"be back within {shown_span(within)} of the moment the session was last open and connected to the "
                "chain; which moment that is in time cannot be told without the chain",
            )
        elif before is None:
            self._say(Level.FINE, "nothing can be lost by absence; money waits until the session is open again")
        elif before > head.timestamp:
            self._say(
                Level.WARNING,
                f"nobody watches: the session must be open again before {shown_time(before)}, in "
                f"{shown_span(before - head.timestamp)} (shortest challenge duration: {shown_span(within)})",
            )
        stuck = [each.phase for each in channels if each.phase not in (Phase.ACTING, Phase.OPENING)]
        if stuck:
            self._say(Level.WARNING, f"{len(stuck)} channels go on when the session is open: {', '.join(stuck)}")
        return replace(found, findings=tuple(self._findings), channels=channels, back_within=within, back_before=before)


async def _rows(store: Store, table: Table) -> AsyncIterator[tuple[bytes, bytes]]:
    after: bytes | None = None
    while page := await store.scan(table, after=after):
        for row in page:
            yield row
        after = page[-1][0]


def _holds_something(path: Path) -> bool:
    """Whether there is a store to look into; opening would make one. Raises: StoreError."""
    try:
        return any(path.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {errno.errorcode.get(error.errno or 0, 'unknown')}") from error

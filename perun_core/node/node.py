"""The node: what it offers to API plugins, and its life from configuration to shutdown (API.md 2.3, 5.1)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Final

from ..config import NodeConfig, SessionConfig, backend_options, load_session
from ..errors import (
    ChainError,
    ConfigError,
    ContractInvalid,
    InvalidArgument,
    InvalidContracts,
    ResourceExists,
    ResourceNotFound,
    StoreError,
    TokenUnreadable,
    UnknownInternal,
)
from ..plugin.manager import Kind, PluginHost
from ..ports.api import ApiContext, NodeInfo, OpenedSession, SessionAPI
from ..ports.chain import Chain, ChainContext, Contracts
from ..ports.store import Put, Store, StoreContext, Table
from ..profile.gp090 import PROFILE
from ..values import Address
from .chainsteps import chain_error
from .currencies import Currency, CurrencyRegistry
from .opener import Surroundings, open_session
from .session import ClosedSession, Session

log = logging.getLogger(__name__)

SERVICES: Final = ("payment",)


class Ready:
    """Whether the node may serve; API plugins answer nothing but health before."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    def set(self) -> None:
        """Serve from now on."""
        self._event.set()


class Node:
    """One node. Sessions are isolated from each other; they share the contracts, currencies and plugins."""

    def __init__(self, config: NodeConfig, plugins: PluginHost) -> None:
        self._config = config
        self._plugins = plugins
        self._sessions: dict[str, Session | ClosedSession] = {}
        self._locks: dict[tuple[int, Address], asyncio.Lock] = {}
        self._books: dict[tuple[int, Address], dict[str, object]] = {}
        self._contracts = Contracts(config.adjudicator_address(), config.asseteth_address())
        self._currencies = CurrencyRegistry(self._contracts.eth_holder)
        self._chain_backend = self._only_chain()
        self._chain: Chain | None = None
        self._store: Store | None = None

    def _only_chain(self) -> str:
        names = self._plugins.names(Kind.CHAIN)
        return names[0] if len(names) == 1 else "ethereum"

    async def start(self, stack: AsyncExitStack) -> None:
        """Connect to the chain, verify chain ID and contracts, register the configured currencies.

        Raises: ChainError, ConfigError, PluginError.
        """
        config = self._config
        backend = self._plugins.chain(self._chain_backend)
        options = backend_options(
            backend.config, self._options(Kind.CHAIN, self._chain_backend), f"plugins.chain_{self._chain_backend}"
        )
        context = ChainContext(
            url=config.chainurl,
            chain_id=config.chainid,
            connect_timeout=config.chainconntimeout.seconds,
            tx_timeout=config.onchaintxtimeout.seconds,
            contracts=self._contracts,
            profile=PROFILE,
            finality_depth=config.finalitydepth,
        )
        pairs = config.asseterc20_addresses()
        self._chain = await stack.enter_async_context(backend.open(options, context))
        self._warn(await self._chain.staleness())
        self._warn(await self._chain.validate_adjudicator())
        self._warn(await self._chain.validate_holder("ETH", self._contracts.eth_holder, None))
        for token, holder in pairs:
            await self._register(token, holder)
        if config.statedir:
            self._store = await stack.enter_async_context(self._open_store(config.statedir))
            await self._remember_currencies(self._store)

    def _open_store(self, path: str) -> AbstractAsyncContextManager[Store]:
        name = SessionConfig().store
        backend = self._plugins.store(name)
        options = backend_options(backend.config, self._options(Kind.STORE, name), f"plugins.store_{name}")
        opened: AbstractAsyncContextManager[Store] = backend.open(options, StoreContext(Path(path)))
        return opened

    async def _remember_currencies(self, store: Store) -> None:
        """Register what was registered at run time before; a pair that is no longer valid is left out by name."""
        after: bytes | None = None
        while page := await store.scan(Table.CURRENCIES, after=after):
            for holder, token in page:
                if self._currencies.by_holder(Address(holder)) is not None:  # it is in the configuration by now
                    continue
                try:
                    await self._register(Address(token), Address(holder))
                except (ContractInvalid, TokenUnreadable, ResourceExists) as error:
                    log.error("the currency at %s is not registered any more: %s", Address(holder).checksum, error)
            after = page[-1][0]

    @staticmethod
    def _warn(text: str) -> None:
        if text:
            log.warning("%s", text)

    def _options(self, kind: Kind, name: str) -> Mapping[str, object]:
        return self._config.plugins.of(self._plugins.plugin_of(kind, name))

    async def _register(self, token: Address, holder: Address) -> str:
        """Raises: ResourceExists, TokenUnreadable, ContractInvalid, NotReachable."""
        assert self._chain is not None
        self._currencies.check_free(holder=holder)
        info = await self._chain.token_info(token)
        self._warn(await self._chain.validate_holder(info.symbol, holder, token))
        self._currencies.add(Currency(info.symbol, info.decimals, holder, token))
        return info.symbol

    async def shut_down(self) -> None:
        """Close every session; what is persisted stays for the next start."""
        open_ones = [session for session in self._sessions.values() if isinstance(session, Session)]
        await asyncio.gather(*(session.shut_down() for session in open_ones), return_exceptions=True)

    # ---- ports.api.NodeAPI ------------------------------------------------------------------------------------------

    def config(self) -> NodeInfo:
        config = self._config
        return NodeInfo(config.chainurl, config.adjudicator, config.asseteth, config.commtypes, config.idprovidertypes)

    def time(self) -> int:
        return int(time.time())

    def services(self) -> tuple[str, ...]:
        return SERVICES

    async def register_currency(self, token: str, asset: str) -> str:
        holder_address = _argument("asset", asset)
        token_address = _argument("token", token)
        try:
            symbol = await self._register(token_address, holder_address)
            if self._store is not None:
                await self._store.commit((Put(Table.CURRENCIES, bytes(holder_address), bytes(token_address)),))
            for session in tuple(self._sessions.values()):
                if isinstance(session, Session):
                    await session.renew_views()
            return symbol
        except StoreError as error:
            raise UnknownInternal(f"the currency is registered, but only until the node ends: {error}") from error
        except ContractInvalid as error:
            raise InvalidContracts(((error.name, error.address, error.problem),)) from error
        except ChainError as error:
            raise chain_error(error, url=self._config.chainurl, tx_timeout="") from error

    async def open_session(self, config_file: str) -> OpenedSession:
        try:
            config = load_session(Path(config_file), sessiondir=self._config.sessiondir)
        except ConfigError as error:
            raise InvalidArgument("configFile", config_file, f"invalid session file: {error.problem}") from error
        for warning in config.warnings:
            log.warning("session file: %s", warning)
        session_id = secrets.token_hex(32)
        surroundings = Surroundings(
            plugins=self._plugins,
            options=self._options,
            profile=PROFILE,
            apps=self._plugins.apps(),
            currencies=self._currencies,
            contracts=self._contracts,
            chain_backend=self._chain_backend,
            finality_depth=self._config.finalitydepth,
            account_lock=self._account_lock,
            account_book=self._account_book,
            clock=time.time,
            random_bytes=secrets.token_bytes,
            on_closed=self._on_closed,
        )
        session = await open_session(session_id, config, surroundings)
        try:
            restored = await session.restore()
        except StoreError as error:
            await session.shut_down()
            raise UnknownInternal(f"channels cannot be restored: {error}") from error
        self._sessions[session_id] = session
        log.info("session of %s opened, %d channels restored", session.parts.off_chain.checksum, len(restored))
        return OpenedSession(session_id, restored)

    def session(self, session_id: str) -> SessionAPI:
        session = self._sessions.get(session_id)
        if session is None:
            raise ResourceNotFound("session", session_id)
        return session

    def _on_closed(self, session: Session) -> None:
        if session.id in self._sessions:
            self._sessions[session.id] = ClosedSession()

    def _account_lock(self, chain_id: int | None, account: Address) -> asyncio.Lock:
        assert self._chain is not None
        return self._locks.setdefault((chain_id or self._chain.chain_id, account), asyncio.Lock())

    def _account_book(self, chain_id: int | None, account: Address) -> dict[str, object]:
        assert self._chain is not None
        return self._books.setdefault((chain_id or self._chain.chain_id, account), {})


def _argument(name: str, text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise InvalidArgument(name, text, str(error)) from error


async def run_node(
    config: NodeConfig,
    plugins: PluginHost,
    *,
    service: str,
    port: int,
    started: Callable[[int], None],
    stop: asyncio.Event,
) -> None:
    """Serve until `stop` is set, then end in order: APIs drained, sessions closed, backends released.

    `started` is called once the contracts are validated and requests are answered. Raises: PerunError when the start
    fails; nothing is left open then.
    """
    node, ready = Node(config, plugins), Ready()
    async with AsyncExitStack() as backends:
        await node.start(backends)
        backends.push_async_callback(node.shut_down)
        ready.set()
        # Scripts take an open port for a node that serves, so it opens when everything else is in place.
        async with AsyncExitStack() as apis:
            for frontend in plugins.apis():
                table = config.plugins.of(plugins.plugin_of(Kind.API, frontend.name))
                options = backend_options(frontend.config, table, f"plugins.api_{frontend.name}")
                context = ApiContext(node=node, host=config.host, port=port, service=service, ready=ready)
                await apis.enter_async_context(frontend.serve(options, context))
            started(port)
            await stop.wait()

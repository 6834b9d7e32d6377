"""Opening a session from its file: every step in the order of API.md 5.1, every failure as its 205 error.

Whatever was opened is released again when a later step fails, so that a retry finds nothing in its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ..apps.registry import AppRegistry
from ..config import SessionConfig, backend_options
from ..errors import (
    BackupError,
    ChainError,
    CommError,
    ConfigError,
    IDProviderError,
    InvalidConfig,
    KeyManagerError,
    PerunError,
    PluginError,
    StoreError,
)
from ..plugin.declare import Backend
from ..plugin.manager import Kind, PluginHost
from ..ports.chain import Chain, ChainContext, Contracts
from ..ports.comm import Comm, CommContext
from ..ports.fundwatch import Funder, FunderContext, RemoteWatcher, WatchContext
from ..ports.idprovider import IDProvider, IDProviderContext
from ..ports.keymgr import KeyManager, KeyManagerContext, KeyRole, UnsignedTx
from ..ports.policy import Policy, PolicyContext
from ..ports.store import Store, StoreContext
from ..profile import Profile
from ..protocol.records import RecordCodec
from ..values import Address
from .currencies import CurrencyRegistry
from .keyguard import guarded
from .rescue import RescueFile, open_rescue
from .session import Session, SessionParts

CHALLENGE_DURATIONS: Final = (1, 2**31)
"""Smallest and largest challenge duration in seconds that is proposed or accepted (PROTOCOL.md 5.2)."""


class AccountSigner:
    """Signs transactions of one account with the key manager that holds its key."""

    def __init__(self, keys: KeyManager, address: Address) -> None:
        self._keys = keys
        self._address = address

    @property
    def address(self) -> Address:
        return self._address

    async def sign(self, tx: UnsignedTx) -> bytes:
        return await self._keys.sign_transaction(self._address, tx)


class Surroundings(Struct, frozen=True):
    """What the node gives to all its sessions."""

    plugins: PluginHost
    options: Callable[[Kind, str], Mapping[str, object]]
    """The option table of the plugin that provides a backend."""
    profile: Profile
    apps: AppRegistry
    currencies: CurrencyRegistry
    contracts: Contracts
    chain_backend: str
    finality_depth: int
    account_lock: Callable[[int | None, Address], asyncio.Lock]
    account_book: Callable[[int | None, Address], MutableMapping[str, object]]
    """What the sessions of one chain and account share inside the chain backend."""
    clock: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    on_closed: Callable[[Session], None]


async def open_session(session_id: str, config: SessionConfig, node: Surroundings) -> Session:
    """A session that listens but has not restored yet. Raises: InvalidConfig."""
    async with AsyncExitStack() as stack:
        opening = _Opening(config, node, stack)
        session = await opening.run(session_id)
        session.adopt(stack.pop_all())
        return session


class _Opening:
    def __init__(self, config: SessionConfig, node: Surroundings, stack: AsyncExitStack) -> None:
        self._config = config
        self._node = node
        self._stack = stack
        self._others: dict[Address, KeyManager] = {}
        self._other_keys = AsyncExitStack()

    async def run(self, session_id: str) -> Session:
        config, node, user = self._config, self._node, self._config.user
        on_chain = _address("onChainAddr", user.onchainaddr)
        off_chain = _address("offChainAddr", user.offchainaddr)
        account_keys = await self._keys(KeyRole.ON_CHAIN, "onChainWallet", user.onchainwallet, on_chain)
        keys = await self._keys(KeyRole.OFF_CHAIN, "offChainWallet", user.offchainwallet, off_chain)
        await self._stack.enter_async_context(self._other_keys)
        comm = await self._comm()
        id_provider = await self._id_provider()
        store, store_problem = await self._store()
        chain = await self._chain(on_chain, account_keys, store)
        funder = await self._funder()
        guard = await self._guard()
        policy = await self._policy()
        rescue = await self._rescue(own=off_chain, receiver=on_chain, contacts=id_provider)
        try:
            comm.check_address(user.commaddr)
        except CommError as error:
            raise InvalidConfig("commAddr", user.commaddr, str(error)) from error
        parts = SessionParts(
            id=session_id,
            profile=node.profile,
            apps=node.apps,
            currencies=node.currencies,
            keys=keys,
            id_provider=id_provider,
            comm=comm,
            chain=chain,
            chain_url=config.chainurl,
            adjudicator=node.contracts.adjudicator,
            policy=policy,
            on_chain=on_chain,
            off_chain=off_chain,
            comm_address=user.commaddr,
            response_timeout=config.responsetimeout,
            tx_timeout=config.onchaintxtimeout,
            challenge_durations=CHALLENGE_DURATIONS,
            clock=node.clock,
            random_bytes=node.random_bytes,
            on_closed=node.on_closed,
            keys_of=self._keys_of,
            funder=funder,
            funding_url=config.fundingurl,
            guard=guard,
            rescue=rescue,
        )
        session = Session(parts)
        try:
            await session.listen()
        except CommError as error:
            raise InvalidConfig("commAddr", user.commaddr, str(error)) from error
        self._stack.push_async_callback(session.stop_listening)
        if store is None:
            raise InvalidConfig("databaseDir", config.databasedir, store_problem)
        session.store = store
        return session

    async def _enter(self, kind: Kind, backend: Backend[Any], table: Mapping[str, object], context: object) -> Any:
        options: Struct = backend_options(backend.config, table, f"plugins.{kind}_{backend.name}")
        return await self._stack.enter_async_context(backend.open(options, context))

    async def _keys(self, role: KeyRole, name: str, table: Mapping[str, object], address: Address) -> KeyManager:
        shown = f"{table.get('keystorepath', '')}, ***"
        try:
            backend = self._node.plugins.keymgr(self._config.keymgr)
            keys: KeyManager = await self._enter(Kind.KEYMGR, backend, table, KeyManagerContext(role, (address,)))
            keys = await guarded(keys, (address,))
        except (KeyManagerError, ConfigError, PluginError) as error:
            raise InvalidConfig(name, shown, str(error)) from error
        return keys

    async def _keys_of(self, address: Address) -> KeyManager:
        """For the session's later life: the wallet of the off-chain address, opened for another address in it."""
        if address not in self._others:
            backend = self._node.plugins.keymgr(self._config.keymgr)
            options: Struct = backend_options(backend.config, self._config.user.offchainwallet, "user.offchainwallet")
            opened = backend.open(options, KeyManagerContext(KeyRole.OFF_CHAIN, (address,)))
            keys: KeyManager = await self._other_keys.enter_async_context(opened)
            self._others[address] = await guarded(keys, (address,))
        return self._others[address]

    async def _funder(self) -> Funder | None:
        config = self._config
        if config.fundingtype == "local":
            return None
        try:
            backend = self._node.plugins.funder(config.fundingtype)
            context = FunderContext(config.fundingurl, config.fundingapikey)
            funder: Funder = await self._enter(
                Kind.FUNDER, backend, self._node.options(Kind.FUNDER, config.fundingtype), context
            )
        except PluginError as error:
            raise InvalidConfig("fundingType", config.fundingtype, f"unsupported: {error}") from error
        except ConfigError as error:
            raise InvalidConfig("fundingType", config.fundingtype, str(error)) from error
        return funder

    async def _guard(self) -> RemoteWatcher | None:
        config = self._config
        if config.watchertype == "local":
            return None
        try:
            backend = self._node.plugins.watcher(config.watchertype)
            context = WatchContext(config.watcherurl, config.watcherapikey)
            guard: RemoteWatcher = await self._enter(
                Kind.WATCHER, backend, self._node.options(Kind.WATCHER, config.watchertype), context
            )
        except PluginError as error:
            raise InvalidConfig("watcherType", config.watchertype, f"unsupported: {error}") from error
        except ConfigError as error:
            raise InvalidConfig("watcherType", config.watchertype, str(error)) from error
        return guard

    async def _comm(self) -> Comm:
        name = self._config.comm
        try:
            backend = self._node.plugins.comm(name)
            comm: Comm = await self._enter(Kind.COMM, backend, self._node.options(Kind.COMM, name), CommContext())
        except PerunError as error:
            raise InvalidConfig("commType", self._config.user.commtype, str(error)) from error
        return comm

    async def _id_provider(self) -> IDProvider:
        config = self._config
        try:
            backend = self._node.plugins.idprovider(config.idprovider)
        except PluginError as error:
            raise InvalidConfig("idProviderType", config.idprovidertype, str(error)) from error
        table = self._node.options(Kind.IDPROVIDER, config.idprovider)
        try:
            provider: IDProvider = await self._enter(
                Kind.IDPROVIDER, backend, table, IDProviderContext(config.idproviderurl)
            )
        except (IDProviderError, ConfigError) as error:
            raise InvalidConfig("idProviderURL", config.idproviderurl, str(error)) from error
        return provider

    async def _store(self) -> tuple[Store | None, str]:
        """Opened early because the chain keeps its transactions there; its failure is reported in its place."""
        config = self._config
        try:
            backend = self._node.plugins.store(config.store)
            table = self._node.options(Kind.STORE, config.store)
            store: Store = await self._enter(Kind.STORE, backend, table, StoreContext(Path(config.databasedir)))
        except (StoreError, PluginError, ConfigError) as error:
            return None, str(error)
        return store, ""

    async def _chain(self, account: Address, keys: KeyManager, store: Store | None) -> Chain:
        config, node = self._config, self._node
        context = ChainContext(
            url=config.chainurl,
            chain_id=config.chainid,
            connect_timeout=config.chainconntimeout.seconds,
            tx_timeout=config.onchaintxtimeout.seconds,
            contracts=node.contracts,
            profile=node.profile,
            finality_depth=node.finality_depth,
            signer=AccountSigner(keys, account) if store is not None else None,
            store=store,
            account_lock=node.account_lock(config.chainid, account),
            account_book=node.account_book(config.chainid, account),
        )
        try:
            backend = node.plugins.chain(node.chain_backend)
            chain: Chain = await self._enter(Kind.CHAIN, backend, node.options(Kind.CHAIN, node.chain_backend), context)
        except (ChainError, ConfigError) as error:
            raise InvalidConfig("chainURL", config.chainurl, str(error)) from error
        return chain

    async def _rescue(self, *, own: Address, receiver: Address, contacts: IDProvider) -> RescueFile | None:
        config, node = self._config, self._node
        if not config.rescuefile:
            return None

        async def contact(peer: Address) -> tuple[str, str]:
            try:
                found = await contacts.by_address(peer)
            except IDProviderError:
                return "", ""
            return found.alias, found.comm_address

        opening = open_rescue(
            Path(config.rescuefile),
            config.rescuekey,
            codec=RecordCodec(node.profile, node.apps),
            own=own,
            receiver=receiver,
            contact=contact,
        )
        try:
            return await self._stack.enter_async_context(opening)
        except BackupError as error:
            raise InvalidConfig("rescueFile", config.rescuefile, str(error)) from error

    async def _policy(self) -> Policy | None:
        name = self._config.policy
        if not name:
            return None
        backend = self._node.plugins.policy(name)
        context = PolicyContext(self._config.user.alias)
        policy: Policy = await self._enter(Kind.POLICY, backend, self._node.options(Kind.POLICY, name), context)
        return policy


def _address(name: str, text: str) -> Address:
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise InvalidConfig(name, text, str(error)) from error
    if address.is_zero:
        raise InvalidConfig(name, text, "the zero address is nobody's")
    return address

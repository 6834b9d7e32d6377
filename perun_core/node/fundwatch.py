"""Funding and watching for somebody who has no session here (API.md 2.6, 2.7), on the account and chain of a session.

Nothing of a request is believed: the channel ID is computed from the parameters, signatures are verified, states are
checked, and what is concluded is the state whose hash the contract stores.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from ..apps.registry import AppRegistry
from ..channel import Balances, Dispute, DisputePhase, Params, State, Transaction
from ..channel.rules import check_params, check_state, t1_channel_id, t2_app
from ..errors import (
    ApiError,
    ChainError,
    ContractInvalid,
    DecodeError,
    EncodeError,
    FailedPrecondition,
    IDProviderError,
    InvalidArgument,
    KeyManagerError,
    PortError,
    ResourceExists,
    ResourceNotFound,
    RuleViolated,
    StoreBroken,
    StoreError,
    UnknownInternal,
)
from ..ports.api import AdjudicatorEvent, AdjudicatorEventKind, AdjudicatorRequest
from ..ports.chain import ChannelEvent
from ..ports.keymgr import KeyManager
from ..ports.store import Delete, Put, PutNew, Store, Table
from ..profile import Profile
from ..protocol.effects import (
    AwaitConcludable,
    ChainStep,
    ConcludeFinal,
    ConcludeState,
    FundChannel,
    ProgressState,
    RegisterState,
    WithdrawHoldings,
)
from ..protocol.events import ChainFailed, ChainMatured, ChainRegistered, ChainStands, ChainUndone
from ..protocol.records import withdrawal_guard_key
from ..values import Address, ChannelID, Sig
from .chainsteps import StepContext, StepResult, chain_error, run_step
from .currencies import Currency
from .subscriptions import Feed, Reader
from .watcher import Watcher

if TYPE_CHECKING:
    from .session import SessionParts

log = logging.getLogger(__name__)

RETRY: Final = 1.0
"""Seconds before a broken event feed is opened again."""
KNOWN_STATES: Final = 1024
"""States kept in memory to tell them with events, and to conclude with; the oldest are forgotten."""
WATCHED: Final = b"watched:"
"""Prefix of the records of watched channels in the table META."""
FORMAT: Final = 1

KINDS: Final = {
    DisputePhase.DISPUTE: AdjudicatorEventKind.REGISTERED,
    DisputePhase.FORCE_EXEC: AdjudicatorEventKind.PROGRESSED,
    DisputePhase.CONCLUDED: AdjudicatorEventKind.CONCLUDED,
}

T = TypeVar("T")


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """A watched channel as it is stored."""

    format: int
    params: bytes
    tx: bytes


class EventFeed(Feed[AdjudicatorEvent]):
    """The events of one channel for one reader at a time; what the chain holds at its start is not told twice."""

    def __init__(self) -> None:
        super().__init__()
        self._told = (-1, -1)

    def tell(self, event: AdjudicatorEvent) -> None:
        """Queue `event` unless it is older than, or the same as, what was told."""
        place = (int(event.kind), event.version)
        if place > self._told:
            self._told = place
            self.publish(event)

    def begin_again(self) -> None:
        """A new reader, or a reorg: what holds now is told, whatever was told before."""
        self._told = (-1, -1)


class EventReader:
    """A reader of events that says when it is gone."""

    def __init__(self, reader: Reader[AdjudicatorEvent], gone: Callable[[], None]) -> None:
        self._reader = reader
        self._gone = gone

    def __aiter__(self) -> AsyncIterator[AdjudicatorEvent]:
        return aiter(self._reader)

    def cancel(self) -> None:
        """Ends the reading at once; idempotent."""
        self._reader.cancel()
        self._gone()


class _Watched:
    """A channel watched for somebody; `feed` tells its reader, if there is one, what happens on chain."""

    def __init__(self, params: Params, newest: Transaction | None) -> None:
        self.params = params
        self.newest = newest
        self.feed = EventFeed()


class FundWatch:
    """What one session does for others: `ports.api.FundWatchAPI`."""

    def __init__(
        self, parts: SessionParts, store: Store, watcher: Watcher, *, is_own: Callable[[ChannelID], bool]
    ) -> None:
        self._parts = parts
        self._store = store
        self._watcher = watcher
        self._is_own = is_own
        self._tasks: set[asyncio.Task[Any]] = set()
        self._subscriptions: dict[ChannelID, EventFeed] = {}
        self._watched: dict[ChannelID, _Watched] = {}
        self._states: OrderedDict[tuple[ChannelID, int], Transaction] = OrderedDict()
        self._follower: asyncio.Task[None] | None = None
        self._following = asyncio.Event()

    # ---- life -------------------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Watch again what was watched before. Raises: StoreError."""
        after: bytes | None = None
        while page := await self._store.scan(Table.META, WATCHED, after=after):
            for key, value in page:
                params, tx = _decoded(value, self._parts.profile, self._parts.apps)
                self._hand_over(ChannelID(key[len(WATCHED) :]), params, tx)
            after = page[-1][0]
        if self._watched:
            log.info("watching %d channels for others", len(self._watched))

    async def end(self) -> None:
        """End all streams properly and stop everything; what is stored goes on at the next opening."""
        for feed in (*self._subscriptions.values(), *(watched.feed for watched in self._watched.values())):
            feed.end()
        self._subscriptions.clear()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """`work`, which goes on when the caller goes away (API.md 2.2.5)."""
        task = self._spawn(work)
        task.add_done_callback(_noted)
        return await asyncio.shield(task)

    # ---- funding ----------------------------------------------------------------------------------------------------

    async def register_asset(self, asset: Address, token: Address, depositor: Address) -> bool:
        parts = self._parts
        known = parts.currencies.by_holder(asset)
        if known is None:
            try:
                info = await parts.chain.token_info(token)
                warning = await parts.chain.validate_holder(info.symbol, asset, token)
                parts.currencies.add(Currency(info.symbol, info.decimals, asset, token))
            except (ContractInvalid, ResourceExists, PortError) as error:
                log.warning("asset %s for token %s is refused: %s", asset.checksum, token.checksum, error)
                return False
            if warning:
                log.warning("%s", warning)
        elif known.token != token:
            log.warning("asset %s is registered for another token", asset.checksum)
            return False
        if depositor != parts.on_chain:
            log.warning(
                "deposits of token %s come from %s, not from %s",
                token.checksum,
                parts.on_chain.checksum,
                depositor.checksum,
            )
        return depositor == parts.on_chain

    def is_asset_registered(self, asset: Address) -> bool:
        return self._parts.currencies.by_holder(asset) is not None

    async def fund(self, params: Params, state: State, index: int, agreement: Balances) -> None:
        channel_id = self._check(params, state, index=index)
        if len(agreement) != len(state.balances) or any(len(row) != len(params.parts) for row in agreement):
            raise InvalidArgument("agreement", "", "needs one row per asset and one amount per participant")
        if [sum(row) for row in agreement] != [sum(row) for row in state.balances]:
            raise InvalidArgument("agreement", "", "does not add up to the state's balances")
        for asset in state.allocation.assets:
            if self._parts.currencies.by_holder(asset.holder) is None:
                raise ResourceNotFound("currency", asset.holder.checksum)
        agreed = replace(state, allocation=replace(state.allocation, balances=agreement))
        alias = await self._alias(params.parts[1 - index])
        step = FundChannel(params, agreed)
        await self._to_the_end(self._step(step, channel_id, self._context(params, index, alias=alias)))

    async def register(self, request: AdjudicatorRequest) -> None:
        channel_id = self._check_request(request)
        self._check_signatures(request.params, request.tx)
        self._know(request.tx)
        context = self._context(request.params, request.index)
        await self._to_the_end(self._register(RegisterState(request.params, request.tx), channel_id, context))

    async def _register(self, step: RegisterState, channel_id: ChannelID, context: StepContext) -> None:
        result = await self._step(step, channel_id, context)
        if isinstance(result, ChainStands):
            raise FailedPrecondition(f"the time for registering is over: version {result.dispute.version} stands")

    async def withdraw(self, request: AdjudicatorRequest) -> None:
        channel_id = self._check_request(request)
        keys = await self._keys_of(request.account)
        await self._to_the_end(self._withdraw(request, channel_id, keys))

    async def _withdraw(self, request: AdjudicatorRequest, channel_id: ChannelID, keys: KeyManager) -> None:
        params, tx, state = request.params, request.tx, request.tx.state
        assert state is not None
        context = self._context(params, request.index, keys=keys)
        dispute = await self._dispute(channel_id)
        if not dispute.concluded:
            if state.is_final and tx.fully_signed:
                self._check_signatures(params, tx)
                await self._step(ConcludeFinal(params, tx, request.secondary), channel_id, context)
            elif not dispute.registered:
                raise FailedPrecondition("nothing can be withdrawn: the channel is not registered on chain")
            else:
                await self._conclude(request, channel_id, dispute, context)
        if isinstance(await self._step(WithdrawHoldings(params, state), channel_id, context), ChainUndone):
            raise UnknownInternal("a reorg took the conclusion back; ask again")

    async def _conclude(
        self, request: AdjudicatorRequest, channel_id: ChannelID, dispute: Dispute, context: StepContext
    ) -> None:
        """Wait until the registered state can be concluded, whichever it is by then, and conclude it."""
        matured = await self._step(AwaitConcludable(dispute.concludable_at), channel_id, context)
        assert isinstance(matured, ChainMatured)
        dispute = matured.dispute
        if dispute.concluded:
            return
        assert request.tx.state is not None
        state = await self._registered(request.params, request.tx.state, dispute)
        await self._step(ConcludeState(request.params, state), channel_id, context)

    async def _registered(self, params: Params, told: State, dispute: Dispute) -> State:
        """The state that is registered: the one we were told, one we know, or what the chain itself says."""
        known = self._states.get((told.id, dispute.version))
        for state in (told, None if known is None else known.state):
            if state is not None and self._parts.profile.state_hash(state) == dispute.state_hash:
                return state
        try:
            found = (await self._parts.chain.registered_state(params, dispute)).state
        except ChainError as error:
            problem = f"version {dispute.version} is registered, not this state, and cannot be found: {error}"
            raise InvalidArgument("state", str(told.version), problem) from error
        assert found is not None
        return found

    async def progress(self, request: AdjudicatorRequest, new_state: State, sig: Sig) -> None:
        channel_id = self._check_request(request)
        params, actor = request.params, request.index
        if params.app is None:
            raise InvalidArgument("params", "", "a channel without app cannot be progressed", "must name an app")
        self._check(params, new_state)
        try:
            self._parts.profile.verify(self._parts.profile.state_hash(new_state), sig, params.parts[actor])
        except (RuleViolated, EncodeError) as error:
            raise InvalidArgument("sig", "", f"not the signature of participant {actor}: {error}") from error
        dispute = await self._dispute(channel_id)
        if not dispute.registered or dispute.concluded:
            raise FailedPrecondition("the channel is not registered on chain, or is concluded")
        assert request.tx.state is not None
        old = await self._registered(params, request.tx.state, dispute)
        step = ProgressState(params, old, new_state, actor, sig, deadline=dispute.timeout)
        await self._to_the_end(self._progress(step, channel_id, self._context(params, actor)))

    async def _progress(self, step: ProgressState, channel_id: ChannelID, context: StepContext) -> None:
        result = await self._step(step, channel_id, context)
        if not isinstance(result, ChainRegistered):
            raise FailedPrecondition("the state was not progressed: the time is over, or a reorg undid the dispute")

    async def _step(self, step: ChainStep, channel_id: ChannelID, context: StepContext) -> StepResult:
        result = await run_step(step, context, channel_id)
        if isinstance(result, ChainFailed):
            raise result.error
        return result

    async def _dispute(self, channel_id: ChannelID) -> Dispute:
        try:
            return await self._parts.chain.dispute(channel_id)
        except ChainError as error:
            parts = self._parts
            raise chain_error(error, url=parts.chain_url, tx_timeout=str(parts.tx_timeout)) from error

    def _context(self, params: Params, index: int, *, alias: str = "", keys: KeyManager | None = None) -> StepContext:
        parts = self._parts
        participant = params.parts[index]

        def token_of(holder: Address) -> Address | None:
            currency = parts.currencies.by_holder(holder)
            return None if currency is None else currency.token

        async def authorise(channel_id: ChannelID, holder: Address, amount: int) -> Sig:
            assert keys is not None
            mark = PutNew(Table.SIGNED, withdrawal_guard_key(channel_id, holder, amount), bytes(parts.on_chain))
            await self._store.commit((mark,))
            digest = parts.profile.withdrawal_hash(channel_id, participant, parts.on_chain, amount)
            return await keys.sign_message(participant, digest)

        return StepContext(
            chain=parts.chain,
            profile=parts.profile,
            chain_url=parts.chain_url,
            tx_timeout=parts.tx_timeout.seconds,
            tx_timeout_text=str(parts.tx_timeout),
            peer_alias=alias,
            own_index=index,
            token_of=token_of,
            receiver=parts.on_chain,
            authorise=authorise,
        )

    async def _alias(self, participant: Address) -> str:
        """How our user calls the participant, or its address: the two kinds of address need not be the same."""
        try:
            return (await self._parts.id_provider.by_address(participant)).alias
        except IDProviderError:
            return participant.checksum

    async def _keys_of(self, account: Address) -> KeyManager:
        """The key manager that signs withdrawals of `account`. Raises: InvalidArgument."""
        try:
            return await self._parts.keys_of(account)
        except KeyManagerError as error:
            raise InvalidArgument("acc", account.checksum, f"withdrawals cannot be authorised: {error}") from error

    # ---- checks -----------------------------------------------------------------------------------------------------

    def _check_request(self, request: AdjudicatorRequest) -> ChannelID:
        if request.tx.state is None:
            raise InvalidArgument("tx", "", "the transaction has no state", "must be set")
        channel_id = self._check(request.params, request.tx.state, index=request.index)
        if request.params.parts[request.index] != request.account:
            raise InvalidArgument("acc", request.account.checksum, f"is not participant {request.index}")
        return channel_id

    def _check(self, params: Params, state: State, *, index: int = 0) -> ChannelID:
        """The channel's ID, when all of this can be one. Raises: InvalidArgument."""
        try:
            check_params(params)
            channel_id = self._parts.profile.channel_id(params)
        except (RuleViolated, EncodeError) as error:
            raise InvalidArgument("params", "", str(error)) from error
        if not 0 <= index < len(params.parts):
            raise InvalidArgument("idx", str(index), f"there are {len(params.parts)} participants")
        try:
            t1_channel_id(channel_id, state)
            t2_app(params, state)
            check_state(params, state)
        except RuleViolated as error:
            raise InvalidArgument("state", "", str(error)) from error
        return channel_id

    def _check_signatures(self, params: Params, tx: Transaction) -> None:
        """Every participant signed. Raises: InvalidArgument."""
        assert tx.state is not None
        if len(tx.sigs) != len(params.parts) or not tx.fully_signed:
            raise InvalidArgument("sigs", "", "the state needs the signatures of all participants")
        try:
            digest = self._parts.profile.state_hash(tx.state)
            for sig, part in zip(tx.sigs, params.parts, strict=True):
                assert sig is not None
                self._parts.profile.verify(digest, sig, part)
        except (RuleViolated, EncodeError) as error:
            raise InvalidArgument("sigs", "", f"a signature is not that of its participant: {error}") from error

    def _know(self, tx: Transaction) -> None:
        assert tx.state is not None
        self._states[tx.state.id, tx.state.version] = tx
        while len(self._states) > KNOWN_STATES:
            self._states.popitem(last=False)

    # ---- events -----------------------------------------------------------------------------------------------------

    def subscribe(self, channel_id: ChannelID) -> EventReader:
        if channel_id in self._subscriptions:
            raise ResourceExists("channel", channel_id.hex())
        feed = self._subscriptions[channel_id] = EventFeed()

        def gone() -> None:
            if self._subscriptions.get(channel_id) is feed:
                self._subscriptions.pop(channel_id)

        reader = EventReader(feed.subscribe(), gone)
        self._begin(channel_id, feed)
        return reader

    def unsubscribe(self, channel_id: ChannelID) -> None:
        feed = self._subscriptions.pop(channel_id, None)
        if feed is None:
            raise ResourceNotFound("channel", channel_id.hex())
        feed.end(deliver_rest=True)

    def _begin(self, channel_id: ChannelID, feed: EventFeed) -> None:
        """Tell a new reader what the chain holds, then what happens: once the live events flow, none can be missed."""
        feed.begin_again()
        if self._follower is None:
            self._follower = self._spawn(self._follow())
        self._spawn(self._tell_present(channel_id, feed))

    async def _tell_present(self, channel_id: ChannelID, feed: EventFeed) -> None:
        await self._following.wait()
        while True:
            try:
                dispute = await self._parts.chain.dispute(channel_id)
                break
            except ChainError as error:
                log.warning("channel %s: the dispute cannot be read: %s; trying again", channel_id.hex(), error)
                await asyncio.sleep(RETRY)
        if dispute.registered:
            feed.tell(self._event(channel_id, dispute.phase, dispute.version, dispute.timeout))

    async def _follow(self) -> None:
        """Tell the events of all channels somebody reads, across outages of the chain."""
        cursor: int | None = None
        while True:
            try:
                async for batch in self._parts.chain.events(cursor):
                    self._following.set()
                    for event in batch.events:
                        self._tell(event)
                    for channel_id in {event.channel_id for event in batch.undone}:
                        for feed in self._feeds(channel_id):
                            feed.begin_again()
                            self._spawn(self._tell_present(channel_id, feed))
                    cursor = batch.cursor
            except ChainError as error:
                log.warning("chain events for others: %s; trying again", error)
            except Exception:  # a backend's bug must not end the telling
                log.exception("chain events for others: unexpected error; trying again")
            await asyncio.sleep(RETRY)

    def _feeds(self, channel_id: ChannelID) -> list[EventFeed]:
        watched = self._watched.get(channel_id)
        feeds = (self._subscriptions.get(channel_id), None if watched is None else watched.feed)
        return [feed for feed in feeds if feed is not None and feed.has_reader]

    def _tell(self, event: ChannelEvent) -> None:
        for feed in self._feeds(event.channel_id):
            feed.tell(self._event(event.channel_id, event.phase, event.version, event.timeout))

    def _event(self, channel_id: ChannelID, phase: DisputePhase, version: int, timeout: int) -> AdjudicatorEvent:
        known = self._states.get((channel_id, version))
        return AdjudicatorEvent(
            channel_id=channel_id,
            kind=KINDS[phase],
            version=version,
            timeout=timeout,
            state=None if known is None else known.state,
            sigs=() if known is None else tuple(sig for sig in known.sigs if sig is not None),
        )

    # ---- watching ---------------------------------------------------------------------------------------------------

    async def watch(self, params: Params, tx: Transaction) -> WatchReader:
        if tx.state is None:
            raise InvalidArgument("state", "", "state is missing", "must be set")
        channel_id = self._check(params, tx.state)
        signed = self._is_signed(params, tx)
        watched = self._watched.get(channel_id)
        if self._is_own(channel_id) or (watched is not None and watched.feed.has_reader):
            raise ResourceExists("channel", channel_id.hex())
        if watched is None:
            watched = self._watched[channel_id] = _Watched(params, None)
        reader = WatchReader(self, channel_id, watched, watched.feed.subscribe())
        try:
            if signed:
                await self.keep(channel_id, watched, tx)
        except ApiError:
            reader.cancel()
            raise
        self._begin(channel_id, watched.feed)
        return reader

    def _is_signed(self, params: Params, tx: Transaction) -> bool:
        """Whether all signatures are there; none at all is allowed too. Raises: InvalidArgument."""
        if any(sig is not None for sig in tx.sigs):
            self._check_signatures(params, tx)
            return True
        return False

    async def accept(self, channel_id: ChannelID, watched: _Watched, tx: Transaction) -> None:
        """A further state of a watched channel. Raises: InvalidArgument, UnknownInternal."""
        if tx.state is None:
            raise InvalidArgument("state", "", "state is missing", "must be set")
        if self._check(watched.params, tx.state) == channel_id and self._is_signed(watched.params, tx):
            await self.keep(channel_id, watched, tx)

    async def keep(self, channel_id: ChannelID, watched: _Watched, tx: Transaction) -> None:
        """Make `tx` durable and refute with it, unless a newer one is known. Raises: UnknownInternal."""
        assert tx.state is not None
        self._know(tx)
        newest = watched.newest.state if watched.newest is not None else None
        if newest is not None and newest.version >= tx.state.version:
            return
        stored = _encoded(watched.params, tx, self._parts.profile)
        try:
            await self._store.commit((Put(Table.META, WATCHED + channel_id, stored),))
        except StoreError as error:
            raise UnknownInternal(f"the channel cannot be watched: {error}") from error
        log.debug("channel %s: watching version %d for others", channel_id.hex(), tx.state.version)
        if self._watched.get(channel_id) is watched:
            self._hand_over(channel_id, watched.params, tx)

    def _hand_over(self, channel_id: ChannelID, params: Params, tx: Transaction) -> None:
        """Let the session's watcher refute older states with `tx`, which is durable."""
        watched = self._watched.setdefault(channel_id, _Watched(params, None))
        watched.newest = tx
        self._know(tx)
        self._watcher.publish(params, tx, lambda event: self._on_dispute(channel_id, event))

    def _on_dispute(self, channel_id: ChannelID, event: ChainRegistered) -> None:
        if event.dispute.concluded and channel_id in self._watched:
            log.info("channel %s: concluded, its watching for others ends", channel_id.hex())
            watched = self._watched[channel_id]
            watched.newest = None
            self._watcher.forget(channel_id)
            self._spawn(self._erase(channel_id))
            if not watched.feed.has_reader:
                self._watched.pop(channel_id)

    async def _erase(self, channel_id: ChannelID) -> None:
        try:
            await self._store.commit((Delete(Table.META, WATCHED + channel_id),))
        except StoreError as error:
            log.error("channel %s: its watching is not forgotten in the store: %s", channel_id.hex(), error)

    def left(self, channel_id: ChannelID, watched: _Watched) -> None:
        """The reader of `watched` is gone: without signatures there is nothing to go on with."""
        if watched.newest is None and self._watched.get(channel_id) is watched and not watched.feed.has_reader:
            self._watched.pop(channel_id)

    async def stop_watching(self, channel_id: ChannelID) -> None:
        watched = self._watched.pop(channel_id, None)
        if watched is None:
            return
        if watched.newest is not None:
            self._watcher.forget(channel_id)
        await self._erase(channel_id)
        watched.feed.end(deliver_rest=True)


class WatchReader(EventReader):
    """`ports.api.WatchedChannel`: what was signed is watched on without a reader."""

    def __init__(
        self, owner: FundWatch, channel_id: ChannelID, watched: _Watched, reader: Reader[AdjudicatorEvent]
    ) -> None:
        super().__init__(reader, lambda: owner.left(channel_id, watched))
        self._owner = owner
        self._channel_id = channel_id
        self._watched = watched

    async def publish(self, tx: Transaction) -> None:
        await self._owner.accept(self._channel_id, self._watched, tx)

    async def stop(self) -> None:
        await self._owner.stop_watching(self._channel_id)


def _encoded(params: Params, tx: Transaction, profile: Profile) -> bytes:
    return msgspec.msgpack.encode(_Stored(FORMAT, profile.encode_params(params), profile.encode_transaction(tx)))


def _decoded(value: bytes, profile: Profile, apps: AppRegistry) -> tuple[Params, Transaction]:
    """Raises: StoreBroken."""
    try:
        stored = msgspec.msgpack.decode(value, type=_Stored)
        if stored.format != FORMAT:
            raise StoreBroken(f"a watched channel is stored in the unknown format {stored.format}")
        return profile.decode_params(stored.params), profile.decode_transaction(stored.tx, apps)
    except (msgspec.MsgspecError, DecodeError) as error:
        raise StoreBroken("the record of a watched channel is damaged") from error


def _noted(task: asyncio.Task[Any]) -> None:
    """What failed after its caller had gone is said in the log."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ApiError):
        log.error("work for others failed", exc_info=error)

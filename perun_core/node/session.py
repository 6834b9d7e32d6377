"""A session: one user's isolated environment in the node, and what that user can ask of it (API.md 2.4)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, NoReturn, cast

from msgspec import Struct

from ..amounts import format_amount, parse_amount
from ..apps.registry import AppRegistry
from ..channel import Allocation, Asset, Params, Phase, State, Transaction
from ..durations import Duration
from ..errors import (
    AliasTaken,
    ApiError,
    CommError,
    FailedPrecondition,
    IDProviderError,
    InsufficientFunds,
    InvalidArgument,
    KeyNotFound,
    PeerExists,
    PeerInvalid,
    PeerUnknown,
    PeerUnreachable,
    PortError,
    ResourceExists,
    ResourceNotFound,
    RuleViolated,
    StoreBroken,
    UnknownInternal,
    UserResponseTimedOut,
)
from ..ports.api import BalInfo, PayChInfo, PeerIDInfo, ProposalNotification
from ..ports.chain import Chain
from ..ports.comm import Comm
from ..ports.fundwatch import Funder, RemoteWatcher
from ..ports.idprovider import OWN_ALIAS, IDProvider, PeerID
from ..ports.keymgr import KeyManager
from ..ports.policy import Policy, ProposalView, Verdict
from ..ports.store import Doubt, PutNew, Store, Table
from ..profile import Profile
from ..protocol.base import ChannelTerms
from ..protocol.channel import Channel
from ..protocol.effects import Persist
from ..protocol.events import (
    ChainRegistered,
    Event,
    PeerAccepted,
    PeerAcceptedProposal,
    PeerConnected,
    PeerProposed,
    PeerRejected,
    PeerRejectedProposal,
    PeerSynced,
)
from ..protocol.opening import Opening, OpeningTerms, Stage
from ..protocol.proposal_rules import check_proposal
from ..protocol.records import (
    SEQUENCE,
    SETTLED_PREFIX,
    ChannelRecord,
    RecordCodec,
    read_settled_mark,
    sequence_mark,
    withdrawal_guard_key,
    withdrawal_guard_prefix,
)
from ..values import Address, Bytes32, ChannelID, ProposalID, Sig
from ..wire.messages import (
    BaseProposal,
    LedgerProposal,
    LedgerProposalAcc,
    Message,
    ProposalRej,
    SubProposal,
    Sync,
    Update,
    UpdateAcc,
    UpdateRej,
    VirtualProposal,
)
from .absence import shown_span, shown_time
from .chainsteps import PATIENCE, StepContext, chain_error
from .channel import REJECTED_BY_USER, ChannelView, LiveChannel, decide_in_time
from .currencies import Currency, CurrencyRegistry
from .fundwatch import FundWatch
from .opening import LiveOpening
from .peers import PeerHub
from .recovery import Recovery
from .remote import SharedRefuting, WatchedLedger
from .rescue import RescueFile
from .runner import Requests
from .subscriptions import Feed, Reader
from .watcher import Watcher

log = logging.getLogger(__name__)

CLOSED_SESSION: Final = "action not allowed on a closed session"
PROCESSING: Final = 5.0
"""P: seconds allowed for processing on top of a peer's response time (API.md)."""
EXPIRY_SLACK: Final = 1.0
"""A user's answer counts in whole seconds, so the machine waits a second longer than the timeout."""
MAX_PENDING_PER_PEER: Final = 64
"""Channel proposals of one peer that may wait for an answer at the same time (O-11)."""
MAX_EARLY: Final = 64
"""Version-0 signatures kept until the channel they belong to is known."""
REMEMBERED_PROPOSALS: Final = 4096
"""Proposal IDs of peers that are recognised when they come again (O-11)."""
SYNC_INTERVAL: Final = 1.0
"""Seconds between two sync messages of one channel that are looked at (PROTOCOL.md 7.4.1)."""


SYNC_DELAY: Final = 15.0
"""The longest usual time-out of a peer of another make, which must not be asked while it waits (PROTOCOL.md 7.4.1)."""


async def _no_other_keys(address: Address) -> KeyManager:
    raise KeyNotFound(f"no key for {address.checksum}")


class SessionParts(Struct, frozen=True):
    """What a session is made of, beside its store."""

    id: str
    profile: Profile
    apps: AppRegistry
    currencies: CurrencyRegistry
    keys: KeyManager
    """Signs for the off-chain address."""
    id_provider: IDProvider
    comm: Comm
    chain: Chain
    chain_url: str
    adjudicator: Address
    policy: Policy | None
    on_chain: Address
    off_chain: Address
    comm_address: str
    response_timeout: Duration
    tx_timeout: Duration
    challenge_durations: tuple[int, int]
    clock: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    on_closed: Callable[[Session], None]
    keys_of: Callable[[Address], Awaitable[KeyManager]] = _no_other_keys
    """A key manager that signs for another off-chain address of the same wallet. Raises: KeyManagerError."""
    funder: Funder | None = None
    """Makes the transactions instead of our account (`fundingtype` other than ``local``)."""
    funding_url: str = ""
    guard: RemoteWatcher | None = None
    """Watches beside us (`watchertype` other than ``local``)."""
    sync_delay: float = SYNC_DELAY
    """Seconds a peer is left alone before it is asked for its newest state."""
    rescue: RescueFile | None = None
    """Follows what is stored (`rescuefile`)."""


class Proposed(Struct, frozen=True):
    """A peer's proposal our user was asked about."""

    proposal: LedgerProposal
    peer: PeerID
    expiry: int
    expired: bool = False


class Session:
    """One open session; `close` makes it a closed one, of which nothing but the ID is left."""

    store: Store
    _watcher: Watcher
    _fundwatch: FundWatch
    _recovery: Recovery

    def __init__(self, parts: SessionParts) -> None:
        self.id = parts.id
        self.parts = parts
        self.closed = False
        self._stack = AsyncExitStack()
        self._codec = RecordCodec(parts.profile, parts.apps)
        self._requests = Requests()
        self._channels: dict[ChannelID, LiveChannel] = {}
        self._closed_channels: dict[ChannelID, LiveChannel] = {}
        """Closed in an earlier life, and watched until no reorg can reopen them; nobody can ask for them."""
        self._openings: dict[ProposalID, LiveOpening] = {}
        self._opening_channels: dict[ChannelID, LiveOpening] = {}
        self._proposed: dict[str, Proposed] = {}
        self._seen_proposals: dict[tuple[Address, ProposalID], None] = {}
        self._early: dict[tuple[Address, ChannelID], UpdateAcc] = {}
        self._synced: dict[ChannelID, float] = {}
        self._proposal_feed: Feed[ProposalNotification] = Feed(self._still_valid)
        self._sequence = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._unknown_looked_at = 0.0
        self._serving = asyncio.Event()
        self._hub = PeerHub(
            own=parts.off_chain,
            comm=parts.comm,
            profile=parts.profile,
            apps=parts.apps,
            resolve=self._resolve,
            deliver=self._deliver,
            connected=self._on_connected,
        )

    # ---- life -------------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Accept peers; their messages wait until `restore` is done. Raises: CommError."""
        await self._hub.start(self.parts.comm_address)

    async def stop_listening(self) -> None:
        """End all peer connections; idempotent."""
        await self._hub.close()

    def adopt(self, stack: AsyncExitStack) -> None:
        """Own the backends the session was opened with; they are released when it ends."""
        self._stack = stack

    async def restore(self) -> tuple[PayChInfo, ...]:
        """Bring back every channel that is not withdrawn, in every phase; the open ones are returned in opening order.

        Raises: StoreError.
        """
        self._watcher = Watcher(
            self._ledger(), self.store, self.parts.adjudicator, on_settled_for_good=self._on_settled_for_good
        )
        self._fundwatch = FundWatch(
            self.parts, self.store, self._watcher, is_own=lambda channel_id: channel_id in self._channels
        )
        records = []
        after: bytes | None = None
        while page := await self.store.scan(Table.CHANNELS, after=after):
            records += [self._codec.decode(key, value) for key, value in page]
            after = page[-1][0]
        records.sort(key=lambda record: record.sequence)
        await self._compare_with_rescue(records)
        self._recovery = Recovery(self.store, channels=self._channels.values, spawn=self._spawn)
        self._sequence = await self._highest_sequence()
        for record in records:
            machine = Channel(await self._terms(record), record)
            live = self._live(machine, await self._view(record))
            if self._recovery.doubts(record.channel_id):
                machine.recover(self._recovery.reason)
            elif record.phase is not Phase.ACTING:
                log.warning("channel %s was restored in phase %s and goes on by itself", live.name, record.phase)
            if record.phase is not Phase.OPENING or machine.is_recovering:
                self._publish(record.params, record.current, live)
            live.start(machine.resume)
        self._recovery.restored()
        await self._restore_settled()
        await self._fundwatch.restore()
        self._spawn(self._watcher.run())
        # What happened on chain while we were away, beside what the event feed will say.
        self._spawn(self._watcher.look())
        self._serving.set()
        return tuple(live.info() for live in self._channels.values() if live.is_open)

    async def _restore_settled(self) -> None:
        """Watch on over archived channels whose settlement a reorg could still undo; their user does not see them."""
        after: bytes | None = None
        while page := await self.store.scan(Table.CURSORS, SETTLED_PREFIX, after=after):
            for key, mark in page:
                if len(key) != len(SETTLED_PREFIX) + ChannelID.SIZE:
                    continue
                channel_id, since = read_settled_mark(key, mark)
                value = await self.store.get(Table.ARCHIVE, bytes(channel_id))
                if value is None:
                    raise StoreBroken(f"the archive lacks channel {channel_id.hex()}, which is watched")
                record = self._codec.decode(bytes(channel_id), value)
                live = self._live(Channel(await self._terms(record), record), await self._view(record))
                self._publish(record.params, record.current, live)
                self._watcher.settle(channel_id, self._funding_id(record), since=since)
                live.start(live.machine.resume)
            after = page[-1][0]

    def _funding_id(self, record: ChannelRecord) -> Bytes32:
        return self.parts.profile.funding_id(record.channel_id, record.params.parts[record.own_index])

    async def _compare_with_rescue(self, records: list[ChannelRecord]) -> None:
        """A rescue file that knows more than the store proves that the store is an old copy. Raises: StoreError."""
        rescue = self.parts.rescue
        if rescue is None:
            return
        closed: list[bytes] = []
        if rescue.lacks(records):
            after: bytes | None = None
            while page := await self.store.scan(Table.ARCHIVE, after=after):
                closed += [key for key, _ in page]
                after = page[-1][0]
        if proof := rescue.ahead_of(records, closed):
            await self.store.distrust(Doubt.REPORTED, proof)

    async def _highest_sequence(self) -> int:
        stored = await self.store.get(Table.META, SEQUENCE)
        if stored is not None:
            return int.from_bytes(stored, "big")
        # A store of a version that did not keep the number; the next opening of a channel writes it.
        highest, after = 0, None
        while page := await self.store.scan(Table.USED, after=after):
            highest = max(highest, *(int.from_bytes(value, "big") for _, value in page))
            after = page[-1][0]
        return highest

    async def _terms(self, record: ChannelRecord) -> ChannelTerms:
        parts = self.parts
        response = parts.response_timeout.seconds
        return ChannelTerms(
            profile=parts.profile,
            app=parts.apps.get(record.params.app) if record.params.app else None,
            peer_alias=await self._alias(record.peer),
            answer_timeout=response + PROCESSING,
            decision_timeout=response + EXPIRY_SLACK,
            timeout_text=str(parts.response_timeout),
            sync_delay=parts.sync_delay,
        )

    async def _alias(self, peer: Address) -> str:
        try:
            return (await self.parts.id_provider.by_address(peer)).alias
        except IDProviderError:
            return peer.checksum

    async def _view(self, record: ChannelRecord) -> ChannelView:
        state = record.current.state
        assert state is not None
        currencies = tuple(self.parts.currencies.shown(asset.holder) for asset in state.allocation.assets)
        return ChannelView(await self._alias(record.peer), record.own_index, currencies)

    async def renew_views(self) -> None:
        """A currency was registered: channels whose asset nobody knew are shown with it, and can be paid in."""
        for live in self._channels.values():
            if not all(currency.known for currency in live.view.currencies):
                live.view = await self._view(live.snapshot)

    def _live(self, machine: Channel, view: ChannelView) -> LiveChannel:
        parts, record = self.parts, machine.record
        tokens = {currency.holder: currency.token for currency in view.currencies}
        steps = StepContext(
            chain=parts.chain,
            profile=parts.profile,
            chain_url=parts.chain_url,
            tx_timeout=parts.tx_timeout.seconds,
            tx_timeout_text=str(parts.tx_timeout),
            peer_alias=view.peer_alias,
            own_index=record.own_index,
            token_of=lambda holder: tokens.get(holder),
            receiver=parts.on_chain,
            authorise=self._authorise,
            funder=parts.funder,
            funding_url=parts.funding_url,
        )
        live = LiveChannel(
            machine,
            view,
            outside=self,
            requests=self._requests,
            steps=steps,
            publish=lambda effect: self._publish(record.params, effect.tx, live),
            clock=parts.clock,
            response_timeout=parts.response_timeout.seconds,
            policy=parts.policy,
            recovery=self._recovery,
            chance=lambda: int.from_bytes(parts.random_bytes(4), "big") / 2**32,
            on_archived=self._on_archived,
        )
        hidden = record.reopened or record.phase is Phase.WITHDRAWN
        (self._closed_channels if hidden else self._channels)[record.channel_id] = live
        return live

    def _on_settled_for_good(self, channel_id: ChannelID) -> None:
        live = self._closed_channels.pop(channel_id, None)
        if live is not None:
            self._spawn(live.stop())

    def _on_archived(self, live: LiveChannel) -> None:
        record = live.snapshot
        if self._watcher.is_settled(record.channel_id):
            return
        log.info("%s: closed and archived", live.name)
        if record.concluded_version is None:
            self._watcher.forget(record.channel_id)
        else:
            self._watcher.settle(record.channel_id, self._funding_id(record), since=self._watcher.height)
        if self.parts.guard is not None:
            self.parts.guard.release(live.snapshot.channel_id)

    def _publish(self, params: Params, tx: Transaction, live: LiveChannel) -> None:
        """Everybody who watches for us learns the newest signed transaction, which is durable."""
        self._watcher.publish(params, tx, lambda event: self._on_registered(live, event), on_undone=live.post)
        if self.parts.guard is not None and tx.fully_signed:
            self.parts.guard.watch(params, tx)

    def _on_registered(self, live: LiveChannel, event: ChainRegistered) -> None:
        if not live.is_withdrawn and live.machine.is_behind(event.dispute):
            self._recovery.report(
                f"version {event.dispute.version} of channel {live.channel_id.hex()} is registered on chain, "
                f"our storage has version {live.machine.state.version}"
            )
        live.post(event)

    def _ledger(self) -> WatchedLedger:
        parts = self.parts
        if parts.funder is None and parts.guard is None:
            return parts.chain
        return SharedRefuting(
            parts.chain, parts.funder, parts.guard, own=lambda params: params.parts.index(parts.off_chain)
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        """Stop everything and release every backend."""
        self.closed = True
        self._say_when_to_be_back()
        self._proposal_feed.end()
        for live in self._channels.values():
            live.feed.end()
        await self._fundwatch.end()
        runners: tuple[LiveOpening | LiveChannel, ...] = (
            *self._openings.values(),
            *self._channels.values(),
            *self._closed_channels.values(),
        )
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(runner.stop() for runner in runners))
        gone = FailedPrecondition(CLOSED_SESSION)
        for runner in runners:
            self._requests.fail_all_of(runner, gone)
        await self._hub.close()
        await self._stack.aclose()
        self.parts.on_closed(self)

    def _say_when_to_be_back(self) -> None:
        within, before = self._watcher.must_be_back_within(), self._watcher.must_be_back_before()
        if within is None:
            return
        log.warning(
            "session of %s: channels stay open; be back within %s%s, so that an outdated state can be refuted",
            self.parts.off_chain.checksum,
            shown_span(within),
            "" if before is None else f", before {shown_time(before)}",
        )

    async def shut_down(self) -> None:
        """The node goes away: everything is persisted already, channels go on at the next opening."""
        if not self.closed:
            await self._end()

    # ---- what conversations need (runner.Outside) -------------------------------------------------------------------

    async def persist(self, effect: Persist) -> None:
        operations = self._codec.operations(
            effect.record,
            signing=effect.signing,
            claim=effect.claim,
            archive=effect.archive,
            head=self._watcher.height,
        )
        if effect.claim:
            operations = (*operations, sequence_mark(self._sequence))
        await self.store.commit(operations)
        if self.parts.rescue is not None:
            self.parts.rescue.note(effect.record, closed=effect.archive)

    async def sign(self, state_hash: Bytes32) -> Sig:
        return await self.parts.keys.sign_message(self.parts.off_chain, state_hash)

    async def connect(self, peer: Address) -> None:
        try:
            await self._hub.connect(peer)
        except PeerUnknown as error:
            raise PeerUnreachable(f"no address known for {peer.checksum}") from error

    async def send(self, peer: Address, message: Message) -> None:
        try:
            await self._hub.send(peer, message)
        except PeerUnknown as error:
            raise PeerUnreachable(f"no address known for {peer.checksum}") from error

    async def _authorise(self, channel_id: ChannelID, holder: Address, amount: int) -> Sig:
        """D-8: our own participant, our own receiver, marked durably before it is signed.

        Also while the store is in doubt: the channel is concluded, which the chain says and no copy of ours can change.
        """
        parts = self.parts
        key = withdrawal_guard_key(channel_id, holder, amount)
        if not self.store.status().may_sign(key):
            await self.store.trust(withdrawal_guard_prefix(channel_id))
        await self.store.commit((PutNew(Table.SIGNED, key, bytes(parts.on_chain)),))
        digest = parts.profile.withdrawal_hash(channel_id, parts.off_chain, parts.on_chain, amount)
        return await parts.keys.sign_message(parts.off_chain, digest)

    # ---- peers ------------------------------------------------------------------------------------------------------

    async def _resolve(self, peer: Address) -> str:
        return (await self.parts.id_provider.by_address(peer)).comm_address

    def _on_connected(self, peer: Address) -> None:
        for live in self._channels.values():
            if live.peer == peer and live.machine.wants_peer:
                live.post(PeerConnected())

    def _deliver(self, peer: Address, message: Message) -> Awaitable[None] | None:
        return self._dispatch(peer, message) if self._serving.is_set() else self._deliver_later(peer, message)

    async def _deliver_later(self, peer: Address, message: Message) -> None:
        """What arrives while channels are being restored waits, it is not lost (API.md 5.1)."""
        await self._serving.wait()
        waiting = self._dispatch(peer, message)
        if waiting is not None:
            await waiting

    def _dispatch(self, peer: Address, message: Message) -> Awaitable[None] | None:
        match message:
            case Update():
                return self._to_channel(peer, message.state.id, message.state.version, PeerProposed(message))
            case UpdateAcc():
                return self._on_update_acc(peer, message)
            case UpdateRej():
                opening = self._opening_channels.get(message.channel_id)
                if opening is not None and opening.peer == peer:
                    opening.post(PeerRejected(message))
                    return None
                return self._to_channel(peer, message.channel_id, None, PeerRejected(message))
            case LedgerProposal():
                return self._on_proposal(peer, message)
            case LedgerProposalAcc():
                opening = self._openings.get(message.base.proposal_id)
                if opening is not None and opening.peer == peer:  # O-14
                    opening.post(PeerAcceptedProposal(message))
                return None
            case ProposalRej():
                opening = self._openings.get(message.proposal_id)
                if opening is not None and opening.peer == peer:
                    opening.post(PeerRejectedProposal(message))
                return None
            case SubProposal() | VirtualProposal():
                return self._refuse(peer, message.base.proposal_id, "this kind of channel is not supported")
            case Sync():
                return self._on_sync(peer, message)
            case _:
                log.info("message %s of %s is not supported", message.TYPE.name, peer.checksum)
                return None

    def _to_channel(
        self, peer: Address, channel_id: ChannelID, version: int | None, event: Event
    ) -> Awaitable[None] | None:
        live = self._channels.get(channel_id)
        if live is None or live.peer != peer:  # U-1; strangers learn nothing about whose channel it is
            if version is None:
                return None
            return self._send_quietly(peer, UpdateRej(channel_id, version, "unknown channel for this session"))
        if live.broken:
            return None
        if live.is_crowded:
            return live.offer(event)
        live.post(event)
        return None

    def _on_update_acc(self, peer: Address, message: UpdateAcc) -> Awaitable[None] | None:
        opening = self._opening_channels.get(message.channel_id)
        if opening is not None and opening.peer == peer:
            opening.post(PeerAccepted(message))
            return None
        if message.version == 0 and message.channel_id not in self._channels:
            while len(self._early) >= MAX_EARLY:
                self._early.pop(next(iter(self._early)))
            self._early[(peer, message.channel_id)] = message
            return None
        return self._to_channel(peer, message.channel_id, None, PeerAccepted(message))

    def _on_sync(self, peer: Address, message: Sync) -> Awaitable[None] | None:
        state = message.current.state
        if state is None:
            return None
        now = self.parts.clock()
        live = self._channels.get(state.id)
        if live is None:
            if now - self._unknown_looked_at < SYNC_INTERVAL:
                return None
            self._unknown_looked_at = now
            return self._on_sync_of_unknown(peer, message.current, state)
        asked = live.peer == peer and live.machine.awaits_sync
        if not asked and now - self._synced.get(state.id, 0.0) < SYNC_INTERVAL:
            return None
        self._synced[state.id] = now
        return self._to_channel(peer, state.id, None, PeerSynced(message))

    async def _on_sync_of_unknown(self, peer: Address, shown: Transaction, state: State) -> None:
        """Our signature on a state of a channel that our storage never heard of: it lost the channel (Y-6)."""
        if await self.store.get(Table.USED, bytes(state.id)) is not None:
            return
        digest = self.parts.profile.state_hash(state)
        for sig in shown.sigs:
            if sig is None:
                continue
            try:
                self.parts.profile.verify(digest, sig, self.parts.off_chain)
            except RuleViolated:
                continue
            alias = await self._alias(peer)
            self._recovery.report(
                f"{alias} holds version {state.version} of channel {state.id.hex()} with our signature, of which our "
                "storage has no record; bring it back from a backup or a rescue file",
                lost=state.id,
            )
            return

    async def _send_quietly(self, peer: Address, message: Message) -> None:
        try:
            await self.send(peer, message)
        except CommError as error:
            log.info("could not answer %s: %s", peer.checksum, error)

    def _refuse(self, peer: Address, proposal_id: ProposalID, reason: str) -> Awaitable[None]:
        log.info("refused a proposal of %s: %s", peer.checksum, reason)
        return self._send_quietly(peer, ProposalRej(proposal_id, reason))

    # ---- proposals of peers -----------------------------------------------------------------------------------------

    async def _on_proposal(self, peer: Address, proposal: LedgerProposal) -> None:
        parts, base = self.parts, proposal.base
        key = (peer, base.proposal_id)
        if key in self._seen_proposals:  # O-11
            return
        self._seen_proposals[key] = None
        while len(self._seen_proposals) > REMEMBERED_PROPOSALS:
            self._seen_proposals.pop(next(iter(self._seen_proposals)))
        try:
            check_proposal(
                proposal,
                sender=peer,
                own=parts.off_chain,
                durations=parts.challenge_durations,
                own_participant=parts.off_chain,
                app=parts.apps.get(base.app) if base.app else None,
            )
        except RuleViolated as error:
            await self._refuse(peer, base.proposal_id, str(error))
            return
        if self._recovery.is_on:
            await self._refuse(peer, base.proposal_id, "no channels are opened at the moment")
            return
        currencies = tuple(parts.currencies.by_holder(asset.holder) for asset in base.init_bals.assets)
        if any(currency is None for currency in currencies):  # O-5
            await self._refuse(peer, base.proposal_id, "unrecogonized currency")
            return
        known = cast("tuple[Currency, ...]", currencies)
        try:
            known_peer = await parts.id_provider.by_address(peer)
        except IDProviderError:
            await self._refuse(peer, base.proposal_id, "unrecogonized peer ID")
            self._proposal_feed.publish(self._notification(proposal, peer.checksum, known, expiry=0))
            return
        if sum(entry.peer.address == peer for entry in self._proposed.values()) >= MAX_PENDING_PER_PEER:
            await self._refuse(peer, base.proposal_id, "too many proposals are pending")
            return
        expiry = int(parts.clock() + parts.response_timeout.seconds)
        if parts.policy is not None:
            self._spawn(self._ask_policy(parts.policy, proposal, known_peer, known, expiry))
        else:
            self._ask_user(proposal, known_peer, known, expiry)

    def _ask_user(self, proposal: LedgerProposal, peer: PeerID, currencies: tuple[Currency, ...], expiry: int) -> None:
        proposal_id = proposal.base.proposal_id.hex()
        self._proposed[proposal_id] = Proposed(proposal, peer, expiry)
        asyncio.get_running_loop().call_later(
            10 * self.parts.response_timeout.seconds + 60, self._proposed.pop, proposal_id, None
        )
        self._proposal_feed.publish(self._notification(proposal, peer.alias, currencies, expiry))

    def _notification(
        self, proposal: LedgerProposal, alias: str, currencies: tuple[Currency, ...], expiry: int
    ) -> ProposalNotification:
        base = proposal.base
        rows = tuple(
            tuple(format_amount(value, currency.decimals) for value in row)
            for currency, row in zip(currencies, base.init_bals.balances, strict=True)
        )
        info = BalInfo(tuple(currency.symbol for currency in currencies), (alias, OWN_ALIAS), rows)
        return ProposalNotification(base.proposal_id.hex(), info, base.challenge_duration, expiry)

    def _still_valid(self, item: ProposalNotification) -> bool:
        return item.expiry == 0 or int(self.parts.clock()) <= item.expiry

    async def _ask_policy(
        self, policy: Policy, proposal: LedgerProposal, peer: PeerID, currencies: tuple[Currency, ...], expiry: int
    ) -> None:
        seen = ProposalView(
            peer=peer.alias,
            currencies=tuple(currency.symbol for currency in currencies),
            balances=proposal.base.init_bals.balances,
            own_index=1,
            challenge_duration=proposal.base.challenge_duration,
        )
        decision = await decide_in_time(lambda: policy.on_proposal(seen), f"session of {self.parts.off_chain.checksum}")
        match decision.verdict:
            case Verdict.ACCEPT:
                entry = Proposed(proposal, peer, expiry)
                try:
                    self._recovery.check_off()
                    await self._check_acceptable(entry)
                except ApiError as error:
                    log.warning("a proposal of %s that the policy accepts was refused: %s", peer.alias, error)
                else:
                    self._accept(entry)
            case Verdict.REJECT:
                await self._refuse(peer.address, proposal.base.proposal_id, decision.reason)
            case Verdict.ASK:
                self._ask_user(proposal, peer, currencies, expiry)

    def _opening_terms(self, peer: PeerID) -> OpeningTerms:
        parts = self.parts
        self._sequence += 1
        return OpeningTerms(
            profile=parts.profile,
            apps=parts.apps,
            own_wire=parts.off_chain,
            own_participant=parts.off_chain,
            peer_alias=peer.alias,
            peer_wire=peer.address,
            chain_id=parts.chain.chain_id,
            adjudicator=parts.adjudicator,
            sequence=self._sequence,
            response_timeout=parts.response_timeout.seconds + PROCESSING,
            timeout_text=str(parts.response_timeout),
        )

    def _accept(self, entry: Proposed) -> asyncio.Future[object]:
        share = Bytes32(self.parts.random_bytes(32))
        machine = Opening(self._opening_terms(entry.peer), entry.proposal, share, own_index=1)
        live, future = self._start_opening(machine, entry.peer)
        live.start(lambda: machine.accept(live.request, self.parts.off_chain))
        return future

    def _start_opening(self, machine: Opening, peer: PeerID) -> tuple[LiveOpening, asyncio.Future[object]]:
        live = LiveOpening(
            machine, peer.address, outside=self, requests=self._requests, on_progress=self._on_opening_progress
        )
        live.request, future = self._requests.new(live)
        self._openings[machine.proposal.base.proposal_id] = live
        return live, future

    def _on_opening_progress(self, live: LiveOpening) -> None:
        machine = live.machine
        record = machine.record
        if record is not None and record.channel_id not in self._opening_channels and machine.stage is not Stage.FAILED:
            self._opening_channels[record.channel_id] = live
            early = self._early.pop((live.peer, record.channel_id), None)
            if early is not None:
                live.post(PeerAccepted(early))
        if machine.stage in (Stage.DONE, Stage.FAILED):
            self._openings.pop(machine.proposal.base.proposal_id, None)
            if record is not None:
                self._opening_channels.pop(record.channel_id, None)
            if machine.stage is Stage.DONE:
                assert record is not None
                self._on_opened(live, record)
            self._spawn(live.stop())

    def _on_opened(self, opening: LiveOpening, record: ChannelRecord) -> None:
        alias = opening.machine.peer_alias
        response = self.parts.response_timeout.seconds
        terms = ChannelTerms(
            profile=self.parts.profile,
            app=self.parts.apps.get(record.params.app) if record.params.app else None,
            peer_alias=alias,
            answer_timeout=response + PROCESSING,
            decision_timeout=response + EXPIRY_SLACK,
            timeout_text=str(self.parts.response_timeout),
            sync_delay=self.parts.sync_delay,
        )
        machine = Channel(terms, record, opening_request=opening.request)
        state = record.current.state
        assert state is not None
        currencies = tuple(self.parts.currencies.shown(asset.holder) for asset in state.allocation.assets)
        live = self._live(machine, ChannelView(alias, record.own_index, currencies))
        self._recovery.opened(record.channel_id)
        self._requests.hand_over(opening.request, live)
        live.start(machine.start_funding)

    # ---- ports.api.SessionAPI ---------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise FailedPrecondition(CLOSED_SESSION)

    def channel(self, channel_id: str) -> LiveChannel:
        self._check_open()
        try:
            return self._channels[ChannelID.from_hex(channel_id)]
        except (KeyError, ValueError):
            raise ResourceNotFound("channel", channel_id) from None

    async def add_peer_id(self, peer: PeerIDInfo) -> None:
        self._check_open()
        provider = self.parts.id_provider
        try:
            address = Address.parse(peer.off_chain_address)
        except ValueError as error:
            if peer.alias == OWN_ALIAS or await self._knows(peer.alias):
                raise InvalidArgument("peerAlias", peer.alias, "the alias is used for another peer") from error
            raise InvalidArgument("offChainAddress", peer.off_chain_address, str(error)) from error
        if peer.alias == OWN_ALIAS:
            raise InvalidArgument("peerAlias", peer.alias, "the alias is reserved for the own entry")
        if not peer.alias:
            raise InvalidArgument("peerAlias", peer.alias, "the alias must not be empty")
        if peer.comm_type != self.parts.comm.type:
            raise InvalidArgument("peerID", peer.comm_type, "unsupported comm type", f"must be {self.parts.comm.type}")
        entry = PeerID(peer.alias, address, peer.comm_address, peer.comm_type, peer.off_chain_address)
        try:
            await provider.add(entry)
        except PeerExists as error:
            raise ResourceExists("peerID", error.alias) from error
        except AliasTaken as error:
            raise InvalidArgument("peerAlias", peer.alias, "the alias is used for another peer") from error
        except PeerInvalid as error:
            raise InvalidArgument("peerID", error.value, str(error)) from error
        except IDProviderError as error:
            raise UnknownInternal(str(error)) from error

    async def _knows(self, alias: str) -> bool:
        try:
            await self.parts.id_provider.by_alias(alias)
        except PeerUnknown:
            return False
        return True

    async def get_peer_id(self, alias: str) -> PeerIDInfo:
        self._check_open()
        if alias == OWN_ALIAS:
            parts = self.parts
            return PeerIDInfo(OWN_ALIAS, parts.off_chain.checksum, parts.comm_address, parts.comm.type)
        peer = await self._peer(alias)
        return PeerIDInfo(peer.alias, peer.shown_address, peer.comm_address, peer.comm_type)

    async def _peer(self, alias: str) -> PeerID:
        try:
            return await self.parts.id_provider.by_alias(alias)
        except PeerUnknown as error:
            raise ResourceNotFound("peerID", alias) from error
        except IDProviderError as error:
            raise UnknownInternal(str(error)) from error

    async def open_channel(self, balances: BalInfo, challenge_duration: int) -> PayChInfo:
        self._check_open()
        self._recovery.check_off()
        peer, currencies, rows = await self._terms_of(balances, challenge_duration)
        parts = self.parts
        allocation = Allocation(tuple(Asset(currency.holder) for currency in currencies), rows)
        base = BaseProposal(
            proposal_id=ProposalID(parts.random_bytes(32)),
            challenge_duration=challenge_duration,
            nonce_share=Bytes32(parts.random_bytes(32)),
            app=None,
            init_data=b"",
            init_bals=allocation,
            funding_agreement=rows,
        )
        proposal = LedgerProposal(base, parts.off_chain, (parts.off_chain, peer.address))
        try:
            check_proposal(
                proposal,
                sender=parts.off_chain,
                own=peer.address,
                durations=parts.challenge_durations,
                own_participant=peer.address,
            )
        except RuleViolated as error:
            name = "challengeDurSecs" if error.rule == "O-3" else "openingBalInfo"
            value = str(challenge_duration) if error.rule == "O-3" else ""
            raise InvalidArgument(name, value, error.problem) from error
        if parts.funder is None:  # otherwise another account pays
            await self._check_affordable(currencies, tuple(row[0] for row in rows))
        self._check_open()
        machine = Opening(self._opening_terms(peer), proposal, base.nonce_share, own_index=0)
        live, future = self._start_opening(machine, peer)
        live.start(lambda: machine.start(live.request))
        try:
            return await self._opened(future)
        except ApiError as error:
            raise error.within("proposing channel") from error

    async def _opened(self, future: asyncio.Future[object]) -> PayChInfo:
        record = cast("ChannelRecord", await future)
        return self._channels[record.channel_id].info()

    async def _terms_of(
        self, balances: BalInfo, challenge_duration: int
    ) -> tuple[PeerID, tuple[Currency, ...], tuple[tuple[int, ...], ...]]:
        """The request as values, `self` first (API.md 2.4.1 steps 2 to 9)."""
        aliases, symbols, rows = balances.parts, balances.currencies, balances.bals
        if any(len(row) != len(aliases) for row in rows):
            raise InvalidArgument("openingBalInfo", "", "every row needs one amount per participant")
        unknown = [alias for alias in aliases if alias != OWN_ALIAS and not await self._knows(alias)]
        if unknown:
            raise ResourceNotFound("peerID", ",".join(unknown))
        if len(set(aliases)) != len(aliases):
            problem = "found repeated entries but each value should be unique"
            raise InvalidArgument("peerAlias", ",".join(aliases), problem)
        if OWN_ALIAS not in aliases:
            raise InvalidArgument("peerAlias", ",".join(aliases), "own peer alias (self) not found")
        if len(symbols) != len(rows):
            raise InvalidArgument("currency", ",".join(symbols), "number of currencies and of rows differ")
        currencies = []
        for symbol in symbols:
            currency = self.parts.currencies.by_symbol(symbol)
            if currency is None:
                raise ResourceNotFound("currency", symbol)
            currencies.append(currency)
        amounts = tuple(
            tuple(_opening_amount(text, currency) for text in row)
            for currency, row in zip(currencies, rows, strict=True)
        )
        if len(aliases) != 2:
            raise InvalidArgument("openingBalInfo", ",".join(aliases), "a channel has exactly two participants")
        if not symbols:
            raise InvalidArgument("openingBalInfo", "", "at least one currency is needed")
        if len(set(symbols)) != len(symbols):
            raise InvalidArgument("currency", ",".join(symbols), "a currency is repeated")
        if challenge_duration == 0:
            raise InvalidArgument("challengeDurSecs", "0", "must be at least one second")
        own = aliases.index(OWN_ALIAS)
        ordered = tuple((row[own], row[1 - own]) for row in amounts)
        return await self._peer(aliases[1 - own]), tuple(currencies), ordered

    async def _check_affordable(self, currencies: tuple[Currency, ...], own: tuple[int, ...]) -> None:
        """Our account can pay the deposits and the gas of the whole life (API.md 2.1.5).

        Money on its way gets `PATIENCE` blocks to arrive before the user is refused.
        """
        try:
            gas = await self.parts.chain.quote_open(
                tuple((currency.token, amount) for currency, amount in zip(currencies, own, strict=True))
            )
            blocks = 0
            async for _ in self.parts.chain.blocks():
                short = await self._shortfall(currencies, own, gas)
                if not short:
                    return
                blocks += 1
                if blocks > PATIENCE:
                    raise InsufficientFunds(f"the on-chain account lacks {short} for deposit and gas")
        except PortError as error:
            raise self._chain_error(error).within("proposing channel") from error

    async def _check_acceptable(self, entry: Proposed) -> None:
        """Our account can pay the gas of the channel's whole life beside our deposits; else the proposer is refused.

        What we then deposit can be brought back in any case. Deposits that are lacking by themselves are no reason:
        nothing of ours is at stake then, and it is the proposer's business to be told who did not fund (API.md 2.1.5).
        """
        parts = self.parts
        if parts.funder is not None:  # another account pays
            return
        base = entry.proposal.base
        currencies = tuple(parts.currencies.shown(asset.holder) for asset in base.init_bals.assets)
        own = tuple(row[1] for row in base.init_bals.balances)
        try:
            gas = await parts.chain.quote_open(
                tuple((currency.token, amount) for currency, amount in zip(currencies, own, strict=True))
            )
            short = await self._shortfall(currencies, own, gas)
            if not short:
                return
            if await self._shortfall(currencies, own, 0) and not await self._shortfall((), (), gas):
                return
            raise InsufficientFunds(f"the on-chain account lacks {short} for deposit and gas")
        except PortError as error:
            await self._refuse(entry.peer.address, base.proposal_id, "the channel could not be funded")
            raise self._chain_error(error).within("accepting a channel proposal") from error

    async def _shortfall(self, currencies: tuple[Currency, ...], own: tuple[int, ...], gas: int) -> str:
        """What is missing, as text; empty when the account has enough of everything."""
        needed: dict[Address | None, int] = {None: gas}
        for currency, amount in zip(currencies, own, strict=True):
            needed[currency.token] = needed.get(currency.token, 0) + amount
        units = {currency.token: (currency.symbol, currency.decimals) for currency in currencies}
        units.setdefault(None, ("ETH", 18))
        for token, wanted in needed.items():
            have = await self.parts.chain.balance(self.parts.on_chain, token)
            if have < wanted:
                symbol, decimals = units[token]
                return f"{format_amount(wanted - have, decimals)} {symbol}"
        return ""

    def _chain_error(self, error: PortError) -> ApiError:
        return chain_error(error, url=self.parts.chain_url, tx_timeout=str(self.parts.tx_timeout))

    def channels(self) -> tuple[PayChInfo, ...]:
        self._check_open()
        return tuple(live.info() for live in self._unclosed())

    def _unclosed(self) -> list[LiveChannel]:
        listed = (live for live in self._channels.values() if not live.is_withdrawn and live.snapshot.current.state)
        shown = [live for live in listed if live.machine.phase is not Phase.FUNDING and not live.closed]
        return sorted(shown, key=lambda live: live.snapshot.sequence)

    def subscribe_proposals(self) -> Reader[ProposalNotification]:
        self._check_open()
        if self._proposal_feed.has_reader:
            raise ResourceExists("proposalsSub", self.id)
        return self._proposal_feed.subscribe()

    def unsubscribe_proposals(self) -> None:
        self._check_open()
        if not self._proposal_feed.has_reader:
            raise ResourceNotFound("proposalsSub", self.id)
        self._proposal_feed.end()

    async def respond_proposal(self, proposal_id: str, *, accept: bool) -> PayChInfo:
        self._check_open()
        entry = self._proposed.pop(proposal_id, None)
        if entry is None:
            raise ResourceNotFound("proposal", proposal_id)
        now = int(self.parts.clock())
        if now > entry.expiry:
            raise UserResponseTimedOut(entry.expiry, now)
        if accept:
            self._recovery.check_off()
            await self._check_acceptable(entry)
            self._check_open()
            return await self._opened(self._accept(entry))
        try:
            await self.send(entry.peer.address, ProposalRej(entry.proposal.base.proposal_id, REJECTED_BY_USER))
        except CommError as error:
            raise UnknownInternal(f"the rejection could not be delivered: {error}") from error
        return PayChInfo("", BalInfo(), "")

    async def deploy_asset_erc20(self, token: str) -> str:
        self._check_open()
        try:
            address = Address.parse(token)
        except ValueError as error:
            raise InvalidArgument("token", token, str(error)) from error
        try:
            return (await self.parts.chain.deploy_holder(address)).checksum
        except PortError as error:
            raise self._chain_error(error) from error

    async def close(self, *, force: bool) -> tuple[PayChInfo, ...]:
        self._check_open()
        unfinished = sorted(
            (live for live in self._channels.values() if not live.is_withdrawn), key=lambda live: live.snapshot.sequence
        )
        blocking = [live for live in unfinished if not live.is_open and (live.is_busy or not force)]
        if not force:
            blocking = unfinished
        if blocking:
            unclosed = tuple(live.info() for live in blocking)
            raise FailedPrecondition("session cannot be closed: it has unclosed channels", unclosed)
        self.closed = True
        await self._refuse_pending()
        listed = tuple(live.info() for live in unfinished if live.is_open)
        await self._end()
        return listed

    def fundwatch(self) -> FundWatch:
        self._check_open()
        return self._fundwatch

    async def _refuse_pending(self) -> None:
        """Peers that wait for our user are told that there will be no answer."""
        entries, self._proposed = tuple(self._proposed.values()), {}
        now = int(self.parts.clock())
        refusals = [
            self._send_quietly(entry.peer.address, ProposalRej(entry.proposal.base.proposal_id, "session closed"))
            for entry in entries
            if now <= entry.expiry and self._hub.is_connected(entry.peer.address)
        ]
        for live in self._channels.values():
            question = live.machine.question
            if question is not None:
                refusals.append(
                    self._send_quietly(live.peer, UpdateRej(question.id, question.version, "session closed"))
                )
        await asyncio.gather(*refusals)


def _opening_amount(text: str, currency: Currency) -> int:
    try:
        return parse_amount(text, currency.decimals, zero=True)
    except ValueError as error:
        raise InvalidArgument("amount", text, f"invalid amount: {error}") from error


class ClosedSession:
    """What is left of a session that was closed: every call is refused (API.md 2.2.2)."""

    def _refuse(self) -> NoReturn:
        raise FailedPrecondition(CLOSED_SESSION)

    def channel(self, channel_id: str) -> NoReturn:
        self._refuse()

    async def add_peer_id(self, peer: PeerIDInfo) -> NoReturn:
        self._refuse()

    async def get_peer_id(self, alias: str) -> NoReturn:
        self._refuse()

    async def open_channel(self, balances: BalInfo, challenge_duration: int) -> NoReturn:
        self._refuse()

    def channels(self) -> NoReturn:
        self._refuse()

    def subscribe_proposals(self) -> NoReturn:
        self._refuse()

    def unsubscribe_proposals(self) -> NoReturn:
        self._refuse()

    async def respond_proposal(self, proposal_id: str, *, accept: bool) -> NoReturn:
        self._refuse()

    async def deploy_asset_erc20(self, token: str) -> NoReturn:
        self._refuse()

    async def close(self, *, force: bool) -> NoReturn:
        self._refuse()

    def fundwatch(self) -> NoReturn:
        self._refuse()

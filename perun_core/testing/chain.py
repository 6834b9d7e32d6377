"""A chain in memory whose blocks, failures and other people's deeds the test decides; for tests of code that settles.

Time stands still until `mine`. A write takes effect in a block of its own, which is mined at once; reads see the latest
block. Contracts are reduced to what they promise (CHAIN.md 1.3, 1.4): deposits, disputes, an outcome, withdrawals.
"""

from __future__ import annotations

import asyncio
import copy
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable

from msgspec.structs import replace

from ..channel import Dispute, DisputePhase, Params, State, Transaction
from ..errors import InsufficientFunds, PerunError, StateUnavailable, TxReverted
from ..ports.chain import BlockEvents, BlockRef, ChannelEvent, Sent, TokenInfo
from ..profile import Profile
from ..values import Address, Bytes32, ChannelID, Sig, keccak256

START: int = 1_000
"""Block time of the first block, Unix seconds."""


class MemoryChain:
    """One ledger, seen from the account `account`.

    `failing[name]` holds the errors that the next calls of the method `name` raise, oldest first; `calls` lists the
    writes that were tried, by name. A write that fails this way has no effect.
    """

    def __init__(self, profile: Profile, account: Address, *, wei: int = 10**18, chain_id: int = 1337) -> None:
        self._profile = profile
        self._chain_id = chain_id
        self.account = account
        self.failing: dict[str, deque[PerunError]] = defaultdict(deque)
        self.calls: list[str] = []
        self.balances: dict[tuple[Address, Address | None], int] = defaultdict(int, {(account, None): wei})
        self._blocks: list[BlockRef] = []
        self._holdings: dict[tuple[Address, Bytes32], int] = defaultdict(int)
        self._disputes: dict[ChannelID, Dispute] = {}
        self._events: list[ChannelEvent] = []
        self._undone: list[ChannelEvent] = []
        self._told: dict[Bytes32, Transaction] = {}
        self.reorg_window = 64
        self.stale = ""
        self._waiting: set[asyncio.Future[None]] = set()
        self._tokens: dict[Address, Address | None] = {}
        self.mine()

    def seen_by(self, account: Address, *, wei: int = 10**18) -> MemoryChain:
        """The same ledger from another account, with failures of its own."""
        other = copy.copy(self)
        other.account, other.failing, other.calls = account, defaultdict(deque), []
        self.balances[(account, None)] = wei
        return other

    # ---- what the test does -----------------------------------------------------------------------------------------

    def mine(self, seconds: int = 1) -> BlockRef:
        """A new block, `seconds` after the last."""
        number = len(self._blocks)
        timestamp = self._blocks[-1].timestamp + seconds if self._blocks else START
        block = BlockRef(number, Bytes32(keccak256(number.to_bytes(8, "big"))), timestamp)
        self._blocks.append(block)
        for waiting in tuple(self._waiting):
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
        return block

    @property
    def now(self) -> int:
        """Time of the latest block."""
        return self._blocks[-1].timestamp

    def fail(self, method: str, *errors: PerunError) -> None:
        """Let the next calls of `method` raise `errors`, one each."""
        self.failing[method].extend(errors)

    def give_holdings(self, holder: Address, funding_id: Bytes32, amount: int) -> None:
        """Somebody else deposits."""
        self._holdings[(holder, funding_id)] += amount
        self.mine()

    def set_dispute(self, channel_id: ChannelID, dispute: Dispute) -> None:
        """Somebody else registered or concluded; the event tells of it."""
        self._store(channel_id, dispute)
        self.mine()

    def undo(self, channel_id: ChannelID, dispute: Dispute) -> None:
        """A reorg takes back the channel's newest event; the contract stores `dispute` afterwards."""
        gone = [event for event in self._events if event.channel_id == channel_id][-1]
        self._events.remove(gone)
        self._undone.append(gone)
        self._disputes[channel_id] = dispute
        self.mine()

    def tell(self, tx: Transaction) -> None:
        """The calldata of somebody's transaction tells this state."""
        assert tx.state is not None
        self._told[self._profile.state_hash(tx.state)] = tx

    # ---- ports.chain.Chain ------------------------------------------------------------------------------------------

    @property
    def chain_id(self) -> int:
        return self._chain_id

    async def head(self) -> BlockRef:
        await self._maybe_fail("head")
        return self._blocks[-1]

    async def blocks(self) -> AsyncIterator[BlockRef]:
        seen = -1
        while True:
            await self._maybe_fail("blocks")
            head = self._blocks[-1]
            if head.number > seen:
                seen = head.number
                yield head
            else:
                mined = asyncio.get_running_loop().create_future()
                self._waiting.add(mined)
                await mined

    async def balance(self, account: Address, token: Address | None = None) -> int:
        await self._maybe_fail("balance")
        return self.balances[(account, token)]

    async def token_info(self, token: Address) -> TokenInfo:
        await self._maybe_fail("token_info")
        return TokenInfo("PRN", 18)

    async def validate_adjudicator(self) -> str:
        await self._maybe_fail("validate_adjudicator")
        return ""

    async def validate_holder(self, name: str, holder: Address, token: Address | None) -> str:
        await self._maybe_fail("validate_holder")
        return ""

    async def holdings(self, holder: Address, funding_id: Bytes32) -> int:
        await self._maybe_fail("holdings")
        return self._holdings[(holder, funding_id)]

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        await self._maybe_fail("dispute")
        return self._disputes.get(channel_id, Dispute(registered=False))

    async def registered_state(self, params: Params, dispute: Dispute) -> Transaction:
        await self._maybe_fail("registered_state")
        if dispute.state_hash not in self._told:
            raise StateUnavailable("no transaction tells the registered state")
        return self._told[dispute.state_hash]

    async def events(self, cursor: int | None) -> AsyncIterator[BlockEvents]:
        after = self._blocks[-1].number if cursor is None else cursor
        told = len(self._undone)  # a reader hears only of what is undone after it began to read
        async for block in self.blocks():
            await self._maybe_fail("events")
            found = tuple(event for event in self._events if after < event.block_number <= block.number)
            undone, told = tuple(self._undone[told:]), len(self._undone)
            after = max(after, block.number)
            yield BlockEvents(block, after, found, undone)

    async def staleness(self) -> str:
        await self._maybe_fail("staleness")
        return self.stale

    async def quote_open(self, assets: tuple[tuple[Address | None, int], ...]) -> int:
        await self._maybe_fail("quote_open")
        return 1_000 * len(assets)

    async def deploy_holder(self, token: Address) -> Address:
        await self._write("deploy_holder", None)
        return Address(keccak256(bytes(token) + len(self._blocks).to_bytes(8, "big"))[12:])

    async def deposit(
        self,
        holder: Address,
        token: Address | None,
        funding_id: Bytes32,
        amount: int,
        *,
        sent: Sent | None = None,
        deadline: int | None = None,
    ) -> None:
        self._tokens[holder] = token
        key = (holder, funding_id)
        missing = amount - self._holdings[key]
        if missing <= 0:
            return
        if self.balances[(self.account, token)] < missing:
            raise InsufficientFunds(f"{missing} base units are needed")
        await self._write("deposit", sent)
        self.balances[(self.account, token)] -= missing
        self._holdings[key] += missing
        self.mine()

    async def register(
        self, params: Params, tx: Transaction, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Dispute:
        assert tx.state is not None
        channel_id, known = tx.state.id, await self.dispute(tx.state.id)
        if known.concluded or (known.registered and known.version >= tx.state.version):
            return known
        self._check_signed(params, tx)
        if known.registered and self.now > known.timeout:
            raise TxReverted("register", "refutation timeout passed")
        if known.registered and known.phase is not DisputePhase.DISPUTE:
            raise TxReverted("register", "incorrect phase")
        await self._write("register", sent)
        self.tell(tx)
        self.set_dispute(channel_id, self._registered(params, tx.state))
        return self._disputes[channel_id]

    async def progress(
        self,
        params: Params,
        old: State,
        new: State,
        actor: int,
        sig: Sig,
        *,
        sent: Sent | None = None,
        deadline: int | None = None,
    ) -> Dispute:
        known = await self.dispute(new.id)
        if known.concluded or (known.registered and known.version >= new.version):
            return known
        if params.app is None:
            raise TxReverted("progress", "must have app")
        if known.state_hash != self._profile.state_hash(old):
            raise TxReverted("progress", "wrong old state")
        if known.phase is DisputePhase.DISPUTE and self.now < known.timeout:
            raise TxReverted("progress", "timeout not passed")
        if known.phase is DisputePhase.FORCE_EXEC and self.now >= known.timeout:
            raise TxReverted("progress", "timeout passed")
        self._profile.verify(self._profile.state_hash(new), sig, params.parts[actor])
        await self._write("progress", sent)
        self.tell(Transaction(new, tuple(sig if part == actor else None for part in range(len(params.parts)))))
        self.set_dispute(new.id, replace(self._registered(params, new), phase=DisputePhase.FORCE_EXEC))
        return self._disputes[new.id]

    async def conclude(self, params: Params, state: State, *, sent: Sent | None = None) -> Dispute:
        known = await self.dispute(state.id)
        if known.concluded:
            return known
        if not known.registered or known.state_hash != self._profile.state_hash(state):
            raise TxReverted("conclude", "invalid channel state")
        if self.now < known.concludable_at:
            raise TxReverted("conclude", "timeout not passed yet")
        await self._write("conclude", sent)
        self._conclude(params, state, known)
        return self._disputes[state.id]

    async def conclude_final(
        self, params: Params, tx: Transaction, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Dispute:
        assert tx.state is not None
        known = await self.dispute(tx.state.id)
        if known.concluded:
            return known
        if not tx.state.is_final:
            raise TxReverted("concludeFinal", "state not final")
        self._check_signed(params, tx)
        await self._write("conclude_final", sent)
        self._conclude(params, tx.state, self._registered(params, tx.state))
        return self._disputes[tx.state.id]

    async def withdraw(
        self,
        holder: Address,
        channel_id: ChannelID,
        participant: Address,
        receiver: Address,
        authorise: Callable[[int], Awaitable[Sig]],
        *,
        sent: Sent | None = None,
    ) -> int:
        key = (holder, self._profile.funding_id(channel_id, participant))
        amount = self._holdings[key]
        if not amount:
            return 0
        if not (await self.dispute(channel_id)).concluded:
            raise TxReverted("withdraw", "channel not settled")
        digest = self._profile.withdrawal_hash(channel_id, participant, receiver, amount)
        self._profile.verify(digest, await authorise(amount), participant)
        await self._write("withdraw", sent)
        self._holdings[key] = 0
        self.balances[(receiver, self._tokens.get(holder))] += amount
        self.mine()
        return amount

    # ---- inside -----------------------------------------------------------------------------------------------------

    async def _maybe_fail(self, method: str) -> None:
        if self.failing[method]:
            raise self.failing[method].popleft()

    async def _write(self, method: str, sent: Sent | None) -> None:
        """Broadcast. A failure that a test chose comes after that, as those of a real chain may."""
        self.calls.append(method)
        if sent is not None:
            await sent("0x" + len(self.calls).to_bytes(32, "big").hex())
        await self._maybe_fail(method)

    def _check_signed(self, params: Params, tx: Transaction) -> None:
        assert tx.state is not None
        digest = self._profile.state_hash(tx.state)
        for part, sig in zip(params.parts, tx.sigs, strict=True):
            assert sig is not None
            self._profile.verify(digest, sig, part)

    def _registered(self, params: Params, state: State) -> Dispute:
        return Dispute(
            registered=True,
            timeout=self.now + params.challenge_duration,
            challenge_duration=params.challenge_duration,
            version=state.version,
            has_app=params.app is not None,
            state_hash=self._profile.state_hash(state),
        )

    def _conclude(self, params: Params, state: State, dispute: Dispute) -> None:
        """The outcome counts for an asset only when everything it distributes was deposited."""
        for asset, row in zip(state.allocation.assets, state.balances, strict=True):
            keys = [(asset.holder, self._profile.funding_id(state.id, part)) for part in params.parts]
            if sum(self._holdings[key] for key in keys) >= sum(row):
                for key, amount in zip(keys, row, strict=True):
                    self._holdings[key] = amount
        self.set_dispute(state.id, replace(dispute, phase=DisputePhase.CONCLUDED))

    def _store(self, channel_id: ChannelID, dispute: Dispute) -> None:
        self._disputes[channel_id] = dispute
        number = len(self._blocks)
        self._events.append(
            ChannelEvent(
                channel_id=channel_id,
                version=dispute.version,
                phase=dispute.phase,
                timeout=dispute.timeout,
                block_number=number,
                block_hash=Bytes32(keccak256(number.to_bytes(8, "big"))),
                log_index=len(self._events),
                tx_hash=Bytes32(keccak256(b"tx" + number.to_bytes(8, "big"))),
            )
        )

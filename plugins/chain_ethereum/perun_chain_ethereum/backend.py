"""The chain port on Ethereum: reads, and writes that may be repeated (CHAIN.md 1.3–1.5, 2.4, 3; API.md 2.1.5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from perun_core.channel import Params, State, Transaction
from perun_core.errors import (
    ChainError,
    ContractInvalid,
    InsufficientFunds,
    NotReachable,
    RuleViolated,
    StateUnavailable,
    TokenUnreadable,
    TxReverted,
    TxTimedOut,
    WrongChain,
)
from perun_core.ports.chain import (
    BlockEvents,
    BlockRef,
    ChainContext,
    ChannelEvent,
    Dispute,
    DisputePhase,
    Sent,
    TokenInfo,
)
from perun_core.values import Address, Bytes32, ChannelID, Sig, keccak256

from . import abi
from .artifacts import ContractKind, load
from .code_check import CodeInvalid, CodeMatch, identify
from .connection import Connection, Log
from .dispatch import GAS_MARGIN, GAS_SLACK, Request
from .events import LONGEST_RANGE, EventFeed, events_of
from .fees import GWEI, Limits
from .freshness import Freshness
from .heads import HeadFeed
from .opening import EthereumConfig
from .pursuit import RECEIPT_INTERVAL
from .slots import AccountBook
from .transactions import ROUNDS, AccountTransactions, Inclusion, Make

if TYPE_CHECKING:
    from web3.types import BlockIdentifier

PATIENCE: Final = 5
"""New heads that are waited for when the block a transaction is tried on is older than the one its caller looked at."""

HEAD_PATIENCE: Final = 15.0
"""Longest wait in seconds for one of them."""

ALLOWANCE_ATTEMPTS: Final = 8
"""How often an allowance is raised anew when another process that uses the account has used it up."""

WITHDRAWN: Final = Bytes32(keccak256(b"Withdrawn(bytes32,uint256,address)"))
"""Topic of a holder's event about a withdrawal (CHAIN.md 1.5)."""

GAS_DEPOSIT_ETH: Final = 55_000
GAS_DEPOSIT_TOKEN: Final = 160_000
"""Allowance and deposit together."""
GAS_REGISTER: Final = 130_000
GAS_CONCLUDE: Final = 165_000
GAS_PER_FURTHER_ASSET: Final = 60_000
GAS_WITHDRAW: Final = 80_000
"""Upper bounds of gas per operation of a two-party channel: the table of CHAIN.md 7, rounded up; withdrawing and
depositing per asset, registering and concluding once plus what every further asset adds."""

LONGEST_SYMBOL: Final = 32
HIGHEST_DECIMALS: Final = 77
"""Powers of ten that fit into 256 bits."""


class EthereumChain:
    """One Ethereum chain seen from one account; see `perun_core.ports.chain.Chain`."""

    def __init__(
        self,
        context: ChainContext,
        connection: Connection,
        heads: HeadFeed,
        config: EthereumConfig,
        freshness: Freshness,
    ) -> None:
        """`connection` is open; closing it and `heads` is the caller's business."""
        self._connection = connection
        self._heads = heads
        self._adjudicator = context.contracts.adjudicator
        self._profile = context.profile
        self._finality_depth = context.finality_depth
        self._tx_timeout = context.tx_timeout
        self._limits = Limits(soft=config.max_fee_gwei * GWEI, hard=config.hard_max_fee_gwei * GWEI)
        self._reserve_factor = config.reserve_factor
        self._reorg_window = config.reorg_window
        self._third_party = config.third_party_contracts
        self._freshness = freshness
        self._transactions: AccountTransactions | None = None
        if context.signer is not None and context.store is not None:
            self._transactions = AccountTransactions(
                connection,
                heads,
                signer=context.signer,
                store=context.store,
                lock=context.account_lock or asyncio.Lock(),
                book=AccountBook.of(context.account_book),
                timeout=context.tx_timeout,
                finality_depth=context.finality_depth,
                limits=self._limits,
                reorg_window=config.reorg_window,
            )

    async def start(self) -> None:
        """Take up the transactions that an earlier run left open. Raises: StoreError, ChainError."""
        if self._transactions is not None:
            await self._transactions.start()

    async def close(self) -> None:
        """Stop pursuing transactions; they stay recorded. Idempotent."""
        if self._transactions is not None:
            await self._transactions.close()

    @property
    def chain_id(self) -> int:
        """See `Chain.chain_id`."""
        return self._connection.chain_id

    @property
    def reorg_window(self) -> int:
        """See `Chain.reorg_window`."""
        return self._reorg_window

    # ---------------------------------------------------------------------------------------------------------- reads

    async def head(self) -> BlockRef:
        """See `Chain.head`."""
        return (await self._connection.head()).ref

    async def staleness(self) -> str:
        """See `Chain.staleness`."""
        return await self._freshness.problem(self._heads.latest or await self._connection.head())

    async def blocks(self) -> AsyncIterator[BlockRef]:
        """See `Chain.blocks`."""
        async for head in self._heads.follow():
            yield head.ref

    async def balance(self, account: Address, token: Address | None = None) -> int:
        """See `Chain.balance`."""
        if token is None:
            return await self._connection.balance(account)
        return abi.uint(await self._connection.call(token, abi.call_balance_of(account)))

    async def token_info(self, token: Address) -> TokenInfo:
        """See `Chain.token_info`. A symbol is 1 to 32 printable characters, decimals are 0 to 77."""
        try:
            symbol = abi.text(await self._connection.call(token, abi.call_symbol()))
            decimals = abi.uint(await self._connection.call(token, abi.call_decimals()))
        except (NotReachable, WrongChain):
            raise
        except ChainError as error:
            raise TokenUnreadable(f"reading symbol and decimals of {token.checksum}: {error}") from error
        if not 1 <= len(symbol) <= LONGEST_SYMBOL or not symbol.isprintable():
            raise TokenUnreadable(f"token {token.checksum} has no usable symbol")
        if decimals > HIGHEST_DECIMALS:
            raise TokenUnreadable(f"token {token.checksum} has {decimals} decimals")
        return TokenInfo(symbol=symbol, decimals=decimals)

    async def validate_adjudicator(self) -> str:
        """See `Chain.validate_adjudicator`."""
        match = await self._identified("adjudicator", ContractKind.ADJUDICATOR, self._adjudicator, None)
        return self._warning("adjudicator", self._adjudicator, match)

    async def validate_holder(self, name: str, holder: Address, token: Address | None) -> str:
        """See `Chain.validate_holder`."""
        kind = ContractKind.ETH_HOLDER if token is None else ContractKind.ERC20_HOLDER
        match = await self._identified(name, kind, holder, token)
        adjudicator = abi.address(await self._connection.call(holder, abi.call_adjudicator()))
        if adjudicator != self._adjudicator:
            raise ContractInvalid(name, holder.checksum, f"made for adjudicator {adjudicator.checksum}")
        if token is not None:
            actual = abi.address(await self._connection.call(holder, abi.call_token()))
            if actual != token:
                raise ContractInvalid(name, holder.checksum, f"made for token {actual.checksum}")
        return self._warning(name, holder, match)

    async def holdings(self, holder: Address, funding_id: Bytes32) -> int:
        """See `Chain.holdings`: at the configured depth, so that a deposit counts only when it stays."""
        return await self._holdings(holder, funding_id, await self._final_block())

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        """See `Chain.dispute`: at the latest block, so that a refutation is never late by the depth."""
        return await self._dispute(channel_id, "latest")

    async def registered_state(self, params: Params, dispute: Dispute) -> Transaction:
        """See `Chain.registered_state`. Searched from the newest block backwards, in ranges that the node allows."""
        channel_id = self._profile.channel_id(params)
        foreign: set[str] = set()
        async for event in self._events_backwards(channel_id):
            if event.version != dispute.version or event.phase is DisputePhase.CONCLUDED:
                continue
            sent = await self._connection.transaction(event.tx_hash)
            found = None
            if sent is not None and sent.to == self._adjudicator:
                found = abi.told_state(sent.data, params, channel_id)
            if found is None or found.state is None or self._profile.state_hash(found.state) != dispute.state_hash:
                foreign.add("0x" + event.tx_hash.hex())
                continue
            self._check_signed(params, found, dispute.state_hash)
            return found
        told = f"not by {', '.join(sorted(foreign))}" if foreign else "its event cannot be found"
        raise StateUnavailable(
            f"version {dispute.version} of channel {channel_id.hex()} is registered, and no transaction tells its "
            f"state: {told}"
        )

    def _check_signed(self, params: Params, tx: Transaction, state_hash: Bytes32) -> None:
        """Raises: StateUnavailable when a signature is not its participant's, which the contract does not accept."""
        try:
            for part, sig in zip(params.parts, tx.sigs, strict=True):
                if sig is not None:
                    self._profile.verify(state_hash, sig, part)
        except RuleViolated as error:
            raise StateUnavailable(f"the registered state is not signed as it must be: {error}") from error

    async def _events_backwards(self, channel_id: ChannelID) -> AsyncIterator[ChannelEvent]:
        """All events of one channel, newest first. Raises: ChainError."""
        last, span = (await self._connection.head()).ref.number, LONGEST_RANGE
        while last >= 0:
            first = max(last - span + 1, 0)
            try:
                logs = await self._connection.logs(
                    self._adjudicator, abi.CHANNEL_UPDATE, first, last, about=Bytes32(channel_id)
                )
            except (NotReachable, WrongChain):
                raise
            except ChainError:
                if first == last:
                    raise
                span = (last - first + 1) // 2
                continue
            for event in reversed(events_of(logs)):
                yield event
            last, span = first - 1, min(2 * span, LONGEST_RANGE)

    def events(self, cursor: int | None) -> AsyncIterator[BlockEvents]:
        """See `Chain.events`."""
        feed = EventFeed(
            self._connection, self._heads, self._adjudicator, finality_depth=self._finality_depth, cursor=cursor
        )
        return feed.follow()

    async def quote_open(self, assets: tuple[tuple[Address | None, int], ...]) -> int:
        """See `Chain.quote_open`.

        The sum over the operations of gas times the maximum fee offered now, which is twice the base fee and the tip.
        What comes later (register, conclude, withdraw) counts `reserve_factor` times, for a base fee that has risen
        until then. One slack is added, because a node demands the whole gas limit when a transaction is sent.
        """
        stale = await self.staleness()
        if stale:
            raise NotReachable(stale)
        now, later = 0, GAS_REGISTER + GAS_CONCLUDE + GAS_PER_FURTHER_ASSET * (len(assets) - 1)
        numerator, denominator = GAS_MARGIN
        later += later * (numerator - denominator) // denominator + GAS_SLACK
        for token, deposit in assets:
            later += GAS_WITHDRAW
            if deposit > 0:
                now += GAS_DEPOSIT_ETH if token is None else GAS_DEPOSIT_TOKEN
        return (now + self._reserve_factor * later) * (await self._sender.fees()).max_fee

    # --------------------------------------------------------------------------------------------------------- writes

    async def deploy_holder(self, token: Address) -> Address:
        """See `Chain.deploy_holder`. A deployment that an earlier call did not see mined is taken over."""
        sender = self._sender
        goal = f"deploy {self._adjudicator.hex()} {token.hex()}"
        data = load(ContractKind.ERC20_HOLDER).creation_code + abi.holder_arguments(self._adjudicator, token)
        request = Request("deploy ERC20AssetHolder", None, data)
        done = await sender.take_over(goal) or await sender.bring_about(goal, _always(request))
        if done is None or done.contract is None:
            raise ChainError(f"{request.tx_type}: no contract was created")
        return done.contract

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
        """See `Chain.deposit`."""
        goal = f"fund {holder.hex()} {funding_id.hex()}"

        async def funded(block: BlockIdentifier) -> bool:
            return await self._holdings(holder, funding_id, block) >= amount

        async def missing() -> Request | None:
            lacking = amount - await self._holdings(holder, funding_id, "latest")
            if lacking <= 0:
                return None
            data = abi.call_deposit(funding_id, lacking)
            if token is None:
                return Request("fund", holder, data, lacking)
            return Request("fund", holder, data, prepare=partial(self._allow, token, holder, lacking, deadline))

        if token is None:
            await self._until_final("fund", goal, missing, funded, sent, deadline)
            return
        # Deposits of one token take turns, because they use up one allowance.
        async with self._sender.pursuing(f"allowance {token.hex()} {holder.hex()}"):
            for attempt in range(ALLOWANCE_ATTEMPTS):
                try:
                    await self._until_final("fund", goal, missing, funded, sent, deadline)
                    return
                except TxReverted:
                    lacking = amount - await self._holdings(holder, funding_id, "latest")
                    if attempt + 1 == ALLOWANCE_ATTEMPTS or await self._allowance(token, holder) >= lacking:
                        raise

    async def register(
        self, params: Params, tx: Transaction, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Dispute:
        """See `Chain.register`."""
        state = tx.state
        if state is None:
            raise ChainError("only a fully signed state can be brought to the chain")
        version = state.version

        def reached(dispute: Dispute) -> bool:
            return dispute.registered and (dispute.concluded or dispute.version >= version)

        request = Request("register", self._adjudicator, abi.call_register(params, tx))
        return await self._adjudicated(request, state.id, f"v{version}", reached, sent, deadline)

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
        """See `Chain.progress`. Waits some blocks where the node's estimates lag behind the end of the refutation."""

        def reached(dispute: Dispute) -> bool:
            return dispute.registered and (dispute.concluded or dispute.version >= new.version)

        request = Request("progress", self._adjudicator, abi.call_progress(params, old, new, actor, sig))
        work = partial(self._adjudicated, request, new.id, f"v{new.version}", reached, sent, deadline)
        return await self._not_too_early(work, "timeout not passed")

    async def conclude(self, params: Params, state: State, *, sent: Sent | None = None) -> Dispute:
        """See `Chain.conclude`. Waits some blocks where the node's estimates lag behind the concludable time."""
        request = Request("conclude", self._adjudicator, abi.call_conclude(params, state))
        return await self._not_too_early(
            partial(self._adjudicated, request, state.id, "", _is_concluded, sent), "timeout not passed yet"
        )

    async def conclude_final(
        self, params: Params, tx: Transaction, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Dispute:
        """See `Chain.conclude_final`."""
        if tx.state is None:
            raise ChainError("only a fully signed state can be brought to the chain")
        request = Request("concludeFinal", self._adjudicator, abi.call_conclude_final(params, tx))
        return await self._adjudicated(request, tx.state.id, "", _is_concluded, sent, deadline)

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
        """See `Chain.withdraw`. What an earlier call sent and did not see mined counts as withdrawn by this one."""
        funding_id = self._profile.funding_id(channel_id, participant)
        goal = f"withdraw {holder.hex()} {funding_id.hex()}"
        since: int | None = None

        async def emptied(block: BlockIdentifier) -> bool:
            return await self._holdings(holder, funding_id, block) == 0

        async def remaining() -> Request | None:
            nonlocal since
            amount = await self._holdings(holder, funding_id, "latest")
            if amount == 0:
                return None
            if since is None:
                since = (await self._connection.head()).ref.number
            data = abi.call_withdraw(channel_id, participant, receiver, amount, await authorise(amount))
            return Request("withdraw", holder, data)

        paid = 0
        for _ in range(ROUNDS):
            done = await self._until_final("withdraw", goal, remaining, emptied, sent)
            if done is None:
                break
            paid += _paid_out(done.logs, holder, funding_id)
            # When a reorg undoes a conclusion and brings it back, the amount may be the deposit from in between.
            if await emptied("latest"):
                return paid
        else:
            raise TxTimedOut("withdraw", "")
        if since is None or paid:
            return paid
        # Somebody else sent our authorization, which anybody may once it is public; the receiver stays the same.
        head = await self._connection.head()
        logs = await self._connection.logs(holder, WITHDRAWN, since + 1, head.ref.number, about=funding_id)
        return sum(abi.uint(bytes(log["data"])[:32]) for log in logs)

    # --------------------------------------------------------------------------------------------------------- inside

    @property
    def _sender(self) -> AccountTransactions:
        if self._transactions is None:
            raise ChainError("this chain was opened without an account, for reading only")
        return self._transactions

    async def _final_block(self) -> BlockIdentifier:
        """The last block whose content counts at the configured depth."""
        if self._finality_depth == 1:
            return "latest"
        head = await self._connection.head()
        return max(head.ref.number - self._finality_depth + 1, 0)

    async def _holdings(self, holder: Address, funding_id: Bytes32, block: BlockIdentifier) -> int:
        return abi.uint(await self._connection.call(holder, abi.call_holdings(funding_id), block=block))

    async def _dispute(self, channel_id: ChannelID, block: BlockIdentifier) -> Dispute:
        return abi.dispute(await self._connection.call(self._adjudicator, abi.call_disputes(channel_id), block=block))

    async def _identified(self, name: str, kind: ContractKind, address: Address, token: Address | None) -> CodeMatch:
        adjudicator = None if kind is ContractKind.ADJUDICATOR else self._adjudicator
        try:
            match = identify(kind, await self._connection.code(address), adjudicator=adjudicator, token=token)
        except CodeInvalid as error:
            raise ContractInvalid(name, address.checksum, str(error)) from error
        if match.entry.profile != "P1":
            raise ContractInvalid(name, address.checksum, f"contracts of profile {match.entry.profile} are not spoken")
        if match.entry.unsafe and self._third_party == "refuse":
            problem = f"contracts of the set {match.entry.set_name} are refused by third_party_contracts"
            raise ContractInvalid(name, address.checksum, problem)
        return match

    def _warning(self, name: str, address: Address, match: CodeMatch) -> str:
        if not match.entry.unsafe or self._third_party == "accept":
            return ""
        return (
            f"the {name} contract at {address.checksum} belongs to the set {match.entry.set_name}, which does not give "
            "the guarantees of this distribution's own contracts: do not use it for anything of value"
        )

    async def _not_too_early(self, work: Callable[[], Awaitable[Dispute]], reason: str) -> Dispute:
        """`work`, tried again with the next blocks while the contract gives `reason`. Raises: ChainError."""
        for _ in range(PATIENCE):
            try:
                return await work()
            except TxReverted as error:
                if error.reason != reason:
                    raise
            await self._heads.wait(HEAD_PATIENCE)
        return await work()

    async def _adjudicated(
        self,
        request: Request,
        channel_id: ChannelID,
        detail: str,
        reached: Callable[[Dispute], bool],
        sent: Sent | None,
        deadline: int | None = None,
    ) -> Dispute:
        """Send `request` unless its goal is `reached`; the dispute at the configured depth.

        A failure counts only when nobody else reached the goal either.
        """

        async def is_reached(block: BlockIdentifier) -> bool:
            return reached(await self._dispute(channel_id, block))

        async def missing() -> Request | None:
            return None if await is_reached("latest") else request

        goal = f"{request.tx_type} {channel_id.hex()} {detail}".rstrip()
        await self._until_final(request.tx_type, goal, missing, is_reached, sent, deadline)
        return await self._dispute(channel_id, await self._final_block())

    async def _until_final(
        self,
        tx_type: str,
        goal: str,
        missing: Make,
        reached: Callable[[BlockIdentifier], Awaitable[bool]],
        sent: Sent | None,
        deadline: int | None = None,
    ) -> Inclusion | None:
        """Bring `goal` about until it is `reached` at the configured depth, whoever did it; our transaction, if any.

        What a reorg undoes before it was that deep is brought about again. Raises: see `bring_about`.
        """
        for _ in range(ROUNDS):
            done = await self._sender.bring_about(goal, missing, sent=sent, deadline=deadline)
            if done is not None or await self._becomes_final(tx_type, reached):
                return done
        raise TxTimedOut(tx_type, "")

    async def _becomes_final(self, tx_type: str, reached: Callable[[BlockIdentifier], Awaitable[bool]]) -> bool:
        """Wait until what is reached at the latest block is reached at the configured depth; False if it is undone.

        Raises: TxTimedOut without a hash, NotReachable.
        """
        if self._finality_depth == 1:
            return True
        try:
            async with asyncio.timeout(self._tx_timeout):
                while not await reached(await self._final_block()):
                    if not await reached("latest"):
                        return False
                    await self._heads.wait(RECEIPT_INTERVAL)
                return True
        except TimeoutError as error:
            raise TxTimedOut(tx_type, "") from error

    async def _allow(self, token: Address, holder: Address, missing: int, deadline: int | None) -> None:
        """Raise the holder's allowance when it is too small; what is left over of an earlier one is used.

        Some tokens refuse to change an allowance that is not zero; for them it is set to zero first.
        Raises: InsufficientFunds, TxReverted.
        """
        account = self._sender.account
        balance = await self.balance(account, token)
        if balance < missing:
            raise InsufficientFunds(f"{account.checksum} has {balance} of token {token.checksum}, {missing} are needed")
        try:
            await self._approve(token, holder, missing, deadline)
        except TxReverted:
            if await self._allowance(token, holder) == 0:
                raise
            await self._sender.bring_about(
                f"approve {token.hex()} {holder.hex()}",
                self._unless_allowed(token, holder, lambda allowance: allowance == 0, 0),
                deadline=deadline,
            )
            await self._approve(token, holder, missing, deadline)

    async def _approve(self, token: Address, holder: Address, missing: int, deadline: int | None) -> None:
        goal = f"approve {token.hex()} {holder.hex()}"
        enough = self._unless_allowed(token, holder, lambda allowance: allowance >= missing, missing)
        await self._sender.bring_about(goal, enough, deadline=deadline)

    def _unless_allowed(self, token: Address, holder: Address, fits: Callable[[int], bool], amount: int) -> Make:
        async def make() -> Request | None:
            if fits(await self._allowance(token, holder)):
                return None
            return Request("fund", token, abi.call_approve(holder, amount))

        return make

    async def _allowance(self, token: Address, holder: Address) -> int:
        data = abi.call_allowance(self._sender.account, holder)
        return abi.uint(await self._connection.call(token, data))


def _is_concluded(dispute: Dispute) -> bool:
    return dispute.concluded


def _always(request: Request) -> Make:
    async def make() -> Request:
        return request

    return make


def _paid_out(logs: tuple[Log, ...], holder: Address, funding_id: Bytes32) -> int:
    """What the holder says in a transaction's logs about withdrawals of `funding_id`."""
    told = (log for log in logs if log.contract == holder and log.topics == (WITHDRAWN, bytes(funding_id)))
    return sum(abi.uint(log.data[:32]) for log in told)

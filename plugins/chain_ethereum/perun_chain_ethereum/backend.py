"""The chain port on Ethereum: reads, and writes that may be repeated (CHAIN.md 1.3–1.5, 2.4, 3; API.md 2.1.5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

from perun_core.channel import Params, State, Transaction
from perun_core.errors import (
    ChainError,
    ContractInvalid,
    InsufficientFunds,
    NotReachable,
    TokenUnreadable,
    TxReverted,
    TxTimedOut,
    WrongChain,
)
from perun_core.ports.chain import BlockEvents, BlockRef, ChainContext, Dispute, DisputePhase, Sent, TokenInfo
from perun_core.values import Address, Bytes32, ChannelID, Sig

from . import abi
from .artifacts import ContractKind, load
from .code_check import CodeInvalid, CodeMatch, identify
from .connection import Connection
from .events import EventFeed
from .heads import HeadFeed
from .transactions import RECEIPT_INTERVAL, AccountTransactions, Request

if TYPE_CHECKING:
    from web3.types import BlockIdentifier

TOO_EARLY: Final = "timeout not passed yet"
"""What `conclude` says when the block it is tried on is older than the one its caller looked at."""

PATIENCE: Final = 5
"""New heads that `conclude` waits for until the node's estimates have reached the concludable time."""

HEAD_PATIENCE: Final = 15.0
"""Longest wait in seconds for one of them."""

ALLOWANCE_ATTEMPTS: Final = 8
"""How often an allowance is raised anew when another session of the account has used it up."""

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

    def __init__(self, context: ChainContext, connection: Connection, heads: HeadFeed) -> None:
        """`connection` is open; closing it and `heads` is the caller's business."""
        self._connection = connection
        self._heads = heads
        self._adjudicator = context.contracts.adjudicator
        self._profile = context.profile
        self._finality_depth = context.finality_depth
        self._tx_timeout = context.tx_timeout
        self._transactions: AccountTransactions | None = None
        if context.signer is not None and context.store is not None:
            self._transactions = AccountTransactions(
                connection,
                heads,
                signer=context.signer,
                store=context.store,
                lock=context.account_lock or asyncio.Lock(),
                timeout=context.tx_timeout,
                finality_depth=context.finality_depth,
            )

    @property
    def chain_id(self) -> int:
        """See `Chain.chain_id`."""
        return self._connection.chain_id

    # ---------------------------------------------------------------------------------------------------------- reads

    async def head(self) -> BlockRef:
        """See `Chain.head`."""
        return (await self._connection.head()).ref

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
        return _warning("adjudicator", self._adjudicator, match)

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
        return _warning(name, holder, match)

    async def holdings(self, holder: Address, funding_id: Bytes32) -> int:
        """See `Chain.holdings`."""
        return await self._holdings(holder, funding_id, await self._final_block())

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        """See `Chain.dispute`."""
        return await self._dispute(channel_id, "latest")

    def events(self, cursor: int | None) -> AsyncIterator[BlockEvents]:
        """See `Chain.events`."""
        feed = EventFeed(
            self._connection, self._heads, self._adjudicator, finality_depth=self._finality_depth, cursor=cursor
        )
        return feed.follow()

    async def quote_open(self, assets: tuple[tuple[Address | None, int], ...]) -> int:
        """See `Chain.quote_open`: the dearest way, which is a dispute, at the fees offered now."""
        gas = GAS_REGISTER + GAS_CONCLUDE + GAS_PER_FURTHER_ASSET * (len(assets) - 1)
        for token, deposit in assets:
            gas += GAS_WITHDRAW
            if deposit > 0:
                gas += GAS_DEPOSIT_ETH if token is None else GAS_DEPOSIT_TOKEN
        return gas * (await self._sender.fees()).max_fee

    # --------------------------------------------------------------------------------------------------------- writes

    async def deploy_holder(self, token: Address) -> Address:
        """See `Chain.deploy_holder`. A deployment that an earlier call did not see mined is taken over."""
        sender = self._sender
        data = load(ContractKind.ERC20_HOLDER).creation_code + abi.holder_arguments(self._adjudicator, token)
        request = Request(f"deploy {self._adjudicator.hex()} {token.hex()}", "deploy ERC20AssetHolder", None, data)
        async with sender.pursuing(request.goal):
            done = await sender.settle(request.goal) or await sender.execute(request)
        if done.contract is None:
            raise ChainError(f"{request.tx_type}: transaction {done.tx_id} created no contract")
        return done.contract

    async def deposit(
        self, holder: Address, token: Address | None, funding_id: Bytes32, amount: int, *, sent: Sent | None = None
    ) -> None:
        """See `Chain.deposit`."""
        sender = self._sender
        goal = f"fund {holder.hex()} {funding_id.hex()}"

        async def funded(block: BlockIdentifier) -> bool:
            return await self._holdings(holder, funding_id, block) >= amount

        async with sender.pursuing(goal):
            await sender.settle(goal, sent=sent)
            missing = amount - await self._holdings(holder, funding_id, "latest")
            if missing > 0:
                value = missing if token is None else 0
                request = Request(goal, "fund", holder, abi.call_deposit(funding_id, missing), value)
                if token is None:
                    await sender.execute(request, sent=sent)
                else:
                    await self._deposit_token(request, token, missing, sent)
            await self._final("fund", funded)

    async def register(self, params: Params, tx: Transaction, *, sent: Sent | None = None) -> Dispute:
        """See `Chain.register`."""
        state = tx.state
        if state is None:
            raise ChainError("only a fully signed state can be brought to the chain")
        version = state.version

        def reached(dispute: Dispute) -> bool:
            concluded = dispute.phase is DisputePhase.CONCLUDED
            return dispute.registered and (concluded or dispute.version >= version)

        request = self._adjudicate("register", state.id, abi.call_register(params, tx), f"v{version}")
        return await self._bring_about(request, state.id, reached, sent)

    async def conclude(self, params: Params, state: State, *, sent: Sent | None = None) -> Dispute:
        """See `Chain.conclude`. Waits some blocks where the node's estimates lag behind the concludable time."""
        request = self._adjudicate("conclude", state.id, abi.call_conclude(params, state))
        for _ in range(PATIENCE):
            try:
                return await self._bring_about(request, state.id, _is_concluded, sent)
            except TxReverted as error:
                if TOO_EARLY not in error.reason:
                    raise
            await self._heads.wait(HEAD_PATIENCE)
        return await self._bring_about(request, state.id, _is_concluded, sent)

    async def conclude_final(self, params: Params, tx: Transaction, *, sent: Sent | None = None) -> Dispute:
        """See `Chain.conclude_final`."""
        if tx.state is None:
            raise ChainError("only a fully signed state can be brought to the chain")
        request = self._adjudicate("concludeFinal", tx.state.id, abi.call_conclude_final(params, tx))
        return await self._bring_about(request, tx.state.id, _is_concluded, sent)

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
        sender = self._sender
        funding_id = self._profile.funding_id(channel_id, participant)
        goal = f"withdraw {holder.hex()} {funding_id.hex()}"

        async def emptied(block: BlockIdentifier) -> bool:
            return await self._holdings(holder, funding_id, block) == 0

        async with sender.pursuing(goal):
            held = await self._holdings(holder, funding_id, "latest")
            await sender.settle(goal, sent=sent)
            amount = await self._holdings(holder, funding_id, "latest")
            if amount > 0:
                data = abi.call_withdraw(channel_id, participant, receiver, amount, await authorise(amount))
                try:
                    await sender.execute(Request(goal, "withdraw", holder, data), sent=sent)
                except TxReverted:
                    # Anybody may send the authorization once it is public; the receiver stays the same.
                    if not await emptied("latest"):
                        raise
            await self._final("withdraw", emptied)
            return max(held, amount)

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
        return match

    def _adjudicate(self, tx_type: str, channel_id: ChannelID, data: bytes, detail: str = "") -> Request:
        return Request(f"{tx_type} {channel_id.hex()} {detail}".rstrip(), tx_type, self._adjudicator, data)

    async def _bring_about(
        self, request: Request, channel_id: ChannelID, reached: Callable[[Dispute], bool], sent: Sent | None
    ) -> Dispute:
        """Send `request` unless its goal is `reached`; a failure counts only when nobody else reached it either."""
        sender = self._sender

        async def is_reached(block: BlockIdentifier) -> bool:
            return reached(await self._dispute(channel_id, block))

        async with sender.pursuing(request.goal):
            await sender.settle(request.goal, sent=sent)
            if not await is_reached("latest"):
                try:
                    await sender.execute(request, sent=sent)
                except TxReverted:
                    if not await is_reached("latest"):
                        raise
            await self._final(request.tx_type, is_reached)
        return await self._dispute(channel_id, "latest")

    async def _final(self, tx_type: str, reached: Callable[[BlockIdentifier], Awaitable[bool]]) -> None:
        """Wait until what is reached at the latest block is reached at the configured depth, whoever brought it about.

        Raises: TxTimedOut without a hash, NotReachable.
        """
        if self._finality_depth == 1:
            return
        try:
            async with asyncio.timeout(self._tx_timeout):
                while not await reached(await self._final_block()):
                    await self._heads.wait(RECEIPT_INTERVAL)
        except TimeoutError as error:
            raise TxTimedOut(tx_type, "") from error

    async def _deposit_token(self, deposit: Request, token: Address, missing: int, sent: Sent | None) -> None:
        """Raise the holder's allowance when it is too small, then deposit.

        Sessions that share the account share the allowance too. Within one session deposits take turns; against
        others the loser of a race raises the allowance again, and in every round somebody wins.
        """
        sender, holder = self._sender, deposit.to
        assert holder is not None
        account = sender.account
        balance = await self.balance(account, token)
        if balance < missing:
            raise InsufficientFunds(f"{account.checksum} has {balance} of token {token.checksum}, {missing} are needed")
        approval = Request(
            f"approve {token.hex()} {holder.hex()}", deposit.tx_type, token, abi.call_approve(holder, missing)
        )
        async with sender.pursuing(approval.goal):
            for attempt in range(ALLOWANCE_ATTEMPTS):
                await sender.settle(approval.goal)
                if await self._allowance(token, holder) < missing:
                    await sender.execute(approval)
                try:
                    await sender.execute(deposit, sent=sent)
                    return
                except TxReverted:
                    last_attempt = attempt + 1 == ALLOWANCE_ATTEMPTS
                    if last_attempt or await self._allowance(token, holder) >= missing:
                        raise

    async def _allowance(self, token: Address, holder: Address) -> int:
        data = abi.call_allowance(self._sender.account, holder)
        return abi.uint(await self._connection.call(token, data))


def _is_concluded(dispute: Dispute) -> bool:
    return dispute.registered and dispute.phase is DisputePhase.CONCLUDED


def _warning(name: str, address: Address, match: CodeMatch) -> str:
    if not match.entry.unsafe:
        return ""
    return (
        f"the {name} contract at {address.checksum} belongs to the set {match.entry.set_name}, which does not give the "
        "guarantees of this distribution's own contracts: do not use it for anything of value"
    )

"""Making single transactions of one account: gas, fees, balance, signature, broadcasting, and what refusals mean.

Nothing here knows of goals, of nonces that are taken, or of what becomes of a transaction afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from perun_core.errors import ChainError, InsufficientFunds, TxReverted
from perun_core.ports.chain import TxSigner
from perun_core.ports.keymgr import UnsignedTx
from perun_core.values import Address, keccak256

from . import fees
from .connection import CallReverted, Connection, Head, NodeRefused
from .fees import Limits, Offer, Urgency
from .heads import HeadFeed, PerHead
from .slots import AccountBook, Attempt, Slot

GAS_MARGIN: Final = (5, 4)
GAS_SLACK: Final = 40_000
"""The gas limit is the estimate times the fraction plus the slack: another transaction that is mined in between may
empty two storage words (an allowance, a balance), and writing an empty one costs 17,100 gas more (EIP-2200, 2929)."""

GAS_CAP: Final = 2**24
"""Highest gas limit of a transaction (EIP-7825)."""

GAS_TRANSFER: Final = 21_000
"""What an empty transfer uses."""

FEE_INTERVAL: Final = 1.0
"""Longest pause in seconds between two looks at a base fee that is too high."""


class Request(Struct, frozen=True):
    """A transaction to be made. `value` is wei; `tx_type` a word of API.md 2.1.2; `to` None creates a contract."""

    tx_type: str
    to: Address | None
    data: bytes
    value: int = 0
    prepare: Callable[[], Awaitable[None]] | None = None
    """Reaches what must be there before the transaction can succeed; called only when it is about to be sent."""


class Quote(Struct, frozen=True):
    """An offer, and the head it was made for."""

    offer: Offer
    head: Head


class Purse(Struct):
    """A balance in wei, and by nonce the most that each transaction may cost that was under way when it was asked, or
    was sent since."""

    balance: int
    costs: dict[int, int]


class Dispatch:
    """Makes and sends the transactions of `signer`'s account. Calls may run concurrently."""

    def __init__(
        self,
        connection: Connection,
        heads: HeadFeed,
        *,
        signer: TxSigner,
        book: AccountBook,
        limits: Limits,
        timeout: float,
    ) -> None:
        """`timeout` is how many seconds a new transaction waits for fees within the limits."""
        self._connection = connection
        self._heads = heads
        self._signer = signer
        self._book = book
        self._limits = limits
        self._timeout = timeout
        self._purse: Purse | None = None
        self._purses = PerHead(heads, self._read_purse)
        self._tips = PerHead(heads, connection.tip)

    @property
    def account(self) -> Address:
        """The account that signs and pays."""
        return self._signer.address

    async def fees(self) -> Offer:
        """What a transaction without a deadline that is sent now offers, without the operator's limits.

        Raises: ChainError when the chain has no EIP-1559 fees.
        """
        _, base_fee = await self._head()
        return fees.offer(base_fee=base_fee, tip=await self.tip(), urgency=Urgency.CALM)

    async def tip(self) -> int:
        """Wei per gas that the node suggests for the next block."""
        return await self._tips.get()

    async def gas(self, request: Request) -> int:
        """The gas limit. Raises: TxReverted, InsufficientFunds, ChainError when no block could hold it."""
        if request.value > 0 and (await self.purse()).balance < request.value:
            await self.check_balance(request.value)
        try:
            estimate = await self._connection.estimate_gas(
                request.to, request.data, sender=self.account, value=request.value
            )
        except CallReverted as error:
            raise TxReverted(request.tx_type, error.reason) from error
        except NodeRefused as error:
            if "insufficient funds" in error.message.lower():
                raise InsufficientFunds(f"{self.account.checksum} cannot pay: {error.message}") from error
            raise
        if estimate > GAS_CAP:
            raise ChainError(f"{request.tx_type}: a transaction may not use {estimate} gas")
        numerator, denominator = GAS_MARGIN
        return min(estimate * numerator // denominator + GAS_SLACK, GAS_CAP)

    async def check_balance(self, needed: int, *, with_slots: bool = False) -> None:
        """`with_slots`: beside everything that is on its way. Raises: InsufficientFunds."""
        reserved = 0
        if with_slots:
            # What is mined by now is no longer to be paid.
            mined = await self._connection.nonce(self.account, "latest")
            reserved = sum(slot.cost for slot in self._book.slots() if slot.nonce >= mined)
        balance = await self._connection.balance(self.account)
        if balance < needed + reserved:
            raise InsufficientFunds(f"{self.account.checksum} has {balance} wei, but {needed + reserved} are needed")

    async def purse(self) -> Purse:
        """What the account has, and what of it may be spoken for."""
        return await self._purses.get()

    async def _read_purse(self) -> Purse:
        # Whatever is sent while the question is under way is entered here too.
        purse = self._purse = Purse(0, self._costs())
        purse.balance = await self._connection.balance(self.account)
        return purse

    async def check_purse(self, purse: Purse, needed: int) -> None:
        """Whether `needed` wei can be paid beside everything on its way; asks again only if `purse` leaves a doubt.

        What was under way when the balance was read, or since, counts whether or not it was mined by then.
        Raises: InsufficientFunds.
        """
        purse.costs.update(self._costs())
        if purse.balance < needed + sum(purse.costs.values()):
            await self.check_balance(needed, with_slots=True)

    def _costs(self) -> dict[int, int]:
        return {slot.nonce: slot.cost for slot in self._book.slots()}

    async def quote(self, tx_type: str, deadline: int | None, boost: int) -> Quote:
        """An offer within the limits; waits for the base fee to fall where they do not allow one.

        Raises: ChainError when it does not fall in time.
        """
        tip = await self.tip()
        made: int | None = None
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    head, base_fee = await self._head()
                    now = head.ref.timestamp
                    made = now if made is None else made
                    urgency = fees.urgency(made=made, now=now, deadline=deadline)
                    wanted = fees.offer(base_fee=base_fee, tip=tip, urgency=urgency, boost=boost)
                    offer = fees.limited(wanted, self._limits.at(urgency), base_fee=base_fee)
                    if offer is not None:
                        return Quote(offer, head)
                    await self._heads.wait(FEE_INTERVAL)
        except TimeoutError as error:
            raise ChainError(f"{tx_type}: the base fee stays above the configured limit") from error

    async def limit(self, slot: Slot, urgency: Urgency, *, gas: int, wei: int) -> int | None:
        """The highest fee per gas: what the operator allows, and what the account can pay beside everything else."""
        mined = await self._connection.nonce(self.account, "latest")
        balance = await self._connection.balance(self.account)
        others = sum(other.cost for other in self._book.slots() if other.nonce >= mined and other.nonce != slot.nonce)
        payable = max(balance - others - wei, 0) // gas
        allowed = self._limits.at(urgency)
        return payable if allowed is None else min(payable, allowed)

    def urgency(self, slot: Slot, head: Head) -> Urgency:
        """How much `slot`, or what waits behind it, is in a hurry."""
        return fees.urgency(made=slot.time, now=head.ref.timestamp, deadline=self._book.deadline(slot.nonce))

    async def signed(self, slot: Slot, quote: Quote, *, gives_up: bool = False) -> Slot:
        """`slot` with one more attempt, at the quoted offer; `gives_up` makes it an empty transfer to ourselves."""
        offer = quote.offer
        to = self.account if gives_up else None if slot.to is None else Address(slot.to)
        raw = await self._signer.sign(
            UnsignedTx(
                chain_id=slot.chain_id,
                nonce=slot.nonce,
                max_priority_fee=offer.tip,
                max_fee=offer.max_fee,
                gas=GAS_TRANSFER if gives_up else slot.gas,
                to=to,
                value=0 if gives_up else slot.wei,
                data=b"" if gives_up else slot.data,
            )
        )
        return replace(
            slot,
            attempts=(*slot.attempts, Attempt(bytes(keccak256(raw)), gives_up)),
            raw=raw,
            max_fee=offer.max_fee,
            max_priority_fee=offer.tip,
            block=quote.head.ref.number,
        )

    async def broadcast(self, slot: Slot) -> None:
        """Raises: NotReachable, NodeRefused, CallReverted; no error when the node has the transaction already."""
        if self._purse is not None:
            self._purse.costs[slot.nonce] = slot.cost
        try:
            await self._connection.send_raw(slot.raw)
        except (NodeRefused, CallReverted) as error:
            if "already" not in str(error).lower() and await self._connection.transaction(slot.tx_hash) is None:
                raise

    async def would_fail(self, slot: Slot) -> bool:
        """Whether the slot's own transaction, mined now, would revert or could not be paid."""
        to = None if slot.to is None else Address(slot.to)
        try:
            await self._connection.estimate_gas(to, slot.data, sender=self.account, value=slot.wei)
        except CallReverted:
            return True
        except NodeRefused as error:
            return cannot_be_paid(error)
        return False

    async def _head(self) -> tuple[Head, int]:
        """The latest head and its base fee. Raises: ChainError when the chain has none."""
        head = self._heads.latest or await self._connection.head()
        if head.base_fee is None:
            raise ChainError("the chain has no base fee (EIP-1559)")
        return head, head.base_fee


def is_taken(error: ChainError) -> bool:
    """The nonce is used up, or something that offers at least as much waits with it."""
    text = str(error).lower()
    return "nonce too low" in text or "replacement" in text


def is_too_cheap(error: ChainError) -> bool:
    text = str(error).lower()
    return "less than block base fee" in text or "underpriced" in text or "fee cap" in text


def cannot_be_paid(error: ChainError) -> bool:
    return "insufficient funds" in str(error).lower()


DEFINITE: Final = (
    "insufficient funds",
    "nonce too",
    "underpriced",
    "base fee",
    "fee cap",
    "gas limit",
    "gas too low",
    "intrinsic gas",
    "chain id",
    "chainid",
    "chain-id",
    "sender",
    "signature",
    "oversized",
    "not supported",
    "allowance",
)
"""What a refusal says when the transaction is certainly not on its way. Any other may be about a part of the way."""


def is_definite(error: ChainError) -> bool:
    text = str(error).lower()
    return isinstance(error, CallReverted) or any(words in text for words in DEFINITE)


def refused(tx_type: str, error: NodeRefused | CallReverted) -> ChainError:
    if isinstance(error, CallReverted):
        return TxReverted(tx_type, error.reason)
    if cannot_be_paid(error):
        return InsufficientFunds(error.message)
    return ChainError(f"{tx_type}: {error}")

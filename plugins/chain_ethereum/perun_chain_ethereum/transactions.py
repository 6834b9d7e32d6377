"""The on-chain transactions of one account: nonces, fees, records, broadcasting, and waiting until they are final.

The order of one transaction is: estimate → (under the account's lock) nonce → sign → record durably → broadcast → wait.
A record stays until its transaction is final, so that after a time-out, a lost connection or a restart the next call
with the same goal waits for the transaction that is already on its way instead of sending a second one. Records whose
transaction the node has lost are broadcast again before a new nonce is given out, so that no gap remains.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from perun_core.errors import ChainError, InsufficientFunds, TxReverted, TxTimedOut
from perun_core.ports.chain import Sent, TxSigner
from perun_core.ports.keymgr import UnsignedTx
from perun_core.ports.store import Delete, Put, Store, Table
from perun_core.values import Address, Bytes32, keccak256

from .connection import CallReverted, Connection, NodeRefused
from .heads import HeadFeed

if TYPE_CHECKING:
    from web3.types import TxReceipt

logger: Final = logging.getLogger(__name__)

GAS_MARGIN: Final = (5, 4)
GAS_SLACK: Final = 40_000
"""The gas limit is the estimate times the fraction plus the slack: another transaction that is mined in between may
empty two storage words (an allowance, a balance), and writing an empty one costs 17,100 gas more (EIP-2200, 2929)."""

GAS_CAP: Final = 2**24
"""Highest gas limit of a transaction (EIP-7825)."""

BASE_FEE_FACTOR: Final = 2
"""The maximum fee is the tip plus this multiple of the base fee: six full blocks in a row may pass (CHAIN.md 3.2)."""

NONCE_ATTEMPTS: Final = 3
"""How often a nonce is chosen anew when another user of the same key was faster."""

RECEIPT_INTERVAL: Final = 1.0
"""Longest pause in seconds between questions for a receipt."""

RECORD_FORMAT: Final = 1


class TxRecord(Struct, frozen=True):
    """What is stored about a transaction that may be on its way (`Table.TRANSACTIONS`, MessagePack)."""

    format: int
    chain_id: int
    account: bytes
    nonce: int
    goal: str
    """What the transaction is to bring about; at most one is under way per goal."""
    tx_type: str
    hash: bytes
    raw: bytes
    """Signed, ready to be broadcast again."""
    max_fee: int
    max_priority_fee: int
    time: int
    """Block time at which it was made, Unix seconds."""

    @property
    def tx_hash(self) -> Bytes32:
        """The transaction's hash."""
        return Bytes32(self.hash)

    @property
    def tx_id(self) -> str:
        """The hash as users see it."""
        return "0x" + self.hash.hex()


class Inclusion(Struct, frozen=True):
    """A transaction that is mined and final; `contract` is what it created, if anything."""

    tx_id: str
    block: int
    contract: Address | None


class Request(Struct, frozen=True):
    """A transaction to be made. `value` is wei; `tx_type` a word of API.md 2.1.2; `to` None creates a contract."""

    goal: str
    tx_type: str
    to: Address | None
    data: bytes
    value: int = 0


class Fees(Struct, frozen=True):
    """What is offered per gas, in wei, and the block time of the moment."""

    max_fee: int
    max_priority_fee: int
    time: int


class AccountTransactions:
    """Sends the transactions of `signer`'s account on the chain of `connection`. Calls may run concurrently."""

    def __init__(
        self,
        connection: Connection,
        heads: HeadFeed,
        *,
        signer: TxSigner,
        store: Store,
        lock: asyncio.Lock,
        timeout: float,
        finality_depth: int,
    ) -> None:
        """`lock` is shared by everybody in this process who sends from the account; `timeout` is in seconds."""
        self._connection = connection
        self._heads = heads
        self._signer = signer
        self._store = store
        self._lock = lock
        self._timeout = timeout
        self._confirmations = finality_depth - 1
        self._goals: dict[str, tuple[asyncio.Lock, int]] = {}

    @property
    def account(self) -> Address:
        """The account that signs and pays."""
        return self._signer.address

    @asynccontextmanager
    async def pursuing(self, goal: str) -> AsyncIterator[None]:
        """Hold while checking for `goal` and bringing it about: one caller at a time per goal."""
        lock, users = self._goals.get(goal, (asyncio.Lock(), 0))
        self._goals[goal] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._goals.pop(goal)
            if users > 1:
                self._goals[goal] = (lock, users - 1)

    async def settle(self, goal: str, *, sent: Sent | None = None) -> Inclusion | None:
        """Wait for a transaction with this goal that was sent earlier; None when there is none, or it failed.

        Afterwards the caller checks the goal again. Raises: TxTimedOut, NotReachable, StoreError.
        """
        record = await self._open_record(goal)
        if record is None or await self._overtaken(record) or not await self._is_on_its_way(record):
            return None
        await _tell(sent, record)
        try:
            return await self._final(record)
        except TxReverted as error:
            logger.warning("an earlier transaction failed: %s", error)
            return None

    async def execute(self, request: Request, *, sent: Sent | None = None) -> Inclusion:
        """Send one transaction and wait until it is final.

        Nothing is left behind when it could not be sent. Raises: TxReverted (also when the estimate says that it
        would fail), InsufficientFunds, TxTimedOut, NotReachable, KeyManagerError, StoreError.
        """
        gas = await self._gas(request)
        record = await self._send(request, gas)
        await _tell(sent, record)
        return await self._final(record)

    async def fees(self) -> Fees:
        """What a transaction sent now offers. Raises: ChainError when the chain has no EIP-1559 fees."""
        head = await self._connection.head()
        if head.base_fee is None:
            raise ChainError("the chain has no base fee (EIP-1559)")
        tip = await self._connection.tip()
        return Fees(max_fee=tip + BASE_FEE_FACTOR * head.base_fee, max_priority_fee=tip, time=head.ref.timestamp)

    # -------------------------------------------------------------------------------------------------------- sending

    async def _gas(self, request: Request) -> int:
        """The gas limit. Raises: TxReverted, InsufficientFunds, ChainError when no block could hold it."""
        if request.value > 0:
            await self._check_balance(request.value)
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

    async def _check_balance(self, needed: int) -> None:
        balance = await self._connection.balance(self.account)
        if balance < needed:
            raise InsufficientFunds(f"{self.account.checksum} has {balance} wei, but {needed} are needed")

    async def _send(self, request: Request, gas: int) -> TxRecord:
        """Sign, record and broadcast with the next free nonce."""
        async with self._lock:
            for attempt in range(NONCE_ATTEMPTS):
                fees = await self.fees()
                await self._check_balance(request.value + gas * fees.max_fee)
                record = await self._sign(request, gas=gas, fees=fees, nonce=await self._next_nonce())
                await self._store.commit([Put(Table.TRANSACTIONS, _key(record), msgspec.msgpack.encode(record))])
                try:
                    await self._broadcast(record)
                    return record
                except (NodeRefused, CallReverted) as error:
                    # A refusal is definite: the nonce is free again. After a lost connection it may not be.
                    await self._forget(record)
                    if _nonce_is_taken(error) and attempt + 1 < NONCE_ATTEMPTS:
                        continue
                    raise _refused(request.tx_type, error) from error
        raise ChainError(f"{request.tx_type}: no nonce could be had")

    async def _sign(self, request: Request, *, gas: int, fees: Fees, nonce: int) -> TxRecord:
        unsigned = UnsignedTx(
            chain_id=self._connection.chain_id,
            nonce=nonce,
            max_priority_fee=fees.max_priority_fee,
            max_fee=fees.max_fee,
            gas=gas,
            to=request.to,
            value=request.value,
            data=request.data,
        )
        raw = await self._signer.sign(unsigned)
        return TxRecord(
            format=RECORD_FORMAT,
            chain_id=unsigned.chain_id,
            account=bytes(self.account),
            nonce=nonce,
            goal=request.goal,
            tx_type=request.tx_type,
            hash=keccak256(raw),
            raw=raw,
            max_fee=fees.max_fee,
            max_priority_fee=fees.max_priority_fee,
            time=fees.time,
        )

    async def _broadcast(self, record: TxRecord) -> None:
        """Raises: NotReachable, NodeRefused, CallReverted; no error when the node has the transaction already."""
        try:
            await self._connection.send_raw(record.raw)
        except (NodeRefused, CallReverted) as error:
            if "already" not in str(error).lower() and await self._connection.transaction(record.tx_hash) is None:
                raise

    async def _next_nonce(self) -> int:
        """The node's next nonce, after the recorded transactions it does not have were broadcast again."""
        pending = await self._connection.nonce(self.account, "pending")
        records = [record for record in await self._open_records() if record.nonce >= pending]
        for record in records:
            if record.nonce > pending:
                break
            try:
                await self._rebroadcast(record)
            except (NodeRefused, CallReverted) as error:
                # Its nonce is free, and whoever wanted it will find no record and ask again.
                logger.warning("transaction %s is given up: %s", record.tx_id, error)
                await self._forget(record)
                break
            pending += 1
        return pending

    async def _rebroadcast(self, record: TxRecord) -> None:
        logger.info("broadcasting transaction %s again", record.tx_id)
        await self._broadcast(record)

    # -------------------------------------------------------------------------------------------------------- waiting

    async def _final(self, record: TxRecord) -> Inclusion:
        """Wait until the transaction is final, then drop its record. Raises: TxReverted, TxTimedOut, NotReachable."""
        try:
            async with asyncio.timeout(self._timeout):
                receipt = await self._connection.receipt(record.tx_hash)
                while receipt is None or not await self._is_final(receipt["blockNumber"]):
                    await self._heads.wait(RECEIPT_INTERVAL)
                    # Read again for every head: a reorg may have moved or removed the transaction.
                    receipt = await self._connection.receipt(record.tx_hash)
        except TimeoutError as error:
            raise TxTimedOut(record.tx_type, record.tx_id) from error
        await self._forget(record)
        if receipt["status"] == 0:
            raise TxReverted(record.tx_type, await self._why(record, receipt), record.tx_id)
        created = receipt.get("contractAddress")
        return Inclusion(
            tx_id=record.tx_id,
            block=receipt["blockNumber"],
            contract=Address.from_hex(created) if created else None,
        )

    async def _is_final(self, block: int) -> bool:
        if self._confirmations == 0:
            return True
        head = await self._connection.head()
        return head.ref.number - block >= self._confirmations

    async def _why(self, record: TxRecord, receipt: TxReceipt) -> str:
        """The contract's reason for failing, found by repeating the transaction on the block before; "" if unknown."""
        try:
            sent = await self._connection.transaction(record.tx_hash)
            if sent is None:
                return ""
            if receipt["gasUsed"] >= sent.gas:
                return "out of gas"
            await self._connection.call(
                sent.to, sent.data, block=receipt["blockNumber"] - 1, sender=self.account, value=sent.value
            )
        except CallReverted as error:
            return error.reason
        except ChainError:
            return ""
        return "the state it was made for had changed in its own block"

    # -------------------------------------------------------------------------------------------------------- records

    async def _open_records(self) -> list[TxRecord]:
        """Records of this account and chain in the order of their nonces."""
        prefix = bytes(self.account) + self._connection.chain_id.to_bytes(8, "big")
        records: list[TxRecord] = []
        after: bytes | None = None
        while rows := await self._store.scan(Table.TRANSACTIONS, prefix, after=after):
            records += [_decoded(value) for _, value in rows]
            after = rows[-1][0]
        return records

    async def _open_record(self, goal: str) -> TxRecord | None:
        return next((record for record in await self._open_records() if record.goal == goal), None)

    async def _overtaken(self, record: TxRecord) -> bool:
        """Whether another transaction was mined with the record's nonce; its record is dropped then."""
        if await self._connection.nonce(self.account, "latest") <= record.nonce:
            return False
        if await self._connection.receipt(record.tx_hash) is not None:
            return False
        await self._forget(record)
        return True

    async def _is_on_its_way(self, record: TxRecord) -> bool:
        """Whether the node has the transaction or takes it again; its record is dropped when it never will."""
        if await self._connection.transaction(record.tx_hash) is not None:
            return True
        async with self._lock:
            try:
                await self._rebroadcast(record)
            except (NodeRefused, CallReverted) as error:
                if record.nonce > await self._connection.nonce(self.account, "pending"):
                    # Another transaction would get a lower nonce, and then both could be mined.
                    raise ChainError(f"transaction {record.tx_id} waits for an earlier one: {error}") from error
                await self._forget(record)
                return False
        return True

    async def _forget(self, record: TxRecord) -> None:
        await self._store.commit([Delete(Table.TRANSACTIONS, _key(record))])


def _key(record: TxRecord) -> bytes:
    """Account, chain, nonce: the order of the keys is the order of the nonces."""
    return record.account + record.chain_id.to_bytes(8, "big") + record.nonce.to_bytes(8, "big")


def _decoded(value: bytes) -> TxRecord:
    try:
        return msgspec.msgpack.decode(value, type=TxRecord)
    except msgspec.DecodeError as error:
        raise ChainError("a stored transaction record cannot be read") from error


def _nonce_is_taken(error: ChainError) -> bool:
    text = str(error).lower()
    return "nonce too low" in text or "replacement transaction underpriced" in text


def _refused(tx_type: str, error: NodeRefused | CallReverted) -> ChainError:
    if isinstance(error, CallReverted):
        return TxReverted(tx_type, error.reason)
    if "insufficient funds" in error.message.lower():
        return InsufficientFunds(error.message)
    return ChainError(f"{tx_type}: {error}")


async def _tell(sent: Sent | None, record: TxRecord) -> None:
    if sent is not None:
        await sent(record.tx_id)

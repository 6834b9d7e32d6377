"""A chain inside this process: py-evm with Cancun rules, blocks in memory, time under the caller's control.

The engine of `perunnode devchain` and of the contract tests. Everything is synchronous and deterministic. Nothing here
speaks JSON-RPC, but blocks, transactions, receipts and logs are given in its shapes, so that the server has nothing to
translate. Import this module only where a chain is really needed: py-evm is heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from eth.chains.base import MiningChain
from eth.consensus.applier import ConsensusApplier
from eth.consensus.noproof import NoProofConsensus
from eth.constants import POST_MERGE_DIFFICULTY, POST_MERGE_MIX_HASH, POST_MERGE_NONCE
from eth.db.atomic import AtomicDB
from eth.exceptions import HeaderNotFound, Revert
from eth.vm.forks.cancun import CancunVM
from eth.vm.spoof import SpoofTransaction
from eth_utils.address import to_checksum_address
from eth_utils.exceptions import ValidationError

Json: TypeAlias = dict[str, Any]
BlockId: TypeAlias = int | Literal["latest", "pending", "earliest"]

GAS_LIMIT: Final = 30_000_000
"""Gas limit of every block, and therefore of a transaction or call."""

TIP: Final = 10**9
"""Priority fee in wei that the chain suggests."""

_ZERO_ADDRESS: Final = bytes(20)


class UnknownBlock(Exception):
    """The block asked for does not exist."""


class InvalidTransaction(Exception):
    """A transaction that can never, or not now, be part of a block. The text says why, as chain nodes word it."""


class CallFailed(Exception):
    """A call or an estimation that the EVM ended with an error.

    `data` is the revert data, or None if it was not a revert (out of gas, invalid opcode, ...).
    """

    def __init__(self, reason: str, data: bytes | None) -> None:
        super().__init__(reason)
        self.data = data


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What a call would do: its output and the gas it uses (intrinsic gas included, refunds deducted)."""

    output: bytes
    gas_used: int


@dataclass(frozen=True, slots=True)
class Call:
    """A call or transaction to try out; `to` None creates a contract. Amounts in wei."""

    to: bytes | None = None
    data: bytes = b""
    sender: bytes = _ZERO_ADDRESS
    value: int = 0
    gas: int | None = None


class EmbeddedChain:
    """One chain. Not thread-safe.

    Args:
        balances: wei per address at genesis.
        timestamp: time of the genesis block in seconds.
        chain_id: reported, readable by contracts, and demanded of every transaction (EIP-155).
    """

    def __init__(self, balances: Mapping[bytes, int], *, timestamp: int, chain_id: int) -> None:
        vms = ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, CancunVM),))
        chain_class = type("EmbeddedMiningChain", (_ConstantGasLimit,), {"chain_id": chain_id, "vm_configuration": vms})
        genesis = {
            "coinbase": _ZERO_ADDRESS,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": GAS_LIMIT,
            "mix_hash": POST_MERGE_MIX_HASH,
            "nonce": POST_MERGE_NONCE,
            "timestamp": timestamp,
        }
        state = {address: {"balance": wei, "nonce": 0, "code": b"", "storage": {}} for address, wei in balances.items()}
        self.chain_id: Final = chain_id
        self._chain: Any = chain_class.from_genesis(AtomicDB(), genesis, state)  # type: ignore[attr-defined]
        self._head: Any = self._chain.get_canonical_head()
        self._numbers: dict[bytes, int] = {self._head.hash: 0}
        self._block_transactions: dict[int, tuple[str, ...]] = {}
        self._logs: dict[int, tuple[Json, ...]] = {}
        self._transactions: dict[bytes, Json] = {}
        self._receipts: dict[bytes, Json] = {}
        self._failures: dict[bytes, CallFailed] = {}

    # -- what is there ------------------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Number of the newest block."""
        return int(self._head.block_number)

    @property
    def timestamp(self) -> int:
        """Time of the newest block in seconds."""
        return int(self._head.timestamp)

    @property
    def base_fee(self) -> int:
        """Base fee in wei that the next block charges."""
        return int(self._chain.header.base_fee_per_gas)

    def number_of(self, block_hash: bytes) -> int:
        """Number of the block with this hash. Raises: UnknownBlock."""
        try:
            return self._numbers[block_hash]
        except KeyError:
            raise UnknownBlock("unknown block") from None

    def block(self, at: BlockId, *, full: bool = False) -> Json:
        """The block in JSON-RPC form, with transactions instead of their hashes if `full`. Raises: UnknownBlock."""
        header = self._header(at)
        number = int(header.block_number)
        hashes = self._block_transactions.get(number, ())
        result = header_json(header)
        result["transactions"] = [self._transactions[bytes.fromhex(h[2:])] for h in hashes] if full else list(hashes)
        result["uncles"] = []
        result["withdrawals"] = []
        result["size"] = hex(600)
        if at == "pending":
            result.update(hash=None, nonce=None, miner=None, logsBloom=None)
        return result

    def transaction(self, tx_hash: bytes) -> Json | None:
        """The mined transaction in JSON-RPC form, or None."""
        return self._transactions.get(tx_hash)

    def receipt(self, tx_hash: bytes) -> Json | None:
        """The receipt in JSON-RPC form, or None."""
        return self._receipts.get(tx_hash)

    def failure(self, tx_hash: bytes) -> CallFailed | None:
        """Why a mined transaction failed (status 0); None if it did not."""
        return self._failures.get(tx_hash)

    def logs(self, number: int) -> tuple[Json, ...]:
        """All logs of a block in JSON-RPC form."""
        return self._logs.get(number, ())

    def balance(self, address: bytes, at: BlockId = "latest") -> int:
        """Wei owned by `address`. Raises: UnknownBlock."""
        return int(self._state(at).get_balance(address))

    def nonce(self, address: bytes, at: BlockId = "latest") -> int:
        """Transactions sent by `address`. Raises: UnknownBlock."""
        return int(self._state(at).get_nonce(address))

    def code(self, address: bytes, at: BlockId = "latest") -> bytes:
        """Runtime code at `address`. Raises: UnknownBlock."""
        return bytes(self._state(at).get_code(address))

    def storage(self, address: bytes, slot: int, at: BlockId = "latest") -> int:
        """The storage word of `address` at `slot`. Raises: UnknownBlock."""
        return int(self._state(at).get_storage(address, slot))

    # -- trying out ---------------------------------------------------------------------------------------------------

    def call(self, call: Call, at: BlockId = "latest") -> CallOutcome:
        """Execute `call` on the state of a block and forget what it changed; no balance is needed for its gas.

        Raises: CallFailed, InvalidTransaction (e.g. value above balance), UnknownBlock.
        """
        return self._try(call, call.gas or GAS_LIMIT, at)

    def estimate(self, call: Call, at: BlockId = "latest") -> int:
        """The smallest gas limit, up to about one in a hundred, with which `call` succeeds.

        Raises: CallFailed, InvalidTransaction, UnknownBlock.
        """
        highest = min(call.gas or GAS_LIMIT, GAS_LIMIT)
        lowest = self._try(call, highest, at).gas_used
        # Refunds and gas withheld from inner calls may demand a limit above what is used in the end.
        guess = lowest
        while lowest < highest:
            try:
                self._try(call, guess, at)
                highest = guess
            except (CallFailed, InvalidTransaction):
                lowest = guess + 1
            if highest - lowest <= highest // 128:
                break
            guess = min((lowest + highest) // 2, lowest + lowest // 4)
        return highest

    def _try(self, call: Call, gas: int, at: BlockId) -> CallOutcome:
        vm = self._vm(at)
        state = vm.state
        unsigned = vm.get_transaction_builder().create_unsigned_transaction(
            nonce=state.get_nonce(call.sender),
            gas_price=0,
            gas=gas,
            to=b"" if call.to is None else call.to,
            value=call.value,
            data=call.data,
        )
        snapshot = state.snapshot()
        # Fees are not charged, so the base fee must not be demanded either.
        state.execution_context._base_fee_per_gas = 0
        try:
            computation = state.apply_transaction(SpoofTransaction(unsigned, from_=call.sender, gas_price=0))
        except ValidationError as error:
            raise InvalidTransaction(str(error)) from error
        finally:
            state.revert(snapshot)
        if computation.is_error:
            raise _failure(computation.error)
        return CallOutcome(bytes(computation.output), _gas_used(unsigned, computation))

    # -- moving on ----------------------------------------------------------------------------------------------------

    def decode(self, raw: bytes) -> Any:
        """The signed transaction in `raw`, checked in itself: type, chain ID, signature.

        Returns: py-evm's transaction (`hash`, `sender`, `nonce`, `gas`, `value`, `max_fee_per_gas`, ...).
        Raises: InvalidTransaction.
        """
        try:
            transaction = self._vm("latest").get_transaction_builder().decode(raw)
            transaction.validate()
            _ = transaction.sender
        except Exception as error:
            # The decoders of the layers below raise whatever they like; to the sender all of it means the same.
            raise InvalidTransaction(f"invalid transaction: {error}") from error
        if transaction.chain_id is None:
            raise InvalidTransaction("only replay-protected (EIP-155) transactions allowed over RPC")
        if transaction.chain_id != self.chain_id:
            raise InvalidTransaction(
                f"invalid chain ID: transaction is for {transaction.chain_id}, this is chain {self.chain_id}"
            )
        if getattr(transaction, "type_id", None) == 3:
            raise InvalidTransaction("transaction type not supported")
        return transaction

    def send(self, raw: bytes, timestamp: int | None = None) -> Json:
        """Mine a block with just this transaction; its receipt.

        Args: timestamp: time of the block in seconds, default one second after the last.
        Raises: InvalidTransaction; then nothing is mined.
        """
        transaction = self.decode(raw)
        if not self.mine((transaction,), timestamp=timestamp, allow_empty=False):
            raise self.refusal(transaction)
        return self._receipts[transaction.hash]

    def refusal(self, transaction: Any) -> InvalidTransaction:
        """Why the next block cannot hold this transaction."""
        nonce = self.nonce(transaction.sender)
        if transaction.nonce < nonce:
            return InvalidTransaction(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        if transaction.nonce > nonce:
            return InvalidTransaction(f"nonce too high: next nonce {nonce}, tx nonce {transaction.nonce}")
        cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
        if self.balance(transaction.sender) < cost:
            return InvalidTransaction(
                f"insufficient funds for gas * price + value: have {self.balance(transaction.sender)} want {cost}"
            )
        if transaction.gas < transaction.intrinsic_gas:
            return InvalidTransaction(
                f"intrinsic gas too low: have {transaction.gas}, want {transaction.intrinsic_gas}"
            )
        if transaction.gas > GAS_LIMIT:
            return InvalidTransaction("exceeds block gas limit")
        if transaction.max_fee_per_gas < self.base_fee:
            return InvalidTransaction(
                f"max fee per gas less than block base fee: maxFeePerGas: {transaction.max_fee_per_gas}, "
                f"baseFee: {self.base_fee}"
            )
        return InvalidTransaction("transaction is not valid in the next block")

    def mine(
        self, transactions: Iterable[Any] = (), *, timestamp: int | None = None, allow_empty: bool = True
    ) -> tuple[Any, ...]:
        """Mine one block with those of the transactions that are valid in their order, the others are left out.

        Args:
            transactions: results of `decode`.
            timestamp: time of the block in seconds, later than the last one's; default one second later.
            allow_empty: whether to mine a block even if no transaction is valid.
        Returns: the included transactions.
        """
        chain = self._chain
        time = self.timestamp + 1 if timestamp is None else timestamp
        if time <= self.timestamp:
            raise ValueError("block time must grow")
        chain.header = chain.create_header_from_parent(self._head, timestamp=time)
        included: list[tuple[Any, Any, Any]] = []
        for transaction in transactions:
            if transaction.gas > chain.header.gas_limit - chain.header.gas_used:
                continue
            try:
                _, receipt, computation = chain.apply_transaction(transaction)
            except ValidationError:
                continue
            included.append((transaction, receipt, computation))
        if not included and not allow_empty:
            return ()
        block = chain.mine_block(coinbase=_ZERO_ADDRESS)
        self._head = block.header
        self._numbers[block.hash] = self.number
        self._index(included)
        return tuple(transaction for transaction, _, _ in included)

    def _index(self, included: Sequence[tuple[Any, Any, Any]]) -> None:
        """Remember the content of the newest block."""
        number, block_hash = self.number, hex_data(self._head.hash)
        place: Json = {"blockHash": block_hash, "blockNumber": hex(number)}
        base_fee = int(self._head.base_fee_per_gas)
        logs: list[Json] = []
        gas_before = 0
        for index, (transaction, receipt, computation) in enumerate(included):
            here = place | {"transactionHash": hex_data(transaction.hash), "transactionIndex": hex(index)}
            own_logs = [
                {
                    "address": to_checksum_address(log.address),
                    "topics": ["0x" + topic.to_bytes(32, "big").hex() for topic in log.topics],
                    "data": hex_data(log.data),
                    "logIndex": hex(len(logs) + i),
                    "removed": False,
                    **here,
                }
                for i, log in enumerate(receipt.logs)
            ]
            price = min(transaction.max_fee_per_gas, base_fee + transaction.max_priority_fee_per_gas)
            created = computation.msg.is_create and not computation.is_error
            self._receipts[transaction.hash] = {
                **here,
                "type": hex(_type_of(transaction)),
                "from": to_checksum_address(transaction.sender),
                "to": to_checksum_address(transaction.to) if transaction.to else None,
                "contractAddress": to_checksum_address(computation.msg.storage_address) if created else None,
                "status": "0x0" if computation.is_error else "0x1",
                "gasUsed": hex(receipt.gas_used - gas_before),
                "cumulativeGasUsed": hex(receipt.gas_used),
                "effectiveGasPrice": hex(price),
                "logs": own_logs,
                "logsBloom": "0x" + receipt.bloom.to_bytes(256, "big").hex(),
            }
            self._transactions[transaction.hash] = transaction_json(transaction) | {
                "blockHash": block_hash,
                "blockNumber": hex(number),
                "transactionIndex": hex(index),
                "gasPrice": hex(price),
            }
            if computation.is_error:
                self._failures[transaction.hash] = _failure(computation.error)
            gas_before = receipt.gas_used
            logs.extend(own_logs)
        if included:
            self._block_transactions[number] = tuple(hex_data(t.hash) for t, _, _ in included)
        if logs:
            self._logs[number] = tuple(logs)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _header(self, at: BlockId) -> Any:
        if at == "latest":
            return self._head
        if at == "pending":
            return self._chain.header
        number = 0 if at == "earliest" else at
        if not 0 <= number <= self.number:
            raise UnknownBlock(f"block {number} not found")
        try:
            return self._chain.get_canonical_block_header_by_number(number)
        except HeaderNotFound as error:
            raise UnknownBlock(f"block {number} not found") from error

    def _vm(self, at: BlockId) -> Any:
        return self._chain.get_vm(self._header(at))

    def _state(self, at: BlockId) -> Any:
        return self._vm(at).state


class _ConstantGasLimit(MiningChain):
    """Keeps the gas limit of the genesis block; the usual rule would let it drift with use."""

    def create_header_from_parent(self, parent_header: Any, **header_params: Any) -> Any:
        return super().create_header_from_parent(
            parent_header, **(header_params | {"gas_limit": parent_header.gas_limit})
        )


def hex_data(data: bytes) -> str:
    """Bytes as JSON-RPC data."""
    return "0x" + bytes(data).hex()


def header_json(header: Any) -> Json:
    """A block header in JSON-RPC form, as in the notifications of new heads."""
    return {
        "number": hex(header.block_number),
        "hash": hex_data(header.hash),
        "parentHash": hex_data(header.parent_hash),
        "nonce": hex_data(header.nonce),
        "sha3Uncles": hex_data(header.uncles_hash),
        "logsBloom": "0x" + int(header.bloom).to_bytes(256, "big").hex(),
        "transactionsRoot": hex_data(header.transaction_root),
        "stateRoot": hex_data(header.state_root),
        "receiptsRoot": hex_data(header.receipt_root),
        "withdrawalsRoot": hex_data(header.withdrawals_root),
        "miner": to_checksum_address(header.coinbase),
        "difficulty": hex(header.difficulty),
        "totalDifficulty": "0x0",
        "mixHash": hex_data(header.mix_hash),
        "extraData": hex_data(header.extra_data),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "baseFeePerGas": hex(header.base_fee_per_gas),
        "blobGasUsed": hex(header.blob_gas_used),
        "excessBlobGas": hex(header.excess_blob_gas),
        "parentBeaconBlockRoot": hex_data(header.parent_beacon_block_root),
    }


def transaction_json(transaction: Any) -> Json:
    """A signed transaction in JSON-RPC form, as long as it has no place in a block."""
    kind = _type_of(transaction)
    result: Json = {
        "type": hex(kind),
        "hash": hex_data(transaction.hash),
        "nonce": hex(transaction.nonce),
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "gasPrice": hex(transaction.max_fee_per_gas),
        "input": hex_data(transaction.data),
        "chainId": hex(transaction.chain_id),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "v": hex(transaction.v if kind == 0 else transaction.y_parity),
        "blockHash": None,
        "blockNumber": None,
        "transactionIndex": None,
    }
    if kind >= 1:
        result["yParity"] = hex(transaction.y_parity)
        result["accessList"] = [
            {"address": to_checksum_address(account), "storageKeys": [f"0x{slot:064x}" for slot in slots]}
            for account, slots in transaction.access_list
        ]
    if kind >= 2:
        result["maxFeePerGas"] = hex(transaction.max_fee_per_gas)
        result["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_per_gas)
    return result


def _type_of(transaction: Any) -> int:
    return getattr(transaction, "type_id", None) or 0


def _gas_used(transaction: Any, computation: Any) -> int:
    """Gas charged to the sender: at most a fifth of it is refunded (EIP-3529)."""
    used = int(transaction.gas - computation.get_gas_remaining())
    return used - min(int(computation.get_gas_refund()), used // 5)


def _failure(error: Any) -> CallFailed:
    if not isinstance(error, Revert):
        return CallFailed(str(error) or type(error).__name__, None)
    data = bytes(error.args[0]) if error.args else b""
    reason = revert_reason(data)
    return CallFailed("execution reverted" + (f": {reason}" if reason else ""), data)


def revert_reason(data: bytes) -> str | None:
    """The text of revert data `Error(string)` or the name of `Panic(uint256)`; None for any other data."""
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    try:
        if data[:4] == bytes.fromhex("08c379a0"):
            return str(decode(["string"], data[4:])[0])
        if data[:4] == bytes.fromhex("4e487b71"):
            return f"Panic(0x{decode(['uint256'], data[4:])[0]:02x})"
    except (DecodingError, UnicodeDecodeError):
        pass
    return None

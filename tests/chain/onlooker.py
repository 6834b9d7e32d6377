"""What stands outside two nodes and sees the chain: it registers old states, forwards calls, and counts every wei."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from eth_utils.crypto import keccak

from perun_chain_ethereum import abi
from perun_chain_ethereum.deploy import Deployment
from perun_core.apps.registry import AppRegistry
from perun_core.ports.chain import Chain
from perun_core.ports.keymgr import UnsignedTx
from perun_core.ports.store import Store, StoreContext, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord, RecordCodec
from perun_core.values import Address
from perun_store_sqlite.store import SqliteConfig, open_sqlite
from plugins.chain_ethereum.tests.chain_backend.conftest import CHAIN_ID, Key, Ledger
from tests.integration.world import Person, World

GWEI: Final = 10**9


@asynccontextmanager
async def snapshot_of_database(person: Person) -> AsyncIterator[Store]:
    """The person's own database as it is now; the node goes on using it."""
    async with open_sqlite(SqliteConfig(), StoreContext(person.home / "database", snapshot=True)) as store:
        yield store


async def stored(person: Person, channel: str) -> ChannelRecord:
    """The record of a channel that is not withdrawn."""
    async with snapshot_of_database(person) as store:
        value = await store.get(Table.CHANNELS, bytes.fromhex(channel))
    assert value is not None, f"{person.alias} has no channel {channel}"
    return RecordCodec(PROFILE, AppRegistry()).decode(bytes.fromhex(channel), value)


async def stored_channels(person: Person) -> list[str]:
    """IDs of the channels that are not withdrawn."""
    async with snapshot_of_database(person) as store:
        return [key.hex() for key, _ in await store.scan(Table.CHANNELS)]


def ledger_of(world: World) -> Ledger:
    """The world's chain for a backend of our own."""
    contracts = world.contracts
    deployment = Deployment(contracts["adjudicator"], contracts["eth"], contracts["token"], contracts["erc20"])
    return Ledger(url=world.url, http=world.http_url, contracts=deployment)


def account_of(person: Person) -> Key:
    """The key of the person's on-chain account."""
    from eth_account import Account

    for file in (person.home / "keystore").iterdir():
        content = json.loads(file.read_text())
        if "0x" + content["address"].lower().removeprefix("0x") == person.on_chain.lower():
            return Key("", bytes(Account.decrypt(content, "")))
    raise KeyError(person.on_chain)


def opened_by(world: World, person: Person) -> AbstractAsyncContextManager[Chain]:
    """A backend that sends from the person's on-chain account, past the person's node."""
    return ledger_of(world).open(account_of(person))


async def register_directly(world: World, person: Person, record: ChannelRecord) -> None:
    """Register the record's fully signed transaction with a script of one's own."""
    async with opened_by(world, person) as chain:
        await chain.register(record.params, record.current)


def messenger(contract: str, call: bytes) -> bytes:
    """Creation code of a contract that makes one fixed call whenever it is called, whatever it is called with.

    Runtime: copy the call data, which follow the code, to memory; CALL; revert when that failed, else stop.
    """
    code_size = 47
    runtime = (
        bytes.fromhex("61") + len(call).to_bytes(2, "big")  # PUSH2 length
        + bytes.fromhex("61") + code_size.to_bytes(2, "big")  # PUSH2 where the data begin
        + bytes.fromhex("5f39")  # PUSH0 CODECOPY
        + bytes.fromhex("5f5f")  # PUSH0 PUSH0: no output
        + bytes.fromhex("61") + len(call).to_bytes(2, "big")  # PUSH2 length of the input
        + bytes.fromhex("5f5f")  # PUSH0 PUSH0: input from the start, no value
        + bytes.fromhex("73") + bytes.fromhex(contract[2:])  # PUSH20 address
        + bytes.fromhex("5af1")  # GAS CALL
        + bytes.fromhex("15602b57")  # ISZERO PUSH1 43 JUMPI
        + bytes.fromhex("00")  # STOP
        + bytes.fromhex("5b5f5ffd")  # JUMPDEST (43) PUSH0 PUSH0 REVERT
    )  # fmt: skip
    assert len(runtime) == code_size, len(runtime)
    deployed = runtime + call
    # PUSH2 size DUP1 PUSH1 10 PUSH0 CODECOPY PUSH0 RETURN
    start = bytes.fromhex("61") + len(deployed).to_bytes(2, "big") + bytes.fromhex("80600a5f395ff3")
    assert len(start) == 10
    return start + deployed


async def register_through_a_contract(world: World, person: Person, record: ChannelRecord, calldata: bytes) -> str:
    """Register the record's transaction by calling a contract with `calldata`; the transaction's hash."""
    key = account_of(person)
    created = await transact(world, key, None, messenger(world.contracts["adjudicator"], registering(record)))
    return str((await transact(world, key, created["contractAddress"], calldata))["transactionHash"])


def registering(record: ChannelRecord) -> bytes:
    """Call data of `register` for the record's transaction."""
    return abi.call_register(record.params, record.current)


async def transact(world: World, key: Key, to: str | None, data: bytes) -> Any:
    """Send a transaction and give its receipt. Raises: AssertionError when it failed."""
    nonce = int(world.rpc("eth_getTransactionCount", key.address.checksum, "pending"), 16)
    target = None if to is None else Address.from_hex(to)
    raw = await key.sign(UnsignedTx(CHAIN_ID, nonce, GWEI, 100 * GWEI, 1_500_000, target, 0, data))
    tx = world.rpc("eth_sendRawTransaction", "0x" + raw.hex())
    async with asyncio.timeout(30):
        while (receipt := world.rpc("eth_getTransactionReceipt", tx)) is None:  # noqa: ASYNC110 - a node has no event
            await asyncio.sleep(0.1)
    assert receipt["status"] == "0x1", receipt
    return receipt


def dispute_of(world: World, channel: str) -> tuple[int, int, int]:
    """Timeout (Unix seconds of the chain), version and phase that the adjudicator stores; zeros when unregistered."""
    data = "0x" + (keccak(text="disputes(bytes32)")[:4] + bytes.fromhex(channel)).hex()
    answer = world.rpc("eth_call", {"to": world.contracts["adjudicator"], "data": data}, "latest")
    words = [int(answer[2 + 64 * each : 66 + 64 * each], 16) for each in range(6)]
    return words[0], words[2], words[4]


def head_time(world: World) -> int:
    """Timestamp of the latest block."""
    return int(world.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)


async def pass_time(world: World, seconds: int) -> None:
    """Move the chain's clock (anvil) and wait for the block that shows it."""
    before = head_time(world)
    world.rpc("evm_increaseTime", seconds)
    async with asyncio.timeout(20):
        while head_time(world) < before + seconds:  # noqa: ASYNC110 - a chain node has no event
            await asyncio.sleep(0.1)


class Purse:
    """Everything an account has, so that every wei of a story can be accounted for."""

    def __init__(self, world: World, person: Person) -> None:
        self.world = world
        self.address = person.on_chain
        self.wei = world.balance(person.on_chain)
        self.tokens = world.tokens(person.on_chain)
        self.block = int(world.rpc("eth_blockNumber"), 16)

    def fees(self) -> int:
        """What the account paid for gas since then; value sent to contracts is in the outcome."""
        total, last = 0, int(self.world.rpc("eth_blockNumber"), 16)
        for number in range(self.block + 1, last + 1):
            block = self.world.rpc("eth_getBlockByNumber", hex(number), True)
            for tx in block["transactions"]:
                if tx["from"].lower() == self.address.lower():
                    receipt = self.world.rpc("eth_getTransactionReceipt", tx["hash"])
                    total += int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
        return total

    def gained(self) -> int:
        """Wei won or lost since then, fees not counted."""
        return self.world.balance(self.address) - self.wei + self.fees()

    def gained_tokens(self) -> int:
        """Base units of the test token won or lost since then."""
        return self.world.tokens(self.address) - self.tokens


async def eventually(fact: Callable[[], bool | Awaitable[bool]], timeout: float = 40) -> None:
    """Wait for a fact about the outside world. Raises: TimeoutError."""
    async with asyncio.timeout(timeout):
        while True:
            told = fact()
            if told if isinstance(told, bool) else await told:
                return
            await asyncio.sleep(0.1)

"""Nonces, records, fees and time-outs: money is sent once, and nothing stays stuck behind what was not sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from perun_chain_ethereum.opening import EthereumConfig
from perun_chain_ethereum.slots import Slot
from perun_core.errors import (
    ChainError,
    ContractInvalid,
    InsufficientFunds,
    KeyManagerError,
    NotReachable,
    SigningFailed,
    StoreBroken,
    StoreError,
    TokenUnreadable,
    TxReverted,
    TxTimedOut,
)
from perun_core.ports.chain import Contracts
from perun_core.ports.keymgr import UnsignedTx
from perun_core.ports.store import Table
from perun_core.testing.store import MemoryStore
from perun_core.values import Address, Bytes32

from .conftest import ETHER, Channel, Key, Ledger, cable_to

Funded = Callable[..., Any]
FORGETFUL = EthereumConfig(reorg_window=0)
"""Forgets a transaction as soon as it is final."""

NOBODY = Address(b"\x11" * 20)


@asynccontextmanager
async def mining_stopped(ledger: Ledger) -> AsyncIterator[None]:
    """No blocks inside; afterwards every transaction is mined at once again."""
    await ledger.rpc("evm_setAutomine", False)
    try:
        yield
    finally:
        await ledger.rpc("evm_setAutomine", True)
        await ledger.mine()


def records(store: MemoryStore) -> list[Slot]:
    """The transactions that a store remembers."""
    return [
        msgspec.msgpack.decode(value, type=Slot)
        for (table, _), value in sorted(store.rows.items())
        if table is Table.TRANSACTIONS
    ]


async def count(ledger: Ledger, key: Key, block: str = "latest") -> int:
    """How many transactions the account has sent."""
    return int(await ledger.rpc("eth_getTransactionCount", key.address.checksum, block), 16)


async def test_a_deposit_that_is_not_mined_in_time_is_not_made_twice(instant: Ledger, funded: Funded) -> None:
    payer, store = await funded(instant), MemoryStore()
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    funding_id = channel.funding_id(0)
    async with instant.open(payer, tx_timeout=0.5, store=store, config=FORGETFUL) as chain:
        async with mining_stopped(instant):
            with pytest.raises(TxTimedOut) as caught:
                await chain.deposit(instant.eth_holder, None, funding_id, ETHER)
            assert caught.value.tx_type == "fund"
            assert await instant.rpc("eth_getTransactionByHash", caught.value.tx_id) is not None
            with pytest.raises(TxTimedOut) as again:
                await chain.deposit(instant.eth_holder, None, funding_id, ETHER)
            assert again.value.tx_id == caught.value.tx_id
        await chain.deposit(instant.eth_holder, None, funding_id, ETHER)
        assert await chain.holdings(instant.eth_holder, funding_id) == ETHER
    assert await count(instant, payer) == 1
    assert records(store) == []


async def test_a_restarted_node_waits_for_the_transaction_it_had_sent(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    funding_id, rows = channel.funding_id(0), {}
    async with mining_stopped(instant), instant.open(payer, tx_timeout=0.5, store=MemoryStore(rows)) as chain:
        with pytest.raises(TxTimedOut) as caught:
            await chain.deposit(instant.eth_holder, None, funding_id, ETHER)
    told: list[str] = []

    async def note(tx_hash: str) -> None:
        told.append(tx_hash)

    async with instant.open(payer, store=MemoryStore(rows)) as chain:
        await chain.deposit(instant.eth_holder, None, funding_id, ETHER, sent=note)
        assert await chain.holdings(instant.eth_holder, funding_id) == ETHER
    assert told == [caught.value.tx_id]
    assert await count(instant, payer) == 1


async def test_a_transaction_the_node_has_lost_is_broadcast_again(instant: Ledger, funded: Funded) -> None:
    payer, store = await funded(instant), MemoryStore()
    channels = [Channel((instant.eth_holder,), ((ETHER, 0),)) for _ in range(2)]
    first, second = (channel.funding_id(0) for channel in channels)
    async with instant.open(payer, tx_timeout=0.5, store=store, config=FORGETFUL) as chain:
        async with mining_stopped(instant):
            with pytest.raises(TxTimedOut) as caught:
                await chain.deposit(instant.eth_holder, None, first, ETHER)
            await instant.rpc("anvil_dropTransaction", caught.value.tx_id)
        # The next transaction of the account must not wait behind the gap.
        await chain.deposit(instant.eth_holder, None, second, ETHER)
        assert await chain.holdings(instant.eth_holder, second) == ETHER
        await chain.deposit(instant.eth_holder, None, first, ETHER)
        assert await chain.holdings(instant.eth_holder, first) == ETHER
    assert await count(instant, payer) == 2


async def test_a_nonce_that_somebody_else_used_is_not_waited_for(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer, tx_timeout=3) as chain:
        async with mining_stopped(instant):
            with pytest.raises(TxTimedOut):
                await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
            assert await count(instant, payer, "pending") == 1
            # Another process with the same key is willing to pay more for its own transaction.
            raw = await payer.sign(UnsignedTx(1337, 0, 10**11, 10**12, 21000, NOBODY, 1, b""))
            await instant.rpc("eth_sendRawTransaction", "0x" + raw.hex())
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        assert await chain.holdings(instant.eth_holder, channel.funding_id(0)) == ETHER
    assert await count(instant, payer) == 2


async def test_a_record_is_durable_before_its_transaction_is_broadcast(instant: Ledger, funded: Funded) -> None:
    payer, store = await funded(instant), MemoryStore()
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer, store=store, config=FORGETFUL) as chain:
        store.fail_commit(1, StoreBroken("disk gone"))
        with pytest.raises(StoreError):
            await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        assert await count(instant, payer, "pending") == 0
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
    assert await count(instant, payer) == 1
    assert len(store.commits) == 2  # the record, and its removal


async def test_a_signature_that_cannot_be_had_leaves_no_gap(instant: Ledger, funded: Funded) -> None:
    payer, store = await funded(instant), MemoryStore()
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    sign, payer.sign = payer.sign, _unable
    async with instant.open(payer, store=store, config=FORGETFUL) as chain:
        with pytest.raises(KeyManagerError):
            await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        payer.sign = sign
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
    assert await count(instant, payer) == 1
    assert records(store) == []


async def _unable(tx: UnsignedTx) -> bytes:
    raise SigningFailed("not now")


async def test_a_refused_transaction_leaves_no_gap(instant: Ledger, funded: Funded) -> None:
    payer, store = await funded(instant), MemoryStore()
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    sign = payer.sign

    async def for_another_chain(tx: UnsignedTx) -> bytes:
        return await sign(msgspec.structs.replace(tx, chain_id=1))

    payer.sign = for_another_chain
    async with instant.open(payer, store=store, config=FORGETFUL) as chain:
        with pytest.raises(ChainError, match="fund"):
            await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        assert records(store) == []
        payer.sign = sign
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
    assert await count(instant, payer) == 1


async def test_a_connection_lost_while_sending_neither_repeats_nor_blocks(instant: Ledger, funded: Funded) -> None:
    payer, store = await funded(instant), MemoryStore()
    channels = [Channel((instant.eth_holder,), ((ETHER, 0),)) for _ in range(2)]
    sign = payer.sign
    async with cable_to(instant) as (cable, ledger), ledger.open(payer, store=store, config=FORGETFUL) as chain:

        async def sign_and_lose(tx: UnsignedTx) -> bytes:
            await cable.cut()
            return await sign(tx)

        payer.sign = sign_and_lose
        with pytest.raises(NotReachable):
            await chain.deposit(instant.eth_holder, None, channels[0].funding_id(0), ETHER)
        payer.sign = sign
        await cable.mend()
        for channel in reversed(channels):
            await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
            assert await chain.holdings(instant.eth_holder, channel.funding_id(0)) == ETHER
    assert await count(instant, payer) == 2
    assert records(store) == []


async def test_a_deposit_beyond_the_accounts_means_is_refused_before_anything_is_sent(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant, ether=ETHER, tokens=5)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer) as chain:
        for amount in (2 * ETHER, ETHER):  # more than there is; all there is, which leaves nothing for gas
            with pytest.raises(InsufficientFunds):
                await chain.deposit(instant.eth_holder, None, channel.funding_id(0), amount)
        with pytest.raises(InsufficientFunds):
            await chain.deposit(instant.token_holder, instant.token, channel.funding_id(0), 6)
    assert await count(instant, payer) == 0


async def test_an_account_without_ether_cannot_send(instant: Ledger) -> None:
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(Key("poor")) as chain:
        with pytest.raises(InsufficientFunds):
            await chain.register(channel.params, channel.signed(1))


async def test_a_transaction_that_would_fail_is_not_sent(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer) as chain:
        with pytest.raises(TxReverted, match="state not final"):
            await chain.conclude_final(channel.params, channel.signed(1))
    assert await count(instant, payer) == 0


async def test_a_transaction_that_lost_a_race_succeeds_when_its_goal_is_reached(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer) as chain:
        async with mining_stopped(instant):
            # All estimates see an unregistered channel; in the block the order of the nonces decides.
            final = asyncio.create_task(chain.conclude_final(channel.params, channel.signed(3, is_final=True)))
            await _pending(instant, payer, 1)
            register = asyncio.create_task(chain.register(channel.params, channel.signed(2)))
            await _pending(instant, payer, 2)
        assert await final == await register
        assert (await final).version == 3
    assert await count(instant, payer) == 2


async def test_a_transaction_that_fails_when_mined_is_an_error_and_can_be_repeated(
    instant: Ledger, funded: Funded
) -> None:
    payer, store = await funded(instant, tokens=5), MemoryStore()
    channel = Channel((instant.token_holder,), ((5, 0),))
    funding_id = channel.funding_id(0)
    async with instant.open(payer, store=store, config=FORGETFUL) as chain:
        await chain.deposit(instant.token_holder, instant.token, funding_id, 1)
        await _transact(instant, payer, instant.token, "095ea7b3", instant.token_holder, 100)
        async with mining_stopped(instant):
            await _transact(instant, payer, instant.token, "a9059cbb", NOBODY, 4)
            deposit = asyncio.create_task(chain.deposit(instant.token_holder, instant.token, funding_id, 5))
            await _pending(instant, payer, 5)
        with pytest.raises(TxReverted) as caught:
            await deposit
        assert caught.value.tx_type == "fund"
        assert (await instant.rpc("eth_getTransactionReceipt", caught.value.tx_id))["status"] == "0x0"
        assert records(store) == []
        with pytest.raises(InsufficientFunds):
            await chain.deposit(instant.token_holder, instant.token, funding_id, 5)


async def _transact(ledger: Ledger, key: Key, to: Address, selector: str, who: Address, amount: int) -> None:
    data = bytes.fromhex(selector) + bytes(12) + who + amount.to_bytes(32, "big")
    nonce = await count(ledger, key, "pending")
    raw = await key.sign(UnsignedTx(1337, nonce, 10**9, 20 * 10**9, 100_000, to, 0, data))
    await ledger.rpc("eth_sendRawTransaction", "0x" + raw.hex())


async def _pending(ledger: Ledger, key: Key, transactions: int) -> None:
    async with asyncio.timeout(10):
        while await count(ledger, key, "pending") < transactions:  # noqa: ASYNC110 - a node has no event
            await asyncio.sleep(0.02)


async def test_addresses_without_code_or_with_other_code_are_no_contracts(instant: Ledger, funded: Funded) -> None:
    adjudicator = Address.from_hex(instant.contracts.adjudicator)
    async with instant.open() as chain:
        for holder in (NOBODY, instant.token, adjudicator, instant.token_holder):
            with pytest.raises(ContractInvalid) as caught:
                await chain.validate_holder("ETH", holder, None)
            assert (caught.value.name, caught.value.address) == ("ETH", holder.checksum)
        with pytest.raises(ContractInvalid):
            await chain.validate_holder("PRN", instant.token_holder, NOBODY)
    for wrong in (NOBODY, instant.eth_holder):
        async with instant.open(contracts=Contracts(wrong, instant.eth_holder)) as chain:
            with pytest.raises(ContractInvalid) as caught:
                await chain.validate_adjudicator()
            assert caught.value.name == "adjudicator"
            with pytest.raises(ContractInvalid):
                await chain.validate_holder("ETH", instant.eth_holder, None)


async def test_a_token_says_its_symbol_and_decimals(instant: Ledger) -> None:
    async with instant.open() as chain:
        info = await chain.token_info(instant.token)
        assert (info.symbol, info.decimals) == ("PRN", 18)
        for other in (NOBODY, instant.eth_holder):
            with pytest.raises(TokenUnreadable):
                await chain.token_info(other)


async def test_the_gas_reserve_covers_a_whole_disputed_channel(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder, instant.token_holder), ((ETHER, 0), (5, 0)))
    key = channel.keys[0]
    async with instant.open(payer) as chain:
        reserve = await chain.quote_open(((None, ETHER), (instant.token, 5)))
        before = await chain.balance(payer.address)
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        await chain.deposit(instant.token_holder, instant.token, channel.funding_id(0), 5)
        dispute = await chain.register(channel.params, channel.signed(1))
        await instant.pass_time(dispute.challenge_duration)
        await chain.conclude(channel.params, channel.state(1))
        for holder in channel.holders:
            authorise = key.authorise(channel.id, payer.address)
            await chain.withdraw(holder, channel.id, key.address, payer.address, authorise)
        spent = before - await chain.balance(payer.address)
        assert 0 < spent <= reserve


async def test_a_chain_opened_without_an_account_is_for_reading_only(instant: Ledger) -> None:
    async with instant.open() as chain:
        assert await chain.balance(NOBODY) >= 0
        with pytest.raises(ChainError, match="reading only"):
            await chain.deposit(instant.eth_holder, None, Bytes32(bytes(32)), 1)

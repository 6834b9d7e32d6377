"""Reorgs: what was confirmed, released or told stays true or is done again, and never twice (B2, B4, B18, B22)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes

from perun_chain_ethereum.connection import Connection
from perun_core.errors import TxReverted
from perun_core.ports.chain import BlockEvents, Chain, ChannelEvent, DisputePhase
from perun_core.ports.keymgr import UnsignedTx
from perun_core.testing.store import MemoryStore
from perun_core.values import Address

from .conftest import CHAIN_ID, ETHER, Channel, Key, Ledger

Funded = Callable[..., Any]
NOBODY = Address(b"\x11" * 20)
HIGH_FEE = 60 * 10**9


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until `check` gives something true, and give that."""
    async with asyncio.timeout(20):
        while not (found := await check()):  # noqa: ASYNC110 - a node has no event
            await asyncio.sleep(0.02)
        return found


class Hashes(list[str]):
    """Collects the hashes of what is sent."""

    async def note(self, tx_hash: str) -> None:
        self.append(tx_hash)


async def raw_of(ledger: Ledger, tx_hash: str) -> str:
    found: str = await until(lambda: ledger.rpc("eth_getRawTransactionByHash", tx_hash))
    return found


async def height(ledger: Ledger) -> int:
    return int(await ledger.rpc("eth_blockNumber"), 16)


async def nonce(ledger: Ledger, key: Key) -> int:
    return int(await ledger.rpc("eth_getTransactionCount", key.address.checksum, "latest"), 16)


async def still_waits(task: asyncio.Task[Any]) -> bool:
    """Whether the task goes on although the backend had the time of a whole look at the chain."""
    return not (await asyncio.wait({task}, timeout=1.2))[0]


# ------------------------------------------------------------------------------------------------ B2 confirmation


async def test_b2_a_transaction_counts_exactly_after_the_configured_number_of_blocks(
    instant: Ledger, funded: Funded
) -> None:
    payer, hashes = await funded(instant), Hashes()
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer, finality_depth=4) as chain:
        work = chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER, sent=hashes.note)
        deposit = asyncio.create_task(work)
        await until(lambda: _mined(instant, hashes))
        await instant.mine(2)
        assert await still_waits(deposit)
        await instant.mine()
        await deposit


@pytest.mark.parametrize(("depth", "again"), [(1, 1), (2, 2), (10, 9)], ids=lambda value: str(value))
async def test_b2_every_reorg_before_that_begins_the_count_anew(
    instant: Ledger, funded: Funded, depth: int, again: int
) -> None:
    """Twice moved to the tip of the chain, with as many blocks exchanged as the depth allows."""
    payer, hashes = await funded(instant), Hashes()
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer, finality_depth=depth + 1) as chain:
        work = chain.register(channel.params, channel.signed(1), sent=hashes.note)
        registering = asyncio.create_task(work)
        await until(lambda: _mined(instant, hashes))
        raw = await raw_of(instant, hashes[0])
        for _ in range(2):
            await instant.mine(depth - 1)
            await instant.rpc("anvil_reorg", depth, [[raw, again - 1]])
        for _ in range(depth):
            assert not registering.done()
            await instant.mine()
        mined = await instant.rpc("eth_getTransactionReceipt", hashes[0])
        await instant.mine(max(int(mined["blockNumber"], 16) + depth - await height(instant), 0))
        assert (await registering).version == 1
        assert await height(instant) - int(mined["blockNumber"], 16) >= depth
    assert await nonce(instant, payer) == 1


async def _mined(ledger: Ledger, hashes: Hashes) -> Any:
    return await ledger.rpc("eth_getTransactionReceipt", hashes[0]) if hashes else None


async def test_b2_a_transaction_that_a_reorg_moves_counts_from_its_new_block(instant: Ledger, funded: Funded) -> None:
    payer, hashes = await funded(instant), Hashes()
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer, finality_depth=4) as chain:
        work = chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER, sent=hashes.note)
        deposit = asyncio.create_task(work)
        await until(lambda: _mined(instant, hashes))
        await instant.mine(2)
        await instant.rpc("anvil_reorg", 3, [[await raw_of(instant, hashes[0]), 2]])
        await instant.mine(2)
        assert await still_waits(deposit)
        await instant.mine()
        await deposit
        assert await chain.holdings(instant.eth_holder, channel.funding_id(0)) == ETHER
    assert len(hashes) == 1


async def test_b2_a_transaction_that_a_reorg_displaces_never_counts_and_is_made_again(
    instant: Ledger, funded: Funded
) -> None:
    payer, hashes = await funded(instant), Hashes()
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer, finality_depth=3) as chain:
        work = chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER, sent=hashes.note)
        deposit = asyncio.create_task(work)
        await until(lambda: _mined(instant, hashes))
        other = await payer.sign(UnsignedTx(CHAIN_ID, 0, 10**9, 10**11, 21_000, NOBODY, 1, b""))
        await instant.rpc("anvil_reorg", 1, [["0x" + other.hex(), 0]])
        await instant.mine(2)
        await until(lambda: _second(hashes))
        assert not deposit.done()
        await instant.mine(2)
        await deposit
        assert await chain.holdings(instant.eth_holder, channel.funding_id(0)) == ETHER
    assert await instant.rpc("eth_getTransactionReceipt", hashes[0]) is None
    assert await nonce(instant, payer) == 2


async def _second(hashes: Hashes) -> bool:
    return len(hashes) == 2


# -------------------------------------------------------------------------------------- B22 a reorg across each step


async def _deposited(chain: Chain, ledger: Ledger, channel: Channel) -> Any:
    await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), ETHER)
    return await chain.holdings(ledger.eth_holder, channel.funding_id(0)) == ETHER


async def _registered(chain: Chain, ledger: Ledger, channel: Channel) -> Any:
    return (await chain.register(channel.params, channel.signed(1))).version == 1


async def _refuted(chain: Chain, ledger: Ledger, channel: Channel) -> Any:
    return (await chain.register(channel.params, channel.signed(2))).version == 2


async def _concluded(chain: Chain, ledger: Ledger, channel: Channel) -> Any:
    return (await chain.conclude_final(channel.params, channel.signed(3, is_final=True))).concluded


async def _withdrawn(chain: Chain, ledger: Ledger, channel: Channel) -> Any:
    key, receiver = channel.keys[0], Address(bytes(channel.keys[0].address[::-1]))
    authorise = key.authorise(channel.id, receiver)
    await chain.withdraw(ledger.eth_holder, channel.id, key.address, receiver, authorise)
    return await chain.balance(receiver) == ETHER


STEPS = (_deposited, _registered, _refuted, _concluded, _withdrawn)


@pytest.mark.parametrize("step", range(len(STEPS)), ids=["deposit", "register", "refute", "conclude", "withdraw"])
async def test_b22_a_step_that_a_reorg_removes_is_done_again_and_only_once(
    step: int, instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer) as chain:
        for earlier in STEPS[: step + 1]:
            assert await earlier(chain, instant, channel)
        await instant.rpc("anvil_reorg", 1, [])
        again = asyncio.create_task(_done(STEPS[step](chain, instant, channel)))
        while not again.done():  # a conclusion waits some blocks for deposits that might have gone with it
            await asyncio.wait({again}, timeout=0.5)
            await instant.mine()
        assert again.result()
        for later in STEPS[step + 1 :]:
            assert await later(chain, instant, channel)
    assert await nonce(instant, payer) == len(STEPS)


async def _done(work: Awaitable[Any]) -> Any:
    return await work


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_b22_all_steps_come_back_by_themselves_after_a_reorg_of_many_blocks(
    restarted: bool, instant: Ledger, funded: Funded
) -> None:
    payer, rows = await funded(instant), {}
    await instant.mine(12)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    receiver = Address(bytes(channel.keys[0].address[::-1]))
    async with instant.open(payer, store=MemoryStore(rows)) as chain:
        for step in STEPS:
            assert await step(chain, instant, channel)
        await instant.mine(2)
        if not restarted:
            await instant.rpc("anvil_reorg", 12, [])
            await until(lambda: _has(chain, receiver, instant))
    if restarted:
        await instant.rpc("anvil_reorg", 12, [])
        async with instant.open(payer, store=MemoryStore(rows)) as chain:
            await until(lambda: _has(chain, receiver, instant))
    assert await nonce(instant, payer) == len(STEPS)


async def _has(chain: Chain, account: Address, ledger: Ledger) -> bool:
    """Also moves the chain on, as a chain that is not a test's does by itself."""
    await ledger.mine()
    return await chain.balance(account) == ETHER


async def test_b22_a_conclusion_comes_back_only_after_the_deposits_it_divides(instant: Ledger, funded: Funded) -> None:
    """One reorg removes both deposits and the conclusion; bob, who made one of them, notices a block later."""
    alice, bob, rows = await funded(instant), await funded(instant), {}
    await instant.mine(8)
    channel = Channel((instant.eth_holder,), ((ETHER, 2 * ETHER),))
    paid = Channel((instant.eth_holder,), ((3 * ETHER, 0),), keys=channel.keys)
    paid.params, paid.id = channel.params, channel.id
    async with instant.open(alice) as one:
        await one.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        async with instant.open(bob, store=MemoryStore(rows)) as two:
            await two.deposit(instant.eth_holder, None, channel.funding_id(1), 2 * ETHER)
        await one.conclude_final(channel.params, paid.signed(1, is_final=True))
        await instant.rpc("evm_setAutomine", False)
        try:
            await instant.rpc("anvil_reorg", 6, [])
            await instant.rpc("anvil_dropAllTransactions")
            await instant.mine()
            await until(lambda: _pooled(instant, 1))
            await instant.mine()
            async with instant.open(bob, store=MemoryStore(rows)):
                await until(lambda: _has_pooled(instant, bob))
                await instant.mine()
        finally:
            await instant.rpc("evm_setAutomine", True)
        assert await one.holdings(instant.eth_holder, channel.funding_id(1)) == 2 * ETHER
        await until(lambda: _concluded_again(one, instant, channel))
        assert await one.holdings(instant.eth_holder, channel.funding_id(0)) == 3 * ETHER


async def _pooled(ledger: Ledger, number: int) -> bool:
    return int((await ledger.rpc("txpool_status"))["pending"], 16) >= number


async def _has_pooled(ledger: Ledger, key: Key) -> bool:
    pool = (await ledger.rpc("txpool_content"))["pending"]
    return key.address.checksum.lower() in {address.lower() for address in pool}


async def _concluded_again(chain: Chain, ledger: Ledger, channel: Channel) -> bool:
    await ledger.mine()
    return (await chain.dispute(channel.id)).concluded


async def test_b20_what_the_node_takes_and_does_not_keep_is_offered_anew(
    instant: Ledger, funded: Funded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some nodes forget without a word what is priced out by the base fee."""
    payer, hashes = await funded(instant), Hashes()
    channel = Channel((instant.eth_holder,), ((0, 0),))
    send_raw = Connection.send_raw

    async def forgetful(self: Connection, raw: bytes) -> None:
        if TypedTransaction.from_bytes(HexBytes(raw)).as_dict()["maxFeePerGas"] >= HIGH_FEE:
            await send_raw(self, raw)

    async with instant.open(payer) as chain:
        await instant.rpc("evm_setAutomine", False)
        try:
            work = asyncio.create_task(chain.register(channel.params, channel.signed(1), sent=hashes.note))
            await until(lambda: _sent(hashes))
            await instant.rpc("anvil_dropAllTransactions")
            monkeypatch.setattr(Connection, "send_raw", forgetful)
            await until(lambda: _mined_at_a_high_fee(instant, payer))
        finally:
            await instant.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**9))
            await instant.mine()
            await instant.rpc("evm_setAutomine", True)
        assert (await work).version == 1


async def _sent(hashes: Hashes) -> bool:
    return bool(hashes)


async def _mined_at_a_high_fee(ledger: Ledger, key: Key) -> bool:
    await ledger.rpc("anvil_setNextBlockBaseFeePerGas", hex(HIGH_FEE))
    await ledger.mine()
    return await nonce(ledger, key) == 1


async def test_b22_a_conclusion_that_loses_to_a_reordered_refutation_does_not_stand(
    instant: Ledger, funded: Funded
) -> None:
    alice, bob = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),), challenge_duration=10_000)
    hashes = Hashes()
    async with instant.open(alice) as one, instant.open(bob) as two:
        await one.register(channel.params, channel.signed(1))
        state = await instant.rpc("evm_snapshot")
        await two.register(channel.params, channel.signed(2), sent=hashes.note)
        refutation = await raw_of(instant, hashes[0])
        await instant.rpc("evm_revert", state)
        # Without the refutation, time passes and the old state is concluded.
        state = await instant.rpc("evm_snapshot")
        await instant.pass_time(10_001)
        assert (await one.conclude(channel.params, channel.state(1))).version == 1
        # The chain decides for the branch with the refutation.
        await instant.rpc("evm_revert", state)
        await instant.rpc("eth_sendRawTransaction", refutation)
        await instant.pass_time(10_001)
        assert await until(lambda: _version(two, channel)) == 2
        losing = asyncio.create_task(_done(one.conclude(channel.params, channel.state(1))))
        while not losing.done():
            await asyncio.wait({losing}, timeout=0.3)
            await instant.mine()
        with pytest.raises(TxReverted):
            await losing
        assert (await two.conclude(channel.params, channel.state(2))).version == 2


async def _version(chain: Chain, channel: Channel) -> int:
    return (await chain.dispute(channel.id)).version


# --------------------------------------------------------------------------------------------------- B4 events undone


async def _mining(ledger: Ledger, reading: Coroutine[Any, Any, list[BlockEvents]]) -> list[BlockEvents]:
    """What `reading` gives while blocks go on coming, as they do on a real chain."""
    reader = asyncio.create_task(reading)
    while not reader.done():
        await asyncio.wait({reader}, timeout=0.5)
        if not reader.done():
            await ledger.mine()
    return await reader


async def _read(feed: Any, check: Callable[[list[BlockEvents]], bool]) -> list[BlockEvents]:
    items: list[BlockEvents] = []
    async with asyncio.timeout(20):
        while not check(items):
            items.append(await anext(feed))
    return items


def _events(items: list[BlockEvents]) -> list[ChannelEvent]:
    return [event for item in items for event in item.events]


def _undone(items: list[BlockEvents]) -> list[ChannelEvent]:
    return [event for item in items for event in item.undone]


async def test_b4_a_released_event_that_a_deep_reorg_removes_is_undone_and_may_come_again(
    instant: Ledger, funded: Funded
) -> None:
    payer, hashes = await funded(instant), Hashes()
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer) as chain, instant.open() as watcher, aclosing(watcher.events(None)) as feed:
        await anext(feed)
        await chain.register(channel.params, channel.signed(1), sent=hashes.note)
        raw = await raw_of(instant, hashes[0])
        first = _events(await _read(feed, lambda items: bool(_events(items))))
        await instant.rpc("anvil_reorg", 1, [])
        items = await _mining(instant, _read(feed, lambda items: bool(_undone(items))))
        assert _undone(items) == first
        items += await _mining(instant, _read(feed, lambda more: bool(_events(items + more))))
        again = _events(items)
    assert [event.tx_hash for event in again] == [first[0].tx_hash]
    assert (again[0].block_hash, again[0].log_index) != (first[0].block_hash, first[0].log_index)
    assert raw


async def test_b4_events_are_final_only_at_their_depth_whatever_is_exchanged_before(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    channels = [Channel((instant.eth_holder,), ((0, 0),)) for _ in range(6)]
    dice = random.Random(4)
    depth = 5
    await instant.mine(depth)
    start = await height(instant)
    async with (
        instant.open(payer) as chain,
        instant.open(finality_depth=depth) as watcher,
        aclosing(watcher.events(start)) as feed,
    ):
        reader = asyncio.create_task(_read(feed, lambda items: len(_events(items)) == len(channels)))
        for version, channel in enumerate(channels, start=1):
            await chain.register(channel.params, channel.signed(version))
            for _ in range(dice.randrange(3)):
                await instant.rpc("anvil_reorg", dice.randrange(1, depth), [])
                await until(lambda channel=channel: _version(chain, channel))
        await instant.mine(depth)
        while not reader.done():
            await instant.mine()
            await asyncio.wait({reader}, timeout=0.5)
        items = await reader
    assert not _undone(items)
    assert {event.channel_id for event in _events(items)} == {channel.id for channel in channels}
    places = [(event.block_number, event.log_index) for event in _events(items)]
    assert places == sorted(places)
    for event in _events(items):
        block = await instant.rpc("eth_getBlockByNumber", hex(event.block_number), False)
        assert block["hash"] == "0x" + event.block_hash.hex()


async def test_b4_a_removed_event_is_never_delivered(instant: Ledger, funded: Funded) -> None:
    payer, hashes = await funded(instant), Hashes()
    gone, stays = (Channel((instant.eth_holder,), ((0, 0),)) for _ in range(2))
    async with instant.open(payer) as chain:
        start = await height(instant)
        async with instant.open(finality_depth=4) as watcher, aclosing(watcher.events(start)) as feed:
            await chain.register(gone.params, gone.signed(1), sent=hashes.note)
            other = await payer.sign(UnsignedTx(CHAIN_ID, 0, 10**9, 10**11, 21_000, NOBODY, 1, b""))
            await instant.rpc("anvil_reorg", 1, [["0x" + other.hex(), 0]])
            await chain.register(stays.params, stays.signed(2))
            await instant.mine(4)
            items = await _read(feed, lambda items: bool(_events(items)))
    assert [event.channel_id for event in _events(items)] == [stays.id]
    assert not _undone(items)


# ------------------------------------------------------------------------------------------------------- B18 block time


async def test_b18_time_that_has_passed_is_seen_at_once_on_an_idle_chain(instant: Ledger) -> None:
    async with instant.open() as chain:
        now = (await chain.head()).timestamp
        async with asyncio.timeout(5), aclosing(chain.blocks()) as blocks:
            assert (await anext(blocks)).timestamp >= now


async def test_b18_waiting_for_a_block_can_be_cancelled_and_begun_again(instant: Ledger) -> None:
    async with instant.open() as chain, aclosing(chain.blocks()) as blocks:
        await anext(blocks)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(blocks)
        async with aclosing(chain.blocks()) as others:
            before = await anext(others)
            await instant.mine()
            assert (await anext(others)).number == before.number + 1


async def test_b18_a_reorg_to_an_earlier_time_is_told(instant: Ledger) -> None:
    async with instant.open() as chain, aclosing(chain.blocks()) as blocks:
        state = await instant.rpc("evm_snapshot")
        await instant.pass_time(1000)
        late = await until(lambda: _head_after(chain, 0))
        block = await anext(blocks)
        while block.hash != late.hash:
            block = await anext(blocks)
        await instant.rpc("evm_revert", state)
        await instant.mine()
        block = await anext(blocks)
        assert block.hash == (await chain.head()).hash
        assert block.timestamp < late.timestamp


async def _head_after(chain: Chain, number: int) -> Any:
    head = await chain.head()
    return head if head.number > number else None


async def test_b15_phases_of_a_channel_are_told_in_order_and_to_every_reader(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer) as chain:
        start = await height(instant)
        async with aclosing(chain.events(start)) as feed:
            await chain.register(channel.params, channel.signed(1))
            await chain.register(channel.params, channel.signed(2))
            await chain.conclude_final(channel.params, channel.signed(3, is_final=True))
            first = _events(await _read(feed, lambda items: len(_events(items)) == 3))
        async with aclosing(chain.events(start)) as feed:
            second = _events(await _read(feed, lambda items: len(_events(items)) == 3))
    assert first == second
    assert [(event.version, event.phase) for event in first] == [
        (1, DisputePhase.DISPUTE),
        (2, DisputePhase.DISPUTE),
        (3, DisputePhase.CONCLUDED),
    ]

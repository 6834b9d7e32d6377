"""The account's queue under fire: shared nonces, lost and stuck transactions, fee spikes, gaps (B19, B20, B23).

Blocks come only when a test says so; what the backend does in between is waited for, never guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perun_chain_ethereum.opening import EthereumConfig
from perun_core.errors import ChainError, InsufficientFunds, TxReverted, TxTimedOut
from perun_core.ports.chain import Chain, DisputePhase
from perun_core.ports.keymgr import UnsignedTx
from perun_core.testing.store import MemoryStore
from perun_core.values import Address

from .conftest import CHAIN_ID, ETHER, Channel, Key, Ledger, anvil_ledger

Funded = Callable[..., Any]
GWEI = 10**9
NOBODY = Address(b"\x11" * 20)


@pytest.fixture(scope="module")
def manual() -> Iterator[Ledger]:
    """anvil that mines only when told to, in the order of the fees."""
    with anvil_ledger() as ledger:
        yield ledger


@asynccontextmanager
async def by_hand(ledger: Ledger) -> AsyncIterator[None]:
    """Blocks only by `ledger.mine()` inside."""
    await ledger.rpc("evm_setAutomine", False)
    try:
        yield
    finally:
        await ledger.rpc("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
        await ledger.rpc("evm_setAutomine", True)
        await ledger.mine()


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until `check` gives something true, and give that."""
    async with asyncio.timeout(20):
        while not (found := await check()):  # noqa: ASYNC110 - a node has no event
            await asyncio.sleep(0.02)
        return found


async def nonce(ledger: Ledger, key: Key, block: str = "latest") -> int:
    return int(await ledger.rpc("eth_getTransactionCount", key.address.checksum, block), 16)


async def in_pool(ledger: Ledger, key: Key) -> dict[int, dict[str, Any]]:
    """The account's transactions that wait to be mined, by nonce."""
    content = (await ledger.rpc("txpool_content"))["pending"]
    found = next((txs for sender, txs in content.items() if sender.lower() == key.address.checksum.lower()), {})
    return {int(number): tx for number, tx in found.items()}


async def base_fee(ledger: Ledger) -> int:
    return int((await ledger.rpc("eth_getBlockByNumber", "latest", False))["baseFeePerGas"], 16)


def one_ether(ledger: Ledger) -> Channel:
    return Channel((ledger.eth_holder,), ((ETHER, 0),))


async def deposit(chain: Chain, ledger: Ledger, channel: Channel, **more: Any) -> None:
    await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), ETHER, **more)


async def held(chain: Chain, ledger: Ledger, channel: Channel) -> int:
    return await chain.holdings(ledger.eth_holder, channel.funding_id(0))


async def raw_transfer(key: Key, number: int, *, max_fee: int = 100 * GWEI, tip: int = GWEI) -> str:
    raw = await key.sign(UnsignedTx(CHAIN_ID, number, tip, max_fee, 21_000, NOBODY, 1, b""))
    return "0x" + raw.hex()


# ------------------------------------------------------------ B19 nonces


async def test_b19_parallel_sends_of_two_sessions_use_consecutive_nonces(manual: Ledger, funded: Funded) -> None:
    payer = await funded(manual, ether=100 * ETHER)
    channels = [one_ether(manual) for _ in range(20)]
    shared = {"account_lock": asyncio.Lock(), "account_book": {}}
    async with manual.open(payer, **shared) as one, manual.open(payer, **shared) as two:
        async with by_hand(manual):
            work = [asyncio.create_task(deposit((one, two)[i % 2], manual, c)) for i, c in enumerate(channels)]
            await until(lambda: _all_pending(manual, payer, 20))
        await asyncio.gather(*work)
        assert [await held(one, manual, channel) for channel in channels] == [ETHER] * 20
    assert await nonce(manual, payer) == 20


async def _all_pending(ledger: Ledger, key: Key, number: int) -> bool:
    return sorted(await in_pool(ledger, key)) == list(range(number))


async def test_b19_another_process_with_the_same_key_does_not_wedge_us(manual: Ledger, funded: Funded) -> None:
    payer = await funded(manual, ether=100 * ETHER)
    channels = [one_ether(manual) for _ in range(12)]
    async with manual.open(payer) as one, manual.open(payer) as other:
        await asyncio.gather(*(deposit((one, other)[i % 2], manual, c) for i, c in enumerate(channels)))
        assert [await held(one, manual, channel) for channel in channels] == [ETHER] * 12
    assert await nonce(manual, payer) == 12


async def test_b19_a_transaction_that_another_process_displaced_is_made_again(manual: Ledger, funded: Funded) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    async with manual.open(payer) as chain:
        async with by_hand(manual):
            ours = asyncio.create_task(deposit(chain, manual, channel))
            await until(lambda: in_pool(manual, payer))
            await manual.rpc("eth_sendRawTransaction", await raw_transfer(payer, 0, max_fee=1000 * GWEI, tip=50 * GWEI))
            await manual.mine()
        await ours
        assert await held(chain, manual, channel) == ETHER
    assert await nonce(manual, payer) == 2


async def test_b19_what_was_pending_before_a_restart_is_mined_without_anybody_asking(
    manual: Ledger, funded: Funded
) -> None:
    payer, rows = await funded(manual), {}
    channels = [one_ether(manual) for _ in range(3)]
    async with by_hand(manual):
        async with manual.open(payer, tx_timeout=0.5, store=MemoryStore(rows)) as chain:
            results = await asyncio.gather(*(deposit(chain, manual, c) for c in channels), return_exceptions=True)
            assert [type(result) for result in results] == [TxTimedOut] * 3
        await manual.rpc("anvil_dropAllTransactions")
    async with manual.open(payer, store=MemoryStore(rows)) as chain:
        for channel in channels:
            await until(lambda channel=channel: held(chain, manual, channel))
            await deposit(chain, manual, channel)
    assert await nonce(manual, payer) == 3


async def test_b19_the_transactions_of_a_closed_session_do_not_block_the_others(manual: Ledger, funded: Funded) -> None:
    payer, first, second = await funded(manual), one_ether(manual), one_ether(manual)
    shared = {"account_lock": asyncio.Lock(), "account_book": {}}
    async with manual.open(payer, **shared) as stays:
        async with by_hand(manual):
            async with manual.open(payer, tx_timeout=0.3, **shared) as leaves:
                with pytest.raises(TxTimedOut):
                    await deposit(leaves, manual, first)
            await manual.rpc("anvil_dropAllTransactions")
            ours = asyncio.create_task(deposit(stays, manual, second))
            await until(lambda: _all_pending(manual, payer, 2))
        await ours
        assert await held(stays, manual, first) == await held(stays, manual, second) == ETHER


async def test_b19_a_gap_that_nobody_else_fills_is_filled_with_an_empty_transfer(
    manual: Ledger, funded: Funded
) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    async with manual.open(payer) as chain:
        async with by_hand(manual):
            foreign = await manual.rpc("eth_sendRawTransaction", await raw_transfer(payer, 0))
            ours = asyncio.create_task(deposit(chain, manual, channel))
            await until(lambda: _all_pending(manual, payer, 2))
            await manual.rpc("anvil_dropTransaction", foreign)
            for _ in range(7):
                await manual.mine()
            filler = (await until(lambda: in_pool(manual, payer)))[0]
            assert (int(filler["value"], 16), filler["input"]) == (0, "0x")
            assert filler["to"].lower() == payer.address.checksum.lower()
        await ours
        assert await held(chain, manual, channel) == ETHER
    assert await nonce(manual, payer) == 2


async def test_b19_costs_of_what_is_on_its_way_are_not_spent_twice(manual: Ledger, funded: Funded) -> None:
    payer = await funded(manual, ether=3 * ETHER // 2)
    async with manual.open(payer) as chain:
        async with by_hand(manual):
            first = asyncio.create_task(deposit(chain, manual, one_ether(manual)))
            await until(lambda: in_pool(manual, payer))
            with pytest.raises(InsufficientFunds):
                await deposit(chain, manual, one_ether(manual))
        await first
    assert await nonce(manual, payer) == 1


# ------------------------------------------------------------ B20 stuck transactions


async def test_b20_a_transaction_dropped_from_the_pool_comes_back_by_itself(manual: Ledger, funded: Funded) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    async with manual.open(payer) as chain:
        async with by_hand(manual):
            ours = asyncio.create_task(deposit(chain, manual, channel))
            before = (await until(lambda: in_pool(manual, payer)))[0]["hash"]
            await manual.rpc("anvil_dropTransaction", before)
            assert (await until(lambda: in_pool(manual, payer)))[0]["hash"] == before
        await ours
    assert await nonce(manual, payer) == 1


async def _priced_out(ledger: Ledger, key: Key, *, factor: int = 20) -> tuple[dict[str, Any], int]:
    """Let the base fee rise beyond what the account's transaction offers; the transaction, and the new base fee."""
    stuck = (await until(lambda: in_pool(ledger, key)))[0]
    spike = factor * int(stuck["maxFeePerGas"], 16)
    await ledger.rpc("anvil_setNextBlockBaseFeePerGas", hex(spike))
    await ledger.mine()
    assert await nonce(ledger, key) == 0
    return stuck, spike


async def _replaced(ledger: Ledger, key: Key, old: dict[str, Any]) -> dict[str, Any]:
    async def other() -> dict[str, Any] | None:
        tx = (await in_pool(ledger, key)).get(0)
        return tx if tx is not None and tx["hash"] != old["hash"] else None

    found: dict[str, Any] = await until(other)
    return found


async def test_b20_after_a_base_fee_spike_the_offer_is_raised_and_the_money_moves_once(
    manual: Ledger, funded: Funded
) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    async with manual.open(payer) as chain, by_hand(manual):
        ours = asyncio.create_task(deposit(chain, manual, channel))
        old, spike = await _priced_out(manual, payer)
        new = await _replaced(manual, payer, old)
        assert int(new["maxFeePerGas"], 16) > spike
        for part in ("maxFeePerGas", "maxPriorityFeePerGas"):
            assert 1000 * int(new[part], 16) >= 1125 * int(old[part], 16)
        assert (new["input"], new["value"], new["nonce"]) == (old["input"], old["value"], old["nonce"])
        await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(spike))
        await manual.mine()
        await ours
        assert await held(chain, manual, channel) == ETHER
    assert await nonce(manual, payer) == 1


async def test_b20_the_original_may_be_mined_after_all(manual: Ledger, funded: Funded) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    told: list[str] = []

    async def note(tx_hash: str) -> None:
        told.append(tx_hash)

    async with manual.open(payer) as chain, by_hand(manual):
        ours = asyncio.create_task(deposit(chain, manual, channel, sent=note))
        original = await until(lambda: _raw(manual, payer))
        old, _ = await _priced_out(manual, payer)
        new = await _replaced(manual, payer, old)
        await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(GWEI // 10))
        await manual.rpc("anvil_dropTransaction", new["hash"])
        await manual.rpc("eth_sendRawTransaction", original)
        await manual.mine()
        await ours
        assert await manual.rpc("eth_getTransactionReceipt", old["hash"]) is not None
        assert await held(chain, manual, channel) == ETHER
    assert told == [old["hash"]]
    assert await nonce(manual, payer) == 1


async def _raw(ledger: Ledger, key: Key) -> Any:
    tx = (await in_pool(ledger, key)).get(0)
    return None if tx is None else await ledger.rpc("eth_getRawTransactionByHash", tx["hash"])


async def test_b20_a_timed_out_caller_does_not_stop_the_transaction_from_being_pursued(
    manual: Ledger, funded: Funded
) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    async with manual.open(payer, tx_timeout=0.5) as chain:
        async with by_hand(manual):
            with pytest.raises(TxTimedOut):
                await deposit(chain, manual, channel)
            old, spike = await _priced_out(manual, payer)
            await _replaced(manual, payer, old)
            await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(spike))
            await manual.mine()
        await deposit(chain, manual, channel)
        assert await held(chain, manual, channel) == ETHER
    assert await nonce(manual, payer) == 1


async def test_b20_without_a_deadline_the_soft_limit_is_kept(manual: Ledger, funded: Funded) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    limits = EthereumConfig(max_fee_gwei=10, hard_max_fee_gwei=1000)
    async with manual.open(payer, config=limits) as chain:
        async with by_hand(manual):
            ours = asyncio.create_task(deposit(chain, manual, channel))
            await until(lambda: in_pool(manual, payer))
            for _ in range(3):
                await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(11 * GWEI))
                await manual.mine()
                assert all(int(tx["maxFeePerGas"], 16) <= 10 * GWEI for tx in (await in_pool(manual, payer)).values())
            # Nothing new is sent either while the base fee is above the limit.
            with pytest.raises(ChainError, match="base fee stays above"):
                async with manual.open(payer, config=limits, tx_timeout=0.3) as other:
                    await deposit(other, manual, one_ether(manual))
        await ours
    assert await nonce(manual, payer) == 1


async def test_b20_a_near_deadline_justifies_the_hard_limit_and_no_more(manual: Ledger, funded: Funded) -> None:
    payer = await funded(manual)
    channel = Channel((manual.eth_holder,), ((0, 0),))
    limits = EthereumConfig(max_fee_gwei=10, hard_max_fee_gwei=1000)
    async with manual.open(payer, config=limits) as chain, by_hand(manual):
        deadline = (await chain.head()).timestamp + 50
        ours = asyncio.create_task(chain.register(channel.params, channel.signed(2), deadline=deadline))
        old = (await until(lambda: in_pool(manual, payer)))[0]
        await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(100 * GWEI))
        await manual.mine()
        new = await _replaced(manual, payer, old)
        assert 100 * GWEI < int(new["maxFeePerGas"], 16) <= 1000 * GWEI
        await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(100 * GWEI))
        await manual.mine()
        assert (await ours).version == 2


async def test_b20_a_deadline_hurries_what_is_in_front_of_it(manual: Ledger, funded: Funded) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    disputed = Channel((manual.eth_holder,), ((0, 0),))
    limits = EthereumConfig(max_fee_gwei=10, hard_max_fee_gwei=1000)
    async with manual.open(payer, config=limits) as chain, by_hand(manual):
        calm = asyncio.create_task(deposit(chain, manual, channel))
        old = (await until(lambda: in_pool(manual, payer)))[0]
        deadline = (await chain.head()).timestamp + 50
        urgent = asyncio.create_task(chain.register(disputed.params, disputed.signed(2), deadline=deadline))
        await until(lambda: _all_pending(manual, payer, 2))
        await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(100 * GWEI))
        await manual.mine()
        await _replaced(manual, payer, old)
        for _ in range(20):
            await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(100 * GWEI))
            await manual.mine()
            if (await asyncio.wait({urgent}, timeout=0.2))[0]:
                break
        assert (await urgent).version == 2
        await calm


async def test_b20_what_has_become_pointless_is_given_up_instead_of_reverting(manual: Ledger, funded: Funded) -> None:
    alice, bob = await funded(manual), await funded(manual)
    channel = Channel((manual.eth_holder,), ((0, 0),))
    final = channel.signed(3, is_final=True)
    async with manual.open(alice) as one, manual.open(bob) as two:
        async with by_hand(manual):
            ours = asyncio.create_task(one.conclude_final(channel.params, final))
            stuck = (await until(lambda: in_pool(manual, alice)))[0]
            theirs = asyncio.create_task(two.conclude_final(channel.params, final))
            await until(lambda: in_pool(manual, bob))
            await manual.rpc("anvil_dropTransaction", stuck["hash"])
            await manual.rpc("evm_mine")
            await theirs
            last = await _replaced(manual, alice, stuck)
            if last["input"] != "0x":
                pytest.fail("a transaction that would revert was sent")
        assert (await ours).phase is DisputePhase.CONCLUDED
    assert await nonce(manual, alice) == 1


async def test_b20_fees_that_rose_while_a_transaction_was_being_made_are_quoted_again(
    manual: Ledger, funded: Funded
) -> None:
    payer, channel = await funded(manual), one_ether(manual)
    async with manual.open(payer) as chain, by_hand(manual):
        # The node knows the next block's base fee already; the latest block's does not tell it.
        await manual.rpc("anvil_setNextBlockBaseFeePerGas", hex(20 * 2 * await base_fee(manual)))
        ours = asyncio.create_task(deposit(chain, manual, channel))
        await until(lambda: in_pool(manual, payer))
        await manual.mine()
        await until(lambda: _mined_or_more(manual, payer))
        await ours
    assert await nonce(manual, payer) == 1


async def _mined_or_more(ledger: Ledger, key: Key) -> bool:
    if await nonce(ledger, key) == 1:
        return True
    await ledger.mine()
    return False


# ------------------------------------------------------------ B23 gas


async def test_b23_a_transaction_that_no_block_can_hold_is_refused_before_it_is_sent(
    manual: Ledger, funded: Funded
) -> None:
    payer = await funded(manual)
    holders = tuple(Address(number.to_bytes(20, "big")) for number in range(1, 6000))
    channel = Channel(holders, ((0, 0),) * len(holders))
    async with manual.open(payer) as chain:
        with pytest.raises(ChainError) as caught:
            await chain.register(channel.params, channel.signed(1))
        assert not isinstance(caught.value, TxTimedOut | TxReverted)
    assert await nonce(manual, payer) == 0

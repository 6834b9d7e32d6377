"""Funding, concluding and withdrawing in every constellation: what is paid is what the chain says (B8, B9, B11–B14)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from eth_abi.abi import encode

from perun_chain_ethereum import abi
from perun_chain_ethereum.artifacts import ContractKind, load
from perun_core.channel import State, SubAlloc
from perun_core.errors import ChainError, InsufficientFunds, TxReverted
from perun_core.ports.chain import Chain
from perun_core.ports.keymgr import UnsignedTx
from perun_core.values import Address, Sig

from .conftest import CHAIN_ID, ETHER, Channel, Key, Ledger, participants

Funded = Callable[..., Any]


async def nonce(ledger: Ledger, key: Key, block: str = "latest") -> int:
    return int(await ledger.rpc("eth_getTransactionCount", key.address.checksum, block), 16)


async def call_contract(ledger: Ledger, key: Key, to: Address | None, data: bytes, value: int = 0) -> Any:
    """A transaction made by hand; its receipt."""
    raw = await key.sign(UnsignedTx(CHAIN_ID, await nonce(ledger, key), 10**9, 100 * 10**9, 3_000_000, to, value, data))
    tx_hash = await ledger.rpc("eth_sendRawTransaction", "0x" + raw.hex())
    async with asyncio.timeout(10):
        while (receipt := await ledger.rpc("eth_getTransactionReceipt", tx_hash)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert receipt["status"] == "0x1"
    return receipt


async def pay_out(chain: Chain, holder: Address, channel: Channel, part: int) -> tuple[int, int]:
    """Withdraw to a fresh account: what the backend reports, and what the account got."""
    key = channel.keys[part]
    receiver = Address(bytes(key.address[::-1]))
    amount = await chain.withdraw(holder, channel.id, key.address, receiver, key.authorise(channel.id, receiver))
    return amount, await chain.balance(receiver)


# ------------------------------------------------------------------------------------------------ B8, B9 depositing


async def test_b8_only_what_is_missing_is_deposited_whoever_deposited_the_rest(instant: Ledger, funded: Funded) -> None:
    payer, friend = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((5 * ETHER, ETHER),))
    funding_id = channel.funding_id(0)
    async with instant.open(payer) as chain, instant.open(friend) as other:
        await other.deposit(instant.eth_holder, None, funding_id, 2 * ETHER)
        await instant.mine(101)
        before = await chain.balance(payer.address)
        await chain.deposit(instant.eth_holder, None, funding_id, 5 * ETHER)
        spent = before - await chain.balance(payer.address)
        assert 3 * ETHER < spent < 3 * ETHER + ETHER // 10
        assert await chain.holdings(instant.eth_holder, funding_id) == 5 * ETHER


async def test_b8_a_deposit_of_somebody_else_counts_when_it_is_final_and_is_not_made_again(
    instant: Ledger, funded: Funded
) -> None:
    payer, friend = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    funding_id = channel.funding_id(0)
    async with instant.open(payer, finality_depth=3) as chain, instant.open(friend) as other:
        await other.deposit(instant.eth_holder, None, funding_id, ETHER)
        assert await chain.holdings(instant.eth_holder, funding_id) == 0
        deposit = asyncio.create_task(chain.deposit(instant.eth_holder, None, funding_id, ETHER))
        assert not (await asyncio.wait({deposit}, timeout=0.3))[0]
        await instant.mine(2)
        await deposit
        assert await chain.holdings(instant.eth_holder, funding_id) == ETHER
    assert await nonce(instant, payer) == 0


async def test_b8_what_one_participant_deposits_too_much_does_not_cover_another(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, ETHER),))
    async with instant.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), 3 * ETHER)
        assert await chain.holdings(instant.eth_holder, channel.funding_id(1)) == 0


async def test_b9_an_allowance_left_over_is_used_and_a_small_one_is_raised(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.token_holder,), ((100, 0),))
    async with instant.open(payer) as chain:
        await call_contract(instant, payer, instant.token, abi.call_approve(instant.token_holder, 40))
        await chain.deposit(instant.token_holder, instant.token, channel.funding_id(0), 40)
        assert await nonce(instant, payer) == 2  # the approval by hand, and the deposit
        await call_contract(instant, payer, instant.token, abi.call_approve(instant.token_holder, 1))
        await chain.deposit(instant.token_holder, instant.token, channel.funding_id(0), 100)
        assert await nonce(instant, payer) == 5
        assert await chain.holdings(instant.token_holder, channel.funding_id(0)) == 100


async def test_b9_a_deposit_that_a_contract_refuses_is_an_error_and_sends_nothing(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer) as chain:
        with pytest.raises(ChainError):
            await chain.deposit(instant.token, None, channel.funding_id(0), 1)  # not an asset holder
        with pytest.raises(InsufficientFunds):
            await chain.deposit(instant.token_holder, instant.token, channel.funding_id(0), 10**6)
        assert await nonce(instant, payer) == 0
        with pytest.raises(TxReverted):
            await chain.deposit(instant.eth_holder, instant.token, channel.funding_id(0), 1)  # holds no tokens
    assert await nonce(instant, payer) == 1  # the allowance


# --------------------------------------------------------------------------------------------- B11, B12 many parties


@pytest.mark.parametrize("number", [1, 2, 5, 10])
async def test_b11_a_final_state_of_any_number_of_parties_is_concluded_once(
    number: int, instant: Ledger, funded: Funded
) -> None:
    payer, other = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER // 100,) * number,), keys=participants(number))
    async with instant.open(payer) as chain, instant.open(other) as second:
        for part in range(number):
            await chain.deposit(instant.eth_holder, None, channel.funding_id(part), ETHER // 100)
        final = channel.signed(1, is_final=True)
        assert (await chain.conclude_final(channel.params, final)).concluded
        assert (await second.conclude_final(channel.params, final)).concluded
        assert await nonce(instant, other) == 0
        paid = await asyncio.gather(*(pay_out(chain, instant.eth_holder, channel, part) for part in range(number)))
        assert paid == [(ETHER // 100, ETHER // 100)] * number
        # B12: everything again, without a transaction.
        before = await nonce(instant, payer)
        again = [await pay_out(chain, instant.eth_holder, channel, part) for part in range(number)]
        assert again == [(0, ETHER // 100)] * number
        assert await nonce(instant, payer) == before == 2 * number + 1


async def test_b11_two_parties_that_send_at_the_same_time_both_succeed(instant: Ledger, funded: Funded) -> None:
    alice, bob = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    final = channel.signed(1, is_final=True)
    async with instant.open(alice) as one, instant.open(bob) as two:
        await instant.rpc("evm_setAutomine", False)
        try:
            work = [asyncio.create_task(chain.conclude_final(channel.params, final)) for chain in (one, two)]
            await _both_pending(instant, alice, bob)
        finally:
            await instant.rpc("evm_setAutomine", True)
            await instant.mine()
        assert [dispute.concluded for dispute in await asyncio.gather(*work)] == [True, True]
    assert [await nonce(instant, key) for key in (alice, bob)] == [1, 1]


async def _both_pending(ledger: Ledger, *keys: Key) -> None:
    async with asyncio.timeout(10):
        while not all([await nonce(ledger, key, "pending") for key in keys]):  # noqa: ASYNC110 - a node has no event
            await asyncio.sleep(0.02)


async def test_b12_nothing_is_withdrawn_before_the_channel_is_concluded(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        with pytest.raises(TxReverted, match="not settled"):
            await pay_out(chain, instant.eth_holder, channel, 0)
    assert await nonce(instant, payer) == 1


async def test_b12_a_withdrawal_that_somebody_else_sent_is_reported_as_the_chain_tells_it(
    instant: Ledger, funded: Funded
) -> None:
    payer, other = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    key, receiver = channel.keys[0], Address(bytes(channel.keys[0].address[::-1]))
    async with instant.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        await chain.conclude_final(channel.params, channel.signed(1, is_final=True))

        async def authorise_and_lose(amount: int) -> Sig:
            sig: Sig = await key.authorise(channel.id, receiver)(amount)
            data = abi.call_withdraw(channel.id, key.address, receiver, amount, sig)
            await call_contract(instant, other, instant.eth_holder, data)
            return sig

        amount = await chain.withdraw(instant.eth_holder, channel.id, key.address, receiver, authorise_and_lose)
        assert amount == await chain.balance(receiver) == ETHER
    assert await nonce(instant, payer) == 2


async def test_b12_everything_is_withdrawn_although_the_channel_was_concluded_after_its_deposit_was_looked_at(
    instant: Ledger, funded: Funded
) -> None:
    """As when a reorg undoes the conclusion just before we look, and brings it back right after."""
    payer, friend = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, ETHER),))
    final = Channel((instant.eth_holder,), ((2 * ETHER, 0),), keys=channel.keys)
    final.params, final.id = channel.params, channel.id
    key, receiver = channel.keys[0], Address(bytes(channel.keys[0].address[::-1]))
    async with instant.open(payer) as chain, instant.open(friend) as other:
        for part in (0, 1):
            await other.deposit(instant.eth_holder, None, channel.funding_id(part), ETHER)
        asked: list[int] = []

        async def authorise_late(amount: int) -> Sig:
            asked.append(amount)
            await other.conclude_final(channel.params, final.signed(1, is_final=True))
            sig: Sig = await key.authorise(channel.id, receiver)(amount)
            return sig

        amount = await chain.withdraw(instant.eth_holder, channel.id, key.address, receiver, authorise_late)
        assert asked == [ETHER, ETHER]
        assert amount == await chain.balance(receiver) == 2 * ETHER
        assert await chain.holdings(instant.eth_holder, channel.funding_id(0)) == 0


async def test_b12_an_amount_is_reported_only_when_it_is_final(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    async with instant.open(payer) as quick:
        await quick.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        await quick.conclude_final(channel.params, channel.signed(1, is_final=True))
    async with instant.open(payer, finality_depth=4) as chain:
        withdrawal = asyncio.create_task(pay_out(chain, instant.eth_holder, channel, 0))
        await _both_pending(instant, payer)
        await instant.mine(2)
        assert not (await asyncio.wait({withdrawal}, timeout=1.2))[0]
        await instant.mine(4)
        assert await withdrawal == (ETHER, ETHER)


# ----------------------------------------------------------------------------- B13 more, and less, than the own balance


async def test_b13_in_an_underfunded_channel_what_is_held_is_paid(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 3 * ETHER),))
    async with instant.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        await chain.conclude_final(channel.params, channel.signed(1, is_final=True))
        held = [await chain.holdings(instant.eth_holder, channel.funding_id(part)) for part in (0, 1)]
        assert sum(held) == ETHER
        for part, amount in enumerate(held):
            assert await pay_out(chain, instant.eth_holder, channel, part) == (amount, amount)


async def test_b13_what_a_sub_channel_adds_is_withdrawn_too(instant: Ledger, funded: Funded) -> None:
    payer, keys = await funded(instant), participants(2)
    sub = Channel((instant.eth_holder,), ((2 * ETHER, 0),), keys=keys, is_ledger=False)
    locked = (SubAlloc(sub.id, (2 * ETHER,), (0, 1)),)
    parent = Channel((instant.eth_holder,), ((ETHER, 3 * ETHER),), keys=keys, locked=locked)
    adjudicator = Address.from_hex(instant.contracts.adjudicator)

    def signed(channel: Channel) -> tuple[object, ...]:
        tx = channel.signed(1)
        assert tx.state is not None
        return abi.params_tuple(channel.params), abi.state_tuple(tx.state, 2), tx.sigs

    async with instant.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, parent.funding_id(0), 2 * ETHER)
        await chain.deposit(instant.eth_holder, None, parent.funding_id(1), 4 * ETHER)
        types = [abi.SIGNED_STATE, f"{abi.SIGNED_STATE}[]"]
        register = abi.SELECTORS["register"] + encode(types, [signed(parent), (signed(sub),)])
        await call_contract(instant, payer, adjudicator, register)
        await instant.pass_time(60)
        states: list[State] = [parent.state(1), sub.state(1)]
        tuples = [abi.state_tuple(state, 2) for state in states]
        values = [abi.params_tuple(parent.params), tuples[0], (tuples[1],)]
        conclude = abi.SELECTORS["conclude"] + encode([abi.PARAMS, abi.STATE, f"{abi.STATE}[]"], values)
        await call_contract(instant, payer, adjudicator, conclude)
        assert await pay_out(chain, instant.eth_holder, parent, 0) == (3 * ETHER, 3 * ETHER)
        assert await pay_out(chain, instant.eth_holder, parent, 1) == (3 * ETHER, 3 * ETHER)


# ------------------------------------------------------------------------------------------------- B14 the right time


async def test_b14_two_parties_conclude_a_dispute_in_the_same_block(instant: Ledger, funded: Funded) -> None:
    alice, bob = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(alice) as one, instant.open(bob) as two:
        await one.register(channel.params, channel.signed(1))
        await instant.pass_time(61)
        await instant.rpc("evm_setAutomine", False)
        try:
            work = [asyncio.create_task(chain.conclude(channel.params, channel.state(1))) for chain in (one, two)]
            async with asyncio.timeout(10):
                while (await nonce(instant, alice, "pending"), await nonce(instant, bob, "pending")) != (2, 1):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        finally:
            await instant.rpc("evm_setAutomine", True)
            await instant.mine()
        assert [dispute.concluded for dispute in await asyncio.gather(*work)] == [True, True]


async def test_b14_a_conclusion_that_is_a_second_early_waits_for_the_next_block(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),), challenge_duration=1000)
    async with instant.open(payer) as chain:
        dispute = await chain.register(channel.params, channel.signed(1))
        await instant.rpc("evm_setNextBlockTimestamp", dispute.concludable_at - 30)
        await instant.mine()
        conclude = asyncio.create_task(chain.conclude(channel.params, channel.state(1)))
        assert not (await asyncio.wait({conclude}, timeout=0.5))[0]
        assert await nonce(instant, payer, "pending") == 1  # nothing that would revert is sent
        await instant.rpc("evm_setNextBlockTimestamp", dispute.concludable_at)
        await instant.mine()
        assert (await conclude).concluded


async def test_b14_a_channel_with_an_app_is_concluded_a_challenge_duration_later(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    receipt = await call_contract(instant, payer, None, load(ContractKind.APP).creation_code)
    app = Address.from_hex(receipt["contractAddress"])
    channel = Channel((instant.eth_holder,), ((0, 0),), challenge_duration=1000, app=app)
    async with instant.open(payer) as chain:
        dispute = await chain.register(channel.params, channel.signed(1))
        assert dispute.concludable_at == dispute.timeout + 1000
        await instant.rpc("evm_setNextBlockTimestamp", dispute.timeout + 1)
        await instant.mine()
        conclude = asyncio.create_task(chain.conclude(channel.params, channel.state(1)))
        assert not (await asyncio.wait({conclude}, timeout=0.3))[0]
        await instant.rpc("evm_setNextBlockTimestamp", dispute.concludable_at)
        await instant.mine()
        assert (await conclude).concluded

"""The life of a channel on chain, with every kind of node and connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perun_core.errors import TxReverted
from perun_core.ports.chain import DisputePhase
from perun_core.values import Address

from .conftest import ETHER, Channel, Ledger, over_http, over_ipc

Funded = Callable[..., Any]


@pytest.fixture(
    params=[
        "instant anvil over ws",
        "instant anvil over http",
        "instant anvil over ipc",
        "ticking anvil over ws",
        "embedded over http",
    ]
)
def ledger(request: pytest.FixtureRequest) -> Ledger:
    node, _, transport = request.param.partition(" over ")
    found: Ledger = request.getfixturevalue(node.split()[0])
    return {"ws": lambda x: x, "http": over_http, "ipc": over_ipc}[transport](found)


async def test_a_disputed_channel_pays_out_what_was_registered(ledger: Ledger, funded: Funded) -> None:
    payer = await funded(ledger)
    receiver = Address(bytes(payer.address[::-1]))
    channel = Channel((ledger.eth_holder, ledger.token_holder), ((3 * ETHER, ETHER), (10, 30)))
    async with ledger.open(payer) as chain:
        assert await chain.validate_adjudicator() == ""
        assert await chain.validate_holder("ETH", ledger.eth_holder, None) == ""
        assert await chain.validate_holder("PRN", ledger.token_holder, ledger.token) == ""
        deposits = []
        for part in (0, 1):
            deposits.append(chain.deposit(ledger.eth_holder, None, channel.funding_id(part), 2 * ETHER))
        deposits.append(chain.deposit(ledger.token_holder, ledger.token, channel.funding_id(0), 40))
        await asyncio.gather(*deposits)
        for part in (0, 1):
            assert await chain.holdings(ledger.eth_holder, channel.funding_id(part)) == 2 * ETHER
        assert await chain.holdings(ledger.token_holder, channel.funding_id(0)) == 40

        assert not (await chain.dispute(channel.id)).registered
        registered = await chain.register(channel.params, channel.signed(4))
        assert (registered.version, registered.phase) == (4, DisputePhase.DISPUTE)
        assert registered == await chain.dispute(channel.id)

        await ledger.pass_time(60)
        async for block in chain.blocks():
            if block.timestamp >= registered.concludable_at:
                break
        concluded = await chain.conclude(channel.params, channel.state(4))
        assert (concluded.version, concluded.phase) == (4, DisputePhase.CONCLUDED)

        key = channel.keys[0]
        authorise = key.authorise(channel.id, receiver)
        withdrawals = (
            chain.withdraw(holder, channel.id, key.address, receiver, authorise)
            for holder in (ledger.eth_holder, ledger.token_holder)
        )
        assert await asyncio.gather(*withdrawals) == [3 * ETHER, 10]
        assert await chain.balance(receiver) == 3 * ETHER
        assert await chain.balance(receiver, ledger.token) == 10


async def test_a_final_state_is_concluded_at_once(ledger: Ledger, funded: Funded) -> None:
    payer = await funded(ledger)
    channel = Channel((ledger.eth_holder,), ((ETHER, ETHER),))
    hashes: list[str] = []

    async def note(tx_hash: str) -> None:
        hashes.append(tx_hash)

    async with ledger.open(payer) as chain:
        await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), 2 * ETHER, sent=note)
        dispute = await chain.conclude_final(channel.params, channel.signed(7, is_final=True), sent=note)
        assert (dispute.version, dispute.phase) == (7, DisputePhase.CONCLUDED)
        assert await chain.holdings(ledger.eth_holder, channel.funding_id(1)) == ETHER
    for tx_hash in hashes:
        assert await ledger.rpc("eth_getTransactionByHash", tx_hash) is not None
    assert len(hashes) == 2


async def test_repeating_every_write_sends_nothing(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, ETHER),))
    key, receiver = channel.keys[1], payer.address

    async def count() -> int:
        return int(await instant.rpc("eth_getTransactionCount", payer.address.checksum, "latest"), 16)

    async with instant.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), 2 * ETHER)
        await chain.register(channel.params, channel.signed(1))
        await chain.register(channel.params, channel.signed(0))
        await chain.conclude_final(channel.params, channel.signed(2, is_final=True))
        await chain.conclude(channel.params, channel.state(1))
        authorise = key.authorise(channel.id, receiver)
        await chain.withdraw(instant.eth_holder, channel.id, key.address, receiver, authorise)
    assert await count() == 4
    async with instant.open(payer) as chain:
        await chain.register(channel.params, channel.signed(1))
        await chain.conclude_final(channel.params, channel.signed(2, is_final=True))
        assert await chain.withdraw(instant.eth_holder, channel.id, key.address, receiver, _never) == 0
    assert await count() == 4


async def _never(amount: int) -> Any:
    raise AssertionError("nothing is left to authorise")


async def test_a_deposit_tops_up_what_is_there(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, ETHER),))
    async with instant.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER)
        await chain.deposit(instant.eth_holder, None, channel.funding_id(0), 3 * ETHER)
        assert await chain.holdings(instant.eth_holder, channel.funding_id(0)) == 3 * ETHER


async def test_the_same_deposit_asked_for_twice_at_a_time_is_made_once(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, ETHER),))
    async with instant.open(payer) as chain:
        deposits = (chain.deposit(instant.eth_holder, None, channel.funding_id(0), ETHER) for _ in range(3))
        await asyncio.gather(*deposits)
        assert await chain.holdings(instant.eth_holder, channel.funding_id(0)) == ETHER


async def test_sessions_that_share_an_account_deposit_at_the_same_time(ticking: Ledger, funded: Funded) -> None:
    payer = await funded(ticking)
    lock = asyncio.Lock()
    channels = [Channel((ticking.eth_holder, ticking.token_holder), ((ETHER, 0), (9, 0))) for _ in range(4)]
    async with ticking.open(payer, account_lock=lock) as one, ticking.open(payer, account_lock=lock) as two:
        work = []
        for index, channel in enumerate(channels):
            chain, funding_id = (one, two)[index % 2], channel.funding_id(0)
            work.append(chain.deposit(ticking.eth_holder, None, funding_id, ETHER))
            work.append(chain.deposit(ticking.token_holder, ticking.token, funding_id, 9 + index))
        await asyncio.gather(*work)
        for index, channel in enumerate(channels):
            assert await one.holdings(ticking.eth_holder, channel.funding_id(0)) == ETHER
            assert await one.holdings(ticking.token_holder, channel.funding_id(0)) == 9 + index


async def test_two_parties_conclude_the_same_channel_and_both_succeed(ticking: Ledger, funded: Funded) -> None:
    alice, bob = await funded(ticking), await funded(ticking)
    channel = Channel((ticking.eth_holder,), ((0, 0),))
    final = channel.signed(3, is_final=True)
    async with ticking.open(alice) as one, ticking.open(bob) as two:
        results = await asyncio.gather(*(c.conclude_final(channel.params, final) for c in (one, two)))
    assert [dispute.phase for dispute in results] == [DisputePhase.CONCLUDED] * 2


async def test_concluding_too_early_is_refused_with_the_contracts_reason(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer) as chain:
        with pytest.raises(TxReverted, match="not registered"):
            await chain.conclude(channel.params, channel.state(1))


async def test_an_outcome_is_final_only_at_the_configured_depth(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, ETHER),))
    async with instant.open(payer, finality_depth=3) as chain:
        sent = asyncio.Event()

        async def note(tx_hash: str) -> None:
            sent.set()

        funding_id = channel.funding_id(0)
        deposit = asyncio.create_task(chain.deposit(instant.eth_holder, None, funding_id, ETHER, sent=note))
        await sent.wait()
        await instant.mine()
        assert await chain.holdings(instant.eth_holder, funding_id) == 0
        assert not deposit.done()
        await instant.mine()
        await deposit
        assert await chain.holdings(instant.eth_holder, funding_id) == ETHER


async def test_a_deployed_holder_is_valid_for_its_token_and_no_other(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    async with instant.open(payer) as chain:
        holder = await chain.deploy_holder(instant.token)
        assert await chain.validate_holder("PRN", holder, instant.token) == ""

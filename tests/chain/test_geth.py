"""The main part of the backend's behaviour, and whole stories of two nodes, on geth (CHAIN.md 6.2: B2, B5, B10, B24).

Time passes here as it does on a public chain: a block per second, and nothing moves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from eth_account import Account

from perun_chain_ethereum.deploy import connected, contract_addresses, deploy
from perun_chain_ethereum.testkeys import DEPLOYER as DEPLOYER_ACCOUNT
from perun_chain_ethereum.testkeys import TEST_CONTRACTS
from perun_core.errors import ContractInvalid, InsufficientFunds, TxReverted, WrongChain
from perun_core.ports.chain import BlockEvents, ChannelEvent, DisputePhase
from perun_core.testing.store import MemoryStore
from perun_core.values import Address
from plugins.chain_ethereum.tests.chain_backend.conftest import ETHER, Channel, Ledger, over_http, over_ipc
from tests.chain.conftest import Funded, GethLedger
from tests.integration.world import Party, World, gathering, open_channel, pay, settle, until
from tests.servers.geth import Geth

DEPLOYER = DEPLOYER_ACCOUNT.key
DEPLOYER_ADDRESS = Address.from_hex(DEPLOYER_ACCOUNT.address)
GAS_LIMIT = ETHER // 50


@pytest.fixture(params=["ws", "http", "ipc"])
def ledger(request: pytest.FixtureRequest, geth_ledger: Ledger) -> Ledger:
    reach: Any = {"ws": lambda x: x, "http": over_http, "ipc": over_ipc}[request.param]
    reached: Ledger = reach(geth_ledger)
    return reached


async def collected(feed: AsyncIterator[BlockEvents], count: int) -> list[ChannelEvent]:
    """The next `count` events."""
    events: list[ChannelEvent] = []
    async with asyncio.timeout(30):
        while len(events) < count:
            events += (await anext(feed)).events
    return events


async def sent_by(ledger: Ledger, account: Address) -> int:
    return int(await ledger.rpc("eth_getTransactionCount", account.checksum, "latest"), 16)


async def test_a_disputed_channel_in_two_currencies_pays_out_what_was_registered(
    geth_ledger: Ledger, funded: Funded
) -> None:
    ledger, payer = geth_ledger, await funded(geth_ledger)
    receiver = Address(bytes(payer.address[::-1]))
    channel = Channel((ledger.eth_holder, ledger.token_holder), ((3 * ETHER, ETHER), (10, 30)), challenge_duration=2)
    async with ledger.open(payer) as chain:
        assert await chain.validate_adjudicator() == ""
        assert await chain.validate_holder("ETH", ledger.eth_holder, None) == ""
        assert await chain.validate_holder("PRN", ledger.token_holder, ledger.token) == ""
        async with aclosing(chain.events((await chain.head()).number)) as feed:
            await asyncio.gather(
                chain.deposit(ledger.eth_holder, None, channel.funding_id(0), 2 * ETHER),
                chain.deposit(ledger.eth_holder, None, channel.funding_id(1), 2 * ETHER),
                chain.deposit(ledger.token_holder, ledger.token, channel.funding_id(0), 40),
            )
            await chain.register(channel.params, channel.signed(3))
            refuted = await chain.register(channel.params, channel.signed(4))
            assert (refuted.version, refuted.phase) == (4, DisputePhase.DISPUTE)
            with pytest.raises(TxReverted):
                await chain.conclude(channel.params, channel.state(3))
            await ledger.pass_time(2)
            concluded = await chain.conclude(channel.params, channel.state(4))
            assert (concluded.version, concluded.phase) == (4, DisputePhase.CONCLUDED)
            seen = [event for event in await collected(feed, 3) if event.channel_id == channel.id]
        assert [(event.version, event.phase) for event in seen] == [
            (3, DisputePhase.DISPUTE),
            (4, DisputePhase.DISPUTE),
            (4, DisputePhase.CONCLUDED),
        ]
        authorise = channel.keys[0].authorise(channel.id, receiver)
        withdrawals = (
            chain.withdraw(holder, channel.id, channel.keys[0].address, receiver, authorise)
            for holder in (ledger.eth_holder, ledger.token_holder)
        )
        assert await asyncio.gather(*withdrawals) == [3 * ETHER, 10]
        assert (await chain.balance(receiver), await chain.balance(receiver, ledger.token)) == (3 * ETHER, 10)


async def test_a_final_state_is_concluded_at_once_and_repeating_every_write_sends_nothing(
    ledger: Ledger, funded: Funded
) -> None:
    payer = await funded(ledger)
    channel = Channel((ledger.eth_holder,), ((ETHER, ETHER),))
    key, final = channel.keys[1], channel.signed(7, is_final=True)
    authorise = key.authorise(channel.id, payer.address)
    async with ledger.open(payer) as chain:
        await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), 2 * ETHER)
        concluded = await chain.conclude_final(channel.params, final)
        assert (concluded.version, concluded.phase) == (7, DisputePhase.CONCLUDED)
        withdrawn = await chain.withdraw(ledger.eth_holder, channel.id, key.address, payer.address, authorise)
        assert withdrawn == ETHER and await sent_by(ledger, payer.address) == 3
        await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), ETHER)
        await chain.register(channel.params, channel.signed(1))
        await chain.conclude_final(channel.params, final)
        await chain.conclude(channel.params, channel.state(1))
        await chain.withdraw(ledger.eth_holder, channel.id, key.address, payer.address, authorise)
    assert await sent_by(ledger, payer.address) == 3


async def test_registering_rising_versions_at_the_same_time_leaves_the_newest(
    geth_ledger: Ledger, funded: Funded
) -> None:
    """B10: three accounts, each with another version; whoever comes too late finds its goal reached."""
    ledger = geth_ledger
    accounts = [await funded(ledger) for _ in range(3)]
    channel = Channel((ledger.eth_holder,), ((0, 0),))

    async def register(number: int) -> int:
        async with ledger.open(accounts[number]) as chain:
            return (await chain.register(channel.params, channel.signed(number + 1))).version

    versions = await asyncio.gather(*(register(number) for number in range(3)))
    assert all(version >= number + 1 for number, version in enumerate(versions))
    async with ledger.open() as chain:
        dispute = await chain.dispute(channel.id)
    assert (dispute.version, dispute.phase) == (3, DisputePhase.DISPUTE)


async def test_an_outcome_counts_at_the_configured_depth(geth_ledger: Ledger, funded: Funded) -> None:
    """B2: after the deposit's block two more have to come."""
    ledger, payer = geth_ledger, await funded(geth_ledger)
    channel = Channel((ledger.eth_holder,), ((ETHER, ETHER),))
    hashes: list[str] = []

    async def note(tx_hash: str) -> None:
        hashes.append(tx_hash)

    async with ledger.open(payer, finality_depth=3) as chain:
        await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), ETHER, sent=note)
        head = await chain.head()
        receipt = await ledger.rpc("eth_getTransactionReceipt", hashes[0])
        assert head.number - int(receipt["blockNumber"], 16) >= 2
        assert await chain.holdings(ledger.eth_holder, channel.funding_id(0)) == ETHER


async def test_blocks_come_with_rising_time_and_a_later_reader_finds_past_events(
    ledger: Ledger, funded: Funded
) -> None:
    payer = await funded(ledger)
    channel = Channel((ledger.eth_holder,), ((0, 0),))
    async with ledger.open(payer) as chain:
        start = (await chain.head()).number
        await chain.register(channel.params, channel.signed(1))
    async with ledger.open() as chain, aclosing(chain.blocks()) as blocks:
        first, second = await anext(blocks), await anext(blocks)
        assert second.number > first.number and second.timestamp > first.timestamp
        async with aclosing(chain.events(start)) as feed:
            found = [each for each in await collected(feed, 1) if each.channel_id == channel.id]
    assert [event.version for event in found] == [1]


async def test_an_account_without_money_is_told_so_and_leaves_nothing_behind(
    geth_ledger: Ledger, funded: Funded
) -> None:
    ledger, payer = geth_ledger, await funded(geth_ledger, ether=ETHER, tokens=5)
    channel, store = Channel((ledger.eth_holder, ledger.token_holder), ((ETHER, 0), (9, 0))), MemoryStore()
    async with ledger.open(payer, store=store) as chain:
        with pytest.raises(InsufficientFunds):
            await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), ETHER)
        with pytest.raises(InsufficientFunds):
            await chain.deposit(ledger.token_holder, ledger.token, channel.funding_id(0), 9)
        await chain.deposit(ledger.eth_holder, None, channel.funding_id(0), ETHER // 2)
    assert await sent_by(ledger, payer.address) == 1


async def test_a_holder_is_deployed_and_valid_for_its_token_only(geth_ledger: Ledger, funded: Funded) -> None:
    """B3 and N5 on geth."""
    ledger, payer = geth_ledger, await funded(geth_ledger)
    async with ledger.open(payer, finality_depth=2) as chain:
        holder = await chain.deploy_holder(ledger.token)
        assert await chain.validate_holder("PRN", holder, ledger.token) == ""
        with pytest.raises(ContractInvalid):
            await chain.validate_holder("ETH", holder, None)


def test_a_fresh_chain_gets_the_published_addresses(geth_ledger: Ledger) -> None:
    """N6 on geth."""
    found, published = geth_ledger.contracts, TEST_CONTRACTS
    assert (found.adjudicator, found.eth) == (published["Adjudicator"], published["AssetHolderETH"])
    assert (found.token, found.erc20) == (published["PerunToken"], published["AssetHolderERC20"])


async def test_setting_up_again_finds_what_is_there(geth: Geth, geth_ledger: GethLedger) -> None:
    """N6: no second set is paid for, with the token or without."""
    before = await sent_by(geth_ledger, DEPLOYER_ADDRESS)
    async with connected(geth.ws) as w3:
        assert await deploy(w3, DEPLOYER, test_token=True) == geth_ledger.contracts
    assert await sent_by(geth_ledger, DEPLOYER_ADDRESS) == before


async def test_a_half_finished_set_is_completed_and_an_account_with_a_past_deploys_at_its_next_nonce(
    geth: Geth,
) -> None:
    """N6, of new accounts: the addresses are those that follow from account and nonce."""
    fresh, used = (Account.create() for _ in range(2))
    await asyncio.to_thread(geth.give, {account.address: ETHER for account in (fresh, used)})
    async with connected(geth.http) as w3:
        first = await deploy(w3, bytes(fresh.key))
        assert (first.adjudicator, first.eth) == contract_addresses(fresh.address, 0, 2)
        completed = await deploy(w3, bytes(fresh.key), test_token=True)
        assert (completed.adjudicator, completed.eth) == (first.adjudicator, first.eth)
        assert (completed.token, completed.erc20) == contract_addresses(fresh.address, 2, 2)
        payment = {
            "chainId": 1337,
            "nonce": 0,
            "gas": 21_000,
            "maxFeePerGas": 10**10,
            "maxPriorityFeePerGas": 10**9,
            "to": fresh.address,
            "value": 1,
        }
        sent = await w3.eth.send_raw_transaction(used.sign_transaction(payment).raw_transaction)
        await w3.eth.wait_for_transaction_receipt(sent)
        later = await deploy(w3, bytes(used.key))
        assert (later.adjudicator, later.eth) == contract_addresses(used.address, 1, 2)


async def test_another_chain_id_is_refused(ledger: Ledger) -> None:
    """N9 on geth."""
    with pytest.raises(WrongChain) as caught:
        async with ledger.open(chain_id=1):
            pass
    assert (caught.value.configured, caught.value.actual) == (1, 1337)


# ---- whole nodes -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def party(geth_world: World) -> AsyncIterator[Party]:
    async with gathering(geth_world) as party:
        yield party


async def test_two_nodes_open_pay_and_close_on_geth_and_no_wei_is_lost(party: Party) -> None:
    world = party.world
    people = world.friends("alice", "bob", tokens=10 * ETHER)
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    before = [(world.balance(one.on_chain), world.tokens(one.on_chain)) for one in people]
    channel = await open_channel(alice, bob, {"ETH": ("1", "2"), "PRN": ("10", "0")})
    await pay(alice, bob, channel, ("ETH", "bob", "0.25"), ("PRN", "bob", "4"))
    closed, _ = await settle(bob, alice, channel)
    assert closed.balances == {"ETH": ("0.75", "2.25"), "PRN": ("6", "4")}
    after = [(world.balance(one.on_chain), world.tokens(one.on_chain)) for one in people]
    assert [new[1] - old[1] for new, old in zip(after, before, strict=True)] == [-4 * ETHER, 4 * ETHER]
    gained = [new[0] - old[0] for new, old in zip(after, before, strict=True)]
    assert -0.25 * ETHER - GAS_LIMIT < gained[0] < -0.25 * ETHER
    assert 0.25 * ETHER - GAS_LIMIT < gained[1] < 0.25 * ETHER


async def test_a_refused_closing_is_settled_by_dispute_on_geth(party: Party) -> None:
    world = party.world
    people = world.friends("alice", "bob")
    alice, bob = await party.join(people[0], 0), await party.join(people[1], 1)
    channel = await open_channel(alice, bob, {"ETH": ("1", "1")}, duration=3)
    await pay(alice, bob, channel, ("ETH", "bob", "0.75"))
    before = [world.balance(one.on_chain) for one in people]
    closed, _ = await asyncio.gather(alice.close(channel), bob.answer_update(channel, accept=False))
    assert closed.balances == {"ETH": ("0.25", "1.75")}
    await until(lambda: world.balance(people[1].on_chain) > before[1] + 1.7 * ETHER)
    gained = [world.balance(one.on_chain) - old for one, old in zip(people, before, strict=True)]
    assert 0.25 * ETHER - GAS_LIMIT < gained[0] < 0.25 * ETHER
    assert 1.75 * ETHER - GAS_LIMIT < gained[1] <= 1.75 * ETHER

"""Registering, progressing, and what the chain tells of states that we lack, on a real node (B1, B10, B15, B16)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from msgspec.structs import replace

from perun_chain_ethereum import abi, backend
from perun_chain_ethereum.connection import Connection
from perun_core.channel import Allocation, Asset, DisputePhase, Params, State, SubAlloc, Transaction
from perun_core.errors import StateUnavailable, TxReverted
from perun_core.ports.chain import Chain, ChannelEvent
from perun_core.ports.keymgr import UnsignedTx
from perun_core.profile.gp090 import PROFILE
from perun_core.values import Address, Bytes32, Sig, keccak256

from .conftest import CHAIN_ID, ETHER, Channel, Key, Ledger, participants

Funded = Callable[..., Any]
FIRST_ONLY = Path(__file__).parents[4] / "tests" / "contracts" / "artifacts" / "FirstOnlyApp.json"
DURATION = 1000


async def transact(ledger: Ledger, key: Key, to: Address | None, data: bytes) -> Any:
    """A transaction made by hand; its receipt."""
    nonce = int(await ledger.rpc("eth_getTransactionCount", key.address.checksum, "latest"), 16)
    raw = await key.sign(UnsignedTx(CHAIN_ID, nonce, 10**9, 100 * 10**9, 3_000_000, to, 0, data))
    tx_hash = await ledger.rpc("eth_sendRawTransaction", "0x" + raw.hex())
    async with asyncio.timeout(10):
        while (receipt := await ledger.rpc("eth_getTransactionReceipt", tx_hash)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert receipt["status"] == "0x1"
    return receipt


async def app_contract(ledger: Ledger, key: Key) -> Address:
    """An app in which every move is participant 0's."""
    code = bytes.fromhex(json.loads(FIRST_ONLY.read_text())["creationCode"].removeprefix("0x"))
    return Address.from_hex((await transact(ledger, key, None, code))["contractAddress"])


def adjudicator(ledger: Ledger) -> Address:
    return Address.from_hex(ledger.contracts.adjudicator)


@pytest.fixture
async def game(instant: Ledger, funded: Funded) -> tuple[Key, Channel]:
    """A channel with an app, both shares deposited, and the account that sends for it."""
    payer = await funded(instant)
    app = await app_contract(instant, payer)
    channel = Channel((instant.eth_holder,), ((ETHER, 2 * ETHER),), challenge_duration=DURATION, app=app)
    async with instant.open(payer) as chain:
        for part, amount in enumerate(channel.balances[0]):
            await chain.deposit(instant.eth_holder, None, channel.funding_id(part), amount)
    return payer, channel


def move(channel: Channel, old: State, *, part: int = 0, first: int, data: bytes = b"move") -> tuple[State, Sig]:
    """The next state, in which participant 0 has `first`, and `part`'s signature on it."""
    state = replace(old.next(balances=((first, 3 * ETHER - first),)), data=data, app=channel.app)
    return state, channel.keys[part].sign_hash(PROFILE.state_hash(state))


# ------------------------------------------------------------------------------------------------------ B1 funding IDs


@pytest.mark.parametrize("number", [0, 1, 3])
def test_b1_every_participant_has_a_funding_id_of_its_own(number: int) -> None:
    channel_id, parts = PROFILE.channel_id(Channel((), ()).params), [key.address for key in participants(number)]
    ids = [PROFILE.funding_id(channel_id, part) for part in parts]
    assert ids == [keccak256(encode(["bytes32", "address"], [channel_id, part])) for part in parts]
    assert len(set(ids)) == number


# --------------------------------------------------------------------------------------------------- B10 registering


@pytest.mark.parametrize("number", [1, 2, 5])
async def test_b10_any_number_of_parties_register_one_after_the_other(
    instant: Ledger, funded: Funded, number: int
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), (tuple(range(number)),), keys=participants(number))
    async with instant.open(payer) as chain:
        first = await chain.register(channel.params, channel.signed(0))
        for version in range(1, number + 1):
            dispute = await chain.register(channel.params, channel.signed(version))
            assert (dispute.version, dispute.timeout) == (version, first.timeout), "a refutation wins no time"
        assert (await chain.register(channel.params, channel.signed(0))).version == number


async def test_b10_five_parties_that_register_at_once_leave_the_newest_version(instant: Ledger, funded: Funded) -> None:
    accounts = [await funded(instant) for _ in range(5)]
    channel = Channel((instant.eth_holder,), ((0,) * 5,), keys=participants(5))
    async with contextlib.AsyncExitStack() as stack:
        chains = [await stack.enter_async_context(instant.open(account)) for account in accounts]
        work = (chain.register(channel.params, channel.signed(version)) for version, chain in enumerate(chains))
        disputes = await asyncio.gather(*work)
        assert all(dispute.version >= version for version, dispute in enumerate(disputes))
        assert (await chains[0].dispute(channel.id)).version == 4


async def test_b10_a_registered_final_state_needs_no_waiting(instant: Ledger, funded: Funded) -> None:
    channel = Channel((instant.eth_holder,), ((0,) * 5,), challenge_duration=DURATION, keys=participants(5))
    async with instant.open(await funded(instant)) as chain:
        dispute = await chain.register(channel.params, channel.signed(3, is_final=True))
        assert dispute.concludable_at <= (await chain.head()).timestamp
        assert (await chain.conclude(channel.params, channel.state(3, is_final=True))).concluded


async def test_b10_a_registration_whose_caller_went_away_is_mined_once_and_found_by_the_next(
    instant: Ledger, funded: Funded
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0,) * 5,), keys=participants(5))
    sent = asyncio.Event()

    async def note(tx_hash: str) -> None:
        sent.set()

    async with instant.open(payer) as chain:
        await instant.rpc("evm_setAutomine", False)
        try:
            work = asyncio.create_task(chain.register(channel.params, channel.signed(1), sent=note))
            await sent.wait()
            work.cancel()
            assert isinstance((await asyncio.gather(work, return_exceptions=True))[0], asyncio.CancelledError)
        finally:
            await instant.rpc("evm_setAutomine", True)
            await instant.mine()
        assert (await chain.register(channel.params, channel.signed(1))).version == 1
    assert int(await instant.rpc("eth_getTransactionCount", payer.address.checksum, "latest"), 16) == 1


# ------------------------------------------------------------------------------------- progressing, and B15 its events


async def test_a_move_counts_from_the_end_of_the_refutation_and_is_paid_out(
    instant: Ledger, game: tuple[Key, Channel]
) -> None:
    payer, channel = game
    old = replace(channel.state(1), app=channel.app)
    new, sig = move(channel, old, first=3 * ETHER)
    async with instant.open(payer) as chain:
        dispute = await chain.register(channel.params, channel.signed(1))
        await instant.rpc("evm_setNextBlockTimestamp", dispute.timeout)
        await instant.mine()
        forced = await chain.progress(channel.params, old, new, 0, sig, deadline=dispute.concludable_at)
        assert (forced.phase, forced.version) == (DisputePhase.FORCE_EXEC, 2)
        assert forced.state_hash == PROFILE.state_hash(new) and forced.concludable_at == forced.timeout
        assert await chain.progress(channel.params, old, new, 0, sig) == forced, "repeating it sends nothing"
        with pytest.raises(TxReverted):
            await chain.register(channel.params, channel.signed(3))
        await instant.rpc("evm_setNextBlockTimestamp", forced.timeout)
        await instant.mine()
        assert (await chain.conclude(channel.params, new)).concluded
        key, receiver = channel.keys[0], Address(bytes(channel.keys[0].address[::-1]))
        authorise = key.authorise(channel.id, receiver)
        assert await chain.withdraw(instant.eth_holder, channel.id, key.address, receiver, authorise) == 3 * ETHER


async def test_a_move_that_is_a_second_early_waits_for_the_next_block(
    instant: Ledger, game: tuple[Key, Channel]
) -> None:
    payer, channel = game
    old = replace(channel.state(1), app=channel.app)
    async with instant.open(payer) as chain:
        dispute = await chain.register(channel.params, channel.signed(1))
        await instant.rpc("evm_setNextBlockTimestamp", dispute.timeout - 30)
        await instant.mine()
        new, sig = move(channel, old, first=ETHER)
        work = asyncio.create_task(chain.progress(channel.params, old, new, 0, sig))
        assert not (await asyncio.wait({work}, timeout=0.5))[0]
        await instant.rpc("evm_setNextBlockTimestamp", dispute.timeout)
        await instant.mine()
        assert (await work).version == 2


async def test_a_move_that_the_app_or_the_phase_forbids_is_not_sent(instant: Ledger, game: tuple[Key, Channel]) -> None:
    payer, channel = game
    old = replace(channel.state(1), app=channel.app)
    async with instant.open(payer) as chain:
        dispute = await chain.register(channel.params, channel.signed(1))
        await instant.pass_time(dispute.timeout - (await chain.head()).timestamp)
        sent = await instant.rpc("eth_getTransactionCount", payer.address.checksum, "latest")
        new, sig = move(channel, old, part=1, first=ETHER)
        with pytest.raises(TxReverted, match="not your move"):
            await chain.progress(channel.params, old, new, 1, sig)
        with pytest.raises(TxReverted, match="wrong old state"):
            await chain.progress(channel.params, replace(old, data=b"?"), *_signed(channel, old))
        assert await instant.rpc("eth_getTransactionCount", payer.address.checksum, "latest") == sent


def _signed(channel: Channel, old: State) -> tuple[State, int, Sig]:
    new, sig = move(channel, old, first=ETHER)
    return new, 0, sig


async def test_b15_registered_progressed_and_concluded_are_told_in_order_to_early_and_late_readers(
    instant: Ledger, game: tuple[Key, Channel]
) -> None:
    """Nothing is dropped in favour of something newer, and a reader that begins later hears the same."""
    payer, channel = game
    old = replace(channel.state(1), app=channel.app)
    new, sig = move(channel, old, first=ETHER)
    async with instant.open(payer) as chain:
        start = (await chain.head()).number
        dispute = await chain.register(channel.params, channel.signed(1))
        await instant.pass_time(DURATION + 1)
        forced = await chain.progress(channel.params, old, new, 0, sig)
        await instant.pass_time(DURATION + 1)
        await chain.conclude(channel.params, new)
        wanted = [
            (1, DisputePhase.DISPUTE, dispute.timeout),
            (2, DisputePhase.FORCE_EXEC, forced.timeout),
            (2, DisputePhase.CONCLUDED, forced.timeout),
        ]
        for _ in range(2):
            told = await first_events(chain, start, channel, 3)
            assert list(dict.fromkeys((event.version, event.phase, event.timeout) for event in told)) == wanted


async def first_events(chain: Chain, cursor: int, channel: Channel, number: int) -> list[ChannelEvent]:
    """The channel's events until there are that many different ones; ends its reading without an error."""
    told: list[ChannelEvent] = []
    async with asyncio.timeout(10), aclosing(items(chain, cursor)) as events:
        async for event in events:
            if event.channel_id == channel.id:
                told.append(event)
            if len({(each.version, each.phase) for each in told}) == number:
                break
    return told


async def items(chain: Chain, cursor: int) -> AsyncIterator[ChannelEvent]:
    async for batch in chain.events(cursor):
        for event in batch.events:
            yield event


async def test_b15_every_channel_of_a_registered_tree_has_its_own_event(instant: Ledger, funded: Funded) -> None:
    payer, keys = await funded(instant), participants(2)
    sub = Channel((instant.eth_holder,), ((2 * ETHER, 0),), keys=keys, is_ledger=False)
    locked = (SubAlloc(sub.id, (2 * ETHER,), (0, 1)),)
    parent = Channel((instant.eth_holder,), ((ETHER, 3 * ETHER),), keys=keys, locked=locked)
    signed = [abi._signed(channel.signed(4)) for channel in (parent, sub)]
    tuples = [
        (abi.params_tuple(channel.params), abi.state_tuple(state, 2), sigs)
        for channel, (state, sigs) in zip((parent, sub), signed, strict=True)
    ]
    data = abi.SELECTORS["register"] + encode([abi.SIGNED_STATE, f"{abi.SIGNED_STATE}[]"], [tuples[0], (tuples[1],)])
    async with instant.open(payer) as chain:
        start = (await chain.head()).number
        await transact(instant, payer, adjudicator(instant), data)
        for channel in (parent, sub):
            (event,) = await first_events(chain, start, channel, 1)
            assert (event.version, event.phase) == (4, DisputePhase.DISPUTE)
        assert await chain.registered_state(parent.params, await chain.dispute(parent.id)) == parent.signed(4)
        with pytest.raises(StateUnavailable):  # sub-channels are not ours to settle
            await chain.registered_state(sub.params, await chain.dispute(sub.id))


# ------------------------------------------------------------------------- B15, B16 what the chain tells of a state


async def test_b15_a_state_that_we_lack_is_read_from_its_registration(instant: Ledger, funded: Funded) -> None:
    alice, bob = await funded(instant), await funded(instant)
    channel = Channel((instant.eth_holder, instant.token_holder), ((1, 2), (3, 4)))
    async with instant.open(bob) as other:
        await other.register(channel.params, channel.signed(1))
        await other.register(channel.params, channel.signed(7))
    await instant.mine(30)
    async with instant.open(alice) as chain:
        dispute = await chain.dispute(channel.id)
        found = await chain.registered_state(channel.params, dispute)
        assert found == channel.signed(7)
        assert found.state is not None and PROFILE.state_hash(found.state) == dispute.state_hash


async def test_b15_a_peer_s_move_is_read_with_its_actor(instant: Ledger, game: tuple[Key, Channel]) -> None:
    payer, channel = game
    old = replace(channel.state(1), app=channel.app)
    async with instant.open(payer) as chain:
        await chain.register(channel.params, channel.signed(1))
        await instant.pass_time(DURATION + 1)
        new, sig = move(channel, old, first=2 * ETHER, data=bytes(range(100)))
        dispute = await chain.progress(channel.params, old, new, 0, sig)
        assert await chain.registered_state(channel.params, dispute) == Transaction(new, (sig, None))


async def test_b15_old_registrations_are_found_in_short_ranges_when_the_node_allows_no_longer_ones(
    instant: Ledger, funded: Funded, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = Channel((instant.eth_holder,), ((1, 2),))
    logs = Connection.logs
    spans: list[int] = []

    async def limited(self: Connection, contract: Address, topic: Bytes32, first: int, last: int, **more: Any) -> Any:
        spans.append(last - first + 1)
        if last - first >= 4:
            raise backend.ChainError("range too long")
        return await logs(self, contract, topic, first, last, **more)

    async with instant.open(await funded(instant)) as chain:
        dispute = await chain.register(channel.params, channel.signed(2))
        await instant.mine(15)
        monkeypatch.setattr(Connection, "logs", limited)
        assert await chain.registered_state(channel.params, dispute) == channel.signed(2)
    assert max(spans) > 4 and len([span for span in spans if span <= 4]) >= 3


async def test_b16_the_app_of_a_channel_need_not_be_known_to_read_its_state(instant: Ledger, funded: Funded) -> None:
    """The bytes of the app are what the hash is of; nobody interprets them."""
    channel = Channel((instant.eth_holder,), ((1, 2),), app=Address(b"\x77" * 20))
    state = replace(channel.state(3), data=b"\x00\xff anything", app=channel.app)
    tx = Transaction(state, tuple(key.sign_hash(PROFILE.state_hash(state)) for key in channel.keys))
    async with instant.open(await funded(instant)) as chain:
        dispute = await chain.register(channel.params, tx)
        assert dispute.has_app and await chain.registered_state(channel.params, dispute) == tx


@pytest.mark.parametrize("calldata", [b"", b"\x01\x02\x03", bytes.fromhex("e30194b7") + b"\xff" * 64])
async def test_b16_a_state_registered_by_another_contract_is_reported_not_guessed(
    instant: Ledger, funded: Funded, calldata: bytes
) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((1, 2),))
    call = abi.call_register(channel.params, channel.signed(1))
    created = await transact(instant, payer, None, messenger(adjudicator(instant), call))
    receipt = await transact(instant, payer, Address.from_hex(created["contractAddress"]), calldata)
    async with instant.open(payer) as chain:
        dispute = await chain.dispute(channel.id)
        assert dispute.version == 1
        with pytest.raises(StateUnavailable, match=receipt["transactionHash"]):
            await chain.registered_state(channel.params, dispute)


def messenger(contract: Address, call: bytes) -> bytes:
    """Creation code of a contract that makes one fixed call whenever it is called."""
    size = len(call).to_bytes(2, "big")
    start = bytes.fromhex("61") + size + bytes.fromhex("6100275f39") + bytes.fromhex("5f5f61") + size
    runtime = start + bytes.fromhex("5f5f73") + contract + bytes.fromhex("5af1") + b"\x00"
    assert len(runtime) == 0x27, len(runtime)
    code = runtime + call
    return bytes.fromhex("61") + len(code).to_bytes(2, "big") + bytes.fromhex("80600a5f395ff3") + code


async def test_b16_calldata_that_the_node_does_not_have_is_reported(
    instant: Ledger, funded: Funded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a node that prunes transactions; it is asked again with the next attempt."""
    channel = Channel((instant.eth_holder,), ((1, 2),))

    async def pruned(self: Connection, tx_hash: Bytes32) -> None:
        return None

    async with instant.open(await funded(instant)) as chain:
        dispute = await chain.register(channel.params, channel.signed(1))
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "transaction", pruned)
            with pytest.raises(StateUnavailable):
                await chain.registered_state(channel.params, dispute)
        assert await chain.registered_state(channel.params, dispute) == channel.signed(1)


async def test_b16_what_is_registered_and_not_in_the_transactions_that_tell_it_is_not_taken(
    instant: Ledger, funded: Funded
) -> None:
    """Only the hash that the contract stores says which state it is."""
    channel = Channel((instant.eth_holder,), ((1, 2),))
    async with instant.open(await funded(instant)) as chain:
        dispute = await chain.register(channel.params, channel.signed(1))
        for asked in (replace(dispute, state_hash=Bytes32(b"\x01" * 32)), replace(dispute, version=2)):
            with pytest.raises(StateUnavailable):
                await chain.registered_state(channel.params, asked)
        assert await chain.registered_state(channel.params, dispute) == channel.signed(1)


# ----------------------------------------------------------------------------------------------- calldata by itself


def test_calldata_of_other_functions_channels_and_broken_ones_tell_nothing() -> None:
    channel, other = Channel((Address(b"\x01" * 20),), ((1, 2),)), Channel((Address(b"\x01" * 20),), ((1, 2),))
    data = abi.call_register(channel.params, channel.signed(1))
    assert abi.told_state(data, channel.params, channel.id) == channel.signed(1)
    assert abi.told_state(data + b"surplus", channel.params, channel.id) == channel.signed(1)
    conclude = abi.call_conclude_final(channel.params, channel.signed(1, is_final=True))
    for broken in (b"", data[:3], data[:4], data[:-65], b"\0" + data, conclude):
        assert abi.told_state(broken, channel.params, channel.id) is None
    assert abi.told_state(data, other.params, other.id) is None


def test_calldata_with_signatures_in_the_wrong_number_or_size_tell_nothing() -> None:
    channel = Channel((Address(b"\x01" * 20),), ((1, 2),))
    state = abi.state_tuple(channel.state(1), 2)
    for sigs in ((b"\1" * 65,) * 3, (b"\1" * 64,) * 2):
        signed = (abi.params_tuple(channel.params), state, sigs)
        data = abi.SELECTORS["register"] + encode([abi.SIGNED_STATE, f"{abi.SIGNED_STATE}[]"], [signed, ()])
        assert abi.told_state(data, channel.params, channel.id) is None
    progress = abi.call_progress(channel.params, channel.state(1), channel.state(2), 2, Sig(b"\1" * 65))
    assert abi.told_state(progress, channel.params, channel.id) is None


def test_surplus_sub_channels_are_not_even_looked_at() -> None:
    """The contract does not read them, so nothing bounds what they would decode to."""
    channel = Channel((Address(b"\x01" * 20),), ((1, 2),))
    data = bytearray(abi.call_register(channel.params, channel.signed(1)))
    subs = 4 + int.from_bytes(data[36:68], "big")
    data[subs : subs + 32] = (2**255).to_bytes(32, "big")
    assert abi.told_state(bytes(data), channel.params, channel.id) == channel.signed(1)


def test_index_maps_and_locked_funds_come_back_as_they_were_hashed() -> None:
    params = Params(60, tuple(key.address for key in participants(2)), None, 5, True, False)
    channel_id = PROFILE.channel_id(params)
    locked = (SubAlloc(channel_id, (5,), (1, 0)),)
    state = State(channel_id, 9, Allocation((Asset(Address(b"\x02" * 20)),), ((1, 2),), locked))
    sigs = (Sig(b"\1" * 65), Sig(b"\2" * 65))
    data = abi.call_register(params, Transaction(state, sigs))
    assert abi.told_state(data, params, channel_id) == Transaction(state, sigs)

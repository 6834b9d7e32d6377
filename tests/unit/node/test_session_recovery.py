"""Recovery mode of whole sessions: an old copy of the storage signs nothing, gets back what peers hold, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from perun_core.apps.registry import NO_APPS
from perun_core.channel import Phase
from perun_core.errors import ApiError, FailedPrecondition, PeerRejected, PeerRequestTimedOut, UnknownInternal
from perun_core.node.recovery import take_the_word
from perun_core.ports.api import PayChInfo
from perun_core.ports.store import Doubt, StoreStatus, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import Timer
from perun_core.protocol.events import TimerFired
from perun_core.protocol.records import RecordCodec
from perun_core.testing.store import MemoryStore, Rows
from perun_core.wire.messages import Sync
from tests.unit.node.test_session_faults import (
    ACCOUNTS,
    PATIENT,
    WEALTH,
    Bed,
    GuardedKeys,
    Home,
    agreed,
    bed,
    both,
    outcome,
    settle_down,
)

__all__ = ["bed"]


def copy_of(home: Home) -> Rows:
    """A backup of somebody's storage."""
    return dict(home.rows)


async def put_back(home: Home, copy: Rows, *, doubt: Doubt | None = Doubt.OLDER) -> None:
    """Somebody's session opens with an old copy of its storage, which its store notices or not."""
    await home.crash()
    home.rows.clear()
    home.rows.update(copy)
    home.status = StoreStatus("identity", 7, doubt, "the database is an older copy" if doubt else "")
    await home.open()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENT):
        while not condition():  # noqa: ASYNC110 - sessions tell nobody
            await asyncio.sleep(0.01)


def recovering(home: Home) -> bool:
    return home.online._recovery.is_on


async def refusal(call: Awaitable[object]) -> str:
    """What somebody in recovery mode is told."""
    error = await outcome(call)
    assert isinstance(error, FailedPrecondition) and not error.info
    return error.message


# ---- noticed by the store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_an_old_copy_signs_nothing_until_the_peer_has_shown_its_newest_state(bed: Bed, who: str) -> None:
    channel = await bed.channel()
    mine: Home = getattr(bed, who)
    peer = bed.bob if mine is bed.alice else bed.alice
    await bed.payment(channel)
    copy = copy_of(mine)
    await bed.payment(channel)
    newest = peer.state(channel)
    await peer.crash()
    await put_back(mine, copy)
    signed = len(mine.keys.messages)
    for call in (mine.pay(channel), mine.propose()):
        told = await refusal(call)
        assert "recovery mode: the database is an older copy" in told and "perunnode trust" in told
    assert [each.channel_id for each in mine.restored] == [channel], "what is held is shown all the time"
    assert len(mine.keys.messages) == signed

    await peer.open()
    await until(lambda: not recovering(mine))
    assert mine.state(channel) == peer.state(channel) == newest
    assert mine.store.status().doubt is None
    await both(peer.pay(channel, "0.05"), mine.answer_update(channel))
    await both(mine.pay(channel), peer.answer_update(channel))
    assert agreed(bed, channel)
    assert await bed.channel()


async def test_a_channel_that_is_reconciled_goes_on_while_another_one_waits(bed: Bed) -> None:
    first, second = await bed.channel(), await bed.channel()
    copy = copy_of(bed.alice)
    held = bed.bob.online.channel(second)
    await put_back(bed.alice, copy)
    bed.bob.online._channels.pop(held.channel_id)  # bob says nothing about this one
    await until(lambda: not bed.alice.online.channel(first).machine.is_recovering)
    await both(bed.bob.pay(first, "0.05"), bed.alice.answer_update(first))
    assert "recovery mode" in await refusal(bed.alice.pay(second))
    assert "recovery mode" in await refusal(bed.alice.propose())
    bed.bob.online._channels[held.channel_id] = held
    await bed.alice.reopen()
    assert not bed.alice.online.channel(first).machine.is_recovering, "a reconciled channel stays so over a restart"
    await until(lambda: not recovering(bed.alice))
    await both(bed.bob.pay(second, "0.05"), bed.alice.answer_update(second))


async def test_a_session_in_recovery_mode_opens_no_channels_and_answers_no_payments(bed: Bed) -> None:
    channel = await bed.channel()
    copy = copy_of(bed.alice)
    bed.alice.sync_delay = 3600.0
    await put_back(bed.alice, copy)
    error = await outcome(bed.bob.propose())
    assert isinstance(error, PeerRejected) and "moment" in str(error.info["reason"])
    paying = asyncio.ensure_future(outcome(bed.bob.pay(channel)))
    await settle_down()
    assert not paying.done() and bed.alice.online.channel(channel).machine.question is None
    paying.cancel()
    await asyncio.gather(paying, return_exceptions=True)


async def test_a_session_in_recovery_mode_gets_its_money_back_by_the_contract(bed: Bed) -> None:
    """The peer is gone for good: closing settles with what is held, and the withdrawal is authorised all the same."""
    channel = await bed.channel()
    await bed.payment(channel)
    copy = copy_of(bed.alice)
    await bed.bob.crash()
    await put_back(bed.alice, copy)
    closing = asyncio.ensure_future(outcome(bed.alice.online.channel(channel).close()))
    while not closing.done():
        bed.chain.mine(10)
        await settle_down()
    assert isinstance(await closing, PayChInfo)
    assert bed.chain.balances[(ACCOUNTS[0], None)] == WEALTH - 10**17
    await until(lambda: not recovering(bed.alice))


async def test_recovery_mode_survives_a_restart(bed: Bed) -> None:
    channel = await bed.channel()
    copy = copy_of(bed.alice)
    await bed.bob.crash()
    await put_back(bed.alice, copy)
    for _ in range(2):
        assert "recovery mode" in await refusal(bed.alice.pay(channel))
        await bed.alice.reopen()


# ---- proved by somebody else -----------------------------------------------------------------------------------------


async def test_a_rollback_nobody_noticed_is_proved_by_the_first_peer_that_knows_more(bed: Bed) -> None:
    channel, other = await bed.channel(), await bed.channel()
    await bed.payment(channel)
    copy = copy_of(bed.alice)
    await bed.payment(channel)
    newest = bed.bob.state(channel)
    await put_back(bed.alice, copy, doubt=None)
    assert not recovering(bed.alice)
    told = await outcome(bed.alice.pay(channel, "0.3"))
    assert isinstance(told, PeerRejected | FailedPrecondition)
    await until(lambda: bed.alice.state(channel) == newest)
    await until(lambda: not recovering(bed.alice))
    for each in (channel, other):
        await both(bed.bob.pay(each, "0.05"), bed.alice.answer_update(each))
    assert agreed(bed, channel) and agreed(bed, other)


async def test_a_restored_channel_is_compared_before_anybody_pays(bed: Bed) -> None:
    """When the peer is connected again, both compare once; the older side learns of it without any payment."""
    channel = await bed.channel()
    copy = copy_of(bed.alice)
    await bed.payment(channel)
    newest = bed.bob.state(channel)
    await put_back(bed.alice, copy, doubt=None)
    peer = bed.bob.online.parts.off_chain
    await bed.alice.online.connect(peer)
    await until(lambda: bed.alice.state(channel) == newest)
    assert bed.alice.online.channel(channel).snapshot.recovered in (1, None)


async def test_a_newer_state_on_chain_proves_that_the_storage_is_old(bed: Bed) -> None:
    channel, other = await bed.channel(), await bed.channel()
    copy = copy_of(bed.alice)
    await bed.payment(channel)
    newer = bed.bob.online.channel(channel).snapshot
    await bed.bob.crash()
    await put_back(bed.alice, copy, doubt=None)
    signed = len(bed.alice.keys.messages)
    await bed.bob.chain.register(newer.params, newer.current)
    await until(lambda: recovering(bed.alice))
    assert "registered on chain" in await refusal(bed.alice.pay(other))
    assert len(bed.alice.keys.messages) == signed
    assert bed.alice.store.status().doubt is Doubt.REPORTED


async def test_a_channel_our_storage_lost_is_proved_by_our_own_signature(bed: Bed) -> None:
    empty = copy_of(bed.alice)
    channel = await bed.channel()
    shown = bed.bob.online.channel(channel).snapshot.current
    await put_back(bed.alice, empty, doubt=None)
    peer = bed.alice.online.parts.off_chain
    await bed.bob.online.send(peer, Sync(3, shown))
    await until(lambda: recovering(bed.alice))
    told = await refusal(bed.alice.propose())
    assert channel in told and "rescue file" in told


async def test_a_foreign_state_of_an_unknown_channel_proves_nothing(bed: Bed) -> None:
    empty = copy_of(bed.alice)
    channel = await bed.channel()
    tx = bed.bob.online.channel(channel).snapshot.current
    await put_back(bed.alice, empty, doubt=None)
    swapped = type(tx)(tx.state, (tx.sigs[1], tx.sigs[1]))
    await bed.bob.online.send(bed.alice.online.parts.off_chain, Sync(3, swapped))
    await settle_down()
    assert not recovering(bed.alice)


# ---- the operator's word ---------------------------------------------------------------------------------------------


async def test_the_operator_s_word_ends_recovery_mode_and_guards_the_first_version(bed: Bed) -> None:
    channel = await bed.channel()
    copy = copy_of(bed.alice)
    await put_back(bed.alice, copy)
    await bed.bob.crash()
    await bed.alice.crash()
    store = MemoryStore(bed.alice.rows, status=bed.alice.status)
    assert await take_the_word(store, RecordCodec(PROFILE, NO_APPS)) == (1, "the database is an older copy")
    assert await take_the_word(store, RecordCodec(PROFILE, NO_APPS)) == (0, "")
    bed.alice.status = store.status()
    await bed.alice.open()
    await bed.bob.open()
    assert not recovering(bed.alice)
    told = await outcome(bed.alice.pay(channel))
    assert isinstance(told, ApiError) and "after a recovery" in told.message
    await both(bed.bob.pay(channel, "0.05"), bed.alice.answer_update(channel))
    await bed.payment(channel)


async def test_a_database_that_is_gone_is_replaced_only_by_the_operator_s_word(bed: Bed) -> None:
    await put_back(bed.alice, {}, doubt=Doubt.GONE)
    await settle_down()
    assert "recovery mode" in await refusal(bed.alice.propose())
    await bed.alice.crash()
    store = MemoryStore(bed.alice.rows, status=bed.alice.status)
    await take_the_word(store, RecordCodec(PROFILE, NO_APPS))
    bed.alice.status = store.status()
    await bed.alice.open()
    assert await bed.channel()


# ---- the guard -------------------------------------------------------------------------------------------------------


async def test_the_guard_survives_a_swapped_key_manager_and_a_record_that_was_put_back(bed: Bed) -> None:
    """What was signed stands in the store; no other key manager and no older record makes it sign something else."""
    channel = await bed.channel()
    before = {key: value for key, value in bed.alice.rows.items() if key[0] is Table.CHANNELS}
    paying = asyncio.ensure_future(outcome(bed.alice.pay(channel)))
    await settle_down()
    await bed.alice.crash()
    await bed.bob.crash()
    assert isinstance(await paying, ApiError)
    bed.alice.rows.update(before)
    bed.alice.keys = GuardedKeys(0, bed.alice.rows)
    await bed.alice.open()
    await bed.bob.open()
    assert bed.alice.online.channel(channel).machine.phase is Phase.ACTING
    told = await outcome(bed.alice.pay(channel, "0.7"))
    assert isinstance(told, UnknownInternal) and not bed.alice.keys.messages


# ---- plain words -----------------------------------------------------------------------------------------------------


async def test_who_pays_into_the_dark_is_told_what_is_safe(bed: Bed) -> None:
    """The peer took the update and is gone: the error names the outcome as unknown and the amount that is ours."""
    channel = await bed.channel()
    paying = asyncio.ensure_future(outcome(bed.alice.pay(channel, "0.25")))
    await settle_down()
    live = bed.alice.online.channel(channel)
    assert live.machine.phase is Phase.SIGNING
    await bed.bob.crash()
    bed.network.cut()
    await settle_down()
    for timer in (Timer.RESPONSE, Timer.HEAL):  # asked again in vain
        live.post(TimerFired(timer))
    told = await asyncio.wait_for(paying, PATIENT)
    assert isinstance(told, PeerRequestTimedOut)
    assert "at least 0.75 ETH is ours" in told.message and told.info["peerAlias"] == "bob"


@pytest.fixture(autouse=True)
async def nothing_waits(bed: Bed) -> AsyncIterator[None]:
    yield
    await settle_down()

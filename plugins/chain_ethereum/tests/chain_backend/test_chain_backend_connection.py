"""Connecting, losing the connection and finding it again; heads and events on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from perun_core.errors import NotReachable, WrongChain
from perun_core.ports.chain import BlockEvents, ChannelEvent, DisputePhase

from .conftest import ETHER, Cable, Channel, Ledger, anvil, anvil_ledger, cable_to, over_http, over_ipc

Funded = Callable[..., Any]


@pytest.mark.parametrize("transport", [lambda x: x, over_http, over_ipc], ids=["ws", "http", "ipc"])
async def test_blocks_begin_with_the_current_head_and_go_on(instant: Ledger, transport: Any) -> None:
    async with transport(instant).open() as chain, aclosing(chain.blocks()) as blocks:
        head = await chain.head()
        assert await anext(blocks) == head
        await instant.mine()
        following = await anext(blocks)
        assert following.number > head.number
        assert following == await chain.head()


@pytest.mark.parametrize("transport", [lambda x: x, over_http], ids=["ws", "http"])
async def test_the_development_chain_tells_its_heads(embedded: Ledger, transport: Any) -> None:
    async with transport(embedded).open() as chain, aclosing(chain.blocks()) as blocks:
        first, second = await anext(blocks), await anext(blocks)
        assert second.number > first.number and second.timestamp > first.timestamp


async def test_a_lost_connection_fails_the_calls_under_way_and_later_calls_connect_again(instant: Ledger) -> None:
    async with cable_to(instant) as (cable, ledger), ledger.open() as chain:
        number = (await chain.head()).number
        await cable.cut()
        with pytest.raises(NotReachable):
            await chain.head()
        await cable.mend()
        assert (await chain.head()).number >= number


async def test_a_call_that_waits_for_its_answer_fails_when_the_connection_is_lost(instant: Ledger) -> None:
    asked = asyncio.Event()

    async def answer(socket: ServerConnection) -> None:
        async for message in socket:
            question = json.loads(message)
            if question["method"] == "eth_chainId":
                await socket.send(json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": "0x539"}))
            else:
                asked.set()

    async with serve(answer, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with instant.open(url=url, connect_timeout=60) as chain:
            calls = [asyncio.create_task(chain.head()) for _ in range(3)]
            await asked.wait()
            server.close()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, NotReachable) for outcome in outcomes)


async def test_heads_are_followed_across_an_interruption(instant: Ledger) -> None:
    async with cable_to(instant) as (cable, ledger), ledger.open() as chain, aclosing(chain.blocks()) as blocks:
        before = await anext(blocks)
        await cable.cut()
        await instant.mine(2)
        await cable.mend()
        assert (await anext(blocks)).number == before.number + 2
        await instant.mine()
        assert (await anext(blocks)).number == before.number + 3


async def test_events_are_complete_and_in_order_across_an_interruption(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channels = [Channel((instant.eth_holder,), ((0, 0),)) for _ in range(4)]
    async with cable_to(instant) as (cable, ledger), instant.open(payer) as sender, ledger.open() as watcher:
        cursor = (await watcher.head()).number
        async with aclosing(watcher.events(cursor)) as feed:
            await sender.register(channels[0].params, channels[0].signed(1))
            seen = await _until(feed, 1)
            await cable.cut()
            await sender.register(channels[1].params, channels[1].signed(2))
            await sender.register(channels[2].params, channels[2].signed(3))
            await cable.mend()
            seen += await _until(feed, 2)
            await sender.conclude_final(channels[3].params, channels[3].signed(4, is_final=True))
            seen += await _until(feed, 1)
    assert [event.channel_id for event in seen] == [channel.id for channel in channels]
    assert [event.version for event in seen] == [1, 2, 3, 4]
    assert [event.phase for event in seen] == [DisputePhase.DISPUTE] * 3 + [DisputePhase.CONCLUDED]


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Ledger, Callable[[], Any]]:
    """A chain node with contracts that is not running at the moment, and how to run it at its address."""
    state = ("--state", str(tmp_path / "state.json"))
    with anvil_ledger(*state) as ledger:
        port = int(ledger.http.rpartition(":")[2])
    return ledger, lambda: anvil(*state, port=port)


async def test_the_chain_node_may_be_restarted(stopped: tuple[Ledger, Callable[[], Any]], funded: Funded) -> None:
    ledger, run = stopped
    channels = [Channel((ledger.eth_holder,), ((0, 0),)) for _ in range(2)]
    async with AsyncExitStack() as stack:
        with run():
            chain = await stack.enter_async_context(ledger.open(await funded(ledger)))
            blocks = await stack.enter_async_context(aclosing(chain.blocks()))
            feed = await stack.enter_async_context(aclosing(chain.events(None)))
            await anext(feed)
            await anext(blocks)
            await chain.register(channels[0].params, channels[0].signed(1))
            assert [event.version for event in await _until(feed, 1)] == [1]
        with pytest.raises(NotReachable):
            await chain.head()
        with run():
            assert (await chain.register(channels[1].params, channels[1].signed(2))).version == 2
            assert [event.version for event in await _until(feed, 1)] == [2]
            assert (await anext(blocks)).number == (await chain.head()).number


async def test_events_go_on_from_a_saved_cursor(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer) as chain:
        start = (await chain.head()).number
        for version in (1, 2, 3):
            await chain.register(channel.params, channel.signed(version))
        async with aclosing(chain.events(start)) as feed:
            assert [event.version for event in await _until(feed, 3)] == [1, 2, 3]
        async with aclosing(chain.events(start + 1)) as feed:
            assert [event.version for event in await _until(feed, 2)] == [2, 3]
        async with aclosing(chain.events(None)) as feed:
            item = await anext(feed)
            assert item.events == () and item.cursor == item.block.number


async def test_every_head_gives_an_item_so_that_readers_can_judge_time(instant: Ledger) -> None:
    async with instant.open() as chain, aclosing(chain.events(None)) as feed:
        first = await anext(feed)
        await instant.mine()
        second = await anext(feed)
        assert second.cursor == second.block.number == first.block.number + 1


async def test_events_are_released_at_the_configured_depth(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    async with instant.open(payer) as chain, instant.open(finality_depth=3) as watcher:
        async with aclosing(watcher.events((await chain.head()).number)) as feed:
            await chain.register(channel.params, channel.signed(1))
            mined = (await chain.head()).number
            await instant.mine(3)
            item = await anext(feed)
            while not item.events:
                item = await anext(feed)
        assert item.events[0].block_number == mined
        assert item.block.number >= mined + 2
        assert item.cursor == item.block.number - 2


async def test_events_of_a_block_that_was_exchanged_are_read_again(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((0, 0),))
    hashes: list[str] = []

    async def note(tx_hash: str) -> None:
        hashes.append(tx_hash)

    async with instant.open(payer) as chain, aclosing(chain.events(None)) as feed:
        await anext(feed)
        await instant.mine()
        await chain.register(channel.params, channel.signed(1), sent=note)
        before = (await _until(feed, 1))[0]
        raw = await instant.rpc("eth_getRawTransactionByHash", hashes[0])
        await instant.rpc("anvil_reorg", 2, [[raw, 0]])
        await instant.mine()
        after = (await _until(feed, 1))[0]
    assert after.channel_id == before.channel_id == channel.id
    assert after.block_hash != before.block_hash


async def test_closing_the_backend_ends_what_follows_the_chain(instant: Ledger) -> None:
    async with instant.open() as chain:
        blocks, events = chain.blocks(), chain.events(None)
        await anext(blocks)
        await anext(events)
        waiting = [asyncio.ensure_future(anext(blocks)), asyncio.ensure_future(anext(events))]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, StopAsyncIteration | NotReachable) for outcome in outcomes)


@pytest.mark.parametrize("transport", [lambda x: x, over_http], ids=["ws", "http"])
async def test_a_node_of_another_chain_is_refused(instant: Ledger, transport: Any) -> None:
    with pytest.raises(WrongChain) as caught:
        async with transport(instant).open(chain_id=1):
            pass
    assert (caught.value.configured, caught.value.actual) == (1, 1337)


@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_a_node_that_comes_back_with_another_chain_is_refused(scheme: str, instant: Ledger) -> None:
    cable = Cable(instant.http)
    await cable.mend()
    try:
        async with instant.open(url=f"{scheme}://127.0.0.1:{cable.port}", chain_id=None) as chain:
            assert chain.chain_id == 1337
            await cable.cut()
            with pytest.raises(NotReachable):
                await chain.head()
            with anvil(chain_id=5) as other:
                cable.retarget(other)
                await cable.mend()
                with pytest.raises(WrongChain):
                    await chain.head()
    finally:
        await cable.cut()


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1:1", "ws://", "ws://127.0.0.1:99999", "http://[", "nonsense://x"])
async def test_an_address_that_is_none_is_not_reachable(instant: Ledger, url: str) -> None:
    with pytest.raises(NotReachable, match="invalid chain URL"):
        async with instant.open(url=url):
            pass


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1", "http://127.0.0.1:1", "/nowhere/socket", "nowhere"])
async def test_an_address_where_nobody_listens_is_not_reachable(instant: Ledger, url: str) -> None:
    with pytest.raises(NotReachable):
        async with instant.open(url=url):
            pass


@pytest.mark.parametrize("transport", [lambda x: x, over_http, over_ipc], ids=["ws", "http", "ipc"])
async def test_no_time_to_connect_never_connects(instant: Ledger, transport: Any) -> None:
    with pytest.raises(NotReachable):
        async with transport(instant).open(connect_timeout=0):
            pass


async def test_a_server_that_never_answers_is_given_up_after_the_time_out(instant: Ledger) -> None:
    async with _Silent() as silent:
        for scheme in ("ws", "http"):
            with pytest.raises(NotReachable, match="did not answer"):
                async with instant.open(url=f"{scheme}://127.0.0.1:{silent.port}", connect_timeout=0.2):
                    pass


async def test_access_keys_in_the_address_stay_out_of_messages(instant: Ledger) -> None:
    with pytest.raises(NotReachable) as caught:
        async with instant.open(url="ws://user:hunter2@127.0.0.1:1/v3/0123456789abcdef?key=hunter3"):
            pass
    assert all(secret not in str(caught.value) for secret in ("hunter", "0123456789abcdef"))


async def test_a_channel_can_be_funded_after_the_connection_came_back(instant: Ledger, funded: Funded) -> None:
    payer = await funded(instant)
    channel = Channel((instant.eth_holder,), ((ETHER, 0),))
    funding_id = channel.funding_id(0)
    async with cable_to(instant) as (cable, ledger), ledger.open(payer) as chain:
        await chain.deposit(instant.eth_holder, None, funding_id, ETHER)
        await cable.cut()
        with pytest.raises(NotReachable):
            await chain.deposit(instant.eth_holder, None, funding_id, 2 * ETHER)
        await cable.mend()
        await chain.deposit(instant.eth_holder, None, funding_id, 3 * ETHER)
        assert await chain.holdings(instant.eth_holder, funding_id) == 3 * ETHER


async def _until(feed: AsyncIterator[BlockEvents], count: int) -> list[ChannelEvent]:
    """The next `count` events, and a proof that no more came with them."""
    events: list[ChannelEvent] = []
    async with asyncio.timeout(30):
        while len(events) < count:
            events += (await anext(feed)).events
    assert len(events) == count
    return events


class _Silent:
    """A server that accepts connections and says nothing."""

    async def __aenter__(self) -> _Silent:
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(lambda _, writer: self._writers.append(writer), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

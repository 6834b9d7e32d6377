"""Watching_API (API.md 2.7): states of a channel come in, what happens to it on chain goes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from perun_core.channel import Transaction
from perun_core.ports.api import FundWatchAPI, NodeAPI, WatchedChannel
from perun_core.values import ChannelID

from .errors import answer_to
from .gate import Call, Gate
from .pb import watching_service_pb2 as pb
from .sdk import absent, params_from, put_event, sigs_from, sized, state_from

GRACE: Final = 1.0
"""Seconds in which a call that ended its side turns out to be cancelled."""

METHOD: Final = "StartWatchingLedgerChannel"

Requests = AsyncIterator[pb.StartWatchingLedgerChannelReq]


class Watching:
    """The methods.

    A client that ends its side of the stream has the watching ended. One that only disappears has its channels watched
    on: that is what a watcher is for.
    """

    def __init__(self, node: NodeAPI, gate: Gate) -> None:
        self._node = node
        self._gate = gate

    def _of(self, session_id: str) -> FundWatchAPI:
        """Raises: 201, 204."""
        return self._node.session(session_id).fundwatch()

    async def StopWatching(self, request: pb.StopWatchingReq) -> pb.StopWatchingResp:
        await self._of(request.sessionID).stop_watching(sized(ChannelID, request.chID, "chID"))
        return pb.StopWatchingResp()

    async def StartWatchingLedgerChannel(self, requests: Requests, call: Call) -> None:
        """Watch one channel; errors of the application are told in band before the stream ends."""
        if not self._gate.is_open:
            await self._gate.refuse(call)
        await self._gate.run(call, self._watch(aiter(requests), call), endless=True)

    async def _watch(self, requests: Requests, call: Call) -> None:
        channel: WatchedChannel | None = None
        try:
            try:
                channel = await self._begin(requests)
                if channel is None:
                    return
                await call.send_initial_metadata(())  # tells the client that the channel is watched
                await self._converse(channel, requests, call)
            except Exception as failure:
                await call.write(pb.StartWatchingLedgerChannelResp(error=answer_to(failure, method=METHOD)[1]))
        finally:
            if channel is not None:
                channel.cancel()

    async def _begin(self, requests: Requests) -> WatchedChannel | None:
        """The channel that the first message names; None when there is no message."""
        try:
            first = await anext(requests)
        except StopAsyncIteration:
            return None
        service = self._of(first.sessionID)
        for field in ("params", "state"):
            if not first.HasField(field):
                raise absent(field)
        tx = Transaction(state_from(first.state), sigs_from(first.sigs))
        return await service.watch(params_from(first.params), tx)

    async def _converse(self, channel: WatchedChannel, requests: Requests, call: Call) -> None:
        """Both directions until one of them ends. Raises: what the node says about a state."""
        tasks = [asyncio.ensure_future(self._take(channel, requests)), asyncio.ensure_future(self._tell(channel, call))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _take(self, channel: WatchedChannel, requests: Requests) -> None:
        async for request in requests:
            if not request.HasField("state"):
                raise absent("state")
            await channel.publish(Transaction(state_from(request.state), sigs_from(request.sigs)))
        # A lost connection looks like a client that ended its side until gRPC cancels the call, a moment later. Taking
        # one for the other would leave a channel unguarded just when its owner is away.
        await asyncio.sleep(GRACE)
        await channel.stop()

    async def _tell(self, channel: WatchedChannel, call: Call) -> None:
        async for event in channel:
            await call.write(put_event(pb.StartWatchingLedgerChannelResp(), event))

"""Commands on channels and on what waits for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .. import lines
from ..desk import Desk
from ..escape import shown
from ..failures import Json, NodeFailure, UsageFailure
from ..grammar import Call
from ..replies import Reply, Table, reply
from ..typed import ETH, amount, currency, seconds
from ..values import SELF, Balances, Channel, Row
from .session import subscribed


def deposits(peer: str, given: Sequence[str]) -> Balances:
    """Balances of `OWN PEER` in ETH, then or instead any number of `CURRENCY OWN PEER`. Raises: UsageFailure."""
    words = [ETH, *given] if len(given) % 3 == 2 else list(given)
    if len(words) % 3:
        raise UsageFailure("Deposits are own and peer's amount in ETH, or CURRENCY OWN PEER for each currency")
    rows = tuple(
        Row(currency(words[at]), (amount(words[at + 1]), amount(words[at + 2]))) for at in range(0, len(words), 3)
    )
    if len({row.currency for row in rows}) != len(rows):
        raise UsageFailure("A currency is named twice")
    return Balances((SELF, peer), rows)


async def send_opening_request(desk: Desk, call: Call) -> Reply:
    peer, *given = call.arguments
    challenge = seconds(call.options["challenge"], "challenge") if "challenge" in call.options else desk.challenge
    channel = await desk.connected.open_channel(desk.session, deposits(peer, given), challenge)
    return await opened(desk, channel)


async def opened(desk: Desk, channel: Channel) -> Reply:
    """The answer for a new channel, which a live client follows from now on."""
    if not desk.live:
        return reply(("Channel opened.", *lines.info(channel)), {"channel": channel.to_json()})
    held = desk.adopt(channel)
    told = [f"Channel opened. Alias: {held.name}.", *lines.info(channel)]
    told += await subscribed(desk, held)
    return reply(told, {"alias": held.alias, "channel": channel.to_json()})


async def accept_opening_request(desk: Desk, call: Call) -> Reply:
    if not desk.live:
        return await answer_proposal(desk, call.arguments[0], accept=True)
    return await _answer_request(desk, call.arguments[0], accept=True)


async def reject_opening_request(desk: Desk, call: Call) -> Reply:
    if not desk.live:
        return await answer_proposal(desk, call.arguments[0], accept=False)
    return await _answer_request(desk, call.arguments[0], accept=False)


async def _answer_request(desk: Desk, alias: str, *, accept: bool) -> Reply:
    """A request is answered once: it is taken off the list first, and comes back if nothing reached the node."""
    pending, book = desk.request(alias), desk.book
    del book.requests[alias]
    try:
        answer = await answer_proposal(desk, pending.proposal.id, accept=accept)
    except NodeFailure:
        if pending.seconds_left() > 0:
            book.requests[alias] = pending
        raise
    pending.forget()
    return answer


async def answer_proposal(desk: Desk, proposal: str, *, accept: bool) -> Reply:
    """Accept or reject a proposal by its ID."""
    channel = await desk.connected.respond_proposal(desk.session, proposal, accept=accept)
    if channel is None:
        return reply("Channel proposal rejected successfully.", {"id": proposal, "accepted": False})
    return await opened(desk, channel)


async def list_pending(desk: Desk, call: Call) -> Reply:
    """Requests as in the original; updates that wait follow."""
    offset = await desk.connected.time() - asyncio.get_running_loop().time()
    told: list[str] = []
    data: list[Json] = []
    rows: list[tuple[str, ...]] = []
    for alias, pending in desk.book.requests.items():
        proposal = pending.proposal
        left = int(proposal.expiry - offset - asyncio.get_running_loop().time())
        told += [f"Notification Alias: {shown(alias)}.", *lines.opening(proposal), lines.expiry(left)]
        data.append({"alias": alias, "secondsLeft": left, "request": proposal.to_json()})
        rows.append((shown(alias), "opening request", _terms(proposal.balances), f"{left} s"))
    for held in desk.book.channels.values():
        if held.pending is None:
            continue
        left, update = held.pending.seconds_left(), held.pending.update
        told += [f"Payment pending on channel {held.name}.", lines.balance(update.channel), lines.expiry(left)]
        data.append({"alias": held.alias, "secondsLeft": left, "update": update.to_json()})
        rows.append((held.name, f"{update.kind.value} update", _terms(update.channel.balances), f"{left} s"))
    table = Table("Waiting for an answer", ("name", "what", "balances", "time left"), tuple(rows)) if rows else None
    return Reply(tuple(told) or ("Nothing waits for an answer.",), {"pending": data}, table=table)


def _terms(balances: Balances) -> str:
    return ", ".join(f"{shown(row.currency)} {lines.balance_list(balances.parts, row)}" for row in balances.rows)


async def list_open(desk: Desk, call: Call) -> Reply:
    """Channels the node has; a live client names and follows those it did not know."""
    told: list[str] = []
    data: list[Json] = []
    rows: list[tuple[str, Channel]] = []
    for channel in await desk.connected.open_channels(desk.session):
        held = desk.adopt(channel)
        new = await subscribed(desk, held) if desk.live else ()
        told += [f"Channel {held.name} Info:", *lines.info(channel), *new]
        entry = channel.to_json()
        data.append(entry | {"alias": held.alias} if desk.live else entry)
        rows.append((held.alias or "", channel))
    table = lines.channel_table("Open channels", rows) if rows else None
    return Reply(tuple(told) or ("No open channels.",), {"channels": data}, table=table)


async def info(desk: Desk, call: Call) -> Reply:
    held = await desk.channel(call.arguments[0])
    channel = await desk.connected.channel(desk.session, held.id)
    return reply(
        (f"Channel {held.name} Info:", *lines.info(channel)), {"alias": held.alias, "channel": channel.to_json()}
    )


async def close(desk: Desk, call: Call) -> Reply:
    held, book = await desk.channel(call.arguments[0]), desk.book
    channel = await desk.connected.close_channel(desk.session, held.id)
    desk.drop(book, held)
    desk.change()
    alias = f" Alias: {held.name}." if held.alias else ""
    told = (f"Channel closed.{alias} Updated Info:", *lines.info(channel, end=""))
    return reply(told, {"alias": held.alias, "channel": channel.to_json()})

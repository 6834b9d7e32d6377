"""Commands on payments."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .. import lines
from ..desk import Desk, Held
from ..escape import shown
from ..failures import Json, NodeFailure, UsageFailure
from ..grammar import Call
from ..replies import Reply, reply
from ..typed import ETH, amount, currency
from ..values import SELF, Channel, Payment


def sums(held: Held, given: Sequence[str]) -> list[tuple[str, str]]:
    """(currency, amount) of `AMOUNT (CURRENCY) …`. Without a currency ETH is meant, or the only one of the channel.

    Raises: UsageFailure.
    """
    if len(given) == 1:
        if ETH not in held.currencies and len(held.currencies) != 1:
            raise UsageFailure(f"Name the currency; the channel has {' '.join(map(shown, held.currencies))}")
        only = ETH if ETH in held.currencies else held.currencies[0]
        return [(only, amount(given[0]))]
    if len(given) % 2:
        raise UsageFailure("Every amount needs its currency when there are several")
    return [(currency(given[at + 1]), amount(given[at])) for at in range(0, len(given), 2)]


async def send(desk: Desk, call: Call) -> Reply:
    held = await desk.channel(call.arguments[0])
    payments = [Payment(name, _peer(held), value) for name, value in sums(held, call.arguments[1:])]
    channel = await desk.connected.pay(desk.session, held.id, payments)
    return _paid(held, channel, f"Payment sent to peer on channel {held.name}. Updated channel Info:")


async def request(desk: Desk, call: Call) -> Reply:
    held = await desk.channel(call.arguments[0])
    payments = [Payment(name, SELF, value) for name, value in sums(held, call.arguments[1:])]
    channel = await desk.connected.pay(desk.session, held.id, payments)
    return _paid(held, channel, f"Payment request accepted by peer on channel {held.name}. Updated channel Info:")


async def swap(desk: Desk, call: Call) -> Reply:
    """Both directions in one update: the peer agrees to all of it or to nothing."""
    name, given, given_in, _, wanted, wanted_in = call.arguments
    held = await desk.channel(name)
    payments = [
        Payment(currency(given_in), _peer(held), amount(given)),
        Payment(currency(wanted_in), SELF, amount(wanted)),
    ]
    channel = await desk.connected.pay(desk.session, held.id, payments)
    return _paid(held, channel, f"Swap accepted by peer on channel {held.name}. Updated channel Info:")


def _peer(held: Held) -> str:
    if not held.peer:
        raise UsageFailure(f"Channel {held.name} has no peer with a name")
    return held.peer


def _paid(held: Held, channel: Channel, first: str) -> Reply:
    return reply((first, *lines.info(channel)), {"alias": held.alias, "channel": channel.to_json()})


async def subscribe(desk: Desk, call: Call) -> Reply:
    held = await desk.channel(call.arguments[0])
    if held.reader is not None:
        raise UsageFailure(f"Subscribed to payment notifications on channel {held.name} already.")
    await desk.follow(held)
    return reply(f"Subscribed to payment notifications on channel {held.name} (ID: {shown(held.id)})", {})


async def unsubscribe(desk: Desk, call: Call) -> Reply:
    held = await desk.channel(call.arguments[0])
    await desk.connected.unsubscribe_updates(desk.session, held.id)
    await desk.ended(held.reader)
    return reply(f"Unsubscribed from payment notifications for channel {held.name} (ID: {shown(held.id)})", {})


async def accept(desk: Desk, call: Call) -> Reply:
    held, channel = await _answer(desk, call.arguments[0], accept=True)
    first = f"Payment channel updated. Alias: {held.name}. Updated Info:"
    return reply((first, *lines.info(channel, end="")), {"alias": held.alias, "channel": channel.to_json()})


async def reject(desk: Desk, call: Call) -> Reply:
    held, channel = await _answer(desk, call.arguments[0], accept=False)
    data: dict[str, Json] = {"alias": held.alias, "channel": channel.to_json()}
    return reply("Payment channel update rejected successfully.", data)


async def _answer(desk: Desk, name: str, *, accept: bool) -> tuple[Held, Channel]:
    """Answer the latest update: the one whose notification was shown last. It is answered once."""
    held = await desk.channel(name)
    pending = held.pending
    if pending is None:
        raise UsageFailure(f"No payment notifications pending a response on this channel. {held.name}")
    if asyncio.get_running_loop().time() < pending.readable_at:
        raise UsageFailure("A newer update took the place of the one before just now. Read it, then answer again.")
    held.pending = None
    try:
        channel = await desk.connected.respond_update(desk.session, held.id, pending.update.id, accept=accept)
    except NodeFailure:
        held.put_back(pending)
        raise
    pending.forget()
    return held, channel


async def respond(desk: Desk, call: Call) -> Reply:
    """`respond payment`: the ID of an update begins with that of its channel (API.md 3.1)."""
    update, answer = call.arguments
    channel_id, found, _ = update.partition("_")
    if not found:
        raise UsageFailure(f"{shown(update)} is not the ID of an update")
    accept = answer == "accept"
    channel = await desk.connected.respond_update(desk.session, channel_id, update, accept=accept)
    for held in desk.book.channels.values():
        if held.pending and held.pending.update.id == update:
            held.pending.forget()
            held.pending = None
    data: dict[str, Json] = {"id": update, "accepted": accept, "channel": channel.to_json()}
    if not accept:
        return reply("Payment channel update rejected successfully.", data)
    return reply(
        (f"Payment channel updated. ID: {shown(channel.id)}. Updated Info:", *lines.info(channel, end="")), data
    )

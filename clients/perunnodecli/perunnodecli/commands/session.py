"""Commands on the node, the session, and the people it knows."""

from __future__ import annotations

from .. import lines
from ..desk import Desk, Held
from ..endpoint import Endpoint
from ..escape import shown
from ..failures import ApiFailure, Failure, Json, UsageFailure
from ..grammar import Call
from ..node import Node
from ..replies import Notice, Reply, Table, Tone, reply
from ..values import Channel, Peer


async def connect(desk: Desk, call: Call) -> Reply:
    """`node connect`: the connection counts once the node told its time."""
    return await connect_to(desk, call.arguments[0])


async def connect_to(desk: Desk, address: str) -> Reply:
    """Connect to `address`. Raises: UsageFailure, NodeFailure; then the connection before stays."""
    node = Node(Endpoint(address, desk.security))
    try:
        time = await node.time()
    except BaseException:
        await node.close()
        raise
    await desk.use_node(node)
    return reply(
        f"Connected to perun node at {shown(address)}. Node time is {lines.local_time(time)}",
        {"node": address, "time": time},
    )


async def time(desk: Desk, call: Call) -> Reply:
    told = await desk.connected.time()
    return reply(f"Perun node time: {lines.local_time(told)}", {"time": told})


async def config(desk: Desk, call: Call) -> Reply:
    told = await desk.connected.config()
    data: dict[str, Json] = {
        "chainAddress": told.chainAddress,
        "adjudicator": told.adjudicator,
        "assetETH": told.assetETH,
        "commTypes": list(told.commTypes),
        "idProviderTypes": list(told.idProviderTypes),
    }
    written = {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in data.items()
    }
    rows = tuple((name, shown(value)) for name, value in written.items())
    body = [f" {name}: {value}" for name, value in rows]
    return Reply(("Perun node config:", *body), data, table=Table("Perun node config", ("name", "value"), rows))


async def services(desk: Desk, call: Call) -> Reply:
    told = await desk.connected.services()
    return reply("Services: " + " ".join(map(shown, told)), {"services": list(told)})


async def open_session(desk: Desk, call: Call) -> Reply:
    """`session open`: a live client also subscribes to everything (API.md 6.1)."""
    node = desk.connected
    session, restored = await node.open_session(call.arguments[0])
    data: dict[str, Json] = {"sessionID": session, "restoredChannels": [each.to_json() for each in restored]}
    if not desk.live:
        told = ["Session opened.", *(line for channel in restored for line in _restored(channel, None))]
        return reply(told, data, value=session)
    await desk.forget_session()
    desk.book.session = session
    return await _take_over(desk, "Session opened.", restored, data)


async def use_session(desk: Desk, call: Call) -> Reply:
    """`session use`: as after opening, with the channels the session has now."""
    session = call.arguments[0]
    told = await desk.connected.open_channels(session)
    await desk.forget_session()
    desk.book.session = session
    data: dict[str, Json] = {"sessionID": session, "channels": [each.to_json() for each in told]}
    return await _take_over(desk, "Session in use.", told, data)


async def _take_over(desk: Desk, first: str, channels: tuple[Channel, ...], data: dict[str, Json]) -> Reply:
    told = [first]
    aliases: list[Json] = []
    for channel in channels:
        held = desk.adopt(channel)
        aliases.append(held.alias)
        told += _restored(channel, held)
        told += await subscribed(desk, held)
    try:
        await desk.follow_proposals()
        told.append("Subscribed to channel opening request notifications.")
    except Failure as failure:
        _tell(desk, f"Error subscribing to channel opening requests: {failure}", failure)
    return reply(told, data | {"aliases": aliases})


def _restored(channel: Channel, held: Held | None) -> tuple[str, ...]:
    alias = f" Alias: {held.name}." if held else ""
    return (f"Channel restored.{alias}", *lines.info(channel))


async def subscribed(desk: Desk, held: Held) -> tuple[str, ...]:
    """Follow a channel and say so. That it does not work is told as a notification: the command itself worked."""
    if held.reader is not None:
        return ()
    try:
        await desk.follow(held)
    except ApiFailure as failure:
        if failure.number == 204:  # closed meanwhile
            return ()
        _tell(desk, f"Error subscribing to payment notifications on channel {held.name}: {failure}", failure)
        return ()
    except Failure as failure:
        _tell(desk, f"Error subscribing to payment notifications on channel {held.name}: {failure}", failure)
        return ()
    return (f"Subscribed to payment notifications on channel {held.name} (ID: {shown(held.id)})",)


def _tell(desk: Desk, text: str, failure: Failure) -> None:
    desk.tell(Notice("error", (f"{text}.",), {"error": failure.to_json()}, Tone.BAD))


async def close_session(desk: Desk, call: Call) -> Reply:
    """`session close`: the subscription to proposals ends first and comes back when closing failed (API.md 6.1)."""
    node, session, force = desk.connected, desk.session, call.arguments[0] == "force"
    followed = desk.book.proposals_reader is not None
    if followed:
        await node.unsubscribe_proposals(session)
        await desk.ended(desk.book.proposals_reader)
    try:
        left_open = await node.close_session(session, force=force)
    except Failure:
        if followed:
            await _follow_again(desk)
        raise
    aliases = {held.id: held.alias for held in desk.book.channels.values()}
    await desk.forget_session()
    told = [f"Session closed. ID: {shown(session)}."]
    for channel in left_open:
        alias = f" Alias: {shown(aliases[channel.id])}." if channel.id in aliases else ""
        told += [f"Channel persisted.{alias}", *lines.info(channel)]
    return reply(told, {"sessionID": session, "openChannels": [channel.to_json() for channel in left_open]})


async def _follow_again(desk: Desk) -> None:
    try:
        await desk.follow_proposals()
    except Failure as failure:  # the failure to close is the one to report
        _tell(desk, f"Error subscribing to channel opening requests: {failure}", failure)


async def session_id(desk: Desk, call: Call) -> Reply:
    return reply(f"Session ID: {shown(desk.session)}", {"sessionID": desk.session}, value=desk.session)


async def add_peer(desk: Desk, call: Call) -> Reply:
    entry = Peer(*call.arguments)
    await desk.connected.add_peer(desk.session, entry)
    desk.book.know(entry.alias)
    return reply("Peer ID added successfully.", entry.to_json())


async def get_peer(desk: Desk, call: Call) -> Reply:
    entry = await desk.connected.get_peer(desk.session, call.arguments[0])
    desk.book.know(entry.alias)
    return reply(lines.peer(entry), entry.to_json())


async def register_currency(desk: Desk, call: Call) -> Reply:
    symbol = await desk.connected.register_currency(*call.arguments)
    return reply(f"Currency registered: {shown(symbol)}.", {"symbol": symbol})


async def deploy_asset(desk: Desk, call: Call) -> Reply:
    address = await desk.connected.deploy_asset(desk.session, call.arguments[0])
    told = (f"Asset holder deployed. Address: {shown(address)}.", "Make it usable with 'currency register'.")
    return reply(told, {"assetHolder": address})


async def subscribe(desk: Desk, call: Call) -> Reply:
    """`channel subscribe-to-opening-requests`."""
    if desk.book.proposals_reader is not None:
        raise UsageFailure("Subscribed to channel opening request notifications already.")
    await desk.follow_proposals()
    return reply("Subscribed to channel opening request notifications.", {})


async def unsubscribe(desk: Desk, call: Call) -> Reply:
    """`channel unsubcribe-from-opening-requests`; the end of the stream tells the rest."""
    await desk.connected.unsubscribe_proposals(desk.session)
    await desk.ended(desk.book.proposals_reader)
    return Reply((), {})

"""One command for a script: connect, do it, leave with an exit code that says how it went."""

from __future__ import annotations

from .commands import perform
from .commands.waiting import watch
from .desk import Desk
from .endpoint import Endpoint
from .failures import OK, Failure
from .grammar import SINGLE_ONLY, Call
from .node import Node
from .replies import Reply
from .screen import Screen


async def run_single(desk: Desk, screen: Screen, call: Call, address: str) -> int:
    """The exit code. `address` is the node's; it is not dialled by commands that do not need it."""
    name = call.command.full_name
    try:
        reply = await _do(desk, screen, call, address)
    except Failure as failure:
        screen.failure(name, failure, json=call.json)
        return failure.code
    if name not in SINGLE_ONLY:
        screen.answer(name, reply, json=call.json)
    return OK


async def _do(desk: Desk, screen: Screen, call: Call, address: str) -> Reply:
    try:
        if call.command.needs_node:
            desk.node = Node(Endpoint(address, desk.security))
        if call.command.full_name in SINGLE_ONLY:
            return await watch(desk, call, screen.object, lambda: screen.remark("Watching; Ctrl-C ends."))
        async with screen.step(call.command.waits.format(*call.arguments)):
            return await perform(desk, call)
    finally:
        if desk.node is not None:
            await desk.node.close()

"""What the commands of `grammar` do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ..desk import Desk
from ..failures import UsageFailure
from ..grammar import SHELL_ONLY, SINGLE_ONLY, Call
from ..replies import Reply
from . import chain, channel, payment, session, waiting

Handler = Callable[[Desk, Call], Awaitable[Reply]]


async def _answer_request(desk: Desk, call: Call) -> Reply:
    """`respond opening-request`."""
    proposal, answer = call.arguments
    for alias, pending in list(desk.book.requests.items()):
        if pending.proposal.id == proposal:
            pending.forget()
            del desk.book.requests[alias]
    return await channel.answer_proposal(desk, proposal, accept=answer == "accept")


HANDLERS: Final[Mapping[str, Handler]] = {
    "node connect": session.connect,
    "node time": session.time,
    "node config": session.config,
    "node services": session.services,
    "session open": session.open_session,
    "session close": session.close_session,
    "session use": session.use_session,
    "session id": session.session_id,
    "peer-id add": session.add_peer,
    "peer-id get": session.get_peer,
    "channel send-opening-request": channel.send_opening_request,
    "channel subscribe-to-opening-requests": session.subscribe,
    "channel unsubcribe-from-opening-requests": session.unsubscribe,
    "channel accept-opening-request": channel.accept_opening_request,
    "channel reject-opening-request": channel.reject_opening_request,
    "channel list-notifications-pending-response": channel.list_pending,
    "channel list-open-channels": channel.list_open,
    "channel info": channel.info,
    "channel close-n-settle-on-chain": channel.close,
    "payment send-to-peer": payment.send,
    "payment request-from-peer": payment.request,
    "payment swap": payment.swap,
    "payment subscribe-to-notifications": payment.subscribe,
    "payment unsubscribe-to-notifications": payment.unsubscribe,
    "payment accept-payment-update-from-peer": payment.accept,
    "payment reject-payment-update-from-peer": payment.reject,
    "currency register": session.register_currency,
    "currency deploy-asset-holder": session.deploy_asset,
    "chain set-blockchain-address": chain.set_address,
    "chain get-blockchain-address": chain.get_address,
    "chain deploy-perun-contracts": chain.deploy,
    "chain get-on-chain-balance": chain.balance,
    "respond opening-request": _answer_request,
    "respond payment": payment.respond,
    "wait request": waiting.wait,
    "wait payment": waiting.wait,
    "wait closed": waiting.wait,
}
"""Everything but the built-ins of a shell and `watch`, which have the output to themselves."""


async def perform(desk: Desk, call: Call) -> Reply:
    """Do what a call says. Raises: Failure."""
    name = call.command.full_name
    if not desk.live and name in SHELL_ONLY:
        raise UsageFailure(f"'{name}' is for the interactive shell: it needs what a shell remembers.")
    if desk.live and name in SINGLE_ONLY:
        raise UsageFailure(f"'{name}' is a command of its own: run 'perunnodecli {name}'. Here you are told anyway.")
    if call.command.needs_node:
        _ = desk.connected
    return await HANDLERS[name](desk, call)

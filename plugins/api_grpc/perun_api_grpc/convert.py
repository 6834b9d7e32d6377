"""Between the messages of the API and the values of `perun_core.ports.api`; nothing is interpreted here."""

from __future__ import annotations

from collections.abc import Iterable

from perun_core.ports.api import (
    BalInfo,
    PayChInfo,
    PaymentItem,
    PeerIDInfo,
    ProposalNotification,
    UpdateNotification,
)

from .pb import errors_pb2, nodetypes_pb2, payment_service_pb2

ProposalNotify = payment_service_pb2.SubPayChProposalsResp.Notify
UpdateNotify = payment_service_pb2.SubPayChUpdatesResp.Notify


def peer_from(message: nodetypes_pb2.PeerID) -> PeerIDInfo:
    """The peer a user names."""
    return PeerIDInfo(message.alias, message.offChainAddress, message.commAddress, message.commType)


def peer_to(peer: PeerIDInfo) -> nodetypes_pb2.PeerID:
    """A peer as clients read it."""
    return nodetypes_pb2.PeerID(
        alias=peer.alias,
        offChainAddress=peer.off_chain_address,
        commAddress=peer.comm_address,
        commType=peer.comm_type,
    )


def balances_from(message: nodetypes_pb2.BalInfo) -> BalInfo:
    """Balances as they were sent, ragged rows included: the node checks them."""
    return BalInfo(tuple(message.currencies), tuple(message.parts), tuple(tuple(row.bal) for row in message.bals))


def balances_to(info: BalInfo) -> nodetypes_pb2.BalInfo:
    """Balances as clients read them."""
    rows = [nodetypes_pb2.BalInfo.bal(bal=row) for row in info.bals]
    return nodetypes_pb2.BalInfo(currencies=info.currencies, parts=info.parts, bals=rows)


def channel_to(info: PayChInfo) -> nodetypes_pb2.PayChInfo:
    """A channel as clients read it. `balInfo` is always present, even when empty (API.md 1.5)."""
    return nodetypes_pb2.PayChInfo(chID=info.channel_id, balInfo=balances_to(info.bal_info), version=info.version)


def channels_to(infos: Iterable[PayChInfo]) -> list[nodetypes_pb2.PayChInfo]:
    """Channels in the order given."""
    return [channel_to(info) for info in infos]


def payments_from(messages: Iterable[nodetypes_pb2.Payment]) -> tuple[PaymentItem, ...]:
    """Payments in the order sent."""
    return tuple(PaymentItem(each.currency, each.payee, each.amount) for each in messages)


def proposal_to(proposal: ProposalNotification) -> ProposalNotify:
    """A notification of an incoming proposal."""
    return ProposalNotify(
        proposalID=proposal.proposal_id,
        openingBalInfo=balances_to(proposal.opening_bal_info),
        challengeDurSecs=proposal.challenge_duration,
        expiry=proposal.expiry,
    )


def update_to(update: UpdateNotification, error: errors_pb2.MsgError | None) -> UpdateNotify:
    """A notification of an incoming update or of the closing; `error` is the one of `update`, as a message."""
    return UpdateNotify(
        updateID=update.update_id,
        proposedPayChInfo=channel_to(update.info),
        Type=UpdateNotify.ChUpdateType.ValueType(update.type),
        expiry=update.expiry,
        error=error,
    )

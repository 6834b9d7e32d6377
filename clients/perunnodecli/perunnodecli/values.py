"""What the node tells, as values: read once, checked for shape, safe to use afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .failures import ApiFailure, Json, NodeFailure
from .pb import errors_pb2, nodetypes_pb2
from .pb import payment_service_pb2 as pb

SELF: Final = "self"
"""The user's own name in every list of participants."""


@dataclass(frozen=True, slots=True)
class Row:
    """Amounts in one currency, as decimal text, in the order of the participants."""

    currency: str
    amounts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Balances:
    """Who holds how much. Every row has one amount for each participant."""

    parts: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def currencies(self) -> tuple[str, ...]:
        return tuple(row.currency for row in self.rows)

    @property
    def peer(self) -> str:
        """The participant who is not the user; empty when there is none, or more than one."""
        others = [part for part in self.parts if part != SELF]
        return others[0] if len(others) == 1 else ""

    def to_json(self) -> Json:
        return {row.currency: dict(zip(self.parts, row.amounts, strict=True)) for row in self.rows}

    @classmethod
    def read(cls, info: nodetypes_pb2.BalInfo) -> Balances:
        """Raises: NodeFailure when rows and columns do not fit."""
        parts = tuple(info.parts)
        rows = tuple(Row(currency, tuple(row.bal)) for currency, row in zip(info.currencies, info.bals, strict=False))
        if len(info.currencies) != len(info.bals) or any(len(row.amounts) != len(parts) for row in rows):
            raise NodeFailure("the node sent balances whose rows and columns do not fit together")
        if len(set(parts)) != len(parts) or len({row.currency for row in rows}) != len(rows):
            raise NodeFailure("the node sent balances that name something twice")
        return cls(parts, rows)

    def message(self) -> nodetypes_pb2.BalInfo:
        """The same for the node."""
        rows = [nodetypes_pb2.BalInfo.bal(bal=row.amounts) for row in self.rows]
        return nodetypes_pb2.BalInfo(currencies=self.currencies, parts=self.parts, bals=rows)


@dataclass(frozen=True, slots=True)
class Channel:
    """A state of a channel: the last agreed one, or one that is proposed."""

    id: str
    balances: Balances
    version: str

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "peer": self.balances.peer,
            "version": self.version,
            "parts": list(self.balances.parts),
            "currencies": list(self.balances.currencies),
            "balances": self.balances.to_json(),
        }

    @classmethod
    def read(cls, info: nodetypes_pb2.PayChInfo) -> Channel:
        """Raises: NodeFailure."""
        return cls(info.chID, Balances.read(info.balInfo), info.version)


@dataclass(frozen=True, slots=True)
class Proposal:
    """Somebody wants to open a channel. With expiry 0 the node refused already, and there is nothing to answer."""

    id: str
    balances: Balances
    challenge: int
    expiry: int

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "peer": self.balances.peer,
            "challengeDuration": self.challenge,
            "expiry": self.expiry,
            "parts": list(self.balances.parts),
            "currencies": list(self.balances.currencies),
            "balances": self.balances.to_json(),
        }

    @classmethod
    def read(cls, notify: pb.SubPayChProposalsResp.Notify) -> Proposal:
        """Raises: NodeFailure."""
        return cls(notify.proposalID, Balances.read(notify.openingBalInfo), notify.challengeDurSecs, notify.expiry)


class Kind(Enum):
    """What an update is about."""

    OPEN = "open"
    FINAL = "final"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Update:
    """A proposed state, or with kind CLOSED the news that the channel is closed; `error` says that settling failed."""

    id: str
    channel: Channel
    kind: Kind
    expiry: int
    error: ApiFailure | None

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "type": self.kind.value,
            "expiry": self.expiry,
            "channel": self.channel.to_json(),
            "error": self.error.to_json() if self.error else None,
        }

    @classmethod
    def read(cls, notify: pb.SubPayChUpdatesResp.Notify) -> Update:
        """Raises: NodeFailure."""
        kinds = {
            pb.SubPayChUpdatesResp.Notify.ChUpdateType.open: Kind.OPEN,
            pb.SubPayChUpdatesResp.Notify.ChUpdateType.final: Kind.FINAL,
            pb.SubPayChUpdatesResp.Notify.ChUpdateType.closed: Kind.CLOSED,
        }
        if notify.Type not in kinds:
            raise NodeFailure(f"the node sent an update of the unknown type {notify.Type}")
        error = api_failure(notify.error) if notify.HasField("error") else None
        return cls(notify.updateID, Channel.read(notify.proposedPayChInfo), kinds[notify.Type], notify.expiry, error)


@dataclass(frozen=True, slots=True)
class Peer:
    """An entry of the session's directory."""

    alias: str
    off_chain_address: str
    comm_address: str
    comm_type: str

    def to_json(self) -> dict[str, Json]:
        return {
            "alias": self.alias,
            "offChainAddress": self.off_chain_address,
            "commAddress": self.comm_address,
            "commType": self.comm_type,
        }

    @classmethod
    def read(cls, peer: nodetypes_pb2.PeerID) -> Peer:
        return cls(peer.alias, peer.offChainAddress, peer.commAddress, peer.commType)

    def message(self) -> nodetypes_pb2.PeerID:
        """The same for the node."""
        return nodetypes_pb2.PeerID(
            alias=self.alias,
            offChainAddress=self.off_chain_address,
            commAddress=self.comm_address,
            commType=self.comm_type,
        )


@dataclass(frozen=True, slots=True)
class Payment:
    """An amount in one currency that the payee gets from the other participant."""

    currency: str
    payee: str
    amount: str

    def message(self) -> nodetypes_pb2.Payment:
        """The same for the node."""
        return nodetypes_pb2.Payment(currency=self.currency, payee=self.payee, amount=self.amount)


def channels(infos: Iterable[nodetypes_pb2.PayChInfo]) -> tuple[Channel, ...]:
    """Raises: NodeFailure."""
    return tuple(map(Channel.read, infos))


def api_failure(error: errors_pb2.MsgError) -> ApiFailure:
    """An error of the API as a value; codes and categories of a newer node keep their numbers."""
    kind = error.WhichOneof("addInfo")
    info: dict[str, Json] = {}
    match kind:
        case None:
            pass
        case "ErrInfoFailedPreCondUnclosedChs":
            unclosed = channels(error.ErrInfoFailedPreCondUnclosedChs.chs)
            info["chs"] = [channel.to_json() for channel in unclosed]
        case "ErrInfoInvalidContracts":
            contracts = error.ErrInfoInvalidContracts.ContractErrInfos
            info["contracts"] = [
                {"name": each.name, "address": each.address, "error": each.error} for each in contracts
            ]
        case _:
            told = getattr(error, kind)
            info |= {field.name: getattr(told, field.name) for field in told.DESCRIPTOR.fields}
    return ApiFailure(
        category=_name(errors_pb2.ErrorCategory, error.category),
        number=error.code,
        name=_name(errors_pb2.ErrorCode, error.code),
        message=error.message,
        info=info,
    )


def _name(enum: type[errors_pb2.ErrorCategory] | type[errors_pb2.ErrorCode], number: int) -> str:
    names = dict(zip(enum.values(), enum.keys(), strict=True))
    return names.get(number, str(number))

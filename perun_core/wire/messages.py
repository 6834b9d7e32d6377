"""Every message of the peer protocol as a frozen value (PROTOCOL.md 3). Decoding checks form, never meaning."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final

from msgspec import Struct

from ..channel import Allocation, Balances, Params, State, Transaction
from ..values import Address, Bytes32, ChannelID, ProposalID, Sig


class MessageType(IntEnum):
    """Type byte of an envelope (PROTOCOL.md 3.2)."""

    PING = 0
    PONG = 1
    SHUTDOWN = 2
    AUTH_RESPONSE = 3
    LEDGER_PROPOSAL = 4
    LEDGER_PROPOSAL_ACC = 5
    SUB_PROPOSAL = 6
    SUB_PROPOSAL_ACC = 7
    VIRTUAL_PROPOSAL = 8
    VIRTUAL_PROPOSAL_ACC = 9
    PROPOSAL_REJ = 10
    UPDATE = 11
    VIRTUAL_FUNDING = 12
    VIRTUAL_SETTLEMENT = 13
    UPDATE_ACC = 14
    UPDATE_REJ = 15
    SYNC = 16


class Message(Struct, frozen=True):
    """Root of all message bodies; `TYPE` is the byte that stands in front of the body."""

    TYPE: ClassVar[MessageType]


class Ping(Message, frozen=True):
    """Nanoseconds since the epoch, may be negative. Tolerated and ignored (PROTOCOL.md 4.6)."""

    TYPE = MessageType.PING
    created: int


class Pong(Message, frozen=True):
    """Answer to a ping; tolerated and ignored."""

    TYPE = MessageType.PONG
    created: int


class Shutdown(Message, frozen=True):
    """The peer says good-bye; tolerated and ignored."""

    TYPE = MessageType.SHUTDOWN
    reason: str


class AuthResponse(Message, frozen=True):
    """The handshake; carries nothing beside the envelope's addresses."""

    TYPE = MessageType.AUTH_RESPONSE


class BaseProposal(Struct, frozen=True):
    """The terms every kind of channel proposal has."""

    proposal_id: ProposalID
    challenge_duration: int
    nonce_share: Bytes32
    app: Address | None
    init_data: bytes
    init_bals: Allocation
    funding_agreement: Balances


class BaseProposalAcc(Struct, frozen=True):
    """What every acceptance of a proposal has."""

    proposal_id: ProposalID
    nonce_share: Bytes32


class LedgerProposal(Message, frozen=True):
    """Proposal of a channel funded on chain; `peers` are network identities in participant order."""

    TYPE = MessageType.LEDGER_PROPOSAL
    base: BaseProposal
    participant: Address
    peers: tuple[Address, ...]


class LedgerProposalAcc(Message, frozen=True):
    """Acceptance of a ledger channel with the responder's signing address."""

    TYPE = MessageType.LEDGER_PROPOSAL_ACC
    base: BaseProposalAcc
    participant: Address


class SubProposal(Message, frozen=True):
    """Proposal of a channel funded from the balances of `parent`."""

    TYPE = MessageType.SUB_PROPOSAL
    base: BaseProposal
    parent: ChannelID


class SubProposalAcc(Message, frozen=True):
    """Acceptance of a sub-channel."""

    TYPE = MessageType.SUB_PROPOSAL_ACC
    base: BaseProposalAcc


class VirtualProposal(Message, frozen=True):
    """Proposal of a channel funded from two parents through an intermediary."""

    TYPE = MessageType.VIRTUAL_PROPOSAL
    base: BaseProposal
    proposer: Address
    peers: tuple[Address, ...]
    parents: tuple[ChannelID, ...]
    index_maps: tuple[tuple[int, ...], ...]


class VirtualProposalAcc(Message, frozen=True):
    """Acceptance of a virtual channel."""

    TYPE = MessageType.VIRTUAL_PROPOSAL_ACC
    base: BaseProposalAcc
    responder: Address


class ProposalRej(Message, frozen=True):
    """Refusal of any proposal; the reason is free text."""

    TYPE = MessageType.PROPOSAL_REJ
    proposal_id: ProposalID
    reason: str


class Update(Message, frozen=True):
    """Proposed next state with the sender's signature over it. Unverified until the U checks passed."""

    TYPE = MessageType.UPDATE
    state: State
    actor: int
    sig: Sig


class SignedState(Struct, frozen=True):
    """A whole channel in a message: parameters, state, one optional signature per participant."""

    params: Params
    state: State
    sigs: tuple[Sig | None, ...]


class VirtualFunding(Message, frozen=True):
    """Parent update that locks funds for a virtual channel."""

    TYPE = MessageType.VIRTUAL_FUNDING
    update: Update
    initial: SignedState
    index_map: tuple[int, ...]


class VirtualSettlement(Message, frozen=True):
    """Parent update that releases the funds of a finished virtual channel."""

    TYPE = MessageType.VIRTUAL_SETTLEMENT
    update: Update
    final: SignedState


class UpdateAcc(Message, frozen=True):
    """Acceptance of an update; with version 0 it carries the signature on the initial state."""

    TYPE = MessageType.UPDATE_ACC
    channel_id: ChannelID
    version: int
    sig: Sig


class UpdateRej(Message, frozen=True):
    """Refusal of an update; the reason is free text."""

    TYPE = MessageType.UPDATE_REJ
    channel_id: ChannelID
    version: int
    reason: str


class Sync(Message, frozen=True):
    """A side's phase number and newest fully signed transaction (PROTOCOL.md 7.4)."""

    TYPE = MessageType.SYNC
    phase: int
    current: Transaction


class Envelope(Struct, frozen=True):
    """A message with the network identities it claims to go between."""

    sender: Address
    recipient: Address
    message: Message


DEFAULT_MESSAGE_LIMIT: Final = 1 << 20
"""Cap on the bytes of one envelope in bytes, when a configuration names no other."""

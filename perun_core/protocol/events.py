"""What happens to a machine. Events are named by who acts: user, peer, chain, timer, or an effect's result.

Everything from the peer is unverified until the machine's checks passed.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from ..channel import Dispute, State, Transaction
from ..errors import ApiError
from ..values import Sig
from ..wire.messages import LedgerProposalAcc, ProposalRej, Sync, Update, UpdateAcc, UpdateRej
from .effects import Timer


class Payment(Struct, frozen=True):
    """`amount` base units of asset `asset` from participant `payer` to the other one."""

    asset: int
    payer: int
    amount: int
    text: str = ""
    """The amount as the user wrote it, for error messages."""


class UserPaid(Struct, frozen=True):
    """Our user proposes an update that applies `payments` in order."""

    request: int
    payments: tuple[Payment, ...]


class UserClosed(Struct, frozen=True):
    """Our user wants the channel finalised if possible, settled and withdrawn in any case."""

    request: int


class UserAccepted(Struct, frozen=True):
    """Our user (or policy) agrees to the update of `version` it was asked about."""

    request: int
    version: int


class UserRejected(Struct, frozen=True):
    """Our user (or policy) refuses the update of `version`."""

    request: int
    version: int
    reason: str


class UserProgressed(Struct, frozen=True):
    """Our user moves a disputed channel on to `state` on chain, by the rules of its app (PROTOCOL.md 7.10).

    `dispute` is what the contract stores and `now` the block time, Unix seconds, both read just before.
    """

    request: int
    state: State
    dispute: Dispute
    now: int


class PeerProposed(Struct, frozen=True):
    """An update request arrived from the peer of this channel."""

    update: Update


class PeerAccepted(Struct, frozen=True):
    """An acceptance arrived from the peer of this channel."""

    acc: UpdateAcc


class PeerRejected(Struct, frozen=True):
    """A refusal arrived from the peer of this channel."""

    rej: UpdateRej


class PeerSynced(Struct, frozen=True):
    """A sync message arrived from the peer of this channel."""

    sync: Sync


class PeerReached(Struct, frozen=True):
    """The connection a `Connect` asked for is there."""


class PeerConnected(Struct, frozen=True):
    """A connection to the peer came up by itself; what it may have missed can be sent again."""


class PeerAway(Struct, frozen=True):
    """Connecting or sending failed. After a failed `Send` the message may or may not have arrived."""

    problem: str


class RecoveryBegan(Struct, frozen=True):
    """Our storage is or may be an old copy: nothing is signed until the peer's newest state is known."""

    reason: str
    """As the user is told."""


class RecoveryEnded(Struct, frozen=True):
    """Every channel is reconciled, or the operator takes the responsibility: the channel goes on."""


class Signed(Struct, frozen=True):
    """Our signature on the state of a `RequestSignature`."""

    sig: Sig


class TimerFired(Struct, frozen=True):
    """A timer ran out."""

    timer: Timer


class ChainFunded(Struct, frozen=True):
    """Every participant's deposit reached its share at the configured finality depth."""


class ChainRegistered(Struct, frozen=True):
    """A state is registered on chain, by us or by somebody else; `dispute` is what the contract stores."""

    dispute: Dispute


class ChainMatured(Struct, frozen=True):
    """Block time reached the moment we waited for; `dispute` is what the contract stores now."""

    dispute: Dispute


class ChainStands(Struct, frozen=True):
    """What is registered cannot be replaced by what we wanted to bring any more; it goes on with `dispute`."""

    dispute: Dispute


class ChainFound(Struct, frozen=True):
    """The state `dispute` tells the hash of, as its transaction brought it to the chain, with the signatures it had."""

    dispute: Dispute
    tx: Transaction


class ChainUndone(Struct, frozen=True):
    """A reorg took back what was achieved on chain for this channel; `dispute` is what the contract stores now."""

    dispute: Dispute


class ChainConcluded(Struct, frozen=True):
    """The channel is concluded on chain."""

    version: int


class ChainWithdrawn(Struct, frozen=True):
    """Everything we held is withdrawn."""


class ChainFailed(Struct, frozen=True):
    """The last chain step failed. `deposited`: something of ours is or may come to be in the asset holders."""

    error: ApiError
    deposited: bool = True


class PeerAcceptedProposal(Struct, frozen=True):
    """The peer accepts our channel proposal."""

    acc: LedgerProposalAcc


class PeerRejectedProposal(Struct, frozen=True):
    """The peer refuses our channel proposal."""

    rej: ProposalRej


Event: TypeAlias = (
    UserPaid
    | UserClosed
    | UserAccepted
    | UserRejected
    | UserProgressed
    | PeerProposed
    | PeerAccepted
    | PeerRejected
    | PeerSynced
    | PeerReached
    | PeerConnected
    | PeerAway
    | Signed
    | TimerFired
    | ChainFunded
    | ChainRegistered
    | ChainMatured
    | ChainStands
    | ChainFound
    | ChainUndone
    | ChainConcluded
    | ChainWithdrawn
    | ChainFailed
    | RecoveryBegan
    | RecoveryEnded
)

OpeningEvent: TypeAlias = (
    PeerAcceptedProposal
    | PeerRejectedProposal
    | PeerAccepted
    | PeerRejected
    | PeerReached
    | PeerAway
    | Signed
    | TimerFired
)

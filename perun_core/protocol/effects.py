"""What a machine wants done, in order. Performing an effect may bring an event back.

The kinds: `Persist`, `RequestSignature`, `Send`, `Connect`, `SetTimer`, `CancelTimer`, `SubmitTx`, `Publish`, `Notify`,
`Reply`, `Fail`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct

from ..channel import Dispute, Params, State, Transaction
from ..errors import ApiError
from ..values import Bytes32, Sig
from ..wire.messages import Message
from .records import ChannelRecord, Signing


class Timer(StrEnum):
    """Timers of a machine; at most one of each runs."""

    RESPONSE = "response"
    """The peer's answer to our request is due."""
    EXPIRY = "expiry"
    """Our user's answer to the peer's request is due."""
    HEAL = "heal"
    """Ask again about an update whose outcome is unknown."""
    SETTLE = "settle"
    """Try a failed settlement step again."""
    SYNC = "sync"
    """Compare newest states with the peer."""


class Persist(Struct, frozen=True):
    """Make `record` durable before anything that follows happens.

    `signing`: the state we are about to sign; its mark goes into the signing guard in the same batch, which is refused
    when another state of that version was marked under the same candidate number (PROTOCOL.md 6.3, 7.3.5).
    `claim`: refuse when the channel ID was ever used (O-16). `archive`: move the record to the archive; when it was
    settled on chain it stays watched for a while, in case a reorg undoes that.
    """

    record: ChannelRecord
    signing: Signing | None = None
    claim: bool = False
    archive: bool = False


class RequestSignature(Struct, frozen=True):
    """Sign `state` with our participant key; brings back `Signed`. Always after the `Persist` that marks it."""

    state: State
    digest: Bytes32
    """Hash of `state`."""


class Connect(Struct, frozen=True):
    """Make sure the peer can be talked to, before anything is signed; brings back `PeerReached` or `PeerAway`."""


class Send(Struct, frozen=True):
    """Hand `message` to the peer's connection, dialling if needed; a failure brings back `PeerAway`."""

    message: Message


class SetTimer(Struct, frozen=True):
    """Let `TimerFired(timer)` come after `seconds`, replacing a running one of that name."""

    timer: Timer
    seconds: float


class CancelTimer(Struct, frozen=True):
    """Forget a timer; no effect when it does not run."""

    timer: Timer


class FundChannel(Struct, frozen=True):
    """Deposit our share of version 0 and wait for everybody's; brings `ChainFunded` or `ChainFailed`.

    `deposit` False only waits: after a restart nothing new is put at risk (O-22).
    """

    params: Params
    state: State
    deposit: bool = True


class RegisterState(Struct, frozen=True):
    """Register a fully signed transaction; brings `ChainRegistered`, `ChainStands` or `ChainFailed`.

    `deadline` is the block time by which it has to be there (Unix seconds): the end of the dispute it refutes. None
    when nothing hurries.
    """

    params: Params
    tx: Transaction
    deadline: int | None = None


class AwaitConcludable(Struct, frozen=True):
    """Wait until block time reaches `at` (Unix seconds), then read the dispute; brings `ChainMatured`."""

    at: int


class FindRegistered(Struct, frozen=True):
    """Take the state that `dispute` tells the hash of from the chain itself; brings `ChainFound` or `ChainFailed`."""

    params: Params
    dispute: Dispute


class ProgressState(Struct, frozen=True):
    """Move the registered state `old` to `new` by the app's rules; brings what `RegisterState` brings.

    `sig` is the signature of participant `actor` on `new`; `deadline` as in `RegisterState`.
    """

    params: Params
    old: State
    new: State
    actor: int
    sig: Sig
    deadline: int


class ConcludeState(Struct, frozen=True):
    """Conclude the registered `state`; brings `ChainConcluded` or `ChainFailed`."""

    params: Params
    state: State


class ConcludeFinal(Struct, frozen=True):
    """Conclude a fully signed final transaction; a `secondary` first gives the other side three blocks to do it."""

    params: Params
    tx: Transaction
    secondary: bool


class WithdrawHoldings(Struct, frozen=True):
    """Withdraw everything we hold in each asset of `state`; brings `ChainWithdrawn`, `ChainUndone` or `ChainFailed`."""

    params: Params
    state: State


ChainStep: TypeAlias = (
    FundChannel
    | RegisterState
    | AwaitConcludable
    | FindRegistered
    | ProgressState
    | ConcludeState
    | ConcludeFinal
    | WithdrawHoldings
)


class SubmitTx(Struct, frozen=True):
    """Let the chain do a step beside the machine; a later step replaces one that still waits."""

    step: ChainStep


class Publish(Struct, frozen=True):
    """Tell the watcher the newest fully signed transaction."""

    tx: Transaction


class AskUser(Struct, frozen=True):
    """The peer proposes `state`; somebody must decide within `seconds` of now."""

    state: State
    seconds: float


class QuestionWithdrawn(Struct, frozen=True):
    """The question about `version` needs no answer any more."""

    version: int


class ChannelClosed(Struct, frozen=True):
    """Everything is withdrawn, or (with `error`) a settlement step failed and is repeated in the background."""

    error: ApiError | None = None


class StorageBehind(Struct, frozen=True):
    """The peer holds `version`, fully signed, of which our storage knew nothing: an old copy is in use (Y-6)."""

    version: int


class Forked(Struct, frozen=True):
    """The peer holds another fully signed state of `version`: nothing more is signed, the chain decides (Y-4)."""

    version: int


class Reconciled(Struct, frozen=True):
    """In recovery mode: the peer's newest state is ours, or nothing off-chain can happen any more."""


Notification: TypeAlias = AskUser | QuestionWithdrawn | ChannelClosed | StorageBehind | Forked | Reconciled


class Notify(Struct, frozen=True):
    """Tell the user."""

    notification: Notification


class Reply(Struct, frozen=True):
    """The user's request `request` succeeded."""

    request: int


class Fail(Struct, frozen=True):
    """The user's request `request` failed."""

    request: int
    error: ApiError


Effect: TypeAlias = (
    Persist | RequestSignature | Connect | Send | SetTimer | CancelTimer | SubmitTx | Publish | Notify | Reply | Fail
)
Effects: TypeAlias = tuple[Effect, ...]

"""What API plugins call: the node, its sessions and their channels as users see them.

Amounts are decimal text in units of the currency, identifiers are text (API.md 3). Every method raises an ApiError
and nothing else; reads never wait for network, chain or users. Cancelling a call before its first externally visible
step aborts it; afterwards it runs to its end and its result is visible through the reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from typing import Protocol, TypeVar

from msgspec import Struct

from ..channel import Balances, Params, State, Transaction
from ..errors import ApiError
from ..values import Address, ChannelID, Sig

T_co = TypeVar("T_co", covariant=True)


class PeerIDInfo(Struct, frozen=True):
    """A peer as the API shows it."""

    alias: str
    off_chain_address: str
    comm_address: str
    comm_type: str


class BalInfo(Struct, frozen=True):
    """Balances: `bals[i][j]` belongs to `currencies[i]` and `parts[j]` (API.md 3.2)."""

    currencies: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    bals: tuple[tuple[str, ...], ...] = ()


class PayChInfo(Struct, frozen=True):
    """A channel as the API shows it; `version` is decimal text."""

    channel_id: str
    bal_info: BalInfo
    version: str


class PaymentItem(Struct, frozen=True):
    """One payment of an update: the payee is the peer's alias or ``self``."""

    currency: str
    payee: str
    amount: str


class ProposalNotification(Struct, frozen=True):
    """An incoming channel proposal; `expiry` in Unix seconds, 0 when it was refused already."""

    proposal_id: str
    opening_bal_info: BalInfo
    challenge_duration: int
    expiry: int


class UpdateType(IntEnum):
    """Type of an update notification, numbers of the published API."""

    OPEN = 0
    FINAL = 1
    CLOSED = 2


class UpdateNotification(Struct, frozen=True):
    """An incoming update, or the news that the channel is closed (then `expiry` is 0 and `error` may be set)."""

    update_id: str
    info: PayChInfo
    type: UpdateType
    expiry: int
    error: ApiError | None = None


class NodeInfo(Struct, frozen=True):
    """Configuration a client may see, verbatim as configured."""

    chain_address: str
    adjudicator: str
    asset_eth: str
    comm_types: tuple[str, ...]
    id_provider_types: tuple[str, ...]


class OpenedSession(Struct, frozen=True):
    """Answer to opening a session."""

    session_id: str
    restored: tuple[PayChInfo, ...]


class Subscription(Protocol[T_co]):
    """A stream of notifications; iterating ends when the subscription ended properly."""

    def __aiter__(self) -> AsyncIterator[T_co]:
        """Notifications in order of arrival. One reader only. What was not yielded stays for the next subscriber."""
        ...

    def cancel(self) -> None:
        """The reader is gone: ends the subscription at once; idempotent."""
        ...


class AdjudicatorEventKind(IntEnum):
    """What happened to a channel on chain."""

    REGISTERED = 1
    PROGRESSED = 2
    CONCLUDED = 3


class AdjudicatorEvent(Struct, frozen=True):
    """An event of a channel on chain. `timeout` is the block time (Unix seconds) at which the phase it began ends.

    `state` and `sigs` are there when this node knows the state of that version; the chain stores only its hash.
    """

    channel_id: ChannelID
    kind: AdjudicatorEventKind
    version: int
    timeout: int
    state: State | None = None
    sigs: tuple[Sig, ...] = ()


class AdjudicatorRequest(Struct, frozen=True):
    """Who wants what done to a channel on chain: participant `index`, which must be `account`, with `tx`.

    `secondary` leaves concluding to the other side for a few blocks.
    """

    params: Params
    account: Address
    tx: Transaction
    index: int
    secondary: bool = False


class WatchedChannel(Subscription[AdjudicatorEvent], Protocol):
    """A channel watched for somebody else. `cancel` only ends the reading: the watching goes on without a reader."""

    async def publish(self, tx: Transaction) -> None:
        """A newer state of the channel; durable when it returns. Raises: 203 (another channel, bad signatures)."""
        ...

    async def stop(self) -> None:
        """Forget the channel and end the reading; idempotent."""
        ...


class FundWatchAPI(Protocol):
    """Funding and watching with a session's account for somebody who has none here (API.md 2.6, 2.7).

    Whoever may call this can spend what the account holds. Calls go on to their end when the caller goes away.
    """

    async def register_asset(self, asset: Address, token: Address, depositor: Address) -> bool:
        """Make `asset` usable for deposits of `token`; whether it is, and `depositor` is the account that pays."""
        ...

    def is_asset_registered(self, asset: Address) -> bool:
        """Whether deposits into `asset` can be made."""
        ...

    async def fund(self, params: Params, state: State, index: int, agreement: Balances) -> None:
        """Deposit participant `index`'s share of `agreement`, then wait for all. Raises: 203, 201, 103, 3xx, 401."""
        ...

    async def register(self, request: AdjudicatorRequest) -> None:
        """Register the fully signed transaction. Raises: 203, 301, 302, 401."""
        ...

    async def withdraw(self, request: AdjudicatorRequest) -> None:
        """Conclude where necessary, then withdraw to the session's account. Raises: 203, 204, 301, 302, 401."""
        ...

    async def progress(self, request: AdjudicatorRequest, new_state: State, sig: Sig) -> None:
        """Progress an app channel on chain to what the account signed. Raises: 203, 204, 301, 302, 401."""
        ...

    def subscribe(self, channel_id: ChannelID) -> Subscription[AdjudicatorEvent]:
        """What the chain holds about the channel, then everything that happens to it. Raises: 202."""
        ...

    def unsubscribe(self, channel_id: ChannelID) -> None:
        """Raises: 201."""
        ...

    async def watch(self, params: Params, tx: Transaction) -> WatchedChannel:
        """Watch a channel; with a fully signed `tx` older states are refuted, otherwise only events are told.

        Durable when it returns: goes on after the reader is gone and after a restart, until the channel is concluded.
        Raises: 203, 202 (somebody reads it already, or it is the session's own), 401.
        """
        ...

    async def stop_watching(self, channel_id: ChannelID) -> None:
        """Forget the channel; no effect when it is not watched."""
        ...


class ChannelAPI(Protocol):
    """One channel of an open session (API.md 2.5)."""

    async def send_update(self, payments: Sequence[PaymentItem]) -> PayChInfo:
        """Propose one update that applies `payments` in order and wait for the peer's answer.

        Raises: 201, 203, 204, 101, 102, 401.
        """
        ...

    def subscribe_updates(self) -> Subscription[UpdateNotification]:
        """Raises: 202, 204."""
        ...

    def unsubscribe_updates(self) -> None:
        """Raises: 201, 204. Effective when it returns."""
        ...

    async def respond_update(self, update_id: str, *, accept: bool) -> PayChInfo:
        """Answer a notified update; an accepted final update is settled before this returns.

        Raises: 201, 204, 104, 301, 302, 401.
        """
        ...

    def info(self) -> PayChInfo:
        """Last agreed state; works on closed channels."""
        ...

    async def close(self) -> PayChInfo:
        """Finalise with the peer if it agrees, settle on chain and withdraw. Raises: 204, 301, 302, 401."""
        ...


class SessionAPI(Protocol):
    """One open (or closed) session (API.md 2.4). Every method of a closed session raises 204."""

    def channel(self, channel_id: str) -> ChannelAPI:
        """Raises: 204 (closed session), 201."""
        ...

    async def add_peer_id(self, peer: PeerIDInfo) -> None:
        """Raises: 204, 202, 203."""
        ...

    async def get_peer_id(self, alias: str) -> PeerIDInfo:
        """Raises: 204, 201."""
        ...

    async def open_channel(self, balances: BalInfo, challenge_duration: int) -> PayChInfo:
        """Propose a channel and return when it is funded by both.

        Raises: 204, 201, 203, 101, 102, 103, 301, 302, 401.
        """
        ...

    def channels(self) -> tuple[PayChInfo, ...]:
        """Channels that are not closed, in opening order. Raises: 204."""
        ...

    def subscribe_proposals(self) -> Subscription[ProposalNotification]:
        """Raises: 204, 202."""
        ...

    def unsubscribe_proposals(self) -> None:
        """Raises: 204, 201. Effective when it returns."""
        ...

    async def respond_proposal(self, proposal_id: str, *, accept: bool) -> PayChInfo:
        """Answer a notified proposal; an accepted one returns when the channel is funded by both.

        A rejection answers with empty IDs and balances. Raises: 204, 201, 104, 101, 102, 103, 301, 302, 401.
        """
        ...

    async def deploy_asset_erc20(self, token: str) -> str:
        """Address of a new asset holder for `token`, checksummed. Raises: 204, 203, 301, 302, 401."""
        ...

    async def close(self, *, force: bool) -> tuple[PayChInfo, ...]:
        """Close the session; with `force` open channels stay persisted and are returned. Raises: 204."""
        ...

    def fundwatch(self) -> FundWatchAPI:
        """Funding and watching with this session's account. Raises: 204."""
        ...


class NodeAPI(Protocol):
    """The node (API.md 2.3)."""

    def config(self) -> NodeInfo:
        """What the node was configured with."""
        ...

    def time(self) -> int:
        """The node's clock in Unix seconds."""
        ...

    def services(self) -> tuple[str, ...]:
        """Names of the services offered; the first is ``payment``."""
        ...

    async def register_currency(self, token: str, asset: str) -> str:
        """Symbol of the newly registered token. Raises: 202, 203, 206, 302, 401."""
        ...

    async def open_session(self, config_file: str) -> OpenedSession:
        """Open the session described by a file on the node's host. Raises: 203, 205, 401."""
        ...

    def session(self, session_id: str) -> SessionAPI:
        """Raises: 201."""
        ...


class ApiContext(Struct, frozen=True):
    """What an API plugin is started with. It must bind before it returns from entering, and serve until left."""

    node: NodeAPI
    host: str
    port: int
    service: str
    """``payment`` or ``fundwatch``."""
    ready: ReadySignal


class ReadySignal(Protocol):
    """Tells an API plugin whether the node is ready to serve; before that only health is answered."""

    @property
    def is_ready(self) -> bool:
        """Whether the chain is validated and requests may be served."""
        ...

    async def wait(self) -> None:
        """Until the node is ready."""
        ...

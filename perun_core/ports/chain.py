"""Port of chain backends: contracts, transactions, events and time of one ledger, seen from one account.

All deadlines of the protocol are judged by block time. Amounts are base units, times Unix seconds of block time unless
said otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Protocol

from msgspec import Struct

from ..channel import Dispute, DisputePhase, Params, State, Transaction
from ..profile import Profile
from ..values import Address, Bytes32, ChannelID, Sig
from .keymgr import UnsignedTx
from .store import Store

__all__ = [
    "BlockEvents",
    "BlockRef",
    "Chain",
    "ChainContext",
    "ChannelEvent",
    "Contracts",
    "Dispute",
    "DisputePhase",
    "Sent",
    "TokenInfo",
    "TxSigner",
]


class BlockRef(Struct, frozen=True):
    """A block: number, hash, and its timestamp in Unix seconds."""

    number: int
    hash: Bytes32
    timestamp: int


class ChannelEvent(Struct, frozen=True):
    """One ChannelUpdate event of the adjudicator, identified by (block hash, log index)."""

    channel_id: ChannelID
    version: int
    phase: DisputePhase
    timeout: int
    block_number: int
    block_hash: Bytes32
    log_index: int
    tx_hash: Bytes32


class BlockEvents(Struct, frozen=True):
    """Everything the feed has to say up to and including `block`, oldest first.

    `events` are final at the configured depth. `cursor` is the number of the last block whose events were released:
    persist it after processing and hand it to `events` to go on from there. After a reorg it may be lower than before.

    `undone` are events that an earlier item of the same iterator released and that a reorg deeper than the configured
    depth has removed, newest first. They come before `events` in time; the same event in its new block, if it is
    there again, is a new event with another block hash. What to do: ask `dispute` for the channels named.
    """

    block: BlockRef
    cursor: int
    events: tuple[ChannelEvent, ...]
    undone: tuple[ChannelEvent, ...] = ()


class TokenInfo(Struct, frozen=True):
    """What a token contract says about itself."""

    symbol: str
    decimals: int


class Contracts(Struct, frozen=True):
    """The contract set of a node."""

    adjudicator: Address
    eth_holder: Address


class TxSigner(Protocol):
    """Signs transactions of one on-chain account; the node hands it to the backend."""

    @property
    def address(self) -> Address:
        """The account."""
        ...

    async def sign(self, tx: UnsignedTx) -> bytes:
        """Raw signed transaction. Raises: KeyManagerError."""
        ...


class ChainContext(Struct, frozen=True):
    """What a chain backend is opened with."""

    url: str
    chain_id: int | None
    """Configured chain ID; None accepts the node's."""
    connect_timeout: float
    """Seconds for connecting, and for a single read."""
    tx_timeout: float
    """Seconds until an unmined transaction is reported as TxTimedOut."""
    contracts: Contracts
    profile: Profile
    finality_depth: int = 1
    """Blocks that contain or follow an inclusion until it counts; at least 1."""
    signer: TxSigner | None = None
    """None opens read-only."""
    store: Store | None = None
    """Where the backend keeps its transaction records (`Table.TRANSACTIONS`); None together with signer None."""
    account_lock: asyncio.Lock | None = None
    """Serialises nonce allocation of the account among all sessions of this node."""
    account_book: MutableMapping[str, object] | None = None
    """One mapping per chain and account, which the node gives to every session that uses them and never looks into.

    A backend keeps in it, under its own name, what those sessions must know of each other while the node runs (which
    nonces are under way). Nothing in it is persisted. None: no other session uses the account.
    """


Sent = Callable[[str], Awaitable[None]]
"""Called with the transaction hash (0x…) right after broadcasting, before waiting for inclusion."""


class Chain(Protocol):
    """One ledger seen from one account.

    Every write checks first whether its goal is reached already, waits until its transaction is final at the
    configured depth and may be repeated after a crash without a second effect. Every method raises NotReachable
    when the node does not answer; writes raise TxTimedOut, TxReverted, InsufficientFunds. Reconnecting is the
    backend's business; a lost connection fails the questions that were under way and nothing else.

    TxTimedOut ends the caller's wait, not the transaction: the backend keeps pursuing it, with rising fees where it has
    a `deadline` or the market moved, also after a restart, until it is mined or its nonce is used up. Repeating the
    call joins it. `deadline` is the block time in Unix seconds by which the transaction should be mined: the nearer,
    the more is offered, up to the backend's hard limit.

    Which block is read: what leads to *acting* is read at the latest block (`balance`, `dispute`, and the goal check of
    every write), because a refutation cannot wait; what is told as an *outcome*, lets money count or lets a channel
    proceed is read at the configured finality depth (`holdings`, the results of all writes, `events`).
    """

    @property
    def chain_id(self) -> int:
        """The chain's ID, verified at opening."""
        ...

    @property
    def reorg_window(self) -> int:
        """Blocks after which no reorg is expected to undo a block any more; at least 0.

        Until then whatever was settled is watched, and transactions of ours that a reorg removes are brought back.
        """
        ...

    async def head(self) -> BlockRef:
        """The latest block."""
        ...

    async def staleness(self) -> str:
        """Why the node that is asked is not up with its chain, for operators; "" when it is.

        With such a node nothing new is begun, `quote_open` says NotReachable; what exists is protected all the same.
        """
        ...

    def blocks(self) -> AsyncIterator[BlockRef]:
        """The current head at once, then every new head (gaps possible), across reconnects, until closed."""
        ...

    async def balance(self, account: Address, token: Address | None = None) -> int:
        """Balance of `account` in wei, or in base units of `token`, at the latest block."""
        ...

    async def token_info(self, token: Address) -> TokenInfo:
        """Symbol (string or bytes32) and decimals. Raises: TokenUnreadable."""
        ...

    async def validate_adjudicator(self) -> str:
        """Check the code at the configured adjudicator; returns a warning text or "" (CHAIN.md 2.4).

        Raises: ContractInvalid(name "adjudicator").
        """
        ...

    async def validate_holder(self, name: str, holder: Address, token: Address | None) -> str:
        """Check code, adjudicator and token of an asset holder; returns a warning text or "".

        Raises: ContractInvalid with `name`.
        """
        ...

    async def holdings(self, holder: Address, funding_id: Bytes32) -> int:
        """Deposit under `funding_id`, counted at the configured finality depth."""
        ...

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        """What the adjudicator stores at the latest block: to decide what to do, not to tell what was achieved."""
        ...

    async def registered_state(self, params: Params, dispute: Dispute) -> Transaction:
        """The state whose hash `dispute` tells, as the transaction that registered or progressed it brought it.

        It may be older than anything this process has seen. What is returned is checked: it hashes to
        `dispute.state_hash` and belongs to the channel of `params`; every signature in it is valid, of all participants
        for a registration, of the actor alone for a progression. It is to be concluded, never to be signed.
        Raises: StateUnavailable when no transaction tells it, for example because another contract made the call.
        """
        ...

    def events(self, cursor: int | None) -> AsyncIterator[BlockEvents]:
        """Adjudicator events after block `cursor` (None: from the current head on), then live, without gaps.

        Yields at least once per new head (with no events when there are none), so that callers can judge time.
        """
        ...

    async def quote_open(self, assets: tuple[tuple[Address | None, int], ...]) -> int:
        """Wei of gas to keep in reserve for depositing, registering, concluding and withdrawing a channel.

        Covers the dearest way, a dispute, with room for fees to rise until it comes. `assets` are (token or None for
        ETH, own deposit). Deposits themselves are not included.
        """
        ...

    async def deploy_holder(self, token: Address) -> Address:
        """Deploy an asset holder for `token` and the configured adjudicator (tx type ``deploy ERC20AssetHolder``)."""
        ...

    async def deposit(
        self,
        holder: Address,
        token: Address | None,
        funding_id: Bytes32,
        amount: int,
        *,
        sent: Sent | None = None,
        deadline: int | None = None,
    ) -> None:
        """Bring the deposit under `funding_id` to at least `amount` (tx type ``fund``): deposits the difference.

        For a token the holder's allowance is raised first when it is too small. `sent` gets the hash of the
        deposit transaction.
        """
        ...

    async def register(
        self, params: Params, tx: Transaction, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Dispute:
        """Register `tx` unless the same or a newer version is registered or the channel is concluded.

        Returns the dispute as stored afterwards (tx type ``register``). For a refutation, `deadline` is the timeout of
        the dispute that is to be refuted.
        """
        ...

    async def progress(
        self,
        params: Params,
        old: State,
        new: State,
        actor: int,
        sig: Sig,
        *,
        sent: Sent | None = None,
        deadline: int | None = None,
    ) -> Dispute:
        """Replace the registered state `old` by `new`, which participant `actor` signed (tx type ``progress``).

        No effect when `new`'s version or a later one is registered, or the channel is concluded. The contract demands a
        dispute whose refutation time is over, or a progression whose time is not, and the agreement of the channel's
        app (CHAIN.md 1.3.2). Returns the dispute as stored afterwards.
        """
        ...

    async def conclude(self, params: Params, state: State, *, sent: Sent | None = None) -> Dispute:
        """Conclude the registered `state`; no effect when concluded (tx type ``conclude``).

        The caller has waited for `Dispute.concludable_at`. Returns the dispute as stored afterwards.
        """
        ...

    async def conclude_final(
        self, params: Params, tx: Transaction, *, sent: Sent | None = None, deadline: int | None = None
    ) -> Dispute:
        """Conclude the fully signed final `tx`; no effect when concluded (tx type ``concludeFinal``)."""
        ...

    async def withdraw(
        self,
        holder: Address,
        channel_id: ChannelID,
        participant: Address,
        receiver: Address,
        authorise: Callable[[int], Awaitable[Sig]],
        *,
        sent: Sent | None = None,
    ) -> int:
        """Withdraw everything `participant` holds to `receiver` (tx type ``withdraw``).

        Returns what the holder says it paid out, once that is final; 0 when there was nothing. `authorise(amount)`
        gives the participant's signature on the withdrawal of `amount`; it is called once the holdings are known and
        not at all when they are zero.
        """
        ...

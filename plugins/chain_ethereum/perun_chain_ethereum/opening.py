"""Options of the backend and how it is opened. web3.py and what it needs are imported only when that happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from difflib import get_close_matches
from typing import Final

from msgspec import Struct

from perun_core.ports.chain import Chain, ChainContext

THIRD_PARTY: Final = ("warn", "accept", "refuse")
"""What an operator may want done about known contracts of another origin."""


class EthereumConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the chain backend ``ethereum``."""

    poll_interval: float = 0.5
    """Seconds between questions for the latest block where the node cannot tell by itself (HTTP)."""
    max_fee_gwei: int = 500
    """Most that a transaction may offer per gas while it can wait, in gwei; 0 is no limit.

    While the base fee is higher, new transactions are not sent and those under way wait for it to fall.
    """
    hard_max_fee_gwei: int = 5000
    """Most that a transaction may offer per gas when its deadline is near, in gwei; 0 is no limit.

    A refutation that comes too late can cost the whole channel, so this is meant to be far above the other limit.
    """
    reserve_factor: int = 2
    """How many times today's offer the account must be able to pay for disputing and withdrawing a channel.

    A channel whose reserve the account lacks is neither proposed nor accepted.
    """
    reorg_window: int = 64
    """Blocks for which a mined transaction is kept, to be broadcast again when a reorg removes it.

    A settled channel is watched for as many blocks, in case a reorg undoes its settlement.
    """
    third_party_contracts: str = "warn"
    """What is done about known contracts that are not of this distribution (`THIRD_PARTY`).

    ``warn`` uses them and says so in the log, ``accept`` uses them without a word, ``refuse`` regards them as unknown.
    """
    max_head_age: int | None = None
    """Seconds by which the latest block may be older than this machine's clock before no channel is opened any more.

    0 is no limit. Unset, it is 600, and no limit on chains with one of the development IDs 1337 and 31337.
    """

    def __post_init__(self) -> None:
        if self.third_party_contracts not in THIRD_PARTY:
            raise ValueError(f"third_party_contracts must be one of {', '.join(THIRD_PARTY)}{self._meant()}")
        if self.max_head_age is not None and self.max_head_age < 0:
            raise ValueError("max_head_age must not be negative")
        if self.max_fee_gwei < 0 or self.hard_max_fee_gwei < 0 or self.reorg_window < 0:
            raise ValueError("limits must not be negative")
        if 0 < self.hard_max_fee_gwei < self.max_fee_gwei:
            raise ValueError("max_fee_gwei must not be above hard_max_fee_gwei")
        if self.reserve_factor < 1:
            raise ValueError("reserve_factor must be at least 1")

    def _meant(self) -> str:
        close = get_close_matches(self.third_party_contracts.lower(), THIRD_PARTY, n=1)
        return f"; did you mean {close[0]}?" if close else ""


@asynccontextmanager
async def open_chain(config: EthereumConfig, context: ChainContext) -> AsyncIterator[Chain]:
    """Connect, check the chain ID, and give the chain; leaving ends everything that was started.

    Raises: NotReachable, WrongChain, StoreError; ChainError when a transaction record cannot be read.
    """
    from .backend import EthereumChain
    from .connection import Connection
    from .freshness import Freshness
    from .heads import HeadFeed

    connection = Connection(context.url, chain_id=context.chain_id, timeout=context.connect_timeout)
    freshness = Freshness(connection, max_head_age=config.max_head_age)
    heads = HeadFeed(connection, poll_interval=config.poll_interval, freshness=freshness)
    chain: EthereumChain | None = None
    try:
        await connection.open()
        chain = EthereumChain(context, connection, heads, config, freshness)
        await chain.start()
        yield chain
    finally:
        if chain is not None:
            await chain.close()
        await heads.close()
        await connection.close()

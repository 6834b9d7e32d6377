"""Options of the backend and how it is opened. web3.py and what it needs are imported only when that happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct

from perun_core.ports.chain import Chain, ChainContext


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
    """Blocks after its inclusion for which a transaction is kept, to be broadcast again when a reorg removes it."""

    def __post_init__(self) -> None:
        if self.max_fee_gwei < 0 or self.hard_max_fee_gwei < 0 or self.reorg_window < 0:
            raise ValueError("limits must not be negative")
        if 0 < self.hard_max_fee_gwei < self.max_fee_gwei:
            raise ValueError("max_fee_gwei must not be above hard_max_fee_gwei")
        if self.reserve_factor < 1:
            raise ValueError("reserve_factor must be at least 1")


@asynccontextmanager
async def open_chain(config: EthereumConfig, context: ChainContext) -> AsyncIterator[Chain]:
    """Connect, check the chain ID, and give the chain; leaving ends everything that was started.

    Raises: NotReachable, WrongChain, StoreError; ChainError when a transaction record cannot be read.
    """
    from .backend import EthereumChain
    from .connection import Connection
    from .heads import HeadFeed

    connection = Connection(context.url, chain_id=context.chain_id, timeout=context.connect_timeout)
    heads = HeadFeed(connection, poll_interval=config.poll_interval)
    chain: EthereumChain | None = None
    try:
        await connection.open()
        chain = EthereumChain(context, connection, heads, config)
        await chain.start()
        yield chain
    finally:
        if chain is not None:
            await chain.close()
        await heads.close()
        await connection.close()

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


@asynccontextmanager
async def open_chain(config: EthereumConfig, context: ChainContext) -> AsyncIterator[Chain]:
    """Connect, check the chain ID, and give the chain; leaving ends everything that was started.

    Raises: NotReachable, WrongChain.
    """
    from .backend import EthereumChain
    from .connection import Connection
    from .heads import HeadFeed

    connection = Connection(context.url, chain_id=context.chain_id, timeout=context.connect_timeout)
    heads = HeadFeed(connection, poll_interval=config.poll_interval)
    try:
        await connection.open()
        yield EthereumChain(context, connection, heads)
    finally:
        await heads.close()
        await connection.close()

"""Perun channels on Ethereum: contracts, chain backend, development chain."""

from __future__ import annotations

import click

from perun_core.plugin import Backend, hookimpl
from perun_core.ports.chain import Chain


@hookimpl
def perun_register_chain() -> Backend[Chain]:
    """The chain backend ``ethereum``."""
    from .opening import EthereumConfig, open_chain

    return Backend(name="ethereum", config=EthereumConfig, open=open_chain)


@hookimpl
def perun_add_commands(cli: click.Group) -> None:
    """Adds ``contracts`` and ``devchain``; their libraries are imported when one of them runs."""
    from .commands import contracts, devchain

    cli.add_command(contracts)
    cli.add_command(devchain)

"""How the distribution presents itself to the host."""

from __future__ import annotations

import subprocess
import sys

import click

import perun_chain_ethereum


def test_the_backend_is_called_ethereum_and_has_documented_options() -> None:
    backend = perun_chain_ethereum.perun_register_chain()
    assert backend.name == "ethereum"
    assert backend.config() == backend.config(poll_interval=0.5)


def test_commands_are_added() -> None:
    cli = click.Group()
    perun_chain_ethereum.perun_add_commands(cli)
    assert sorted(cli.commands) == ["contracts", "devchain"]


def test_declaring_imports_no_heavy_library() -> None:
    program = (
        "import sys, click, perun_chain_ethereum as plugin\n"
        "plugin.perun_register_chain(); plugin.perun_add_commands(click.Group())\n"
        "print([name for name in ('web3', 'eth', 'aiohttp', 'eth_account') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

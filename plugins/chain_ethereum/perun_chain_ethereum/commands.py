"""Commands that this plugin adds to `perunnode`: `devchain` and `contracts`.

Libraries are imported when a command runs: the command line has to start fast whatever is installed.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from perun_core.errors import PerunError

Result = TypeVar("Result")


def address(text: str) -> str:
    """An option's value as checksummed address: 0x and 40 hex digits; mixed case must be a right checksum (EIP-55)."""
    from eth_utils.address import is_address, to_checksum_address

    if not text.startswith("0x") or not is_address(text):
        raise click.BadParameter(f"{text!r} is not an address, or its checksum is wrong")
    return str(to_checksum_address(text))


CHAIN_OPTION = click.option(
    "--chain", "url", required=True, metavar="URL", help="Chain node: http://, ws:// or the path of an IPC socket."
)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8545, show_default=True, help="0: any free port.")
@click.option(
    "--block-time",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Seconds between blocks; transactions get a block of their own at once.",
)
def devchain(host: str, port: int, block_time: float) -> None:
    """Run a chain for development and tests, with the published test accounts funded.

    Everything is in memory and gone at the end. The keys of the accounts are public: never use them elsewhere.
    """
    from .devchain import serve
    from .testkeys import TEST_CHAIN_ID

    def ready(bound: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"devchain: serving chain {TEST_CHAIN_ID} at http://{shown}:{bound} and ws://{shown}:{bound}")

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(host, port, ready=ready, stop=stop, block_time=block_time)

    try:
        asyncio.run(run())
    except (OSError, ValueError) as error:
        raise click.ClickException(f"devchain: {error}") from error


@click.group()
def contracts() -> None:
    """Deploy contracts, or say what deployed contracts are."""


@contracts.command()
@CHAIN_OPTION
@click.option(
    "--key-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private key of the account that pays: 64 hex digits, or a key store (version 3).",
)
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Password of the key store: the first line of this file.",
)
@click.option("--test-token", is_flag=True, help="Also deploy a test token and its asset holder.")
@click.option("--timeout", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object of addresses.")
def deploy(
    url: str, key_file: Path, password_file: Path | None, test_token: bool, timeout: float, as_json: bool
) -> None:
    """Deploy the contracts that channels need, or find them if this account deployed them already."""
    from .deploy import Deployment, connected, read_key
    from .deploy import deploy as deploy_set

    async def run() -> Deployment:
        key = read_key(key_file, password=None if password_file is None else first_line(password_file))
        async with connected(url) as w3:
            return await deploy_set(w3, key, test_token=test_token, timeout=timeout)

    addresses = finish(run()).to_json()
    if as_json:
        click.echo(json.dumps(addresses))
        return
    for role, address in addresses.items():
        click.echo(f"{role + ':':<13}{address}")


@contracts.command()
@CHAIN_OPTION
@click.option("--adjudicator", type=address, metavar="ADDRESS", required=True)
@click.option("--eth", type=address, metavar="ADDRESS", help="Asset holder for ETH.")
@click.option("--token", type=address, metavar="ADDRESS", help="Token of the ERC-20 asset holder.")
@click.option("--erc20", type=address, metavar="ADDRESS", help="Asset holder for the token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per role.")
def check(url: str, adjudicator: str, eth: str | None, token: str | None, erc20: str | None, as_json: bool) -> None:
    """Say what the contracts at these addresses are.

    Exit code 0 only if each is of our build or of a known set, and the holders belong to this adjudicator and token.
    """
    from .deploy import Finding, connected
    from .deploy import check as check_set

    if (token is None) != (erc20 is None):
        raise click.UsageError("--token and --erc20 belong together")

    async def run() -> tuple[Finding, ...]:
        async with connected(url) as w3:
            return await check_set(w3, adjudicator=adjudicator, eth=eth, token=token, erc20=erc20)

    findings = finish(run())
    if as_json:
        content = {
            f.role: {"address": f.address, "known": f.known, "unsafe": f.unsafe, "text": f.text} for f in findings
        }
        click.echo(json.dumps(content))
    else:
        for finding in findings:
            click.echo(f"{finding.role + ':':<13}{finding.address}  {finding.text}")
    for finding in findings:
        if finding.unsafe:
            click.echo(f"warning: {finding.role} at {finding.address} is unsafe for anything of value", err=True)
    if not all(finding.known for finding in findings):
        raise SystemExit(1)


def first_line(path: Path) -> str:
    """The first line of a file without its line end."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end; errors of the node's taxonomy become messages of the command line, exit code 1."""
    try:
        return asyncio.run(work)
    except PerunError as error:
        raise click.ClickException(str(error)) from error

"""Commands that ask the chain directly."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from .. import chainrpc
from ..desk import Desk
from ..escape import shown
from ..failures import ChainFailure, UsageFailure
from ..grammar import Call
from ..replies import Reply, reply

ALICE_KEYS: Final = "alice/keystore"
ALICE: Final = "8450c0055cb180c7c37a25866132a740b812937b"
"""The account of the generated demo user; its key file ends with the address."""


async def set_address(desk: Desk, call: Call) -> Reply:
    desk.chain = call.arguments[0]
    return await get_address(desk, call)


async def get_address(desk: Desk, call: Call) -> Reply:
    return reply(f"Blockchain node address: {shown(desk.chain)}", {"chain": desk.chain})


async def balance(desk: Desk, call: Call) -> Reply:
    account, *token = call.arguments
    if token:
        told, symbol = await chainrpc.token_balance(desk.chain, account, token[0])
        line = f"On-chain balance: {told} {shown(symbol)}"
    else:
        told, symbol = await chainrpc.balance(desk.chain, account), "ETH"
        line = f"On-chain balance: {told}"
    return reply(line, {"address": account, "currency": symbol, "balance": told})


async def deploy(desk: Desk, call: Call) -> Reply:
    """The node's own command does it; this client holds no keys and no contracts."""
    key_file, password_file = _key(call)
    arguments = ["contracts", "deploy", "--chain", desk.chain, "--key-file", key_file]
    arguments += ["--password-file", password_file] if password_file else []
    program = shutil.which("perunnode") or shutil.which("perunnode", path=str(Path(sys.executable).parent))
    if program is None:
        raise UsageFailure("perunnode is not installed here. Where it is, run: perunnode " + " ".join(arguments))
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        "--json",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, complaint = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise ChainFailure(f"Error deploying contracts: {shown(last[0])}")
    addresses = json.loads(out)
    told = (
        "Contracts deployed successfully.",
        f"Adjudicator address: {shown(addresses['adjudicator'])}",
        f"Asset address: {shown(addresses['eth'])}",
    )
    return reply(told, {"adjudicator": addresses["adjudicator"], "assetETH": addresses["eth"]})


def _key(call: Call) -> tuple[str, str]:
    """Key file and password file. The demo account's password is empty. Raises: UsageFailure."""
    if call.arguments:
        return call.arguments[0], "".join(call.arguments[1:])
    for path in sorted(Path(ALICE_KEYS).glob(f"*--{ALICE}")):
        return str(path), os.devnull
    raise UsageFailure(f"There is no {ALICE_KEYS} here. Run 'perunnode generate' first, or name a key file.")

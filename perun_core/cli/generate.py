"""``perunnode generate``: demo configuration files and keys in the working directory (API.md 4.5).

The keys are public demonstration keys. Existing files are never touched.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final

import click
from msgspec import Struct

from ..errors import ConfigError

DIRECTORY_MODE: Final = 0o750
CHAIN_URL: Final = "ws://127.0.0.1:8545"
CHAIN_ID: Final = 1337

# Contracts that the first four transactions of alice's on-chain account create on a development chain.
ADJUDICATOR: Final = "0x9daEdAcb21dce86Af8604Ba1A1D7F9BFE55ddd63"
ETH_ASSET: Final = "0x5992089d61cE79B6CF90506F70DD42B8E42FB21d"
PRN_TOKEN: Final = "0x44cb7cd4C2B6435dA126F4263AafC3b837f49AbB"
PRN_ASSET: Final = "0xb79708b3f6a4Be039BDE75281656c099163e7a5d"


class DemoKey(Struct, frozen=True):
    """A public demonstration key: known to everybody, worth nothing."""

    address: str
    private_key: str


class DemoUser(Struct, frozen=True):
    """A demo user with the accounts that every installation generates."""

    alias: str
    on_chain: DemoKey
    off_chain: DemoKey


USERS: Final = (
    DemoUser(
        "alice",
        DemoKey(
            "0x8450c0055cB180C7C37A25866132A740b812937B",
            "1fedd636dbc7e8d41a0622a2040b86fea8842cef9d4aa4c582aad00465b7acff",
        ),
        DemoKey(
            "0xa617fa2cc5eC8d72d4A60b9F424677e74E6bef68",
            "1c3461e1ea9ac7c9305617ad2abb833cfd7f11925396582177f9e868a57db804",
        ),
    ),
    DemoUser(
        "bob",
        DemoKey(
            "0xc4bA4815c82727554e4c12A07a139b74c6742322",
            "b0309c60b4622d3071fad3e16c2ce4d0b1e7758316c187754f4dd0cfb44ceb33",
        ),
        DemoKey(
            "0x7b7E212652b9C3755C4E1f1718a142dDE3817523",
            "244ffc73c448b56ddba6a7bfa8d58ed36012611da83d4cb83025ea12accf49fe",
        ),
    ),
    DemoUser(
        "api",
        DemoKey(
            "0x8946Ee6a3Ba1AD6CF79faaa31F4D4aBC17A9424b",
            "403b227e49f55a54743375e8c98c189ca7e0c6d04d3b0abf78739c703cd2fc7a",
        ),
        DemoKey(
            "0x2AfDa840850738956A01c42BF946147fB9a45faC",
            "ab86407be7031246a400a131ad3f02cc15df4eeeffce278a726a494314f93959",
        ),
    ),
)

NODE_YAML: Final = f"""\
loglevel: debug
logfile: ""
chainurl: {CHAIN_URL}
chainid: {CHAIN_ID}
adjudicator: {ADJUDICATOR}
asseteth: {ETH_ASSET}
asseterc20s:
    {PRN_TOKEN}: {PRN_ASSET}
chainconntimeout: 10s
onchaintxtimeout: 1m0s
responsetimeout: 10s
commtypes:
    - tcp
idprovidertypes:
    - local
currencyinterpreters:
    - ETH
"""


@click.command()
@click.option("--only-node", is_flag=True, help="Write the node configuration only.")
@click.option("--only-session", is_flag=True, help="Write the session configurations only.")
def generate(only_node: bool, only_session: bool) -> None:
    """Write node.yaml and the users alice, bob and api with session files, ID providers and keys for a demo.

    The keys are public: use them on development chains only. Nothing that exists is touched.
    """
    halves: list[Callable[[Path], None]] = []
    if not only_session or only_node:
        halves.append(write_node)
    if not only_node or only_session:
        halves.append(write_sessions)
    failed = False
    for half in halves:
        try:
            half(Path())
        except (ConfigError, OSError) as e:
            failed = True
            click.echo(f"Error: {e}", err=True)
    if failed:
        sys.exit(1)


def write_node(directory: Path) -> None:
    """Write ``node.yaml`` below `directory`. Raises: ConfigError when it exists, OSError."""
    path = directory / "node.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(NODE_YAML)
    except FileExistsError:
        raise ConfigError("node.yaml", "", "exists already; nothing was changed") from None
    click.echo(f"Generated node configuration file: {path}")


def write_sessions(directory: Path) -> None:
    """Write one folder per demo user below `directory`. Raises: ConfigError when any of them exists, OSError."""
    for user in USERS:
        folder = directory / user.alias
        if folder.exists() or folder.is_symlink():
            raise ConfigError(user.alias, "", "exists already; no session file was generated")
    ports = dict(zip((user.alias for user in USERS), free_ports(len(USERS)), strict=True))
    for user in USERS:
        folder = directory / user.alias
        folder.mkdir(mode=DIRECTORY_MODE)
        for name in ("database", "keystore"):
            (folder / name).mkdir(mode=DIRECTORY_MODE)
        for key in (user.on_chain, user.off_chain):
            _write_key(folder / "keystore", key)
        others = [other for other in USERS if other is not user]
        (folder / "session.yaml").write_text(session_yaml(user, ports[user.alias]), encoding="utf-8")
        (folder / "idprovider.yaml").write_text(idprovider_yaml(others, ports), encoding="utf-8")
        click.echo(f"Generated session configuration: {folder / 'session.yaml'}")


def session_yaml(user: DemoUser, port: int) -> str:
    """Session file of `user`, who listens on `port`."""
    wallet = f'keystorepath: {user.alias}/keystore\n        password: ""'
    return f"""\
user:
    alias: {user.alias}
    onchainaddr: {user.on_chain.address}
    onchainwallet:
        {wallet}
    partaddrs: []
    offchainaddr: {user.off_chain.address}
    offchainwallet:
        {wallet}
    commaddr: 127.0.0.1:{port}
    commtype: tcp
idprovidertype: local
idproviderurl: {user.alias}/idprovider.yaml
chainurl: {CHAIN_URL}
chainid: {CHAIN_ID}
chainconntimeout: 10s
onchaintxtimeout: 1m0s
responsetimeout: 10s
databasedir: {user.alias}/database
peerreconntimeout: 20s
fundingtype: local
fundingurl: ""
fundingapikey: ""
watchertype: local
watcherurl: ""
watcherapikey: ""
"""


def idprovider_yaml(users: list[DemoUser], ports: dict[str, int]) -> str:
    """ID provider file that knows `users`."""
    return "".join(
        f"""\
{user.alias}:
    alias: {user.alias}
    offchain_address: {user.off_chain.address}
    comm_address: 127.0.0.1:{ports[user.alias]}
    comm_type: tcp
"""
        for user in users
    )


def free_ports(count: int) -> list[int]:
    """`count` different ports of the loopback address that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _write_key(keystore: Path, key: DemoKey) -> None:
    from ..keys import Secret
    from ..keys.keyfile import Strength, encrypt, file_name
    from ..values import Address

    # Weak parameters, stated by the specification for generated keys: anybody knows these keys, opening must be fast.
    with Secret.from_hex(key.private_key) as secret:
        content = encrypt(secret, "", strength=Strength.WEAK)
    path = keystore / file_name(Address.parse(key.address), datetime.now().astimezone())
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(content)

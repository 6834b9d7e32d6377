"""``perunnode run``: configuration, plugins and signals around the node (API.md 4.5)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NoReturn, Protocol

import click

from .. import logs
from ..config import FLAG_KEYS, NODE_KEYS, NodeConfig, check_plugin_tables, load_node
from ..errors import ConfigError, PerunError
from ..plugin.manager import PluginHost

_SERVED: Final[Mapping[str, str]] = {"payment": "payment channel", "fundwatch": "funding and watching"}


class RunNode(Protocol):
    """`perun_core.node.node.run_node`: serves until `stop` is set, then shuts down cleanly."""

    def __call__(
        self,
        config: NodeConfig,
        plugins: PluginHost,
        *,
        service: str,
        port: int,
        started: Callable[[int], None],
        stop: asyncio.Event,
    ) -> Awaitable[None]:
        """Calls `started` with the bound port once requests are served. Raises: PerunError on a failed start."""
        ...


@click.command()
@click.option("--configfile", default="node.yaml", show_default=True, help="Node configuration file.")
@click.option("--grpcport", type=click.IntRange(0, 65535), default=50001, show_default=True, help="Port of the API.")
@click.option(
    "--service", type=click.Choice(list(_SERVED)), default="payment", show_default=True, help="What to serve."
)
@click.option("--loglevel", help="panic, fatal, error, warn, info, debug or trace.")
@click.option("--logfile", help="Append the log to this file; empty: standard output.")
@click.option("--chainurl", help="Address of the chain node.")
@click.option("--adjudicator", help="Address of the adjudicator contract.")
@click.option("--assetETH", "asseteth", help="Address of the ETH asset holder contract.")
@click.option("--chainconntimeout", help="Time limit for connecting to the chain, for example 10s.")
@click.option("--onchaintxtimeout", help="Time limit for on-chain transactions, for example 1m.")
@click.option("--responsetimeout", help="Time limit for answers, for example 10s.")
def run(configfile: str, grpcport: int, service: str, **flags: str | None) -> None:
    """Start the node. The configuration file is ignored if all eight options that override it are given."""
    # gRPC's newer event engine wakes one more thread per message; without it a payment is a fifth faster (make bench).
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
    given = {key: value for key, value in flags.items() if value is not None}
    path = None if all(key in given for key in FLAG_KEYS) else Path(configfile)
    try:
        config = load_node(path, given, os.environ)
    except ConfigError as e:
        _fail(f"Error reading the node configuration: {e}")
    if path is not None:
        click.echo(f"Using node configuration file: {path}")
    for warning in config.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo("Node configuration:")
    for line in effective(config):
        click.echo(f"    {line}")
    try:
        logs.configure(config.loglevel, file=config.logfile, json_lines=config.logformat == "json")
        plugins = PluginHost.load(config.plugins.enabled)
        check_plugin_tables(config.plugins, (info.name for info in plugins.installed()))
        from ..node.node import run_node

        serve(run_node, config, plugins, service=service, port=grpcport)
    except PerunError as e:
        _fail(f"Error initializing nodeAPI: {e}")


def effective(config: NodeConfig) -> Iterator[str]:
    """All fields as lines for people; of option tables only the keys, because values may be secrets."""
    for key in NODE_KEYS:
        match getattr(config, key):
            case tuple() as values if key == "asseterc20s":
                yield f"{key}: " + ", ".join(f"{token}: {asset}" for token, asset in values)
            case tuple() as values:
                yield f"{key}: " + ", ".join(values)
            case None:
                yield f"{key}: any"
            case value if key == "plugins":
                enabled = "default" if value.enabled is None else ", ".join(value.enabled)
                tables = (f"{name} ({', '.join(value.of(name))})" for name in value.options)
                yield "; ".join([f"plugins: enabled: {enabled}", *tables])
            case value:
                yield f"{key}: {value}".rstrip()


def serve(run_node: RunNode, config: NodeConfig, plugins: PluginHost, *, service: str, port: int) -> None:
    """Run the node until SIGTERM or SIGINT; a second signal does not wait for the orderly end.

    Prints the marker that scripts wait for when the API is served, not earlier. Raises: what `run_node` raises.
    """

    def started(actual_port: int) -> None:
        click.echo(f"Serving {_SERVED[service]} API via grpc at port :{actual_port}")

    async def until_stopped() -> None:
        stop = asyncio.Event()
        ready = asyncio.Event()

        def on_started(actual_port: int) -> None:
            ready.set()
            started(actual_port)

        node = asyncio.ensure_future(
            run_node(config, plugins, service=service, port=port, started=on_started, stop=stop)
        )

        def on_signal() -> None:
            # Before the node is ready there is nothing to end in order; the second time somebody means it.
            if not ready.is_set() or stop.is_set():
                node.cancel()
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            await node
        except asyncio.CancelledError:
            if not stop.is_set():
                raise

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(until_stopped())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(1)

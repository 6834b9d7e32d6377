"""The command. What it needs is imported when it runs."""

from __future__ import annotations

import os
import sys

import click


@click.command()
@click.option(
    "--chain",
    default="embedded",
    show_default=True,
    metavar="embedded|anvil|URL",
    help="A development chain of our own, anvil (ANVIL names the program), or one that runs at an http or ws URL.",
)
@click.option("--two-nodes", is_flag=True, help="Alice and bob each have a node of their own.")
@click.option("--keep", is_flag=True, help="Keep the directory with configuration, keys, databases and logs.")
def demo(chain: str, two_nodes: bool, keep: bool) -> None:
    """Watch alice and bob open payment channels, pay each other, settle and withdraw.

    Everything runs on this machine and ends with the demo. The keys are public: no money of any value is involved.
    Exit code 0 only if every unit of money is where it belongs at the end.
    """
    # The gRPC library would write its own lines between those of the story.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from .run import run_demo

    sys.exit(run_demo(chain=chain, two_nodes=two_nodes, keep=keep))

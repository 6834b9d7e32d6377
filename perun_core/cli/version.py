"""``perunnode version``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from .. import __version__

GO_PERUN_VERSION: Final = "v0.9.0"
"""The release of the Go channel library whose byte formats this node speaks (profile gp090)."""


@click.command()
def version() -> None:
    """Print the version of the node, the revision of its sources and the go-perun release it is compatible with."""
    click.echo(f"perunnode v{__version__}, git revision: {_revision()}, go-perun version: {GO_PERUN_VERSION}")


def _revision() -> str:
    """Commit of the checkout this runs from; ``release`` when it was installed from a distribution."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:12]
        reference = head.removeprefix("ref: ")
        loose = git / reference
        if loose.is_file():
            return loose.read_text().strip()[:12]
        packed = (line.split() for line in (git / "packed-refs").read_text().splitlines())
        return next((row[0][:12] for row in packed if row[1:] == [reference]), "unknown")
    except OSError:
        return "release" if not git.exists() else "unknown"

"""The command line ``perunnode``: one module per command, imported when it is called."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``perunnode``."""
    from .group import perunnode

    perunnode()

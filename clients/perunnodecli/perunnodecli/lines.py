"""How values read (API.md 6.1).

Lines of the original client keep their form, in which the first currency speaks for the channel; a channel with more
currencies gets one more line that has them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from .escape import shown
from .replies import Table
from .values import SELF, Balances, Channel, Peer, Proposal, Row

NEVER: Final = 0
"""The expiry of what cannot be answered."""


def balance_list(parts: Sequence[str], row: Row | None) -> str:
    """`[alias:amount …]` sorted by alias."""
    pairs = sorted(zip(parts, row.amounts, strict=True)) if row else []
    return "[" + " ".join(f"{shown(part)}:{shown(amount)}" for part, amount in pairs) + "]"


def currency_list(balances: Balances) -> str:
    """`[ETH PRN]`."""
    return "[" + " ".join(map(shown, balances.currencies)) + "]"


def first_row(balances: Balances) -> str:
    """Balances of the first currency."""
    return balance_list(balances.parts, balances.rows[0] if balances.rows else None)


def all_rows(balances: Balances) -> tuple[str, ...]:
    """One line with every currency when there is more than one, otherwise nothing."""
    if len(balances.rows) < 2:
        return ()
    told = (f"{shown(row.currency)} {balance_list(balances.parts, row)}" for row in balances.rows)
    return ("All balances: " + ", ".join(told),)


def info(channel: Channel, end: str = ".") -> tuple[str, ...]:
    """The info line of a channel."""
    line = (
        f"ID: {shown(channel.id)}, Currency: {currency_list(channel.balances)}, "
        f"Version: {shown(channel.version)}, Balance {first_row(channel.balances)}{end}"
    )
    return (line, *all_rows(channel.balances))


def balance(channel: Channel, end: str = ".") -> str:
    """A state without the channel's ID; every currency when there are several."""
    rows = channel.balances.rows
    told = first_row(channel.balances)
    if len(rows) > 1:
        told = ", ".join(f"{shown(row.currency)} {balance_list(channel.balances.parts, row)}" for row in rows)
    return f"Currency: {currency_list(channel.balances)}, Balance: {told}, Version: {shown(channel.version)}{end}"


def opening(proposal: Proposal) -> tuple[str, ...]:
    """The terms of a proposal."""
    line = f"Currency: {currency_list(proposal.balances)}, Balance: {first_row(proposal.balances)}."
    return (line, *all_rows(proposal.balances), f"Challenge duration: {proposal.challenge}s.")


def expiry(seconds: int) -> str:
    """What is left of the time to answer."""
    return f"Expires in {seconds}s." if seconds >= 0 else f"Expired {-seconds}s ago."


def peer(entry: Peer) -> str:
    """A directory entry."""
    return (
        f"Alias: {shown(entry.alias)}, Off-chain Addr: {shown(entry.off_chain_address)}, "
        f"Comm Addr: {shown(entry.comm_address)}, Comm Type: {shown(entry.comm_type)}"
    )


def local_time(seconds: int) -> str:
    """A time of the node's clock in the zone of this machine."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %z %Z")
    except (OverflowError, OSError, ValueError):
        return f"{seconds} s since 1970"


def difference(now: Balances, then: Balances) -> tuple[str, ...]:
    """What a proposed state changes for the user, for example `You get 0.5 ETH.`

    Amounts are decimal text of any length, compared as scaled integers. Nothing is said about currencies whose
    amounts cannot be read.
    """
    held = dict(zip(now.currencies, now.rows, strict=True))
    told = []
    for row in then.rows:
        before = held.get(row.currency)
        if before is None or SELF not in now.parts or SELF not in then.parts:
            continue
        change = _change(before.amounts[now.parts.index(SELF)], row.amounts[then.parts.index(SELF)])
        if change:
            verb = "pay" if change.startswith("-") else "get"
            told.append(f"You {verb} {change.removeprefix('-')} {shown(row.currency)}.")
    return tuple(told)


def _change(before: str, after: str) -> str:
    """`after` − `before` as decimal text; empty when they are equal or not plain decimals."""
    places = max(len(text.partition(".")[2]) for text in (before, after))
    try:
        units = [_units(text, places) for text in (before, after)]
    except ValueError:
        return ""
    change = units[1] - units[0]
    if change == 0:
        return ""
    digits = str(abs(change)).rjust(places + 1, "0")
    whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
    return ("-" if change < 0 else "") + whole + (f".{fraction}" if fraction else "")


def _units(text: str, places: int) -> int:
    whole, _, fraction = text.partition(".")
    if len(text) > 100 or not (whole + fraction).isascii() or not (whole + fraction).isdigit():
        raise ValueError(text)
    return int(whole + fraction.ljust(places, "0"))


def channel_table(title: str, rows: Iterable[tuple[str, Channel]]) -> Table:
    """Channels, one row for each currency."""
    cells = []
    for alias, channel in rows:
        parts = channel.balances.parts
        for number, row in enumerate(channel.balances.rows):
            held = dict(zip(parts, row.amounts, strict=True))
            own = held.pop(SELF, "")
            theirs = " ".join(map(shown, held.values()))
            first = (shown(alias), shown(channel.balances.peer), shown(channel.version)) if number == 0 else ("",) * 3
            cells.append(
                (*first, shown(row.currency), shown(own), theirs, shown(channel.id[:12]) if not number else "")
            )
    return Table(title, ("channel", "peer", "version", "currency", "you", "peer has", "ID"), tuple(cells))

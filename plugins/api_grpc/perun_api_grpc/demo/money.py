"""Money: exact amounts, what the chain says about them, and whether the books add up.

Reads the chain by plain JSON-RPC over HTTP, independently of the node whose work it checks. Amounts are integers of
base units (wei); both currencies of the demo have 18 decimals. No floating point anywhere.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Final

from .failure import DemoFailed

DECIMALS: Final = 18
ETH: Final = "ETH"
PRN: Final = "PRN"
RPC_TIMEOUT: Final = 10.0
BALANCE_OF: Final = "0x70a08231"
"""Selector of ``balanceOf(address)``."""

Amounts = Mapping[str, int]
"""Base units by currency, or by name of a person."""


def units(text: str) -> int:
    """Base units of decimal text such as ``0.25``. Raises: DemoFailed for more digits than there are."""
    with localcontext(prec=100):
        value = Decimal(text).scaleb(DECIMALS)
        if value != value.to_integral_value():
            raise DemoFailed(f"{text} has more than {DECIMALS} decimals")
        return int(value)


def text_of(value: int) -> str:
    """Decimal text of base units, exact, without trailing zeros."""
    sign, digits = "-" if value < 0 else "", str(abs(value)).rjust(DECIMALS + 1, "0")
    whole, fraction = digits[:-DECIMALS], digits[-DECIMALS:].rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def signed(value: int) -> str:
    """Decimal text with its sign, for changes."""
    return f"+{text_of(value)}" if value > 0 else text_of(value)


class ChainReader:
    """Asks a chain node over HTTP. Raises: DemoFailed when it does not answer, or answers with an error."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def call(self, method: str, *params: object) -> Any:
        """The result of one JSON-RPC call."""
        answer = await asyncio.to_thread(self._ask, method, params)
        if "error" in answer:
            raise DemoFailed(f"the chain at {self.url} refuses {method}: {answer['error'].get('message')}")
        return answer["result"]

    def _ask(self, method: str, params: Iterable[object]) -> dict[str, Any]:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        # Never through a proxy: the chain is here.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=RPC_TIMEOUT) as response:
                answer = json.load(response)
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise DemoFailed(f"no chain answers JSON-RPC at {self.url}: {error}") from error
        if not isinstance(answer, dict):
            raise DemoFailed(f"what answers at {self.url} does not speak JSON-RPC")
        return answer

    async def number(self, method: str, *params: object) -> int:
        """The result of a call that gives a quantity."""
        return int(await self.call(method, *params), 16)

    async def token_balance(self, token: str, owner: str, block: str) -> int:
        """Base units of `token` that `owner` has at `block`."""
        call = {"to": token, "data": BALANCE_OF + owner.removeprefix("0x").lower().rjust(64, "0")}
        return int(await self.call("eth_call", call, block), 16)

    async def fees(self, accounts: Mapping[str, str], first: int, last: int) -> dict[str, int]:
        """Wei that each of `accounts` (address by name) paid for its transactions in blocks `first` to `last`."""
        names = {address.lower(): name for name, address in accounts.items()}
        paid = dict.fromkeys(accounts, 0)
        for number in range(first, last + 1):
            block = await self.call("eth_getBlockByNumber", hex(number), True)
            for transaction in block["transactions"]:
                name = names.get(transaction["from"].lower())
                if name is not None:
                    receipt = await self.call("eth_getTransactionReceipt", transaction["hash"])
                    paid[name] += int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
        return paid

    async def settled(self, accounts: Iterable[str], *, within: float = 30) -> int:
        """The latest block, once no transaction of `accounts` waits for one any more."""
        until = time.monotonic() + within
        while True:
            block = await self.number("eth_blockNumber")
            waiting = [
                account
                for account in accounts
                if await self.number("eth_getTransactionCount", account, "pending")
                > await self.number("eth_getTransactionCount", account, hex(block))
            ]
            if not waiting:
                return block
            if time.monotonic() > until:
                raise DemoFailed(f"transactions of {', '.join(waiting)} are not mined within {within:.0f} s")
            await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Contracts:
    """Addresses as ``perunnode contracts deploy --json`` prints them."""

    adjudicator: str
    eth: str
    token: str
    erc20: str


@dataclass(frozen=True)
class Books:
    """Who owns what on the chain at one block: `people[name][currency]`, and what the asset holders hold."""

    block: int
    people: Mapping[str, Amounts]
    held: Amounts

    @classmethod
    async def read(cls, chain: ChainReader, contracts: Contracts, accounts: Mapping[str, str]) -> Books:
        """Everything at the same block, once nothing of `accounts` is on its way."""
        block = await chain.settled(accounts.values())

        async def owned(address: str, token_owner: str) -> dict[str, int]:
            return {
                ETH: await chain.number("eth_getBalance", address, hex(block)),
                PRN: await chain.token_balance(contracts.token, token_owner, hex(block)),
            }

        people = {name: await owned(address, address) for name, address in accounts.items()}
        return cls(block, people, await owned(contracts.eth, contracts.erc20))


@dataclass(frozen=True)
class Check:
    """One line of the final account: a sentence that is true, or the two numbers that should be equal."""

    claim: str
    found: int
    expected: int

    @property
    def holds(self) -> bool:
        """To the last base unit."""
        return self.found == self.expected


def reconcile(before: Books, after: Books, *, gains: Mapping[str, Amounts], fees: Amounts) -> tuple[Check, ...]:
    """Whether every unit is where it belongs.

    `gains[name][currency]`: what a person got out of all channels more than was put in (may be negative); `fees`: wei
    that each person paid for transactions between the two books.
    """
    changes = {
        name: {currency: after.people[name][currency] - owned for currency, owned in owns.items()}
        for name, owns in before.people.items()
    }
    checks = []
    for name, change in changes.items():
        checks.append(
            Check(f"{name}'s ETH changed by the payments minus the fees", change[ETH], gains[name][ETH] - fees[name])
        )
        checks.append(Check(f"{name}'s PRN changed by the payments exactly", change[PRN], gains[name][PRN]))
    total = {currency: sum(change[currency] for change in changes.values()) for currency in (ETH, PRN)}
    checks.append(Check("ETH of both together changed by the fees and nothing else", total[ETH], -sum(fees.values())))
    checks.append(Check("PRN of both together did not change", total[PRN], 0))
    checks += [
        Check(f"the contract that held {currency} gave everything back", after.held[currency], before.held[currency])
        for currency in (ETH, PRN)
    ]
    return tuple(checks)

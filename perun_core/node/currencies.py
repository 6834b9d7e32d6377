"""Currencies of the node: symbol, decimals, and the asset holder that keeps its deposits (CHAIN.md 4.2)."""

from __future__ import annotations

from msgspec import Struct

from ..errors import ResourceExists
from ..values import Address


class Currency(Struct, frozen=True):
    """A currency users may name; `token` None is ETH. `known` False stands for an asset nobody registered here."""

    symbol: str
    decimals: int
    holder: Address
    token: Address | None = None
    known: bool = True


class CurrencyRegistry:
    """What is registered, in order of registration; symbols and holders are unique."""

    def __init__(self, eth_holder: Address) -> None:
        eth = Currency("ETH", 18, eth_holder)
        self._by_symbol = {eth.symbol: eth}
        self._by_holder = {eth.holder: eth}

    def by_symbol(self, symbol: str) -> Currency | None:
        """Symbols are compared exactly, letter case included."""
        return self._by_symbol.get(symbol)

    def by_holder(self, holder: Address) -> Currency | None:
        """The currency whose deposits `holder` keeps."""
        return self._by_holder.get(holder)

    def symbols(self) -> tuple[str, ...]:
        """All symbols, ETH first."""
        return tuple(self._by_symbol)

    def check_free(self, *, holder: Address | None = None, symbol: str | None = None) -> None:
        """Raises: ResourceExists naming the symbol that has this holder, or this symbol."""
        if holder is not None and holder in self._by_holder:
            raise ResourceExists("currency", self._by_holder[holder].symbol)
        if symbol is not None and symbol in self._by_symbol:
            raise ResourceExists("currency", symbol)

    def add(self, currency: Currency) -> None:
        """Raises: ResourceExists."""
        self.check_free(holder=currency.holder, symbol=currency.symbol)
        self._by_symbol[currency.symbol] = currency
        self._by_holder[currency.holder] = currency

    def shown(self, holder: Address) -> Currency:
        """The currency of `holder`, or a stand-in that shows its address and raw base units (API.md 5.3)."""
        return self._by_holder.get(holder) or Currency(holder.checksum, 0, holder, known=False)

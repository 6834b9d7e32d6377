"""The story: what alice and bob do, what should come out of it, and how it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from .failure import DemoFailed
from .money import ETH, PRN, Amounts, Books, Check, signed, text_of, units
from .person import Channel, Person, Refused
from .screen import Screen, duration_text

One = TypeVar("One")
Other = TypeVar("Other")

PATIENCE: Final = 180.0
"""Seconds for anything that two people do together."""
CHALLENGE_SECONDS: Final = 60
COFFEES: Final = 20
COFFEE: Final = "0.001"


async def together(one: Awaitable[One], other: Awaitable[Other]) -> tuple[One, Other]:
    """What both give. When one fails the other is ended.

    Raises: what failed first, DemoFailed when it takes too long.
    """

    try:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            first, second = group.create_task(_wait(one)), group.create_task(_wait(other))
    except TimeoutError as error:
        raise DemoFailed(f"nothing happened for {PATIENCE:.0f} s") from error
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return first.result(), second.result()


async def _wait(one: Awaitable[One]) -> One:
    return await one


@dataclass
class Deal:
    """One channel between two people, and what its balances should be: `expected[name][currency]` in base units."""

    screen: Screen
    proposer: Person
    peer: Person
    id: str
    deposits: Mapping[str, dict[str, int]]
    expected: dict[str, dict[str, int]] = field(init=False)
    version: int = 0

    def __post_init__(self) -> None:
        self.expected = {name: dict(amounts) for name, amounts in self.deposits.items()}

    @classmethod
    async def open(
        cls, screen: Screen, proposer: Person, peer: Person, deposits: Mapping[str, tuple[str, str]]
    ) -> Deal:
        """`proposer` proposes `deposits` (own, peer's) by currency, `peer` accepts, both pay in on the chain."""
        parts = ", ".join(f"{own} and {other} {currency}" for currency, (own, other) in deposits.items())
        screen.line(f"  {proposer.name} proposes a channel to {peer.name}, deposits: {parts}.")
        async with screen.step(f"{peer.name} accepts; both deposit on the blockchain"):
            ours, theirs = await together(
                proposer.propose(peer.name, deposits, challenge_seconds=CHALLENGE_SECONDS), peer.accept_proposal()
            )
        amounts = {
            name: {currency: units(row[position]) for currency, row in deposits.items()}
            for position, name in enumerate((proposer.name, peer.name))
        }
        deal = cls(screen, proposer, peer, ours.id, amounts)
        deal.check(ours, theirs)
        return deal

    def other(self, person: Person) -> Person:
        """The one with whom `person` has this channel."""
        return self.peer if person is self.proposer else self.proposer

    def check(self, ours: Channel, theirs: Channel) -> None:
        """Both people see the same channel with the balances it should have. Raises: DemoFailed."""
        mine, yours = self.expected[self.proposer.name], self.expected[self.peer.name]
        as_ours = {currency: (mine[currency], yours[currency]) for currency in mine}
        as_theirs = {currency: (yours[currency], mine[currency]) for currency in mine}
        wanted = (self.id, self.version)
        if (ours.id, ours.version) != wanted or (theirs.id, theirs.version) != wanted:
            raise DemoFailed(f"expected version {self.version}, alice and bob have {ours.version} and {theirs.version}")
        if ours.balances != as_ours or theirs.balances != as_theirs:
            raise DemoFailed(f"{self.proposer.name} sees {ours.balances}, {self.peer.name} sees {theirs.balances}")

    async def pay(self, payer: Person, amounts: Mapping[str, str], *, requested: bool = False) -> float:
        """`payer` pays; with `requested` because the other one asked for it. Returns the seconds it took."""
        payee = self.other(payer)
        started = time.monotonic()
        if requested:
            seen = await together(payee.pay(self.id, "self", amounts), payer.answer(self.id, accept=True))
        else:
            seen = await together(payer.pay(self.id, payee.name, amounts), payee.answer(self.id, accept=True))
        seconds = time.monotonic() - started
        self.version += 1
        for currency, amount in amounts.items():
            self.expected[payer.name][currency] -= units(amount)
            self.expected[payee.name][currency] += units(amount)
        proposed_by = payee if requested else payer
        self.check(*(seen if proposed_by is self.proposer else reversed(seen)))
        return seconds

    async def tell_payment(self, payer: Person, amounts: Mapping[str, str], *, requested: bool = False) -> None:
        """Pay, and say so."""
        payee = self.other(payer)
        seconds = await self.pay(payer, amounts, requested=requested)
        what = " and ".join(f"{amount} {currency}" for currency, amount in amounts.items())
        if requested:
            self.say(f"{payee.name} asks {payer.name} for {what}, {payer.name} agrees", seconds)
        else:
            self.say(f"{payer.name} pays {payee.name} {what}", seconds)

    async def tell_refusal(self, asker: Person, amounts: Mapping[str, str]) -> None:
        """`asker` asks for money and the other one says no; nothing changes."""
        other = self.other(asker)
        asked = asyncio.ensure_future(refused(asker.pay(self.id, "self", amounts)))
        _, view = await together(asked, other.answer(self.id, accept=False))
        what = " and ".join(f"{amount} {currency}" for currency, amount in amounts.items())
        self.screen.line(f"  {asker.name} asks {other.name} for {what}, {other.name} says no. Nothing changes:")
        if view.version != self.version:
            raise DemoFailed(f"a refused update changed the channel to version {view.version}")
        self.say_balances()

    async def tell_coffees(self, payer: Person) -> None:
        """Many small payments in a row."""
        seconds = sum([await self.pay(payer, {ETH: COFFEE}) for _ in range(COFFEES)])
        self.screen.line(
            f"  {payer.name} buys {COFFEES} coffees from {self.other(payer).name}, {COFFEE} ETH each: "
            f"{duration_text(seconds / COFFEES)} per payment, no fees."
        )
        self.say_balances()

    async def close(self, closer: Person) -> None:
        """`closer` asks to end the channel, the other one agrees, both withdraw on the chain."""
        other = self.other(closer)
        self.screen.line(f"  {closer.name} asks to end the channel, {other.name} agrees.")
        async with self.screen.step("the result goes to the blockchain; both withdraw"):
            seen = await together(closer.close(self.id), other.answer(self.id, accept=True))
        self.version += 1
        self.check(*(seen if closer is self.proposer else reversed(seen)))

    def say(self, what: str, seconds: float) -> None:
        """One payment: what happened and how long it took."""
        self.screen.line(f"  {what}. ({duration_text(seconds)}, nothing on the blockchain)")
        self.say_balances()

    def say_balances(self) -> None:
        """Who has how much in the channel now."""
        shares = (
            f"{name} " + " + ".join(f"{text_of(value)} {currency}" for currency, value in amounts.items())
            for name, amounts in self.expected.items()
        )
        self.screen.line("      " + " | ".join(shares))

    def gain(self, name: str) -> Amounts:
        """What `name` gets out more than was put in."""
        return {currency: value - self.deposits[name][currency] for currency, value in self.expected[name].items()}


async def refused(call: Awaitable[Channel]) -> None:
    """Wait for a call that the peer should refuse. Raises: DemoFailed when it does not."""
    try:
        await call
    except Refused:
        return
    raise DemoFailed("an update that was rejected counts as accepted")


async def tell(screen: Screen, alice: Person, bob: Person) -> dict[str, dict[str, int]]:
    """Everything they do; returns what each gained in the channels by name and currency."""
    screen.heading("A channel in ETH")
    peer = await alice.look_up("bob")
    screen.line(f'  alice looks up "bob" among her peers: {peer.offChainAddress} at {peer.commAddress}.')
    first = await Deal.open(screen, alice, bob, {ETH: ("2", "1")})
    await first.tell_payment(alice, {ETH: "0.5"})
    await first.tell_payment(bob, {ETH: "0.2"})
    await first.tell_payment(alice, {ETH: "0.3"}, requested=True)
    await first.tell_refusal(alice, {ETH: "1"})
    await first.tell_coffees(alice)

    screen.heading("A channel in ETH and PRN (a test token), while the first one stays open")
    second = await Deal.open(screen, bob, alice, {ETH: ("1", "0.5"), PRN: ("30", "10")})
    await second.tell_payment(bob, {PRN: "12.5"})
    await second.tell_payment(alice, {ETH: "0.1", PRN: "2.25"})
    await second.tell_payment(bob, {PRN: "0.000000000000000001"}, requested=True)

    screen.heading("Settling")
    await first.close(alice)
    await second.close(bob)
    gains = {}
    for person in (alice, bob):
        await person.leave()
        gains[person.name] = {
            currency: sum(deal.gain(person.name).get(currency, 0) for deal in (first, second))
            for currency in (ETH, PRN)
        }
    return gains


def show_books(screen: Screen, books: Books) -> None:
    """What everybody owns on the chain."""
    rows = [("", ETH, PRN)]
    rows += [(name, text_of(owned[ETH]), text_of(owned[PRN])) for name, owned in books.people.items()]
    rows.append(("asset contracts", text_of(books.held[ETH]), text_of(books.held[PRN])))
    screen.table(rows)


def show_result(
    screen: Screen, books: tuple[Books, Books], gains: Mapping[str, Amounts], fees: Amounts, checks: tuple[Check, ...]
) -> None:
    """Balances afterwards, what led to them, and every check. Raises: DemoFailed when a check does not hold."""
    before, after = books
    show_books(screen, after)
    screen.line()
    screen.line("  What became of it, to the last wei:")
    rows = [("", "ETH paid in channels", "fees", "ETH changed", "PRN changed")]
    for name, gain in gains.items():
        changed = {currency: after.people[name][currency] - before.people[name][currency] for currency in (ETH, PRN)}
        rows.append((name, signed(gain[ETH]), text_of(fees[name]), signed(changed[ETH]), signed(changed[PRN])))
    screen.table(rows)
    screen.line()
    for check in checks:
        screen.line(f"  {'ok' if check.holds else 'WRONG'}: {check.claim}")
    wrong = [check for check in checks if not check.holds]
    if wrong:
        numbers = "; ".join(f"{check.claim}: {check.found} instead of {check.expected}" for check in wrong)
        raise DemoFailed(f"the books do not add up: {numbers}")

"""Funding of any number of parties on a real chain, and who is named when somebody does not pay (CHAIN.md 6.2: B6, B7).

Users' channels have two participants; the steps below them do not count on that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from perun_core.channel import State
from perun_core.errors import PeerNotFunded, UnknownInternal
from perun_core.node.chainsteps import StepContext, run_step
from perun_core.ports.chain import Chain
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import FundChannel
from perun_core.protocol.events import ChainFailed, ChainFunded
from perun_core.values import Address, ChannelID, Sig
from plugins.chain_ethereum.tests.chain_backend.conftest import Channel, Key, Ledger, participants

pytestmark = pytest.mark.anvil

Funded = Callable[..., Any]
DURATION = 1000


class Parties:
    """The participants of a channel, each with an account and a backend."""

    def __init__(self, ledger: Ledger, channel: Channel, chains: tuple[Chain, ...], accounts: tuple[Key, ...]) -> None:
        self.ledger, self.channel, self.chains, self.accounts = ledger, channel, chains, accounts
        self.state: State = channel.state(0)

    def fund(self, part: int) -> asyncio.Task[Any]:
        """One participant's step."""

        async def authorise(channel_id: ChannelID, holder: Address, amount: int) -> Sig:
            raise AssertionError("nothing is withdrawn")

        context = StepContext(
            chain=self.chains[part],
            profile=PROFILE,
            chain_url=self.ledger.url,
            tx_timeout=30,
            tx_timeout_text="30s",
            peer_alias="somebody",
            own_index=part,
            token_of=lambda holder: self.ledger.token if holder == self.ledger.token_holder else None,
            receiver=self.accounts[part].address,
            authorise=authorise,
        )
        return asyncio.create_task(run_step(FundChannel(self.channel.params, self.state), context, self.channel.id))

    async def sent(self, part: int) -> int:
        """Transactions of the participant's account."""
        account = self.accounts[part].address.checksum
        return int(await self.ledger.rpc("eth_getTransactionCount", account, "latest"), 16)

    async def missing(self) -> set[tuple[int, int]]:
        """Asset and participant of every deposit that is not complete."""
        return {
            (asset, part)
            for asset, holder in enumerate(self.channel.holders)
            for part, amount in enumerate(self.channel.balances[asset])
            if await self.chains[0].holdings(holder, self.channel.funding_id(part)) < amount
        }


@contextlib.asynccontextmanager
async def parties(
    ledger: Ledger, funded: Funded, rows: tuple[tuple[int, ...], ...], *, duration: int = DURATION
) -> AsyncIterator[Parties]:
    """Participants of a channel in ETH and the test token, balances [asset][participant]."""
    number = len(rows[0])
    channel = Channel(
        (ledger.eth_holder, ledger.token_holder)[: len(rows)],
        rows,
        challenge_duration=duration,
        keys=participants(number),
    )
    accounts = [await funded(ledger) for _ in range(number)]
    async with contextlib.AsyncExitStack() as stack:
        chains = [await stack.enter_async_context(ledger.open(account)) for account in accounts]
        yield Parties(ledger, channel, tuple(chains), tuple(accounts))


@pytest.mark.parametrize("number", [1, 2, 3, 10])
async def test_b6_any_number_of_parties_fund_eth_and_tokens_at_the_same_time(
    instant: Ledger, funded: Funded, number: int
) -> None:
    rows = (tuple(range(1, number + 1)), tuple(range(number)))
    async with parties(instant, funded, rows) as all_of_us:
        assert set(await asyncio.gather(*map(all_of_us.fund, range(number)))) == {ChainFunded()}
        assert await all_of_us.missing() == set()
        before = [await all_of_us.sent(part) for part in range(number)]
        assert before[0] == 1, "one transaction for ETH, none for zero tokens"
        assert set(await asyncio.gather(*map(all_of_us.fund, range(number)))) == {ChainFunded()}
        assert [await all_of_us.sent(part) for part in range(number)] == before, "a second call sends nothing"


async def test_b6_a_share_that_somebody_else_paid_is_there(instant: Ledger, funded: Funded) -> None:
    """One pays for all: the others' steps find their goal reached."""
    async with parties(instant, funded, ((5, 7, 9),)) as all_of_us:
        for part in range(3):
            await all_of_us.chains[0].deposit(
                instant.eth_holder, None, all_of_us.channel.funding_id(part), all_of_us.channel.balances[0][part]
            )
        assert set(await asyncio.gather(*map(all_of_us.fund, range(3)))) == {ChainFunded()}
        assert [await all_of_us.sent(part) for part in range(3)] == [3, 0, 0]


async def test_b6_crossed_shares_of_two_assets_are_deposited_by_those_who_have_them(
    instant: Ledger, funded: Funded
) -> None:
    async with parties(instant, funded, ((8, 0), (0, 6))) as both:
        assert await asyncio.gather(both.fund(0), both.fund(1)) == [ChainFunded(), ChainFunded()]
        assert await both.missing() == set()


@pytest.mark.parametrize("rows", [((0, 0), (0, 0)), ()], ids=["zero balances", "no assets"])
async def test_b6_where_nothing_is_to_be_paid_nothing_is_sent(
    instant: Ledger, funded: Funded, rows: tuple[tuple[int, ...], ...]
) -> None:
    async with parties(instant, funded, rows or ((0, 0),)) as both:
        if not rows:
            both.channel.holders, both.channel.balances = (), ()
            both.state = both.channel.state(0)
        assert await asyncio.gather(both.fund(0), both.fund(1)) == [ChainFunded(), ChainFunded()]
        assert [await both.sent(part) for part in (0, 1)] == [0, 0]


async def test_b6_a_funding_that_is_given_up_and_begun_again_deposits_once(instant: Ledger, funded: Funded) -> None:
    async with parties(instant, funded, ((5, 7),)) as both:
        first = both.fund(0)
        await asyncio.wait({first}, timeout=0.3)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await asyncio.gather(both.fund(0), both.fund(1)) == [ChainFunded(), ChainFunded()]
        assert [await both.sent(part) for part in (0, 1)] == [1, 1]
        assert await both.chains[0].holdings(instant.eth_holder, both.channel.funding_id(0)) == 5


@pytest.mark.parametrize(("number", "absent"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
async def test_b7_whoever_pays_is_told_that_somebody_did_not_and_that_his_money_is_there(
    instant: Ledger, funded: Funded, number: int, absent: int
) -> None:
    """Exactly the absent one's deposits are missing, in every asset; the channel knows that it has to be disputed."""
    rows = (tuple(range(10, 10 + number)), tuple(range(20, 20 + number)))
    async with parties(instant, funded, rows) as all_of_us:
        steps = [all_of_us.fund(part) for part in range(number) if part != absent]
        while len(await all_of_us.missing()) > len(rows):  # noqa: ASYNC110 - a chain has no event for it
            await asyncio.sleep(0.05)
        assert not any(step.done() for step in steps)
        await instant.pass_time(DURATION)
        for result in await asyncio.gather(*steps):
            assert isinstance(result, ChainFailed) and result.deposited
            assert isinstance(result.error, PeerNotFunded)
        assert await all_of_us.missing() == {(0, absent), (1, absent)}
        assert await all_of_us.sent(absent) == 0


async def test_b7_whoever_comes_too_late_deposits_nothing_any_more(instant: Ledger, funded: Funded) -> None:
    """O-22: his own account is empty at first; when money comes, the time is over."""
    async with parties(instant, funded, ((10, 20),)) as both:
        await instant.rpc("anvil_setBalance", both.accounts[0].address.checksum, "0x0")
        step = both.fund(0)
        assert not (await asyncio.wait({step}, timeout=0.3))[0]
        await instant.pass_time(DURATION)
        result = await step
        assert isinstance(result, ChainFailed) and not result.deposited
        assert isinstance(result.error, PeerNotFunded | UnknownInternal)
        assert await both.sent(0) == 0

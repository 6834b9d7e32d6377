"""One run: open → pay → something goes wrong → settle, and what must be true afterwards.

Everything that is drawn is drawn from the seed, so that a run can be played again by its number. What the machine is
doing meanwhile differs from time to time: a seed gives the same story, not the same interleaving.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from perun_chain_ethereum import abi
from perun_core.apps.registry import AppRegistry
from perun_core.channel import Phase, State, Transaction
from perun_core.ports.store import Store, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord, RecordCodec
from plugins.chain_ethereum.tests.chain_backend.conftest import ETHER, Cable
from tests.faults.chain.ground import FAST_PACE, NORMAL_PACE, TICK, Ground
from tests.faults.chain.players import Company, Player, configure, player

PURSE: Final = 20 * ETHER
DEEPEST_REORG: Final = 12
SPIKE: Final = 20
SETTLE_LIMIT: Final = 60.0
"""Real seconds within which a channel must be archived once nothing is wrong any more."""
STUCK_AFTER: Final = 20
"""Challenge durations of block time within which a channel must be archived."""
OTHERS_TURN: Final = 4.0
"""Real seconds until the other one closes too, when the first one's wish led nowhere."""
SLEEP: Final = 20.0
"""Real seconds for which the user of a cheated node does nothing: far more than the dispute lasts."""
RECONNECT: Final = 15.0
"""Real seconds within which a node must have found the chain again."""
AFTERMATH: Final = 6
"""Blocks after everything is archived in which exchanged blocks may still have their effect."""

FAULTS: Final = {"crash": 25, "cheat": 25, "reorg": 16, "spike": 14, "outage": 12, "nothing": 8}
MOMENTS: Final = ("opening", "paying", "idle", "settling")


@dataclass(frozen=True)
class Plan:
    """What happens in a run."""

    seed: int
    fault: str
    moment: str
    delay: float
    """Real seconds from the beginning of that moment."""
    challenge: int
    ether: tuple[int, int]
    payments: tuple[tuple[int, int], ...]
    """(payer, wei)."""
    closer: int
    clings: bool
    victim: int
    """Whom it happens to; in a cheat the honest one."""
    both: bool
    commits: int
    """Commits until a crash; 0: at `delay`."""
    written: bool
    again: int
    """Commits after the return until the second crash; 0: none."""
    finality: int
    depth: int
    history: str
    """What becomes of transactions in exchanged blocks: kept, late, lost."""
    blocks: int
    """How long it lasts."""
    absence: float
    """Part of the challenge duration that a cheated one is away; 0: not at all."""
    back: int
    """How many versions the cheater goes back."""
    beside: str
    """What happens to the cheated one on top."""

    @property
    def has_reorg(self) -> bool:
        """Whether blocks are exchanged."""
        return "reorg" in (self.fault, self.beside)

    @classmethod
    def drawn(cls, seed: int) -> Plan:
        """The plan of `seed`."""
        rng = random.Random(seed)
        fault = rng.choices(tuple(FAULTS), tuple(FAULTS.values()))[0]
        moment = rng.choice(("paying", "idle", "settling") if fault == "cheat" else MOMENTS)
        beside = rng.choices(("", "spike", "reorg", "outage", "crash"), (50, 15, 15, 10, 10))[0]
        beside = beside if fault == "cheat" else ""
        depth = rng.randint(1, DEEPEST_REORG)
        history = rng.choice(("kept", "late", "lost"))
        has_reorg = "reorg" in (fault, beside)
        deep = history == "lost" or rng.random() < 0.5
        challenge = rng.choice((60, 90, 120)) * (2 if has_reorg else 1)
        least = rng.randint(2, 6)
        ether = (rng.randint(1, 5) * ETHER + rng.randint(0, ETHER), rng.randint(0, 4) * ETHER + rng.randint(0, 99))
        payments = tuple((rng.randrange(2), rng.randint(1, ETHER // 2)) for _ in range(least))
        return cls(
            seed=seed,
            fault=fault,
            moment=moment,
            delay=rng.choice((0.0, rng.uniform(0.0, 0.3), rng.uniform(0.0, 0.8))),
            challenge=challenge,
            ether=ether,
            payments=payments,
            closer=rng.randrange(2),
            clings=rng.random() < 0.35,
            victim=rng.randrange(2),
            both=rng.random() < 0.25,
            commits=rng.choice((0, rng.randint(1, 12))),
            written=rng.random() < 0.5,
            again=rng.choice((0, 0, rng.randint(1, 6))),
            finality=depth + 1 if has_reorg and deep else 1,
            depth=depth,
            history=history,
            blocks=rng.randint(1, max(challenge * 3 // 5 // NORMAL_PACE, 2)),
            absence=rng.choice((0.0, 0.0, rng.uniform(0.05, 0.7))),
            back=rng.randint(1, 5),
            beside=beside,
        )

    def __str__(self) -> str:
        details = {
            "crash": f"{'both' if self.both else 'player'} {self.victim} "
            + (f"at commit {self.commits}{'' if self.written else ', not written'}" if self.commits else "by the clock")
            + f", away for {self.blocks} blocks"
            + (", and again" if self.again else ""),
            "cheat": f"on player {self.victim}, {self.back} back, absent {self.absence:.2f}"
            + (f", with {self.beside}" if self.beside else ""),
            "reorg": f"of {self.depth}, transactions {self.history}, finality {self.finality}",
            "spike": f"for {self.blocks} blocks",
            "outage": f"of {'both' if self.both else f'player {self.victim}'} for {self.blocks} blocks",
            "nothing": "",
        }[self.fault]
        end = "refused close" if self.clings else "close"
        return f"{self.fault} while {self.moment} {details}; {len(self.payments)} payments, {end}".replace("  ", " ")


@dataclass
class Outcome:
    """What came of a run."""

    plan: Plan
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    blocks: int = 0
    sent: int = 0
    """Transactions of the players."""
    reverted: list[str] = field(default_factory=list)
    version: int | None = None
    """What was concluded; None when the channel never came to the chain."""
    struck: str = ""
    """Phases of the channel on both sides when it went wrong."""


class Story:
    """One run on one chain."""

    def __init__(self, plan: Plan, ground: Ground, company: Company, home: Path, ports: tuple[int, int]) -> None:
        self.plan = plan
        self.ground = ground
        self.outcome = Outcome(plan)
        self.home = home / str(plan.seed)
        self.players = tuple(
            player(name, seed=plan.seed, company=company, home=self.home, port=port)
            for name, port in zip(("alice", "bob"), ports, strict=True)
        )
        self.victim = self.players[plan.victim]
        self.other = self.players[1 - plan.victim]
        self.cheater: Player | None = None
        self.agreed: dict[int, ChannelRecord] = {}
        """What the cheater kept, by version."""
        self.cables: dict[str, Cable] = {}
        self._company = company
        self._gaps = random.Random(~plan.seed)
        self._trouble = False
        self._waiting: set[asyncio.Task[Any]] = set()

    async def play(self) -> Outcome:
        """Tell the whole story; what was wrong is in the outcome."""
        begun = time.monotonic()
        self.first = await self.ground.height()
        async with self._prepared():
            await asyncio.gather(*(each.arrive() for each in self.players))
            await self._during("opening", self._open)
            await self._during("paying", self._pay)
            await self._during("idle", self._idle)
            await self._during("settling", self._settle)
            if self.cheater is not None:
                await self.cheater.arrive()
                await self._settled(lambda: self.players)
            if self.plan.has_reorg:  # what came back may still wait to be mined again
                await self.ground.blocks(AFTERMATH)
            with self.ground.standing_still():
                await asyncio.sleep(TICK)  # a block that is being mined ends first
                await self._check()
        self.outcome.seconds = time.monotonic() - begun
        self.outcome.blocks = await self.ground.height() - self.first
        if not self.outcome.problems:
            await asyncio.to_thread(shutil.rmtree, self.home)
        return self.outcome

    @asynccontextmanager
    async def _prepared(self) -> AsyncIterator[None]:
        plan, ground = self.plan, self.ground
        ground.pace, ground.fee_factor = NORMAL_PACE, 1
        async with AsyncExitStack() as stack:
            for each in self.players:
                url = ground.url
                if "outage" in (plan.fault, plan.beside):
                    cable = self.cables[each.alias] = Cable(ground.http)
                    await cable.mend()
                    stack.push_async_callback(cable.cut)
                    url = f"ws://127.0.0.1:{cable.port}"
                others = tuple(other for other in self.players if other is not each)
                configure(each, ground, url=url, finality=plan.finality, knows=others)
                each.clings = plan.clings
                await ground.give(each.account.address.checksum, PURSE)
            await ground.rpc("anvil_mine", hex(DEEPEST_REORG + 2), hex(NORMAL_PACE))
            ground.time = int((await ground.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16)
            self.first = await ground.height() + 1
            ticking = asyncio.create_task(ground.tick())
            try:
                yield
            finally:
                for each in self.players:
                    await each.leave()
                    self._company.players.pop(each.alias)
                for task in (ticking, *self._waiting):
                    task.cancel()
                await asyncio.gather(ticking, *self._waiting, return_exceptions=True)

    # ---- what people do ---------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        alice, bob = self.players
        await alice.open_channel(bob, self.plan.ether, self.plan.challenge)
        self._keep()

    async def _pay(self) -> None:
        for payer, wei in self.plan.payments:
            await asyncio.sleep(self._gaps.choice((0.0, 0.0, 0.1)))
            await self.players[payer].pay(self.players[1 - payer], wei)
            self._keep()

    async def _idle(self) -> None:
        await self.ground.blocks(2)

    async def _settle(self) -> None:
        await self._settled(lambda: tuple(each for each in self.players if each is not self.cheater))

    def _keep(self) -> None:
        live = self.other.channel
        if live is not None and live.snapshot.current.state is not None and None not in live.snapshot.current.sigs:
            self.agreed[live.snapshot.current.state.version] = live.snapshot

    async def _settled(self, honest: Callable[[], tuple[Player, ...]]) -> None:
        """Have channels closed and wait until nothing is left of them; `honest` are those that are waited for."""
        ground, plan = self.ground, self.plan
        begun, since, calm = time.monotonic(), ground.time, time.monotonic()
        asked: set[Player] = set()
        while self._trouble or not all(each.is_done for each in honest()):
            for each in sorted(honest(), key=lambda each: each is not self.players[plan.closer]):
                live, first = each.channel, each is self.players[plan.closer]
                if each in asked or live is None or not live.is_open:
                    continue
                patience = SLEEP if self.cheater is not None else 0.0 if first else OTHERS_TURN
                if time.monotonic() - begun >= patience:
                    asked.add(each)
                    self._start(each.close())
            if self._trouble:
                calm = time.monotonic()
            else:
                ground.pace = FAST_PACE if await self._nothing_to_do(honest()) else NORMAL_PACE
            if time.monotonic() - calm > SETTLE_LIMIT:
                phases = [f"{each.alias}: {each.channel.machine.phase if each.channel else None}" for each in honest()]
                self._problem(f"stuck: {', '.join(phases)}")
                break
            await asyncio.sleep(0.05)
        ground.pace = NORMAL_PACE
        if ground.time - since > STUCK_AFTER * plan.challenge:
            self._problem(f"settling took {ground.time - since} s of block time")

    @staticmethod
    def _all_there(honest: tuple[Player, ...]) -> bool:
        return all(each.session is not None for each in honest)

    async def _nothing_to_do(self, honest: tuple[Player, ...]) -> bool:
        """Whether everybody only waits for block time to pass."""
        busy = [each.channel for each in honest if each.channel is not None and not each.is_done]
        if not busy or not self._all_there(honest):
            return False
        for live in busy:
            newest = live.snapshot.current.state
            assert newest is not None
            if live.machine.phase is not Phase.REGISTERED:
                return False
            dispute = await self.ground.dispute(live.snapshot.channel_id)
            if not dispute.registered or dispute.version < newest.version:
                return False
        return True

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._waiting.add(task)

    # ---- what goes wrong --------------------------------------------------------------------------------------------

    async def _during(self, moment: str, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(work())
        if moment == self.plan.moment and self.plan.fault != "nothing":
            self._trouble = True
            try:
                await self._strike(task)
            finally:
                self._trouble = False
                self.ground.fee_factor = 1
        await task

    async def _strike(self, work: asyncio.Future[None]) -> None:
        plan = self.plan
        if plan.fault != "crash" or not plan.commits:
            await asyncio.wait((work,), timeout=plan.delay)
        if plan.fault != "crash":
            self._note_phases()
        match plan.fault:
            case "crash":
                await self._crash(work)
            case "cheat":
                await self._cheat()
            case "reorg":
                await self._reorg()
            case "spike":
                await self._spike(plan.blocks)
            case "outage":
                await self._outage(self.players if plan.both else (self.victim,))

    async def _crash(self, work: asyncio.Future[None]) -> None:
        plan, ground = self.plan, self.ground
        dying = self.players if plan.both else (self.victim,)
        if plan.commits:
            self.victim.line.doom(after=plan.commits, written=plan.written)
            death = asyncio.ensure_future(self.victim.line.died.wait())
            await asyncio.wait((work, death), timeout=10, return_when=asyncio.FIRST_COMPLETED)
            death.cancel()
        self._note_phases()
        await asyncio.gather(*(each.die() for each in dying))
        await ground.blocks(plan.blocks)
        with ground.standing_still():
            await asyncio.gather(*(each.arrive() for each in dying))
        if plan.again:
            self.victim.line.doom(after=plan.again, written=not plan.written)
            death = asyncio.ensure_future(self.victim.line.died.wait())
            await asyncio.wait((death,), timeout=1.0)
            death.cancel()
            await self.victim.die()
            with ground.standing_still():
                await self.victim.arrive()

    def _note_phases(self) -> None:
        """Where the channel is on the victim's side, and on the other's."""
        lives = (self.victim.channel, self.other.channel)
        self.outcome.struck = "/".join("none" if live is None else str(live.machine.phase) for live in lives)

    async def _spike(self, blocks: int) -> None:
        self.ground.fee_factor = SPIKE
        await self.ground.blocks(blocks)
        self.ground.fee_factor = 1

    async def _reorg(self) -> None:
        plan, ground = self.plan, self.ground
        with ground.standing_still():
            raws = await ground.reorg(plan.depth)
            if plan.history == "kept":
                await ground.resubmit(raws)
        if plan.history == "late":
            await ground.blocks(3)
            await ground.resubmit(raws)

    async def _outage(self, cut_off: tuple[Player, ...]) -> None:
        cables = [self.cables[each.alias] for each in cut_off]
        for cable in cables:
            await cable.cut()
        await self.ground.blocks(self.plan.blocks)
        # Pauses between attempts to connect are real seconds: they must not last minutes of block time.
        with self.ground.standing_still():
            for cable in cables:
                await cable.mend()
            async with asyncio.timeout(RECONNECT):
                while not all(cable._connections for cable in cables):  # noqa: ASYNC110 - a cable has no event
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)

    async def _cheat(self) -> None:
        """The other one registers an outdated state and is not seen again until the money is divided."""
        plan, ground, honest, cheater = self.plan, self.ground, self.victim, self.other
        self._keep()
        live = cheater.channel
        versions = sorted(self.agreed)
        if live is None or len(versions) < 2 or live.machine.phase not in (Phase.ACTING, Phase.SIGNING, Phase.DECIDING):
            self.outcome.notes.append("nothing to cheat with")
            return
        old = self.agreed[versions[max(len(versions) - 1 - plan.back, 0)]]
        self.cheater = cheater
        if plan.absence:
            await (honest.die() if plan.both else honest.leave())
        await cheater.leave()
        beside: Coroutine[Any, Any, None] | None = None
        match plan.beside:
            case "spike":
                beside = self._spike(plan.challenge)
            case "outage" if not plan.absence:
                beside = self._outage((honest,))
        begun = None if beside is None else asyncio.ensure_future(beside)
        await ground.register_as(cheater.account, abi.call_register(old.params, old.current))
        await ground.blocks(1)
        if plan.absence:
            with ground.standing_still():
                until = ground.time + int(plan.absence * plan.challenge)
                while ground.time + ground.pace <= until:
                    await ground.mine()
                await honest.arrive()
        match plan.beside:
            case "reorg":
                await ground.blocks(plan.blocks % 8)
                await self._reorg()
            case "crash" if not plan.absence:
                await ground.blocks(plan.blocks % 3)
                await honest.die()
                await ground.blocks(plan.blocks % 8)
                with ground.standing_still():
                    await honest.arrive()
        if begun is not None and plan.beside == "outage":
            await begun
        elif begun is not None:
            self._waiting.add(begun)  # the fees stay high until the money is back

    # ---- what must be true afterwards -------------------------------------------------------------------------------

    async def _check(self) -> None:
        records = [await self._archived(each) for each in self.players]
        receipts = await self._check_receipts()
        known = next((record for record in records if record is not None), None)
        for each, record in zip(self.players, records, strict=True):
            paid, fees = receipts[each.alias]
            gained = await self.ground.balance(each.account.address.checksum) - PURSE + fees
            if record is None:
                if gained or paid:
                    self._problem(f"{each.alias} has no channel and {-gained} wei less than before")
            elif each is not self.cheater:
                await self._check_money(each, record, records, received=gained + paid, deposits=receipts)
        if known is not None:
            for part in known.params.parts:
                held = await self.ground.holdings(known.channel_id, part)
                if held:
                    self._problem(f"the holder keeps {held} wei of the channel")

    def _problem(self, text: str) -> None:
        self.outcome.problems.append(text)

    async def _archived(self, each: Player) -> ChannelRecord | None:
        session = each.session
        if session is None:
            self._problem(f"{each.alias} is not there at the end")
            return None
        store: Store = session.store
        codec = RecordCodec(PROFILE, AppRegistry())
        for key, value in await store.scan(Table.CHANNELS):
            record = codec.decode(key, value)
            self._problem(f"{each.alias} still has the channel in phase {record.phase}")
            return record
        found = [codec.decode(key, value) for key, value in await store.scan(Table.ARCHIVE)]
        found = [record for record in found if record.deposited or record.concluded_version is not None]
        assert len(found) <= 1, found
        return found[0] if found else None

    async def _check_receipts(self) -> dict[str, tuple[int, int]]:
        """By player what was deposited and paid for gas, in wei; counts transactions and looks at those that failed."""
        totals = {each.alias: (0, 0) for each in self.players}
        by_address = {each.account.address.checksum.lower(): each for each in self.players}
        for receipt in await self.ground.receipts(self.first):
            sender = by_address.get(receipt["from"].lower())
            if sender is None:
                continue
            self.outcome.sent += 1
            paid, fees = totals[sender.alias]
            fees += int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
            if receipt["status"] == "0x1":
                tx = await self.ground.rpc("eth_getTransactionByHash", receipt["transactionHash"])
                paid += int(tx["value"], 16) if (tx["to"] or "").lower() != receipt["from"].lower() else 0
            else:
                await self._look_at_failure(sender, receipt)
            totals[sender.alias] = (paid, fees)
        return totals

    async def _look_at_failure(self, sender: Player, receipt: dict[str, Any]) -> None:
        reason, foreseeable = await self.ground.foreseeable(receipt)
        reason = f"{await self.ground.name_of(receipt)}: {reason or 'overtaken within its block'}"
        if not foreseeable:
            self.outcome.reverted.append(f"{sender.alias}: {reason}")
        elif sender is self.cheater and sender.lives == 1:
            self.outcome.reverted.append(f"{sender.alias}: as a cheater: {reason}")
        elif self.plan.has_reorg:
            self.outcome.reverted.append(f"{sender.alias}: after blocks were exchanged: {reason}")
        else:
            self._problem(f"a transaction of {sender.alias} failed for a foreseeable reason: {reason}")

    async def _check_money(
        self,
        each: Player,
        record: ChannelRecord,
        records: list[ChannelRecord | None],
        *,
        received: int,
        deposits: dict[str, tuple[int, int]],
    ) -> None:
        newest = record.current.state
        assert newest is not None
        dispute = await self.ground.dispute(record.channel_id)
        paid = deposits[each.alias][0]
        if not dispute.concluded:
            if received != 0 or paid != 0:
                self._problem(f"{each.alias} deposited {paid}, but nothing was concluded")
            return
        self.outcome.version = dispute.version
        states = [state for one in records if one is not None for state in _states(one)]
        concluded = [state for state in states if PROFILE.state_hash(state) == dispute.state_hash]
        if not concluded:
            self._problem(f"version {dispute.version} was concluded, a state that nobody here knows")
            return
        if dispute.version < newest.version:
            self._problem(f"version {dispute.version} was concluded, but {each.alias} held {newest.version}")
        if all(state.version != dispute.version for state in _states(record)):
            self._problem(f"version {dispute.version} was concluded, which {each.alias} never signed")
        row = concluded[0].balances[0]
        funded = sum(paid for paid, _ in deposits.values()) >= sum(row)
        share = row[record.own_index] if funded else paid
        if received != share:
            self._problem(f"{each.alias} was entitled to {share} wei and received {received}")


def _states(record: ChannelRecord) -> list[State]:
    """Every state of the channel that its owner signed."""
    current: Transaction = record.current
    states = [] if current.state is None else [current.state]
    states += [] if record.staged is None else [record.staged.state]
    return [*states, *record.candidate_states]


async def play(seed: int, ground: Ground, company: Company, home: Path, ports: tuple[int, int]) -> Outcome:
    """The run of `seed`; anything that escapes is a problem of that run."""
    plan = Plan.drawn(seed)
    story = Story(plan, ground, company, home, ports)
    try:
        async with asyncio.timeout(240):
            return await story.play()
    except Exception as error:
        story.outcome.problems.append(f"{type(error).__name__}: {error}")
        return story.outcome

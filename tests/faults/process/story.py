"""One run: two people with a node each do something, a node is killed at a boundary, and everything must come right.

The plan comes from the seed alone. Nothing is done for the victim but starting its node and opening its session again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import traceback
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc.aio

from perun_core.values import ChannelID
from tests.faults.chain.ground import Ground
from tests.faults.process.boundaries import ACTOR, OTHER, TARGETS, Target
from tests.faults.process.launcher import ANY
from tests.faults.process.people import Died, Player
from tests.integration.clients import Channel, ClientError, Update

ETHER: Final = 10**18
CHALLENGE: Final = 120
"""Seconds of block time to refute."""
LOOK: Final = 0.03
"""Real seconds between two looks at something outside this process."""
PAUSE: Final = 0.2
"""Real seconds until a payment that failed is tried again."""
MOST_ATTEMPTS: Final = 50
"""Payments that may fail until the channel counts as unusable."""
CALM: Final = 0.4
"""Seconds without any effect on either side after which block time goes faster."""
NORMAL_PACE, FAST_PACE = 1, 20
"""Seconds of block time per block."""
LIMIT: Final = 60.0
"""Real seconds for everything to come right."""
NEWS: Final = 0.2
"""Real seconds in which a death becomes known."""
AGAIN: Final = 0.3
"""Share of the runs in which the victim dies once more while it recovers."""
BOTH: Final = 0.2
"""Share of the runs in which the other node is killed in the same moment."""
LOST: Final = 1
"""Code of a call that got no answer."""
NOT_THIS_ONE: Final = "refused before"
"""A refusal that holds as long as the version does: another payment has to be made."""
GAS_PRICE_FIELDS: Final = ("gasUsed", "effectiveGasPrice")


@dataclass(frozen=True)
class Plan:
    """What happens in a run."""

    seed: int
    target: Target
    count: int
    """At which visit to the place: the first, the second, …"""
    actor: int
    """Which of the two begins."""
    proposer: int
    """Which of the two proposes the channel, where that is not what the scene is about."""
    earlier: int
    """Payments before the scene."""
    both: bool
    """The other node is killed in the same moment."""
    again: tuple[str, str, int] | None
    """Where the victim dies once more when it is back: label, moment, count."""
    away: int
    """Blocks while it is away."""
    away_too: bool
    """In a dispute: the other one is not there when the channel is closed, instead of refusing."""
    last_payer: int
    closer: int

    @classmethod
    def drawn(cls, seed: int) -> Plan:
        """The plan of `seed`; any `len(TARGETS)` seeds in a row have every target."""
        target = TARGETS[seed % len(TARGETS)]
        rng = random.Random(seed)
        again = (rng.choice((ANY, ANY, "commit", "restore")), rng.choice(("before", "after")), rng.randint(1, 5))
        if again[0] == "restore":
            again = (*again[:2], 1)
        return cls(
            seed=seed,
            target=target,
            count=rng.randint(1, target.most),
            actor=rng.randrange(2),
            proposer=rng.randrange(2),
            earlier=rng.choice((0, 1, 2)),
            both=rng.random() < BOTH,
            again=again if rng.random() < AGAIN else None,
            away=rng.choice((0, 0, 1, 3, 8)),
            away_too=rng.random() < 0.3,
            last_payer=rng.randrange(2),
            closer=rng.randrange(2),
        )

    @property
    def victim(self) -> int:
        """Who is killed."""
        return self.actor if self.target.role == ACTOR else 1 - self.actor

    def __str__(self) -> str:
        text = f"{self.target}, time {self.count}; {('alice', 'bob')[self.victim]} dies"
        text += ", bob too" if self.both and self.victim == 0 else ", alice too" if self.both else ""
        if self.again is not None:
            text += f", again {self.again[1]} {self.again[0]} {self.again[2]}"
        return f"{text}, away for {self.away} blocks"


@dataclass
class Outcome:
    """What came of a run."""

    plan: Plan
    problems: list[str] = field(default_factory=list)
    hit: list[tuple[str, str, str]] = field(default_factory=list)
    """(label, moment, role) at which a process died."""
    reached: dict[tuple[str, str], int] = field(default_factory=dict)
    """(role, label) → how often it was reached in the scene up to the death."""
    seconds: float = 0.0
    ended: str = ""
    """How the channel ended: never opened, usable, settled by itself."""
    evidence: str = ""


class Stuck(Exception):
    """What should have come right did not."""


@dataclass
class Payment:
    """An attempt to pay."""

    payer: int
    acknowledged: bool = False
    refused: bool = False


class Story:
    """One run of two players on one chain."""

    def __init__(self, plan: Plan, ground: Ground, players: tuple[Player, Player]) -> None:
        self.plan = plan
        self.ground = ground
        self.players = players
        self.outcome = Outcome(plan)
        self.actor, self.other = players[plan.actor], players[1 - plan.actor]
        self.victim, self.survivor = players[plan.victim], players[1 - plan.victim]
        self.channel = ""
        self.payments: list[Payment] = []
        self.proposer = plan.proposer
        self.last_error = ClientError(0, {}, "")
        self._deposits = (ETHER, ETHER // 2)
        self._seen: dict[Player, int] = {}
        self._traced: dict[Player, int] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        self._lives: dict[Player, int] = {}
        """Which life of each the scene is about; what it had still to do in it is not done in the next one."""

    # ---- the whole story --------------------------------------------------------------------------------------------

    async def play(self) -> Outcome:
        """Tell it; what was wrong is in the outcome."""
        begun = time.monotonic()
        pacing: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(LIMIT):
                await self._begin()
                pacing = asyncio.ensure_future(self._pace())
                await self._scene_with_death()
                await self._recover()
                await self._end()
        except TimeoutError:
            self._problem(f"not finished within {LIMIT:.0f} s: " + self._where())
        except Stuck as error:
            self._problem(str(error))
        except (ClientError, Died, grpc.aio.AioRpcError) as error:
            self._problem(f"{type(error).__name__}: {error}")
        except Exception as error:
            self._problem(f"the campaign itself failed: {error!r}")
            self.outcome.evidence = traceback.format_exc()
        finally:
            for task in (*self._calls, *((pacing,) if pacing else ())):
                task.cancel()
            await asyncio.gather(*self._calls, *((pacing,) if pacing else ()), return_exceptions=True)
            self.ground.pace = NORMAL_PACE
        if not self.outcome.problems:
            await self._check()
        self._check_traces()
        if self.outcome.problems:
            self.outcome.evidence += self._evidence()
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _problem(self, text: str) -> None:
        self.outcome.problems.append(text)

    async def _begin(self) -> None:
        for each in self.players:
            each.channel, each.refuses, each.silent, each.told = "", False, False, self._on_answered
            each.asked.clear()
            each.trap.clear()
            self._traced[each] = each.trace.stat().st_size if each.trace.exists() else 0
            if not each.is_alive:
                await each.start()
        await asyncio.gather(*(each.join() for each in self.players if not each.session))
        self.first = await self.ground.height() + 1
        self.before = [await self.ground.balance(each.account) for each in self.players]
        self.held = await self.ground.balance(self.ground.contracts.eth)

    # ---- scenes -----------------------------------------------------------------------------------------------------

    async def _scene_with_death(self) -> None:
        plan, scene = self.plan, self.plan.target.scene
        if scene == "opening":
            self.proposer = plan.actor
        else:
            await self._open()
            for _ in range(plan.earlier):
                await self._pay(random.Random(plan.seed + len(self.payments)).randrange(2))
        starts = {each: each.trace.stat().st_size for each in self.players}
        self.victim.trap.set(plan.target.label, plan.target.moment, plan.count)
        self._lives = {each: each.lives for each in self.players}
        playing = asyncio.ensure_future(self._play_scene(scene))
        self._calls.add(playing)
        death = asyncio.ensure_future(self.victim.death())
        await asyncio.wait((playing, death), return_when=asyncio.FIRST_COMPLETED)
        # What is counted may come a moment after the answer to the client.
        died = await self._has_died(self.victim, starts[self.victim])
        death.cancel()
        for role, each in ((ACTOR, self.actor), (OTHER, self.other)):
            for entry in self._entries(each, starts[each]):
                if "at" in entry and entry["moment"] == plan.target.moment:
                    key = role, entry["at"]
                    self.outcome.reached[key] = self.outcome.reached.get(key, 0) + 1
        if died:
            await self._after_death(playing)
        else:
            await self._finished(playing)

    async def _play_scene(self, scene: str) -> None:
        actor, other = self.plan.actor, 1 - self.plan.actor
        match scene:
            case "opening":
                await self._open()
            case "paying":
                await self._pay(actor)
            case "being refused":
                self.other.refuses = True
                await self._pay(actor)
            case "crossing":
                await asyncio.gather(self._pay(actor), self._pay(other))
            case "interrupting":
                self.other.silent = True
                self.other.asked.clear()
                paying = self._beside(self._pay(actor))
                await self.other.asked.wait()
                await asyncio.gather(paying, self._close(other))
            case "finalising" | "settling":
                await self._close(actor)
                await self._idle_until_done()
            case "disputing":
                self.other.refuses = True
                if self.plan.away_too and self.plan.target.role == ACTOR:
                    await self._quietly(self._leave(self.other))
                await self._close(actor)
                await self._idle_until_done()
            case "leaving":
                paying = self._beside(self._pay(actor))
                await asyncio.sleep(random.Random(self.plan.seed).choice((0.0, 0.005, 0.01, 0.03)))
                await self._leave(self.actor)
                await paying

    def _beside(self, work: Coroutine[Any, Any, bool]) -> asyncio.Task[bool]:
        """A call that goes on beside the scene, at the longest until its end."""
        task = asyncio.ensure_future(work)
        self._calls.add(task)
        return task

    async def _idle_until_done(self) -> None:
        """Both channels come to their end by themselves."""
        while not all(self._is_archived(each) for each in self.players if each.session):  # noqa: ASYNC110
            await asyncio.sleep(LOOK)

    def _is_archived(self, each: Player) -> bool:
        return any(entry.get("archive") and entry.get("moment") == "before" for entry in self._run_entries(each))

    def _is_there(self, each: Player) -> bool:
        """Whether a client of this life can call."""
        return each.client is not None and bool(each.session) and each.lives == self._lives.get(each, each.lives)

    async def _leave(self, each: Player) -> None:
        if self._is_there(each) and each.client is not None:
            session = each.session
            await each.client.close_session(session, force=True)
            await each.leave()

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        with suppress(ClientError, grpc.aio.AioRpcError, Died):
            await work

    async def _open(self) -> None:
        proposer, responder = self.players[self.proposer], self.players[1 - self.proposer]
        assert proposer.client is not None
        mine, theirs = (f"{wei / ETHER:.1f}" for wei in self._deposits)
        opened = await proposer.client.open_channel(
            proposer.session, ("self", responder.alias), {"ETH": (mine, theirs)}, CHALLENGE
        )
        self.channel = opened.id
        await proposer.watch(opened.id)
        while not responder.channel:  # noqa: ASYNC110 - its own answer comes at its own time
            await asyncio.sleep(LOOK)

    async def _pay(self, payer: int, *, again: bool = False) -> bool:
        """Pay what identifies this payment: the k-th is 2^k wei. Whether it was acknowledged.

        `again`: the last one, which did not happen; a new one would be one more state signed for the same version.
        """
        each, payee = self.players[payer], self.players[1 - payer]
        if not again:
            self.payments.append(Payment(payer))
        payment = self.payments[-1]
        payment.refused = False
        wei = 2 ** (len(self.payments) - 1)
        amount = f"{wei // ETHER}.{wei % ETHER:018d}"
        if not self._is_there(each) or each.client is None:
            return False
        try:
            paid = await each.client.pay(each.session, self.channel, [("ETH", payee.alias, amount)])
        except ClientError as error:
            payment.refused = error.code == 102
            self.last_error = error
            return False
        except grpc.aio.AioRpcError as error:
            self.last_error = ClientError(LOST, {}, str(error.code()))
            return False
        payment.acknowledged = True
        self._look(each, paid)
        return True

    async def _close(self, closer: int) -> None:
        each = self.players[closer]
        if not self._is_there(each) or each.client is None:
            return
        with suppress(ClientError, grpc.aio.AioRpcError):
            self._look(each, await each.client.close_channel(each.session, self.channel))

    def _on_answered(self, each: Player, update: Update, result: Channel | ClientError) -> None:
        if isinstance(result, Channel) and not each.refuses:
            self._look(each, result)

    def _look(self, each: Player, channel: Channel) -> None:
        """What a client saw never goes back."""
        version = int(channel.version)
        if version < self._seen.get(each, 0):
            self._problem(f"{each.alias} was shown version {version} after {self._seen[each]}")
        self._seen[each] = max(version, self._seen.get(each, 0))

    # ---- death ------------------------------------------------------------------------------------------------------

    async def _after_death(self, playing: asyncio.Future[None]) -> None:
        plan, target = self.plan, self.plan.target
        self.outcome.hit.append((target.label, target.moment, target.role))
        self.victim.trap.clear()
        dead = [self.victim]
        if plan.both:
            dead.append(self.survivor)
            await self.survivor.kill()
        await self.victim.bury()
        await self.ground.blocks(plan.away)
        for each in self.players:
            each.refuses = each.silent = False
        for each in dead:
            await self._come_back(each, doomed=each is self.victim and plan.again is not None)
        await self._finished(playing)

    async def _come_back(self, each: Player, *, doomed: bool) -> None:
        with self.ground.standing_still():
            if doomed and await self._dies_again(each):
                await each.bury()
            elif doomed:
                return
            await each.start()
            await self._join(each)

    async def _dies_again(self, each: Player) -> bool:
        """Start its node with a trap; whether it died of it within a second of having opened the session."""
        assert self.plan.again is not None
        each.trap.set(*self.plan.again)
        born = each.trace.stat().st_size
        try:
            await each.start()
            await self._join(each)
            async with asyncio.timeout(1.0):
                await each.death()
        except Died:
            return True
        except TimeoutError:
            return await self._has_died(each, born)
        finally:
            each.trap.clear()
        return True

    async def _has_died(self, each: Player, since: int) -> bool:
        """Whether its trap was sprung after that place in its trace; disarms it and waits for the news of a death."""
        death = asyncio.ensure_future(each.death())
        await asyncio.wait((death,), timeout=NEWS)
        death.cancel()
        each.trap.clear()
        if any(entry.get("dies") for entry in self._entries(each, since)):
            await each.death()
        return not each.is_alive

    async def _join(self, each: Player) -> None:
        for channel in await each.join():
            self._look(each, channel)

    async def _finished(self, playing: asyncio.Future[None]) -> None:
        """The calls of the scene get their answers; a scene that waits for people or ends is given up."""
        await asyncio.wait((playing,), timeout=4.0)
        playing.cancel()
        (error,) = await asyncio.gather(playing, return_exceptions=True)
        self._lives = {}
        for each in self.players:
            each.refuses = each.silent = False
        if isinstance(error, Exception) and not isinstance(error, (ClientError, grpc.aio.AioRpcError, Died)):
            raise error

    # ---- everything comes right -------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        """Until both sides can pay again, or nothing is left to pay with."""
        for each in self.players:
            if not each.session:
                await self._join(each)
        done: set[Player] = set()
        off_chain, again, attempts = True, False, 0
        while True:
            lists = []
            for each in self.players:
                assert each.client is not None
                listed = await each.client.channels(each.session) if each not in done else ()
                for channel in listed:
                    self._look(each, channel)
                    self.channel = channel.id
                    await each.watch(channel.id)
                lists.append(listed)
            if all(lists) and off_chain:
                if await self._pay(self.plan.last_payer, again=again):
                    self.outcome.ended = "usable"
                    await self._agree()
                    await self._close(self.plan.closer)
                    return
                match self.last_error.code:
                    case 204:  # it is being settled
                        off_chain = False
                    case 101 | 102 | 401 if attempts < MOST_ATTEMPTS:
                        # Refused is refused; after a time-out nobody knows, so the next one is another payment.
                        told = self.last_error
                        again, attempts = told.code != 101 and NOT_THIS_ONE not in told.message, attempts + 1
                        await asyncio.sleep(PAUSE)
                    case _:
                        raise Stuck(f"the channel cannot be used: {self.last_error}")
            for each, listed in zip(self.players, lists, strict=True):
                if each not in done and not (listed and off_chain) and await self._try_to_end(each):
                    done.add(each)
            if len(done) == 2:
                self.outcome.ended = "settled" if self.channel else "never opened"
                return
            await asyncio.sleep(LOOK)

    async def _agree(self) -> None:
        """Both show the same state at once: the last payment was acknowledged to its payer, the payee had it before."""
        states = []
        for each in self.players:
            assert each.client is not None
            channel = await each.client.info(each.session, self.channel)
            self._look(each, channel)
            states.append((channel.version, channel.balances))
        if states[0] != states[1]:
            self._problem(f"the two sides show different states: {states}")

    async def _try_to_end(self, each: Player) -> bool:
        """Close the session without force, which succeeds when nothing is left to do."""
        assert each.client is not None
        try:
            await each.client.close_session(each.session, force=False)
        except ClientError as error:
            if error.code == 204:
                return False
            raise
        await each.leave()
        return True

    async def _end(self) -> None:
        waiting = [each for each in self.players if each.session]
        while waiting:
            waiting = [each for each in waiting if not await self._try_to_end(each)]
            await asyncio.sleep(LOOK)

    async def _pace(self) -> None:
        """Block time hurries while everybody only waits for it."""
        sizes: tuple[int, ...] = ()
        since = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            now = tuple(each.trace.stat().st_size for each in self.players)
            if now != sizes:
                sizes, since = now, time.monotonic()
            calm = time.monotonic() - since > CALM and all(each.is_alive for each in self.players)
            self.ground.pace = FAST_PACE if calm and await self._may_hurry() else NORMAL_PACE

    async def _may_hurry(self) -> bool:
        """No outdated state is registered, against which somebody has to act in time."""
        channels = {entry["channel"] for each in self.players for entry in self._run_entries(each) if "phase" in entry}
        newest = max(
            (entry["version"] for each in self.players for entry in self._run_entries(each) if "phase" in entry),
            default=0,
        )
        for channel in channels:
            dispute = await self.ground.dispute(ChannelID.from_hex(channel))
            if dispute.registered and not dispute.concluded and dispute.version < newest:
                return False
        return True

    # ---- what must be true ------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        """Money: every wei is where the last agreed state and the gas say (the k-th payment moves 2^k wei)."""
        fees = [0, 0]
        numbers = {each.account.lower(): number for number, each in enumerate(self.players)}
        for receipt in await self.ground.receipts(self.first):
            number = numbers.get(receipt["from"].lower())
            if number is not None:
                used, price = (int(receipt[name], 16) for name in GAS_PRICE_FIELDS)
                fees[number] += used * price
        after = [await self.ground.balance(each.account) for each in self.players]
        gained = [end - begin + fee for end, begin, fee in zip(after, self.before, fees, strict=True)]
        if sum(gained):
            self._problem(f"{-sum(gained)} wei are lost: {gained}")
        held = await self.ground.balance(self.ground.contracts.eth)
        if held != self.held:
            self._problem(f"the holder keeps {held - self.held} wei")
        happened = self._payments_in(gained[0])
        if happened is None:
            self._problem(f"no set of payments explains that alice gained {gained[0]} wei")
            return
        for number, (payment, did) in enumerate(zip(self.payments, happened, strict=True)):
            if payment.acknowledged and not did:
                self._problem(f"payment {number} was acknowledged and did not happen")
            if payment.refused and did:
                self._problem(f"payment {number} was refused and happened")

    def _payments_in(self, gained: int) -> list[bool] | None:
        """Which attempts make up what player 0 gained."""
        signs = [-1 if payment.payer == 0 else 1 for payment in self.payments]
        # With every payment of player 0 counted as absent instead of present the sum is a plain binary number.
        shifted = gained + sum(2**k for k, sign in enumerate(signs) if sign < 0)
        if not 0 <= shifted < 2 ** len(signs):
            return None
        bits = [bool(shifted >> k & 1) for k in range(len(signs))]
        return [bit if sign > 0 else not bit for bit, sign in zip(bits, signs, strict=True)]

    def _check_traces(self) -> None:
        """Versions never go back, and no version is signed twice except by rule."""
        for each in self.players:
            newest: dict[str, int] = {}
            signed: dict[tuple[str, int], list[str]] = {}
            refused: set[tuple[str, int]] = set()
            for entry in self._run_entries(each):
                channel = entry.get("channel", "")
                if entry.get("at") == "Persist" and entry["moment"] == "after":
                    if entry["version"] < newest.get(channel, -1):
                        self._problem(f"{each.alias} stored version {entry['version']} after {newest[channel]}")
                    newest[channel] = max(newest.get(channel, -1), entry["version"])
                elif entry.get("at") == "RequestSignature" and entry["moment"] == "before":
                    key = channel, entry["version"]
                    others = [digest for digest in signed.setdefault(key, []) if digest != entry["digest"]]
                    if others and not (set(others) <= set(entry["candidates"]) and key in refused and key[1]):
                        self._problem(f"{each.alias} signed another state of version {key[1]} against the rule")
                    signed[key].append(entry["digest"])
                elif entry.get("got") == "UpdateRej":
                    refused.add((channel, entry["version"]))

    # ---- traces -----------------------------------------------------------------------------------------------------

    def _run_entries(self, each: Player) -> list[dict[str, Any]]:
        return self._entries(each, self._traced.get(each, 0))

    @staticmethod
    def _entries(each: Player, start: int) -> list[dict[str, Any]]:
        if not each.trace.exists():
            return []
        with each.trace.open("rb") as trace:
            trace.seek(start)
            data = trace.read()
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]

    def _where(self) -> str:
        last = []
        for each in self.players:
            phases = [entry["phase"] for entry in self._run_entries(each) if "phase" in entry]
            last.append(f"{each.alias} in phase {phases[-1] if phases else 'none'}")
        return ", ".join(last) + (f"; last refusal of a payment: {self.last_error}" if self.last_error.code else "")

    def _evidence(self) -> str:
        parts = []
        for each in self.players:
            lines = [json.dumps(entry) for entry in self._run_entries(each)]
            parts.append(f"--- trace of {each.alias}\n" + "\n".join(lines[:400]))
            if each.log.exists():
                parts.append(f"--- log of {each.alias}\n" + each.log.read_text(errors="replace")[-8000:])
        return "\n".join(parts)


async def play(seed: int, ground: Ground, players: tuple[Player, Player]) -> Outcome:
    """Play the run of `seed`."""
    return await Story(Plan.drawn(seed), ground, players).play()

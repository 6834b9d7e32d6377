"""Two channel machines over a pipe that loses, reorders and repeats, with crashes, time-outs and two impatient users.

A side may crash before any effect, and one of them may come back from an old copy of its disk, noticed or not.

Whatever happens, there is at most one fully signed state per version in the whole history, money is neither made nor
lost, versions never go back but with a disk, nothing is signed while a disk is in doubt, what a user was told to have
succeeded is in the end part of what both agreed on, and once the pipe works again the channel heals. Every rule row,
phase and effect kind an off-chain life can reach must have been reached by the end of the campaign, or it fails.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from perun_core.channel import Phase, State
from perun_core.errors import PerunError, StoreFenced
from perun_core.protocol.channel import NEXT
from perun_core.protocol.effects import Effect, Timer
from perun_core.protocol.events import Payment, PeerConnected, UserClosed, UserPaid
from perun_core.testing.conversation import Disk, Pair, Side

CAMPAIGN = int(os.environ.get("PERUN_CAMPAIGN", "150"))
"""Random lives per run; raise it for a long search."""

SIDES = st.sampled_from((0, 1))


class World:
    """A pair with a hostile pipe and a driver that picks what happens next."""

    def __init__(self) -> None:
        self.pair = Pair(((100, 200), (5, 0)))
        self.pipe: list[tuple[int, object]] = []
        self.request = 0
        self.versions = [0, 0]
        self.reached: set[tuple[Phase, str]] = set()
        self.effects: Counter[type[Effect]] = Counter()
        self.steps = 0
        self.held: dict[int, State] = {}
        """Every fully signed state that either side ever held, by version."""
        self.acknowledged = 0
        """The highest version at which a user was told of success."""
        self.backups: list[tuple[Disk, int]] = []
        self.rolled_back: int | None = None
        """Only one side may lose its memory: two that forget the same cannot help each other."""

    def side(self, index: int) -> Side:
        return self.pair.sides[index]

    def settle(self, index: int) -> None:
        """Collect what the side sent; bring it back when it crashed."""
        side = self.side(index)
        self.pipe += [(1 - index, message) for message in side.outbox]
        side.outbox.clear()
        self.effects.update(type(effect) for effect in side.performed)
        side.performed.clear()
        if any(error is None for error in side.replies.values()):
            self.acknowledged = max(self.acknowledged, side.machine.state.version)
        side.replies.clear()
        self.note(index)
        if side.crashed:
            assert not isinstance(side.failure, StoreFenced), "asked for a signature while the disk was in doubt"
            self.pair.sides[index] = side.restart()
            self.settle(index)

    def note(self, index: int) -> None:
        """What is on the disk of a side is what it holds."""
        current = self.side(index).stored().current
        state = current.state
        assert state is not None
        assert self.held.setdefault(state.version, state) == state, "two fully signed states of one version"

    def act(self, index: int, event: object) -> None:
        side = self.side(index)
        self.reached.add((side.machine.phase, type(event).__name__))
        with contextlib.suppress(PerunError):  # the event has no place in this phase; nothing happened
            side.handle(event)  # type: ignore[arg-type]
        self.settle(index)

    def pay(self, index: int, asset: int, amount: int) -> None:
        self.request += 1
        self.act(index, UserPaid(self.request, (Payment(asset, index, amount, str(amount)),)))

    def deliver(self, position: int, *, keep: bool) -> None:
        if not self.pipe:
            return
        position %= len(self.pipe)
        index, message = self.pipe[position] if keep else self.pipe.pop(position)
        side = self.side(index)
        self.reached.add((side.machine.phase, type(message).__name__))
        side.receive(message)  # type: ignore[arg-type]
        self.settle(index)

    def lose(self, position: int) -> None:
        if self.pipe:
            self.pipe.pop(position % len(self.pipe))

    def answer(self, index: int, *, accept: bool) -> None:
        self.side(index).answer(accept=accept)
        self.settle(index)

    def fire(self, index: int, timer: Timer) -> None:
        self.side(index).fire(timer)
        self.settle(index)

    def crash(self, index: int) -> None:
        self.pair.sides[index] = self.side(index).restart()
        self.settle(index)

    def crash_within(self, index: int, effects: int) -> None:
        """The process dies before the effect after so many more."""
        side, left = self.side(index), effects

        def now(effect: Effect) -> bool:
            nonlocal left
            left -= 1
            return left < 0

        side.crash_before = now

    def back_up(self, index: int) -> None:
        if self.rolled_back in (None, index):
            self.rolled_back = index
            self.backups.append((self.side(index).disk.copy(), self.side(index).machine.state.version))
            del self.backups[:-3]

    def put_back(self, which: int, *, noticed: bool) -> None:
        """An old copy of the disk is used; what was on its way to or from the lost process is lost with it."""
        if self.rolled_back is None or not self.backups:
            return
        index = self.rolled_back
        disk, version = self.backups[which % len(self.backups)]
        copy = disk.copy()
        copy.doubt = copy.doubt or ("an older copy" if noticed else "")
        old = Side(index, self.side(index).machine.record, disk=copy)
        old.reachable = self.side(index).reachable
        self.pipe.clear()
        self.versions[index] = version
        # What nobody but the lost disk held exists nowhere any more.
        known = self.side(1 - index).machine.state.version
        self.held = {number: state for number, state in self.held.items() if number <= known}
        self.acknowledged = min(self.acknowledged, known)
        self.pair.sides[index] = old.restart()
        self.settle(index)

    def check(self) -> None:
        self.steps += 1
        self.pair.check()
        for index, side in enumerate(self.pair.sides):
            version = side.machine.state.version
            assert version >= self.versions[index], "a version went back"
            self.versions[index] = version
            assert side.machine.record.current.fully_signed

    def heal(self) -> None:
        """The pipe works, both users are quick: the channel ends agreed and idle, or settling."""
        for _ in range(12):
            for index in (0, 1):
                for timer in (Timer.RESPONSE, Timer.HEAL):
                    self.fire(index, timer)
                self.act(index, PeerConnected())
                self.fire(index, Timer.SYNC)
                self.answer(index, accept=True)
            while self.pipe:
                self.deliver(0, keep=False)
                for index in (0, 1):
                    self.answer(index, accept=True)
        self.check()
        phases = {side.machine.phase for side in self.pair.sides}
        assert not any(side.machine.is_recovering for side in self.pair.sides), "recovery mode does not end"
        if phases == {Phase.ACTING}:
            a, b = (side.machine.state for side in self.pair.sides)
            assert abs(a.version - b.version) <= 1
            assert max(a.version, b.version) >= self.acknowledged, "an acknowledged payment is gone"
        assert not phases & {Phase.SIGNING, Phase.ACCEPTING, Phase.DECIDING}
        assert Phase.UNKNOWN not in phases, "an outcome stayed unknown although the pipe works"


class TwoMachines(RuleBasedStateMachine):
    """Hypothesis chooses and shrinks the schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize()
    def fresh(self) -> None:
        self.world = World()

    @rule(index=SIDES, asset=SIDES, amount=st.integers(0, 120))
    def pays(self, index: int, asset: int, amount: int) -> None:
        self.world.pay(index, asset, amount)

    @rule(position=st.integers(0, 5), keep=st.booleans())
    def arrives(self, position: int, keep: bool) -> None:
        self.world.deliver(position, keep=keep)

    @rule(position=st.integers(0, 5))
    def is_lost(self, position: int) -> None:
        self.world.lose(position)

    @rule(index=SIDES, accept=st.booleans())
    def decides(self, index: int, accept: bool) -> None:
        self.world.answer(index, accept=accept)

    @rule(index=SIDES, timer=st.sampled_from((Timer.RESPONSE, Timer.HEAL, Timer.EXPIRY, Timer.SYNC)))
    def time_passes(self, index: int, timer: Timer) -> None:
        self.world.fire(index, timer)

    @rule(index=SIDES)
    def crashes(self, index: int) -> None:
        self.world.crash(index)

    @rule(index=SIDES, reachable=st.booleans())
    def network(self, index: int, reachable: bool) -> None:
        self.world.side(index).reachable = reachable

    @rule(index=SIDES, effects=st.integers(0, 6))
    def dies_within_the_next_effects(self, index: int, effects: int) -> None:
        self.world.crash_within(index, effects)

    @rule(index=SIDES)
    def connects(self, index: int) -> None:
        self.world.act(index, PeerConnected())

    @rule(index=SIDES)
    def is_backed_up(self, index: int) -> None:
        self.world.back_up(index)

    @rule(which=st.integers(0, 2), noticed=st.booleans())
    def is_put_back(self, which: int, noticed: bool) -> None:
        self.world.put_back(which, noticed=noticed)

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        for side in self.world.pair.sides:
            side.reachable = True
            side.crash_before = lambda effect: False
        self.world.heal()


TestTwoMachines = TwoMachines.TestCase
TestTwoMachines.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def test_a_long_random_campaign_reaches_every_off_chain_phase_and_effect() -> None:
    """A seeded campaign: thousands of steps, invariants after each, and nothing left untouched."""
    rng = random.Random(int(os.environ.get("SEED", "20231104")))
    reached: set[tuple[Phase, str]] = set()
    effects: Counter[type[Effect]] = Counter()
    steps = rollbacks = 0
    for _ in range(CAMPAIGN):
        world = World()
        closing, forgetting = rng.random() < 0.2, rng.random() < 0.3
        for _ in range(60):
            index = rng.randrange(2)
            choice = rng.random()
            if choice < 0.22:
                world.pay(index, rng.randrange(2), rng.randrange(40))
            elif choice < 0.62:
                world.deliver(rng.randrange(4), keep=rng.random() < 0.1)
            elif choice < 0.66:
                world.lose(rng.randrange(4))
            elif choice < 0.84:
                world.answer(index, accept=rng.random() < 0.75)
            elif choice < 0.92:
                world.fire(index, rng.choice((Timer.RESPONSE, Timer.HEAL, Timer.EXPIRY, Timer.SYNC)))
            elif choice < 0.94:
                world.side(index).reachable = not world.side(index).reachable
            elif choice < 0.95:
                world.act(index, PeerConnected())
            elif choice < 0.97 and forgetting:
                if rng.random() < 0.6 or not world.backups:
                    world.back_up(index)
                else:
                    world.put_back(rng.randrange(3), noticed=rng.random() < 0.5)
            elif choice < 0.98:
                world.crash_within(index, rng.randrange(8))
            elif choice < 0.99 or not closing:
                world.crash(index)
            else:
                world.request += 1
                world.act(index, UserClosed(world.request))
            world.check()
        for side in world.pair.sides:
            side.reachable = True
            side.crash_before = lambda effect: False
        world.heal()
        reached |= world.reached
        effects += world.effects
        steps += world.steps
        rollbacks += bool(world.backups)
    assert steps >= 60 * CAMPAIGN and rollbacks
    print(f"{CAMPAIGN} lives, {steps} steps, {rollbacks} with old copies")
    off_chain = {Phase.ACTING, Phase.SIGNING, Phase.DECIDING, Phase.UNKNOWN}
    assert off_chain <= {phase for phase, _ in reached}
    assert {"Update", "UpdateAcc", "UpdateRej", "Sync", "UserPaid", "UserClosed"} <= {name for _, name in reached}
    untouched = {"FundChannel"}
    wanted = {
        "Persist", "RequestSignature", "Connect", "Send", "SetTimer", "CancelTimer", "SubmitTx", "Publish", "Notify",
        "Reply", "Fail",
    } - untouched  # fmt: skip
    assert wanted <= {kind.__name__ for kind in effects}
    assert set(NEXT) >= off_chain

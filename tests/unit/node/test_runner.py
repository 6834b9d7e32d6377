"""Performing effects: in order, and contained when one fails (ARCHITECTURE: decide, persist, send)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import get_args

import pytest

from perun_core.channel import Transaction
from perun_core.errors import (
    PeerUnreachable,
    ResourceNotFound,
    RuleViolated,
    SigningFailed,
    StoreFull,
    UnknownInternal,
)
from perun_core.node.runner import INBOX_SIZE, Requests, Runner
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import (
    AwaitConcludable,
    CancelTimer,
    ChannelClosed,
    Connect,
    Effect,
    Effects,
    Fail,
    Notification,
    Notify,
    Persist,
    Publish,
    Reply,
    RequestSignature,
    Send,
    SetTimer,
    SubmitTx,
    Timer,
)
from perun_core.protocol.events import PeerAway, PeerReached, Signed, TimerFired
from perun_core.protocol.records import ChannelRecord, Signing
from perun_core.testing.conversation import ADDRESSES, Pair
from perun_core.values import Address, Bytes32, Sig
from perun_core.wire.messages import Message, UpdateRej

RECORD = Pair().alice.machine.record
STATE = RECORD.current.state
assert STATE is not None
DIGEST = PROFILE.state_hash(STATE)
SIG = Sig(bytes(65))
MESSAGE = UpdateRej(RECORD.channel_id, 1, "no")
TX = Transaction(STATE, (SIG, SIG))
MARKING = Persist(RECORD, signing=Signing(0, DIGEST))


class World:
    """The outside and the hooks of a conversation, noting what happens; `failing` names what fails."""

    def __init__(self) -> None:
        self.notes: list[object] = []
        self.failing: dict[str, Exception] = {}
        self.requests = Requests()

    def note(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]
        self.notes.append(name)

    async def persist(self, effect: Persist) -> None:
        self.note("persist")

    async def sign(self, state_hash: Bytes32) -> Sig:
        self.note("sign")
        return SIG

    async def connect(self, peer: Address) -> None:
        self.note("connect")

    async def send(self, peer: Address, message: Message) -> None:
        self.note("send")


class Conversation(Runner[object]):
    """Its machine is a table: event → effects, or a function that gives them."""

    def __init__(self, world: World, script: dict[object, Effects | Callable[[], Effects]]) -> None:
        super().__init__("conversation", ADDRESSES[1], world, world.requests)
        self.world = world
        self.script = script
        self.events: list[object] = []
        self.violations: list[str] = []
        self.queued: list[Effects] = []
        self.problem = ""
        self.settled = asyncio.Event()
        self.happened = asyncio.Event()

    async def seen(self, condition: Callable[[], bool]) -> None:
        """Until the events that were handled fulfil `condition`."""
        async with asyncio.timeout(5):
            while not condition():
                self.happened.clear()
                await self.happened.wait()

    def handle(self, event: object) -> Effects:
        self.events.append(event)
        self.happened.set()
        effects = self.script.get(event, ())
        return effects() if callable(effects) else effects

    def follow_up(self) -> Effects | None:
        return self.queued.pop(0) if self.queued else None

    def on_persisted(self, record: ChannelRecord) -> None:
        self.world.note("persisted")

    def on_notify(self, notification: Notification) -> None:
        self.world.note("notify")

    def on_publish(self, effect: Publish) -> None:
        self.world.note("publish")

    def on_submit(self, effect: SubmitTx) -> None:
        self.world.note("submit")

    def answer(self) -> object:
        return "answer"

    def on_settled(self) -> None:
        self.settled.set()

    def on_violation(self, error: RuleViolated) -> None:
        self.violations.append(error.rule)
        self.settled.set()

    def on_broken(self, problem: str) -> None:
        self.problem = problem
        self.settled.set()

    async def after(self, event: object) -> None:
        """`event` and everything it brings back is handled."""
        self.settled.clear()
        self.post(event)
        await asyncio.wait_for(self.settled.wait(), 5)


@asynccontextmanager
async def conversation(
    world: World, script: dict[object, Effects | Callable[[], Effects]]
) -> AsyncIterator[Conversation]:
    talk = Conversation(world, script)
    talk.start()
    try:
        yield talk
    finally:
        await talk.stop()


EFFECTS: dict[type, tuple[Effect, str]] = {
    Persist: (MARKING, "persist"),
    RequestSignature: (RequestSignature(STATE, DIGEST), "sign"),
    Connect: (Connect(), "connect"),
    Send: (Send(MESSAGE), "send"),
    SetTimer: (SetTimer(Timer.HEAL, 60), ""),
    CancelTimer: (CancelTimer(Timer.HEAL), ""),
    SubmitTx: (SubmitTx(AwaitConcludable(0)), "submit"),
    Publish: (Publish(TX), "publish"),
    Notify: (Notify(ChannelClosed()), "notify"),
    Reply: (Reply(0), ""),
    Fail: (Fail(0, UnknownInternal("no")), ""),
}
"""One of each kind, and the name under which the world notes it."""


async def test_every_kind_of_effect_is_performed_in_order_and_what_it_brings_comes_after_all_of_them() -> None:
    assert set(EFFECTS) == set(get_args(Effect))
    world = World()
    async with conversation(world, {"go": tuple(effect for effect, _ in EFFECTS.values())}) as talk:
        await talk.after("go")
    assert world.notes == ["persist", "persisted", "sign", "connect", "send", "submit", "publish", "notify"]
    assert talk.events == ["go", Signed(SIG), PeerReached()]


@pytest.mark.parametrize("kind", [Persist, RequestSignature, SubmitTx, Publish, Notify], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("error", [StoreFull("disk full"), SigningFailed("locked"), ZeroDivisionError("secret 42")])
async def test_nothing_follows_a_failed_effect_and_who_waits_is_answered(kind: type, error: Exception) -> None:
    world = World()
    effect, name = EFFECTS[kind]
    world.failing[name] = error
    async with conversation(world, {"go": (effect, Send(MESSAGE), Publish(TX))}) as talk:
        _, waiting = world.requests.new(talk)
        _, elsewhere = world.requests.new(object())
        await talk.after("go")
        assert talk.broken and talk.problem
        assert "send" not in world.notes and "persisted" not in world.notes
        with pytest.raises(UnknownInternal, match="stopped") as told:
            await waiting
        assert "secret" not in str(told.value), "a bug's details are for the log"
        assert not elsewhere.done(), "another conversation's request"
        talk.post("go")
        await asyncio.sleep(0)
        assert talk.events == ["go"], "a broken conversation goes on"


@pytest.mark.parametrize("kind", [Send, Connect], ids=lambda kind: kind.__name__)
async def test_a_peer_that_cannot_be_reached_is_an_event_not_the_end(kind: type) -> None:
    world = World()
    effect, name = EFFECTS[kind]
    world.failing[name] = PeerUnreachable("refused")
    async with conversation(world, {"go": (effect, Publish(TX)), PeerAway("refused"): (Persist(RECORD),)}) as talk:
        await talk.after("go")
        assert talk.events == ["go", PeerAway("refused")] and not talk.broken
        assert world.notes == ["publish", "persist", "persisted"]


@pytest.mark.parametrize("kind", [Send, Connect], ids=lambda kind: kind.__name__)
async def test_a_transport_with_a_bug_stops_the_conversation_only(kind: type) -> None:
    world = World()
    effect, name = EFFECTS[kind]
    world.failing[name] = KeyError("oops")
    async with conversation(world, {"go": (effect,)}) as talk, conversation(world, {"go": (Publish(TX),)}) as other:
        await talk.after("go")
        assert talk.broken
        await other.after("go")
        assert not other.broken and world.notes == ["publish"]


async def test_a_violated_rule_is_reported_and_the_conversation_goes_on() -> None:
    def refuse() -> Effects:
        raise RuleViolated("U-5", "no")

    world = World()
    async with conversation(world, {"bad": refuse, "good": (Publish(TX),)}) as talk:
        await talk.after("bad")
        await talk.after("good")
        assert talk.violations == ["U-5"] and world.notes == ["publish"] and not talk.broken


async def test_a_machine_with_a_bug_is_stopped_with_nothing_sent() -> None:
    def bug() -> Effects:
        raise AssertionError("led to a phase the table does not allow")

    world = World()
    async with conversation(world, {"bad": bug}) as talk:
        _, waiting = world.requests.new(talk)
        await talk.after("bad")
        assert talk.broken and world.notes == []
        with pytest.raises(UnknownInternal, match="internal error"):
            await waiting


@pytest.mark.parametrize(
    "before",
    [
        (),
        (Persist(RECORD),),
        (MARKING, Persist(RECORD)),
        (Persist(RECORD, signing=Signing(0, Bytes32(bytes(32)))),),
        (MARKING, RequestSignature(STATE, DIGEST)),
    ],
)
async def test_nothing_is_signed_whose_mark_was_not_made_durable_just_before(before: Effects) -> None:
    """The loop does not rely on the machine for it: the guard is asked for every single signature (7.3.5)."""
    world = World()
    async with conversation(world, {"go": (*before, RequestSignature(STATE, DIGEST), Send(MESSAGE))}) as talk:
        await talk.after("go")
        assert talk.broken and "send" not in world.notes
        assert world.notes.count("sign") == sum(isinstance(effect, RequestSignature) for effect in before)


async def test_a_failed_persist_in_the_middle_keeps_the_signature_inside() -> None:
    """Mark, sign, book, send: when the booking fails, nothing that was signed leaves."""
    world = World()
    script: dict[object, Effects | Callable[[], Effects]] = {
        "go": (MARKING, RequestSignature(STATE, DIGEST)),
        Signed(SIG): (Persist(RECORD), Send(MESSAGE), Reply(1)),
    }
    async with conversation(world, script) as talk:
        number, waiting = world.requests.new(talk)
        assert number == 1
        original = world.persist

        async def second_fails(effect: Persist) -> None:
            if "sign" in world.notes:
                raise StoreFull("disk full")
            await original(effect)

        world.persist = second_fails  # type: ignore[method-assign]
        await talk.after("go")
        assert world.notes == ["persist", "persisted", "sign"] and talk.broken
        with pytest.raises(UnknownInternal, match="disk full"):
            await waiting


async def test_requests_are_answered_once_with_the_value_or_the_error() -> None:
    world = World()
    async with conversation(world, {}) as talk:
        first, good = world.requests.new(talk)
        second, bad = world.requests.new(talk)
        talk.script = {"go": (Reply(first), Reply(first), Fail(second, ResourceNotFound("update", "1")), Reply(second))}
        await talk.after("go")
        assert await good == "answer"
        with pytest.raises(ResourceNotFound):
            await bad


async def test_a_request_that_was_handed_over_belongs_to_the_other_conversation() -> None:
    requests = Requests()
    opening, channel = object(), object()
    number, waiting = requests.new(opening)
    requests.hand_over(number, channel)
    requests.fail_all_of(opening, UnknownInternal("the opening ended"))
    assert not waiting.done()
    requests.reply(number, "open")
    assert await waiting == "open"
    requests.hand_over(number, opening)  # answered: nothing to hand over


async def test_an_answer_to_somebody_who_went_away_is_no_error() -> None:
    requests = Requests()
    number, waiting = requests.new(requests)
    waiting.cancel()
    requests.reply(number, "late")
    number, waiting = requests.new(requests)
    waiting.cancel()
    requests.fail(number, UnknownInternal("late"))


async def test_queued_work_follows_when_everything_else_is_done() -> None:
    world = World()
    async with conversation(world, {"go": (Connect(),), PeerReached(): (Publish(TX),)}) as talk:
        talk.queued = [(Notify(ChannelClosed()),)]
        await talk.after("go")
        assert world.notes == ["connect", "publish", "notify"]


async def test_timers_fire_once_are_replaced_and_forgotten() -> None:
    world = World()
    fired = TimerFired(Timer.HEAL)
    script: dict[object, Effects | Callable[[], Effects]] = {
        "twice": (SetTimer(Timer.HEAL, 60), SetTimer(Timer.HEAL, 0)),
        "never": (SetTimer(Timer.EXPIRY, 0), CancelTimer(Timer.EXPIRY), SetTimer(Timer.HEAL, 0)),
        fired: (Publish(TX),),
    }
    async with conversation(world, script) as talk:
        for trigger in ("twice", "never"):
            talk.post(trigger)
            await talk.seen(lambda: talk.events[-1:] == [fired])
            talk.events.append(None)
        assert talk.events == ["twice", fired, None, "never", fired, None]


async def test_a_stopped_conversation_s_timers_do_not_fire() -> None:
    world = World()
    async with conversation(world, {"go": (SetTimer(Timer.HEAL, 0.001),)}) as talk:
        await talk.after("go")
    events = list(talk.events)
    await asyncio.sleep(0.01)  # longer than the timer that must be gone
    assert talk.events == events


async def test_a_crowded_conversation_makes_the_peer_wait_and_loses_nothing_of_ours() -> None:
    world = World()
    talk = Conversation(world, {})
    for number in range(INBOX_SIZE):
        talk.post(number)
    assert talk.is_crowded
    offered = asyncio.ensure_future(talk.offer("peer"))
    talk.post("own")
    await asyncio.sleep(0)
    assert not offered.done(), "a peer that sends faster than we work is slowed down"
    talk.start()
    await talk.seen(lambda: len(talk.events) == INBOX_SIZE + 2)
    assert talk.events[:INBOX_SIZE] == list(range(INBOX_SIZE)) and {"peer", "own"} == set(talk.events[INBOX_SIZE:])
    await offered
    await talk.stop()


async def test_a_broken_conversation_takes_no_more_and_keeps_nobody_waiting() -> None:
    """A peer's connection that waits for room in its inbox is let go; what is posted later is dropped."""
    world = World()
    world.failing["persist"] = StoreFull("disk full")
    talk = Conversation(world, {"go": (Persist(RECORD),)})
    talk.post("go")
    for number in range(INBOX_SIZE - 1):
        talk.post(number)
    crowd = [asyncio.ensure_future(talk.offer(f"peer {number}")) for number in range(3)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in crowd)
    talk.start()
    await asyncio.wait_for(asyncio.gather(*crowd), 5)
    for number in range(2 * INBOX_SIZE):
        talk.post(number)
    await asyncio.wait_for(talk.offer("later"), 5)
    assert talk.events == ["go"] and not talk.is_crowded
    await talk.stop()


async def test_stopping_while_an_effect_waits_ends_at_once() -> None:
    world = World()
    begun = asyncio.Event()

    async def never(effect: Persist) -> None:
        begun.set()
        await asyncio.Event().wait()

    world.persist = never  # type: ignore[method-assign]
    talk = Conversation(world, {"go": (Persist(RECORD), Send(MESSAGE))})
    talk.start()
    talk.post("go")
    await begun.wait()
    await asyncio.wait_for(talk.stop(), 5)
    assert world.notes == []

"""A channel of an open session: the machine's runner, and the channel as its user sees it (API.md 2.5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, cast

from msgspec import Struct

from ..amounts import format_amount, parse_amount
from ..channel import Phase, State
from ..errors import (
    ApiError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExists,
    ResourceNotFound,
    RuleViolated,
    UnknownInternal,
    UserResponseTimedOut,
)
from ..ports.api import BalInfo, PayChInfo, PaymentItem, UpdateNotification, UpdateType
from ..ports.idprovider import OWN_ALIAS
from ..ports.policy import Decision, Policy, UpdateView, Verdict
from ..protocol.base import CLOSED_CHANNEL
from ..protocol.channel import Channel
from ..protocol.effects import (
    AskUser,
    AwaitConcludable,
    ChannelClosed,
    Effects,
    Notification,
    Publish,
    QuestionWithdrawn,
    SubmitTx,
)
from ..protocol.events import Event, Payment, UserAccepted, UserClosed, UserPaid, UserRejected
from ..protocol.records import ChannelRecord
from .chainsteps import StepContext, run_step
from .currencies import Currency
from .runner import Outside, Requests, Runner
from .subscriptions import Feed, Reader

log = logging.getLogger(__name__)

REJECTED_BY_USER: Final = "rejected by user"
TOMBSTONES: Final = 64
"""Questions whose expiry passed and that may still be answered with "too late"."""
POLICY_TIMEOUT: Final = 2.0
"""Seconds a policy gets before the user is asked."""

OFF_CHAIN: Final = frozenset((Phase.ACTING, Phase.SIGNING, Phase.DECIDING, Phase.ACCEPTING, Phase.UNKNOWN))
"""Phases in which a user calls the channel open."""


class Question(Struct, frozen=True):
    """An update our user was asked about. `expiry` in Unix seconds."""

    version: int
    expiry: int


class ChannelView(Struct, frozen=True):
    """How a channel is shown to its user."""

    peer_alias: str
    own_index: int
    currencies: tuple[Currency, ...]

    @property
    def parts(self) -> tuple[str, str]:
        """Aliases, the channel's proposer first (API.md 3.2)."""
        own_first = self.own_index == 0
        return (OWN_ALIAS, self.peer_alias) if own_first else (self.peer_alias, OWN_ALIAS)

    def balances(self, state: State) -> BalInfo:
        """Balances of `state` with exact decimal amounts."""
        rows = tuple(
            tuple(format_amount(value, currency.decimals) for value in row)
            for currency, row in zip(self.currencies, state.balances, strict=True)
        )
        return BalInfo(tuple(currency.symbol for currency in self.currencies), self.parts, rows)

    def info(self, state: State) -> PayChInfo:
        """The channel at `state`."""
        return PayChInfo(state.id.hex(), self.balances(state), str(state.version))


class LiveChannel(Runner[Event]):
    """One channel. The calls of `ports.api.ChannelAPI`, and the runner of its machine."""

    def __init__(
        self,
        machine: Channel,
        view: ChannelView,
        *,
        outside: Outside,
        requests: Requests,
        steps: StepContext,
        publish: Callable[[Publish], None],
        clock: Callable[[], float],
        response_timeout: float,
        policy: Policy | None,
        on_archived: Callable[[LiveChannel], None],
    ) -> None:
        record = machine.record
        super().__init__(f"channel {record.channel_id.hex()[:16]}", record.peer, outside, requests)
        self.machine = machine
        self.view = view
        self.snapshot = record
        self.feed: Feed[UpdateNotification] = Feed(self._still_valid)
        self.closed = False
        self._steps = steps
        self._publish = publish
        self._clock = clock
        self._response_timeout = response_timeout
        self._policy = policy
        self._on_archived = on_archived
        self._questions: dict[str, Question] = {}
        self._step: asyncio.Task[None] | None = None
        self._step_waits = False
        self._deciding: set[asyncio.Task[None]] = set()

    # ---- the runner's hooks -----------------------------------------------------------------------------------------

    def handle(self, event: Event) -> Effects:
        return self.machine.handle(event)

    def follow_up(self) -> Effects | None:
        event = self.machine.next_queued()
        return None if event is None else self.machine.handle(event)

    def answer(self) -> ChannelRecord:
        return self.snapshot

    def on_persisted(self, record: ChannelRecord) -> None:
        self.snapshot = record

    def on_publish(self, effect: Publish) -> None:
        self._publish(effect)

    def on_submit(self, effect: SubmitTx) -> None:
        if self._step is not None and not self._step.done():
            self._step.cancel()
        self._step_waits = isinstance(effect.step, AwaitConcludable)
        self._step = asyncio.get_running_loop().create_task(self._do_step(effect), name=f"{self.name} step")

    async def _do_step(self, effect: SubmitTx) -> None:
        try:
            self.post(await run_step(effect.step, self._steps, self.machine.record.channel_id))
        except Exception:
            log.exception("%s: chain step %s failed by a bug", self.name, type(effect.step).__name__)
            self._break("internal error")

    def on_notify(self, notification: Notification) -> None:
        match notification:
            case AskUser(state):
                self._ask(state)
            case QuestionWithdrawn(version):
                self._withdraw(version)
            case ChannelClosed(error):
                self._close_for_user(error)

    def on_settled(self) -> None:
        if self.machine.phase is Phase.WITHDRAWN and self.snapshot.phase is Phase.WITHDRAWN:
            self._on_archived(self)

    async def stop(self) -> None:
        tasks = [task for task in (self._step, *self._deciding) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().stop()

    # ---- questions to the user --------------------------------------------------------------------------------------

    def _ask(self, state: State) -> None:
        expiry = int(self._clock() + self._response_timeout)
        update_id = f"{state.id.hex()}_{state.version}"
        if self._policy is not None:
            task = asyncio.get_running_loop().create_task(self._ask_policy(self._policy, state, update_id, expiry))
            self._deciding.add(task)
            task.add_done_callback(self._deciding.discard)
        else:
            self._ask_user(state, update_id, expiry)

    def _ask_user(self, state: State, update_id: str, expiry: int) -> None:
        self._questions.pop(update_id, None)
        self._questions[update_id] = Question(state.version, expiry)
        while len(self._questions) > TOMBSTONES:
            self._questions.pop(next(iter(self._questions)))
        kind = UpdateType.FINAL if state.is_final else UpdateType.OPEN
        self.feed.withdraw(lambda item: item.update_id == update_id)
        self.feed.publish(UpdateNotification(update_id, self.view.info(state), kind, expiry))

    async def _ask_policy(self, policy: Policy, state: State, update_id: str, expiry: int) -> None:
        seen = UpdateView(
            peer=self.view.peer_alias,
            channel=state.id.hex(),
            currencies=tuple(currency.symbol for currency in self.view.currencies),
            current=self.machine.state.balances,
            proposed=state.balances,
            own_index=self.view.own_index,
            version=state.version,
            is_final=state.is_final,
        )
        decision = await decide_in_time(lambda: policy.on_update(seen), self.name)
        match decision.verdict:
            case Verdict.ACCEPT:
                self.post(UserAccepted(0, state.version))
            case Verdict.REJECT:
                self.post(UserRejected(0, state.version, decision.reason))
            case Verdict.ASK:
                self._ask_user(state, update_id, expiry)

    def _withdraw(self, version: int) -> None:
        """The question is off the table; one that expired is kept, so that a late answer is told so."""
        now = int(self._clock())
        for update_id, question in tuple(self._questions.items()):
            if question.version == version and now <= question.expiry:
                del self._questions[update_id]
        self.feed.withdraw(lambda item: item.type is not UpdateType.CLOSED and item.info.version == str(version))

    def _still_valid(self, item: UpdateNotification) -> bool:
        return item.type is UpdateType.CLOSED or int(self._clock()) <= item.expiry

    def _close_for_user(self, error: ApiError | None) -> None:
        self.closed = True
        self._questions.clear()
        self.feed.withdraw(lambda item: True)
        if self.feed.has_reader:
            state = self._agreed
            update_id = f"{state.id.hex()}_{state.version}_closed"
            self.feed.publish(UpdateNotification(update_id, self.view.info(state), UpdateType.CLOSED, 0, error))
        self.feed.end(deliver_rest=True)

    # ---- what the session asks --------------------------------------------------------------------------------------

    @property
    def _agreed(self) -> State:
        state = self.snapshot.current.state
        assert state is not None
        return state

    @property
    def is_open(self) -> bool:
        """Whether the channel is in normal operation."""
        return not self.closed and self.machine.phase in OFF_CHAIN

    @property
    def is_withdrawn(self) -> bool:
        """Whether there is nothing left to do."""
        return self.snapshot.phase is Phase.WITHDRAWN

    @property
    def is_busy(self) -> bool:
        """Whether a chain step is under way right now."""
        return self._step is not None and not self._step.done()

    def reject_question(self, reason: str) -> None:
        """Refuse the update our user was asked about, if there is one."""
        question = self.machine.question
        if question is not None:
            self.post(UserRejected(0, question.version, reason))

    # ---- ports.api.ChannelAPI ---------------------------------------------------------------------------------------

    def info(self) -> PayChInfo:
        return self.view.info(self._agreed)

    async def send_update(self, payments: Sequence[PaymentItem]) -> PayChInfo:
        items = tuple(self._payment(item) for item in payments)
        self._check_open()
        return await self._request(lambda request: UserPaid(request, items))

    def _payment(self, item: PaymentItem) -> Payment:
        symbols = [currency.symbol for currency in self.view.currencies]
        if item.currency not in symbols:
            raise ResourceNotFound("currency", item.currency)
        asset = symbols.index(item.currency)
        currency = self.view.currencies[asset]
        if not currency.known:
            raise ResourceNotFound("currency", item.currency)
        try:
            amount = parse_amount(item.amount, currency.decimals)
        except ValueError as error:
            raise InvalidArgument("amount", item.amount, f"invalid amount: {error}") from error
        if item.payee not in self.view.parts:
            raise InvalidArgument("payee", item.payee, "invalid payee: must be self or the peer's alias")
        payee = self.view.parts.index(item.payee)
        return Payment(asset, 1 - payee, amount, item.amount)

    def subscribe_updates(self) -> Reader[UpdateNotification]:
        self._check_open()
        if self.feed.has_reader:
            raise ResourceExists("updatesSub", self._agreed.id.hex())
        return self.feed.subscribe()

    def unsubscribe_updates(self) -> None:
        self._check_open()
        if not self.feed.has_reader:
            raise ResourceNotFound("updatesSub", self._agreed.id.hex())
        self.feed.end()

    async def respond_update(self, update_id: str, *, accept: bool) -> PayChInfo:
        self._check_open()
        question = self._questions.pop(update_id, None)
        if question is None:
            raise ResourceNotFound("update", update_id)
        now = int(self._clock())
        if now > question.expiry:
            raise UserResponseTimedOut(question.expiry, now)
        version = question.version
        if accept:
            return await self._request(lambda request: UserAccepted(request, version))
        return await self._request(lambda request: UserRejected(request, version, REJECTED_BY_USER))

    async def close(self) -> PayChInfo:
        self._check_open()
        return await self._request(UserClosed)

    def _check_open(self) -> None:
        if self.closed or self.is_withdrawn:
            raise FailedPrecondition(CLOSED_CHANNEL)

    async def _request(self, event: Callable[[int], Event]) -> PayChInfo:
        if self.broken:
            raise UnknownInternal("channel stopped after an internal failure; reopen the session")
        number, future = self.requests.new(self)
        self.post(event(number))
        record = cast("ChannelRecord", await future)
        state = record.current.state
        assert state is not None
        return self.view.info(state)

    def on_violation(self, error: RuleViolated) -> None:
        log.warning("%s: %s", self.name, error)


async def decide_in_time(ask: Callable[[], object], name: str) -> Decision:
    """What a policy says within its time; any failure, delay or wrong value means: ask the user."""
    try:
        decision = await asyncio.wait_for(cast("asyncio.Future[Decision]", ask()), POLICY_TIMEOUT)
        if isinstance(decision, Decision):
            return decision
        log.warning("%s: the policy answered with %s; asking the user", name, type(decision).__name__)
    except Exception as error:
        log.warning("%s: the policy failed (%s); asking the user", name, type(error).__name__)
    return Decision(Verdict.ASK)

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
    ChainError,
    FailedPrecondition,
    InvalidArgument,
    PeerRequestTimedOut,
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
    Forked,
    Notification,
    Publish,
    QuestionWithdrawn,
    Reconciled,
    SetTimer,
    StorageBehind,
    SubmitTx,
    Timer,
)
from ..protocol.events import Event, Payment, UserAccepted, UserClosed, UserPaid, UserProgressed, UserRejected
from ..protocol.records import ChannelRecord
from ..protocol.syncing import BEFORE_THE_CHAIN
from ..values import ChannelID
from .chainsteps import StepContext, chain_error, run_step
from .currencies import Currency
from .recovery import Recovery
from .remote import run_remote_step
from .runner import Outside, Requests, Runner
from .subscriptions import Feed, Reader

log = logging.getLogger(__name__)

REJECTED_BY_USER: Final = "rejected by user"
TOMBSTONES: Final = 64
"""Questions whose expiry passed and that may still be answered with "too late"."""
POLICY_TIMEOUT: Final = 2.0
"""Seconds a policy gets before the user is asked."""

REPEATING: Final = frozenset((Timer.HEAL, Timer.SYNC, Timer.SETTLE))
"""Timers of attempts that are repeated with growing pauses."""
JITTER: Final = 0.25
"""The part of a pause by which it may be longer."""

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
        recovery: Recovery,
        chance: Callable[[], float],
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
        self._recovery = recovery
        self._chance = chance
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
        before, self.snapshot = self.snapshot, record
        if record.phase is not before.phase and Phase.UNKNOWN in (record.phase, before.phase):
            self._tell_outcome(record)

    def _tell_outcome(self, record: ChannelRecord) -> None:
        """The log says when a payment became uncertain, what is safe meanwhile, and how it ended."""
        if record.phase is Phase.UNKNOWN:
            log.warning("%s: %s", self.name, self.uncertainty())
        else:
            log.info("%s: settled what was uncertain, version %d is agreed", self.name, self._agreed.version)

    def uncertainty(self) -> str:
        """Plain words about an update whose outcome nobody here knows (PROTOCOL.md 7.3.4 item 7)."""
        safe = ", ".join(
            f"{format_amount(amount, currency.decimals)} {currency.symbol}"
            for amount, currency in zip(self.machine.safe_balances(), self.view.currencies, strict=True)
        )
        return (
            f"it is not known whether {self.view.peer_alias} accepted version {self._agreed.version + 1}; it is asked "
            f"again until it is known, or the channel can be closed; at least {safe} is ours either way"
        )

    def on_publish(self, effect: Publish) -> None:
        self._publish(effect)

    def on_submit(self, effect: SubmitTx) -> None:
        if self._step is not None and not self._step.done():
            self._step.cancel()
        self._step_waits = isinstance(effect.step, AwaitConcludable)
        self._step = asyncio.get_running_loop().create_task(self._do_step(effect), name=f"{self.name} step")

    async def _do_step(self, effect: SubmitTx) -> None:
        try:
            run = run_step if self._steps.funder is None else run_remote_step
            self.post(await run(effect.step, self._steps, self.machine.record.channel_id))
        except Exception:
            log.exception("%s: chain step %s failed by a bug", self.name, type(effect.step).__name__)
            self._break("internal error")

    def delay(self, effect: SetTimer) -> float:
        """Peers and chain nodes that come back are not asked by all channels in the same moment."""
        return effect.seconds * (1 + JITTER * self._chance()) if effect.timer in REPEATING else effect.seconds

    def on_notify(self, notification: Notification) -> None:
        match notification:
            case AskUser(state):
                self._ask(state)
            case QuestionWithdrawn(version):
                self._withdraw(version)
            case ChannelClosed(error):
                self._close_for_user(error)
            case StorageBehind(version):
                self._recovery.report(
                    f"{self.view.peer_alias} holds version {version} of channel {self._agreed.id.hex()} with our "
                    f"signature, our storage had version {self._agreed.version}"
                )
            case Reconciled():
                self._recovery.on_reconciled(self)
            case Forked(version):
                log.error(
                    "%s: both signed two different states of version %d; the chain settles it, nothing more is signed",
                    self.name,
                    version,
                )

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
    def channel_id(self) -> ChannelID:
        """Of this channel."""
        return self.snapshot.channel_id

    @property
    def can_sign(self) -> bool:
        """Whether another state of it could be signed some day."""
        return self.machine.phase in BEFORE_THE_CHAIN

    @property
    def is_open(self) -> bool:
        """Whether the channel is in normal operation."""
        return not self.closed and self.machine.phase in OFF_CHAIN

    @property
    def is_withdrawn(self) -> bool:
        """Whether there is nothing left to do that its user would have to know of."""
        return self.snapshot.phase is Phase.WITHDRAWN or self.snapshot.reopened

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

    async def progress(self, state: State) -> PayChInfo:
        """Move the disputed channel of an app on to `state` on chain (PROTOCOL.md 7.10); not in the published API.

        Returns when the chain has confirmed it. Raises: FailedPrecondition, TransactionTimedOut, ChainUnreachable,
        UnknownInternal.
        """
        steps = self._steps
        try:
            dispute, head = await steps.chain.dispute(state.id), await steps.chain.head()
        except ChainError as error:
            raise chain_error(error, url=steps.chain_url, tx_timeout=steps.tx_timeout_text) from error
        return await self._request(lambda request: UserProgressed(request, state, dispute, head.timestamp))

    def _check_open(self) -> None:
        if self.closed or self.is_withdrawn:
            raise FailedPrecondition(CLOSED_CHANNEL)

    async def _request(self, event: Callable[[int], Event]) -> PayChInfo:
        if self.broken:
            raise UnknownInternal("channel stopped after an internal failure; reopen the session")
        number, future = self.requests.new(self)
        self.post(event(number))
        try:
            record = cast("ChannelRecord", await future)
        except PeerRequestTimedOut as error:
            if self.machine.phase is not Phase.UNKNOWN:
                raise
            alias, timeout = str(error.info["peerAlias"]), str(error.info["timeout"])
            raise PeerRequestTimedOut(alias, timeout, f"{error.message}; {self.uncertainty()}") from error
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

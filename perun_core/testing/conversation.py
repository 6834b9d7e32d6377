"""Two channel machines in one process, joined by a pipe the test controls; disk, keys and clock are simulated.

`Side` performs effects the way a node does: in order, a failing one ends the rest. Every durable write, signature and
message is recorded, so that a test can ask what left the process and what was on disk before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from coincurve import PrivateKey

from ..apps.registry import NO_APPS, AppRegistry
from ..channel import Allocation, Asset, Balances, Params, Phase, State, Transaction
from ..errors import ApiError, StoreConflict, StoreError, StoreFenced
from ..ports.app import App
from ..ports.store import Delete, Op, Put, PutNew, Table
from ..profile.gp090 import PROFILE, digest
from ..protocol.base import ChannelTerms
from ..protocol.channel import Channel
from ..protocol.effects import (
    AskUser,
    CancelTimer,
    ChainStep,
    Connect,
    Effect,
    Effects,
    Fail,
    Notification,
    Notify,
    Persist,
    Publish,
    Reconciled,
    Reply,
    RequestSignature,
    Send,
    SetTimer,
    StorageBehind,
    SubmitTx,
    Timer,
)
from ..protocol.events import (
    Event,
    PeerAccepted,
    PeerAway,
    PeerProposed,
    PeerReached,
    PeerRejected,
    PeerSynced,
    RecoveryEnded,
    Signed,
    TimerFired,
    UserAccepted,
    UserRejected,
)
from ..protocol.records import ChannelRecord, RecordCodec
from ..values import Address, Bytes32, ChannelID, Sig, keccak256
from ..wire.messages import Envelope, Message, Sync, Update, UpdateAcc, UpdateRej

KEYS = (bytes([0x11] * 32), bytes([0x22] * 32))
"""Private keys of the two sides; for tests only."""


class Crash(Exception):
    """The process died; raised by an effect a test chose."""


def address_of(key: bytes) -> Address:
    """Address of a private key."""
    return Address(keccak256(PrivateKey(key).public_key.format(compressed=False)[1:])[12:])


def sign_with(key: bytes, state_hash: Bytes32) -> Sig:
    """What a key manager answers."""
    raw = PrivateKey(key).sign_recoverable(digest(state_hash), hasher=None)
    return Sig(raw[:64] + bytes((raw[64] + 27,)))


ADDRESSES = (address_of(KEYS[0]), address_of(KEYS[1]))


def opened_channel(
    balances: Balances = ((100, 200),), *, nonce: int = 1, app: Address | None = None
) -> tuple[Params, Transaction]:
    """Parameters and fully signed version 0 of a channel between the two sides."""
    params = Params(60, ADDRESSES, app, nonce, True, False)
    assets = tuple(Asset(Address(bytes([0xA0 + i] * 20))) for i in range(len(balances)))
    state = State(PROFILE.channel_id(params), 0, Allocation(assets, balances), app=app)
    state_hash = PROFILE.state_hash(state)
    return params, Transaction(state, tuple(sign_with(key, state_hash) for key in KEYS))


class Disk:
    """Tables with the semantics of a store, in memory; survives a crash of its side."""

    def __init__(self) -> None:
        self.tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.batches = 0
        self.doubt = ""
        """Why it may be an old copy; then no new mark of the signing guard is taken, as a store does."""

    def commit(self, batch: Sequence[Op]) -> None:
        """All or nothing. Raises: StoreConflict, StoreFenced."""
        for op in batch:
            if self.doubt and isinstance(op, PutNew) and op.table is Table.SIGNED:
                raise StoreFenced(self.doubt)
            if isinstance(op, PutNew) and self.tables[op.table].get(op.key, op.value) != op.value:
                raise StoreConflict(f"{op.table} {op.key.hex()}")
        for op in batch:
            match op:
                case Put(table, key, value) | PutNew(table, key, value):
                    self.tables[table][key] = value
                case Delete(table, key):
                    self.tables[table].pop(key, None)
        self.batches += 1

    def copy(self) -> Disk:
        """A backup."""
        other = Disk()
        other.tables = {table: dict(rows) for table, rows in self.tables.items()}
        return other


class Side:
    """One participant: machine, disk and key, with an outbox of messages."""

    def __init__(
        self, index: int, record: ChannelRecord, *, disk: Disk | None = None, apps: AppRegistry = NO_APPS
    ) -> None:
        self.index = index
        self.apps = apps
        self.key = KEYS[index]
        self.disk = disk or Disk()
        self.codec = RecordCodec(PROFILE, apps)
        self.terms = ChannelTerms(
            profile=PROFILE,
            app=None if record.params.app is None else apps.get(record.params.app),
            peer_alias="bob" if index == 0 else "alice",
            answer_timeout=15.0,
            decision_timeout=10.0,
            timeout_text="10s",
        )
        self.machine = Channel(self.terms, record)
        self.outbox: list[Message] = []
        self.performed: list[Effect] = []
        self.timers: dict[Timer, float] = {}
        self.steps: list[ChainStep] = []
        self.questions: list[State] = []
        self.notifications: list[Notification] = []
        self.replies: dict[int, ApiError | None] = {}
        self.signed: list[State] = []
        self.crash_before: Callable[[Effect], bool] = lambda effect: False
        self.reachable = True
        self.crashed = False
        self.failure: Exception | None = None
        """Why it crashed."""

    def handle(self, event: Event) -> None:
        """Let the machine handle `event` and everything its effects bring back."""
        self.perform(lambda: self.machine.handle(event))

    def perform(self, first: Callable[[], Effects]) -> None:
        """Perform effects in order. A `Crash` or a store error ends the side."""
        todo: deque[Callable[[], Effects]] = deque((first,))
        try:
            while todo:
                for effect in todo.popleft()():
                    if self.crash_before(effect):
                        raise Crash
                    event = self._perform(effect)
                    if event is not None:
                        todo.append(lambda event=event: self.machine.handle(event))  # type: ignore[misc]
                if not todo and (queued := self.machine.next_queued()) is not None:
                    todo.append(lambda queued=queued: self.machine.handle(queued))  # type: ignore[misc]
        except (Crash, StoreError) as error:
            self.crashed, self.failure = True, error

    def _perform(self, effect: Effect) -> Event | None:
        self.performed.append(effect)
        match effect:
            case Persist(record):
                self.disk.commit(
                    self.codec.operations(record, signing=effect.signing, claim=effect.claim, archive=effect.archive)
                )
            case RequestSignature(state):
                self._check_marked(state)
                self.signed.append(state)
                return Signed(sign_with(self.key, PROFILE.state_hash(state)))
            case Connect():
                return PeerReached() if self.reachable else PeerAway("unreachable")
            case Send(message):
                if not self.reachable:
                    return PeerAway("unreachable")
                self._check_durable(message)
                self.outbox.append(message)
            case SetTimer(timer, seconds):
                self.timers[timer] = seconds
            case CancelTimer(timer):
                self.timers.pop(timer, None)
            case SubmitTx(step):
                self.steps.append(step)
            case Publish():
                pass
            case Notify(notification):
                self.notifications.append(notification)
                match notification:
                    case AskUser(state):
                        self.questions.append(state)
                    case StorageBehind(version):
                        self.disk.doubt = f"the peer holds version {version}"
                    case Reconciled():
                        self.disk.doubt = ""
                        return RecoveryEnded()
            case Reply(0) | Fail(0, _):
                pass  # nobody waits for this one
            case Reply(request):
                assert request not in self.replies, "answered twice"
                self.replies[request] = None
            case Fail(request, error):
                assert request not in self.replies, "answered twice"
                self.replies[request] = error
        return None

    def _check_marked(self, state: State) -> None:
        """The signing guard holds this state before the key manager sees it (PROTOCOL.md 6.3)."""
        marks = self.disk.tables[Table.SIGNED].values()
        assert bytes(PROFILE.state_hash(state)) in marks, "signed without a durable mark"

    def _check_durable(self, message: Message) -> None:
        """Whatever carries our signature is on disk with the state it signs."""
        stored = self.stored()
        match message:
            case Update(state, _, sig):
                assert stored.staged is not None and stored.staged.state == state, "update sent before it was durable"
                PROFILE.verify(PROFILE.state_hash(state), sig, ADDRESSES[self.index])
            case UpdateAcc(_, version, sig):
                current = stored.current.state
                assert current is not None and current.version == version, "acceptance sent before it was durable"
                assert stored.current.fully_signed and stored.current.sigs[self.index] == sig

    def stored(self) -> ChannelRecord:
        """The channel as it is on disk."""
        for table in (Table.CHANNELS, Table.ARCHIVE):
            for key, value in self.disk.tables[table].items():
                return self.codec.decode(key, value)
        raise AssertionError("nothing stored")

    def restart(self) -> Side:
        """The side after a crash: a new machine from what is on disk, resumed."""
        fresh = Side(self.index, self.stored(), disk=self.disk, apps=self.apps)
        fresh.reachable = self.reachable
        if self.disk.doubt:
            fresh.machine.recover(self.disk.doubt)
        fresh.perform(fresh.machine.resume)
        return fresh

    def receive(self, message: Message) -> None:
        """A message of the peer, as it came through bytes."""
        envelope = Envelope(ADDRESSES[1 - self.index], ADDRESSES[self.index], message)
        (decoded,) = PROFILE.decoder(self.apps, limit=1 << 20).feed(PROFILE.encode(envelope))
        match decoded.message:
            case Update() as update:
                self.handle(PeerProposed(update))
            case UpdateAcc() as acc:
                self.handle(PeerAccepted(acc))
            case UpdateRej() as rej:
                self.handle(PeerRejected(rej))
            case Sync() as sync:
                self.handle(PeerSynced(sync))
            case other:
                raise AssertionError(f"unexpected message {other}")

    def answer(self, *, accept: bool, request: int = 0) -> None:
        """Our user decides about the question that is open."""
        question = self.machine.question
        if question is None:
            return
        if accept:
            self.handle(UserAccepted(request, question.version))
        else:
            self.handle(UserRejected(request, question.version, "rejected by user"))

    def fire(self, timer: Timer) -> None:
        """A timer runs out, if it runs."""
        if self.timers.pop(timer, None) is not None:
            self.handle(TimerFired(timer))


class Pair:
    """Both sides of one channel."""

    def __init__(
        self,
        balances: Balances = ((100, 200),),
        *,
        phase: Phase = Phase.ACTING,
        app: tuple[Address, App] | None = None,
    ) -> None:
        """`app`: the contract's address and the rules, for a channel with an app."""
        self.params, tx = opened_channel(balances, app=None if app is None else app[0])
        apps = NO_APPS if app is None else AppRegistry(dict((app,)))
        self.total = [sum(row) for row in balances]
        channel_id = ChannelID(PROFILE.channel_id(self.params))
        self.sides = [
            Side(
                index,
                ChannelRecord(
                    channel_id=channel_id,
                    sequence=1,
                    params=self.params,
                    own_index=index,
                    peer=ADDRESSES[1 - index],
                    chain_id=1337,
                    adjudicator=Address(bytes([0xAD] * 20)),
                    phase=phase,
                    current=tx,
                ),
                apps=apps,
            )
            for index in (0, 1)
        ]
        for side in self.sides:
            side.disk.commit(side.codec.operations(side.machine.record))

    @property
    def alice(self) -> Side:
        """The channel's proposer."""
        return self.sides[0]

    @property
    def bob(self) -> Side:
        """The channel's responder."""
        return self.sides[1]

    def deliver(self, *, until_quiet: bool = True) -> None:
        """Carry every message to the other side, in order, until there is none."""
        while any(side.outbox for side in self.sides):
            for side, other in ((self.alice, self.bob), (self.bob, self.alice)):
                messages, side.outbox = side.outbox, []
                for message in messages:
                    other.receive(message)
            if not until_quiet:
                return

    def check(self) -> None:
        """No money made or lost, and no two fully signed states of one version."""
        held: dict[int, State] = {}
        for side in self.sides:
            state = side.machine.state
            assert [sum(row) for row in state.balances] == self.total
            assert all(value >= 0 for row in state.balances for value in row)
            other = held.setdefault(state.version, state)
            assert other == state, "two fully signed states of one version"

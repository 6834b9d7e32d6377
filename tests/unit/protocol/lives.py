"""A side of an opened channel in every phase, and every event that can happen to it.

`alice` is participant 0 unless a name says otherwise. Version 1 is agreed everywhere after funding, so that an older
version exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from perun_core.channel import Dispute, DisputePhase, Params, Phase, State, Transaction
from perun_core.errors import RuleViolated, UnknownInternal
from perun_core.ports.app import App
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.effects import RequestSignature, Timer
from perun_core.protocol.events import (
    ChainConcluded,
    ChainFailed,
    ChainFound,
    ChainFunded,
    ChainMatured,
    ChainRegistered,
    ChainStands,
    ChainUndone,
    ChainWithdrawn,
    Event,
    Payment,
    PeerAccepted,
    PeerAway,
    PeerConnected,
    PeerProposed,
    PeerReached,
    PeerRejected,
    PeerSynced,
    RecoveryBegan,
    RecoveryEnded,
    Signed,
    TimerFired,
    UserAccepted,
    UserClosed,
    UserPaid,
    UserProgressed,
    UserRejected,
)
from perun_core.protocol.promises import MAX_CANDIDATES
from perun_core.testing.conversation import KEYS, Pair, Side, sign_with
from perun_core.values import Address, Bytes32
from perun_core.wire.messages import Sync, Update, UpdateAcc, UpdateRej

OPENING_REQUEST = 99
CLOSE_REQUEST = 50


def pay(amount: int = 30, *, payer: int = 0, request: int = 1) -> UserPaid:
    return UserPaid(request, (Payment(0, payer, amount, str(amount)),))


def fully_signed(state: State) -> Transaction:
    digest = PROFILE.state_hash(state)
    return Transaction(state, tuple(sign_with(key, digest) for key in KEYS))


APP = Address(b"\xab" * 20)


class Moves:
    """An app whose data grow by one byte with every move of the game; payments beside it leave them as they are."""

    def default_data(self) -> bytes:
        return b""

    def check_data(self, data: bytes) -> None:
        return

    def check_init(self, params: Params, state: State) -> None:
        return

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        if new.data[: len(old.data)] != old.data or len(new.data) > len(old.data) + 1:
            raise RuleViolated("T8", "not a move")


def moved(state: State, move: bytes = b"x", *, is_final: bool = False) -> State:
    """`state` after a move in the game that is worth 10 to the other side."""
    first, second = state.balances[0]
    return replace(state.next(balances=((first - 10, second + 10),), is_final=is_final), data=state.data + move)


def dispute(side: Side, version: int, *, concluded: bool = False, state: State | None = None) -> Dispute:
    """What the contract stores when `version` is registered; of our state unless told otherwise."""
    registered = side.machine.state if state is None else state
    return Dispute(
        registered=True,
        timeout=1060,
        challenge_duration=60,
        version=version,
        has_app=side.machine.record.params.app is not None,
        phase=DisputePhase.CONCLUDED if concluded else DisputePhase.DISPUTE,
        state_hash=PROFILE.state_hash(registered),
    )


def in_recovery(side: Side) -> Side:
    """The same after a restart from a disk that may be an old copy."""
    side.disk.doubt = "the store is an older copy"
    return side.restart()


# ---- a side in each phase --------------------------------------------------------------------------------------------


def with_early_update(side: Side) -> Side:
    """The peer was funded first and proposes already."""
    state = side.machine.state.next(balances=((130, 170),))
    update = Update(state, 1, sign_with(KEYS[1], PROFILE.state_hash(state)))
    side.handle(PeerProposed(update))
    return side


def forgotten_opening() -> Side:
    """An old copy from before the peer's signature arrived; whether the channel was funded later is forgotten."""
    side = Pair(phase=Phase.OPENING).alice
    record = replace(side.machine.record, current=replace(side.machine.record.current, sigs=(None, None)))
    side.disk.commit(side.codec.operations(record))
    return in_recovery(side)


def funding() -> Side:
    side = Pair(phase=Phase.FUNDING).alice
    side.machine._opening_request = OPENING_REQUEST
    side.perform(side.machine.start_funding)
    return side


def acting_pair(app: tuple[Address, App] | None = None) -> Pair:
    """Both agreed on version 1."""
    pair = Pair(app=app)
    pair.alice.handle(pay(1, request=11))
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    return pair


def acting() -> Side:
    return acting_pair().alice


def connecting(event: UserPaid | UserClosed) -> Side:
    """Our user asked for something and the peer is being reached: the effect is not performed yet."""
    side = acting()
    side.machine.handle(event)
    return side


def exhausted(side: Side) -> Side:
    """Too many other states of the next version are signed to sign one more."""
    states = tuple(side.machine.state.next(balances=((i, 300 - i),)) for i in range(MAX_CANDIDATES))
    digests = tuple(PROFILE.state_hash(state) for state in states)
    side.machine.record = replace(side.machine.record, candidates=digests, candidate_states=states)
    return side


def candidate_final(side: Side) -> Side:
    """We signed a final state once, and it did not come to anything as far as we know."""
    state = side.machine.state.next(is_final=True)
    side.machine.record = replace(
        side.machine.record, candidates=(PROFILE.state_hash(state),), candidate_states=(state,)
    )
    return side


def refused_once() -> Side:
    """Our first payment was refused, as far as we know."""
    side = acting()
    side.handle(pay(7, request=31))
    side.handle(PeerRejected(UpdateRej(side.machine.record.channel_id, 2, "rejected by user")))
    assert side.machine.phase is Phase.ACTING and side.machine.record.candidates
    return side


def trying_again(*, in_vain: bool = False) -> Side:
    """Another payment of the same version is on its way."""
    side = refused_once()
    side.handle(pay(9, request=32))
    if in_vain:
        side.fire(Timer.RESPONSE)
    return side


def deciding_after_refusal() -> Side:
    """The peer refused ours and proposes its own."""
    side = refused_once()
    state = side.machine.state.next(balances=((130, 170),))
    side.handle(PeerProposed(Update(state, 1, sign_with(KEYS[1], PROFILE.state_hash(state)))))
    assert side.machine.phase is Phase.DECIDING
    return side


def signing(event: UserPaid | UserClosed | None = None) -> Side:
    side = acting()
    side.handle(event or pay())
    assert side.machine.phase is Phase.SIGNING
    return side


def unknown(event: UserPaid | UserClosed | None = None, *, queued: UserClosed | None = None) -> Side:
    side = signing(event)
    if queued is not None:
        side.handle(queued)
    side.fire(Timer.RESPONSE)
    assert side.machine.phase is Phase.UNKNOWN
    return side


def deciding(*, final: bool = False) -> Side:
    pair = acting_pair()
    pair.bob.handle(UserClosed(1) if final else pay(40, payer=1))
    pair.deliver()
    assert pair.alice.machine.phase is Phase.DECIDING
    return pair.alice


def accepting(*, final: bool = False) -> Side:
    """Our user agreed; the key manager has not answered yet."""
    side = deciding(final=final)
    side.perform(
        lambda: tuple(
            effect for effect in side.machine.handle(UserAccepted(2, 2)) if not isinstance(effect, RequestSignature)
        )
    )
    assert side.machine.phase is Phase.ACCEPTING
    return side


def final() -> Side:
    pair = acting_pair()
    pair.alice.handle(UserClosed(CLOSE_REQUEST))
    pair.deliver()
    pair.bob.answer(accept=True)
    pair.deliver()
    return pair.alice


def registering(app: tuple[Address, App] | None = None) -> Side:
    pair = acting_pair(app)
    pair.alice.handle(UserClosed(CLOSE_REQUEST))
    pair.deliver()
    pair.bob.answer(accept=False)
    pair.deliver()
    return pair.alice


def registered(app: tuple[Address, App] | None = None) -> Side:
    side = registering(app)
    side.handle(ChainRegistered(dispute(side, 1)))
    return side


def app_registered() -> Side:
    """A dispute about a channel with an app."""
    return registered((APP, Moves()))


def progressing() -> Side:
    """Our move is on its way to the chain."""
    side = app_registered()
    side.handle(UserProgressed(60, moved(side.machine.state), dispute(side, 1), now=1100))
    assert side.machine.phase is Phase.PROGRESSING
    return side


def progressing_in_doubt() -> Side:
    """While our move is on its way the storage turns out to be old."""
    side = progressing()
    side.machine.handle(RecoveryBegan("the chain knows more"))
    return side


def concluding() -> Side:
    side = registered()
    side.handle(ChainMatured(dispute(side, 1)))
    return side


def withdrawing() -> Side:
    side = concluding()
    side.handle(ChainConcluded(1))
    return side


def withdrawn() -> Side:
    side = withdrawing()
    side.handle(ChainWithdrawn())
    return side


def final_withdrawing() -> Side:
    side = final()
    side.handle(ChainConcluded(2))
    return side


def final_withdrawn() -> Side:
    side = final_withdrawing()
    side.handle(ChainWithdrawn())
    return side


STARTS: dict[Phase, tuple[Callable[[], Side], ...]] = {
    Phase.OPENING: (forgotten_opening,),
    Phase.FUNDING: (funding, lambda: with_early_update(funding()), lambda: in_recovery(funding())),
    Phase.ACTING: (
        acting,
        lambda: connecting(pay()),
        lambda: connecting(UserClosed(CLOSE_REQUEST)),
        lambda: exhausted(connecting(UserClosed(CLOSE_REQUEST))),
        lambda: candidate_final(acting()),
        refused_once,
        lambda: in_recovery(acting()),
    ),
    Phase.SIGNING: (signing, lambda: signing(UserClosed(CLOSE_REQUEST)), trying_again),
    Phase.DECIDING: (deciding, lambda: deciding(final=True), deciding_after_refusal),
    Phase.ACCEPTING: (accepting, lambda: accepting(final=True), lambda: in_recovery(accepting())),
    Phase.UNKNOWN: (
        unknown,
        lambda: unknown(UserClosed(CLOSE_REQUEST)),
        lambda: unknown(queued=UserClosed(CLOSE_REQUEST)),
        lambda: trying_again(in_vain=True),
        lambda: in_recovery(unknown()),
    ),
    Phase.FINAL: (final,),
    Phase.REGISTERING: (registering,),
    Phase.REGISTERED: (registered, app_registered, lambda: in_recovery(progressing())),
    Phase.PROGRESSING: (progressing, progressing_in_doubt),
    Phase.CONCLUDING: (concluding,),
    Phase.WITHDRAWING: (withdrawing, final_withdrawing),
    Phase.WITHDRAWN: (withdrawn, final_withdrawn),
}


# ---- everything that can happen --------------------------------------------------------------------------------------


def next_states(side: Side) -> Iterator[State]:
    """States the peer may show: what is proposed by either side, and others that are allowed or not."""
    machine = side.machine
    if machine.record.staged is not None:
        yield machine.record.staged.state
    if machine.question is not None:
        yield machine.question
    yield from machine.record.candidate_states
    if not machine.state.is_final:
        yield machine.state.next(balances=((50, 250),))
        yield machine.state.next(is_final=True)
        yield machine.state.next(balances=((0, 299),))  # loses money
    yield machine.state
    other = replace(machine.state.allocation, balances=((11, 289),))
    yield replace(machine.state, allocation=other)  # a second truth of the same version


def events(side: Side) -> Iterator[Event]:
    """Every kind of event in the variants that matter for `side`."""
    record = side.machine.record
    machine_state = side.machine.state
    version = machine_state.version
    yield pay(5, request=21)
    yield UserClosed(22)
    yield UserAccepted(23, version + 1)
    yield UserRejected(24, version + 1, "rejected by user")
    yield RecoveryBegan("the chain knows more")
    yield RecoveryEnded()
    yield PeerReached()
    yield PeerConnected()
    yield PeerAway("connection lost")
    for timer in Timer:
        yield TimerFired(timer)
    for state in next_states(side):
        digest: Bytes32 = PROFILE.state_hash(state)
        peer = sign_with(KEYS[1], digest)
        yield PeerProposed(Update(state, 1, peer))
        yield PeerAccepted(UpdateAcc(record.channel_id, state.version, peer))
        yield PeerSynced(Sync(3, fully_signed(state)))
        yield Signed(sign_with(KEYS[0], digest))
    yield PeerRejected(UpdateRej(record.channel_id, version + 1, "rejected by user"))
    yield ChainFunded()
    if version:
        yield ChainRegistered(dispute(side, version - 1))
        yield ChainMatured(dispute(side, version - 1))
        yield ChainStands(dispute(side, version - 1))
        yield ChainUndone(dispute(side, version - 1))
    yield ChainRegistered(dispute(side, version))
    yield ChainRegistered(dispute(side, version + 5))
    for stored in (dispute(side, version), dispute(side, version, concluded=True), Dispute(registered=False)):
        yield ChainUndone(stored)
    yield ChainMatured(Dispute(registered=False))
    yield ChainFound(dispute(side, version), fully_signed(machine_state))
    yield ChainRegistered(
        replace(dispute(side, version + 1, state=moved(machine_state)), phase=DisputePhase.FORCE_EXEC)
    )
    yield UserProgressed(25, moved(machine_state), dispute(side, version), now=1100)
    yield ChainRegistered(dispute(side, version, concluded=True))
    yield ChainMatured(dispute(side, version))
    yield ChainMatured(dispute(side, version + 5))
    yield ChainMatured(dispute(side, version, concluded=True))
    yield ChainConcluded(version)
    yield ChainWithdrawn()
    for deposited in (False, True):
        yield ChainFailed(UnknownInternal("the node does not answer"), deposited=deposited)

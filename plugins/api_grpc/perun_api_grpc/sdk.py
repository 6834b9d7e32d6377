"""Between the SDK's messages and the values of the core, exactly in the published encoding (API.md 1.4).

Reading checks shapes and sizes and nothing else; every failure is a 203 that names the part of the request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from perun_core.channel import Allocation, Asset, Balances, Params, State, SubAlloc, Transaction
from perun_core.errors import InvalidArgument
from perun_core.ports.api import AdjudicatorEvent, AdjudicatorEventKind, AdjudicatorRequest
from perun_core.values import MAX_UINT256, Address, ChannelID, Sig

from .pb import funding_service_pb2, watching_service_pb2
from .pb import sdktypes_pb2 as pb

T = TypeVar("T", Address, ChannelID, Sig)
Response = TypeVar("Response", funding_service_pb2.SubscribeResp, watching_service_pb2.StartWatchingLedgerChannelResp)

SHOWN: Final = 64
"""Digits of a wrong value that an error repeats."""
MAX_INDEX: Final = 65535
Timeout = pb.AdjudicatorEventBase.Timeout
TimeoutType = pb.AdjudicatorEventBase.TimeoutType


# ------------------------------------------------------------------------------------------------------------- reading


def sized(kind: type[T], data: bytes, name: str) -> T:
    """Bytes of exactly one length. Raises: InvalidArgument."""
    try:
        return kind(data)
    except ValueError as error:
        raise InvalidArgument(name, data[: SHOWN // 2].hex(), str(error), f"must be {kind.SIZE} bytes") from error


def number_from(data: bytes, name: str) -> int:
    """An unsigned big-endian number of at most 256 bits; empty is zero. Raises: InvalidArgument."""
    if len(data) > 64 or (value := int.from_bytes(data, "big")) > MAX_UINT256:
        raise InvalidArgument(name, data[: SHOWN // 2].hex(), "the number is too large", "at most 256 bits")
    return value


def app_from(data: bytes, name: str) -> Address | None:
    """The address of an app; empty is none. Raises: InvalidArgument."""
    return sized(Address, data, name) if data else None


def params_from(message: pb.Params) -> Params:
    """The parameters of a channel. `id` is ignored: whoever needs it computes it. Raises: InvalidArgument."""
    return Params(
        challenge_duration=message.challenge_duration,
        parts=tuple(sized(Address, part, "params") for part in message.parts),
        app=app_from(message.app, "params"),
        nonce=number_from(message.nonce, "params"),
        ledger_channel=message.ledger_channel,
        virtual_channel=message.virtual_channel,
    )


def balances_from(message: pb.Balances, name: str) -> Balances:
    """Rows of amounts, ragged ones included: the node checks them. Raises: InvalidArgument."""
    return tuple(tuple(number_from(amount, name) for amount in row.balance) for row in message.balances)


def locked_from(message: pb.SubAlloc) -> SubAlloc:
    """Funds of a sub-channel. Raises: InvalidArgument."""
    index_map = tuple(message.index_map.index_map)
    if any(index > MAX_INDEX for index in index_map):
        raise InvalidArgument("state", "", "an index map has an impossible entry")
    balances = tuple(number_from(amount, "state") for amount in message.bals.balance)
    return SubAlloc(sized(ChannelID, message.id, "state"), balances, index_map)


def state_from(message: pb.State) -> State:
    """A state of a channel. Raises: InvalidArgument."""
    allocation = Allocation(
        tuple(Asset(sized(Address, asset, "state")) for asset in message.allocation.assets),
        balances_from(message.allocation.balances, "state"),
        tuple(locked_from(each) for each in message.allocation.locked),
    )
    return State(
        id=sized(ChannelID, message.id, "chID"),
        version=message.version,
        allocation=allocation,
        is_final=message.is_final,
        app=app_from(message.app, "state"),
        data=message.data,
    )


def sigs_from(messages: Iterable[bytes]) -> tuple[Sig | None, ...]:
    """Signatures in the order of the participants; an empty one is missing. Raises: InvalidArgument."""
    return tuple(sized(Sig, sig, "sigs") if sig else None for sig in messages)


def request_from(message: pb.AdjudicatorReq) -> AdjudicatorRequest:
    """Who wants what done on chain. Raises: InvalidArgument."""
    if not message.HasField("params"):
        raise absent("params")
    if not message.HasField("tx"):
        raise absent("tx")
    if not message.tx.HasField("state"):
        raise absent("state")
    return AdjudicatorRequest(
        params=params_from(message.params),
        account=sized(Address, message.acc, "acc"),
        tx=Transaction(state_from(message.tx.state), sigs_from(message.tx.sigs)),
        index=message.idx,
        secondary=message.secondary,
    )


def absent(field: str) -> InvalidArgument:
    """203 for a part of the request that is not there (API.md 2.2.6)."""
    return InvalidArgument(field, "", f"{field} is missing", "must be set")


# ------------------------------------------------------------------------------------------------------------- writing


def number_to(value: int) -> bytes:
    """Unsigned big-endian without leading zeros; zero is empty. Raises: OverflowError for a negative one."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def params_to(params: Params) -> pb.Params:
    """The parameters as the SDK writes them: `id` stays empty."""
    return pb.Params(
        challenge_duration=params.challenge_duration,
        parts=[bytes(part) for part in params.parts],
        app=bytes(params.app or b""),
        nonce=number_to(params.nonce),
        ledger_channel=params.ledger_channel,
        virtual_channel=params.virtual_channel,
    )


def balances_to(rows: Balances) -> pb.Balances:
    """Rows of amounts."""
    return pb.Balances(balances=[pb.Balance(balance=[number_to(amount) for amount in row]) for row in rows])


def locked_to(entry: SubAlloc) -> pb.SubAlloc:
    """Funds of a sub-channel."""
    return pb.SubAlloc(
        id=bytes(entry.id),
        bals=pb.Balance(balance=[number_to(amount) for amount in entry.balances]),
        index_map=pb.IndexMap(index_map=entry.index_map),
    )


def state_to(state: State) -> pb.State:
    """A state of a channel."""
    allocation = pb.Allocation(
        assets=[bytes(asset.holder) for asset in state.allocation.assets],
        balances=balances_to(state.balances),
        locked=[locked_to(each) for each in state.allocation.locked],
    )
    return pb.State(
        id=bytes(state.id),
        version=state.version,
        app=bytes(state.app or b""),
        allocation=allocation,
        data=state.data,
        is_final=state.is_final,
    )


def sigs_to(sigs: Iterable[Sig | None]) -> list[bytes]:
    """Signatures; a missing one is empty."""
    return [bytes(sig or b"") for sig in sigs]


def request_to(params: Params, tx: Transaction, index: int, *, secondary: bool = False) -> pb.AdjudicatorReq:
    """A request of participant `index`."""
    assert tx.state is not None
    return pb.AdjudicatorReq(
        params=params_to(params),
        acc=bytes(params.parts[index]),
        tx=pb.Transaction(state=state_to(tx.state), sigs=sigs_to(tx.sigs)),
        idx=index,
        secondary=secondary,
    )


def put_event(response: Response, event: AdjudicatorEvent) -> Response:
    """`response` with the member that tells `event`.

    Clients of the SDK read into the state without looking whether it is there. Of a state nobody told us they get what
    the chain says: channel and version, with empty balances.
    """
    base = pb.AdjudicatorEventBase(
        chID=bytes(event.channel_id),
        timeout=Timeout(sec=event.timeout, type=TimeoutType.ethBlock),
        version=event.version,
    )
    unknown = pb.State(
        id=bytes(event.channel_id), version=event.version, allocation=pb.Allocation(balances=pb.Balances())
    )
    state = unknown if event.state is None else state_to(event.state)
    match event.kind:
        case AdjudicatorEventKind.REGISTERED:
            sigs = sigs_to(event.sigs)
            response.registeredEvent.CopyFrom(pb.RegisteredEvent(adjudicatorEventBase=base, state=state, sigs=sigs))
        case AdjudicatorEventKind.PROGRESSED:
            response.progressedEvent.CopyFrom(pb.ProgressedEvent(adjudicatorEventBase=base, state=state))
        case AdjudicatorEventKind.CONCLUDED:
            base.timeout.CopyFrom(Timeout(sec=-1, type=TimeoutType.elapsed))
            response.concludedEvent.CopyFrom(pb.ConcludedEvent(adjudicatorEventBase=base))
    return response

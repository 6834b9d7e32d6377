"""The rules of a channel that can be decided from its data: one function per rule, named after it.

Each raises `RuleViolated` with the rule's id and changes nothing. The lists at the end say which rules apply when, in
the order of the specification. Signatures are the profile's business, consent is the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..errors import RuleViolated
from ..values import MAX_UINT64, MAX_UINT256, Address, ChannelID
from .params import Params
from .state import Allocation, State, SubAlloc

MAX_CHALLENGE_DURATION: Final = 2**63 - 1
"""Seconds; the contract adds it to the block time in 64 bits."""
MAX_ASSETS: Final = 1024
MAX_LOCKED: Final = 1024
MAX_DATA_BYTES: Final = 65535


class StateApp(Protocol):
    """The questions these rules ask an app; `ports.app.App` is the whole contract."""

    def check_init(self, params: Params, state: State) -> None:
        """Whether `state` may start a channel with `params`. Raises: RuleViolated("T8")."""
        ...

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        """Whether participant `actor` may move `old` to `new`. Raises: RuleViolated("T8")."""
        ...


# ------------------------------------------------------------------------------------------------- parameters: 5.2


def check_params(params: Params) -> None:
    """Parameters a channel of this node may have: two different participants, one kind, values the contract can hold.

    Raises: RuleViolated("5.2") (PROTOCOL.md 5.2).
    """
    if not 1 <= params.challenge_duration <= MAX_CHALLENGE_DURATION:
        raise RuleViolated("5.2", f"challenge duration of {params.challenge_duration} s")
    if len(params.parts) != 2:
        raise RuleViolated("5.2", f"{len(params.parts)} participants instead of 2")
    if any(part.is_zero for part in params.parts) or params.parts[0] == params.parts[1]:
        raise RuleViolated("5.2", "participants are equal or zero")
    if not 0 <= params.nonce <= MAX_UINT256:
        raise RuleViolated("5.2", "nonce out of range")
    if params.ledger_channel and params.virtual_channel:
        raise RuleViolated("5.2", "both a ledger channel and a virtual channel")


def check_own_participant(params: Params, index: int, address: Address) -> None:
    """The own signing address stands at the own index. Raises: RuleViolated("5.2") (PROTOCOL.md 5.2)."""
    if not 0 <= index < len(params.parts) or params.parts[index] != address:
        raise RuleViolated("5.2", f"{address.checksum} is not participant {index}")


# ----------------------------------------------------------------------------------------------- single states: 5.4


def normalise_index_map(index_map: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """The form to compare: empty becomes the identity of `parts` entries, all else stays (PROTOCOL.md 5.5)."""
    return index_map or tuple(range(parts))


def check_allocation(allocation: Allocation) -> None:
    """An allocation that can be encoded, hashed without loss and paid out (PROTOCOL.md 5.4).

    Raises: RuleViolated("5.4").
    """
    assets, balances, locked = allocation.assets, allocation.balances, allocation.locked
    if not 1 <= len(assets) <= MAX_ASSETS or len(balances) != len(assets):
        raise RuleViolated("5.4", f"{len(assets)} assets with {len(balances)} rows of balances")
    if len(assets) > 1 and len(set(assets)) != len(assets):
        raise RuleViolated("5.4", "duplicate assets")
    parts = len(balances[0])
    if not parts or any(len(row) != parts for row in balances):
        raise RuleViolated("5.4", "rows of balances are empty or differ in length")
    if any(not 0 <= value <= MAX_UINT256 for row in balances for value in row):
        raise RuleViolated("5.4", "a balance is out of range")
    if locked:
        _check_locked(locked, len(assets), parts)
    if any(total > MAX_UINT256 for total in allocation.sums()):
        raise RuleViolated("5.4", "the sum of an asset is out of range")


def _check_locked(locked: tuple[SubAlloc, ...], assets: int, parts: int) -> None:
    if len(locked) > MAX_LOCKED or len({entry.id for entry in locked}) != len(locked):
        raise RuleViolated("5.4", "too many locked entries, or two of the same channel")
    for entry in locked:
        if len(entry.balances) != assets:
            raise RuleViolated("5.4", "a locked entry does not have one balance per asset")
        if any(not 0 <= value <= MAX_UINT256 for value in entry.balances):
            raise RuleViolated("5.4", "a locked balance is out of range")
        if sorted(normalise_index_map(entry.index_map, parts)) != list(range(parts)):
            raise RuleViolated("5.4", "an index map is no permutation of the participants")


def check_state(params: Params, state: State) -> None:
    """All that a single state of the channel must be, whatever came before it (PROTOCOL.md 5.4).

    Raises: RuleViolated("5.4", "U-4" for the row length, or "U-9" for a final state with locked funds).
    """
    if not 0 <= state.version <= MAX_UINT64:
        raise RuleViolated("5.4", "version out of range")
    check_allocation(state.allocation)
    u4_row_length(params, state)
    _check_data(params.app, state)
    u9_final_without_locked(state)


def _check_data(app: Address | None, state: State) -> None:
    if len(state.data) > MAX_DATA_BYTES or (app is None and state.data):
        raise RuleViolated("5.4", f"{len(state.data)} bytes of app data")


def check_initial_state(params: Params, channel_id: ChannelID, state: State, *, app: StateApp | None) -> None:
    """A state the channel may start with: version 0, nothing locked, valid for its app (PROTOCOL.md 5.4).

    `app` is the definition at `params.app`, None for channels without app.
    Raises: RuleViolated("5.4", "U-4", "T1", "T2" or, from the app, "T8").
    """
    if state.version != 0 or state.is_final:
        raise RuleViolated("5.4", "an initial state has version 0 and is not final")
    t1_channel_id(channel_id, state)
    t2_app(params, state)
    check_state(params, state)
    if state.allocation.locked:
        raise RuleViolated("5.4", "an initial state has no locked funds")
    _judge(params, app, lambda rules: rules.check_init(params, state))


# ------------------------------------------------------------------------------------------------ transitions: 5.7


def t0_actor(params: Params, actor: int) -> None:
    """T0: the actor is a participant (PROTOCOL.md 5.7)."""
    if not 0 <= actor < len(params.parts):
        raise RuleViolated("T0", f"actor {actor} of {len(params.parts)} participants")


def t1_channel_id(channel_id: ChannelID, new: State) -> None:
    """T1: the state belongs to this channel (PROTOCOL.md 5.7)."""
    if new.id != channel_id:
        raise RuleViolated("T1", f"state of channel {new.id.hex()}")


def t2_app(params: Params, new: State) -> None:
    """T2: the app is the channel's (PROTOCOL.md 5.7)."""
    if new.app != params.app:
        raise RuleViolated("T2", "another app than the channel's")


def t3_not_final(old: State) -> None:
    """T3: nothing follows a final state (PROTOCOL.md 5.7)."""
    if old.is_final:
        raise RuleViolated("T3", "the channel is final")


def t4_version(old: State, new: State) -> None:
    """T4: one more than the newest fully signed version; the largest one has no successor (PROTOCOL.md 5.7)."""
    if old.version >= MAX_UINT64 or new.version != old.version + 1:
        raise RuleViolated("T4", f"version {new.version} after {old.version}")


def t5_allocation(new: State) -> None:
    """T5: the allocation is valid by itself, see `check_allocation` (PROTOCOL.md 5.4, 5.7)."""
    try:
        check_allocation(new.allocation)
    except RuleViolated as error:
        raise RuleViolated("T5", error.problem) from error


def t6_assets(old: State, new: State) -> None:
    """T6: the same assets in the same order (PROTOCOL.md 5.7)."""
    if new.allocation.assets != old.allocation.assets:
        raise RuleViolated("T6", "assets changed")


def t7_sums(old: State, new: State) -> None:
    """T7: the total of every asset, locked funds included, is preserved (PROTOCOL.md 5.7). Needs T5 and T6."""
    if new.allocation.sums() != old.allocation.sums():
        raise RuleViolated("T7", "the total of an asset changed")


def t8_app(params: Params, app: StateApp | None, old: State, new: State, actor: int) -> None:
    """T8: the app agrees; without app there is no data and everything else is allowed (PROTOCOL.md 5.7, U-7)."""
    try:
        _check_data(params.app, new)
    except RuleViolated as error:
        raise RuleViolated("T8", error.problem) from error
    _judge(params, app, lambda rules: rules.check_transition(params, old, new, actor))


def u4_row_length(params: Params, new: State) -> None:
    """U-4: one balance per participant in every asset, or nobody could ever be paid (PROTOCOL.md 7.3.6)."""
    if any(len(row) != len(params.parts) for row in new.balances):
        raise RuleViolated("U-4", "number of balances differs from the number of participants")


def u5_locked(old: State, new: State) -> None:
    """U-5: locked funds untouched: same entries, order, balances and normalised index maps (PROTOCOL.md 7.3.6)."""
    if locked_funds(new) != locked_funds(old):
        raise RuleViolated("U-5", "locked funds changed")


def locked_funds(state: State) -> tuple[tuple[ChannelID, tuple[int, ...], tuple[int, ...]], ...]:
    """The locked entries in the form to compare, with normalised index maps."""
    parts = len(state.balances[0])
    return tuple(
        (entry.id, entry.balances, normalise_index_map(entry.index_map, parts)) for entry in state.allocation.locked
    )


def u6_actor(actor: int, sender: int) -> None:
    """U-6: who proposes an update is its actor; `sender` is the index of the proposer (PROTOCOL.md 7.3.6)."""
    if actor != sender:
        raise RuleViolated("U-6", f"participant {sender} proposes for participant {actor}")


def u9_final_without_locked(new: State) -> None:
    """U-9: a final state has nothing locked, or the contract would refuse to conclude it (PROTOCOL.md 5.4, 7.3.6)."""
    if new.is_final and new.allocation.locked:
        raise RuleViolated("U-9", "a final state with locked funds")


def _judge(params: Params, app: StateApp | None, question: Callable[[StateApp], None]) -> None:
    """Ask the channel's app. An app that is missing, or fails to judge, has not agreed. Raises: RuleViolated("T8")."""
    if params.app is None:
        return
    if app is None:
        raise RuleViolated("T8", "the channel's app does not run here")
    try:
        question(app)
    except RuleViolated as error:
        raise RuleViolated("T8", error.problem) from error
    except Exception as error:
        raise RuleViolated("T8", "the app failed to judge") from error


# ------------------------------------------------------------------------------------------------------------- lists


def check_transition(
    params: Params, channel_id: ChannelID, app: StateApp | None, old: State, new: State, actor: int
) -> None:
    """T0 to T8 in order, for every kind of update (PROTOCOL.md 5.7).

    `old` is the newest fully signed state, never a staged one; `app` the definition at `params.app`. U-4 stands in the
    middle because what follows walks over the rows of balances. Raises: RuleViolated.
    """
    t0_actor(params, actor)
    t1_channel_id(channel_id, new)
    t2_app(params, new)
    t3_not_final(old)
    t4_version(old, new)
    t5_allocation(new)
    u4_row_length(params, new)
    t6_assets(old, new)
    t7_sums(old, new)
    t8_app(params, app, old, new, actor)


def check_update(
    params: Params,
    channel_id: ChannelID,
    app: StateApp | None,
    old: State,
    new: State,
    actor: int,
    *,
    sender: int,
) -> None:
    """An ordinary update between two participants: `check_transition`, then U-5, U-6 and U-9 (PROTOCOL.md 7.3.6).

    `sender` is the index of the participant it comes from, ourselves included. Raises: RuleViolated.
    """
    check_transition(params, channel_id, app, old, new, actor)
    u5_locked(old, new)
    u6_actor(actor, sender)
    u9_final_without_locked(new)

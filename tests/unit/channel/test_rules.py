"""Each rule of a channel by itself, and in the lists (PROTOCOL.md 5, 7.3.6)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from perun_core.apps import PaymentApp
from perun_core.channel import Allocation, Asset, Balances, Params, State, SubAlloc
from perun_core.channel import rules as r
from perun_core.errors import RuleViolated
from perun_core.values import MAX_UINT64, MAX_UINT256, ZERO_ADDRESS, Address, ChannelID

ALICE, BOB, APP = Address(b"\xa1" * 20), Address(b"\xb0" * 20), Address(b"\xdd" * 20)
ETH, TOKEN = Asset(Address(b"\xe0" * 20)), Asset(Address(b"\xe1" * 20))
ID, OTHER_ID = ChannelID(b"\x01" * 32), ChannelID(b"\x02" * 32)
PARAMS = Params(60, (ALICE, BOB), None, 7, True, False)
LOCK = SubAlloc(OTHER_ID, (5,))
OLD = State(ID, 5, Allocation((ETH,), ((10, 20),)))


def with_(
    balances: Balances = ((10, 20),), locked: tuple[SubAlloc, ...] = (), assets: tuple[Asset, ...] = (ETH,)
) -> State:
    """The state after OLD with this allocation."""
    return State(ID, 6, Allocation(assets, balances, locked))


def refused(rule: str, check: Callable[[], None]) -> None:
    with pytest.raises(RuleViolated) as raised:
        check()
    assert raised.value.rule == rule


# ---------------------------------------------------------------------------------------------------------- parameters


def test_5_2_good_parameters() -> None:
    r.check_params(PARAMS)
    r.check_params(replace(PARAMS, challenge_duration=2**63 - 1, nonce=MAX_UINT256))
    r.check_params(replace(PARAMS, ledger_channel=False, virtual_channel=True))


@pytest.mark.parametrize(
    "change",
    [
        {"challenge_duration": 0},
        {"challenge_duration": 2**63},
        {"parts": (ALICE,)},
        {"parts": (ALICE, BOB, APP)},
        {"parts": (ALICE, ALICE)},
        {"parts": (ALICE, ZERO_ADDRESS)},
        {"nonce": -1},
        {"nonce": MAX_UINT256 + 1},
        {"virtual_channel": True},
    ],
)
def test_5_2_bad_parameters(change: dict[str, object]) -> None:
    refused("5.2", lambda: r.check_params(replace(PARAMS, **change)))


def test_5_2_own_participant_stands_at_the_own_index() -> None:
    r.check_own_participant(PARAMS, 1, BOB)
    refused("5.2", lambda: r.check_own_participant(PARAMS, 0, BOB))
    refused("5.2", lambda: r.check_own_participant(PARAMS, 2, BOB))
    refused("5.2", lambda: r.check_own_participant(PARAMS, -1, BOB))


# -------------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    "allocation",
    [
        Allocation((ETH,), ((0, 0),)),
        Allocation((ETH,), ((MAX_UINT256, 0),)),
        Allocation((ETH, TOKEN), ((1, 2), (3, 4)), (SubAlloc(OTHER_ID, (5, 6), (1, 0)), SubAlloc(ID, (0, 0), (0, 1)))),
        Allocation(tuple(Asset(Address(bytes(18) + n.to_bytes(2, "big"))) for n in range(1024)), ((1, 1),) * 1024),
    ],
)
def test_5_4_good_allocations(allocation: Allocation) -> None:
    r.check_allocation(allocation)


@pytest.mark.parametrize(
    "allocation",
    [
        Allocation((), ()),
        Allocation((ETH,), ()),
        Allocation((ETH,), ((1, 2), (3, 4))),
        Allocation(tuple(Asset(Address(bytes(18) + n.to_bytes(2, "big"))) for n in range(1025)), ((1, 1),) * 1025),
        Allocation((ETH, ETH), ((1, 2), (3, 4))),
        Allocation((ETH,), ((),)),
        Allocation((ETH, TOKEN), ((1, 2), (3,))),
        Allocation((ETH,), ((-1, 2),)),
        Allocation((ETH,), ((MAX_UINT256 + 1, 2),)),
        Allocation((ETH,), ((MAX_UINT256, 1),)),
        Allocation((ETH,), ((MAX_UINT256 - 4, 0),), (LOCK,)),
        Allocation((ETH,), ((1, 2),), (LOCK, LOCK)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, ()),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, (1, 2)),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, (-1,)),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, (MAX_UINT256 + 1,)),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, (1,), (0,)),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, (1,), (0, 0)),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, (1,), (0, 2)),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(OTHER_ID, (1,), (0, 1, 2)),)),
        Allocation(
            (ETH,), ((1, 2),), tuple(SubAlloc(ChannelID(n.to_bytes(32, "big")), (0,)) for n in range(r.MAX_LOCKED + 1))
        ),
    ],
)
def test_5_4_bad_allocations(allocation: Allocation) -> None:
    refused("5.4", lambda: r.check_allocation(allocation))


def test_5_4_single_states() -> None:
    r.check_state(PARAMS, OLD)
    r.check_state(replace(PARAMS, app=APP), replace(OLD, app=APP, data=bytes(65535)))
    refused("5.4", lambda: r.check_state(PARAMS, replace(OLD, version=MAX_UINT64 + 1)))
    refused("5.4", lambda: r.check_state(PARAMS, replace(OLD, version=-1)))
    refused("5.4", lambda: r.check_state(PARAMS, replace(OLD, data=b"x")))
    refused("5.4", lambda: r.check_state(replace(PARAMS, app=APP), replace(OLD, app=APP, data=bytes(65536))))
    refused("U-4", lambda: r.check_state(PARAMS, with_(((1, 2, 3),))))
    refused("U-9", lambda: r.check_state(PARAMS, replace(with_(locked=(LOCK,)), is_final=True)))


class Refusing(PaymentApp):
    """An app that agrees to nothing."""

    def check_init(self, params: Params, state: State) -> None:
        raise RuleViolated("T8", "never")

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        raise RuleViolated("T8", "never")


class Broken(PaymentApp):
    """An app that cannot judge."""

    def check_init(self, params: Params, state: State) -> None:
        raise ZeroDivisionError

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        raise ZeroDivisionError


def test_5_4_initial_states() -> None:
    first = replace(OLD, version=0)
    r.check_initial_state(PARAMS, ID, first, app=None)
    with_app = replace(PARAMS, app=APP)
    r.check_initial_state(with_app, ID, replace(first, app=APP), app=PaymentApp())
    for wrong, rule in (
        (replace(first, version=1), "5.4"),
        (replace(first, is_final=True), "5.4"),
        (replace(first, id=OTHER_ID), "T1"),
        (replace(first, app=APP), "T2"),
        (replace(first, data=b"x"), "5.4"),
        (replace(with_(((1,),)), version=0), "U-4"),
        (replace(with_(locked=(LOCK,)), version=0), "5.4"),
    ):
        refused(rule, lambda wrong=wrong: r.check_initial_state(PARAMS, ID, wrong, app=None))  # type: ignore[misc]
    for app in (None, Refusing(), Broken()):
        refused("T8", lambda app=app: r.check_initial_state(with_app, ID, replace(first, app=APP), app=app))  # type: ignore[misc]


def test_an_empty_index_map_is_the_identity() -> None:
    assert r.normalise_index_map((), 2) == (0, 1)
    assert r.normalise_index_map((1, 0), 2) == (1, 0)


# --------------------------------------------------------------------------------------------------------- transitions


def test_t0_actor_is_a_participant() -> None:
    r.t0_actor(PARAMS, 0)
    r.t0_actor(PARAMS, 1)
    refused("T0", lambda: r.t0_actor(PARAMS, 2))
    refused("T0", lambda: r.t0_actor(PARAMS, -1))


def test_t1_state_is_of_this_channel() -> None:
    r.t1_channel_id(ID, OLD)
    refused("T1", lambda: r.t1_channel_id(OTHER_ID, OLD))


def test_t2_app_is_the_channels() -> None:
    r.t2_app(PARAMS, OLD)
    refused("T2", lambda: r.t2_app(PARAMS, replace(OLD, app=APP)))
    refused("T2", lambda: r.t2_app(replace(PARAMS, app=APP), OLD))


def test_t3_nothing_follows_a_final_state() -> None:
    r.t3_not_final(OLD)
    refused("T3", lambda: r.t3_not_final(replace(OLD, is_final=True)))


@pytest.mark.parametrize("version", [0, 4, 5, 7, MAX_UINT64])
def test_t4_version_is_the_next_one(version: int) -> None:
    r.t4_version(OLD, replace(OLD, version=6))
    refused("T4", lambda: r.t4_version(OLD, replace(OLD, version=version)))


def test_t4_the_largest_version_has_no_successor() -> None:
    last = replace(OLD, version=MAX_UINT64)
    r.t4_version(replace(OLD, version=MAX_UINT64 - 1), last)
    refused("T4", lambda: r.t4_version(last, replace(OLD, version=0)))
    refused("T4", lambda: r.t4_version(last, replace(OLD, version=MAX_UINT64 + 1)))


def test_t5_allocation_is_valid() -> None:
    r.t5_allocation(OLD)
    refused("T5", lambda: r.t5_allocation(with_(((MAX_UINT256 + 1, 0),))))


def test_t6_assets_stay_in_order() -> None:
    two = with_(((1, 2), (3, 4)), assets=(ETH, TOKEN))
    r.t6_assets(two, two)
    refused("T6", lambda: r.t6_assets(two, with_(((1, 2), (3, 4)), assets=(TOKEN, ETH))))
    refused("T6", lambda: r.t6_assets(two, OLD))


def test_t7_totals_are_preserved_per_asset() -> None:
    r.t7_sums(OLD, with_(((30, 0),)))
    r.t7_sums(OLD, with_(((10, 15),), (LOCK,)))
    refused("T7", lambda: r.t7_sums(OLD, with_(((10, 21),))))
    refused("T7", lambda: r.t7_sums(OLD, with_(((10, 20),), (LOCK,))))
    two = with_(((1, 2), (3, 4)), assets=(ETH, TOKEN))
    refused("T7", lambda: r.t7_sums(two, with_(((1, 3), (3, 3)), assets=(ETH, TOKEN))))


def test_t8_app_agrees() -> None:
    params, old = replace(PARAMS, app=APP), replace(OLD, app=APP)
    new = replace(with_(((9, 21),)), app=APP)
    r.t8_app(PARAMS, None, OLD, with_(), 0)
    r.t8_app(params, PaymentApp(), old, new, 0)
    refused("T8", lambda: r.t8_app(params, PaymentApp(), old, new, 1))
    refused("T8", lambda: r.t8_app(params, None, old, new, 0))
    refused("T8", lambda: r.t8_app(params, Broken(), old, new, 0))
    refused("T8", lambda: r.t8_app(PARAMS, None, OLD, replace(with_(), data=b"x"), 0))


def test_u4_one_balance_per_participant() -> None:
    r.u4_row_length(PARAMS, OLD)
    refused("U-4", lambda: r.u4_row_length(PARAMS, with_(((10, 20, 0),))))
    refused("U-4", lambda: r.u4_row_length(PARAMS, with_(((30,),))))


@pytest.mark.parametrize(
    "locked",
    [
        (),
        (LOCK, SubAlloc(ID, (0,))),
        (SubAlloc(ID, (0,)), LOCK),
        (SubAlloc(ID, (5,)),),
        (SubAlloc(OTHER_ID, (6,)),),
        (SubAlloc(OTHER_ID, (5,), (1, 0)),),
    ],
)
def test_u5_locked_funds_are_untouched(locked: tuple[SubAlloc, ...]) -> None:
    old = with_(locked=(LOCK,))
    r.u5_locked(old, old)
    refused("U-5", lambda: r.u5_locked(old, with_(locked=locked)))


def test_u5_an_empty_index_map_equals_the_identity() -> None:
    r.u5_locked(with_(locked=(LOCK,)), with_(locked=(SubAlloc(OTHER_ID, (5,), (0, 1)),)))


def test_u6_actor_is_the_sender() -> None:
    r.u6_actor(1, 1)
    refused("U-6", lambda: r.u6_actor(0, 1))


def test_u9_final_states_have_nothing_locked() -> None:
    r.u9_final_without_locked(replace(OLD, is_final=True))
    r.u9_final_without_locked(with_(locked=(LOCK,)))
    refused("U-9", lambda: r.u9_final_without_locked(replace(with_(locked=(LOCK,)), is_final=True)))


# --------------------------------------------------------------------------------------------------------------- lists


def test_a_good_update_passes_the_whole_list() -> None:
    r.check_update(PARAMS, ID, None, OLD, OLD.next(balances=((0, 30),)), 0, sender=0)
    r.check_update(PARAMS, ID, None, OLD, OLD.next(is_final=True), 1, sender=1)


@pytest.mark.parametrize(
    ("new", "actor", "rule"),
    [
        (OLD.next(), 2, "T0"),
        (replace(OLD.next(), id=OTHER_ID), 0, "T1"),
        (replace(OLD.next(), app=APP), 0, "T2"),
        (OLD, 0, "T4"),
        (OLD.next(balances=((-1, 31),)), 0, "T5"),
        (OLD.next(balances=((10, 20, 0),)), 0, "U-4"),
        (with_(assets=(TOKEN,)), 0, "T6"),
        (OLD.next(balances=((10, 21),)), 0, "T7"),
        (replace(OLD.next(), data=b"x"), 0, "T8"),
        (with_(((10, 15),), (LOCK,)), 0, "U-5"),
        (OLD.next(), 1, "U-6"),
    ],
)
def test_the_list_applies_every_rule(new: State, actor: int, rule: str) -> None:
    refused(rule, lambda: r.check_update(PARAMS, ID, None, OLD, new, actor, sender=0))


def test_the_list_refuses_successors_of_final_states_and_final_states_with_locked_funds() -> None:
    final = replace(OLD, is_final=True)
    refused("T3", lambda: r.check_update(PARAMS, ID, None, final, OLD.next(), 0, sender=0))
    locked = with_(((10, 15),), (LOCK,))
    refused("U-9", lambda: r.check_update(PARAMS, ID, None, locked, locked.next(is_final=True), 0, sender=0))


def test_locking_funds_is_a_valid_transition_but_no_ordinary_update() -> None:
    new = with_(((10, 15),), (LOCK,))
    r.check_transition(PARAMS, ID, None, OLD, new, 0)
    refused("U-5", lambda: r.check_update(PARAMS, ID, None, OLD, new, 0, sender=0))

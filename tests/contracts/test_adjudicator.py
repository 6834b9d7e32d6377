"""Disputes and conclusions (CHAIN.md 1.3, 1.4) and our guarantees about them (CHAIN.md 1.11, DEV-1 to DEV-5)."""

from __future__ import annotations

from typing import Any

import pytest

from perun_chain_ethereum.embedded import CallFailed
from perun_chain_ethereum.testing import (
    ADDRESS,
    CHANNEL_UPDATE,
    CONCLUDE_FINAL,
    ETHER,
    PARAMS,
    REGISTER,
    STATE,
    ZERO,
    Params,
    State,
    World,
    calldata,
    sign,
    signed_state,
)

A, B, C = ADDRESS[1], ADDRESS[3], ADDRESS[5]
DISPUTE, FORCEEXEC, CONCLUDED = 0, 1, 2
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def reverts(reason: str) -> Any:
    return pytest.raises(CallFailed, match=f"^execution reverted: {reason}$")


def reverts_empty() -> Any:
    return pytest.raises(CallFailed, match=r"^execution reverted$")


def updates(receipt: dict[str, Any]) -> list[tuple[bytes, int, int, int]]:
    """(channel ID, version, phase, timeout) of each event, in order."""
    return [
        (bytes.fromhex(log["topics"][1][2:]), *(int(log["data"][i : i + 64], 16) for i in (2, 66, 130)))
        for log in receipt["logs"]
        if log["topics"][0][2:] == CHANNEL_UPDATE
    ]


def now(world: World) -> int:
    return world.chain.timestamp


# -- the ways of an honest channel ------------------------------------------------------------------------------------


def test_a_channel_that_ends_in_agreement_pays_everybody(world: World) -> None:
    c = Params()
    world.deposit(c, ETHER, 2 * ETHER)
    final = world.state(c, 5, 3 * ETHER, 0, final=True)
    receipt = world.conclude_final(c, final)
    assert updates(receipt) == [(c.id, 5, CONCLUDED, now(world))]
    fresh = "0x" + 40 * "7"
    world.withdraw(c, A, fresh, 3 * ETHER)
    assert world.balance(fresh) == 3 * ETHER
    assert world.balance(world.eth) == 0


def test_a_disputed_channel_pays_by_the_newest_registered_state(world: World) -> None:
    c = Params()
    world.deposit(c, ETHER, 2 * ETHER)
    old, new = world.state(c, 1, ETHER, 2 * ETHER), world.state(c, 2, 0, 3 * ETHER)
    opened = updates(world.register(c, old))
    deadline = now(world) + 60
    assert opened == [(c.id, 1, DISPUTE, deadline)]
    assert updates(world.register(c, new)) == [(c.id, 2, DISPUTE, deadline)], "a refutation extends nothing"
    with reverts("timeout not passed yet"):
        world.conclude(c, new, at=deadline - 1)
    assert updates(world.conclude(c, new, at=deadline)) == [(c.id, 2, CONCLUDED, deadline)]
    assert (world.holdings(c, A), world.holdings(c, B)) == (0, 3 * ETHER)


def test_an_app_channel_can_be_moved_forward_on_chain(world: World) -> None:
    c = Params(app=world.app)
    world.deposit(c, 10, 20)
    v1, v2, v3 = world.state(c, 1, 10, 20), world.state(c, 2, 5, 25), world.state(c, 3, 30, 0, final=True)
    world.register(c, v1)
    deadline = now(world) + 60
    with reverts("timeout not passed"):
        world.progress(c, v1, v2, 0, at=deadline - 1)
    assert updates(world.progress(c, v1, v2, 0, at=deadline)) == [(c.id, 2, FORCEEXEC, deadline + 60)]
    assert updates(world.progress(c, v2, v3, 1, at=deadline + 59)) == [(c.id, 3, FORCEEXEC, deadline + 59)]
    world.conclude(c, v3)
    assert (world.holdings(c, A), world.holdings(c, B)) == (30, 0)


def test_an_app_channel_waits_one_more_duration_before_it_is_concluded(world: World) -> None:
    c = Params(app=world.app)
    v1 = world.state(c, 1, 0, 0)
    world.register(c, v1)
    deadline = now(world) + 120
    with reverts("timeout not passed yet"):
        world.conclude(c, v1, at=deadline - 1)
    assert updates(world.conclude(c, v1, at=deadline)) == [(c.id, 1, CONCLUDED, deadline)]


def test_two_assets_are_settled_together(world: World) -> None:
    c = Params()
    world.deposit(c, 10, 20)
    world.deposit(c, 7, 0, holder=world.erc20)
    both = State(c.id, 9, (world.eth, world.erc20), ((1, 29), (3, 4)), final=True)
    world.conclude_final(c, both)
    assert (world.holdings(c, A), world.holdings(c, B)) == (1, 29)
    assert (world.holdings(c, A, world.erc20), world.holdings(c, B, world.erc20)) == (3, 4)


@pytest.mark.parametrize(("index_map", "expected"), [((0, 1), (3, 5)), ((1, 0), (4, 4)), ((1,), (1, 4))])
def test_the_outcome_of_a_sub_channel_goes_where_the_index_map_says(
    world: World, index_map: tuple[int, ...], expected: tuple[int, int]
) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False)
    world.deposit(c, 4, 4)
    inner = world.state(sub, 1, 2, 3)
    outer = world.state(c, 1, 1, 2, locked=((sub.id, (5,), index_map),))
    receipt = world.register(c, outer, (sub, inner))
    assert [update[0] for update in updates(receipt)] == [c.id, sub.id]
    receipt = world.conclude(c, outer, inner, at=now(world) + 60)
    assert [update[:3] for update in updates(receipt)] == [(c.id, 1, CONCLUDED), (sub.id, 1, CONCLUDED)]
    assert (world.holdings(c, A), world.holdings(c, B)) == expected


def test_a_tree_of_depth_two(world: World) -> None:
    c, mid, leaf = Params(), Params(nonce=2, ledger=False), Params(nonce=3, ledger=False)
    other = Params(nonce=4, ledger=False)
    world.deposit(c, 10, 10)
    leaf_state, other_state = world.state(leaf, 1, 1, 2), world.state(other, 1, 0, 4)
    mid_state = world.state(mid, 1, 3, 0, locked=((leaf.id, (3,), (1, 0)),))
    root = world.state(c, 1, 5, 5, locked=((mid.id, (6,), (0, 1)), (other.id, (4,), (0, 1))))
    subs = ((mid, mid_state), (leaf, leaf_state), (other, other_state))
    world.register(c, root, *subs)
    world.conclude(c, root, mid_state, leaf_state, other_state, at=now(world) + 60)
    # leaf [1, 2] crosses over to [2, 1] in mid, which makes [5, 1]; the root has [5, 5] + [5, 1] + [0, 4].
    assert (world.holdings(c, A), world.holdings(c, B)) == (10, 10)


def test_agreement_overrides_a_dispute_in_any_phase(world: World) -> None:
    c = Params(app=world.app)
    v4, v5 = world.state(c, 4, 0, 0), world.state(c, 5, 0, 0)
    final = world.state(c, 2, 0, 0, final=True)
    world.register(c, v4)
    world.progress(c, v4, v5, 0, at=now(world) + 60)
    world.conclude_final(c, final)
    assert world.dispute(c.id).phase == CONCLUDED
    with reverts("channel already concluded"):
        world.conclude_final(c, final)
    with reverts("incorrect phase"):
        world.register(c, world.state(c, 6, 0, 0))
    with reverts("invalid phase"):
        world.progress(c, v4, v5, 0)


def test_registering_the_same_state_again_changes_nothing(world: World) -> None:
    c = Params()
    state = world.state(c, 1, 0, 0)
    world.register(c, state)
    before = world.dispute(c.id)
    assert updates(world.register(c, state)) == []
    assert updates(world.register(c, state, at=now(world) + 1000)) == []
    assert world.dispute(c.id) == before
    world.conclude(c, state)
    assert updates(world.register(c, state)) == []


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_register_refuses_what_is_not_signed_or_not_newer(world: World) -> None:
    c = Params()
    v2 = world.state(c, 2, 0, 0)

    def register(params: Params, state: State, sigs: list[bytes], at: int | None = None) -> None:
        world.send(world.adjudicator, REGISTER, (params.abi, state.abi, sigs), [], at=at)

    with reverts("not ledger"):
        world.register(Params(ledger=False), v2)
    with reverts("invalid params"):
        register(c, v2.but(channel=bytes(32)), v2.signed((A, B)))
    with reverts("signatures length mismatch"):
        register(c, v2, v2.signed((A,)))
    with reverts("signatures length mismatch"):
        register(c, v2, v2.signed((A, B, B)))
    with reverts("invalid signature"):
        register(c, v2, v2.signed((B, A)))
    world.register(c, v2)
    deadline = now(world) + 60
    with reverts("invalid version"):
        world.register(c, world.state(c, 1, 0, 0))
    with reverts("invalid version"):
        world.register(c, world.state(c, 2, 0, 0, data=b"x"))
    with reverts("refutation timeout passed"):
        world.register(c, world.state(c, 3, 0, 0), at=deadline)
    assert world.dispute(c.id).version == 2


def test_a_refutation_counts_until_the_last_second(world: World) -> None:
    c = Params()
    world.register(c, world.state(c, 1, 0, 0))
    deadline = now(world) + 60
    world.register(c, world.state(c, 2, 0, 0), at=deadline - 1)
    assert world.dispute(c.id).version == 2


def test_virtual_channels_have_neither_app_nor_locked_funds(world: World) -> None:
    with_app = Params(virtual=True, app=world.app)
    with reverts("cannot have app"):
        world.register(with_app, world.state(with_app, 1, 0, 0))
    c = Params(virtual=True)
    with reverts("cannot have locked funds"):
        world.register(c, world.state(c, 1, 0, 0, locked=((bytes(32), (0,), ()),)))
    world.register(c, world.state(c, 1, 0, 0))


def test_register_refuses_trees_that_do_not_add_up(world: World) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False)
    inner = world.state(sub, 1, 2, 3)

    def outer(*, total: int = 5, sub_id: bytes = sub.id) -> State:
        return world.state(c, 1, 1, 2, locked=((sub_id, (total,), (0, 1)),))

    with reverts("subChannels: too short"):
        world.register(c, outer())
    with reverts("invalid sub-channel id"):
        world.register(c, outer(sub_id=bytes(32)), (sub, inner))
    with reverts(r"uint256\[\]: unequal item"):
        world.register(c, outer(total=6), (sub, inner))
    with reverts(r"uint256\[\]: unequal length"):
        world.register(c, world.state(c, 1, 1, 2, locked=((sub.id, (5, 0), (0, 1)),)), (sub, inner))
    with reverts(r"address\[\]: unequal item"):
        world.register(c, outer(), (sub, inner.but(assets=(world.erc20,))))
    with reverts(r"address\[\]: unequal length"):
        world.register(c, outer(), (sub, inner.but(assets=(), balances=())))
    with reverts("SafeMath: addition overflow"):
        world.register(c, world.state(c, 1, 2**256 - 1, 1))


def test_progress_refuses_in_the_published_order(world: World) -> None:
    c = Params(app=world.app)
    v1, v2 = world.state(c, 1, 5, 5), world.state(c, 2, 6, 4)
    with reverts("not registered"):
        world.progress(c, v1, v2, 0)
    world.register(c, v1)
    late = now(world) + 60
    with reverts("actorIdx out of range"):
        world.send(
            world.adjudicator,
            f"progress({PARAMS},{STATE},{STATE},uint256,bytes)",
            c.abi,
            v1.abi,
            v2.abi,
            2,
            sign(A, v2.hash),
            at=late,
        )
    with reverts("wrong old state"):
        world.progress(c, v2, v2, 0)
    with reverts("version must increment by one"):
        world.progress(c, v1, v2.but(version=3), 0)
    with reverts("sum of balances mismatch"):
        world.progress(c, v1, v2.but(balances=((6, 5),)), 0)
    with reverts("new balances length mismatch"):
        world.progress(c, v1, v2.but(balances=((10,),)), 0)
    with reverts("balances length mismatch"):
        world.progress(c, v1, v2.but(balances=()), 0)
    with reverts("assets length mismatch"):
        world.progress(c, v1, v2.but(assets=()), 0)
    with reverts(r"assets\[i\] address mismatch"):
        world.progress(c, v1, v2.but(assets=(world.erc20,)), 0)
    with reverts(r"SubAlloc\[\]: unequal length"):
        world.progress(c, v1, v2.but(locked=((bytes(32), (0,), ()),)), 0)
    world.progress(c, v1, v2, 0)
    with reverts("wrong old state"):
        world.progress(c, v1, v2, 0)
    with reverts("timeout passed"):
        world.progress(c, v2, v2.but(version=3), 1, at=now(world) + 60)


def test_an_app_decides_about_progress(world: World) -> None:
    refusing = world.deploy_code(runtime("60006000fd"))
    c = Params(app=refusing)
    v1 = world.state(c, 1, 0, 0)
    world.register(c, v1)
    with reverts_empty():
        world.progress(c, v1, v1.but(version=2), 0, at=now(world) + 60)
    without_code = Params(app=ADDRESS[4])
    v1 = world.state(without_code, 1, 0, 0)
    world.register(without_code, v1)
    with reverts_empty():
        world.progress(without_code, v1, v1.but(version=2), 0, at=now(world) + 60)


def runtime(code: str) -> bytes:
    """Creation code of a contract with this runtime code (hex, less than 256 bytes)."""
    raw = bytes.fromhex(code)
    return bytes([0x60, len(raw), 0x80, 0x60, 9, 0x3D, 0x39, 0x3D, 0xF3]) + raw


def test_conclude_final_refuses_in_the_published_order(world: World) -> None:
    c = Params()
    final = world.state(c, 1, 0, 0, final=True)

    def conclude(params: Params, state: State, sigs: list[bytes]) -> None:
        world.send(world.adjudicator, CONCLUDE_FINAL, params.abi, state.abi, sigs)

    with reverts("not ledger"):
        conclude(Params(ledger=False), final, [])
    with reverts("state not final"):
        conclude(c, final.but(final=False), [])
    with reverts("cannot have sub-channels"):
        conclude(c, final.but(locked=((bytes(32), (), ()),)), [])
    with reverts("invalid params"):
        conclude(c, final.but(channel=bytes(32)), [])
    with reverts("signatures length mismatch"):
        conclude(c, final, [])
    with reverts("invalid signature"):
        conclude(c, final, final.signed((A, A)))


def test_conclude_refuses_in_the_published_order(world: World) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False)
    inner = world.state(sub, 1, 2, 3)
    outer = world.state(c, 1, 1, 2, locked=((sub.id, (5,), (0, 1)),))
    with reverts("not ledger"):
        world.conclude(sub, inner)
    with reverts("invalid params"):
        world.conclude(c, outer.but(channel=bytes(32)))
    with reverts("not registered"):
        world.conclude(c, outer)
    world.register(c, outer, (sub, inner))
    with reverts("invalid channel state"):
        world.conclude(c, outer.but(version=2))
    with reverts("timeout not passed yet"):
        world.conclude(c, outer, inner)
    late = now(world) + 60
    with reverts(r"Panic\(0x32\)"):
        world.conclude(c, outer, at=late)
    with reverts("invalid subchannel id"):
        world.conclude(c, outer, outer)
    with reverts("invalid channel state"):
        world.conclude(c, outer, inner.but(version=2))
    world.conclude(c, outer, inner)
    with reverts("channel already concluded"):
        world.conclude(c, outer, inner)


# -- signatures -------------------------------------------------------------------------------------------------------


def altered(sig: bytes, change: str) -> bytes:
    r, s, v = sig[:32], int.from_bytes(sig[32:64]), sig[64]
    return {
        "short": sig[:64],
        "long": sig + b"\0",
        "high s": r + (N - s).to_bytes(32) + bytes([55 - v]),
        "v 0": sig[:64] + bytes([v - 27]),
        "v 29": sig[:64] + b"\x1d",
        "no point": bytes(32) + sig[32:],
    }[change]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("short", "ECDSA: invalid signature length"),
        ("long", "ECDSA: invalid signature length"),
        ("high s", "ECDSA: invalid signature 's' value"),
        ("v 0", "ECDSA: invalid signature 'v' value"),
        ("v 29", "ECDSA: invalid signature 'v' value"),
        ("no point", "ECDSA: invalid signature"),
    ],
)
def test_only_one_encoding_of_a_signature_is_accepted(world: World, change: str, reason: str) -> None:
    c = Params()
    state = world.state(c, 1, 0, 0, final=True)
    first, second = state.signed(c.participants)
    sigs = [first, altered(second, change)]
    with reverts(reason):
        world.send(world.adjudicator, REGISTER, (c.abi, state.abi, sigs), [])
    with reverts(reason):
        world.send(world.adjudicator, CONCLUDE_FINAL, c.abi, state.abi, sigs)


# -- our guarantees ---------------------------------------------------------------------------------------------------


def test_dev1_a_participant_that_is_listed_twice_owns_its_deposit_once(world: World) -> None:
    honest = Params(nonce=7)
    world.deposit(honest, 50, 50)
    twice = Params(participants=(A, A))
    world.deposit(twice, 10, 0)
    world.conclude_final(twice, world.state(twice, 1, 0, 20, final=True))
    assert world.holdings(twice, A) == 10
    with reverts("insufficient funds"):
        world.withdraw(twice, A, ADDRESS[4], 11)
    world.withdraw(twice, A, ADDRESS[4], 10)
    assert world.balance(world.eth) == 100


def test_dev1_a_participant_that_is_listed_twice_gets_both_its_shares(world: World) -> None:
    twice = Params(participants=(A, B, A))
    world.deposit(twice, 10, 5, 0)
    world.conclude_final(twice, world.state(twice, 1, 4, 8, 3, final=True))
    assert (world.holdings(twice, A), world.holdings(twice, B)) == (7, 8)


def test_dev2_a_ledger_channel_is_never_a_sub_channel(world: World) -> None:
    victim = Params(nonce=7)
    state = world.state(victim, 1, 2, 3)
    parent = Params(participants=(C,), duration=0)
    outer = world.state(parent, 1, 0, locked=((victim.id, (5,), (0, 0)),))
    with reverts("sub-channel is ledger"):
        world.register(parent, outer, (victim, state))
    assert world.dispute(victim.id).state_hash == bytes(32)


def test_dev3_a_sub_channel_keeps_its_own_time_for_refutation(world: World) -> None:
    sub = Params(nonce=2, ledger=False)
    old, new = world.state(sub, 1, 5, 0), world.state(sub, 2, 0, 5)
    parent = Params(participants=(C,), duration=0)
    outer = world.state(parent, 1, 0, locked=((sub.id, (5,), (0, 0)),))
    world.register(parent, outer, (sub, old))
    deadline = now(world) + 60
    with reverts("timeout not passed yet"):
        world.conclude(parent, outer, old)
    # Its participants still can refute, through their own parent.
    honest = Params()
    own = world.state(honest, 1, 1, 1, locked=((sub.id, (5,), (0, 1)),))
    world.register(honest, own, (sub, new), at=deadline - 1)
    assert world.dispute(sub.id).version == 2


def test_dev3_a_sub_channel_with_app_keeps_its_own_time_for_progress(world: World) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False, app=world.app)
    inner = world.state(sub, 1, 5, 0)
    outer = world.state(c, 1, 0, 0, locked=((sub.id, (5,), (0, 1)),))
    world.register(c, outer, (sub, inner))
    deadline = now(world) + 60
    with reverts("timeout not passed yet"):
        world.conclude(c, outer, inner, at=deadline)
    moved = inner.but(version=2, balances=((0, 5),))
    world.progress(sub, inner, moved, 0)
    world.deposit(c, 5, 0)
    world.conclude(c, outer, moved, at=now(world) + 60)
    assert (world.holdings(c, A), world.holdings(c, B)) == (0, 5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"balances": ()}, "one balance row per asset"),
        ({"balances": ((1, 2), (3, 4))}, "one balance row per asset"),
        ({"balances": ((1,),)}, "one balance per participant"),
        ({"balances": ((1, 2, 3),)}, "one balance per participant"),
    ],
)
def test_dev4_states_that_cannot_be_paid_out_are_refused(world: World, changes: Any, reason: str) -> None:
    c = Params()
    state = world.state(c, 1, 1, 2, final=True).but(**changes)
    with reverts(reason):
        world.register(c, state)
    with reverts(reason):
        world.conclude_final(c, state)
    assert world.dispute(c.id).state_hash == bytes(32)


def test_dev4_an_asset_is_named_once(world: World) -> None:
    c = Params()
    state = State(c.id, 1, (world.eth, world.erc20, world.eth), ((1, 2), (0, 0), (1, 2)), final=True)
    with reverts("duplicate asset"):
        world.register(c, state)
    with reverts("duplicate asset"):
        world.conclude_final(c, state)


def test_dev4_a_channel_belongs_to_somebody(world: World) -> None:
    nobody = Params(participants=())
    state = world.state(nobody, 1, final=True)
    with reverts("no participants"):
        world.register(nobody, state)
    with reverts("no participants"):
        world.conclude_final(nobody, state)


def test_dev5_a_conclusion_is_one_event_per_channel(world: World) -> None:
    c = Params()
    state = world.state(c, 1, 0, 0)
    world.register(c, state)
    assert len(updates(world.conclude(c, state, at=now(world) + 60))) == 1


# -- limits -----------------------------------------------------------------------------------------------------------


def test_only_the_lower_half_of_a_word_counts_as_duration(world: World) -> None:
    c = Params(duration=2**64 + 5)
    world.register(c, world.state(c, 1, 0, 0))
    dispute = world.dispute(c.id)
    assert (dispute.duration, dispute.timeout) == (5, now(world) + 5)


def test_a_deadline_beyond_64_bits_is_refused(world: World) -> None:
    c = Params(duration=2**64 - 1)
    with reverts("overflow"):
        world.register(c, world.state(c, 1, 0, 0))
    world.register(c, world.state(c, 1, 0, 0, final=True))
    assert world.dispute(c.id).timeout == now(world)


def word(data: bytes, index: int, value: int) -> bytes:
    """Calldata with one word (counted after the selector) replaced."""
    at = 4 + 32 * index
    return data[:at] + value.to_bytes(32) + data[at + 32 :]


def test_arguments_are_decoded_strictly(world: World) -> None:
    c = Params()
    params = calldata(f"channelID({PARAMS})", c.abi)
    state = calldata(f"hashState({STATE})", world.state(c, 1, 1, 2, locked=((c.id, (3,), (0, 1)),)).abi)
    broken = {
        "address": word(params, 8, 2**160),
        "bool": word(params, 5, 2),
        "app": word(params, 4, 2**160),
        "uint64": word(state, 2, 2**64),
        "isFinal": word(state, 5, 2),
        "truncated params": params[:-32],
        "truncated state": state[:-64],
        "uint16": state.replace(
            (2).to_bytes(32) + bytes(32) + (1).to_bytes(32), (2).to_bytes(32) + bytes(32) + (65536).to_bytes(32)
        ),
        "unknown": b"\1\2\3\4",
        "none": b"",
    }
    for name, data in broken.items():
        with reverts_empty():
            world.transact(world.adjudicator, data)
            pytest.fail(name)
    world.transact(world.adjudicator, params + b"surplus")


def test_nothing_can_be_paid_to_the_adjudicator(world: World) -> None:
    c = Params()
    state = world.state(c, 1, 0, 0)
    with reverts_empty():
        world.send(world.adjudicator, REGISTER, signed_state(c, state), [], value=1)


def test_an_asset_without_code_blocks_only_its_own_channel(world: World) -> None:
    c = Params()
    state = world.state(c, 1, 0, 0, assets=(ZERO,), final=True)
    with reverts_empty():
        world.conclude_final(c, state)
    assert world.dispute(c.id).state_hash == bytes(32)

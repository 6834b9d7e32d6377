"""C2, C3, C5 to C12, C18, C19, C21 of CHAIN.md 6.1: disputes and conclusions, honest and hostile."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi import encode
from eth_hash.auto import keccak

from perun_chain_ethereum.artifacts import ContractKind
from perun_chain_ethereum.testing import (
    ADDRESS,
    AUTH,
    CONCLUDE,
    CONCLUDE_FINAL,
    PROGRESS,
    WITHDRAW,
    ZERO,
    Params,
    State,
    World,
    calldata,
    sign,
)

from .scenes import (
    CONCLUDED,
    DISPUTE,
    FORCEEXEC,
    MAX,
    PEOPLE,
    A,
    B,
    C,
    conclude_final,
    deploy,
    now,
    register,
    reverts,
    reverts_empty,
    signed_by,
    updates,
)

N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
LATE = 10_000


def sub_of(parent: State, sub: Params, total: int, index_map: tuple[int, ...] = (0, 1)) -> State:
    """`parent` with funds locked for one more sub-channel."""
    return parent.but(locked=(*parent.locked, (sub.id, (total,), index_map)))


# -- C2, C3: registering and refuting ---------------------------------------------------------------------------------


def test_c2_register_accepts_exactly_what_all_participants_signed(world: World) -> None:
    c = Params()
    state = world.state(c, 1, 3, 4)
    a, b = state.signed((A, B))
    with reverts("not ledger"):
        world.register(Params(ledger=False), state)
    for changed in (Params(duration=61), Params(nonce=2), Params(app=ADDRESS[4]), Params(participants=(B, A))):
        with reverts("invalid params"):
            world.register(changed, state)
    with reverts("signatures length mismatch"):
        register(world, c, state, [a])
    with reverts("signatures length mismatch"):
        register(world, c, state, [a, b, a])
    with reverts("invalid signature"):
        register(world, c, state, [a, sign(C, state.hash)])
    with reverts("invalid signature"):
        register(world, c, state.but(version=2), [a, b])
    assert updates(register(world, c, state, [a, b])) == [(c.id, 1, DISPUTE, now(world) + 60)]
    assert updates(register(world, c, state, [a, b])) == []
    with reverts("signatures length mismatch"):
        register(world, c, state, [])


def test_c2_anybody_may_register(world: World) -> None:
    c = Params()
    state = world.state(c, 1, 0, 0)
    world.register(c, state)
    data = world.chain.transaction(bytes.fromhex(world.register(c, state)["transactionHash"][2:]))
    assert data is not None
    world.transact(world.adjudicator, bytes.fromhex(data["input"][2:]), sender=ADDRESS[4])


def test_c3_a_refutation_is_newer_signed_and_in_time(world: World) -> None:
    c = Params()
    v5 = world.state(c, 5, 1, 1)
    world.register(c, v5)
    deadline = now(world) + 60
    for version in (0, 4, 5):
        with reverts("invalid version"):
            world.register(c, v5.but(version=version, data=b"other"))
    v6 = v5.but(version=6)
    with reverts("invalid signature"):
        register(world, c, v6, v6.signed((B, B)))
    with reverts("invalid params"):
        register(world, c, v6.but(channel=bytes(32)), v6.signed((A, B)))
    assert updates(world.register(c, v6)) == [(c.id, 6, DISPUTE, deadline)]
    assert updates(world.register(c, v5.but(version=900))) == [(c.id, 900, DISPUTE, deadline)]
    with reverts("invalid version"):
        world.register(c, v5)
    with reverts("refutation timeout passed"):
        world.register(c, v5.but(version=901), at=deadline)
    # A lower version is named first, whatever the time.
    with reverts("invalid version"):
        world.register(c, v6)


def test_c3_a_final_state_ends_the_dispute_at_once(world: World) -> None:
    c = Params()
    world.register(c, world.state(c, 1, 0, 0))
    final = world.state(c, 2, 0, 0, final=True)
    assert updates(world.register(c, final)) == [(c.id, 2, DISPUTE, now(world))]
    world.conclude(c, final)


# -- C5: signatures ---------------------------------------------------------------------------------------------------


def encodings(sig: bytes) -> list[tuple[str, bytes]]:
    r, s, v = sig[:32], int.from_bytes(sig[32:64]), sig[64]
    return [
        ("ECDSA: invalid signature length", sig[:64]),
        ("ECDSA: invalid signature length", b""),
        ("ECDSA: invalid signature length", sig + b"\0"),
        ("ECDSA: invalid signature 's' value", r + (N - s).to_bytes(32) + bytes([55 - v])),
        ("ECDSA: invalid signature 's' value", r + (N // 2 + 1).to_bytes(32) + bytes([v])),
        ("ECDSA: invalid signature 's' value", r + MAX.to_bytes(32) + b"\0"),
        *(("ECDSA: invalid signature 'v' value", sig[:64] + bytes([bad])) for bad in (0, 1, 26, 29, 255)),
        ("ECDSA: invalid signature", bytes(32) + sig[32:]),
        ("ECDSA: invalid signature", N.to_bytes(32) + sig[32:]),
        ("ECDSA: invalid signature", r + bytes(32) + bytes([v])),
        ("own reason", r + (N // 2).to_bytes(32) + bytes([v])),
        ("own reason", sig[:64] + bytes([55 - v])),
    ]


@pytest.mark.parametrize("index", range(16))
def test_c5_every_call_accepts_one_encoding_of_a_signature(world: World, index: int) -> None:
    c = Params(app=world.app)
    v1, v2 = world.state(c, 1, 0, 0), world.state(c, 2, 0, 0)
    final = v2.but(final=True)

    def expected(reason: str, own: str) -> Any:
        return reverts(own if reason == "own reason" else reason)

    reason, bad = encodings(sign(B, v1.hash))[index]
    with expected(reason, "invalid signature"):
        register(world, c, v1, [sign(A, v1.hash), bad])
    reason, bad = encodings(sign(B, final.hash))[index]
    with expected(reason, "invalid signature"):
        conclude_final(world, c, final, [sign(A, final.hash), bad])
    world.register(c, v1)
    reason, bad = encodings(sign(A, v2.hash))[index]
    with expected(reason, "invalid signature"):
        world.send(world.adjudicator, PROGRESS, c.abi, v1.abi, v2.abi, 0, bad, at=now(world) + 60)
    world.conclude_final(c, final)
    auth = (c.id, A, ADDRESS[4], 0)
    reason, bad = encodings(authorized(auth))[index]
    with expected(reason, "signature verification failed"):
        world.send(world.eth, WITHDRAW, auth, bad)


def authorized(auth: tuple[bytes, str, str, int]) -> bytes:
    """The signature of the participant on an authorization."""
    return sign(auth[1], keccak(encode([AUTH], [auth])))


# -- C6: virtual channels ---------------------------------------------------------------------------------------------


def test_c6_a_virtual_channel_is_plain_and_works_as_a_sub_channel(world: World) -> None:
    for app, locked, reason in (
        (world.app, (), "cannot have app"),
        (ZERO, ((bytes(32), (0,), ()),), "cannot have locked funds"),
    ):
        bad = Params(virtual=True, app=app)
        with reverts(reason):
            world.register(bad, world.state(bad, 1, 0, 0, locked=locked))
    parent, virtual = Params(), Params(nonce=2, ledger=False, virtual=True)
    inner = world.state(virtual, 1, 0, 6)
    outer = sub_of(world.state(parent, 1, 1, 1), virtual, 6)
    world.deposit(parent, 4, 4)
    world.register(parent, outer, (virtual, inner))
    world.conclude(parent, outer, inner, at=now(world) + 60)
    assert (world.holdings(parent, A), world.holdings(parent, B)) == (1, 7)


# -- C7: sub-channels -------------------------------------------------------------------------------------------------


def test_c7_every_sub_channel_is_there_and_holds_what_is_locked(world: World) -> None:
    c, sub, other = Params(), Params(nonce=2, ledger=False), Params(nonce=3, ledger=False)
    inner = world.state(sub, 1, 2, 3)
    root = world.state(c, 1, 1, 2)
    outer = sub_of(root, sub, 5)
    with reverts("subChannels: too short"):
        world.register(c, outer)
    with reverts("invalid sub-channel id"):
        world.register(c, outer, (other, world.state(other, 1, 2, 3)))
    with reverts("invalid params"):
        world.register(c, outer, (other, inner))
    for total in (4, 6, 0, MAX):
        with reverts("uint256[]: unequal item"):
            world.register(c, sub_of(root, sub, total), (sub, inner))
    with reverts("uint256[]: unequal length"):
        world.register(c, root.but(locked=((sub.id, (), (0, 1)),)), (sub, inner))
    with reverts("address[]: unequal item"):
        world.register(c, outer, (sub, inner.but(assets=(world.erc20,))))
    with reverts("address[]: unequal length"):
        world.register(c, outer, (sub, inner.but(assets=(world.eth, world.erc20), balances=((2, 3), (0, 0)))))
    assert world.dispute(c.id).state_hash == bytes(32), "nothing of a refused tree stays"
    world.register(c, outer, (sub, inner), (other, world.state(other, 1, 2, 3)))
    assert world.dispute(other.id).state_hash == bytes(32), "surplus entries are ignored"


def test_c7_a_tree_of_depth_two_is_a_depth_first_list(world: World) -> None:
    c, mid, leaf, tail = Params(), *(Params(nonce=n, ledger=False) for n in (2, 3, 4))
    leaf_state, tail_state = world.state(leaf, 1, 1, 2), world.state(tail, 1, 4, 0)
    mid_state = sub_of(world.state(mid, 1, 3, 0), leaf, 3, (1, 0))
    root = sub_of(sub_of(world.state(c, 1, 5, 5), mid, 6), tail, 4)
    with reverts("invalid sub-channel id"):
        world.register(c, root, (mid, mid_state), (tail, tail_state), (leaf, leaf_state))
    with reverts("Panic(0x32)"):
        world.register(c, root, (mid, mid_state), (leaf, leaf_state))
    with reverts("uint256[]: unequal item"):
        world.register(c, root, (mid, mid_state), (leaf, leaf_state.but(balances=((1, 3),))), (tail, tail_state))
    receipt = world.register(c, root, (mid, mid_state), (leaf, leaf_state), (tail, tail_state))
    assert [update[0] for update in updates(receipt)] == [c.id, mid.id, leaf.id, tail.id]


def test_c7_a_newer_sub_state_refutes_on_its_own(world: World) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False)
    outer = sub_of(world.state(c, 1, 1, 2), sub, 5)
    old, new = world.state(sub, 1, 5, 0), world.state(sub, 2, 0, 5)
    world.deposit(c, 4, 4)
    world.register(c, outer, (sub, old))
    assert updates(world.register(c, outer, (sub, new))) == [(sub.id, 2, DISPUTE, now(world) + 59)]
    with reverts("invalid channel state"):
        world.conclude(c, outer, old, at=now(world) + 60)
    world.conclude(c, outer, new)
    assert (world.holdings(c, A), world.holdings(c, B)) == (1, 7)


# -- C8: durations ----------------------------------------------------------------------------------------------------


def test_c8_without_duration_the_first_word_is_the_last(world: World) -> None:
    c = Params(duration=0)
    v1 = world.state(c, 1, 0, 0)
    world.register(c, v1)
    with reverts("refutation timeout passed"):
        world.register(c, world.state(c, 2, 0, 0))
    world.conclude(c, v1)


@pytest.mark.parametrize(("duration", "counts"), [(2**64, 0), (2**64 + 7, 7), (MAX - 2**64 + 1 + 9, 9)])
def test_c8_only_64_bits_of_a_duration_count(world: World, duration: int, counts: int) -> None:
    c = Params(duration=duration)
    world.register(c, world.state(c, 1, 0, 0))
    assert (world.dispute(c.id).duration, world.dispute(c.id).timeout) == (counts, now(world) + counts)


def test_c8_no_deadline_wraps(world: World) -> None:
    c = Params(duration=2**64 - 1, app=world.app)
    with reverts("overflow"):
        world.register(c, world.state(c, 1, 0, 0))
    at = now(world) + 10
    # The deadline of the dispute is still a 64-bit number, that of the conclusion is not.
    edge = Params(duration=2**64 - 1 - at, nonce=2, app=world.app)
    state = world.state(edge, 1, 0, 0)
    world.register(edge, state, at=at)
    assert world.dispute(edge.id).timeout == 2**64 - 1
    with reverts("overflow"):
        world.conclude(edge, state)


# -- C9: progress -----------------------------------------------------------------------------------------------------


def test_c9_progress_checks_in_the_published_order(world: World) -> None:
    c = Params(app=world.app)
    locked = ((bytes(31) + b"\1", (7,), (0, 1)),)
    sub = Params(nonce=9, ledger=False)
    outer = sub_of(world.state(c, 1, 5, 5), sub, 5)
    moved = outer.but(version=2, balances=((6, 4),))

    def go(params: Params, old: State, new: State, actor: int = 0, sig: bytes | None = None, **at: int) -> None:
        sig = sign(A if actor == 0 else B, new.hash) if sig is None else sig
        world.send(world.adjudicator, PROGRESS, params.abi, old.abi, new.abi, actor, sig, **at)

    with reverts("not registered"):
        go(c, outer, moved)
    world.register(c, outer, (sub, world.state(sub, 1, 2, 3)))
    with reverts("timeout not passed"):
        go(Params(), outer, moved, 9, b"")
    late = now(world) + 60
    with reverts("must have app"):
        go(Params(), outer, moved, 9, b"", at=late)
    with reverts("actorIdx out of range"):
        go(Params(app=world.app, nonce=5), outer, moved, 2, b"")
    with reverts("invalid params"):
        go(Params(app=world.app, nonce=5), moved, moved, 0, b"")
    with reverts("wrong old state"):
        go(c, moved, moved, 0, b"")
    with reverts("ECDSA: invalid signature length"):
        go(c, outer, moved.but(version=3), 0, b"")
    with reverts("invalid signature"):
        go(c, outer, moved.but(version=3), 1, sign(A, moved.but(version=3).hash))
    for version in (0, 1, 3, 2**64 - 1):
        with reverts("version must increment by one"):
            go(c, outer, moved.but(version=version, balances=()))
    preserved = [
        ("balances length mismatch", {"balances": (), "assets": ()}),
        ("assets length mismatch", {"assets": (), "locked": ()}),
        ("SubAlloc[]: unequal length", {"locked": ()}),
        ("SubAlloc: unequal ID", {"locked": locked}),
        ("uint256[]: unequal length", {"locked": ((sub.id, (), (0, 1)),)}),
        ("uint256[]: unequal item", {"locked": ((sub.id, (6,), (0, 1)),)}),
        ("uint16[]: unequal length", {"locked": ((sub.id, (5,), (0,)),)}),
        ("uint16[]: unequal item", {"locked": ((sub.id, (5,), (1, 0)),)}),
        ("assets[i] address mismatch", {"assets": (world.erc20,), "balances": ((1,),)}),
        ("new balances length mismatch", {"balances": ((10,),)}),
        ("new balances length mismatch", {"balances": ((5, 4, 1),)}),
        ("sum of balances mismatch", {"balances": ((5, 6),)}),
        ("SafeMath: addition overflow", {"balances": ((MAX, 1),)}),
    ]
    for reason, changes in preserved:
        with reverts(reason):
            go(c, outer, moved.but(**changes))
    go(c, outer, moved, 1)
    with reverts("wrong old state"):
        go(c, outer, moved, 1)
    go(c, moved, moved.but(version=3, balances=((0, 10),)), 0)
    with reverts("timeout passed"):
        go(c, outer, moved, 0, at=now(world) + 60)


def test_c9_progress_ends_with_a_final_state_and_with_the_conclusion(world: World) -> None:
    c = Params(app=world.app)
    v1, v2 = world.state(c, 1, 0, 0), world.state(c, 2, 0, 0, final=True)
    world.register(c, v1)
    assert updates(world.progress(c, v1, v2, 0, at=now(world) + 60)) == [(c.id, 2, FORCEEXEC, now(world))]
    with reverts("timeout passed"):
        world.progress(c, v2, v2.but(version=3), 0)
    world.conclude(c, v2)
    with reverts("invalid phase"):
        world.progress(c, v2, v2.but(version=3), 0)
    # A registered final state cannot be progressed either.
    d = Params(app=world.app, nonce=2)
    final = world.state(d, 1, 0, 0, final=True)
    world.register(d, final)
    with reverts("cannot progress from final state"):
        world.progress(d, final, final.but(version=2, final=False), 0)


def test_c9_apps_decide_and_cannot_do_anything_else(world: World) -> None:
    first_only, writing = deploy(world, "FirstOnlyApp"), deploy(world, "WritingApp")
    for app, actor, refusal in (
        (first_only, 1, reverts("FirstOnlyApp: not your move")),
        (writing, 0, reverts_empty()),
        (ADDRESS[4], 0, reverts_empty()),
        (world.token, 0, reverts_empty()),
    ):
        c = Params(app=app)
        v1 = world.state(c, 1, 0, 0)
        world.register(c, v1)
        with refusal:
            world.progress(c, v1, v1.but(version=2), actor, at=now(world) + 60)
        assert world.dispute(c.id).version == 1
    c = Params(app=first_only)
    v1 = world.state(c, 1, 0, 0)
    world.progress(c, v1, v1.but(version=2), 0)
    assert world.dispute(c.id).phase == FORCEEXEC


def test_c9_after_the_last_version_comes_the_first(world: World) -> None:
    c = Params(app=world.app)
    last = world.state(c, 2**64 - 1, 0, 0)
    world.register(c, last)
    world.progress(c, last, last.but(version=0), 0, at=now(world) + 60)
    assert world.dispute(c.id).version == 0


def test_c9_a_sub_channel_can_be_progressed(world: World) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False, app=world.app)
    inner = world.state(sub, 1, 5, 0)
    outer = sub_of(world.state(c, 1, 0, 0), sub, 5)
    world.deposit(c, 0, 5)
    world.register(c, outer, (sub, inner))
    moved = inner.but(version=2, balances=((1, 4),))
    world.progress(sub, inner, moved, 1, at=now(world) + 60)
    with reverts("invalid channel state"):
        world.conclude(c, outer, inner)
    with reverts("timeout not passed yet"):
        world.conclude(c, outer, moved)
    world.conclude(c, outer, moved, at=now(world) + 60)
    assert (world.holdings(c, A), world.holdings(c, B)) == (1, 4)


# -- C10, C11: conclusions --------------------------------------------------------------------------------------------


def test_c10_conclude_checks_in_the_published_order(world: World) -> None:
    c, sub, other = Params(), Params(nonce=2, ledger=False), Params(nonce=3, ledger=False)
    inner = world.state(sub, 1, 2, 3)
    outer = sub_of(world.state(c, 1, 1, 2), sub, 5)
    with reverts("not ledger"):
        world.conclude(sub, outer)
    with reverts("invalid params"):
        world.conclude(c, inner)
    with reverts("not registered"):
        world.conclude(c, outer)
    world.register(c, outer, (sub, inner))
    with reverts("invalid channel state"):
        world.conclude(c, outer.but(version=2))
    with reverts("timeout not passed yet"):
        world.conclude(c, outer)
    with reverts("Panic(0x32)"):
        world.conclude(c, outer, at=now(world) + 60)
    with reverts("invalid subchannel id"):
        world.conclude(c, outer, world.state(other, 1, 2, 3))
    with reverts("invalid channel state"):
        world.conclude(c, outer, inner.but(version=2))
    assert world.dispute(c.id).phase == DISPUTE, "a refused conclusion changes nothing"
    receipt = world.conclude(c, outer, inner, inner)
    assert [(update[0], update[2]) for update in updates(receipt)] == [(c.id, CONCLUDED), (sub.id, CONCLUDED)]
    for state in (outer, outer.but(version=2)):
        with reverts("channel already concluded" if state is outer else "invalid channel state"):
            world.conclude(c, state, inner)


@pytest.mark.parametrize(
    ("index_map", "expected"),
    [
        ((0, 1), (3, 5)),
        ((1, 0), (4, 4)),
        ((0, 0), (6, 2)),
        ((1,), (1, 4)),
        ((), (1, 2)),
        ((0, 2), None),
        ((0, 1, 1), None),
    ],
)
def test_c10_an_index_map_says_who_gets_the_outcome_of_a_sub_channel(
    world: World, index_map: tuple[int, ...], expected: tuple[int, int] | None
) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False)
    inner = world.state(sub, 1, 2, 3)
    outer = sub_of(world.state(c, 1, 1, 2), sub, 5, index_map)
    world.deposit(c, 4, 4)
    world.register(c, outer, (sub, inner))
    if expected is None:
        with reverts("Panic(0x32)"):
            world.conclude(c, outer, inner, at=now(world) + 60)
        return
    world.conclude(c, outer, inner, at=now(world) + 60)
    assert (world.holdings(c, A), world.holdings(c, B)) == expected


def test_c11_conclude_final_checks_in_the_published_order(world: World) -> None:
    c = Params()
    final = world.state(c, 1, 0, 0, final=True)
    a, b = final.signed((A, B))
    wrong = final.but(final=False, locked=((bytes(32), (), ()),), channel=bytes(32))
    with reverts("not ledger"):
        conclude_final(world, Params(ledger=False), wrong, [])
    with reverts("state not final"):
        conclude_final(world, c, wrong, [])
    with reverts("cannot have sub-channels"):
        conclude_final(world, c, wrong.but(final=True), [])
    with reverts("invalid params"):
        conclude_final(world, c, wrong.but(final=True, locked=()), [])
    for sigs in ([], [a], [a, b, b]):
        with reverts("signatures length mismatch"):
            conclude_final(world, c, final, sigs)
    with reverts("invalid signature"):
        conclude_final(world, c, final, [b, a])
    assert updates(conclude_final(world, c, final, [a, b])) == [(c.id, 1, CONCLUDED, now(world))]
    with reverts("channel already concluded"):
        conclude_final(world, c, final, [a, b])


@pytest.mark.parametrize("version", [0, 5, 9])
@pytest.mark.parametrize("seconds", [1, 60, LATE])
@pytest.mark.parametrize("progressed", [False, True])
def test_c11_agreement_wins_over_a_dispute(world: World, version: int, seconds: int, progressed: bool) -> None:
    c = Params(app=world.app)
    world.deposit(c, 10, 20)
    v4, v5 = world.state(c, 4, 10, 20), world.state(c, 5, 20, 10)
    world.register(c, v4)
    if progressed:
        world.progress(c, v4, v5, 0, at=now(world) + 60)
    world.conclude_final(c, world.state(c, version, 29, 1, final=True), at=now(world) + seconds)
    assert (world.holdings(c, A), world.holdings(c, B)) == (29, 1)
    dispute = world.dispute(c.id)
    assert (dispute.phase, dispute.version, dispute.timeout) == (CONCLUDED, version, now(world))


# -- C12 --------------------------------------------------------------------------------------------------------------


def test_c12_registering_the_registered_state_is_a_silent_no_op_in_every_phase(world: World) -> None:
    c, agreed = Params(app=world.app), Params(nonce=2)
    v1, v2 = world.state(c, 1, 0, 0), world.state(c, 2, 0, 0)
    final = world.state(agreed, 1, 0, 0, final=True)

    def again(params: Params, state: State, at: int | None = None) -> None:
        before = world.dispute(params.id)
        assert world.register(params, state, at=at)["logs"] == []
        assert world.dispute(params.id) == before

    world.register(c, v1)
    again(c, v1)
    again(c, v1, now(world) + 100)
    world.progress(c, v1, v2, 0)
    again(c, v2)
    again(c, v2, now(world) + 100)
    world.conclude(c, v2)
    again(c, v2)
    world.conclude_final(agreed, final)
    again(agreed, final)


# -- C18: sub-channels of strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [0, 60])
def test_c18_a_ledger_channel_is_never_a_sub_channel(world: World, duration: int) -> None:
    victim = Params(nonce=7)
    world.deposit(victim, 10, 10)
    old, new = world.state(victim, 1, 20, 0), world.state(victim, 2, 0, 20)
    world.register(victim, old)
    stranger = Params(participants=(C,), duration=duration)
    outer = world.state(stranger, 1, 0, locked=((victim.id, (20,), (0, 0)),))
    with reverts("sub-channel is ledger"):
        world.register(stranger, outer, (victim, old))
    # Nothing that strangers do keeps the channel from its own course.
    world.register(victim, new)
    world.conclude(victim, new, at=now(world) + 60)
    assert (world.holdings(victim, A), world.holdings(victim, B)) == (0, 20)


def test_c18_a_stranger_without_participants_is_no_channel(world: World) -> None:
    sub = Params(nonce=2, ledger=False)
    inner = world.state(sub, 1, 5, 0)
    nobody = Params(participants=(), duration=0)
    outer = world.state(nobody, 1, locked=((sub.id, (5,), ()),))
    with reverts("no participants"):
        world.register(nobody, outer, (sub, inner))
    assert world.dispute(sub.id).state_hash == bytes(32)


def test_c18_a_foreign_parent_ends_no_dispute_of_a_sub_channel(world: World) -> None:
    sub, stranger, honest = Params(nonce=2, ledger=False), Params(participants=(C,), duration=0), Params()
    old, new = world.state(sub, 1, 5, 0), world.state(sub, 2, 0, 5)
    world.deposit(honest, 5, 2)
    outer = sub_of(world.state(stranger, 1, 0), sub, 5, (0, 0))
    own_old = sub_of(world.state(honest, 1, 1, 1), sub, 5)
    world.register(honest, own_old, (sub, old))
    deadline = now(world) + 60
    world.register(stranger, outer, (sub, old))
    for at in (None, deadline - 2):
        with reverts("timeout not passed yet"):
            world.conclude(stranger, outer, old, at=at)
    assert updates(world.register(honest, own_old, (sub, new), at=deadline - 1)) == [(sub.id, 2, DISPUTE, deadline)]
    with reverts("invalid channel state"):
        world.conclude(stranger, outer, old, at=deadline)
    world.conclude(honest, own_old, new)
    assert (world.holdings(honest, A), world.holdings(honest, B)) == (1, 6)


def test_c18_a_sub_channel_concluded_elsewhere_still_pays_its_parent(world: World) -> None:
    sub, stranger, honest = Params(nonce=2, ledger=False), Params(participants=(C,), duration=0), Params()
    inner = world.state(sub, 1, 5, 0)
    world.deposit(honest, 5, 2)
    outer = sub_of(world.state(stranger, 1, 0), sub, 5, (0, 0))
    own = sub_of(world.state(honest, 1, 1, 1), sub, 5)
    world.register(honest, own, (sub, inner))
    world.register(stranger, outer, (sub, inner))
    world.conclude(stranger, outer, inner, at=now(world) + 60)
    assert world.dispute(sub.id).phase == CONCLUDED
    receipt = world.conclude(honest, own, inner)
    assert [update[0] for update in updates(receipt)] == [honest.id]
    assert (world.holdings(honest, A), world.holdings(honest, B)) == (6, 1)
    # The stranger's channel never held anything, so it pays nothing.
    assert world.holdings(stranger, C) == 0


# -- C19: assets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"balances": ()}, "one balance row per asset"),
        ({"assets": ()}, "one balance row per asset"),
        ({"balances": ((1, 2), (3, 4))}, "one balance row per asset"),
        ({"balances": ((1,),)}, "one balance per participant"),
        ({"balances": ((1, 2, 3),)}, "one balance per participant"),
        ({"balances": ((),)}, "one balance per participant"),
    ],
)
def test_c19_a_state_has_one_balance_per_asset_and_participant(world: World, changes: Any, reason: str) -> None:
    c, sub = Params(), Params(nonce=2, ledger=False)
    state = world.state(c, 1, 1, 2, final=True).but(**changes)
    with reverts(reason):
        world.register(c, state)
    with reverts(reason):
        world.conclude_final(c, state)
    inner = world.state(sub, 1, 1, 2).but(**changes)
    with reverts(reason):
        world.register(c, sub_of(world.state(c, 1, 0, 0), sub, 3), (sub, inner))
    assert world.dispute(c.id).state_hash == bytes(32)


def test_c19_an_asset_is_listed_once(world: World) -> None:
    c = Params()
    state = State(c.id, 1, (world.eth, world.erc20, world.eth), ((1, 2), (0, 0), (1, 2)), final=True)
    with reverts("duplicate asset"):
        world.register(c, state)
    with reverts("duplicate asset"):
        world.conclude_final(c, state)


def test_c19_a_bad_asset_stops_only_the_channels_that_chose_it(world: World) -> None:
    foreign = world.deploy(ContractKind.ETH_HOLDER, ["address"], ADDRESS[4])
    hostile = deploy(world, "HostileAsset")
    world.send(hostile, "refuse(bool)", True)
    honest = Params(nonce=99)
    world.deposit(honest, 10, 20)
    cases = (
        (ADDRESS[4], reverts_empty()),
        (world.app, reverts_empty()),
        (foreign, reverts("can only be called by the adjudicator")),
        (hostile, reverts("HostileAsset: no")),
    )
    for nonce, (asset, refusal) in enumerate(cases):
        c = Params(nonce=nonce)
        world.deposit(c, 1, 0)
        state = State(c.id, 1, (world.eth, asset), ((0, 1), (0, 0)), final=True)
        with refusal:
            world.conclude_final(c, state)
        assert (world.holdings(c, A), world.holdings(c, B)) == (1, 0), "all or nothing"
        disputed = state.but(final=False)
        world.register(c, disputed)
        with refusal:
            world.conclude(c, disputed, at=now(world) + 60)
    world.conclude_final(honest, world.state(honest, 1, 0, 30, final=True))
    assert world.holdings(honest, B) == 30


def test_c19_an_asset_that_calls_back_gains_nothing(world: World) -> None:
    hostile = deploy(world, "HostileAsset")
    again, early = Params(nonce=1), Params(nonce=2)
    for c in (again, early):
        world.deposit(c, 10, 20)
        final = State(c.id, 1, (hostile, world.eth), ((0, 0), (0, 30)), final=True)
        # To conclude once more; to take A's deposit before the outcome that gives it to B is set.
        attempt = (world.adjudicator, final_call(c, final)) if c is again else (world.eth, withdrawal(c, A, 10))
        world.send(hostile, "aim(address,bytes)", *attempt)
        world.conclude_final(c, final)
        assert (world.holdings(c, A), world.holdings(c, B)) == (0, 30)
    assert world.read(hostile, "attempts()", ["uint256"]) == (2,)
    assert world.read(hostile, "successes()", ["uint256"]) == (0,)


def final_call(params: Params, state: State) -> bytes:
    return calldata(CONCLUDE_FINAL, params.abi, state.abi, state.signed(params.participants))


def withdrawal(params: Params, participant: str, amount: int) -> bytes:
    auth = (params.id, participant, ADDRESS[4], amount)
    return calldata(WITHDRAW, auth, authorized(auth))


# -- C21: sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 11))
def test_c21_one_to_ten_participants_with_two_assets(world: World, count: int) -> None:
    people = tuple(PEOPLE)[:count]
    c = Params(participants=people)
    amounts = tuple(range(1, count + 1))
    turned = (*amounts[1:], amounts[0])
    world.deposit(c, *amounts)
    world.deposit(c, *amounts, holder=world.erc20)
    v1 = State(c.id, 1, (world.eth, world.erc20), (amounts, amounts))
    v2 = v1.but(version=2, balances=(turned, amounts[::-1]))
    register(world, c, v1, signed_by(people, v1.hash))
    register(world, c, v2, signed_by(people, v2.hash))
    world.send(world.adjudicator, CONCLUDE, c.abi, v2.abi, [], at=now(world) + 60)
    assert tuple(world.holdings(c, person) for person in people) == turned
    assert tuple(world.holdings(c, person, world.erc20) for person in people) == amounts[::-1]


def test_c21_twenty_parties_agree(world: World) -> None:
    people = tuple(PEOPLE) * 2
    c = Params(participants=people)
    final = State(c.id, 1, (world.eth,), (tuple(range(20)),), final=True)
    world.send(world.eth, "deposit(bytes32,uint256)", c.id, 190, value=190)
    conclude_final(world, c, final, signed_by(people, final.hash))
    # Everybody is listed twice and gets both shares.
    assert [world.holdings(c, person) for person in PEOPLE] == [index + index + 10 for index in range(10)]

"""Hashing a state is a visible part of a payment's cost, so neither side hashes one twice."""

from __future__ import annotations

from msgspec.structs import replace

from perun_core.channel import State
from perun_core.profile.gp090 import GP090
from perun_core.protocol.events import Payment, UserAccepted, UserPaid
from perun_core.testing.conversation import Pair
from perun_core.values import Bytes32


class Counting(GP090):
    """The profile, with a list of the states it hashed."""

    def __init__(self) -> None:
        self.hashed: list[State] = []

    def state_hash(self, state: State) -> Bytes32:
        self.hashed.append(state)
        return super().state_hash(state)


def test_each_side_hashes_the_state_of_a_payment_once() -> None:
    pair = Pair()
    profiles = (Counting(), Counting())
    for side, profile in zip(pair.sides, profiles, strict=True):
        side.machine.terms = replace(side.machine.terms, profile=profile)
    pair.alice.handle(UserPaid(1, (Payment(0, 0, 10),)))
    pair.deliver()
    pair.bob.handle(UserAccepted(2, 1))
    pair.deliver()
    agreed = pair.alice.machine.state
    assert agreed == pair.bob.machine.state
    assert agreed.version == 1
    assert [profile.hashed for profile in profiles] == [[agreed], [agreed]]


def test_a_state_that_differs_only_in_one_field_has_a_hash_of_its_own() -> None:
    pair = Pair()
    machine = pair.alice.machine
    final = replace(machine.state, is_final=True)
    assert machine._hash(machine.state) != machine._hash(final)
    assert machine._hash(final) == GP090().state_hash(final)

"""Each outcome of a synchronisation (PROTOCOL.md 7.4.3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from coincurve import PrivateKey
from msgspec.structs import replace

from perun_core.channel import Allocation, Asset, Params, Phase, State, SubAlloc, Transaction
from perun_core.errors import RuleViolated
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.sync_rules import SyncDecision, decide, phase_after_adopting, y1_belongs, y7_fully_signed
from perun_core.values import Address, Bytes32, ChannelID, Sig, keccak256

Sign = Callable[[bytes, Bytes32], Sig]

SECRETS = (b"\x11" * 32, b"\x22" * 32)
PARTS = tuple(Address(keccak256(PrivateKey(secret).public_key.format(compressed=False)[1:])[12:]) for secret in SECRETS)
PARAMS = Params(60, PARTS, None, 7, True, False)
ID = PROFILE.channel_id(PARAMS)
OWN = State(ID, 5, Allocation((Asset(Address(b"\xe0" * 20)),), ((10, 20),)))


@pytest.fixture
def signed(sign: Sign) -> Callable[[State], Transaction]:
    """A state with the signatures of both."""

    def with_sigs(state: State) -> Transaction:
        return Transaction(state, tuple(sign(secret, PROFILE.state_hash(state)) for secret in SECRETS))

    return with_sigs


def decision(received: Transaction, *marks: Bytes32) -> SyncDecision:
    return decide(PARAMS, ID, own=Transaction(OWN), received=received, signed=marks, profile=PROFILE)


@pytest.mark.parametrize(
    "state",
    [
        replace(OWN, id=ChannelID(bytes(32))),
        replace(OWN, app=Address(b"\xdd" * 20)),
        OWN.next(balances=((10, 20, 0),)),
        OWN.next(balances=((10, 21),)),
        OWN.next(balances=((-1, 31),)),
        replace(OWN, allocation=Allocation((Asset(Address(b"\xe1" * 20)),), ((10, 20),))),
        replace(
            OWN.next(is_final=True),
            allocation=replace(OWN.allocation, balances=((5, 20),), locked=(SubAlloc(ChannelID(bytes(32)), (5,)),)),
        ),
    ],
)
def test_y1_what_is_not_a_state_of_the_channel_is_ignored(state: State) -> None:
    with pytest.raises(RuleViolated, match=r"^Y-1"):
        y1_belongs(PARAMS, ID, OWN, Transaction(state, (None, None)))
    assert decision(Transaction(state, (None, None))) is SyncDecision.IGNORE


def test_y1_no_state_is_ignored() -> None:
    assert decision(Transaction(None)) is SyncDecision.IGNORE


def test_y2_a_peer_that_is_behind_is_answered(signed: Callable[[State], Transaction]) -> None:
    assert decision(signed(replace(OWN, version=3))) is SyncDecision.ANSWER_OURS
    assert decision(Transaction(replace(OWN, version=0), (None, None))) is SyncDecision.ANSWER_OURS


def test_y2_a_peer_that_is_behind_by_one_may_miss_our_acceptance(signed: Callable[[State], Transaction]) -> None:
    assert decision(signed(replace(OWN, version=4))) is SyncDecision.RESEND_ACC


def test_y3_the_same_state_is_in_sync(signed: Callable[[State], Transaction]) -> None:
    assert decision(signed(OWN)) is SyncDecision.IN_SYNC


def test_y3_the_same_state_without_signatures_changes_nothing() -> None:
    assert decision(Transaction(OWN, (None, None))) is SyncDecision.KEEP


def test_y4_another_state_of_the_same_version_is_a_fork(signed: Callable[[State], Transaction]) -> None:
    other = replace(OWN, allocation=replace(OWN.allocation, balances=((0, 30),)))
    assert decision(signed(other)) is SyncDecision.FORK


def test_y4_only_with_valid_signatures(signed: Callable[[State], Transaction]) -> None:
    other = replace(OWN, allocation=replace(OWN.allocation, balances=((0, 30),)))
    assert decision(Transaction(other, signed(OWN).sigs)) is SyncDecision.IGNORE


def test_y5_a_newer_state_that_we_signed_is_adopted(signed: Callable[[State], Transaction]) -> None:
    newer = replace(OWN, version=9)
    assert decision(signed(newer), PROFILE.state_hash(newer)) is SyncDecision.ADOPT


def test_y6_a_newer_state_that_we_forgot_is_for_recovery(signed: Callable[[State], Transaction]) -> None:
    assert decision(signed(replace(OWN, version=9)), PROFILE.state_hash(OWN)) is SyncDecision.ADOPT_RECOVERY


def test_y7_a_newer_state_with_missing_or_wrong_signatures_is_ignored(signed: Callable[[State], Transaction]) -> None:
    newer = replace(OWN, version=9)
    mark = PROFILE.state_hash(newer)
    first, second = signed(newer).sigs
    for sigs in ((first, None), (None, second), (second, first), (first, second, first), (), signed(OWN).sigs):
        with pytest.raises(RuleViolated, match=r"^Y-7"):
            y7_fully_signed(PARAMS, mark, Transaction(newer, sigs), PROFILE)
        assert decision(Transaction(newer, sigs), mark) is SyncDecision.IGNORE


def test_y8_a_final_state_leads_to_final() -> None:
    assert phase_after_adopting(replace(OWN, is_final=True)) is Phase.FINAL
    assert phase_after_adopting(OWN) is Phase.ACTING


def test_a_channel_without_a_state_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="has a state"):
        decide(PARAMS, ID, own=Transaction(None), received=Transaction(OWN), signed=(), profile=PROFILE)

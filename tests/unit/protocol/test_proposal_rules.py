"""Each rule of opening a channel by itself, and in the lists (PROTOCOL.md 7.2.2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from perun_core.apps import PaymentApp
from perun_core.channel import Allocation, Asset, Balances, Params, State, SubAlloc
from perun_core.errors import RuleViolated
from perun_core.protocol import proposal_rules as r
from perun_core.values import MAX_UINT256, ZERO_ADDRESS, Address, Bytes32, ChannelID, ProposalID
from perun_core.wire import messages as m

ALICE, BOB, EVE = Address(b"\xa1" * 20), Address(b"\xb0" * 20), Address(b"\xee" * 20)
ALICE_SIGNER, BOB_SIGNER, APP = Address(b"\xa2" * 20), Address(b"\xb2" * 20), Address(b"\xdd" * 20)
ETH, TOKEN = Asset(Address(b"\xe0" * 20)), Asset(Address(b"\xe1" * 20))
ID, OTHER_ID = ProposalID(b"\x0a" * 32), ProposalID(b"\x0b" * 32)
SHARE, PARENT = Bytes32(b"\x0c" * 32), ChannelID(b"\x0d" * 32)
ROWS = ((10, 20),)
BASE = m.BaseProposal(ID, 60, SHARE, None, b"", Allocation((ETH,), ROWS), ROWS)
PROPOSAL = m.LedgerProposal(BASE, ALICE_SIGNER, (ALICE, BOB))
ACC = m.LedgerProposalAcc(m.BaseProposalAcc(ID, SHARE), BOB_SIGNER)


def refused(rule: str, check: Callable[[], object]) -> None:
    with pytest.raises(RuleViolated) as raised:
        check()
    assert raised.value.rule == rule


@pytest.mark.parametrize(
    "peers", [(BOB, ALICE), (EVE, BOB), (ALICE, EVE), (ALICE,), (ALICE, BOB, EVE), (ALICE, ALICE), ()]
)
def test_o2_peers_are_the_sender_and_we(peers: tuple[Address, ...]) -> None:
    r.o2_peers((ALICE, BOB), sender=ALICE, own=BOB)
    refused("O-2", lambda: r.o2_peers(peers, sender=ALICE, own=BOB))


def test_o2_we_do_not_propose_to_ourselves() -> None:
    refused("O-2", lambda: r.o2_peers((BOB, BOB), sender=BOB, own=BOB))


def test_o3_challenge_duration_is_within_the_configured_range() -> None:
    for good in (10, 60, 100):
        r.o3_challenge_duration(replace(BASE, challenge_duration=good), (10, 100))
    for bad in (0, 9, 101, 2**64 - 1):
        refused("O-3", lambda bad=bad: r.o3_challenge_duration(replace(BASE, challenge_duration=bad), (10, 100)))  # type: ignore[misc]
    refused("O-3", lambda: r.o3_challenge_duration(replace(BASE, challenge_duration=0), (0, 100)))


@pytest.mark.parametrize(
    "allocation",
    [
        Allocation((ETH,), ((1, 2, 3),)),
        Allocation((ETH,), ((1,),)),
        Allocation((ETH, ETH), ((1, 2), (3, 4))),
        Allocation((ETH,), ((MAX_UINT256 + 1, 2),)),
        Allocation((ETH,), ((MAX_UINT256, 1),)),
        Allocation((ETH,), ((1, 2),), (SubAlloc(PARENT, (0,)),)),
        Allocation((), ()),
    ],
)
def test_o4_initial_balances_are_valid(allocation: Allocation) -> None:
    r.o4_initial_balances(BASE)
    refused("O-4", lambda: r.o4_initial_balances(replace(BASE, init_bals=allocation)))


class Picky(PaymentApp):
    """Agrees to equal shares only, and cannot judge channels without a first asset's first balance of 1 or more."""

    def check_init(self, params: Params, state: State) -> None:
        assert params.parts == (ALICE_SIGNER, BOB_SIGNER)
        assert state.version == 0
        mine, yours = state.balances[0]
        if 1 // mine + mine != 1 // mine + yours:
            raise RuleViolated("T8", "unequal")


def test_o7_app_runs_here_and_agrees() -> None:
    provisional = r.provisional_params(PROPOSAL, BOB_SIGNER)
    with_app = replace(BASE, app=APP, init_bals=Allocation((ETH,), ((7, 7),)))
    r.o7_app(BASE, None, provisional)
    r.o7_app(with_app, Picky(), provisional)
    refused("O-7", lambda: r.o7_app(with_app, None, provisional))
    refused("O-7", lambda: r.o7_app(replace(with_app, init_bals=BASE.init_bals), Picky(), provisional))
    broken = replace(with_app, init_bals=Allocation((ETH,), ((0, 7),)))
    refused("O-7", lambda: r.o7_app(broken, Picky(), provisional))
    refused("O-7", lambda: r.o7_app(replace(BASE, init_data=b"x"), None, provisional))


@pytest.mark.parametrize("agreement", [(), ((30,),), ((10, 20, 0),), ((10, 20), (0, 0)), ((10, 21),), ((-1, 31),)])
def test_o8_agreement_has_the_same_totals(agreement: Balances) -> None:
    r.o8_agreement_sums(replace(BASE, funding_agreement=((30, 0),)))
    refused("O-8", lambda: r.o8_agreement_sums(replace(BASE, funding_agreement=agreement)))


def test_o9_agreement_is_the_initial_balances() -> None:
    r.o9_agreement_is_balances(BASE)
    refused("O-9", lambda: r.o9_agreement_is_balances(replace(BASE, funding_agreement=((20, 10),))))


def test_o10_proposer_signs_with_an_address_of_its_own() -> None:
    r.o10_proposer_participant(ALICE_SIGNER, BOB_SIGNER)
    refused("O-10", lambda: r.o10_proposer_participant(BOB_SIGNER, BOB_SIGNER))
    refused("O-10", lambda: r.o10_proposer_participant(ZERO_ADDRESS, BOB_SIGNER))


SUB = m.SubProposal(BASE, PARENT)
VIRTUAL = m.VirtualProposal(BASE, ALICE_SIGNER, (ALICE, BOB), (PARENT, PARENT), ((0, 1), (1, 0)))
SUB_ACC = m.SubProposalAcc(m.BaseProposalAcc(ID, SHARE))
VIRTUAL_ACC = m.VirtualProposalAcc(m.BaseProposalAcc(ID, SHARE), BOB_SIGNER)
FITTING = [(PROPOSAL, ACC), (SUB, SUB_ACC), (VIRTUAL, VIRTUAL_ACC)]


@pytest.mark.parametrize("proposal", [PROPOSAL, SUB, VIRTUAL])
@pytest.mark.parametrize("answer", [ACC, SUB_ACC, VIRTUAL_ACC])
def test_o13_acceptance_fits_the_kind_of_proposal(proposal: r.Proposal, answer: r.ProposalAcc) -> None:
    if (proposal, answer) in FITTING:
        r.o13_answer_fits(proposal, answer)
    else:
        refused("O-13", lambda: r.o13_answer_fits(proposal, answer))


def test_o13_answer_has_the_proposal_id() -> None:
    r.o13_answer_fits(PROPOSAL, m.ProposalRej(ID, "no"))
    refused("O-13", lambda: r.o13_answer_fits(PROPOSAL, m.ProposalRej(OTHER_ID, "no")))
    refused("O-13", lambda: r.o13_answer_fits(PROPOSAL, replace(ACC, base=m.BaseProposalAcc(OTHER_ID, SHARE))))
    refused("O-13", lambda: r.o13_answer_fits(PROPOSAL, m.Ping(0)))
    assert r.answer_id(ACC) == r.answer_id(SUB_ACC) == r.answer_id(VIRTUAL_ACC) == ID


def test_o15_responder_signs_with_an_address_of_its_own() -> None:
    r.o15_responder_participant(BOB_SIGNER, ALICE_SIGNER)
    refused("O-15", lambda: r.o15_responder_participant(ALICE_SIGNER, ALICE_SIGNER))
    refused("O-15", lambda: r.o15_responder_participant(ZERO_ADDRESS, ALICE_SIGNER))


def check(proposal: m.LedgerProposal, *, consent: bool = False) -> None:
    r.check_proposal(
        proposal,
        sender=ALICE,
        own=BOB,
        durations=(10, 100),
        own_participant=BOB_SIGNER,
        other_agreement=consent,
    )


@pytest.mark.parametrize(
    ("proposal", "rule"),
    [
        (replace(PROPOSAL, peers=(BOB, ALICE)), "O-2"),
        (replace(PROPOSAL, base=replace(BASE, challenge_duration=5)), "O-3"),
        (replace(PROPOSAL, base=replace(BASE, init_bals=Allocation((ETH,), ((1,),)))), "O-4"),
        (replace(PROPOSAL, base=replace(BASE, app=APP)), "O-7"),
        (replace(PROPOSAL, base=replace(BASE, funding_agreement=((1, 1),))), "O-8"),
        (replace(PROPOSAL, base=replace(BASE, funding_agreement=((20, 10),))), "O-9"),
        (replace(PROPOSAL, participant=BOB_SIGNER), "O-10"),
    ],
)
def test_the_list_applies_every_rule(proposal: m.LedgerProposal, rule: str) -> None:
    check(PROPOSAL)
    refused(rule, lambda: check(proposal))


def test_another_agreement_needs_consent() -> None:
    swapped = replace(PROPOSAL, base=replace(BASE, funding_agreement=((20, 10),)))
    check(swapped, consent=True)


def test_the_proposer_checks_the_acceptance() -> None:
    r.check_acceptance(PROPOSAL, ACC)
    refused("O-15", lambda: r.check_acceptance(PROPOSAL, replace(ACC, participant=ALICE_SIGNER)))
    refused("O-13", lambda: r.check_acceptance(replace(PROPOSAL, base=replace(BASE, proposal_id=OTHER_ID)), ACC))

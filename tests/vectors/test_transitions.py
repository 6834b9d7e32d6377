"""Rules between states, between proposal and answer, and on synchronisation (PROTOCOL.md 5.4, 5.7, 7)."""

from __future__ import annotations

import re

import pytest

from perun_core.apps import AppRegistry
from perun_core.channel import Params, State, Transaction, WirePhase
from perun_core.channel.rules import (
    MAX_CHALLENGE_DURATION,
    check_initial_state,
    check_transition,
    check_update,
    u9_final_without_locked,
)
from perun_core.errors import RuleViolated
from perun_core.ports.app import App
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.proposal_rules import (
    Proposal,
    ProposalAcc,
    check_proposal,
    o3_challenge_duration,
    o4_initial_balances,
    o8_agreement_sums,
    o13_answer_fits,
)
from perun_core.protocol.sync_rules import SyncDecision, decide
from perun_core.values import ZERO_ADDRESS, Address, Bytes32, ChannelID, ProposalID, Sig
from perun_core.wire import messages as m

from .loader import Case, reads
from .values import (
    MESSAGES,
    allocation,
    blob,
    params,
    state,
    transaction,
    update,
    virtual_funding,
    virtual_settlement,
)

ANY_DURATION = (1, MAX_CHALLENGE_DURATION)


def app_of(value: Params, apps: AppRegistry) -> App | None:
    return None if value.app is None else apps.get(value.app)


@reads("transitions.json", "updates")
def test_updates(case: Case, apps: AppRegistry) -> None:
    terms, old, new = params(case["params"]), state(case["from"]), state(case["to"])
    sender = 1 - case["own_idx"]

    def judge() -> None:
        check_update(terms, PROFILE.channel_id(terms), app_of(terms, apps), old, new, case["actor"], sender=sender)
        PROFILE.verify(PROFILE.state_hash(new), Sig.from_hex(case["sig"]), terms.parts[sender])

    if case["required"] == "accept":
        judge()
        return
    with pytest.raises(RuleViolated) as raised:
        judge()
    named = re.match(r"T\d", case["rule"])
    if named:
        assert raised.value.rule in (named.group(), "T5")  # T5 stands earlier and sees numbers out of range


@reads("transitions.json", "init")
def test_initial_states(case: Case, apps: AppRegistry) -> None:
    terms = params(case["params"])
    channel_id = PROFILE.channel_id(terms)
    initial = State(channel_id, 0, allocation(case["init_bals"]), False, terms.app, blob(case["init_data"]))
    if case["required"] == "accept":
        check_initial_state(terms, channel_id, initial, app=app_of(terms, apps))
        assert initial == state(case["state"])
        assert PROFILE.state_hash(initial).hex() == case["hash"]
    else:
        with pytest.raises(RuleViolated):
            check_initial_state(terms, channel_id, initial, app=app_of(terms, apps))


@reads("transitions.json", "phases")
def test_phases_have_these_numbers_and_names(cases: list[Case]) -> None:
    """The numbers of a ChannelSync. What is allowed in a phase is our own table's affair."""
    seen = {case["phase"]: case["phase_name"] for case in cases}
    ours = {int(phase): phase.name.replace("_", "").lower() for phase in WirePhase}
    assert {number: name.lower() for number, name in seen.items()}.items() <= ours.items()


@reads("transitions.json", "proposals")
def test_proposals(case: Case) -> None:
    """Of sub-channels and virtual channels only what they share with ledger channels: their parents are not known here.

    What is refused because of a parent (S and V rules) may therefore pass, but what is good must.
    """
    message = MESSAGES[m.MessageType(case["type"])](case["proposal"])
    own, peer = Address.from_hex(case["own_wire_address"]), Address.from_hex(case["peer_wire_address"])
    sender, recipient = (own, peer) if case["own_idx"] == 0 else (peer, own)
    if not isinstance(message, m.LedgerProposal):
        assert isinstance(message, m.SubProposal | m.VirtualProposal)
        if case["required"] == "accept":
            o3_challenge_duration(message.base, ANY_DURATION)
            o4_initial_balances(message.base)
            o8_agreement_sums(message.base)
        return

    def judge() -> None:
        check_proposal(message, sender=sender, own=recipient, durations=ANY_DURATION, own_participant=recipient)

    if case["required"] == "accept":
        judge()
    else:
        with pytest.raises(RuleViolated):
            judge()


def blank(kind: m.MessageType, proposal_id: ProposalID) -> Proposal | ProposalAcc:
    """A message of this kind in which nothing but the proposal ID matters."""
    base = m.BaseProposal(proposal_id, 60, Bytes32(bytes(32)), None, b"", allocation(EMPTY), ())
    acc = m.BaseProposalAcc(proposal_id, Bytes32(bytes(32)))
    built: dict[m.MessageType, Proposal | ProposalAcc] = {
        m.MessageType.LEDGER_PROPOSAL: m.LedgerProposal(base, ZERO_ADDRESS, ()),
        m.MessageType.LEDGER_PROPOSAL_ACC: m.LedgerProposalAcc(acc, ZERO_ADDRESS),
        m.MessageType.SUB_PROPOSAL: m.SubProposal(base, ChannelID(bytes(32))),
        m.MessageType.SUB_PROPOSAL_ACC: m.SubProposalAcc(acc),
        m.MessageType.VIRTUAL_PROPOSAL: m.VirtualProposal(base, ZERO_ADDRESS, (), (), ()),
        m.MessageType.VIRTUAL_PROPOSAL_ACC: m.VirtualProposalAcc(acc, ZERO_ADDRESS),
    }
    return built[kind]


EMPTY: Case = {"assets": [], "balances": [], "locked": []}


@reads("transitions.json", "accepts")
def test_which_answer_fits_which_proposal(case: Case) -> None:
    proposal = blank(m.MessageType(case["proposal_type"]), ProposalID.from_hex(case["proposal_id"]))
    answer = blank(m.MessageType(case["accept_type"]), ProposalID.from_hex(case["accept_proposal_id"]))
    assert isinstance(proposal, Proposal)
    if case["required"] == "accept":
        o13_answer_fits(proposal, answer)
    else:
        with pytest.raises(RuleViolated, match=r"^O-13"):
            o13_answer_fits(proposal, answer)


# Updates that lock or release funds have rules of their own (S, H) on top of the transition rules. Here, what is good
# must pass the transition rules and carry a good signature; what is not may be refused later.


@reads("transitions.json", "sub_channel")
def test_parent_updates_of_sub_channels(case: Case, apps: AppRegistry) -> None:
    if case["required"] != "accept":
        return
    terms, old, new = params(case["params"]), state(case["from"]), state(case["to"])
    check_transition(terms, PROFILE.channel_id(terms), app_of(terms, apps), old, new, case["actor"])
    u9_final_without_locked(new)
    PROFILE.verify(PROFILE.state_hash(new), Sig.from_hex(case["sig"]), terms.parts[case["actor"]])


def check_half(case: Case, apps: AppRegistry, parent: m.Update, signed: m.SignedState) -> None:
    """One party's half of funding or settling a virtual channel, as far as the transition rules go."""
    terms = params(case["params"])
    current = state(case["current"])
    check_transition(terms, PROFILE.channel_id(terms), app_of(terms, apps), current, parent.state, parent.actor)
    PROFILE.verify(PROFILE.state_hash(parent.state), parent.sig, terms.parts[1 - case["own_idx"]])
    assert PROFILE.channel_id(signed.params) == signed.state.id
    for sig, part in zip(signed.sigs, signed.params.parts, strict=True):
        assert sig is not None
        PROFILE.verify(PROFILE.state_hash(signed.state), sig, part)


@reads("transitions.json", "virtual_funding")
def test_parent_updates_that_fund_virtual_channels(case: Case, apps: AppRegistry) -> None:
    message = virtual_funding(case["message"])
    assert update(case["message"]["update"]) == message.update
    if case["required"] == "accept":
        check_half(case, apps, message.update, message.initial)


@reads("transitions.json", "virtual_settlement")
def test_parent_updates_that_settle_virtual_channels(case: Case, apps: AppRegistry) -> None:
    message = virtual_settlement(case["message"])
    if case["required"] == "accept":
        check_half(case, apps, message.update, message.final)


ALLOWED = {
    "keep": {SyncDecision.KEEP, SyncDecision.IN_SYNC, SyncDecision.ANSWER_OURS, SyncDecision.RESEND_ACC},
    "adopt": {SyncDecision.ADOPT},
    "fork": {SyncDecision.FORK},
    "ignore": {SyncDecision.IGNORE},
}


@reads("transitions.json", "sync")
def test_synchronisation(case: Case) -> None:
    terms, received = params(case["params"]), transaction(case["received"])
    channel_id, own = PROFILE.channel_id(terms), state(case["own_state"])
    assert received.state is not None

    def decision(*signed: Bytes32) -> SyncDecision:
        return decide(terms, channel_id, own=Transaction(own), received=received, signed=signed, profile=PROFILE)

    assert decision(PROFILE.state_hash(received.state)) in ALLOWED[case["required"]]
    if case["required"] == "adopt":  # without a record of our signing it is our storage that was set back
        assert decision() is SyncDecision.ADOPT_RECOVERY

"""The rules of opening a channel that can be decided from proposal and answer (PROTOCOL.md 7.2.2).

One function per rule, named after it, each raises `RuleViolated` with the rule's id. What needs the chain, the store or
the user (O-1, O-5, O-6, O-11, O-12, O-14, O-16 and on) is decided where these are at hand.
"""

from __future__ import annotations

from ..channel import Params, State
from ..channel.rules import check_allocation
from ..errors import RuleViolated
from ..ports.app import App
from ..values import Address, Bytes32, ChannelID
from ..wire.messages import (
    BaseProposal,
    LedgerProposal,
    LedgerProposalAcc,
    Message,
    ProposalRej,
    SubProposal,
    SubProposalAcc,
    VirtualProposal,
    VirtualProposalAcc,
)

Proposal = LedgerProposal | SubProposal | VirtualProposal
ProposalAcc = LedgerProposalAcc | SubProposalAcc | VirtualProposalAcc

_NO_ID = ChannelID(bytes(32))


def o2_peers(peers: tuple[Address, ...], *, sender: Address, own: Address) -> None:
    """O-2: exactly the sender and then us, two different network identities."""
    if peers != (sender, own) or sender == own:
        raise RuleViolated("O-2", "the peers are not the sender and we")


def o3_challenge_duration(base: BaseProposal, durations: tuple[int, int]) -> None:
    """O-3: within the configured (smallest, largest) seconds, never 0."""
    low, high = durations
    if not max(low, 1) <= base.challenge_duration <= high:
        raise RuleViolated("O-3", f"challenge duration of {base.challenge_duration} s is not within {low} to {high} s")


def o4_initial_balances(base: BaseProposal) -> None:
    """O-4: a valid allocation (5.4) with one balance for each of the two participants and nothing locked."""
    try:
        check_allocation(base.init_bals)
    except RuleViolated as error:
        raise RuleViolated("O-4", error.problem) from error
    if any(len(row) != 2 for row in base.init_bals.balances):
        raise RuleViolated("O-4", "not one balance per participant")
    if base.init_bals.locked:
        raise RuleViolated("O-4", "locked funds")


def o7_app(base: BaseProposal, app: App | None, provisional: Params) -> None:
    """O-7: no app and no data, or an app that runs here and agrees to the initial state now.

    `app` is the definition at `base.app`. Nonce and channel ID do not exist before the acceptance: the app sees
    `provisional` parameters and a state with ID 0, and is asked again with the real ones (`check_initial_state`).
    """
    if base.app is None:
        if base.init_data:
            raise RuleViolated("O-7", "app data without an app")
        return
    if app is None:
        raise RuleViolated("O-7", "the app does not run here")
    try:
        app.check_init(provisional, State(_NO_ID, 0, base.init_bals, False, base.app, base.init_data))
    except RuleViolated as error:
        raise RuleViolated("O-7", error.problem) from error
    except Exception as error:  # an app that fails to judge has not agreed
        raise RuleViolated("O-7", "the app failed to judge") from error


def o8_agreement_sums(base: BaseProposal) -> None:
    """O-8: the funding agreement has the dimensions of the initial balances and the same total in every asset."""
    rows, agreed = base.init_bals.balances, base.funding_agreement
    if [len(row) for row in agreed] != [len(row) for row in rows]:
        raise RuleViolated("O-8", "the funding agreement has other dimensions than the initial balances")
    if any(value < 0 for row in agreed for value in row) or [sum(row) for row in agreed] != [sum(row) for row in rows]:
        raise RuleViolated("O-8", "the funding agreement has other totals than the initial balances")


def o9_agreement_is_balances(base: BaseProposal) -> None:
    """O-9: everybody deposits what it gets; anything else needs the user's explicit consent (7.2.3)."""
    if base.funding_agreement != base.init_bals.balances:
        raise RuleViolated("O-9", "the funding agreement differs from the initial balances")


def o10_proposer_participant(participant: Address, own_participant: Address) -> None:
    """O-10: the proposer signs with an address of its own."""
    if participant.is_zero or participant == own_participant:
        raise RuleViolated("O-10", "the proposer's participant is zero or ours")


def o13_answer_fits(proposal: Proposal, answer: Message) -> None:
    """O-13: an acceptance of this kind of proposal, or a refusal, with its proposal ID."""
    if answer_id(answer) != proposal.base.proposal_id:
        raise RuleViolated("O-13", "an answer to another proposal")
    fits: bool
    match proposal:
        case LedgerProposal():
            fits = isinstance(answer, LedgerProposalAcc | ProposalRej)
        case SubProposal():
            fits = isinstance(answer, SubProposalAcc | ProposalRej)
        case VirtualProposal():
            fits = isinstance(answer, VirtualProposalAcc | ProposalRej)
    if not fits:
        raise RuleViolated("O-13", "an acceptance of another kind of proposal")


def answer_id(answer: Message) -> Bytes32:
    """The proposal an answer belongs to. Raises: RuleViolated("O-13") for messages that are no answer."""
    match answer:
        case LedgerProposalAcc() | SubProposalAcc() | VirtualProposalAcc():
            return answer.base.proposal_id
        case ProposalRej():
            return answer.proposal_id
        case _:
            raise RuleViolated("O-13", "no answer to a proposal")


def o15_responder_participant(participant: Address, own_participant: Address) -> None:
    """O-15: the responder signs with an address of its own, so that it cannot echo our signature."""
    if participant.is_zero or participant == own_participant:
        raise RuleViolated("O-15", "the responder's participant is zero or ours")


# ------------------------------------------------------------------------------------------------------------- lists


def check_proposal(
    proposal: LedgerProposal,
    *,
    sender: Address,
    own: Address,
    durations: tuple[int, int],
    own_participant: Address,
    app: App | None = None,
    other_agreement: bool = False,
) -> None:
    """What the responder checks before it accepts, and the proposer before it sends, as if it were the responder.

    `sender` and `own` are network identities of proposer and responder, `own_participant` the signing address the
    responder will name, `durations` the (smallest, largest) challenge duration in seconds, `app` the definition at the
    proposal's app. With `other_agreement` the user consented to this funding agreement (O-9). Raises: RuleViolated.
    """
    base = proposal.base
    o2_peers(proposal.peers, sender=sender, own=own)
    o3_challenge_duration(base, durations)
    o4_initial_balances(base)
    o8_agreement_sums(base)
    if not other_agreement:
        o9_agreement_is_balances(base)
    o10_proposer_participant(proposal.participant, own_participant)
    o7_app(base, app, provisional_params(proposal, own_participant))


def provisional_params(proposal: LedgerProposal, responder: Address) -> Params:
    """The parameters the proposal would lead to with this responder's signing address, except for the nonce."""
    base = proposal.base
    return Params(base.challenge_duration, (proposal.participant, responder), base.app, 0, True, False)


def check_acceptance(proposal: LedgerProposal, answer: LedgerProposalAcc) -> None:
    """What the proposer checks before it builds the channel from both messages. Raises: RuleViolated."""
    o13_answer_fits(proposal, answer)
    o15_responder_participant(answer.participant, proposal.participant)

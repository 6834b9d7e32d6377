"""Whole conversations between nodes: every byte is read and written, every signature belongs to its state."""

from __future__ import annotations

from collections.abc import Iterator

from perun_core.apps import AppRegistry
from perun_core.channel import Params, State
from perun_core.errors import RuleViolated
from perun_core.profile.gp090 import PROFILE
from perun_core.values import Address, Bytes32, ChannelID, Sig
from perun_core.wire import Envelope, decode, encode
from perun_core.wire import messages as m

from .loader import Case, reads
from .test_messages import cut, fed
from .values import envelope, params, state


def envelopes(case: Case) -> Iterator[tuple[bytes, Envelope]]:
    """Bytes and meaning of everything that was sent."""
    for stream in case["streams"]:
        for message in stream["messages"]:
            yield bytes.fromhex(message["bytes"]), envelope(message)


@reads("conversations.json", "conversations")
def test_messages_are_read_and_written(case: Case, apps: AppRegistry) -> None:
    for data, expected in envelopes(case):
        assert decode(data, apps) == expected
        assert encode(expected) == data
    for stream in case["streams"]:
        expected_stream = [envelope(message) for message in stream["messages"]]
        whole = b"".join(bytes.fromhex(message["bytes"]) for message in stream["messages"])
        for size in (1, 10, 1460, max(1, len(whole))):
            assert fed(apps, cut(whole, size)) == expected_stream
    if "request" in case:
        request = decode(bytes.fromhex(case["request"]), apps)
        assert encode(request).hex() == case["request"]
        assert isinstance(envelope(case["answer"]).message, m.Sync)


def openings(case: Case) -> Iterator[tuple[Params, State]]:
    """Parameters and version 0 of every channel whose proposal was accepted."""
    sent = [message.message for _, message in envelopes(case)]
    ledger = {message.base.proposal_id: message for message in sent if isinstance(message, m.LedgerProposal)}
    virtual = {message.base.proposal_id: message for message in sent if isinstance(message, m.VirtualProposal)}
    sub = {message.base.proposal_id: message for message in sent if isinstance(message, m.SubProposal)}
    known = {ChannelID.from_hex(entry["id"]): params(entry["params"]) for entry in case["channels"]}
    for acc in sent:
        if isinstance(acc, m.LedgerProposalAcc):
            base, parts = (
                ledger[acc.base.proposal_id].base,
                (ledger[acc.base.proposal_id].participant, acc.participant),
            )
        elif isinstance(acc, m.VirtualProposalAcc):
            base, parts = (
                virtual[acc.base.proposal_id].base,
                (virtual[acc.base.proposal_id].proposer, acc.responder),
            )
        elif isinstance(acc, m.SubProposalAcc):
            base = sub[acc.base.proposal_id].base
            first, second = known[sub[acc.base.proposal_id].parent].parts
            parts = (first, second)
        else:
            continue
        terms = Params(
            base.challenge_duration,
            parts,
            base.app,
            PROFILE.nonce(base.nonce_share, acc.base.nonce_share),
            isinstance(acc, m.LedgerProposalAcc),
            isinstance(acc, m.VirtualProposalAcc),
        )
        yield terms, State(PROFILE.channel_id(terms), 0, base.init_bals, False, base.app, base.init_data)


def is_signed_by(state_hash: Bytes32, sig: Sig, signer: Address) -> bool:
    try:
        PROFILE.verify(state_hash, sig, signer)
    except RuleViolated:
        return False
    return True


@reads("conversations.json", "conversations")
def test_identifiers_and_signatures_fit(case: Case) -> None:
    opened = dict((initial.id, (terms, initial)) for terms, initial in openings(case))
    for entry in case["channels"]:
        terms = params(entry["params"])
        assert PROFILE.channel_id(terms).hex() == entry["id"] == state(entry["final_state"]).id.hex()
        assert opened[ChannelID.from_hex(entry["id"])][0] == terms
    states: dict[tuple[ChannelID, int], list[State]] = {(id_, 0): [opened[id_][1]] for id_ in opened}
    answers: list[m.UpdateAcc] = []
    for _, sent in envelopes(case):
        message = sent.message
        if isinstance(message, m.VirtualFunding | m.VirtualSettlement):
            message = message.update
        if isinstance(message, m.Update):
            states.setdefault((message.state.id, message.state.version), []).append(message.state)
            signer = opened[message.state.id][0].parts[message.actor]
            PROFILE.verify(PROFILE.state_hash(message.state), message.sig, signer)
        elif isinstance(message, m.UpdateAcc):
            answers.append(message)
    for answer in answers:
        hashes = [PROFILE.state_hash(known) for known in states[answer.channel_id, answer.version]]
        parts = opened[answer.channel_id][0].parts
        assert any(is_signed_by(known, answer.sig, part) for known in hashes for part in parts)

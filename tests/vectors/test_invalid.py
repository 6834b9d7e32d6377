"""What must be refused, while decoding or by the rules that follow (PROTOCOL.md 1.5, 1.6, 5)."""

from __future__ import annotations

from typing import Any

import pytest

from perun_core.apps import AppRegistry
from perun_core.channel import Allocation, Params, State, Transaction
from perun_core.channel.rules import MAX_CHALLENGE_DURATION, check_allocation, check_params, check_state
from perun_core.errors import DecodeError, EncodeError, RuleViolated
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.proposal_rules import check_proposal, o8_agreement_sums
from perun_core.protocol.sync_rules import y1_belongs
from perun_core.values import Address, Bytes32, ChannelID, ProposalID, Sig
from perun_core.wire import StreamDecoder, encode
from perun_core.wire import messages as m

from .forms import consumed, decoded, encoded, form
from .loader import Case, Vectors, reads
from .values import addresses, allocation, base_proposal, data_of, ledger_proposal, params, state

ANY_DURATION = (1, MAX_CHALLENGE_DURATION)
ALICE, BOB = Address(b"\xa1" * 20), Address(b"\xb0" * 20)
NO_HASH = Bytes32(bytes(32))


# ------------------------------------------------------------------------------------------------------------ decoding


@reads("invalid.json", "decode_reject")
def test_damaged_input_is_refused(case: Case, apps: AppRegistry) -> None:
    with pytest.raises(DecodeError):
        decoded(case, apps, data_of(case))


@reads("invalid.json", "decode_reject")
def test_damaged_messages_end_the_stream(case: Case, apps: AppRegistry) -> None:
    if case["type"] != "envelope" or not data_of(case):
        return  # an empty stream ends between two messages
    decoder = StreamDecoder(apps)
    with pytest.raises(DecodeError):
        assert decoder.feed(data_of(case)) == []
        decoder.end()


@reads("invalid.json", "truncations")
def test_truncated_messages_are_refused(cases: list[Case], apps: AppRegistry, vectors: Vectors) -> None:
    whole = {message["name"]: data_of(message) for message in vectors.cases("messages.json", "messages")}
    for case in cases:
        decoder = StreamDecoder(apps)
        piece = whole[case["message"]][: case["offset"]]
        assert decoder.feed(piece) == [], case
        with pytest.raises(DecodeError):
            decoded({"type": "envelope"}, apps, piece)
        if piece:
            with pytest.raises(DecodeError):
                decoder.end()


@reads("invalid.json", "mutations")
def test_mutated_messages_are_refused_or_mean_the_same(cases: list[Case], apps: AppRegistry, vectors: Vectors) -> None:
    whole = {message["name"]: data_of(message) for message in vectors.cases("messages.json", "messages")}
    taken = 0
    for case in cases:
        verdict = case.get("verdict", "reject" if case.get("go_perun") == "rejected" else "may")
        data = bytearray(whole[case["message"]])
        data[case["offset"]] = case["byte"]
        try:
            value, size = consumed({"type": "envelope"}, apps, bytes(data))
        except DecodeError:
            continue
        assert verdict == "may", case
        assert size == case["consumed"], case
        canonical = case["re_encoded"]
        if b"\xef\xbf\xbd" not in encode(value):  # what was no text is not restored
            assert encode(value) == (bytes(data[:size]) if canonical is None else bytes.fromhex(canonical)), case
        taken += 1
    assert 2 * taken >= len(cases), "a decoder that refuses everything would pass otherwise"


@reads("invalid.json", "accepted")
def test_unusual_input(case: Case, apps: AppRegistry) -> None:
    """Whatever can be decoded but must be refused is refused by a rule; the rest means what it should."""
    required, rule = case["required"], case["rule"]
    try:
        value = decoded(case, apps, data_of(case))
    except DecodeError:
        assert not required.startswith(("accept,", "decode")) and required != "accept"
        return
    if required == "reject in a channel" or required == "reject":
        if rule.startswith("V-"):
            pytest.skip("virtual channels have rules of their own")
        with pytest.raises(RuleViolated):
            refused_by_a_rule(value)
    elif required.startswith(("accept", "decode")):
        if case["type"] == "envelope" and isinstance(value.message, m.UpdateRej | m.Shutdown | m.ProposalRej):
            assert value == form(case, apps).build(case["decoded"])
        else:
            assert value == form(case, apps).build(case["decoded"])
            assert encoded(case, apps, value) == bytes.fromhex(case["re_encoded"])


def refused_by_a_rule(value: Any) -> None:
    """Applies the rules that a value of this type meets first. Raises: RuleViolated."""
    match value:
        case Params():
            check_params(value)
        case Allocation():
            check_state(Params(60, (ALICE, BOB), None, 1, True, False), State(ChannelID(bytes(32)), 1, value))
        case State():
            check_allocation(value.allocation)
        case m.Envelope(sender, recipient, m.LedgerProposal() as proposal):
            check_proposal(proposal, sender=sender, own=recipient, durations=ANY_DURATION, own_participant=recipient)
        case m.Envelope(message=m.Sync(current=Transaction() as received)):
            own = State(ChannelID(bytes(32)), 1, Allocation((), ()))
            y1_belongs(Params(60, (ALICE, BOB), None, 1, True, False), own.id, own, received)
        case _:
            raise AssertionError(f"no rule for {value}")


# ------------------------------------------------------------------------------------------------------------ encoding


def lenient_proposal(value: Any) -> m.Envelope:
    """A good ledger proposal apart from what the case says."""
    rows = ((1, 2),)
    base = m.BaseProposal(ProposalID(bytes(32)), 60, NO_HASH, None, b"", allocation_of(rows), rows)
    return m.Envelope(ALICE, BOB, m.LedgerProposal(base, ALICE, addresses(value["peers"])))


def allocation_of(rows: tuple[tuple[int, ...], ...]) -> Allocation:
    return allocation({"assets": ["aa" * 20], "balances": rows, "locked": []})


@reads("invalid.json", "encode_reject")
def test_unwritable_values_are_refused(case: Case, apps: AppRegistry) -> None:
    with pytest.raises((EncodeError, ValueError)):
        if case["type"] == "envelope" and "sender" not in case["value"]:
            encode(lenient_proposal(case["value"]))
        else:
            encoded(case, apps, form(case, apps).build(case["value"]))


# -------------------------------------------------------------------------------------------------------------- rules


def judge(case: Case) -> None:
    """Raises: RuleViolated, or ValueError for what is not even a value of ours."""
    value = case["value"]
    match case["check"]:
        case "params":
            check_params(params(value))
        case "proposal":
            proposal = ledger_proposal(value)
            sender, own = addresses(value["peers"])
            check_proposal(proposal, sender=sender, own=own, durations=ANY_DURATION, own_participant=own)
        case "new_ledger_proposal":
            rest = {"proposal_id": "00" * 32, "challenge_duration": 60, "nonce_share": "00" * 32}
            o8_agreement_sums(base_proposal({**rest, "app": None, "init_data": "", **value}))
        case "state_signature":
            state_hash = PROFILE.state_hash(state(value["state"]))
            PROFILE.verify(state_hash, Sig.from_hex(value["sig"]), Address.from_hex(value["address"]))
        case check:
            raise AssertionError(f"unknown check {check}")


@reads("invalid.json", "validity")
def test_validity(case: Case) -> None:
    if case["required"] == "accept":
        judge(case)
        return
    with pytest.raises((RuleViolated, ValueError)) as raised:
        judge(case)
    if isinstance(raised.value, RuleViolated):
        assert raised.value.rule in case["rule"]

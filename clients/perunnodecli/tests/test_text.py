"""What is shown is what is there: foreign text, amounts and states."""

from __future__ import annotations

import json

import pytest

from perunnodecli import lines
from perunnodecli.escape import LONGEST, shown
from perunnodecli.failures import ApiFailure, NodeFailure
from perunnodecli.pb import errors_pb2, nodetypes_pb2
from perunnodecli.values import Balances, Channel, Peer, Proposal, Row, api_failure


def channel(*rows: tuple[str, str, str], parts: tuple[str, str] = ("self", "bob"), version: str = "3") -> Channel:
    return Channel("ab" * 32, Balances(parts, tuple(Row(name, (own, peers)) for name, own, peers in rows)), version)


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("bob", "bob"),
        ("Ærøskøbing 東京", "Ærøskøbing 東京"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("one\ntwo\rthree", "one\\ntwo\\rthree"),
        ("\u202e1 HTE", "\\u202e1 HTE"),
        ("a\u200bb\u2028c\u00a0d", "a\\u200bb\\u2028c\\xa0d"),
        ("\x9b31m", "\\x9b31m"),
        ("back\\slash", "back\\\\slash"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_does_not_print_as_itself_is_escaped(text: str, visible: str) -> None:
    assert shown(text) == visible


def test_a_foreign_text_without_end_is_cut() -> None:
    assert shown("x" * 1_000_000) == "x" * LONGEST + "… (1000000 characters)"


def test_the_info_line_has_the_form_of_the_original_client() -> None:
    line = f"ID: {'ab' * 32}, Currency: [ETH], Version: 3, Balance [bob:2 self:1]."
    assert lines.info(channel(("ETH", "1", "2"))) == (line,)


def test_a_channel_with_more_currencies_has_a_line_with_all_of_them() -> None:
    first, second = lines.info(channel(("ETH", "1", "2"), ("PRN", "0.5", "7")))
    assert first.endswith("Currency: [ETH PRN], Version: 3, Balance [bob:2 self:1].")
    assert second == "All balances: ETH [bob:2 self:1], PRN [bob:7 self:0.5]"


def test_balances_are_sorted_by_alias_whoever_proposed() -> None:
    theirs = channel(("ETH", "2", "1"), parts=("alice", "self"))
    assert "Balance [alice:2 self:1]" in lines.info(theirs)[0]


def test_the_terms_of_a_request_name_currencies_balances_and_challenge_duration() -> None:
    told = lines.opening(Proposal("cd" * 32, channel(("ETH", "1", "2"), ("PRN", "3", "4")).balances, 60, 99))
    assert told == (
        "Currency: [ETH PRN], Balance: [bob:2 self:1].",
        "All balances: ETH [bob:2 self:1], PRN [bob:4 self:3]",
        "Challenge duration: 60s.",
    )


@pytest.mark.parametrize(("left", "text"), [(9, "Expires in 9s."), (0, "Expires in 0s."), (-3, "Expired 3s ago.")])
def test_an_expiry_is_a_countdown(left: int, text: str) -> None:
    assert lines.expiry(left) == text


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("1", "1.5", ("You get 0.5 ETH.",)),
        ("1.5", "1", ("You pay 0.5 ETH.",)),
        ("1", "1", ()),
        ("0", "0.000000000000000001", ("You get 0.000000000000000001 ETH.",)),
        ("123456789012345678901234567890.1", "0", ("You pay 123456789012345678901234567890.1 ETH.",)),
        ("1", "1e3", ()),
        ("१", "2", ()),
    ],
)
def test_what_an_update_means_for_the_user_is_exact_or_not_said(before: str, after: str, told: tuple[str, ...]) -> None:
    now, then = channel(("ETH", before, "9")).balances, channel(("ETH", after, "9")).balances
    assert lines.difference(now, then) == told


def test_an_update_that_moves_two_currencies_is_told_in_both() -> None:
    now = channel(("ETH", "1", "1"), ("PRN", "5", "5")).balances
    then = channel(("ETH", "0.5", "1.5"), ("PRN", "15", "5")).balances
    assert lines.difference(now, then) == ("You pay 0.5 ETH.", "You get 10 PRN.")


def test_a_peer_cannot_forge_lines_with_its_alias() -> None:
    entry = Peer("eve\n\x1b[32mSession closed.", "0x00", "127.0.0.1:1", "tcp")
    assert lines.peer(entry).startswith("Alias: eve\\n\\x1b[32mSession closed., Off-chain Addr: 0x00")
    forged = channel(("ETH", "1", "2"), parts=("self", "\x1b[1A"))
    assert "\x1b" not in "".join(lines.info(forged))


def test_an_error_of_the_api_reads_as_category_code_message_and_fields() -> None:
    told = errors_pb2.MsgError(
        category=errors_pb2.ParticipantError,
        code=errors_pb2.ErrPeerRejected,
        message="rejected\x07",
        ErrInfoPeerRejected=errors_pb2.ErrInfoPeerRejected(peerAlias="bob", reason="\x1b[31mno"),
    )
    failure = api_failure(told)
    assert str(failure) == (
        "category: ParticipantError, code: 102, message: rejected\\x07, "
        "additional info: {peerAlias: bob, reason: \\x1b[31mno}"
    )
    assert json.loads(json.dumps(failure.to_json())) == {
        "kind": "api",
        "exitCode": 4,
        "category": "ParticipantError",
        "code": 102,
        "name": "ErrPeerRejected",
        "message": "rejected\x07",
        "info": {"peerAlias": "bob", "reason": "\x1b[31mno"},
    }


@pytest.mark.parametrize(
    ("category", "code"),
    [("ParticipantError", 4), ("ClientError", 5), ("ProtocolError", 6), ("InternalError", 7), ("17", 7)],
)
def test_each_category_has_its_exit_code(category: str, code: int) -> None:
    assert ApiFailure(category=category, number=1, name="", message="").code == code


def test_unclosed_channels_and_wrong_contracts_are_told_in_full() -> None:
    info = nodetypes_pb2.PayChInfo(chID="aa", balInfo=nodetypes_pb2.BalInfo(parts=["self", "bob"]), version="1")
    unclosed = errors_pb2.ErrInfoFailedPreCondUnclosedChs(chs=[info])
    failure = api_failure(errors_pb2.MsgError(code=204, category=1, ErrInfoFailedPreCondUnclosedChs=unclosed))
    assert [entry["id"] for entry in failure.info["chs"]] == ["aa"]  # type: ignore[union-attr,index,call-overload]
    wrong = errors_pb2.ContractErrInfo(name="PRN", address="0x1", error="no code")
    contracts = errors_pb2.ErrInfoInvalidContracts(ContractErrInfos=[wrong])
    failure = api_failure(errors_pb2.MsgError(code=206, category=1, ErrInfoInvalidContracts=contracts))
    assert "contracts: [{name: PRN, address: 0x1, error: no code}]" in str(failure)


@pytest.mark.parametrize(
    "told",
    [
        nodetypes_pb2.BalInfo(currencies=["ETH"], parts=["self", "bob"]),
        nodetypes_pb2.BalInfo(currencies=["ETH"], parts=["self", "bob"], bals=[nodetypes_pb2.BalInfo.bal(bal=["1"])]),
        nodetypes_pb2.BalInfo(parts=["self", "bob"], bals=[nodetypes_pb2.BalInfo.bal(bal=["1", "2"])]),
        nodetypes_pb2.BalInfo(parts=["self", "self"]),
        nodetypes_pb2.BalInfo(
            currencies=["ETH", "ETH"], parts=["self"], bals=[nodetypes_pb2.BalInfo.bal(bal=["1"])] * 2
        ),
    ],
)
def test_balances_that_do_not_fit_together_are_refused(told: nodetypes_pb2.BalInfo) -> None:
    with pytest.raises(NodeFailure):
        Balances.read(told)


def test_lists_become_tables_with_a_row_for_each_currency() -> None:
    table = lines.channel_table("Open channels", [("ch_1_bob", channel(("ETH", "1", "2"), ("PRN", "3", "4")))])
    assert [row[:6] for row in table.rows] == [("ch_1_bob", "bob", "3", "ETH", "1", "2"), ("", "", "", "PRN", "3", "4")]

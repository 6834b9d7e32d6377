"""How typed lines become commands, what they complete to, and which are refused before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from perunnodecli.commands import HANDLERS
from perunnodecli.commands.channel import deposits
from perunnodecli.commands.payment import sums
from perunnodecli.completion import CommandCompleter
from perunnodecli.desk import Desk, Held
from perunnodecli.escape import shown
from perunnodecli.failures import UsageFailure
from perunnodecli.grammar import COMMANDS, GROUPS, SINGLE_ONLY, Call, Group, parse, words_of
from perunnodecli.interactive import History
from perunnodecli.main import settings_of
from perunnodecli.typed import seconds
from perunnodecli.values import Balances, Channel, Proposal, Row

ORIGINAL = """
node connect; node time; node config; session open; session close; peer-id add; peer-id get;
channel send-opening-request; channel subscribe-to-opening-requests; channel unsubcribe-from-opening-requests;
channel accept-opening-request; channel reject-opening-request; channel list-notifications-pending-response;
channel list-open-channels; channel info; channel close-n-settle-on-chain; payment send-to-peer;
payment request-from-peer; payment subscribe-to-notifications; payment unsubscribe-to-notifications;
payment accept-payment-update-from-peer; payment reject-payment-update-from-peer; chain set-blockchain-address;
chain get-blockchain-address; chain deploy-perun-contracts; chain get-on-chain-balance
"""


def call(line: str) -> Call:
    parsed = parse(words_of(line))
    assert isinstance(parsed, Call)
    return parsed


def refused(line: str) -> str:
    with pytest.raises(UsageFailure) as caught:
        parse(words_of(line))
    return str(caught.value)


def test_every_command_of_the_original_client_is_there_under_its_name() -> None:
    wanted = {name.strip() for name in ORIGINAL.split(";")}
    assert wanted <= {command.full_name for command in COMMANDS}


def test_every_command_does_something() -> None:
    handled = {command.full_name for command in COMMANDS if command.group} - SINGLE_ONLY
    assert handled == set(HANDLERS)


def test_no_name_or_synonym_means_two_things() -> None:
    for group in ["", *(group.name for group in GROUPS)]:
        names = [name for command in COMMANDS if command.group == group for name in (command.name, *command.synonyms)]
        assert len(names) == len(set(names))
    names = [name for group in GROUPS for name in (group.name, *group.synonyms)]
    names += [name for command in COMMANDS if not command.group for name in (command.name, *command.synonyms)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("channel open bob 1 2", "channel send-opening-request"),
        ("channel accept request_1_bob", "channel accept-opening-request"),
        ("channel close ch_1_bob", "channel close-n-settle-on-chain"),
        ("payment send ch_1_bob 1", "payment send-to-peer"),
        ("pay request ch_1_bob 1 PRN", "payment request-from-peer"),
        ("peer get bob", "peer-id get"),
        ("channel unsubscribe-from-opening-requests", "channel unsubcribe-from-opening-requests"),
    ],
)
def test_synonyms_mean_the_command(typed: str, meant: str) -> None:
    assert call(typed).command.full_name == meant


def test_a_group_alone_asks_for_its_help() -> None:
    assert isinstance(parse(["channel"]), Group)


def test_empty_lines_and_comments_ask_for_nothing() -> None:
    assert parse(words_of("")) is None
    assert parse(words_of("   # channel close ch_1_bob")) is None


def test_quotes_keep_blanks_and_json_may_stand_anywhere() -> None:
    typed = call("--json peer-id get 'my old friend'")
    assert (typed.arguments, typed.json) == (("my old friend",), True)


def test_options_take_their_value_with_or_without_an_equals_sign() -> None:
    assert call("channel open bob 1 2 --challenge 60").options == {"challenge": "60"}
    assert call("channel open bob --challenge=60 1 2").options == {"challenge": "60"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("session close", "Got 0 arg(s). Want 1."),
        ("payment send ch_1_bob", "Got 1 arg(s). Want at least 2."),
        ("chain balance", "Got 0 arg(s). Want 1 to 2."),
        ("session close perhaps", "Parameter should be one of these values: [force no-force], not perhaps"),
        ("payment swap ch_1_bob 1 ETH against 2 PRN", "Parameter should be one of these values: [for], not against"),
        ("nonsense", "Unknown command nonsense"),
        ("channel explode", "Unknown command channel explode"),
        ("channel info 'unfinished", "The line cannot be read"),
        ("payment send ch_1_bob 1 --force yes", "has no option --force"),
        ("channel open bob 1 2 --challenge", "--challenge needs a value"),
        ("chan\x1bnel", "Unknown command chan\\x1bnel"),
    ],
)
def test_a_wrong_line_is_refused_with_its_reason(line: str, reason: str) -> None:
    assert reason in refused(line)


def test_a_wrong_number_of_arguments_shows_the_help_of_the_command() -> None:
    assert "Usage: payment send-to-peer [channel] [amount]" in refused("payment send-to-peer")


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ("1 2", (("ETH", "1", "2"),)),
        ("PRN 5 0", (("PRN", "5", "0"),)),
        ("1 2 PRN 5 0", (("ETH", "1", "2"), ("PRN", "5", "0"))),
        ("PRN 5 0 ETH .5 1e-3", (("PRN", "5", "0"), ("ETH", ".5", "1e-3"))),
    ],
)
def test_deposits_are_in_eth_or_in_the_currencies_that_are_named(given: str, rows: tuple[tuple[str, ...], ...]) -> None:
    balances = deposits("bob", given.split())
    assert [(row.currency, *row.amounts) for row in balances.rows] == list(rows)
    assert balances.parts == ("self", "bob")


@pytest.mark.parametrize(
    "given", ["1", "1 2 3", "1 2 PRN 5", "1 x", "1 2 ETH 3 4", "1 2 '' 3 4", "1 inf", "0x1 2", "1,5 2"]
)
def test_deposits_that_can_be_misunderstood_are_refused(given: str) -> None:
    with pytest.raises(UsageFailure):
        deposits("bob", words_of(given))


def held(*currencies: str) -> Held:
    return Held("ab" * 32, "bob", currencies, "ch_1_bob")


def test_an_amount_without_currency_is_eth_or_the_only_currency() -> None:
    assert sums(held("PRN", "ETH"), ["1"]) == [("ETH", "1")]
    assert sums(held("PRN"), ["1"]) == [("PRN", "1")]
    assert sums(held("ETH", "PRN"), ["1", "ETH", "2", "PRN"]) == [("ETH", "1"), ("PRN", "2")]


@pytest.mark.parametrize("given", ["1", "1 PRN 2", "1 2", "PRN 1", "1 PRN 2 3"])
def test_a_payment_that_can_be_misunderstood_is_refused(given: str) -> None:
    with pytest.raises(UsageFailure):
        sums(held("PRN", "DAI"), given.split())


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "9" * 30])
def test_a_challenge_duration_is_a_whole_number_of_seconds(text: str) -> None:
    with pytest.raises(UsageFailure):
        seconds(text, "challenge")


def completions(desk: Desk, typed: str) -> set[str]:
    found = CommandCompleter(desk).get_completions(Document(typed), CompleteEvent())
    return {completion.text for completion in found}


@pytest.fixture
async def desk() -> Desk:
    desk = Desk(tell=lambda notice: None, live=True)
    balances = Balances(("self", "bob"), (Row("ETH", ("1", "2")), Row("PRN", ("1", "2"))))
    desk.book.name_channel(Channel("ab" * 32, balances, "0"))
    desk.book.know("carol")
    return desk


async def test_tab_completes_groups_commands_and_built_ins(desk: Desk) -> None:
    assert completions(desk, "ch") == {"channel", "chain"}
    assert completions(desk, "session ") == {"open", "close", "use", "id"}
    assert completions(desk, "payment se") == {"send-to-peer"}
    assert "exit" in completions(desk, "")


async def test_tab_completes_what_the_original_client_suggests(desk: Desk) -> None:
    assert completions(desk, "node connect ") == {":50001"}
    assert completions(desk, "session open ") == {"alice/session.yaml", "bob/session.yaml"}
    assert completions(desk, "session close ") == {"force", "no-force"}
    assert completions(desk, "chain set-blockchain-address ") == {"ws://127.0.0.1:8545"}
    assert len(completions(desk, "chain get-on-chain-balance 0x")) == 2


async def test_tab_completes_known_aliases_channels_and_currencies(desk: Desk) -> None:
    assert completions(desk, "channel open ") == {"bob", "carol"}
    assert completions(desk, "payment send ch") == {"ch_1_bob"}
    assert completions(desk, "payment send ch_1_bob 1 ") == {"ETH", "PRN"}
    assert completions(desk, "payment send ch_1_bob 1 PRN 2 E") == {"ETH"}
    assert completions(desk, "channel accept ") == set()


async def test_tab_quotes_what_has_blanks_and_leaves_out_what_does_not_print(desk: Desk) -> None:
    desk.book.know("my old friend")
    desk.book.know("e\x1bve")
    assert completions(desk, "peer-id get m") == {"'my old friend'"}
    assert completions(desk, "peer-id get e") == set()


async def test_aliases_count_up_and_are_never_given_twice(desk: Desk) -> None:
    balances = Balances(("carol", "self"), (Row("ETH", ("1", "2")),))
    second = desk.book.name_channel(Channel("cd" * 32, balances, "0"))
    desk.drop(desk.book, second)
    third = desk.book.name_channel(Channel("ef" * 32, balances, "0"))
    assert (second.alias, third.alias) == ("ch_2_carol", "ch_3_carol")
    assert desk.book.name_request(Proposal("01" * 32, balances, 10, 1)) == "request_1_carol"


async def test_a_name_that_nobody_knows_is_answered_with_those_that_are(desk: Desk) -> None:
    with pytest.raises(UsageFailure) as caught:
        desk.request("request_9_eve\x1b")
    assert "request_9_eve\\x1b" in str(caught.value)


def test_options_of_the_program_may_stand_before_and_behind_the_command() -> None:
    arguments = ["--node", ":7", "payment", "send", "bob", "1", "--session=abc", "--json", "--chain", "http://c"]
    settings, words = settings_of(arguments, {})
    assert (settings.node, settings.session, settings.json, settings.chain) == (":7", "abc", True, "http://c")
    assert words == ["payment", "send", "bob", "1"]


def test_the_environment_names_node_and_session_unless_options_do() -> None:
    environ = {"PERUNNODECLI_NODE": ":1", "PERUNNODECLI_SESSION": "s"}
    assert settings_of([], environ)[0].node == ":1"
    assert settings_of(["--session", "t"], environ)[0].session == "t"


def test_a_challenge_after_the_command_belongs_to_the_command() -> None:
    settings, words = settings_of(["--challenge", "60", "channel", "open", "bob", "1", "2", "--challenge", "90"], {})
    assert (settings.challenge, words[-2:]) == (60, ["--challenge", "90"])


def test_the_history_keeps_lines_but_no_session_ids(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = History(path)
    for line in ("node time", "session use 0123", "  session   attach 4567"):
        history.append_string(line)
    assert "node time" in path.read_text() and "0123" not in path.read_text() and "4567" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert shown(next(iter(History(path).load_history_strings()))) == "node time"

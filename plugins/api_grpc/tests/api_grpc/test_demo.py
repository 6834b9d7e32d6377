"""What the demo claims about money, it has counted; what it prints reads the same with and without a terminal."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perun_api_grpc.demo.failure import DemoFailed
from perun_api_grpc.demo.money import ETH, PRN, Books, ChainReader, reconcile, signed, text_of, units
from perun_api_grpc.demo.screen import Screen
from perun_api_grpc.demo.world import World, http_url, with_values

BEFORE = Books(
    block=5,
    people={"alice": {ETH: 1000, PRN: 70}, "bob": {ETH: 2000, PRN: 80}},
    held={ETH: 0, PRN: 3},
)
AFTER = Books(
    block=9,
    people={"alice": {ETH: 880, PRN: 75}, "bob": {ETH: 2070, PRN: 75}},
    held={ETH: 0, PRN: 3},
)
GAINS = {"alice": {ETH: -100, PRN: 5}, "bob": {ETH: 100, PRN: -5}}
FEES = {"alice": 20, "bob": 30}


def wrong(after: Books) -> set[str]:
    """The claims that do not hold."""
    return {check.claim for check in reconcile(BEFORE, after, gains=GAINS, fees=FEES) if not check.holds}


def test_books_in_which_everything_is_in_its_place_have_no_complaint() -> None:
    assert wrong(AFTER) == set()


def test_one_wei_that_a_person_lacks_is_noticed_twice() -> None:
    people = {**AFTER.people, "bob": {ETH: 2069, PRN: 75}}
    assert wrong(replace(AFTER, people=people)) == {
        "bob's ETH changed by the payments minus the fees",
        "ETH of both together changed by the fees and nothing else",
    }


def test_tokens_that_went_to_the_wrong_person_are_noticed() -> None:
    people = {"alice": {ETH: 880, PRN: 76}, "bob": {ETH: 2070, PRN: 74}}
    assert wrong(replace(AFTER, people=people)) == {
        "alice's PRN changed by the payments exactly",
        "bob's PRN changed by the payments exactly",
    }


@pytest.mark.parametrize("currency", [ETH, PRN])
def test_one_unit_left_with_a_contract_is_noticed(currency: str) -> None:
    held = {**AFTER.held, currency: AFTER.held[currency] + 1}
    assert wrong(replace(AFTER, held=held)) == {f"the contract that held {currency} gave everything back"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1", 10**18), ("0.25", 25 * 10**16), ("0.000000000000000001", 1), ("123456789", 123456789 * 10**18)],
)
def test_amounts_are_exact_in_both_directions(text: str, value: int) -> None:
    assert units(text) == value
    assert text_of(value) == text


def test_an_amount_with_too_many_decimals_is_refused() -> None:
    with pytest.raises(DemoFailed):
        units("0.0000000000000000001")


def test_changes_carry_their_sign() -> None:
    assert [signed(value) for value in (-(10**17), 0, 10**18)] == ["-0.1", "0", "+1"]


async def test_a_chain_that_is_not_there_is_named() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(DemoFailed, match=url):
            await ChainReader(url).number("eth_blockNumber")


class Terminal(io.StringIO):
    """Text that a terminal would get."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["file", "terminal"])
async def test_a_step_ends_with_the_time_it_took(out: io.StringIO) -> None:
    async with Screen(out).step("something slow"):
        await asyncio.sleep(0)
    last = out.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("  something slow ....")
    assert last.rstrip().endswith(" ms")


async def test_a_step_that_fails_says_so() -> None:
    out = io.StringIO()
    with pytest.raises(DemoFailed):
        async with Screen(out).step("something hard"):
            raise DemoFailed("it was too hard")
    assert out.getvalue().rstrip().endswith(" failed")


def test_generated_files_get_other_values_and_keep_the_rest() -> None:
    text = "chainurl: ws://127.0.0.1:8545\nchainid: 1337\nuser:\n    chainid: no\n"
    assert with_values(text, {"chainid": r"7\1"}) == text.replace("chainid: 1337", r"chainid: 7\1")
    with pytest.raises(DemoFailed, match="chainurls"):
        with_values(text, {"chainurls": "x"})


def test_balances_are_read_where_the_websocket_is() -> None:
    assert http_url("ws://127.0.0.1:8545") == "http://127.0.0.1:8545"
    assert http_url("wss://node.example") == "https://node.example"
    assert http_url("http://127.0.0.1:8545") == "http://127.0.0.1:8545"


@pytest.fixture
def nothing_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Worlds are made below a directory of the test, and leave nothing in it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_stays")
async def test_a_program_that_ends_instead_of_serving_is_reported_with_its_words() -> None:
    with World(keep=False) as world:
        process = world.start("node", ["sh", "-c", "echo no such chain; exit 3"])
        with pytest.raises(DemoFailed, match=r"node ended at once \(exit code 3\)"):
            await process.says("Serving")
        assert world.tails() == "--- node: the last of 1 lines ---\nno such chain"


@pytest.mark.usefixtures("nothing_stays")
async def test_leaving_the_world_ends_what_does_not_want_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perun_api_grpc.demo.world.STOP_SECONDS", 0.2)
    with World(keep=False) as world:
        process = world.start("deaf", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
        await process.says("ready")
    assert process.popen.poll() is not None

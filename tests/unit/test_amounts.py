"""Decimal text and base units: API.md 3.3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perun_core.amounts import format_amount, parse_amount
from perun_core.values import MAX_UINT256

WEI = 18


@pytest.mark.parametrize(
    ("text", "base_units"),
    [
        ("0.5", 5 * 10**17),
        ("0.000000000000000005", 5),
        ("5e-18", 5),
        ("5E-18", 5),
        ("1", 10**18),
        (".5", 5 * 10**17),
        ("5.", 5 * 10**18),
        ("+1", 10**18),
        ("1e+1", 10**19),
        ("007", 7 * 10**18),
        ("1.0000000000000000019", 10**18 + 1),  # surplus digits are cut off, not rounded
        ("0.0000000000000000019", 1),
    ],
)
def test_known_amounts(text: str, base_units: int) -> None:
    assert parse_amount(text, WEI) == base_units


@pytest.mark.parametrize(
    "text",
    [
        "5e-19",
        "5E-19",
        "0.0000000000000000005",
        "invalid-currency-string",
        "",
        ".",
        "e5",
        "+",
        "-1",
        "-0.5",
        "0",
        "0.0",
        "-0",
        " 1",
        "1 ",
        "1,5",
        "1_000",
        "0x10",
        "Inf",
        "NaN",
        "1e",
        "1e1.5",
        "1.2.3",
        "--1",
        "١",  # a digit, but not one of ours
        "1\n",
        "1e60",
        "1e999999",
        "1e9999999",
        "1e-9999999",
        "9" * 500,
        "0." + "0" * 500 + "1",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_amount(text, WEI)


def test_opening_balances_may_be_nought_and_nothing_else_that_is_too_small() -> None:
    for text in ("0", "0.0", ".0", "0e5", "+0"):
        assert parse_amount(text, WEI, zero=True) == 0
    for text in ("-0", "1e-19", "0.0000000000000000005", "-1"):
        with pytest.raises(ValueError):
            parse_amount(text, WEI, zero=True)


def test_the_largest_amount_is_the_largest_of_the_contract() -> None:
    assert parse_amount(str(MAX_UINT256), 0) == MAX_UINT256
    with pytest.raises(ValueError):
        parse_amount(str(MAX_UINT256 + 1), 0)
    assert parse_amount(format_amount(MAX_UINT256, WEI), WEI) == MAX_UINT256
    assert parse_amount(format_amount(MAX_UINT256, 255), 255) == MAX_UINT256


@pytest.mark.parametrize(
    ("base_units", "text"),
    [
        (5 * 10**18, "5"),
        (5 * 10**17, "0.5"),
        (12345678 * 10**10, "0.12345678"),
        (87654321 * 10**10, "0.87654321"),
        (5, "0.000000000000000005"),  # exact where the original prints 0
        (50, "0.00000000000000005"),
        (10**18 + 1, "1.000000000000000001"),
        (0, "0"),
    ],
)
def test_printing_is_exact_without_trailing_zeros(base_units: int, text: str) -> None:
    assert format_amount(base_units, WEI) == text


def test_a_currency_without_decimals_is_printed_as_it_is() -> None:
    assert format_amount(1200, 0) == "1200" and parse_amount("1200", 0) == 1200


@given(st.integers(1, MAX_UINT256), st.integers(0, 255))
def test_what_is_printed_is_read_back_exactly(base_units: int, decimals: int) -> None:
    text = format_amount(base_units, decimals)
    assert parse_amount(text, decimals) == base_units
    assert "e" not in text and not text.startswith(".") and ("." not in text or text[-1] not in "0.")


@given(st.text(alphabet="0123456789.eE+- x", max_size=30), st.integers(0, 30))
def test_any_text_is_an_amount_in_range_or_a_value_error(text: str, decimals: int) -> None:
    try:
        value = parse_amount(text, decimals, zero=True)
    except ValueError:
        return
    assert 0 <= value <= MAX_UINT256

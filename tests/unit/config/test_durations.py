"""Go's duration texts (API.md 4.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perun_core.durations import Duration


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("10s", 10 * 10**9),
        ("1m0s", 60 * 10**9),
        ("500ms", 500 * 10**6),
        ("1h15m30.918273645s", 4530 * 10**9 + 918273645),
        ("1.5h", 5400 * 10**9),
        (".5s", 500 * 10**6),
        ("1.s", 10**9),
        ("3us", 3000),
        ("3µs", 3000),
        ("3\u03bcs", 3000),
        ("7ns", 7),
        ("-1.5h", -5400 * 10**9),
        ("+5s", 5 * 10**9),
        ("0", 0),
        ("-0", 0),
        ("10000000000", 10 * 10**9),
        ("0.0000000001s", 0),
        ("9223372036854775807ns", 2**63 - 1),
    ],
)
def test_a_duration_is_read_as_go_reads_it(text: str, nanoseconds: int) -> None:
    assert Duration.parse(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["", "-", "+", ".", ".s", "s", "1x", "1 s", "10 s", "1s ", "1s-1s", "1e3s", "0x1s", "١s", "--1s", "1" * 200 + "s"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


@pytest.mark.parametrize("text", ["9223372036854775808ns", "2562048h", "9" * 5000])
def test_a_duration_beyond_the_range_of_go_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (10 * 10**9, "10s"),
        (60 * 10**9, "1m0s"),
        (90 * 10**9, "1m30s"),
        (3600 * 10**9, "1h0m0s"),
        (4 * 60 * 10**9 + 5 * 10**9 + 1_000_000, "4m5.001s"),
        (-1_500_000, "-1.5ms"),
        (2**63 - 1, "2562047h47m16.854775807s"),
    ],
)
def test_a_duration_is_written_as_go_writes_it(nanoseconds: int, text: str) -> None:
    assert str(Duration(nanoseconds)) == text


@given(st.integers(min_value=-(2**63 - 1), max_value=2**63 - 1))
def test_what_is_written_reads_back_the_same(nanoseconds: int) -> None:
    assert Duration.parse(str(Duration(nanoseconds))) == nanoseconds


def test_seconds_are_for_timers() -> None:
    assert Duration.parse("1500ms").seconds == 1.5
    assert Duration.of_seconds(3) == Duration.parse("3s")

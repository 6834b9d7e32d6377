"""Primitives and allocations, read and written (PROTOCOL.md 1, 3.3, 3.4)."""

from __future__ import annotations

import pytest

from perun_core.apps import AppRegistry
from perun_core.channel.rules import normalise_index_map
from perun_core.errors import DecodeError, EncodeError
from perun_core.values import MAX_UINT256

from .forms import agrees, decoded, encoded, form
from .loader import Case, reads
from .values import allocation, data_of, sub_alloc


@reads("primitives.json", "values")
def test_values_are_written_and_read(case: Case, apps: AppRegistry) -> None:
    agrees(case, apps)


@reads("primitives.json", "decode_only")
def test_other_forms_are_read_as_the_specification_says(case: Case, apps: AppRegistry) -> None:
    verdict = case["we"]
    if verdict.startswith("reject"):
        with pytest.raises(DecodeError):
            decoded(case, apps, data_of(case))
        return
    try:
        value = decoded(case, apps, data_of(case))
    except DecodeError:
        assert verdict.startswith(("accept or reject", "as the app defines"))
        return
    assert value == form(case, apps).build(case["value"])
    if case["type"] != "string":  # what was replaced in a text is not restored
        assert encoded(case, apps, value) == bytes.fromhex(case["canonical_bytes"])


@reads("primitives.json", "decode_reject")
def test_damaged_values_are_refused(case: Case, apps: AppRegistry) -> None:
    with pytest.raises(DecodeError):
        decoded(case, apps, data_of(case))


@reads("primitives.json", "encode_reject")
def test_unwritable_values_are_refused(case: Case, apps: AppRegistry) -> None:
    if case["value"] is None:
        return  # a missing integer cannot be expressed here
    with pytest.raises(EncodeError):
        encoded(case, apps, form(case, apps).build(case["value"]))


@reads("allocations.json", "balances")
def test_balances(case: Case, apps: AppRegistry) -> None:
    typed = {**case, "type": "balances"}
    rows = form(typed, apps).build(case["value"])
    assert [sum(row) for row in rows] == [int(total) for total in case["sums"]]
    if any(value > MAX_UINT256 for row in rows for value in row):
        with pytest.raises(DecodeError):
            decoded(typed, apps, data_of(case))
        with pytest.raises(EncodeError):
            encoded(typed, apps, rows)
    else:
        agrees(typed, apps)


@reads("allocations.json", "sub_allocs")
def test_sub_allocations(case: Case, apps: AppRegistry) -> None:
    agrees({**case, "type": "sub_alloc", "n": len(case["value"]["bals"])}, apps)


@reads("allocations.json", "allocations")
def test_allocations(case: Case, apps: AppRegistry) -> None:
    agrees({**case, "type": "allocation"}, apps)
    value = allocation(case["value"])
    assert len(value.balances[0]) == case["num_parts"]
    assert value.sums() == tuple(int(total) for total in case["sums"])


@reads("allocations.json", "transform")
def test_index_maps_that_are_permutations_move_balances_without_loss(case: Case) -> None:
    """The formula of virtual channels (PROTOCOL.md 7.7): entry p names the parent's index of participant p."""
    index_map = case["index_map"]
    if not index_map or len(set(index_map)) != len(index_map) or len(index_map) != len(case["balances"][0]):
        return  # not to be used: no permutation of the participants
    for before, after in zip(case["balances"], case["result"], strict=True):
        moved = ["0"] * case["num_parts"]
        for part, value in enumerate(before):
            moved[index_map[part]] = value
        assert moved == after


@reads("allocations.json", "sub_alloc_equality")
def test_locked_entries_are_equal_when_their_normalised_maps_are(case: Case) -> None:
    a, b = (sub_alloc(case[side]) for side in "ab")
    maps = (normalise_index_map(entry.index_map, case["num_parts"]) for entry in (a, b))
    equal = (a.id, a.balances) == (b.id, b.balances) and next(maps) == next(maps)
    assert equal == case["required_equal"]

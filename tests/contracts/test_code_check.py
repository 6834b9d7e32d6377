"""Recognising contracts by their code (CHAIN.md 2.4)."""

from __future__ import annotations

import pytest

from perun_chain_ethereum.artifacts import ContractKind, load
from perun_chain_ethereum.code_check import (
    OWN_SET,
    NoCode,
    UnknownCode,
    WrongImmutable,
    identify,
    known_code,
)
from perun_chain_ethereum.testing import World

ADJUDICATOR, TOKEN, OTHER = b"\xaa" * 20, b"\xbb" * 20, b"\xcc" * 20
HOLDERS = (ContractKind.ETH_HOLDER, ContractKind.ERC20_HOLDER)
MADE_FOR = {"adjudicator": ADJUDICATOR, "token": TOKEN}


def deployed(kind: ContractKind) -> bytes:
    """Our runtime code with the immutables filled in."""
    code = bytearray(load(kind).runtime_code)
    for name, offsets in load(kind).immutables.items():
        for at in offsets:
            code[at : at + 32] = bytes(12) + MADE_FOR[name]
    return bytes(code)


def flipped(code: bytes, at: int) -> bytes:
    return code[:at] + bytes([code[at] ^ 1]) + code[at + 1 :]


@pytest.mark.parametrize("kind", ContractKind)
def test_our_code_is_recognised(kind: ContractKind) -> None:
    match = identify(kind, deployed(kind), adjudicator=ADJUDICATOR, token=TOKEN)
    assert (match.entry.set_name, match.entry.profile, match.entry.unsafe) == (OWN_SET, "P1", False)
    assert dict(match.immutables) == {name: MADE_FOR[name] for name in load(kind).immutables}
    assert identify(None, deployed(kind)) == match


def test_what_a_real_chain_holds_is_recognised(world: World) -> None:
    addresses = {
        ContractKind.ADJUDICATOR: world.adjudicator,
        ContractKind.ETH_HOLDER: world.eth,
        ContractKind.TOKEN: world.token,
        ContractKind.ERC20_HOLDER: world.erc20,
        ContractKind.APP: world.app,
    }
    adjudicator, token = bytes.fromhex(world.adjudicator[2:]), bytes.fromhex(world.token[2:])
    for kind, address in addresses.items():
        code = world.chain.code(bytes.fromhex(address[2:]))
        assert identify(None, code, adjudicator=adjudicator, token=token).entry.kind is kind


@pytest.mark.parametrize("kind", ContractKind)
def test_no_code_is_not_a_contract(kind: ContractKind) -> None:
    with pytest.raises(NoCode):
        identify(kind, b"")


@pytest.mark.parametrize("kind", ContractKind)
def test_one_flipped_bit_outside_the_immutables_is_another_contract(kind: ContractKind) -> None:
    code = deployed(kind)
    covered = {at + i for offsets in load(kind).immutables.values() for at in offsets for i in range(32)}
    places = {0, len(code) // 2, len(code) - 1} | {at - 1 for at in covered} | {at + 1 for at in covered}
    for at in sorted(places - covered):
        with pytest.raises(UnknownCode):
            identify(kind, flipped(code, at))


@pytest.mark.parametrize("kind", HOLDERS)
def test_one_flipped_bit_in_one_of_several_copies_of_an_immutable_is_another_contract(kind: ContractKind) -> None:
    for offsets in load(kind).immutables.values():
        if len(offsets) > 1:
            with pytest.raises(UnknownCode):
                identify(kind, flipped(deployed(kind), offsets[0] + 31))


@pytest.mark.parametrize("kind", HOLDERS)
def test_the_unused_part_of_an_immutable_is_zero(kind: ContractKind) -> None:
    code = deployed(kind)
    for at in load(kind).immutables["adjudicator"]:
        code = flipped(code, at)
    with pytest.raises(UnknownCode):
        identify(kind, code)


def test_a_holder_of_another_adjudicator_or_token_is_named() -> None:
    code = deployed(ContractKind.ERC20_HOLDER)
    with pytest.raises(WrongImmutable) as wrong:
        identify(ContractKind.ERC20_HOLDER, code, adjudicator=OTHER, token=TOKEN)
    assert (wrong.value.name, wrong.value.expected, wrong.value.found) == ("adjudicator", OTHER, ADJUDICATOR)
    with pytest.raises(WrongImmutable) as wrong:
        identify(ContractKind.ERC20_HOLDER, code, adjudicator=ADJUDICATOR, token=OTHER)
    assert wrong.value.name == "token"


def test_a_contract_of_another_kind_is_refused() -> None:
    with pytest.raises(UnknownCode):
        identify(ContractKind.ETH_HOLDER, deployed(ContractKind.ADJUDICATOR))


def test_surplus_code_is_another_contract() -> None:
    for code in (deployed(ContractKind.ADJUDICATOR) + b"\0", deployed(ContractKind.ADJUDICATOR)[:-1]):
        with pytest.raises(UnknownCode):
            identify(None, code)


def test_the_table_holds_every_kind_of_every_set_once() -> None:
    entries = known_code()
    assert len({(e.set_name, e.kind) for e in entries}) == len(entries) == 4 * len(ContractKind)
    assert len({e.hash for e in entries}) == len(entries)
    assert {e.set_name for e in entries if not e.unsafe} == {OWN_SET}
    assert {e.profile for e in entries} == {"P1", "P2", "P3"}

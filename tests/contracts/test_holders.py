"""Deposits, outcomes and withdrawals (CHAIN.md 1.5) and the test token (CHAIN.md 1.6)."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi import encode

from perun_chain_ethereum.artifacts import ContractKind
from perun_chain_ethereum.embedded import CallFailed
from perun_chain_ethereum.testing import (
    ADDRESS,
    DEPOSIT,
    ETHER,
    SET_OUTCOME,
    Params,
    World,
    funding_id,
)

A, B = ADDRESS[1], ADDRESS[3]
OWNER = ADDRESS[0]
MAX = 2**256 - 1


def reverts(reason: str) -> Any:
    return pytest.raises(CallFailed, match=f"^execution reverted: {reason}$")


def reverts_empty() -> Any:
    return pytest.raises(CallFailed, match=r"^execution reverted$")


def contract(code: str) -> bytes:
    """Creation code of a contract with this runtime code (hex, less than 256 bytes)."""
    raw = bytes.fromhex(code)
    return bytes([0x60, len(raw), 0x80, 0x60, 9, 0x3D, 0x39, 0x3D, 0xF3]) + raw


@pytest.fixture
def holder(world: World) -> str:
    """An ETH holder whose adjudicator is account 0."""
    return world.deploy(ContractKind.ETH_HOLDER, ["address"], OWNER)


def held(world: World, holder: str, key: bytes) -> int:
    amount: int = world.read(holder, "holdings(bytes32)", ["uint256"], key)[0]
    return amount


@pytest.mark.parametrize(
    ("deposits", "on_channel", "expected"),
    [
        pytest.param((10, 20), 0, (5, 25), id="each pays its part"),
        pytest.param((30, 0), 0, (5, 25), id="one pays for all"),
        pytest.param((0, 0), 30, (5, 25), id="paid to the channel as a whole"),
        pytest.param((100, 20), 0, (5, 25), id="overfunded"),
        pytest.param((10, 0), 3, (10, 0), id="underfunded: everybody keeps its own"),
        pytest.param((0, 0), 0, (0, 0), id="nothing deposited"),
    ],
)
def test_an_outcome_is_paid_by_the_deposits_of_its_channel(
    world: World, holder: str, deposits: tuple[int, int], on_channel: int, expected: tuple[int, int]
) -> None:
    c = Params()
    for key, amount in ((funding_id(c.id, A), deposits[0]), (funding_id(c.id, B), deposits[1]), (c.id, on_channel)):
        world.send(holder, DEPOSIT, key, amount, value=amount)
    receipt = world.send(holder, SET_OUTCOME, c.id, [A, B], [5, 25])
    assert (world.holdings(c, A, holder), world.holdings(c, B, holder)) == expected
    assert held(world, holder, c.id) == 0
    assert world.read(holder, "settled(bytes32)", ["bool"], c.id) == (True,)
    assert [log["topics"][1] for log in receipt["logs"]] == ["0x" + c.id.hex()]


def test_only_the_adjudicator_sets_an_outcome_and_only_once(world: World, holder: str) -> None:
    c = Params()
    with reverts("can only be called by the adjudicator"):
        world.send(holder, SET_OUTCOME, c.id, [A, B], [0, 0], sender=ADDRESS[2])
    with reverts("participants length should equal balances"):
        world.send(holder, SET_OUTCOME, c.id, [A, B], [0])
    with reverts("SafeMath: addition overflow"):
        world.send(holder, SET_OUTCOME, c.id, [A, B], [MAX, 1])
    world.send(holder, SET_OUTCOME, c.id, [A, B], [0, 0])
    with reverts("trying to set already settled channel"):
        world.send(holder, SET_OUTCOME, c.id, [A, B], [0, 0])


def test_deposits_are_exact_and_add_up(world: World) -> None:
    c = Params()
    key = funding_id(c.id, A)
    with reverts("wrong amount of ETH for deposit"):
        world.send(world.eth, DEPOSIT, key, 2, value=1)
    with reverts_empty():
        world.transact(world.eth, b"", value=1)
    receipt = world.deposit(c, 3, 0)[0]
    assert receipt["logs"][0]["topics"][1] == "0x" + key.hex()
    assert int(receipt["logs"][0]["data"], 16) == 3
    world.send(world.eth, DEPOSIT, key, 0)
    world.deposit(c, 4, 0)
    assert world.holdings(c, A) == 7


def test_a_deposit_after_settlement_can_be_withdrawn(world: World) -> None:
    c = Params()
    world.conclude_final(c, world.state(c, 1, 0, 0, final=True))
    world.deposit(c, 9, 0)
    world.withdraw(c, A, ADDRESS[4], 9)
    assert world.balance(world.eth) == 0


def test_withdrawals_need_settlement_signature_and_funds(world: World) -> None:
    c = Params()
    world.deposit(c, 10, 10)
    with reverts("channel not settled"):
        world.withdraw(c, A, ADDRESS[4], 1)
    world.conclude_final(c, world.state(c, 1, 15, 5, final=True))
    with reverts("signature verification failed"):
        world.withdraw(c, A, ADDRESS[4], 1, signer=B)
    with reverts("insufficient funds"):
        world.withdraw(c, A, ADDRESS[4], 16)
    world.withdraw(c, A, ADDRESS[4], 0)
    receipt = world.withdraw(c, A, ADDRESS[4], 9)
    assert receipt["logs"][0]["data"] == "0x" + encode(["uint256", "address"], [9, ADDRESS[4]]).hex()
    world.withdraw(c, A, ADDRESS[4], 6)
    with reverts("insufficient funds"):
        world.withdraw(c, A, ADDRESS[4], 1)
    assert world.holdings(c, B) == 5


def test_contract_accounts_can_be_paid_in_eth(world: World) -> None:
    c = Params()
    world.deposit(c, 10, 0)
    world.conclude_final(c, world.state(c, 1, 10, 0, final=True))
    bookkeeping = world.deploy_code(contract("600160005500"))
    world.withdraw(c, A, bookkeeping, 4)
    assert world.balance(bookkeeping) == 4
    refusing = world.deploy_code(contract("60006000fd"))
    with reverts_empty():
        world.withdraw(c, A, refusing, 4)
    assert world.holdings(c, A) == 6


def test_tokens_go_in_and_out(world: World) -> None:
    c = Params()
    before = world.tokens(OWNER)
    with reverts("message value must be 0 for token deposit"):
        world.send(world.erc20, DEPOSIT, funding_id(c.id, A), 1, value=1)
    with reverts("ERC20: transfer amount exceeds allowance"):
        world.send(world.erc20, DEPOSIT, funding_id(c.id, A), 1)
    world.deposit(c, 10, 20, holder=world.erc20)
    assert (world.tokens(OWNER), world.tokens(world.erc20)) == (before - 30, 30)
    world.conclude_final(c, world.state(c, 1, 25, 5, assets=(world.erc20,), final=True))
    world.withdraw(c, A, ADDRESS[4], 25, holder=world.erc20)
    world.withdraw(c, B, ADDRESS[4], 5, holder=world.erc20)
    assert (world.tokens(ADDRESS[4]), world.tokens(world.erc20)) == (30, 0)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param("00", None, id="no answer"),
        pytest.param("600160005260206000f3", None, id="true"),
        pytest.param("600060005260206000f3", ": transferFrom failed", id="false"),
        pytest.param("600260005260206000f3", "", id="two"),
        pytest.param("60016000f3", "", id="one byte"),
        pytest.param("60006000fd", "", id="reverts"),
    ],
)
def test_a_token_has_to_say_yes_or_nothing(world: World, code: str, reason: str | None) -> None:
    token = world.deploy_code(contract(code))
    holder = world.deploy(ContractKind.ERC20_HOLDER, ["address", "address"], world.adjudicator, token)
    if reason is None:
        world.send(holder, DEPOSIT, bytes(32), 5)
        assert held(world, holder, bytes(32)) == 5
        with reverts("SafeMath: addition overflow"):
            world.send(holder, DEPOSIT, bytes(32), MAX)
    else:
        with pytest.raises(CallFailed, match=f"^execution reverted{reason}$"):
            world.send(holder, DEPOSIT, bytes(32), 5)


def test_a_token_without_code_is_refused(world: World) -> None:
    holder = world.deploy(ContractKind.ERC20_HOLDER, ["address", "address"], world.adjudicator, ADDRESS[4])
    with reverts_empty():
        world.send(holder, DEPOSIT, bytes(32), 5)


def test_a_withdrawal_fails_if_the_token_says_no(world: World) -> None:
    token = world.deploy_code(contract("600060005260206000f3"))
    holder = world.deploy(ContractKind.ERC20_HOLDER, ["address", "address"], OWNER, token)
    c = Params()
    world.send(holder, SET_OUTCOME, c.id, [A], [0])
    with reverts("transfer failed"):
        world.withdraw(c, A, ADDRESS[4], 0, holder=holder)


# -- the test token ---------------------------------------------------------------------------------------------------


def test_the_test_token_introduces_itself(world: World) -> None:
    assert world.read(world.token, "name()", ["string"]) == ("PerunToken",)
    assert world.read(world.token, "symbol()", ["string"]) == ("PRN",)
    assert world.read(world.token, "decimals()", ["uint8"]) == (18,)
    assert world.read(world.token, "totalSupply()", ["uint256"]) == (3000 * ETHER,)
    assert [world.tokens(address) for address in ADDRESS[:4]] == [1000 * ETHER] * 3 + [0]


def test_a_transfer_on_allowance_reports_the_rest_of_the_allowance(world: World) -> None:
    spender = ADDRESS[2]
    world.send(world.token, "approve(address,uint256)", spender, MAX)
    receipt = world.send(world.token, "transferFrom(address,address,uint256)", OWNER, ADDRESS[4], 7, sender=spender)
    assert [int(log["data"], 16) for log in receipt["logs"]] == [7, MAX - 7]
    assert world.read(world.token, "allowance(address,address)", ["uint256"], OWNER, spender) == (MAX - 7,)


def test_the_test_token_refuses_with_the_published_reasons(world: World) -> None:
    zero = "0x" + 40 * "0"
    refusals = [
        ("transfer(address,uint256)", (ADDRESS[4], 1000 * ETHER + 1), "transfer amount exceeds balance"),
        ("transfer(address,uint256)", (zero, 1), "transfer to the zero address"),
        ("transferFrom(address,address,uint256)", (zero, OWNER, 1), "transfer from the zero address"),
        ("transferFrom(address,address,uint256)", (ADDRESS[2], OWNER, 1), "transfer amount exceeds allowance"),
        ("approve(address,uint256)", (zero, 1), "approve to the zero address"),
        ("decreaseAllowance(address,uint256)", (ADDRESS[2], 1), "decreased allowance below zero"),
    ]
    for signature, arguments, reason in refusals:
        with reverts(f"ERC20: {reason}"):
            world.send(world.token, signature, *arguments)
    world.send(world.token, "increaseAllowance(address,uint256)", ADDRESS[2], 5)
    with reverts("SafeMath: addition overflow"):
        world.send(world.token, "increaseAllowance(address,uint256)", ADDRESS[2], MAX)
    world.send(world.token, "decreaseAllowance(address,uint256)", ADDRESS[2], 2)
    assert world.read(world.token, "allowance(address,address)", ["uint256"], OWNER, ADDRESS[2]) == (3,)
    with reverts("ERC20: mint to the zero address"):
        world.deploy(ContractKind.TOKEN, ["address[]", "uint256"], [zero], 1)


def test_sending_tokens_to_oneself_changes_nothing(world: World) -> None:
    before = world.tokens(OWNER)
    world.send(world.token, "transfer(address,uint256)", OWNER, before)
    assert world.tokens(OWNER) == before

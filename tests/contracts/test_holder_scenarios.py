"""C13 to C17 of CHAIN.md 6.1: deposits, outcomes and withdrawals, with tokens and receivers of every habit."""

from __future__ import annotations

from enum import IntEnum
from itertools import product
from typing import Any

import pytest
from eth_abi import encode
from eth_hash.auto import keccak

from perun_chain_ethereum.artifacts import ContractKind
from perun_chain_ethereum.testing import (
    ADDRESS,
    AUTH,
    DEPOSIT,
    ETHER,
    SET_OUTCOME,
    WITHDRAW,
    Params,
    World,
    calldata,
    funding_id,
    sign,
)

from .scenes import LIMIT, MAX, A, B, C, deploy, reverts, reverts_empty

OWNER, RECEIVER = ADDRESS[0], ADDRESS[4]


class Habit(IntEnum):
    """What QuirkyToken does."""

    HONEST = 0
    RETURNS_FALSE = 1
    RETURNS_NOTHING = 2
    RETURNS_TWO = 3
    RETURNS_ONE_BYTE = 4
    RETURNS_TWO_WORDS = 5
    TAKES_A_FEE = 6
    REVERTS = 7
    CALLS_BACK = 8


@pytest.fixture
def holder(world: World) -> str:
    """An ETH holder whose adjudicator is account 0, to set outcomes freely."""
    return world.deploy(ContractKind.ETH_HOLDER, ["address"], OWNER)


@pytest.fixture
def token(world: World) -> str:
    """A quirky token of which account 0 owns 1000."""
    address = deploy(world, "QuirkyToken")
    world.send(address, "mint(address,uint256)", OWNER, 1000)
    return address


@pytest.fixture
def token_holder(world: World, token: str) -> str:
    """The holder of the quirky token; its adjudicator is account 0."""
    return world.deploy(ContractKind.ERC20_HOLDER, ["address", "address"], OWNER, token)


def adopt(world: World, token: str, habit: Habit) -> None:
    world.send(token, "adopt(uint8)", habit)


def pay_in(world: World, holder: str, key: bytes, amount: int) -> Any:
    return world.send(holder, DEPOSIT, key, amount, value=amount)


def set_outcome(world: World, holder: str, channel: bytes, parts: list[str], balances: list[int]) -> Any:
    return world.send(holder, SET_OUTCOME, channel, parts, balances)


def held(world: World, holder: str, key: bytes) -> int:
    amount: int = world.read(holder, "holdings(bytes32)", ["uint256"], key)[0]
    return amount


def settled(world: World, holder: str, key: bytes) -> bool:
    answer: bool = world.read(holder, "settled(bytes32)", ["bool"], key)[0]
    return answer


def authorized(auth: tuple[bytes, str, str, int]) -> bytes:
    return sign(auth[1], keccak(encode([AUTH], [auth])))


# -- C13: outcomes ----------------------------------------------------------------------------------------------------


def test_c13_an_outcome_comes_from_the_adjudicator_once(world: World, holder: str) -> None:
    c = Params()
    for stranger in (ADDRESS[2], ADDRESS[4]):
        with reverts("can only be called by the adjudicator"):
            world.send(holder, SET_OUTCOME, c.id, [A], [], sender=stranger)
    for parts, balances in (([A, B], [1]), ([A], [1, 2]), ([], [1])):
        with reverts("participants length should equal balances"):
            set_outcome(world, holder, c.id, parts, balances)
    assert not settled(world, holder, c.id)
    assert set_outcome(world, holder, c.id, [A, B], [0, 0])["logs"][0]["topics"][1] == "0x" + c.id.hex()
    assert settled(world, holder, c.id)
    for balances in ([0, 0], [1, 1]):
        with reverts("trying to set already settled channel"):
            set_outcome(world, holder, c.id, [A, B], balances)


@pytest.mark.parametrize("balances", [[MAX, 1], [1, MAX], [LIMIT + 1, 0], [LIMIT, 1], [MAX, MAX], [2**255, 2**255]])
def test_c13_sums_never_wrap(world: World, holder: str, balances: list[int]) -> None:
    c = Params()
    pay_in(world, holder, funding_id(c.id, A), 5)
    with reverts("SafeMath: addition overflow"):
        set_outcome(world, holder, c.id, [A, B], balances)
    assert (held(world, holder, funding_id(c.id, A)), settled(world, holder, c.id)) == (5, False)


def test_c13_the_largest_sums_are_paid(world: World, token_holder: str, token: str) -> None:
    c = Params()
    world.send(token, "mint(address,uint256)", C, LIMIT)
    world.send(token_holder, DEPOSIT, funding_id(c.id, A), 1)
    world.send(token_holder, DEPOSIT, funding_id(c.id, B), 999)
    set_outcome(world, token_holder, c.id, [A, B], [LIMIT - 7, 7])
    # Underfunded by far: everybody keeps its own.
    assert [held(world, token_holder, funding_id(c.id, who)) for who in (A, B)] == [1, 999]


@pytest.mark.parametrize(
    ("deposits", "on_channel", "expected"),
    [
        pytest.param((10, 20), 0, (5, 25), id="each pays its part"),
        pytest.param((30, 0), 0, (5, 25), id="one pays for all"),
        pytest.param((0, 30), 0, (5, 25), id="the other one pays for all"),
        pytest.param((0, 0), 30, (5, 25), id="paid to the channel as a whole"),
        pytest.param((3, 4), 23, (5, 25), id="paid in parts"),
        pytest.param((100, 20), 0, (5, 25), id="overfunded"),
        pytest.param((0, 0), 100, (5, 25), id="overfunded as a whole"),
        pytest.param((10, 0), 3, (10, 0), id="underfunded"),
        pytest.param((9, 20), 0, (9, 20), id="one short"),
        pytest.param((0, 0), 29, (0, 0), id="one short, paid to the channel as a whole"),
        pytest.param((0, 0), 0, (0, 0), id="nothing deposited"),
    ],
)
def test_c13_all_rows_of_outcome_versus_deposits(
    world: World, holder: str, deposits: tuple[int, int], on_channel: int, expected: tuple[int, int]
) -> None:
    c, other = Params(), Params(nonce=2)
    keys = [funding_id(c.id, A), funding_id(c.id, B), c.id]
    for key, amount in zip(keys, (*deposits, on_channel), strict=True):
        pay_in(world, holder, key, amount)
    pay_in(world, holder, funding_id(other.id, A), 1000)
    set_outcome(world, holder, c.id, [A, B], [5, 25])
    assert [held(world, holder, key) for key in keys] == [*expected, 0]
    assert [settled(world, holder, key) for key in keys] == [False, False, True]
    for who, amount in zip((A, B), expected, strict=True):
        with reverts("insufficient funds"):
            world.withdraw(c, who, RECEIVER, amount + 1, holder=holder)
        world.withdraw(c, who, RECEIVER, amount, holder=holder)
    assert [held(world, holder, key) for key in keys] == [0, 0, 0]
    assert held(world, holder, funding_id(other.id, A)) == 1000
    # Late money is credited and can be withdrawn, whether a share was there or not.
    for who, key in ((A, keys[0]), (B, keys[1])):
        pay_in(world, holder, key, 9)
        assert held(world, holder, key) == 9
        world.withdraw(c, who, RECEIVER, 4, holder=holder)
        world.withdraw(c, who, RECEIVER, 5, holder=holder)
        assert held(world, holder, key) == 0


def test_c13_an_outcome_with_a_dirty_participant_is_refused(world: World, holder: str) -> None:
    data = calldata(SET_OUTCOME, bytes(32), [A], [0])
    at = data.index(bytes.fromhex(A[2:])) - 1
    with reverts_empty():
        world.transact(holder, data[:at] + b"\1" + data[at + 1 :])


# -- C14: deposits ----------------------------------------------------------------------------------------------------


def test_c14_eth_deposits_are_worth_their_amount(world: World) -> None:
    c = Params()
    key = funding_id(c.id, A)
    for amount, value in ((1, 0), (0, 1), (1, 2), (MAX, 1), (LIMIT + 1, 0)):
        with reverts("wrong amount of ETH for deposit"):
            world.send(world.eth, DEPOSIT, key, amount, value=value)
    with reverts_empty():
        world.transact(world.eth, b"", value=1)
    receipt = world.send(world.eth, DEPOSIT, key, 0)
    assert int(receipt["logs"][0]["data"], 16) == 0
    for sender, amount, total in ((ADDRESS[0], 5, 5), (ADDRESS[2], 7, 12), (ADDRESS[4], 1, 13)):
        receipt = world.send(world.eth, DEPOSIT, key, amount, value=amount, sender=sender)
        assert receipt["logs"][0]["topics"][1] == "0x" + key.hex()
        assert int(receipt["logs"][0]["data"], 16) == amount
        assert held(world, world.eth, key) == total


def test_c14_a_share_grows_with_later_deposits(world: World) -> None:
    c = Params()
    world.deposit(c, 10, 10)
    world.conclude_final(c, world.state(c, 1, 15, 5, final=True))
    world.deposit(c, 4, 6)
    assert (world.holdings(c, A), world.holdings(c, B)) == (19, 11)
    world.withdraw(c, A, RECEIVER, 19)
    world.withdraw(c, B, RECEIVER, 11)
    assert world.balance(world.eth) == 0


def test_c14_token_deposits_need_allowance_and_balance(world: World) -> None:
    c = Params()
    key = funding_id(c.id, A)
    with reverts("message value must be 0 for token deposit"):
        world.send(world.erc20, DEPOSIT, key, 1, value=1)
    with reverts("ERC20: transfer amount exceeds allowance"):
        world.send(world.erc20, DEPOSIT, key, 1)
    world.send(world.token, "approve(address,uint256)", world.erc20, MAX)
    with reverts("ERC20: transfer amount exceeds balance"):
        world.send(world.erc20, DEPOSIT, key, 1000 * ETHER + 1)
    with reverts("ERC20: transfer amount exceeds balance"):
        world.send(world.erc20, DEPOSIT, key, LIMIT)
    with reverts("SafeMath: addition overflow"):
        world.send(world.erc20, DEPOSIT, key, LIMIT + 1)
    world.send(world.erc20, DEPOSIT, key, 0)
    world.send(world.erc20, DEPOSIT, key, 3)
    world.send(world.erc20, DEPOSIT, key, 4)
    assert (held(world, world.erc20, key), world.tokens(world.erc20)) == (7, 7)


def test_c14_no_deposit_reaches_the_flags_of_an_entry(world: World, token: str, token_holder: str) -> None:
    c = Params()
    world.send(token, "mint(address,uint256)", OWNER, LIMIT - 1000)
    for key in (c.id, funding_id(c.id, A)):
        world.send(token_holder, DEPOSIT, key, LIMIT)
        world.send(token, "mint(address,uint256)", OWNER, LIMIT)
        for surplus in (1, LIMIT, LIMIT + 1, 2**254, 2**255, MAX):
            with reverts("SafeMath: addition overflow"):
                world.send(token_holder, DEPOSIT, key, surplus)
        assert (held(world, token_holder, key), settled(world, token_holder, key)) == (LIMIT, False)
    with reverts("channel not settled"):
        world.withdraw(c, A, RECEIVER, 1, holder=token_holder)


# -- C15: withdrawals -------------------------------------------------------------------------------------------------


def test_c15_a_withdrawal_needs_settlement_signature_and_funds_in_that_order(world: World) -> None:
    c = Params()
    world.deposit(c, 10, 10)
    with reverts("channel not settled"):
        world.withdraw(c, A, RECEIVER, 99, signer=B)
    world.conclude_final(c, world.state(c, 1, 15, 5, final=True))
    for signer in (B, C):
        with reverts("signature verification failed"):
            world.withdraw(c, A, RECEIVER, 99, signer=signer)
    for amount in (16, MAX, 2**255, 2**254 + 15):
        with reverts("insufficient funds"):
            world.withdraw(c, A, RECEIVER, amount)
    receipt = world.withdraw(c, A, RECEIVER, 9)
    assert receipt["logs"][0]["data"] == "0x" + encode(["uint256", "address"], [9, RECEIVER]).hex()
    assert receipt["logs"][0]["topics"][1] == "0x" + funding_id(c.id, A).hex()
    world.withdraw(c, A, RECEIVER, 0)
    world.withdraw(c, A, RECEIVER, 6)
    with reverts("insufficient funds"):
        world.withdraw(c, A, RECEIVER, 1)
    world.withdraw(c, A, RECEIVER, 0)
    assert (world.holdings(c, A), world.holdings(c, B)) == (0, 5)


def test_c15_an_authorization_is_bound_to_everything_it_says(world: World) -> None:
    c = Params()
    world.deposit(c, 10, 10)
    world.conclude_final(c, world.state(c, 1, 10, 10, final=True))
    auth = (c.id, A, RECEIVER, 4)
    sig = authorized(auth)
    for other in ((c.id, A, OWNER, 4), (c.id, A, RECEIVER, 5), (c.id, B, RECEIVER, 4)):
        with reverts("signature verification failed"):
            world.send(world.eth, WITHDRAW, other, sig)
    elsewhere = Params(nonce=2)
    world.conclude_final(elsewhere, world.state(elsewhere, 1, 0, 0, final=True))
    with reverts("signature verification failed"):
        world.send(world.eth, WITHDRAW, (elsewhere.id, A, RECEIVER, 4), sig)
    # Anybody may send it, as often as the share suffices.
    for sender in (ADDRESS[2], ADDRESS[4]):
        world.send(world.eth, WITHDRAW, auth, sig, sender=sender)
    with reverts("insufficient funds"):
        world.send(world.eth, WITHDRAW, auth, sig)
    assert (world.holdings(c, A), world.holdings(c, B)) == (2, 10)


def test_c15_an_authorization_counts_at_every_holder_of_the_channel_and_nowhere_else(world: World) -> None:
    c = Params()
    world.deposit(c, 10, 0)
    world.deposit(c, 10, 0, holder=world.erc20)
    final = world.state(c, 1, final=True, assets=(world.eth, world.erc20), balances=((10, 0), (10, 0)))
    world.conclude_final(c, final)
    other = world.deploy(ContractKind.ETH_HOLDER, ["address"], world.adjudicator)
    world.send(other, DEPOSIT, funding_id(c.id, A), 10, value=10)
    world.withdraw(c, A, RECEIVER, 4)
    world.withdraw(c, A, RECEIVER, 4, holder=world.erc20)
    with reverts("channel not settled"):
        world.withdraw(c, A, RECEIVER, 4, holder=other)
    assert (world.holdings(c, A), world.holdings(c, A, world.erc20)) == (6, 6)


def test_c15_receivers_of_all_kinds(world: World) -> None:
    c = Params()
    world.deposit(c, 100, 0)
    world.conclude_final(c, world.state(c, 1, 100, 0, final=True))
    costly, none, again = (deploy(world, name) for name in ("CostlyReceive", "NoReceive", "CallsBackReceive"))
    for _ in range(2):
        world.withdraw(c, A, costly, 10)
    assert world.read(costly, "count()", ["uint256"]) == (2,)
    with reverts_empty():
        world.withdraw(c, A, none, 10)
    assert world.holdings(c, A) == 80
    auth = (c.id, A, again, 50)
    data = calldata(WITHDRAW, auth, authorized(auth))
    world.send(again, "aim(address,bytes)", world.eth, data)
    world.transact(world.eth, data)
    # The share was lowered before it was paid: 30 are left, so a second 50 fails.
    assert world.read(again, "attempts()", ["uint256"]) == (1,)
    assert world.read(again, "successes()", ["uint256"]) == (0,)
    assert (world.balance(again), world.holdings(c, A)) == (50, 30)


def test_c15_a_receiver_that_withdraws_again_gets_its_share_once(world: World) -> None:
    c, victim = Params(), Params(nonce=2)
    world.deposit(c, 20, 0)
    world.deposit(victim, 100, 100)
    world.conclude_final(c, world.state(c, 1, 20, 0, final=True))
    again = deploy(world, "CallsBackReceive")
    auth = (c.id, A, again, 5)
    data = calldata(WITHDRAW, auth, authorized(auth))
    world.send(again, "aim(address,bytes)", world.eth, data)
    world.transact(world.eth, data)
    assert (world.balance(again), world.holdings(c, A)) == (20, 0)
    assert world.balance(world.eth) == 200


# -- C16: tokens ------------------------------------------------------------------------------------------------------

OUTCOMES = {
    Habit.HONEST: None,
    Habit.RETURNS_NOTHING: None,
    Habit.RETURNS_TWO_WORDS: None,
    Habit.RETURNS_FALSE: "false",
    Habit.RETURNS_TWO: "",
    Habit.RETURNS_ONE_BYTE: "",
    Habit.REVERTS: "QuirkyToken: not today",
}


@pytest.mark.parametrize("habit", OUTCOMES)
def test_c16_a_deposit_counts_only_if_the_token_agrees(
    world: World, token: str, token_holder: str, habit: Habit
) -> None:
    key = funding_id(Params().id, A)
    adopt(world, token, habit)
    refusal = OUTCOMES[habit]
    if refusal is None:
        world.send(token_holder, DEPOSIT, key, 5)
        assert held(world, token_holder, key) == 5
        return
    reason = "transferFrom failed" if refusal == "false" else refusal
    with reverts(reason) if reason else reverts_empty():
        world.send(token_holder, DEPOSIT, key, 5)
    assert held(world, token_holder, key) == 0


@pytest.mark.parametrize("habit", OUTCOMES)
def test_c16_a_withdrawal_counts_only_if_the_token_agrees(
    world: World, token: str, token_holder: str, habit: Habit
) -> None:
    c = Params()
    world.send(token_holder, DEPOSIT, funding_id(c.id, A), 5)
    set_outcome(world, token_holder, c.id, [A, B], [5, 0])
    adopt(world, token, habit)
    refusal = OUTCOMES[habit]
    if refusal is None:
        world.withdraw(c, A, RECEIVER, 5, holder=token_holder)
        assert world.holdings(c, A, token_holder) == 0
        return
    reason = "transfer failed" if refusal == "false" else refusal
    with reverts(reason) if reason else reverts_empty():
        world.withdraw(c, A, RECEIVER, 5, holder=token_holder)
    assert world.holdings(c, A, token_holder) == 5
    # Once the token behaves again, the money is there.
    adopt(world, token, Habit.HONEST)
    world.withdraw(c, A, RECEIVER, 5, holder=token_holder)


def test_c16_a_token_with_a_fee_harms_nobody_but_its_own_channels(world: World, token: str, token_holder: str) -> None:
    c = Params()
    adopt(world, token, Habit.TAKES_A_FEE)
    for who in (A, B):
        world.send(token_holder, DEPOSIT, funding_id(c.id, who), 100)
    set_outcome(world, token_holder, c.id, [A, B], [100, 100])
    world.withdraw(c, A, RECEIVER, 100, holder=token_holder)
    with reverts("QuirkyToken: balance"):
        world.withdraw(c, B, RECEIVER, 100, holder=token_holder)
    world.withdraw(c, B, RECEIVER, 80, holder=token_holder)
    assert world.holdings(c, B, token_holder) == 20


@pytest.mark.parametrize(("within", "what"), list(product(("deposit", "withdraw"), repeat=2)))
def test_c16_a_token_that_calls_back_gains_nothing(
    world: World, token: str, token_holder: str, within: str, what: str
) -> None:
    c, victim = Params(), Params(nonce=2)
    for channel in (c, victim):
        world.send(token_holder, DEPOSIT, funding_id(channel.id, A), 100)
    set_outcome(world, token_holder, c.id, [A, B], [100, 0])
    auth = (c.id, A, token, 60)
    withdrawal = calldata(WITHDRAW, auth, authorized(auth))
    deposit = calldata(DEPOSIT, funding_id(c.id, B), 10)
    world.send(token, "mint(address,uint256)", token, 10)
    world.send(token, "aim(address,bytes)", token_holder, withdrawal if what == "withdraw" else deposit)
    adopt(world, token, Habit.CALLS_BACK)
    # The inner call makes the token call back as well; depth ends the recursion, or funds do.
    try:
        world.transact(token_holder, withdrawal if within == "withdraw" else deposit)
    except Exception as refused:
        assert "execution reverted" in str(refused) or "Out of gas" in str(refused)
    adopt(world, token, Habit.HONEST)
    owed = sum(world.holdings(p, who, token_holder) for p in (c, victim) for who in (A, B))
    has: int = world.read(token, "balanceOf(address)", ["uint256"], token_holder)[0]
    assert owed <= has
    assert world.holdings(victim, A, token_holder) == 100


def test_c16_a_token_without_code_is_refused(world: World) -> None:
    holder = world.deploy(ContractKind.ERC20_HOLDER, ["address", "address"], world.adjudicator, RECEIVER)
    with reverts_empty():
        world.send(holder, DEPOSIT, bytes(32), 5)


# -- C17: participants that are listed more than once -----------------------------------------------------------------


@pytest.mark.parametrize("parts", [(A, A), (A, B, A), (A, A, A, B), (B, A, B, A)])
@pytest.mark.parametrize("first_share", [0, 3])
def test_c17_who_is_listed_again_owns_its_deposit_once(world: World, parts: tuple[str, ...], first_share: int) -> None:
    honest = Params(nonce=7)
    world.deposit(honest, 500, 500)
    c = Params(participants=parts)
    world.send(world.eth, DEPOSIT, funding_id(c.id, A), 10, value=10)
    # More than was deposited: nobody gets more than its deposit.
    greedy = (first_share, *([0] * (len(parts) - 2)), 11 - first_share)
    world.conclude_final(c, world.state(c, 1, *greedy, final=True))
    assert (world.holdings(c, A), world.holdings(c, B)) == (10, 0)
    with reverts("insufficient funds"):
        world.withdraw(c, A, RECEIVER, 11)
    world.withdraw(c, A, RECEIVER, 10)
    with reverts("insufficient funds"):
        world.withdraw(c, A, RECEIVER, 1)
    assert world.balance(world.eth) == 1000


@pytest.mark.parametrize("shares", [(4, 8, 3), (0, 8, 7), (7, 8, 0), (0, 15, 0), (15, 0, 0), (0, 0, 15), (0, 0, 0)])
def test_c17_who_is_listed_again_gets_the_sum_of_its_shares(world: World, shares: tuple[int, int, int]) -> None:
    c = Params(participants=(A, B, A))
    world.deposit(c, 10, 5, 0)
    world.conclude_final(c, world.state(c, 1, *shares, final=True))
    assert (world.holdings(c, A), world.holdings(c, B)) == (shares[0] + shares[2], shares[1])

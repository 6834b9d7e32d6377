#!/usr/bin/env python3
"""Gas of the contracts beside the baseline of CHAIN.md section 7 and our own committed figures, on the embedded chain.

Inputs are those of the baseline table: the same accounts, amounts and nonces, so the numbers are exact and repeatable.
Prints one row per operation, then the sums of whole channels. Exit code 1 if a row is above its baseline or above the
committed figure in gas_baseline.json: a rise is never an accident. --write commits new figures (a fall is committed in
the same change that causes it); --json FILE writes the rows.

What each measure saves in a whole ETH channel of two parties (two deposits, concludeFinal, two withdrawals):

- one word per funding or channel ID for amount and flags: a settlement writes its flag where it looks up the deposits
  of the channel as a whole anyway, 2,100; a withdrawal sees in the entry of the participant that the channel is
  settled, 2,100 each. The price is a limit of 2^254 - 1 on amounts;
- shares are written while deposits are counted, in one pass, as if the channel could pay; the rare channel that cannot
  is undone. The flag doubles as the mark of a participant that was counted already (DEV-1). About 600;
- parameters and states that arrive in canonical encoding are hashed from a copy of calldata instead of being decoded
  and encoded again: about 500 and 2,500, the same per channel in register, progress and conclude. Every other encoding
  takes the compiler's way, so what is accepted and what it hashes to are unchanged;
- participants and balances go to an asset holder as they came: about 700 per asset;
- a dispute is written as one packed word, and nothing is read to write it: about 300;
- the adjudicator of a holder is part of its code: 2,100 per settlement;
- signatures are recovered without copying them through memory structures: about 100 each.

Where the rest goes: what the rules themselves demand (intrinsic gas, calldata, two dispute words, one settled flag,
holdings, events, signature recovery, the transfer) is 45,257 per deposit, 117,806 per concludeFinal and 38,193 per
withdrawal, together 284,706 or 11.9 % below the baseline (ERC-20: 327,442, 12.6 % below). A total of 10 % below would
leave about 6,000 gas for all computing in five transactions: dispatching, strict decoding, every check and its
reason, hashing. Ours take about 11,300. What could buy more was not bought:

- asking the adjudicator instead of keeping a settled flag (20,000 per settlement): between the conclusion and the
  payout of the second asset, a hostile first asset could withdraw deposits that the outcome gives to others; and a
  holder would no longer refuse a second outcome by itself;
- not storing the state hash of a channel that is concluded at once (22,100): `disputes` has to tell clients which state
  counted, and registering that state again has to stay a silent no-op;
- accepting the raw bytes that were signed without comparing them with the canonical encoding (about 1,200): what is
  read could then lie outside of what is signed;
- using funding IDs as storage keys without the mapping (about 760): any later state variable would be writable by
  anybody who deposits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_hash.auto import keccak

from perun_chain_ethereum.testing import ADDRESS, ETHER, Params, State, World, funding_id

COMMITTED = Path(__file__).with_name("gas_baseline.json")
FRESH = "0x" + keccak(b"fresh receiver")[-20:].hex()
HALF = ETHER // 2


@dataclass(frozen=True)
class Row:
    """One operation: gas used by ours, gas used by the baseline."""

    operation: str
    ours: int
    baseline: int

    @property
    def change(self) -> float:
        return 100 * (self.ours - self.baseline) / self.baseline


def channel(label: str, **more: Any) -> Params:
    return Params(nonce=int.from_bytes(keccak(f"gas-{label}".encode())), **more)


def gas(receipt: dict[str, Any]) -> int:
    return int(receipt["gasUsed"], 16)


def rows() -> Iterator[Row]:
    """All rows, in the order of the table."""
    world = World.deployed()
    for name, baseline in DEPLOYMENTS.items():
        yield Row(f"deploy {name}", deployment(world, name), baseline)
    yield from eth_rows(world)
    yield from dispute_rows(world)
    yield from final_rows(world)
    yield from token_rows(world)
    yield from scaling_rows(world)


# London numbers: the floor on calldata that newer rules add does not exist in the embedded chain.
DEPLOYMENTS = {
    "Adjudicator": 2_675_281,
    "AssetHolderETH": 869_039,
    "PerunToken": 789_517,
    "AssetHolderERC20": 998_164,
    "TrivialApp": 114_349,
}


def deployment(world: World, name: str) -> int:
    return gas(next(r for n, r in zip(DEPLOYMENTS, deployment_receipts(world), strict=True) if n == name))


def deployment_receipts(world: World) -> list[dict[str, Any]]:
    hashes = [world.chain.block(number)["transactions"][0] for number in range(1, 6)]
    return [world.chain.receipt(bytes.fromhex(h[2:])) or {} for h in hashes]


def eth_rows(world: World) -> Iterator[Row]:
    c = channel("1")
    first, _ = world.deposit(c, ETHER, 2 * ETHER)
    yield Row("deposit ETH, new funding ID", gas(first), 45_860)
    v1 = world.state(c, 1, ETHER, 2 * ETHER)
    v2 = world.state(c, 2, HALF, 5 * HALF)
    yield Row("register 2 parties, new", gas(world.register(c, v1)), 100_940)
    yield Row("register same state again", gas(world.register(c, v1)), 56_700)
    yield Row("register refutation", gas(world.register(c, v2)), 68_613)
    done = world.conclude(c, v2, at=world.chain.timestamp + 61)
    yield Row("conclude after dispute, no app", gas(done), 98_924)
    one, three = c.participants
    yield Row("withdraw ETH, all", gas(world.withdraw(c, one, ADDRESS[4], HALF)), 44_031)
    yield Row("withdraw ETH, part", gas(world.withdraw(c, three, ADDRESS[4], ETHER)), 48_807)
    yield Row("withdraw ETH, fresh receiver", gas(world.withdraw(c, three, FRESH, 3 * HALF)), 68_999)
    world.deposit(c, ETHER, 0)
    yield Row("deposit ETH, top-up", gas(world.deposit(c, ETHER, 0)[0]), 28_760)


def dispute_rows(world: World) -> Iterator[Row]:
    c = channel("6", app=world.app)
    world.deposit(c, ETHER, 2 * ETHER)
    v1 = world.state(c, 1, ETHER, 2 * ETHER)
    v2 = world.state(c, 2, HALF, 5 * HALF)
    v3 = world.state(c, 3, ETHER, 2 * ETHER)
    yield Row("register with app", gas(world.register(c, v1)), 101_200)
    late = world.chain.timestamp + 61
    yield Row("progress, from DISPUTE", gas(world.progress(c, v1, v2, 0, at=late)), 74_718)
    yield Row("progress, from FORCEEXEC", gas(world.progress(c, v2, v3, 1)), 74_768)
    yield Row("conclude after progress", gas(world.conclude(c, v3, at=late + 100)), 93_538)

    c = channel("7", participants=(ADDRESS[1], ADDRESS[3], ADDRESS[5]))
    v1 = world.state(c, 1, ETHER, 2 * ETHER, 3 * ETHER)
    yield Row("register 3 parties", gas(world.register(c, v1)), 108_520)

    c = channel("10")
    world.deposit(c, ETHER, ETHER)
    world.deposit(c, ETHER, ETHER, holder=world.erc20, sender=ADDRESS[2])
    both = {"assets": (world.eth, world.erc20)}
    v1 = world.state(c, 1, balances=((ETHER, ETHER), (ETHER, ETHER)), **both)
    yield Row("register 2 assets", gas(world.register(c, v1)), 104_627)
    final = world.state(c, 2, balances=((HALF, 3 * HALF), (HALF, 3 * HALF)), final=True, **both)
    yield Row("concludeFinal 2 assets over a dispute", gas(world.conclude_final(c, final)), 157_107)

    c, sub = channel("8"), channel("sub", ledger=False)
    world.deposit(c, 2 * ETHER, 3 * ETHER)
    inner = world.state(sub, 1, ETHER, ETHER)
    outer = world.state(c, 1, ETHER, 2 * ETHER, locked=((sub.id, (2 * ETHER,), (0, 1)),))
    yield Row("register with 1 sub-channel", gas(world.register(c, outer, (sub, inner))), 186_970)
    done = world.conclude(c, outer, inner, at=world.chain.timestamp + 61)
    yield Row("conclude with 1 sub-channel", gas(done), 120_693)


def final_rows(world: World) -> Iterator[Row]:
    cases = [
        ("2", "concludeFinal, never registered", (ETHER, 2 * ETHER), (HALF, 5 * HALF), 143_220),
        ("3", "concludeFinal, one party ends at zero", (ETHER, 2 * ETHER), (0, 3 * ETHER), 138_376),
        ("4", "concludeFinal, one party had not deposited", (ETHER, 0), (HALF, HALF), 160_340),
    ]
    for label, text, held, outcome, baseline in cases:
        c = channel(label)
        world.deposit(c, *held)
        final = world.state(c, 2, *outcome, final=True)
        yield Row(text, gas(world.conclude_final(c, final)), baseline)
    c = channel("5")
    world.deposit(c, ETHER, 2 * ETHER)
    world.register(c, world.state(c, 1, ETHER, 2 * ETHER))
    final = world.state(c, 2, HALF, 5 * HALF, final=True)
    yield Row("concludeFinal over a dispute", gas(world.conclude_final(c, final)), 109_060)


def token_rows(world: World) -> Iterator[Row]:
    # A chain of its own, because the holder must not own tokens yet.
    world = World.deployed()
    c, bob, holder = channel("9"), ADDRESS[2], world.erc20
    one, three = c.participants
    allow = ("increaseAllowance(address,uint256)", holder, ETHER)
    yield Row("increaseAllowance", gas(world.send(world.token, *allow)), 46_577)
    deposit = "deposit(bytes32,uint256)"
    first = world.send(holder, deposit, funding_id(c.id, one), ETHER)
    yield Row("deposit ERC20, holder had none", gas(first), 81_982)
    approve = ("approve(address,uint256)", holder, ETHER)
    yield Row("approve", gas(world.send(world.token, *approve, sender=bob)), 46_305)
    second = world.send(holder, deposit, funding_id(c.id, three), ETHER, sender=bob)
    yield Row("deposit ERC20, new ID", gas(second), 64_882)
    world.send(world.token, "approve(address,uint256)", holder, 100 * ETHER, sender=bob)
    third = world.send(holder, deposit, funding_id(c.id, three), ETHER, sender=bob)
    yield Row("deposit ERC20, top-up", gas(third), 52_582)

    final = world.state(c, 2, HALF, 5 * HALF, assets=(holder,), final=True)
    yield Row("concludeFinal, T", gas(world.conclude_final(c, final)), 143_206)
    away = world.withdraw(c, one, FRESH, HALF, holder=holder)
    yield Row("withdraw ERC20, receiver has none", gas(away), 67_938)
    last = world.withdraw(c, three, bob, 5 * HALF, holder=holder)
    yield Row("withdraw ERC20, holder's last tokens", gas(last), 46_058)

    c = channel("12")
    world.deposit(c, ETHER, 2 * ETHER, holder=holder, sender=bob)
    world.conclude_final(c, world.state(c, 2, HALF, 5 * HALF, assets=(holder,), final=True))
    back = world.withdraw(c, one, bob, HALF, holder=holder)
    yield Row("withdraw ERC20, all", gas(back), 50_838)


def scaling_rows(world: World) -> Iterator[Row]:
    """Trees of two-party sub-channels with balances of 1 wei each."""
    for count, register, conclude in ((2, 271_544, 146_534), (5, 529_487, 228_514), (10, 963_276, 366_215)):
        c = channel(f"tree-{count}")
        subs: list[tuple[Params, State]] = []
        for index in range(count):
            sub = channel(f"tree-{count}-{index}", ledger=False)
            subs.append((sub, world.state(sub, 1, 1, 1)))
        locked = tuple((sub.id, (2,), (0, 1)) for sub, _ in subs)
        world.deposit(c, 1 + count, 1 + count)
        root = world.state(c, 1, 1, 1, locked=locked)
        yield Row(f"register with {count} sub-channels", gas(world.register(c, root, *subs)), register)
        done = world.conclude(c, root, *(state for _, state in subs), at=world.chain.timestamp + 61)
        yield Row(f"conclude with {count} sub-channels", gas(done), conclude)


# Whole channels of two parties: two deposits, one conclusion, two withdrawals.
HAPPY = {
    "whole happy ETH channel of two parties": {
        "deposit ETH, new funding ID": 2,
        "concludeFinal, never registered": 1,
        "withdraw ETH, all": 2,
    },
    "whole happy ERC-20 channel of two parties": {
        "deposit ERC20, new ID": 2,
        "concludeFinal, T": 1,
        "withdraw ERC20, all": 2,
    },
}


def table() -> list[Row]:
    """All rows, followed by the sums of whole channels."""
    listed = list(rows())
    by_name = {row.operation: row for row in listed}
    for name, parts in HAPPY.items():
        ours = sum(by_name[part].ours * times for part, times in parts.items())
        baseline = sum(by_name[part].baseline * times for part, times in parts.items())
        listed.append(Row(name, ours, baseline))
    return listed


def rises(measured: list[Row], committed: dict[str, int]) -> list[str]:
    """One sentence per row that is above its baseline or its committed figure, or that has no committed figure."""
    problems = [f"{r.operation}: {r.ours:,} is above the baseline of {r.baseline:,}" for r in measured if r.change > 0]
    for row in measured:
        figure = committed.get(row.operation)
        if figure is None:
            problems.append(f"{row.operation}: no committed figure")
        elif row.ours > figure:
            problems.append(f"{row.operation}: {row.ours:,} is above the committed {figure:,}")
    return problems


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Gas of the contracts beside the baseline and the committed figures.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--committed", type=Path, metavar="FILE", default=COMMITTED, help="the committed figures")
    parser.add_argument("--write", action="store_true", help="commit what is measured now")
    arguments = parser.parse_args()
    measured = table()
    for row in measured:
        print(f"{row.operation:<46}{row.ours:>11,}{row.baseline:>11,}{row.change:>8.1f} %")
    if arguments.json:
        content = [{"operation": r.operation, "gas": r.ours, "baseline": r.baseline} for r in measured]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.write:
        figures = json.dumps({r.operation: r.ours for r in measured}, indent=1)
        arguments.committed.write_text(figures + "\n", encoding="utf-8")
    problems = rises(measured, json.loads(arguments.committed.read_text(encoding="utf-8")))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

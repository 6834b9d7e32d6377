"""CHAIN.md section 1 with DEV-1 to DEV-5, a second time and in few words: what the contracts have to do.

Amounts are base units, times block times in seconds. A refused call raises `Refused` with the revert reason and leaves
the model as it was. Signatures are named, not made: a signature is good if its signer is the participant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from perun_chain_ethereum.testing import ZERO, Dispute, Params, State, funding_id

from .scenes import CONCLUDED, DISPUTE, FORCEEXEC, LIMIT

U64 = 2**64
Event = tuple[bytes, int, int, int]
Row = list[int]


class Refused(Exception):
    """The call reverts; the text is the reason, empty if there is none."""


def need(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


@dataclass(frozen=True)
class Signed:
    """A state with those who signed it, in the order of the signatures."""

    params: Params
    state: State
    signers: tuple[str, ...]


@dataclass
class Holder:
    """One asset holder."""

    held: dict[bytes, int] = field(default_factory=dict)
    settled: set[bytes] = field(default_factory=set)

    def get(self, key: bytes) -> int:
        return self.held.get(key, 0)

    def deposit(self, key: bytes, amount: int) -> None:
        need(self.get(key) + amount <= LIMIT, "SafeMath: addition overflow")
        self.held[key] = self.get(key) + amount

    def set_outcome(self, channel: bytes, parts: Sequence[str], balances: Row) -> None:
        need(channel not in self.settled, "trying to set already settled channel")
        keys = [funding_id(channel, part) for part in parts]
        total = self.get(channel) + sum(self.get(key) for key in set(keys))
        need(max(total, sum(balances), *balances) <= LIMIT, "SafeMath: addition overflow")
        if total >= sum(balances):
            self.held |= {key: sum(b for k, b in zip(keys, balances, strict=True) if k == key) for key in keys}
        self.held[channel] = 0
        self.settled.add(channel)

    def withdraw(self, channel: bytes, participant: str, amount: int, signer: str) -> None:
        need(channel in self.settled, "channel not settled")
        need(signer == participant, "signature verification failed")
        key = funding_id(channel, participant)
        need(self.get(key) >= amount, "insufficient funds")
        self.held[key] = self.get(key) - amount


@dataclass
class Chain:
    """An adjudicator, its asset holders and apps, all by address."""

    holders: dict[str, Holder]
    apps: dict[str, Callable[[int], None]]
    """Each raises `Refused` unless the participant with this index may move."""
    disputes: dict[bytes, Dispute] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def attempt(self, call: Callable[[Chain], None]) -> list[Event]:
        """Do `call` wholly or not at all; the events of the adjudicator. Raises: Refused."""
        trial = copy.deepcopy(replace(self, events=[], apps={}))
        trial.apps = self.apps
        call(trial)
        self.holders, self.disputes = trial.holders, trial.disputes
        return trial.events

    # -- 1.3 ----------------------------------------------------------------------------------------------------------

    def register(self, root: Signed, subs: Sequence[Signed], now: int) -> None:
        need(root.params.ledger, "not ledger")
        self._register_tree(root, subs, iter(subs), now)

    def progress(self, params: Params, old: State, new: State, actor: int, signer: str, now: int) -> None:
        dispute = self.disputes.get(new.channel)
        if dispute is None:
            raise Refused("not registered")
        if dispute.phase == DISPUTE:
            need(now >= dispute.timeout, "timeout not passed")
        else:
            need(dispute.phase == FORCEEXEC, "invalid phase")
            need(now < dispute.timeout, "timeout passed")
        need(params.app != ZERO, "must have app")
        need(actor < len(params.participants), "actorIdx out of range")
        need(new.channel == params.id, "invalid params")
        need(dispute.state_hash == old.hash, "wrong old state")
        need(signer == params.participants[actor], "invalid signature")
        need(new.version == (old.version + 1) % U64, "version must increment by one")
        need(not old.final, "cannot progress from final state")
        need(len(old.locked) == len(new.locked), "SubAlloc[]: unequal length")
        for before, after in zip(old.balances, new.balances, strict=True):
            need(sum(before) == sum(after), "sum of balances mismatch")
        self.apps[params.app](actor)
        self._write(params, new, FORCEEXEC, now if new.final else now + params.duration)

    def conclude(self, params: Params, state: State, subs: Sequence[State], now: int) -> None:
        need(params.ledger, "not ledger")
        need(state.channel == params.id, "invalid params")
        need(not self._conclude(state, now), "channel already concluded")
        self._pay_out(params, state.assets, self._outcome(state, iter(subs), now))

    def conclude_final(self, signed: Signed, now: int) -> None:
        params, state = signed.params, signed.state
        need(params.ledger, "not ledger")
        need(state.final, "state not final")
        need(not state.locked, "cannot have sub-channels")
        self._check_signed(signed)
        dispute = self.disputes.get(params.id)
        need(dispute is None or dispute.phase != CONCLUDED, "channel already concluded")
        self._write(params, state, CONCLUDED, now)
        self._pay_out(params, state.assets, [list(row) for row in state.balances])

    def _register_tree(self, channel: Signed, subs: Sequence[Signed], rest: Iterator[Signed], now: int) -> Row:
        self._register_one(channel, now)
        state = channel.state
        totals = [sum(row) for row in state.balances]
        need(len(state.locked) <= len(subs), "subChannels: too short")
        for channel_id, balances, _ in state.locked:
            sub = next(rest, None)
            if sub is None:
                raise Refused("Panic(0x32)")
            need(sub.state.channel == channel_id, "invalid sub-channel id")
            need(not sub.params.ledger, "sub-channel is ledger")
            below = self._register_tree(sub, subs, rest, now)
            need(len(state.assets) == len(sub.state.assets), "address[]: unequal length")
            need(state.assets == sub.state.assets, "address[]: unequal item")
            need(list(balances) == below, "uint256[]: unequal item")
            totals = [total + locked for total, locked in zip(totals, balances, strict=True)]
        return totals

    def _register_one(self, signed: Signed, now: int) -> None:
        self._check_signed(signed)
        params, state = signed.params, signed.state
        dispute = self.disputes.get(params.id)
        if dispute is None:
            self._write(params, state, DISPUTE, now if state.final else now + params.duration)
        elif dispute.state_hash != state.hash:
            need(dispute.version < state.version, "invalid version")
            need(dispute.phase == DISPUTE, "incorrect phase")
            need(now < dispute.timeout, "refutation timeout passed")
            self._write(params, state, DISPUTE, now if state.final else dispute.timeout)

    def _check_signed(self, signed: Signed) -> None:
        need(signed.state.channel == signed.params.id, "invalid params")
        need(len(signed.signers) == len(signed.params.participants), "signatures length mismatch")
        need(signed.signers == signed.params.participants, "invalid signature")

    def _conclude(self, state: State, now: int) -> bool:
        """Whether it was concluded already."""
        dispute = self.disputes.get(state.channel)
        if dispute is None:
            raise Refused("not registered")
        need(dispute.state_hash == state.hash, "invalid channel state")
        if dispute.phase == CONCLUDED:
            return True
        timeout = dispute.timeout + (dispute.duration if dispute.has_app and dispute.phase == DISPUTE else 0)
        need(now >= timeout, "timeout not passed yet")
        self._set(state.channel, replace(dispute, phase=CONCLUDED, timeout=timeout))
        return False

    def _outcome(self, state: State, rest: Iterator[State], now: int) -> list[Row]:
        outcome = [list(row) for row in state.balances]
        for channel_id, _, index_map in state.locked:
            sub = next(rest, None)
            if sub is None:
                raise Refused("Panic(0x32)")
            need(sub.channel == channel_id, "invalid subchannel id")
            self._conclude(sub, now)
            for row, below in zip(outcome, self._outcome(sub, rest, now), strict=True):
                for index, to in enumerate(index_map):
                    need(index < len(below) and to < len(row), "Panic(0x32)")
                    row[to] += below[index]
        return outcome

    def _pay_out(self, params: Params, assets: Sequence[str], outcome: list[Row]) -> None:
        for asset, row in zip(assets, outcome, strict=True):
            self.holders[asset].set_outcome(params.id, params.participants, row)

    def _write(self, params: Params, state: State, phase: int, timeout: int) -> None:
        need(timeout < U64, "overflow")
        has_app = params.app != ZERO
        self._set(params.id, Dispute(timeout, params.duration, state.version, has_app, phase, state.hash))

    def _set(self, channel: bytes, dispute: Dispute) -> None:
        self.disputes[channel] = dispute
        self.events.append((channel, dispute.version, dispute.phase, dispute.timeout))

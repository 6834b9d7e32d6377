"""Random lives of several channels with honest and hostile participants, on the contracts and on their model.

A is honest in every channel it takes part in: it acts at once when something older than the newest state it holds is
registered, and not otherwise until the end. B and C are hostile and work together: they use every state that was ever
signed, in every combination, and sign among themselves whatever they like.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eth_abi import encode
from eth_hash.auto import keccak
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perun_chain_ethereum.embedded import CallFailed
from perun_chain_ethereum.testing import (
    ADDRESS,
    AUTH,
    CONCLUDE,
    CONCLUDE_FINAL,
    DEPOSIT,
    PROGRESS,
    REGISTER,
    WITHDRAW,
    ZERO,
    Params,
    State,
    World,
    funding_id,
    sign,
)

from .model import Chain, Event, Holder, Refused, Signed, need
from .scenes import CONCLUDED, DISPUTE, A, B, C, deploy, now, updates

EXAMPLES = int(os.environ.get("CONTRACT_MODEL_EXAMPLES", "40"))
STEPS = int(os.environ.get("CONTRACT_MODEL_STEPS", "25"))

index = st.integers(0, 7)
amount = st.integers(0, 30)
delay = st.sampled_from([1, 1, 1, 2, 19, 20, 60])
near = st.sampled_from([-1, 0, 0, 1, 19, 20, 60])


@dataclass
class Deal:
    """A channel of A and B, perhaps with a sub-channel, and all states they signed, oldest first."""

    params: Params
    states: list[State]
    sub: Params
    sub_states: list[State]

    @property
    def newest(self) -> State:
        return self.states[-1]

    @property
    def locks(self) -> bool:
        return bool(self.newest.locked)

    def share(self) -> list[int]:
        """What the newest states give to A, per asset."""
        own = [row[0] for row in self.newest.balances]
        if not self.locks:
            return own
        return [mine + row[0] for mine, row in zip(own, self.sub_states[-1].balances, strict=True)]


class Lives(RuleBasedStateMachine):
    """See the module."""

    @initialize(
        parts=st.sampled_from([(B, C), (C, C), (C,), (C, B, C), (B, C, B)]), duration=st.sampled_from([0, 0, 20])
    )
    def deployed(self, parts: tuple[str, ...], duration: int) -> None:
        """Two channels belong to B and C alone; one of them has an app that lets everybody move."""
        self.world = World.deployed()
        first_only = deploy(self.world, "FirstOnlyApp")
        self.first_only = first_only
        self.assets = (self.world.eth, self.world.erc20)
        for owner in (ADDRESS[0], ADDRESS[2]):
            self.world.send(self.world.token, "approve(address,uint256)", self.world.erc20, 2**200, sender=owner)
        apps: dict[str, Callable[[int], None]] = {
            self.world.app: lambda actor: None,
            first_only: lambda actor: need(actor == 0, "FirstOnlyApp: not your move"),
        }
        self.model = Chain({asset: Holder() for asset in self.assets}, apps)
        self.deals: list[Deal] = []
        self.signed: dict[bytes, Signed] = {}
        self.deposited: dict[tuple[str, bytes], int] = {}
        self.withdrawn: dict[tuple[str, bytes], int] = {}
        self.channels: dict[bytes, Params] = {}
        self.nonce = 0
        self.rogue = [
            self.fresh(participants=(B, C), duration=20, app=self.world.app),
            self.fresh(participants=parts, duration=duration),
        ]
        for params in self.rogue:
            for asset in self.assets:
                self.do_deposit(asset, params.id, funding_id(params.id, C), 15)

    # -- doing the same twice -----------------------------------------------------------------------------------------

    def both(self, model: Callable[[Chain], None], target: str, signature: str, *arguments: Any, **more: Any) -> bool:
        """One call on model and contract: the same success, events and reason. Whether it succeeded."""
        expected: list[Event] = []
        refusal: str | None = None
        try:
            expected = self.model.attempt(model)
        except Refused as refused:
            refusal = str(refused)
        try:
            receipt = self.world.send(target, signature, *arguments, **more)
        except CallFailed as failed:
            reason = str(failed).removeprefix("execution reverted").removeprefix(": ")
            assert reason == refusal, f"{signature.split('(')[0]}: {reason!r}, the model says {refusal!r}"
            return False
        assert refusal is None, f"{signature.split('(')[0]} succeeded, the model says {refusal!r}"
        assert updates(receipt) == expected
        return True

    def after(self, seconds: int) -> int:
        return now(self.world) + seconds

    def keep(self, signed: Signed) -> Signed:
        self.signed[signed.state.hash] = signed
        return signed

    def abi(self, signed: Signed) -> tuple[Any, ...]:
        sigs = [sign(signer, signed.state.hash) for signer in signed.signers]
        return (signed.params.abi, signed.state.abi, sigs)

    def do_register(self, root: Signed, subs: list[Signed], at: int) -> bool:
        arguments = (self.abi(root), [self.abi(sub) for sub in subs])
        return self.both(lambda m: m.register(root, subs, at), self.world.adjudicator, REGISTER, *arguments, at=at)

    def do_conclude(self, params: Params, state: State, subs: list[State], at: int) -> bool:
        arguments = (params.abi, state.abi, [sub.abi for sub in subs])
        return self.both(
            lambda m: m.conclude(params, state, subs, at), self.world.adjudicator, CONCLUDE, *arguments, at=at
        )

    def do_deposit(self, asset: str, channel: bytes, key: bytes, value: int) -> None:
        wei = value if asset == self.world.eth else 0
        self.both(lambda m: m.holders[asset].deposit(key, value), asset, DEPOSIT, key, value, value=wei)
        self.deposited[asset, channel] = self.deposited.get((asset, channel), 0) + value

    def do_withdraw(self, asset: str, channel: bytes, who: str, value: int, signer: str) -> bool:
        auth = (channel, who, ADDRESS[4], value)
        sig = sign(signer, keccak(encode([AUTH], [auth])))
        done = self.both(lambda m: m.holders[asset].withdraw(channel, who, value, signer), asset, WITHDRAW, auth, sig)
        if done:
            self.withdrawn[asset, channel] = self.withdrawn.get((asset, channel), 0) + value
        return done

    def fresh(self, **more: Any) -> Params:
        self.nonce += 1
        params = Params(nonce=self.nonce, **more)
        self.channels[params.id] = params
        return params

    def any_channel(self, which: int, fit: Callable[[Params], bool] = lambda params: True) -> Params:
        """A channel that fits if there is one; sometimes, and if there is none, any."""
        everything = list(self.channels.values())
        fitting = everything if which == 7 else [params for params in everything if fit(params)]
        candidates = fitting or everything
        return candidates[which % len(candidates)]

    def moment(self, params: Params, seconds: int) -> int:
        """So many seconds after the timeout of the channel if there is one and that is still to come, else now."""
        dispute = self.model.disputes.get(params.id)
        return max(self.after(1), 0 if dispute is None else dispute.timeout + seconds)

    def disputed(self, params: Params) -> bool:
        dispute = self.model.disputes.get(params.id)
        return dispute is not None and dispute.phase != CONCLUDED

    # -- what A does --------------------------------------------------------------------------------------------------

    def newest_tree(self, deal: Deal) -> tuple[Signed, list[Signed]]:
        root = self.signed[deal.newest.hash]
        return root, [self.signed[deal.sub_states[-1].hash]] if deal.locks else []

    def watch(self) -> None:
        """A refutes whatever is older than the newest it holds; it must succeed."""
        for deal in self.deals:
            newest = {deal.params.id: deal.newest}
            if deal.locks:
                newest[deal.sub.id] = deal.sub_states[-1]
            disputes = [(self.model.disputes.get(channel), state) for channel, state in newest.items()]
            if any(d is not None and d.phase == DISPUTE and d.version < state.version for d, state in disputes):
                assert self.do_register(*self.newest_tree(deal), self.after(1)), "a refutation in time was refused"

    # -- openings -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.deals) < 3)
    @rule(
        versions=st.integers(1, 3),
        subs=st.integers(0, 2),
        app=st.booleans(),
        duration=st.sampled_from([20, 60]),
        assets=st.integers(1, 2),
        agreed=st.booleans(),
        turns=st.lists(st.integers(0, 10), min_size=6, max_size=6),
    )
    def open_a_deal(
        self, versions: int, subs: int, app: bool, duration: int, assets: int, agreed: bool, turns: list[int]
    ) -> None:
        """A and B open a channel of 10 each per asset, fund it, and pay each other a few times."""
        chosen = self.assets[:assets]
        params = self.fresh(duration=duration, app=self.first_only if app else ZERO)
        sub = self.fresh(duration=duration, ledger=False)
        rows = [(turn, 20 - turn) for turn in turns]
        plain = [State(params.id, v, chosen, tuple(rows[v] for _ in chosen)) for v in range(versions)]
        # The sub-channel holds 6 per asset.
        inner = [(min(turn, 6), 6 - min(turn, 6)) for turn in turns[3:]]
        sub_states = [State(sub.id, v, chosen, tuple(inner[v] for _ in chosen)) for v in (0, 1)]
        if subs:
            split = tuple((turns[5], 14 - turns[5]) for _ in chosen)
            locked = ((sub.id, tuple(6 for _ in chosen), (0, 1)),)
            plain.append(State(params.id, versions, chosen, split, locked))
        elif agreed:
            plain.append(plain[-1].but(version=versions + 1, final=True))
        deal = Deal(params, plain, sub, sub_states[: max(subs, 1)])
        for state in plain:
            self.keep(Signed(params, state, params.participants))
        for state in deal.sub_states:
            self.keep(Signed(sub, state, sub.participants))
        self.deals.append(deal)
        for asset in chosen:
            for part in params.participants:
                self.do_deposit(asset, params.id, funding_id(params.id, part), 10)

    # -- what B and C do ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.deals)
    @rule(which=index, version=index, sub_version=index, wait=delay, foreign=st.booleans())
    def register_an_old_state(self, which: int, version: int, sub_version: int, wait: int, foreign: bool) -> None:
        deal = self.deals[which % len(self.deals)]
        root = self.signed[deal.states[version % len(deal.states)].hash]
        source = self.deals[(which + foreign) % len(self.deals)]
        sub = self.signed[source.sub_states[sub_version % len(source.sub_states)].hash]
        self.do_register(root, [sub] if sub_version < 7 else [], self.after(wait))
        self.watch()

    @precondition(lambda self: self.deals)
    @rule(which=index, version=index, balances=st.tuples(amount, amount), final=st.booleans())
    def forge_a_state(self, which: int, version: int, balances: tuple[int, int], final: bool) -> None:
        """B signs twice what A never signed."""
        deal = self.deals[which % len(self.deals)]
        state = State(deal.params.id, version, self.assets[:1], (balances,), final=final)
        forged = Signed(deal.params, state, (B, B))
        self.do_register(forged, [], self.after(1))
        self.both(
            lambda m: m.conclude_final(forged, now(self.world) + 1),
            self.world.adjudicator,
            CONCLUDE_FINAL,
            *self.abi(forged),
        )

    @rule(which=index, version=index, first=amount, second=amount, final=st.booleans(), agree=st.booleans(), wait=delay)
    def use_an_own_state(
        self, which: int, version: int, first: int, second: int, final: bool, agree: bool, wait: int
    ) -> None:
        """Outcomes have nothing to do with deposits."""
        params = self.rogue[which % len(self.rogue)]
        row = (first, second, 5)[: len(params.participants)]
        state = State(params.id, version, self.assets, (row, row[::-1]), final=final)
        signed = self.keep(Signed(params, state, params.participants))
        at = self.after(wait)
        if agree:
            self.both(
                lambda m: m.conclude_final(signed, at),
                self.world.adjudicator,
                CONCLUDE_FINAL,
                *self.abi(signed),
                at=at,
            )
        else:
            self.do_register(signed, [], at)
        self.watch()

    @precondition(lambda self: self.deals)
    @rule(
        which=index,
        prey=index,
        version=index,
        ledger=st.sampled_from([False, False, True]),
        repeat=st.booleans(),
        wait=near,
    )
    def adopt_a_channel(self, which: int, prey: int, version: int, ledger: bool, repeat: bool, wait: int) -> None:
        """Registers somebody's channel as sub-channel of an own one, and concludes as soon as it goes."""
        params = self.rogue[which % len(self.rogue)]
        deal = self.deals[prey % len(self.deals)]
        states = deal.states if ledger else deal.sub_states
        target = self.signed[states[version % len(states)].hash]
        totals = tuple(sum(row) for row in target.state.balances)
        zeros = tuple((0,) * len(params.participants) for _ in target.state.assets)
        entry = (target.params.id, totals, (0,) * 2)
        state = State(params.id, version + 8, target.state.assets, zeros, (entry, entry) if repeat else (entry,))
        signed = self.keep(Signed(params, state, params.participants))
        self.do_register(signed, [target] * (1 + repeat), self.after(1))
        self.watch()
        self.do_conclude(params, state, [target.state] * (1 + repeat), self.moment(params, wait))
        self.watch()

    @precondition(lambda self: self.model.disputes)
    @rule(
        which=index,
        take=amount,
        actor=st.sampled_from([0, 0, 1, 1, 2]),
        forged=st.sampled_from([False, False, True]),
        wait=near,
        skip=index,
    )
    def progress(self, which: int, take: int, actor: int, forged: bool, wait: int, skip: int) -> None:
        """Moves whatever is registered in favour of the last participant; nobody has the signature of A."""
        params = self.any_channel(which, lambda params: self.disputed(params) and params.app != ZERO)
        dispute = self.model.disputes.get(params.id)
        if dispute is None:
            old = State(params.id, 0, self.assets[:1], ((0,) * len(params.participants),))
        else:
            old = self.signed[dispute.state_hash].state
        rows = tuple((*(0 for _ in row[1:]), sum(row)) for row in old.balances)
        new = old.but(version=old.version + (2 if skip == 7 else 1), balances=rows, final=take == 30)
        mover = params.participants[min(actor, len(params.participants) - 1)]
        signer = B if mover == A or forged else mover
        at = self.moment(params, wait)
        arguments = (params.abi, old.abi, new.abi, actor, sign(signer, new.hash))
        done = self.both(
            lambda m: m.progress(params, old, new, actor, signer, at),
            self.world.adjudicator,
            PROGRESS,
            *arguments,
            at=at,
        )
        if done:
            self.keep(Signed(params, new, params.participants))
        self.watch()

    @precondition(lambda self: self.model.disputes)
    @rule(which=index, wait=near, other=index)
    def conclude_what_is_registered(self, which: int, wait: int, other: int) -> None:
        params = self.any_channel(which, lambda params: self.disputed(params) and params.ledger)
        dispute = self.model.disputes.get(params.id)
        known = [s.state for s in self.signed.values() if s.params.id == params.id]
        if dispute is not None and other < 6:
            state = self.signed[dispute.state_hash].state
        elif known:
            state = known[other % len(known)]
        else:
            state = State(params.id, 0, self.assets[:1], ((0,) * len(params.participants),))
        subs = []
        for channel, _, _ in state.locked:
            below = self.model.disputes.get(channel)
            if below is not None:
                subs.append(self.signed[below.state_hash].state)
        self.do_conclude(params, state, subs, self.moment(params, wait))
        self.watch()

    @precondition(lambda self: any(deal.newest.final for deal in self.deals))
    @rule(which=index, version=index)
    def use_a_final_state(self, which: int, version: int) -> None:
        final = [deal for deal in self.deals if deal.newest.final]
        deal = final[which % len(final)]
        signed = self.signed[deal.states[-1 - version // 5].hash]
        at = self.after(1)
        self.both(
            lambda m: m.conclude_final(signed, at),
            self.world.adjudicator,
            CONCLUDE_FINAL,
            *self.abi(signed),
            at=at,
        )

    @rule(which=index, asset=st.integers(0, 1), who=st.sampled_from([B, C, None]), value=amount)
    def deposit(self, which: int, asset: int, who: str | None, value: int) -> None:
        params = self.any_channel(which)
        key = params.id if who is None else funding_id(params.id, who)
        self.do_deposit(self.assets[asset], params.id, key, value)

    @rule(
        which=index,
        asset=st.integers(0, 1),
        who=st.sampled_from([A, B, B, C, C]),
        value=amount,
        signer=st.sampled_from([B, C]),
        all_of_it=st.booleans(),
    )
    def withdraw(self, which: int, asset: int, who: str, value: int, signer: str, all_of_it: bool) -> None:
        params = self.any_channel(which)
        chosen = self.assets[asset]
        if all_of_it:
            value = self.model.holders[chosen].get(funding_id(params.id, who))
        self.do_withdraw(chosen, params.id, who, value, signer if who == A or value % 3 == 0 else who)

    # -- what holds at any time ---------------------------------------------------------------------------------------

    @invariant()
    def holders_never_owe_more_than_they_hold(self) -> None:
        if not hasattr(self, "model"):
            return
        owed = {asset: sum(holder.held.values()) for asset, holder in self.model.holders.items()}
        assert owed[self.world.eth] <= self.world.balance(self.world.eth)
        assert owed[self.world.erc20] <= self.world.tokens(self.world.erc20)

    @invariant()
    def nobody_withdraws_what_was_not_deposited_for_its_channel(self) -> None:
        for place, value in getattr(self, "withdrawn", {}).items():
            assert value <= self.deposited.get(place, 0)

    def teardown(self) -> None:
        """The contract is where the model is; A gets what it is due."""
        if not hasattr(self, "model"):
            return
        self.compare()
        for deal in self.deals:
            self.finish(deal)
        self.compare()

    def compare(self) -> None:
        for params in self.channels.values():
            found = self.world.dispute(params.id)
            assert self.model.disputes.get(params.id, type(found)(0, 0, 0, False, 0, bytes(32))) == found
            for asset, holder in self.model.holders.items():
                for key in (params.id, *(funding_id(params.id, who) for who in (A, B, C))):
                    assert self.world.read(asset, "holdings(bytes32)", ["uint256"], key) == (holder.get(key),)
                settled = self.world.read(asset, "settled(bytes32)", ["bool"], params.id)
                assert settled == (params.id in holder.settled,)

    def finish(self, deal: Deal) -> None:
        """A ends the channel without anybody's help and takes what is its."""
        dispute = self.model.disputes.get(deal.params.id)
        if dispute is None or dispute.phase != CONCLUDED:
            root, subs = self.newest_tree(deal)
            if dispute is None:
                assert self.do_register(root, subs, self.after(1))
            assert self.do_conclude(
                deal.params, deal.newest, [sub.state for sub in subs], self.after(2 * deal.params.duration)
            )
        for asset, share in zip(deal.newest.assets, deal.share(), strict=True):
            mine = self.model.holders[asset].get(funding_id(deal.params.id, A))
            assert mine >= share, f"A got {mine} of {share}"
            assert self.do_withdraw(asset, deal.params.id, A, mine, A)


Lives.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class TestLives(Lives.TestCase):  # type: ignore[misc, valid-type]
    """CONTRACT_MODEL_EXAMPLES and CONTRACT_MODEL_STEPS make it run longer."""

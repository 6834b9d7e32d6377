"""C4: every cell of the table of CHAIN.md 1.4, at the last second before and the first second after each boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from perun_chain_ethereum.embedded import CallFailed
from perun_chain_ethereum.testing import Params, State, World

from .real_chain import AnvilChain, deployed_on
from .scenes import CONCLUDED, DISPUTE, FORCEEXEC, now, updates

D = 60
NOTHING = "no event"


@dataclass(frozen=True)
class Row:
    """One row of the table: where a channel stands, the time of the call, what each call does.

    Times count from the stored timeout. A result is a reason; NOTHING; or phase and timeout after the call, the timeout
    counted from the time of the call, or None if it stays as it is.
    """

    name: str
    app: bool
    phase: int | None
    when: tuple[int, ...]
    newer: Any
    newer_final: Any
    progress: Any
    progress_final: Any
    conclude: Any
    same: Any = NOTHING
    agree: Any = (CONCLUDED, 0)


OVER = "refutation timeout passed"
EARLY = "timeout not passed yet"
TABLE = (
    Row(
        "unregistered",
        app=True,
        phase=None,
        when=(0,),
        newer=(DISPUTE, D),
        newer_final=(DISPUTE, 0),
        progress="not registered",
        progress_final="not registered",
        conclude="not registered",
        same=(DISPUTE, D),
    ),
    *(
        Row(
            f"in dispute, {'app' if app else 'no app'}",
            app=app,
            phase=DISPUTE,
            when=(-D + 1, -1),
            newer=(DISPUTE, None),
            newer_final=(DISPUTE, 0),
            progress="timeout not passed",
            progress_final="timeout not passed",
            conclude=EARLY,
        )
        for app in (False, True)
    ),
    Row(
        "dispute over, no app",
        app=False,
        phase=DISPUTE,
        when=(0, 1000),
        newer=OVER,
        newer_final=OVER,
        progress="must have app",
        progress_final="must have app",
        conclude=(CONCLUDED, None),
    ),
    Row(
        "time for progress",
        app=True,
        phase=DISPUTE,
        when=(0, D - 1),
        newer=OVER,
        newer_final=OVER,
        progress=(FORCEEXEC, D),
        progress_final=(FORCEEXEC, 0),
        conclude=EARLY,
    ),
    Row(
        "time for progress over, nobody concluded",
        app=True,
        phase=DISPUTE,
        when=(D, 1000),
        newer=OVER,
        newer_final=OVER,
        progress=(FORCEEXEC, D),
        progress_final=(FORCEEXEC, 0),
        conclude=(CONCLUDED, "plus D"),
    ),
    Row(
        "progressed",
        app=True,
        phase=FORCEEXEC,
        when=(-D + 1, -1),
        newer="incorrect phase",
        newer_final="incorrect phase",
        progress=(FORCEEXEC, D),
        progress_final=(FORCEEXEC, 0),
        conclude=EARLY,
    ),
    Row(
        "progressed, time over",
        app=True,
        phase=FORCEEXEC,
        when=(0, 1000),
        newer="incorrect phase",
        newer_final="incorrect phase",
        progress="timeout passed",
        progress_final="timeout passed",
        conclude=(CONCLUDED, None),
    ),
    Row(
        "concluded",
        app=True,
        phase=CONCLUDED,
        when=(1, 1000),
        newer="incorrect phase",
        newer_final="incorrect phase",
        progress="invalid phase",
        progress_final="invalid phase",
        conclude="channel already concluded",
        agree="channel already concluded",
    ),
)
CALLS = ("newer", "newer_final", "same", "progress", "progress_final", "conclude", "agree")
CELLS = [
    pytest.param(row, when, call, id=f"{row.name}, {when:+d} s, {call}")
    for row in TABLE
    for when in row.when
    for call in CALLS
]


def arrange(world: World, row: Row, c: Params) -> State:
    """Bring a channel to where `row` says; the registered state, or the one to register."""
    v1, v2 = world.state(c, 1, 0, 0), world.state(c, 2, 0, 0)
    if row.phase is None:
        return v1
    world.register(c, v1)
    if row.phase == DISPUTE:
        return v1
    world.progress(c, v1, v2, 0, at=now(world) + D)
    if row.phase == CONCLUDED:
        world.conclude(c, v2, at=now(world) + D)
    return v2


def play(world: World, row: Row, when: int, call: str, nonce: int) -> None:
    """One cell: the call at its second does exactly what the table says."""
    c = Params(duration=D, nonce=nonce, app=world.app if row.app else Params().app)
    state = arrange(world, row, c)
    before = world.dispute(c.id)
    at = (now(world) + 1 if row.phase is None else before.timeout) + when
    following = state.but(version=state.version + 1)
    calls: dict[str, Callable[[], Any]] = {
        "newer": lambda: world.register(c, following, at=at),
        "newer_final": lambda: world.register(c, following.but(final=True), at=at),
        "same": lambda: world.register(c, state, at=at),
        "progress": lambda: world.progress(c, state, following, 0, at=at),
        "progress_final": lambda: world.progress(c, state, following.but(final=True), 1, at=at),
        "conclude": lambda: world.conclude(c, state, at=at),
        "agree": lambda: world.conclude_final(c, state.but(version=0, final=True), at=at),
    }
    expected = getattr(row, call)
    try:
        events = updates(calls[call]())
    except CallFailed as refused:
        assert expected == str(refused).removeprefix("execution reverted: ")
        assert world.dispute(c.id) == before
        return
    after = world.dispute(c.id)
    if expected == NOTHING:
        assert (events, after) == ([], before)
        return
    phase, timeout = expected
    timeouts = {None: before.timeout, "plus D": before.timeout + D}
    wanted = timeouts[timeout] if timeout in timeouts else at + timeout
    assert (after.phase, after.timeout) == (phase, wanted)
    assert events == [(c.id, after.version, phase, wanted)]


@pytest.mark.parametrize(("row", "when", "call"), CELLS)
def test_c4_every_call_does_what_the_table_says_to_the_second(world: World, row: Row, when: int, call: str) -> None:
    play(world, row, when, call, nonce=1)


@pytest.mark.anvil
def test_c4_the_table_holds_on_anvil(start_anvil: Callable[..., str], rpc: Callable[..., Any]) -> None:
    world = deployed_on(AnvilChain(start_anvil(*AnvilChain.OPTIONS), rpc))
    nonces = count(1)
    for row in TABLE:
        for when in row.when:
            for call in CALLS:
                play(world, row, when, call, next(nonces))

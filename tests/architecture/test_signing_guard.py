"""No path leads to a key manager past the signing guard: read off the code, and off every effect a machine can give."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from perun_core.channel import Phase
from perun_core.errors import RuleViolated
from perun_core.protocol.effects import Effects, Persist, RequestSignature
from tests.unit.protocol.lives import STARTS, events

CORE = Path(__file__).parents[2] / "perun_core"

SIGNERS = {
    "node/session.py": {"sign", "_authorise"},
    "node/fundwatch.py": {"authorise", "_context"},
    # A fixed digest that stands for nothing, signed once per key; and the guard of the key manager itself.
    "node/keyguard.py": {"guarded", "sign_message"},
}
"""Who may call `sign_message`: file → functions."""


def calls(name: str) -> Iterator[tuple[str, str]]:
    """Where in the core `name` is called as a method or by itself: (file, function around it)."""
    for file in CORE.rglob("*.py"):
        path = str(file.relative_to(CORE))
        if path.startswith(("testing/", "template/")):
            continue
        tree = ast.parse(file.read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and called(node) == name:
                    yield path, function.name


def called(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def test_only_the_session_asks_a_key_manager_for_a_signature_on_a_digest() -> None:
    found: dict[str, set[str]] = {}
    for path, function in calls("sign_message"):
        if path.startswith(("keys/", "ports/")):
            continue
        found.setdefault(path, set()).add(function)
    extra = {path: names - SIGNERS.get(path, set()) for path, names in found.items()}
    assert not any(extra.values()), f"past the signing guard: {extra}"


def test_a_signature_is_requested_only_together_with_its_mark() -> None:
    assert set(calls("RequestSignature")) == {("protocol/base.py", "_sign"), ("protocol/opening.py", "_fix_channel")}
    assert {where for where in calls("_sign") if where[0].startswith("protocol/")} == {
        ("protocol/base.py", "_persist_and_sign")
    }


@pytest.mark.parametrize(("file", "name"), [("node/session.py", "_authorise"), ("node/fundwatch.py", "authorise")])
def test_an_authorisation_to_withdraw_follows_the_commit_of_its_mark(file: str, name: str) -> None:
    tree = ast.parse((CORE / file).read_text())
    (function,) = (node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef) and node.name == name)
    lines = {called(node): node.lineno for node in ast.walk(function) if isinstance(node, ast.Call)}
    assert "PutNew" in lines and lines["commit"] < lines["sign_message"]


def marked(effects: Effects) -> bool:
    """Whether each request to sign follows the durable mark of the same digest at once."""
    before = None
    for effect in effects:
        if isinstance(effect, RequestSignature) and not (
            isinstance(before, Persist) and before.signing is not None and before.signing.digest == effect.digest
        ):
            return False
        before = effect
    return True


@pytest.mark.parametrize("phase", list(STARTS))
def test_whatever_happens_in_whatever_phase_the_mark_comes_right_before_the_signature(phase: Phase) -> None:
    for make in STARTS[phase]:
        assert marked(make().machine.resume())
        for number in range(len(list(events(make())))):
            side = make()
            event = list(events(side))[number]
            try:
                effects = side.machine.handle(event)
            except RuleViolated:
                continue
            assert marked(effects), event

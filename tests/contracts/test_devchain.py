"""The development chain: `perunnode devchain`."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from eth_account import Account
from web3 import AsyncHTTPProvider, AsyncWeb3, WebSocketProvider
from web3.exceptions import ContractLogicError

from perun_chain_ethereum.artifacts import ContractKind, load
from perun_chain_ethereum.devchain import MAX_AHEAD, DevChain, Subscriber, require_loopback
from perun_chain_ethereum.embedded import EmbeddedChain
from perun_chain_ethereum.testkeys import DEPLOYER, TEST_ACCOUNTS, TEST_CONTRACTS

GWEI = 10**9
RECEIVER = "0x" + 40 * "7"


class Bench:
    """A development chain in this process, with a clock that only the test moves."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0
        balances = {bytes.fromhex(account.address[2:]): 10**21 for account in TEST_ACCOUNTS}
        self.chain = EmbeddedChain(balances, timestamp=int(self.time), chain_id=1337)
        self.dev = DevChain(self.chain, clock=lambda: self.time)

    def ask(self, method: str, *params: Any, subscriber: Subscriber | None = None) -> Any:
        message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        answer = self.dev.answer(message, subscriber)
        assert answer is not None
        content = json.loads(answer)
        assert content["id"] == 1
        return content

    def get(self, method: str, *params: Any) -> Any:
        return self.ask(method, *params)["result"]

    def error(self, method: str, *params: Any) -> Any:
        return self.ask(method, *params)["error"]

    @property
    def ahead(self) -> int:
        return self.chain.timestamp - int(self.time)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def transfer(nonce: int, **changes: Any) -> str:
    fields = {
        "type": 2,
        "chainId": 1337,
        "nonce": nonce,
        "gas": 21_000,
        "maxFeePerGas": 10 * GWEI,
        "maxPriorityFeePerGas": GWEI,
        "to": RECEIVER,
        "value": 1,
        "data": b"",
    }
    return "0x" + bytes(Account.sign_transaction(fields | changes, DEPLOYER.key).raw_transaction).hex()


def creation(nonce: int, kind: ContractKind = ContractKind.ADJUDICATOR) -> str:
    return transfer(nonce, to=None, value=0, data=load(kind).creation_code, gas=5_000_000)


# -- time -------------------------------------------------------------------------------------------------------------


def test_a_tick_makes_block_time_equal_to_the_clock(bench: Bench) -> None:
    bench.time += 100.7
    bench.dev.tick()
    assert (bench.ahead, bench.chain.number) == (0, 1)
    bench.dev.tick()
    assert bench.chain.number == 1, "a second block within the same second would be ahead"


def test_transactions_get_a_block_at_once_until_block_time_is_too_far_ahead(bench: Bench) -> None:
    for nonce in range(MAX_AHEAD + 3):
        bench.get("eth_sendRawTransaction", transfer(nonce))
    assert bench.ahead == MAX_AHEAD
    assert bench.get("eth_getTransactionCount", DEPLOYER.address, "latest") == hex(MAX_AHEAD)
    assert bench.get("eth_getTransactionCount", DEPLOYER.address, "pending") == hex(MAX_AHEAD + 3)
    bench.time += MAX_AHEAD + 1
    bench.dev.tick()
    assert bench.ahead == 0
    assert len(bench.get("eth_getBlockByNumber", "latest", False)["transactions"]) == 3


def test_skipped_time_stays_skipped(bench: Bench) -> None:
    bench.get("evm_increaseTime", 3600)
    bench.get("evm_mine")
    assert bench.ahead == 3600
    bench.time += 10
    bench.dev.tick()
    assert bench.ahead == 3600


# -- transactions -----------------------------------------------------------------------------------------------------


def test_a_transaction_for_another_chain_is_refused(bench: Bench) -> None:
    assert "invalid chain ID" in bench.error("eth_sendRawTransaction", transfer(0, chainId=1))["message"]
    legacy = {"nonce": 0, "gas": 21_000, "gasPrice": 10 * GWEI, "to": RECEIVER, "value": 1}
    unprotected = "0x" + bytes(Account.sign_transaction(legacy, DEPLOYER.key).raw_transaction).hex()
    assert "replay-protected" in bench.error("eth_sendRawTransaction", unprotected)["message"]
    protected = "0x" + bytes(Account.sign_transaction(legacy | {"chainId": 1337}, DEPLOYER.key).raw_transaction).hex()
    assert bench.get("eth_sendRawTransaction", protected)


def test_a_transaction_waits_for_the_one_before_it(bench: Bench) -> None:
    second, first = bench.get("eth_sendRawTransaction", transfer(1)), transfer(0)
    assert bench.get("eth_getTransactionReceipt", second) is None
    assert bench.get("eth_getTransactionByHash", second)["blockHash"] is None
    bench.get("eth_sendRawTransaction", first)
    assert bench.get("eth_getTransactionReceipt", second)["status"] == "0x1"
    assert bench.get("eth_getBalance", RECEIVER, "latest") == "0x2"


def test_a_waiting_transaction_is_replaced_for_a_tenth_more(bench: Bench) -> None:
    waiting = bench.get("eth_sendRawTransaction", transfer(1))
    cheap = bench.error("eth_sendRawTransaction", transfer(1, value=5, maxFeePerGas=10 * GWEI + 1))
    assert cheap["message"] == "replacement transaction underpriced"
    dear = transfer(1, value=5, maxFeePerGas=11 * GWEI, maxPriorityFeePerGas=11 * GWEI // 10)
    replacement = bench.get("eth_sendRawTransaction", dear)
    bench.get("eth_sendRawTransaction", transfer(0))
    assert bench.get("eth_getTransactionReceipt", waiting) is None
    assert bench.get("eth_getTransactionReceipt", replacement)["status"] == "0x1"


def test_refusals_are_worded_as_chain_nodes_word_them(bench: Bench) -> None:
    bench.get("eth_sendRawTransaction", transfer(0))
    refusals = {
        "already known": transfer(0),
        "nonce too low": transfer(0, value=2),
        "insufficient funds": transfer(1, value=10**30),
        "intrinsic gas too low": transfer(1, gas=20_999),
        "exceeds block gas limit": transfer(1, gas=30_000_001),
        "invalid transaction": "0x02c0",
    }
    for words, raw in refusals.items():
        error = bench.error("eth_sendRawTransaction", raw)
        assert (error["code"], words in error["message"]) == (-32000, True), error


def test_a_transaction_below_the_base_fee_waits_until_it_is_affordable(bench: Bench) -> None:
    poor = bench.get("eth_sendRawTransaction", transfer(0, maxFeePerGas=GWEI // 2, maxPriorityFeePerGas=0))
    assert bench.get("eth_getTransactionReceipt", poor) is None
    for _ in range(10):
        bench.time += 1
        bench.dev.tick()
    assert bench.get("eth_getTransactionReceipt", poor)["status"] == "0x1"


# -- reading ----------------------------------------------------------------------------------------------------------


def test_reverts_carry_reason_and_data(bench: Bench) -> None:
    bench.get("eth_sendRawTransaction", creation(0))
    from perun_chain_ethereum.testing import CONCLUDE, Params, State, calldata

    c = Params(ledger=False)
    data = calldata(CONCLUDE, c.abi, State(c.id, 1, (), ()).abi, [])
    call = {"to": TEST_CONTRACTS["Adjudicator"], "data": "0x" + data.hex()}
    for method in ("eth_call", "eth_estimateGas"):
        error = bench.error(method, call)
        assert (error["code"], error["message"]) == (3, "execution reverted: not ledger")
        assert error["data"].startswith("0x08c379a0")


def test_errors_of_the_protocol(bench: Bench) -> None:
    assert bench.error("eth_mining")["code"] == -32601
    assert bench.error("eth_getBalance", "0x12")["code"] == -32602
    assert bench.error("eth_getBalance")["code"] == -32602
    assert bench.error("eth_subscribe", "newHeads")["message"] == "notifications not supported"
    for message, code in (("{", -32700), ("[]", -32600), ("3", -32600), ('{"id": 1}', -32600)):
        assert json.loads(bench.dev.answer(message) or "")["error"]["code"] == code
    assert bench.dev.answer('{"jsonrpc": "2.0", "method": "eth_chainId"}') is None


def test_a_batch_is_answered_in_order(bench: Bench) -> None:
    batch = [{"jsonrpc": "2.0", "id": i, "method": m} for i, m in enumerate(["eth_chainId", "nope", "net_version"])]
    answers = json.loads(bench.dev.answer(json.dumps(batch)) or "")
    assert [answer["id"] for answer in answers] == [0, 1, 2]
    assert (answers[0]["result"], answers[1]["error"]["code"], answers[2]["result"]) == ("0x539", -32601, "1337")


def test_logs_are_found_by_address_topic_and_block(bench: Bench) -> None:
    owners = [account.address for account in TEST_ACCOUNTS[:2]]
    from eth_abi import encode

    data = load(ContractKind.TOKEN).creation_code + encode(["address[]", "uint256"], [owners, 5])
    tx = bench.get("eth_sendRawTransaction", transfer(0, to=None, value=0, data=data, gas=3_000_000))
    receipt = bench.get("eth_getTransactionReceipt", tx)
    logs = receipt["logs"]
    everything = {"fromBlock": "0x0", "toBlock": "latest"}
    assert bench.get("eth_getLogs", everything) == logs
    assert [log["logIndex"] for log in logs] == ["0x0", "0x1"]
    assert all(log["blockHash"] == receipt["blockHash"] for log in logs)
    to_second = [None, None, "0x" + 24 * "0" + owners[1][2:].lower()]
    assert bench.get("eth_getLogs", everything | {"topics": to_second}) == logs[1:]
    assert bench.get("eth_getLogs", everything | {"address": receipt["contractAddress"].lower()}) == logs
    assert bench.get("eth_getLogs", everything | {"address": [RECEIVER]}) == []
    assert bench.get("eth_getLogs", {"blockHash": receipt["blockHash"]}) == logs
    assert bench.get("eth_getLogs", everything | {"fromBlock": "0x2"}) == []


def test_the_past_can_be_read(bench: Bench) -> None:
    bench.get("eth_sendRawTransaction", transfer(0))
    assert bench.get("eth_getBalance", RECEIVER, "0x0") == "0x0"
    assert bench.get("eth_getBalance", RECEIVER, "0x1") == "0x1"
    assert bench.error("eth_getBalance", RECEIVER, "0x2")["code"] == -32000
    assert bench.get("eth_getBlockByNumber", "0x2", False) is None
    assert bench.get("eth_getBlockByHash", "0x" + 64 * "1", False) is None
    history = bench.get("eth_feeHistory", "0x5", "latest", [50])
    assert (history["oldestBlock"], len(history["baseFeePerGas"]), len(history["reward"])) == ("0x0", 3, 2)


def test_an_estimate_is_enough_and_close(bench: Bench) -> None:
    raw = load(ContractKind.ADJUDICATOR).creation_code
    estimate = int(bench.get("eth_estimateGas", {"from": DEPLOYER.address, "data": "0x" + raw.hex()}), 16)
    tx = bench.get("eth_sendRawTransaction", transfer(0, to=None, value=0, data=raw, gas=estimate))
    receipt = bench.get("eth_getTransactionReceipt", tx)
    assert receipt["status"] == "0x1"
    assert estimate <= int(receipt["gasUsed"], 16) * 1.02
    assert bench.get("eth_estimateGas", {"to": RECEIVER, "value": "0x1", "from": DEPLOYER.address}) == hex(21_000)


# -- subscriptions ----------------------------------------------------------------------------------------------------


def test_subscribers_hear_of_heads_and_of_the_logs_they_want(bench: Bench) -> None:
    subscriber = Subscriber()
    bench.dev.add(subscriber)
    heads = bench.ask("eth_subscribe", "newHeads", subscriber=subscriber)["result"]
    logs = bench.ask("eth_subscribe", "logs", {"address": TEST_CONTRACTS["PerunToken"]}, subscriber=subscriber)[
        "result"
    ]
    for nonce in range(2):
        bench.get("eth_sendRawTransaction", transfer(nonce))
    from eth_abi import encode

    data = load(ContractKind.TOKEN).creation_code + encode(["address[]", "uint256"], [[DEPLOYER.address], 5])
    bench.get("eth_sendRawTransaction", transfer(2, to=None, value=0, data=data, gas=3_000_000))
    heard = [json.loads(subscriber.outbox.get_nowait())["params"] for _ in range(subscriber.outbox.qsize())]
    assert [note["subscription"] for note in heard] == [heads, heads, heads, logs]
    assert [int(note["result"]["number"], 16) for note in heard[:3]] == [1, 2, 3]
    assert heard[3]["result"]["blockHash"] == heard[2]["result"]["hash"]
    assert bench.ask("eth_unsubscribe", heads, subscriber=subscriber)["result"] is True
    bench.dev.remove(subscriber)
    bench.get("evm_mine")
    assert subscriber.outbox.empty()


# -- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_it_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(ValueError, match=r"loopback|appear to be"):
        require_loopback(host)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_quietly_when_told_to(devchain: tuple[subprocess.Popen[str], str], how: signal.Signals) -> None:
    process, _ = devchain
    process.send_signal(how)
    assert process.wait(10) == 0
    assert process.stdout is not None
    assert process.stdout.read() == ""


def test_a_port_in_use_is_a_clear_error(
    devchain: tuple[subprocess.Popen[str], str], run_until_line: Callable[..., Any]
) -> None:
    import sys

    port = devchain[1].rsplit(":", 1)[1]
    command = [sys.executable, "-c", "from perun_chain_ethereum.commands import devchain; devchain()", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: devchain: ")


async def test_web3_over_http(devchain: tuple[subprocess.Popen[str], str]) -> None:
    w3 = AsyncWeb3(AsyncHTTPProvider(devchain[1]))
    try:
        assert await w3.eth.chain_id == 1337
        assert await w3.eth.syncing is False
        tx = await w3.eth.send_raw_transaction(creation(0))
        receipt = await w3.eth.wait_for_transaction_receipt(tx, timeout=20, poll_latency=0.05)
        assert receipt["contractAddress"] == TEST_CONTRACTS["Adjudicator"]
        adjudicator = w3.eth.contract(TEST_CONTRACTS["Adjudicator"], abi=load(ContractKind.ADJUDICATOR).abi)
        assert await adjudicator.functions.disputes(bytes(32)).call() == [0, 0, 0, False, 0, bytes(32)]
        params = (60, 1, [], RECEIVER, False, False)
        state = (bytes(32), 1, ([], [], []), b"", False)
        with pytest.raises(ContractLogicError, match="not ledger"):
            await adjudicator.functions.conclude(params, state, []).call()
        assert (await w3.eth.fee_history(2, "latest", [10]))["reward"]
        assert (await w3.eth.get_block("latest", full_transactions=True))["number"] >= 1
    finally:
        await w3.provider.disconnect()


async def test_web3_over_websocket_hears_heads_as_time_goes_by(
    devchain: tuple[subprocess.Popen[str], str],
) -> None:
    started = int(time.time())
    async with AsyncWeb3(WebSocketProvider(devchain[1].replace("http", "ws"))) as w3:
        await w3.eth.subscribe("newHeads")
        times: list[int] = []
        async with asyncio.timeout(30):
            async for message in w3.socket.process_subscriptions():
                times.append(message["result"]["timestamp"])
                if len(times) == 3:
                    break
    assert times == sorted(set(times))
    assert started - 60 <= times[0], "time starts at the clock"
    assert times[-1] <= time.time() + MAX_AHEAD, "and does not run away from it"

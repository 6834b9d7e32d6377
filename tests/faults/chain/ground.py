"""The accelerated chain of a run: anvil whose blocks, time, fees and history are in the hand of the campaign.

Block time passes at the pace the story needs, so that challenge durations take moments; all rules of the protocol are
about block time, which makes the outcome the same as on a slow chain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from perun_chain_ethereum import abi
from perun_chain_ethereum.deploy import Deployment, connected, deploy
from perun_core.ports.chain import Dispute
from perun_core.profile.gp090 import PROFILE
from perun_core.values import Address, ChannelID
from plugins.chain_ethereum.tests.chain_backend.conftest import DEPLOYER, ETHER, Key, anvil

TICK: Final = 0.08
"""Real seconds between two blocks."""
NORMAL_PACE: Final = 2
"""Seconds of block time between two blocks while somebody may have to react."""
FAST_PACE: Final = 20
"""The same while everybody only waits for time to pass."""
BASE_FEE: Final = 10 * 10**9
"""Wei per gas when nothing is wrong; the campaign keeps it constant, so that a spike is exactly its factor."""

LATENCY: Final = 5
"""Blocks that may pass between a node's look at the chain and the arrival of what it sends: 0.4 real seconds."""


class Refusal(Exception):
    """The chain node answered with an error."""


@dataclass
class Ground:
    """One chain with contracts, for one run at a time."""

    url: str
    http: str
    contracts: Deployment
    session: aiohttp.ClientSession
    time: int
    pace: int = NORMAL_PACE
    fee_factor: int = 1
    seen: dict[str, int] = field(default_factory=dict)
    """Transactions that waited to be mined, with the latest block of the moment when they were first seen."""
    used: bool = False
    spoilt: bool = False
    """Something of a failed run may still be there."""
    _holding: int = 0
    _mining: asyncio.Lock = field(default_factory=asyncio.Lock)

    _block: asyncio.Event = field(default_factory=asyncio.Event)

    # ---- questions --------------------------------------------------------------------------------------------------

    async def rpc(self, method: str, *params: object) -> Any:
        """One question. Raises: Refusal."""
        (result,) = await self.rpcs((method, params))
        return result

    async def rpcs(self, *calls: tuple[str, Sequence[object]]) -> list[Any]:
        """Several questions in one request, answered in order. Raises: Refusal when one of them is refused."""
        batch = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
            for number, (method, params) in enumerate(calls)
        ]
        async with self.session.post(self.http, json=batch) as response:
            answers = {answer["id"]: answer for answer in await response.json()}
        results = []
        for number in range(len(calls)):
            answer = answers[number]
            if "error" in answer:
                raise Refusal(answer["error"].get("message", str(answer["error"])))
            results.append(answer["result"])
        return results

    async def height(self) -> int:
        """Number of the latest block."""
        return int(await self.rpc("eth_blockNumber"), 16)

    async def balance(self, account: str) -> int:
        """Wei."""
        return int(await self.rpc("eth_getBalance", account, "latest"), 16)

    async def give(self, account: str, wei: int) -> None:
        """Set what `account` has."""
        await self.rpc("anvil_setBalance", account, hex(wei))

    async def dispute(self, channel_id: ChannelID) -> Dispute:
        """What the adjudicator stores."""
        return abi.dispute(await self._call(self.contracts.adjudicator, abi.call_disputes(channel_id)))

    async def holdings(self, channel_id: ChannelID, participant: Address) -> int:
        """Wei the ETH holder keeps for a participant of a channel."""
        funding_id = PROFILE.funding_id(channel_id, participant)
        return abi.uint(await self._call(self.contracts.eth, abi.call_holdings(funding_id)))

    async def _call(self, to: str, data: bytes) -> bytes:
        answer: str = await self.rpc("eth_call", {"to": to, "data": "0x" + data.hex()}, "latest")
        return bytes.fromhex(answer[2:])

    # ---- time -------------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Mine blocks until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            if not self._holding:
                await self.mine()

    async def mine(self) -> None:
        """One block."""
        async with self._mining:
            self.time += self.pace
            fee = hex(BASE_FEE * self.fee_factor)
            pool, height, *_ = await self.rpcs(
                ("txpool_content", ()),
                ("eth_blockNumber", ()),
                ("anvil_setNextBlockBaseFeePerGas", (fee,)),
                ("evm_mine", (self.time,)),
            )
        for waiting in pool["pending"].values():
            for tx in waiting.values():
                self.seen.setdefault(tx["hash"], int(height, 16))
        self._block.set()
        self._block = asyncio.Event()

    async def blocks(self, count: int) -> None:
        """Wait for `count` new blocks."""
        for _ in range(count):
            await self._block.wait()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """No block is mined: what is done meanwhile takes no block time."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1

    # ---- history ----------------------------------------------------------------------------------------------------

    async def reorg(self, depth: int) -> list[str]:
        """Exchange the last `depth` blocks for empty ones; the signed transactions that were in them, oldest first."""
        async with self._mining:
            head = await self.height()
            raws: list[str] = []
            for number in range(head - depth + 1, head + 1):
                block = await self.rpc("eth_getBlockByNumber", hex(number), False)
                raws += [await self.rpc("eth_getRawTransactionByHash", tx) for tx in block["transactions"]]
            await self.rpc("anvil_reorg", depth, [])
            # A subscriber hears of the exchanged blocks with the next head, as it does from other nodes.
        return raws

    async def resubmit(self, raws: Sequence[str]) -> None:
        """Hand transactions to the chain again, as the nodes of a network do with those of exchanged blocks."""
        for raw in raws:
            with suppress(Refusal):  # whoever made it may have brought it back already, or replaced it
                await self.rpc("eth_sendRawTransaction", raw)

    async def receipts(self, first: int) -> list[dict[str, Any]]:
        """All receipts from block `first` on."""
        last = await self.height()
        found: list[dict[str, Any]] = []
        for start in range(first, last + 1, 50):
            numbers = range(start, min(start + 50, last + 1))
            for receipts in await self.rpcs(*(("eth_getBlockReceipts", (hex(number),)) for number in numbers)):
                found += receipts
        return found

    async def foreseeable(self, receipt: dict[str, Any]) -> tuple[str, bool]:
        """Why a transaction failed, and whether that was so already when it was sent.

        Tried on a block LATENCY before that moment: between looking and sending lie some questions and a signature.
        """
        mined = int(receipt["blockNumber"], 16)
        tx = await self.rpc("eth_getTransactionByHash", receipt["transactionHash"])
        reason = await self._reason(tx, mined - 1)
        sent = self.seen.get(tx["hash"], mined - 1)
        return reason, bool(reason) and await self._reason(tx, max(sent - LATENCY, 1)) == reason

    async def _reason(self, tx: dict[str, Any], block: int) -> str:
        """Why `tx` fails on the state of `block`; empty when it does not."""
        call = {"from": tx["from"], "to": tx["to"], "data": tx["input"], "value": tx["value"], "gas": tx["gas"]}
        try:
            await self.rpc("eth_call", call, hex(block))
        except Refusal as refusal:
            return str(refusal)
        return ""

    async def name_of(self, receipt: dict[str, Any]) -> str:
        """What a transaction calls."""
        tx = await self.rpc("eth_getTransactionByHash", receipt["transactionHash"])
        called = bytes.fromhex(tx["input"][2:10])
        return next((name for name, selector in abi.SELECTORS.items() if selector == called), "another call")

    async def register_as(self, account: Key, call: bytes) -> str:
        """Send `call` to the adjudicator from `account`, past any node; the transaction's hash."""
        from perun_core.ports.keymgr import UnsignedTx

        nonce = int(await self.rpc("eth_getTransactionCount", account.address.checksum, "pending"), 16)
        fee = 50 * BASE_FEE
        to = Address.from_hex(self.contracts.adjudicator)
        raw = await account.sign(UnsignedTx(1337, nonce, 10**9, fee, 1_000_000, to, 0, call))
        tx: str = await self.rpc("eth_sendRawTransaction", "0x" + raw.hex())
        return tx


@asynccontextmanager
async def fresh_ground() -> AsyncIterator[Ground]:
    """A fresh chain whose blocks are mined by hand."""
    # Fees decide the order in a block, as everywhere; the oldest blocks are kept for counting receipts.
    with anvil() as http:
        async with aiohttp.ClientSession() as session:
            ground = Ground(http.replace("http", "ws"), http, Deployment("", "", None, None), session, 0)
            await ground.give(Key("", DEPLOYER).address.checksum, 100 * ETHER)
            async with connected(http) as w3:
                ground.contracts = await deploy(w3, DEPLOYER, test_token=False)
            await ground.rpc("evm_setAutomine", False)
            ground.time = int((await ground.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16)
            yield ground

"""For tests and benchmarks: an embedded chain with the contracts deployed, and the values of CHAIN.md 1.1 to feed them.

Encodes with the generic ABI encoder, independently of the node's own hand-laid-out encoding, so that tests can compare.
All amounts are base units, all times block times in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eth_abi.abi import decode, encode
from eth_account import Account
from eth_hash.auto import keccak
from eth_keys.datatypes import PrivateKey

from .artifacts import ContractKind, load
from .embedded import Call, EmbeddedChain
from .testkeys import TEST_ACCOUNTS, TEST_CHAIN_ID, TOKEN_OWNERS, TOKEN_SUPPLY_EACH

GENESIS_TIME = 1_700_000_000
ETHER = 10**18
ZERO = "0x" + 40 * "0"

PARAMS = "(uint256,uint256,address[],address,bool,bool)"
ALLOCATION = "(address[],uint256[][],(bytes32,uint256[],uint16[])[])"
STATE = f"(bytes32,uint64,{ALLOCATION},bytes,bool)"
SIGNED = f"({PARAMS},{STATE},bytes[])"
AUTH = "(bytes32,address,address,uint256)"

ADDRESS = [account.address for account in TEST_ACCOUNTS]
KEY = {account.address: PrivateKey(bytes.fromhex(account.key)) for account in TEST_ACCOUNTS}

REGISTER = f"register({SIGNED},{SIGNED}[])"
PROGRESS = f"progress({PARAMS},{STATE},{STATE},uint256,bytes)"
CONCLUDE = f"conclude({PARAMS},{STATE},{STATE}[])"
CONCLUDE_FINAL = f"concludeFinal({PARAMS},{STATE},bytes[])"
DISPUTES = "disputes(bytes32)"
DEPOSIT = "deposit(bytes32,uint256)"
SET_OUTCOME = "setOutcome(bytes32,address[],uint256[])"
WITHDRAW = f"withdraw({AUTH},bytes)"

CHANNEL_UPDATE = "895ef5a5fc3efd313a300b006d6ce97ff0670dfe04f6eea90417edf924fa786b"


def argument_types(signature: str) -> list[str]:
    """The top-level types of a function signature."""
    types, depth, current = [], 0, ""
    for char in signature[signature.index("(") + 1 : -1]:
        if char == "," and depth == 0:
            types.append(current)
            current = ""
            continue
        depth += {"(": 1, ")": -1}.get(char, 0)
        current += char
    return [*types, current] if current else types


def calldata(signature: str, *arguments: Any) -> bytes:
    return keccak(signature.encode())[:4] + encode(argument_types(signature), arguments)


def digest(value_hash: bytes) -> bytes:
    return keccak(b"\x19Ethereum Signed Message:\n32" + value_hash)


def sign(signer: str, value_hash: bytes) -> bytes:
    """RFC 6979 signature of a test account over the EIP-191 digest of a hash, v 27 or 28."""
    signature = KEY[signer].sign_msg_hash(digest(value_hash)).to_bytes()
    return signature[:64] + bytes([signature[64] + 27])


@dataclass(frozen=True)
class Params:
    participants: tuple[str, ...] = (ADDRESS[1], ADDRESS[3])
    duration: int = 60
    nonce: int = 1
    app: str = ZERO
    ledger: bool = True
    virtual: bool = False

    @property
    def abi(self) -> tuple[Any, ...]:
        return (self.duration, self.nonce, self.participants, self.app, self.ledger, self.virtual)

    @property
    def id(self) -> bytes:
        return keccak(encode([PARAMS], [self.abi]))


@dataclass(frozen=True)
class State:
    channel: bytes
    version: int
    assets: tuple[str, ...]
    balances: tuple[tuple[int, ...], ...]
    locked: tuple[tuple[bytes, tuple[int, ...], tuple[int, ...]], ...] = ()
    data: bytes = b""
    final: bool = False

    @property
    def abi(self) -> tuple[Any, ...]:
        return (self.channel, self.version, (self.assets, self.balances, self.locked), self.data, self.final)

    @property
    def hash(self) -> bytes:
        return keccak(encode([STATE], [self.abi]))

    def signed(self, signers: Sequence[str]) -> list[bytes]:
        return [sign(signer, self.hash) for signer in signers]

    def but(self, **changes: Any) -> State:
        return replace(self, **changes)


def signed_state(params: Params, state: State) -> tuple[Any, ...]:
    return (params.abi, state.abi, state.signed(params.participants))


def funding_id(channel: bytes, participant: str) -> bytes:
    return keccak(encode(["bytes32", "address"], [channel, participant]))


@dataclass(frozen=True)
class Dispute:
    timeout: int
    duration: int
    version: int
    has_app: bool
    phase: int
    state_hash: bytes


@dataclass
class World:
    """Everything a contract test needs; `send` raises CallFailed with reason and revert data."""

    chain: EmbeddedChain = field(
        default_factory=lambda: EmbeddedChain(
            {bytes.fromhex(a.address[2:]): 10**9 * ETHER for a in TEST_ACCOUNTS},
            timestamp=GENESIS_TIME,
            chain_id=TEST_CHAIN_ID,
        )
    )
    adjudicator: str = ""
    eth: str = ""
    token: str = ""
    erc20: str = ""
    app: str = ""

    @classmethod
    def deployed(cls) -> World:
        world = cls()
        world.adjudicator = world.deploy(ContractKind.ADJUDICATOR)
        world.eth = world.deploy(ContractKind.ETH_HOLDER, ["address"], world.adjudicator)
        tokens = (list(TOKEN_OWNERS), TOKEN_SUPPLY_EACH)
        world.token = world.deploy(ContractKind.TOKEN, ["address[]", "uint256"], *tokens)
        holder = (world.adjudicator, world.token)
        world.erc20 = world.deploy(ContractKind.ERC20_HOLDER, ["address", "address"], *holder)
        world.app = world.deploy(ContractKind.APP)
        return world

    def deploy(self, kind: ContractKind, types: Sequence[str] = (), *arguments: Any) -> str:
        """Deploy one of our contracts with account 0; its address."""
        return self.deploy_code(load(kind).creation_code + encode(list(types), arguments))

    def deploy_code(self, code: bytes) -> str:
        """Deploy any creation code with account 0; its address."""
        address: str = self.transact(None, code)["contractAddress"]
        return address

    def transact(
        self, to: str | None, data: bytes, *, sender: str = ADDRESS[0], value: int = 0, at: int | None = None
    ) -> dict[str, Any]:
        """Mine one transaction in its own block, at time `at` if given; its receipt."""
        signed = Account.sign_transaction(
            {
                "type": 2,
                "chainId": self.chain.chain_id,
                "nonce": self.chain.nonce(bytes.fromhex(sender[2:])),
                "gas": 20_000_000,
                "maxFeePerGas": 10 * 10**9,
                "maxPriorityFeePerGas": 10**9,
                "to": to,
                "value": value,
                "data": data,
            },
            KEY[sender].to_bytes(),
        )
        receipt = self.chain.send(bytes(signed.raw_transaction), at)
        failure = self.chain.failure(bytes(signed.hash))
        if failure is not None:
            raise failure
        return receipt

    def send(
        self,
        to: str,
        signature: str,
        *arguments: Any,
        sender: str = ADDRESS[0],
        value: int = 0,
        at: int | None = None,
    ) -> dict[str, Any]:
        return self.transact(to, calldata(signature, *arguments), sender=sender, value=value, at=at)

    def read(self, to: str, signature: str, returns: Sequence[str], *arguments: Any) -> tuple[Any, ...]:
        call = Call(to=bytes.fromhex(to[2:]), data=calldata(signature, *arguments))
        return decode(list(returns), self.chain.call(call).output)

    # -- the vocabulary of channels -----------------------------------------------------------------------------------

    def state(self, params: Params, version: int, *balances: int, **more: Any) -> State:
        """A state with one asset, ETH, unless told otherwise."""
        return State(params.id, version, **({"assets": (self.eth,), "balances": (balances,)} | more))

    def register(self, params: Params, state: State, *subs: tuple[Params, State], at: int | None = None) -> Any:
        listed = [signed_state(*sub) for sub in subs]
        return self.send(self.adjudicator, REGISTER, signed_state(params, state), listed, at=at)

    def progress(self, params: Params, old: State, new: State, actor: int, *, at: int | None = None) -> Any:
        sig = sign(params.participants[actor], new.hash)
        return self.send(self.adjudicator, PROGRESS, params.abi, old.abi, new.abi, actor, sig, at=at)

    def conclude(self, params: Params, state: State, *subs: State, at: int | None = None) -> Any:
        return self.send(self.adjudicator, CONCLUDE, params.abi, state.abi, [s.abi for s in subs], at=at)

    def conclude_final(self, params: Params, state: State, *, at: int | None = None) -> Any:
        sigs = state.signed(params.participants)
        return self.send(self.adjudicator, CONCLUDE_FINAL, params.abi, state.abi, sigs, at=at)

    def dispute(self, channel: bytes) -> Dispute:
        types = ["uint64", "uint64", "uint64", "bool", "uint8", "bytes32"]
        return Dispute(*self.read(self.adjudicator, DISPUTES, types, channel))

    def deposit(
        self, params: Params, *amounts: int, holder: str = "", sender: str = ADDRESS[0]
    ) -> list[dict[str, Any]]:
        """Deposit for each participant in turn, nothing for amount 0; ERC-20 deposits are allowed first."""
        holder = holder or self.eth
        receipts = []
        for participant, amount in zip(params.participants, amounts, strict=True):
            if amount == 0:
                continue
            value = amount if holder == self.eth else 0
            if holder == self.erc20:
                self.send(self.token, "approve(address,uint256)", holder, amount, sender=sender)
            target = funding_id(params.id, participant)
            receipts.append(self.send(holder, DEPOSIT, target, amount, value=value, sender=sender))
        return receipts

    def holdings(self, params: Params, participant: str, holder: str = "") -> int:
        key = funding_id(params.id, participant)
        held: int = self.read(holder or self.eth, "holdings(bytes32)", ["uint256"], key)[0]
        return held

    def withdraw(
        self, params: Params, participant: str, receiver: str, amount: int, *, holder: str = "", signer: str = ""
    ) -> dict[str, Any]:
        auth = (params.id, participant, receiver, amount)
        sig = sign(signer or participant, keccak(encode([AUTH], [auth])))
        return self.send(holder or self.eth, WITHDRAW, auth, sig)

    def balance(self, address: str) -> int:
        return self.chain.balance(bytes.fromhex(address[2:]))

    def tokens(self, address: str) -> int:
        owned: int = self.read(self.token, "balanceOf(address)", ["uint256"], address)[0]
        return owned

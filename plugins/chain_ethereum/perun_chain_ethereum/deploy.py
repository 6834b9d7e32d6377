"""Deploying and recognising contract sets.

The order of deployment is fixed, so that the addresses follow from the deployer and its first nonce (CHAIN.md 4.5):
Adjudicator, AssetHolderETH, then with test token PerunToken and AssetHolderERC20.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from perun_core.errors import ChainError, ContractInvalid, KeyManagerError, NotReachable, TxReverted, TxTimedOut

from .artifacts import ContractKind, load
from .code_check import OWN_SET, CodeInvalid, CodeMatch, NoCode, UnknownCode, WrongImmutable, identify
from .testkeys import TOKEN_OWNERS, TOKEN_SUPPLY_EACH

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount
    from web3 import AsyncWeb3

TIMEOUT: Final = 60.0
"""Seconds to wait for all transactions of a deployment to be mined."""

GAS_MARGIN: Final = (11, 10)
"""Factor on estimated gas: the estimate of one node need not be enough on the next block."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Addresses (checksummed) of a contract set; token and its holder only if deployed with a test token."""

    adjudicator: str
    eth: str
    token: str | None = None
    erc20: str | None = None

    def to_json(self) -> dict[str, str]:
        """As printed by `contracts deploy --json`."""
        fields = {"adjudicator": self.adjudicator, "eth": self.eth, "token": self.token, "erc20": self.erc20}
        return {name: address for name, address in fields.items() if address is not None}


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncWeb3[Any]]:
    """A connection to the chain node at `url`: http(s)://, ws(s)://, or the path of an IPC socket.

    Raises: NotReachable if the node does not answer.
    """
    import aiohttp
    from web3 import AsyncHTTPProvider, AsyncIPCProvider, AsyncWeb3, WebSocketProvider
    from web3.exceptions import Web3Exception
    from web3.middleware import ExtraDataToPOAMiddleware

    unreachable = (OSError, aiohttp.ClientError, TimeoutError, asyncio.TimeoutError)
    async with contextlib.AsyncExitStack() as stack:
        w3: AsyncWeb3[Any]
        try:
            if url.startswith(("http://", "https://")):
                w3 = AsyncWeb3(AsyncHTTPProvider(url))
                stack.push_async_callback(w3.provider.disconnect)
            elif url.startswith(("ws://", "wss://")):
                w3 = await stack.enter_async_context(AsyncWeb3(WebSocketProvider(url, max_connection_retries=1)))
            else:
                w3 = await stack.enter_async_context(AsyncWeb3(AsyncIPCProvider(url, max_connection_retries=1)))
            # Chains with proof of authority have longer extra data in their headers than web3 accepts otherwise.
            w3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
            await w3.eth.chain_id
        except (*unreachable, Web3Exception) as error:
            raise NotReachable(f"cannot connect to the chain node at {url}: {error}") from error
        try:
            yield w3
        except unreachable as error:
            raise NotReachable(f"lost the chain node at {url}: {error}") from error


def read_key(path: Path, *, password: str | None = None) -> bytes:
    """The private key in a file: 64 hex digits with or without 0x, or a key store of version 3.

    Raises: KeyManagerError, without any content of the file in its text.
    """
    from eth_account import Account

    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyManagerError(f"cannot read the key file {path}: {type(error).__name__}") from error
    if text.startswith("{"):
        if password is None:
            raise KeyManagerError(f"{path} is a key store: a password file is needed")
        try:
            return bytes(Account.decrypt(json.loads(text), password))
        except (ValueError, TypeError, KeyError):
            raise KeyManagerError(f"cannot open the key store {path}: wrong password or damaged file") from None
    digits = text.removeprefix("0x")
    try:
        key = bytes.fromhex(digits)
        if len(key) != 32:
            raise ValueError
        Account.from_key(key)
    except ValueError:
        raise KeyManagerError(f"{path} does not hold a private key of 64 hex digits") from None
    return key


async def deploy(w3: AsyncWeb3[Any], key: bytes, *, test_token: bool = False, timeout: float = TIMEOUT) -> Deployment:
    """Deploy a contract set with the account of `key`, or find the one it has deployed already.

    A set (or the beginning of one) that this account deployed with its first transactions is recognised by its code and
    completed if the next nonce allows; otherwise a new set is deployed with the nonces from the next one on. All
    transactions are sent at once; their addresses are known before.

    Args:
        key: private key (32 bytes); its account pays the gas.
        test_token: whether the set has a test token and its holder.
        timeout: seconds until all transactions must be mined.
    Raises: TxReverted, TxTimedOut, ContractInvalid (other code than sent), ChainError, NotReachable.
    """
    from eth_account import Account

    account: LocalAccount = Account.from_key(key)
    kinds: tuple[ContractKind, ...] = (ContractKind.ADJUDICATOR, ContractKind.ETH_HOLDER)
    if test_token:
        kinds += (ContractKind.TOKEN, ContractKind.ERC20_HOLDER)
    next_nonce = await w3.eth.get_transaction_count(account.address, "pending")
    first = 0
    addresses = contract_addresses(account.address, first, len(kinds))
    present = await _count_present(w3, kinds, addresses)
    if present < len(kinds) and present != next_nonce:
        first, present = next_nonce, 0
        addresses = contract_addresses(account.address, first, len(kinds))
    try:
        async with asyncio.timeout(timeout):
            hashes = []
            for index in range(present, len(kinds)):
                data = load(kinds[index]).creation_code + _constructor_arguments(kinds[index], addresses)
                hashes.append((kinds[index], await _send(w3, account, first + index, data)))
            for kind, tx_hash in hashes:
                await _require_success(w3, kind, tx_hash)
    except TimeoutError as error:
        raise TxTimedOut("Deploy", "0x" + hashes[-1][1].hex() if hashes else "") from error
    for kind, address in zip(kinds, addresses, strict=True):
        await require_own(w3, kind, address, addresses)
    return Deployment(*addresses)


def contract_addresses(deployer: str, first_nonce: int, count: int) -> tuple[str, ...]:
    """Addresses (checksummed) of the contracts that `deployer` creates with consecutive nonces."""
    import rlp  # type: ignore[import-untyped]
    from eth_hash.auto import keccak
    from eth_utils.address import to_checksum_address

    sender = bytes.fromhex(deployer[2:])
    return tuple(
        str(to_checksum_address(keccak(rlp.encode([sender, nonce]))[12:]))
        for nonce in range(first_nonce, first_nonce + count)
    )


def _constructor_arguments(kind: ContractKind, addresses: Sequence[str]) -> bytes:
    """ABI-encoded constructor arguments for the set at `addresses` (in the order of deployment)."""
    from eth_abi.abi import encode

    match kind:
        case ContractKind.ETH_HOLDER:
            return encode(["address"], [addresses[0]])
        case ContractKind.TOKEN:
            return encode(["address[]", "uint256"], [TOKEN_OWNERS, TOKEN_SUPPLY_EACH])
        case ContractKind.ERC20_HOLDER:
            return encode(["address", "address"], [addresses[0], addresses[2]])
        case _:
            return b""


async def _count_present(w3: AsyncWeb3[Any], kinds: Sequence[ContractKind], addresses: Sequence[str]) -> int:
    """How many contracts of the set are at their addresses, without a gap from the first on."""
    for index, (kind, address) in enumerate(zip(kinds, addresses, strict=True)):
        try:
            await require_own(w3, kind, address, addresses)
        except ContractInvalid:
            return index
    return len(kinds)


async def require_own(w3: AsyncWeb3[Any], kind: ContractKind, address: str, addresses: Sequence[str]) -> None:
    """Raises: ContractInvalid unless our `kind`, made for the set at `addresses`, is at `address`."""
    token = addresses[2] if kind is ContractKind.ERC20_HOLDER else None
    match = await recognise(w3, kind, address, adjudicator=addresses[0], token=token)
    if match.entry.set_name != OWN_SET:
        raise ContractInvalid(kind.value, address, f"is of the set {match.entry.set_name}")


async def recognise(
    w3: AsyncWeb3[Any], kind: ContractKind, address: str, *, adjudicator: str | None = None, token: str | None = None
) -> CodeMatch:
    """Which known contract of this kind is at `address` (CHAIN.md 2.4).

    Args:
        address: checksummed, like the next two.
        adjudicator: what a holder has to answer when asked for its adjudicator.
        token: what an ERC-20 holder has to hold.
    Raises: ContractInvalid; ChainError if the node answers with an error.
    """
    code = bytes(await w3.eth.get_code(cast("Any", address)))
    try:
        match = identify(kind, code, adjudicator=_raw(adjudicator), token=_raw(token))
    except WrongImmutable as error:
        problem = "incorrect adjudicator code" if error.name == "adjudicator" else "incorrect contract code"
        raise ContractInvalid(kind.value, address, f"{problem}: {error}") from error
    except CodeInvalid as error:
        raise ContractInvalid(kind.value, address, str(error)) from error
    if adjudicator is not None and kind in (ContractKind.ETH_HOLDER, ContractKind.ERC20_HOLDER):
        found = await _adjudicator_of(w3, address)
        if found != _raw(adjudicator):
            raise ContractInvalid(kind.value, address, f"incorrect adjudicator code: made for 0x{found.hex()}")
    return match


async def _adjudicator_of(w3: AsyncWeb3[Any], holder: str) -> bytes:
    """The address (20 bytes) that `adjudicator()` of a recognised holder answers."""
    from eth_hash.auto import keccak

    selector = keccak(b"adjudicator()")[:4]
    answer = bytes(await w3.eth.call({"to": cast("Any", holder), "data": cast("Any", selector)}))
    if len(answer) != 32:
        raise ChainError(f"no answer to adjudicator() from the holder at {holder}")
    return answer[12:]


def _raw(address: str | None) -> bytes | None:
    return None if address is None else bytes.fromhex(address[2:])


async def _send(w3: AsyncWeb3[Any], account: LocalAccount, nonce: int, data: bytes) -> bytes:
    """Send one contract creation; its transaction hash."""
    from web3.exceptions import Web3Exception, Web3RPCError

    try:
        gas = await w3.eth.estimate_gas({"from": account.address, "data": cast("Any", data)})
        block = await w3.eth.get_block("latest")
        tip = await w3.eth.max_priority_fee
        signed = account.sign_transaction(
            {
                "type": 2,
                "chainId": await w3.eth.chain_id,
                "nonce": nonce,
                "gas": gas * GAS_MARGIN[0] // GAS_MARGIN[1],
                # Enough for the base fee to double before the transaction is mined.
                "maxFeePerGas": 2 * block["baseFeePerGas"] + tip,
                "maxPriorityFeePerGas": tip,
                "value": 0,
                "data": data,
            }
        )
        return bytes(await w3.eth.send_raw_transaction(signed.raw_transaction))
    except Web3RPCError as error:
        raise TxReverted("Deploy", error.message) from error
    except Web3Exception as error:
        raise ChainError(f"cannot deploy: {error}") from error


async def _require_success(w3: AsyncWeb3[Any], kind: ContractKind, tx_hash: bytes) -> None:
    """Wait until the transaction is mined. Raises: TxReverted if it failed; the caller limits the time."""
    from web3.exceptions import TransactionNotFound

    while True:
        # Bounded by the caller's timeout. Nodes answer "not found" or null until the transaction is mined.
        with contextlib.suppress(TransactionNotFound):
            receipt = await w3.eth.get_transaction_receipt(cast("Any", tx_hash))
            if receipt["status"] != 1:
                raise TxReverted("Deploy", f"creation of {kind.value} failed", "0x" + tx_hash.hex())
            return
        await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Finding:
    """What `check` found at one address."""

    role: str
    """adjudicator, eth, token or erc20."""
    address: str
    known: bool
    """Whether it is of our build or of a known set."""
    unsafe: bool
    text: str
    """For people."""


async def check(
    w3: AsyncWeb3[Any],
    *,
    adjudicator: str,
    eth: str | None = None,
    token: str | None = None,
    erc20: str | None = None,
) -> tuple[Finding, ...]:
    """Say what is at each of the addresses (checksummed).

    The token is not part of the set: any contract will do, and whether it can be trusted is for its users to know.
    Raises: ChainError, NotReachable.
    """
    findings = [await _find(w3, "adjudicator", ContractKind.ADJUDICATOR, adjudicator)]
    if eth is not None:
        findings.append(await _find(w3, "eth", ContractKind.ETH_HOLDER, eth, adjudicator=adjudicator))
    if token is not None:
        findings.append(await _find_token(w3, token))
    if erc20 is not None:
        made_for = {"adjudicator": adjudicator, "token": token}
        findings.append(await _find(w3, "erc20", ContractKind.ERC20_HOLDER, erc20, **made_for))
    return tuple(findings)


async def _find(w3: AsyncWeb3[Any], role: str, kind: ContractKind, address: str, **made_for: str | None) -> Finding:
    try:
        match = await recognise(w3, kind, address, **made_for)
    except ContractInvalid as error:
        return Finding(role, address, known=False, unsafe=False, text=f"unknown: {error.problem}")
    entry = match.entry
    if entry.unsafe:
        text = f"{entry.set_name} {kind.value}: known, but unsafe: it lacks the guarantees of our own; test value only"
    else:
        text = f"our {kind.value} ({entry.set_name})"
    return Finding(role, address, known=True, unsafe=entry.unsafe, text=text)


async def _find_token(w3: AsyncWeb3[Any], address: str) -> Finding:
    code = bytes(await w3.eth.get_code(cast("Any", address)))
    try:
        match = identify(ContractKind.TOKEN, code)
    except NoCode as error:
        return Finding("token", address, known=False, unsafe=False, text=f"unknown: {error}")
    except UnknownCode:
        return Finding("token", address, known=True, unsafe=False, text="a token; tokens are not judged")
    return Finding("token", address, known=True, unsafe=False, text=f"test token ({match.entry.set_name})")

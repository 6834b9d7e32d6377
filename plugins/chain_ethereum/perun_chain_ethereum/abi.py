"""Calldata, results and logs of the contracts: core values in, bytes out, and back (CHAIN.md 1.1–1.6, profile P1).

Pure: no connection, no state. Types are written out here because the set of contracts is fixed; a test compares the
selectors with the signatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from perun_core.channel import Allocation, Asset, Params, State, SubAlloc, Transaction
from perun_core.errors import ChainError
from perun_core.ports.chain import ChannelEvent, Dispute, DisputePhase
from perun_core.values import ZERO_ADDRESS, Address, Bytes32, ChannelID, Sig

PARAMS: Final = "(uint256,uint256,address[],address,bool,bool)"
SUB_ALLOC: Final = "(bytes32,uint256[],uint16[])"
ALLOCATION: Final = f"(address[],uint256[][],{SUB_ALLOC}[])"
STATE: Final = f"(bytes32,uint64,{ALLOCATION},bytes,bool)"
SIGNED_STATE: Final = f"({PARAMS},{STATE},bytes[])"
WITHDRAWAL_AUTH: Final = "(bytes32,address,address,uint256)"

SIGNATURES: Final = {
    "disputes": "disputes(bytes32)",
    "register": f"register({SIGNED_STATE},{SIGNED_STATE}[])",
    "progress": f"progress({PARAMS},{STATE},{STATE},uint256,bytes)",
    "conclude": f"conclude({PARAMS},{STATE},{STATE}[])",
    "concludeFinal": f"concludeFinal({PARAMS},{STATE},bytes[])",
    "holdings": "holdings(bytes32)",
    "adjudicator": "adjudicator()",
    "token": "token()",
    "deposit": "deposit(bytes32,uint256)",
    "withdraw": f"withdraw({WITHDRAWAL_AUTH},bytes)",
    "symbol": "symbol()",
    "decimals": "decimals()",
    "balanceOf": "balanceOf(address)",
    "allowance": "allowance(address,address)",
    "approve": "approve(address,uint256)",
}
"""Function signatures of what the backend calls, by name."""

SELECTORS: Final = {
    "disputes": bytes.fromhex("11be1997"),
    "register": bytes.fromhex("e30194b7"),
    "progress": bytes.fromhex("02357657"),
    "conclude": bytes.fromhex("97f5a097"),
    "concludeFinal": bytes.fromhex("66e7b564"),
    "holdings": bytes.fromhex("ae9ee18c"),
    "adjudicator": bytes.fromhex("53c2ed8e"),
    "token": bytes.fromhex("fc0c546a"),
    "deposit": bytes.fromhex("1de26e16"),
    "withdraw": bytes.fromhex("4ed4283c"),
    "symbol": bytes.fromhex("95d89b41"),
    "decimals": bytes.fromhex("313ce567"),
    "balanceOf": bytes.fromhex("70a08231"),
    "allowance": bytes.fromhex("dd62ed3e"),
    "approve": bytes.fromhex("095ea7b3"),
}
"""First four bytes of calldata, by function name (CHAIN.md 1.3, 1.5, 1.6)."""

CHANNEL_UPDATE: Final = Bytes32.from_hex("895ef5a5fc3efd313a300b006d6ce97ff0670dfe04f6eea90417edf924fa786b")
"""Topic of ``ChannelUpdate(bytes32,uint64,uint8,uint64)``."""


# ------------------------------------------------------------------------------------------------------ core → tuples


def params_tuple(params: Params) -> tuple[object, ...]:
    """`params` as the contract's Params; no app is the zero address."""
    return (
        params.challenge_duration,
        params.nonce,
        params.parts,
        params.app or ZERO_ADDRESS,
        params.ledger_channel,
        params.virtual_channel,
    )


def state_tuple(state: State, participants: int) -> tuple[object, ...]:
    """`state` of a channel with that many `participants` as the contract's State.

    An empty index map is the identity over the participants, a shorter one is padded with zeros (PROTOCOL.md 5.5).
    """
    allocation = state.allocation
    locked = tuple((entry.id, entry.balances, _index_map(entry.index_map, participants)) for entry in allocation.locked)
    outcome = (tuple(asset.holder for asset in allocation.assets), allocation.balances, locked)
    return (state.id, state.version, outcome, state.data, state.is_final)


def _index_map(given: tuple[int, ...], participants: int) -> tuple[int, ...]:
    if not given:
        return tuple(range(participants))
    return given + (0,) * (participants - len(given))


def _signed(tx: Transaction) -> tuple[State, tuple[Sig, ...]]:
    """State and signatures of `tx`. Raises: ChainError unless it is fully signed."""
    sigs = tuple(sig for sig in tx.sigs if sig is not None)
    if tx.state is None or len(sigs) != len(tx.sigs):
        raise ChainError("only a fully signed state can be brought to the chain")
    return tx.state, sigs


# ------------------------------------------------------------------------------------------------------------ calldata


def _call(name: str, types: Sequence[str] = (), values: Sequence[Any] = ()) -> bytes:
    return SELECTORS[name] + encode(types, values)


def encode_state(state: State, participants: int) -> bytes:
    """``abi.encode(State)``, whose Keccak-256 is the state hash."""
    return encode([STATE], [state_tuple(state, participants)])


def encode_params(params: Params) -> bytes:
    """``abi.encode(Params)``, whose Keccak-256 is the channel ID."""
    return encode([PARAMS], [params_tuple(params)])


def call_disputes(channel_id: ChannelID) -> bytes:
    """Calldata of the adjudicator's `disputes`."""
    return _call("disputes", ["bytes32"], [channel_id])


def call_register(params: Params, tx: Transaction) -> bytes:
    """Calldata of `register` without sub-channels. Raises: ChainError unless `tx` is fully signed."""
    state, sigs = _signed(tx)
    signed = (params_tuple(params), state_tuple(state, len(params.parts)), sigs)
    return _call("register", [SIGNED_STATE, f"{SIGNED_STATE}[]"], [signed, ()])


def call_progress(params: Params, old: State, new: State, actor: int, sig: Sig) -> bytes:
    """Calldata of `progress` from the registered state `old` to `new`, which participant `actor` signed."""
    count = len(params.parts)
    values = [params_tuple(params), state_tuple(old, count), state_tuple(new, count), actor, sig]
    return _call("progress", [PARAMS, STATE, STATE, "uint256", "bytes"], values)


def call_conclude(params: Params, state: State) -> bytes:
    """Calldata of `conclude` without sub-channels."""
    values = [params_tuple(params), state_tuple(state, len(params.parts)), ()]
    return _call("conclude", [PARAMS, STATE, f"{STATE}[]"], values)


def call_conclude_final(params: Params, tx: Transaction) -> bytes:
    """Calldata of `concludeFinal`. Raises: ChainError unless `tx` is fully signed."""
    state, sigs = _signed(tx)
    values = [params_tuple(params), state_tuple(state, len(params.parts)), sigs]
    return _call("concludeFinal", [PARAMS, STATE, "bytes[]"], values)


def call_holdings(funding_id: Bytes32) -> bytes:
    """Calldata of a holder's `holdings`."""
    return _call("holdings", ["bytes32"], [funding_id])


def call_adjudicator() -> bytes:
    """Calldata of a holder's `adjudicator`."""
    return _call("adjudicator")


def call_token() -> bytes:
    """Calldata of an ERC20 holder's `token`."""
    return _call("token")


def call_deposit(funding_id: Bytes32, amount: int) -> bytes:
    """Calldata of a holder's `deposit`."""
    return _call("deposit", ["bytes32", "uint256"], [funding_id, amount])


def call_withdraw(channel_id: ChannelID, participant: Address, receiver: Address, amount: int, sig: Sig) -> bytes:
    """Calldata of a holder's `withdraw`; `sig` is the participant's signature on the authorization."""
    return _call("withdraw", [WITHDRAWAL_AUTH, "bytes"], [(channel_id, participant, receiver, amount), sig])


def call_symbol() -> bytes:
    """Calldata of a token's `symbol`."""
    return _call("symbol")


def call_decimals() -> bytes:
    """Calldata of a token's `decimals`."""
    return _call("decimals")


def call_balance_of(account: Address) -> bytes:
    """Calldata of a token's `balanceOf`."""
    return _call("balanceOf", ["address"], [account])


def call_allowance(owner: Address, spender: Address) -> bytes:
    """Calldata of a token's `allowance`."""
    return _call("allowance", ["address", "address"], [owner, spender])


def call_approve(spender: Address, amount: int) -> bytes:
    """Calldata of a token's `approve`."""
    return _call("approve", ["address", "uint256"], [spender, amount])


def holder_arguments(adjudicator: Address, token: Address) -> bytes:
    """Constructor arguments of the ERC20 asset holder."""
    return encode(["address", "address"], [adjudicator, token])


# ------------------------------------------------------------------------------------------------- calldata, read back


def told_state(data: bytes, params: Params, channel_id: ChannelID) -> Transaction | None:
    """The state of the channel that calldata of `register` or `progress` brings, with the signatures it has there.

    None when the calldata is of another function, tells of another channel, or cannot be decoded. Whether the state is
    what the contract stores, only its hash can tell. Only what the contract has hashed is decoded: the sub-channels
    of a registration are not, as surplus ones could be anything.
    """
    try:
        if data[:4] == SELECTORS["register"]:
            (_, state, sigs), _ = decode([SIGNED_STATE, "uint256"], data[4:])
            slots: dict[int, bytes] = dict(enumerate(sigs))
        elif data[:4] == SELECTORS["progress"]:
            _, _, state, actor, sig = decode([PARAMS, "uint256", STATE, "uint256", "bytes"], data[4:])
            slots = {actor: sig}
        else:
            return None
    except (DecodingError, OverflowError, UnicodeDecodeError):
        return None
    count = len(params.parts)
    if state[0] != channel_id or any(part >= count or len(sig) != Sig.SIZE for part, sig in slots.items()):
        return None
    return Transaction(
        _state(state, params), tuple(Sig(slots[part]) if part in slots else None for part in range(count))
    )


def _state(values: tuple[Any, ...], params: Params) -> State:
    channel_id, version, (assets, balances, locked), data, is_final = values
    allocation = Allocation(
        tuple(Asset(Address.from_hex(asset)) for asset in assets),
        tuple(tuple(row) for row in balances),
        tuple(SubAlloc(ChannelID(sub), tuple(row), tuple(index_map)) for sub, row, index_map in locked),
    )
    return State(ChannelID(channel_id), version, allocation, is_final, params.app, data)


# ------------------------------------------------------------------------------------------------------------- results


def _decode(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    try:
        return decode(types, data)
    except (DecodingError, OverflowError, UnicodeDecodeError) as error:
        raise ChainError(f"a contract's answer of {len(data)} bytes is not ({','.join(types)})") from error


def uint(data: bytes) -> int:
    """One uint256. Raises: ChainError."""
    return int(_decode(["uint256"], data)[0])


def address(data: bytes) -> Address:
    """One address. Raises: ChainError."""
    _decode(["address"], data)
    return Address(data[12:32])


def text(data: bytes) -> str:
    """A token's symbol: a string, or a bytes32 padded with zeros. Raises: ChainError."""
    if len(data) == 32:
        raw = data.rstrip(b"\0")
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ChainError("a contract's text is not UTF-8") from error
    return str(_decode(["string"], data)[0])


def dispute(data: bytes) -> Dispute:
    """Answer of `disputes`; registered means that a state hash is stored (CHAIN.md 1.3). Raises: ChainError."""
    timeout, duration, version, has_app, phase, state_hash = _decode(
        ["uint64", "uint64", "uint64", "bool", "uint8", "bytes32"], data
    )
    if state_hash == bytes(32):
        return Dispute(registered=False)
    return Dispute(
        registered=True,
        timeout=timeout,
        challenge_duration=duration,
        version=version,
        has_app=has_app,
        phase=_phase(phase),
        state_hash=Bytes32(state_hash),
    )


def channel_event(
    *, topics: Sequence[bytes], data: bytes, block_number: int, block_hash: bytes, log_index: int, tx_hash: bytes
) -> ChannelEvent:
    """A ChannelUpdate log of the adjudicator. Raises: ChainError when it is not one."""
    if len(topics) != 2 or topics[0] != CHANNEL_UPDATE:
        raise ChainError("the adjudicator emitted a log that is not a ChannelUpdate")
    version, phase, timeout = _decode(["uint64", "uint8", "uint64"], data)
    return ChannelEvent(
        channel_id=ChannelID(topics[1]),
        version=version,
        phase=_phase(phase),
        timeout=timeout,
        block_number=block_number,
        block_hash=Bytes32(block_hash),
        log_index=log_index,
        tx_hash=Bytes32(tx_hash),
    )


def _phase(number: int) -> DisputePhase:
    try:
        return DisputePhase(number)
    except ValueError as error:
        raise ChainError(f"unknown dispute phase {number}") from error


def revert_reason(data: bytes) -> str:
    """What revert data says: the text of ``Error(string)``, the number of ``Panic(uint256)``, else ""."""
    try:
        if data[:4] == bytes.fromhex("08c379a0"):
            return str(decode(["string"], data[4:])[0])
        if data[:4] == bytes.fromhex("4e487b71"):
            return f"panic 0x{decode(['uint256'], data[4:])[0]:02x}"
    except (DecodingError, OverflowError, UnicodeDecodeError):
        return ""
    return ""

"""Reading states, parameters and messages in the wire form of profile gp090 (PROTOCOL.md 1.6, 3).

Strict: everything that an honest peer never writes and that later code must be able to rely on (dimensions, ranges,
no duplicates) is a DecodeError. Meaning (signatures, versions, sums) is left to the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final

from ..apps.registry import AppRegistry
from ..channel import Allocation, Asset, Balances, Params, State, SubAlloc, Transaction, WirePhase
from ..channel.rules import MAX_ASSETS, MAX_LOCKED
from ..errors import DecodeError, RuleViolated
from ..values import MAX_UINT256, Address, Bytes32, ChannelID, ProposalID, Sig
from . import messages as m
from .encoding import MAX_PARTS
from .perunio import (
    ADDRESS_BYTES,
    Parser,
    parse_address,
    parse_addresses,
    parse_amounts,
    parse_bigint,
    parse_bin,
    parse_bool,
    parse_i64,
    parse_ids,
    parse_index_map,
    parse_sparse_sigs,
    parse_string,
    parse_u8,
    parse_u16,
    parse_u64,
)

_HH: Final = Struct("<HH")
_HHH: Final = Struct("<HHH")
_STATE_HEAD: Final = Struct("<32sQ")
_SUB_ALLOC_HEAD: Final = Struct("<32sH")
_UPDATE_TAIL: Final = Struct("<H65s")
_ACC: Final = Struct("<32sQ65s")
_PROPOSAL_HEAD: Final = Struct("<32sQ32s")
_ENVELOPE_MIDDLE: Final = ADDRESS_BYTES + 1


# ------------------------------------------------------------------------------------------------------------- values


def parse_opt_app(apps: AppRegistry | None) -> Parser[Address | None]:
    """The app's definition, or None. With `apps`, an app this node does not run is refused (PROTOCOL.md 3.3)."""
    if not (yield from parse_bool()):
        return None
    address = yield from parse_address()
    if apps is not None and apps.get(address) is None:
        raise DecodeError(f"unknown app {address.checksum}")
    return address


def parse_app_data(app: Address | None, apps: AppRegistry) -> Parser[bytes]:
    """Data of `app`, a known one; of length 0 it is the app's default. Without app there is none (PROTOCOL.md 1.6)."""
    data = yield from parse_bin()
    if app is None:
        if data:
            raise DecodeError("app data in a channel without app")
        return b""
    rules = apps.get(app)
    if rules is None:
        raise DecodeError(f"unknown app {app.checksum}")
    try:
        if not data:
            return rules.default_data()
        rules.check_data(data)
    except RuleViolated as error:
        raise DecodeError(f"app data refused by the app: {error.problem}") from error
    except Exception as error:  # an app that fails to judge has not agreed
        raise DecodeError("the app failed to judge its data") from error
    return data


def parse_app_and_data(apps: AppRegistry) -> Parser[tuple[Address | None, bytes]]:
    """App and data as they stand together in states and proposals."""
    app = yield from parse_opt_app(apps)
    return app, (yield from parse_app_data(app, apps))


def parse_balances() -> Parser[Balances]:
    """Asset by asset; no rows with participants is refused, because it cannot be written back (PROTOCOL.md 1.6)."""
    assets, parts = _HH.unpack((yield 4))
    if assets > MAX_ASSETS or parts > MAX_PARTS or (parts and not assets):
        raise DecodeError(f"balances of {assets} assets and {parts} participants")
    flat = yield from parse_amounts(assets * parts)
    if assets == 1:
        return (flat,)
    return tuple(flat[row * parts : (row + 1) * parts] for row in range(assets))


def parse_allocation() -> Parser[Allocation]:
    """Dimensions must agree, assets and locked IDs must be unique (PROTOCOL.md 1.5, 1.6, 5.4)."""
    count, parts, locked_count = _HHH.unpack((yield 6))
    if not 1 <= count <= MAX_ASSETS or not 1 <= parts <= MAX_PARTS or locked_count > MAX_LOCKED:
        raise DecodeError(f"allocation of {count} assets, {parts} participants, {locked_count} locked entries")
    holders = yield from parse_addresses(count)
    if len(set(holders)) != count:
        raise DecodeError("duplicate assets")
    balances = yield from parse_balances()
    if len(balances) != count or len(balances[0]) != parts:
        raise DecodeError("dimensions of the balances differ from those of the allocation")
    assets = tuple(Asset(holder) for holder in holders)
    if not locked_count:
        return Allocation(assets, balances)
    locked: list[SubAlloc] = []
    for _ in range(locked_count):
        locked.append((yield from parse_sub_alloc(count, parts)))
    if len({entry.id for entry in locked}) != locked_count:
        raise DecodeError("duplicate IDs of locked funds")
    return Allocation(assets, balances, tuple(locked))


def parse_sub_alloc(assets: int, parts: int) -> Parser[SubAlloc]:
    """A locked entry inside an allocation of `assets` assets and `parts` participants."""
    id_, count = _SUB_ALLOC_HEAD.unpack((yield _SUB_ALLOC_HEAD.size))
    if count != assets:
        raise DecodeError(f"locked entry with {count} balances for {assets} assets")
    amounts = yield from parse_amounts(count)
    return SubAlloc(ChannelID(id_), amounts, (yield from parse_index_map(parts)))


def parse_state(apps: AppRegistry) -> Parser[State]:
    """PROTOCOL.md 3.4."""
    id_, version = _STATE_HEAD.unpack((yield _STATE_HEAD.size))
    allocation = yield from parse_allocation()
    is_final = yield from parse_bool()
    app = yield from parse_opt_app(apps)
    data = yield from parse_app_data(app, apps)
    return State(ChannelID(id_), version, allocation, is_final, app, data)


def parse_params(apps: AppRegistry | None) -> Parser[Params]:
    """Parameters that may exist; 5.2 asks for more (PROTOCOL.md 1.6, 3.4). `apps` as in `parse_opt_app`."""
    duration = yield from parse_u64()
    if not duration:
        raise DecodeError("challenge duration 0")
    count = yield from parse_u16()
    if not 2 <= count <= MAX_PARTS:
        raise DecodeError(f"parameters of {count} participants")
    parts = yield from parse_addresses(count)
    app = yield from parse_opt_app(apps)
    nonce = yield from parse_bigint()
    if nonce > MAX_UINT256:
        raise DecodeError("nonce of more than 32 bytes")
    ledger = yield from parse_bool()
    virtual = yield from parse_bool()
    if ledger and virtual:
        raise DecodeError("both a ledger channel and a virtual channel")
    return Params(duration, parts, app, nonce, ledger, virtual)


def parse_transaction(apps: AppRegistry) -> Parser[Transaction]:
    """An optional state with optional signatures."""
    state_set = yield from parse_u8()
    if state_set == 0:
        return Transaction(None)
    if state_set != 1:
        raise DecodeError(f"transaction starts with {state_set}")
    state = yield from parse_state(apps)
    return Transaction(state, (yield from parse_sparse_sigs(len(state.balances[0]))))


# ----------------------------------------------------------------------------------------------------------- messages


def parse_envelope(apps: AppRegistry) -> Parser[m.Envelope]:
    """One whole message with its addresses (PROTOCOL.md 3.1)."""
    sender = yield from parse_address()
    recipient = yield from parse_address()
    kind = yield from parse_u8()
    body = _BODIES.get(kind)
    if body is None:
        raise DecodeError(f"unknown message type {kind}")
    return m.Envelope(sender, recipient, (yield from body(apps)))


def _parse_ping(apps: AppRegistry) -> Parser[m.Ping]:
    return m.Ping((yield from parse_i64()))


def _parse_pong(apps: AppRegistry) -> Parser[m.Pong]:
    return m.Pong((yield from parse_i64()))


def _parse_shutdown(apps: AppRegistry) -> Parser[m.Shutdown]:
    return m.Shutdown((yield from parse_string()))


def _parse_auth_response(apps: AppRegistry) -> Parser[m.AuthResponse]:
    yield 0
    return m.AuthResponse()


def _parse_base_proposal(apps: AppRegistry) -> Parser[m.BaseProposal]:
    id_, duration, share = _PROPOSAL_HEAD.unpack((yield _PROPOSAL_HEAD.size))
    app, data = yield from parse_app_and_data(apps)
    allocation = yield from parse_allocation()
    agreement = yield from parse_balances()
    return m.BaseProposal(ProposalID(id_), duration, Bytes32(share), app, data, allocation, agreement)


def _parse_base_acc() -> Parser[m.BaseProposalAcc]:
    chunk = yield 64
    return m.BaseProposalAcc(ProposalID(chunk[:32]), Bytes32(chunk[32:]))


def _parse_ledger_proposal(apps: AppRegistry) -> Parser[m.LedgerProposal]:
    base = yield from _parse_base_proposal(apps)
    participant = yield from parse_address()
    count = yield from parse_u16()
    if not 2 <= count <= MAX_PARTS:
        raise DecodeError(f"proposal with {count} peers")
    return m.LedgerProposal(base, participant, (yield from parse_addresses(count)))


def _parse_ledger_acc(apps: AppRegistry) -> Parser[m.LedgerProposalAcc]:
    return m.LedgerProposalAcc((yield from _parse_base_acc()), (yield from parse_address()))


def _parse_sub_proposal(apps: AppRegistry) -> Parser[m.SubProposal]:
    return m.SubProposal((yield from _parse_base_proposal(apps)), ChannelID((yield 32)))


def _parse_sub_acc(apps: AppRegistry) -> Parser[m.SubProposalAcc]:
    return m.SubProposalAcc((yield from _parse_base_acc()))


def _parse_virtual_acc(apps: AppRegistry) -> Parser[m.VirtualProposalAcc]:
    return m.VirtualProposalAcc((yield from _parse_base_acc()), (yield from parse_address()))


def _parse_proposal_rej(apps: AppRegistry) -> Parser[m.ProposalRej]:
    return m.ProposalRej(ProposalID((yield 32)), (yield from parse_string()))


def _parse_virtual_proposal(apps: AppRegistry) -> Parser[m.VirtualProposal]:
    base = yield from _parse_base_proposal(apps)
    proposer = yield from parse_address()
    peers = yield from parse_addresses((yield from parse_u16()))
    parents = yield from parse_ids((yield from parse_u16()))
    maps: list[tuple[int, ...]] = []
    for _ in range((yield from parse_u16())):
        maps.append((yield from parse_index_map(len(base.init_bals.balances[0]))))
    return m.VirtualProposal(base, proposer, peers, tuple(ChannelID(parent) for parent in parents), tuple(maps))


def _parse_update(apps: AppRegistry) -> Parser[m.Update]:
    state = yield from parse_state(apps)
    actor, sig = _UPDATE_TAIL.unpack((yield _UPDATE_TAIL.size))
    return m.Update(state, actor, Sig(sig))


def _parse_virtual_funding(apps: AppRegistry) -> Parser[m.VirtualFunding]:
    update = yield from _parse_update(apps)
    params = yield from parse_params(apps)
    state = yield from parse_state(apps)
    index_map = yield from parse_index_map(len(update.state.balances[0]))
    sigs = yield from parse_sparse_sigs(len(state.balances[0]))
    return m.VirtualFunding(update, m.SignedState(params, state, sigs), index_map)


def _parse_virtual_settlement(apps: AppRegistry) -> Parser[m.VirtualSettlement]:
    update = yield from _parse_update(apps)
    params = yield from parse_params(apps)
    state = yield from parse_state(apps)
    sigs = yield from parse_sparse_sigs(len(state.balances[0]))
    return m.VirtualSettlement(update, m.SignedState(params, state, sigs))


def _parse_update_acc(apps: AppRegistry) -> Parser[m.UpdateAcc]:
    id_, version, sig = _ACC.unpack((yield _ACC.size))
    return m.UpdateAcc(ChannelID(id_), version, Sig(sig))


def _parse_update_rej(apps: AppRegistry) -> Parser[m.UpdateRej]:
    id_, version = _STATE_HEAD.unpack((yield _STATE_HEAD.size))
    return m.UpdateRej(ChannelID(id_), version, (yield from parse_string()))


def _parse_sync(apps: AppRegistry) -> Parser[m.Sync]:
    phase = yield from parse_u8()
    if phase > max(WirePhase):
        raise DecodeError(f"unknown phase {phase}")
    return m.Sync(phase, (yield from parse_transaction(apps)))


_BODIES: Final[Mapping[int, Callable[[AppRegistry], Parser[m.Message]]]] = {
    m.MessageType.PING: _parse_ping,
    m.MessageType.PONG: _parse_pong,
    m.MessageType.SHUTDOWN: _parse_shutdown,
    m.MessageType.AUTH_RESPONSE: _parse_auth_response,
    m.MessageType.LEDGER_PROPOSAL: _parse_ledger_proposal,
    m.MessageType.LEDGER_PROPOSAL_ACC: _parse_ledger_acc,
    m.MessageType.SUB_PROPOSAL: _parse_sub_proposal,
    m.MessageType.SUB_PROPOSAL_ACC: _parse_sub_acc,
    m.MessageType.VIRTUAL_PROPOSAL: _parse_virtual_proposal,
    m.MessageType.VIRTUAL_PROPOSAL_ACC: _parse_virtual_acc,
    m.MessageType.PROPOSAL_REJ: _parse_proposal_rej,
    m.MessageType.UPDATE: _parse_update,
    m.MessageType.VIRTUAL_FUNDING: _parse_virtual_funding,
    m.MessageType.VIRTUAL_SETTLEMENT: _parse_virtual_settlement,
    m.MessageType.UPDATE_ACC: _parse_update_acc,
    m.MessageType.UPDATE_REJ: _parse_update_rej,
    m.MessageType.SYNC: _parse_sync,
}
"""What follows each type byte (PROTOCOL.md 3.2)."""

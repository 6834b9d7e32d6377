"""Writing states, parameters and messages in the wire form of profile gp090 (PROTOCOL.md 3).

Only what the peer could not read back is refused here: dimensions, lengths, ranges. Meaning is checked by the rules.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from ..channel import Allocation, Asset, Balances, Params, State, SubAlloc, Transaction, WirePhase
from ..channel.rules import MAX_ASSETS, MAX_LOCKED
from ..errors import EncodeError
from ..values import MAX_UINT256, Address, ChannelID
from . import messages as m
from .perunio import (
    write_address,
    write_amounts,
    write_bigint,
    write_bin,
    write_i64,
    write_index_map,
    write_sparse_sigs,
    write_string,
    write_u16,
    write_u64,
)

MAX_PARTS: Final = 1024

_HHH: Final = Struct("<HHH")
_HH: Final = Struct("<HH")


def write_opt_app(out: bytearray, app: Address | None) -> None:
    """One flag byte, then the app's definition if there is one."""
    if app is None:
        out.append(0)
    else:
        out.append(1)
        write_address(out, app)


def write_app_and_data(out: bytearray, app: Address | None, data: bytes) -> None:
    """Raises: EncodeError when there is data without an app, or more than 65535 bytes of it."""
    if app is None:
        if data:
            raise EncodeError("app data in a channel without app")
        out += b"\x00\x00\x00"
    else:
        write_opt_app(out, app)
        write_bin(out, data)


def write_balances(out: bytearray, balances: Balances) -> None:
    """Dimensions, then asset by asset. Raises: EncodeError when ragged or too large."""
    parts = len(balances[0]) if balances else 0
    if len(balances) > MAX_ASSETS or parts > MAX_PARTS:
        raise EncodeError(f"balances of {len(balances)} assets and {parts} participants")
    out += _HH.pack(len(balances), parts)
    for row in balances:
        if len(row) != parts:
            raise EncodeError("balances are ragged")
        write_amounts(out, row)


def write_allocation(out: bytearray, allocation: Allocation) -> None:
    """Raises: EncodeError when the dimensions do not fit each other or a limit (PROTOCOL.md 1.5, 5.4)."""
    assets, balances, locked = allocation.assets, allocation.balances, allocation.locked
    count = len(assets)
    if not 1 <= count <= MAX_ASSETS or count != len(balances):
        raise EncodeError(f"{count} assets with {len(balances)} rows of balances")
    parts = len(balances[0])
    if not 1 <= parts <= MAX_PARTS or len(locked) > MAX_LOCKED:
        raise EncodeError(f"{parts} participants with {len(locked)} locked entries")
    out += _HHH.pack(count, parts, len(locked))
    for asset in assets:
        write_asset(out, asset)
    write_balances(out, balances)
    for entry in locked:
        write_sub_alloc(out, entry, count)


def write_sub_alloc(out: bytearray, entry: SubAlloc, assets: int) -> None:
    """A locked entry inside an allocation of `assets` assets. Raises: EncodeError."""
    if len(entry.balances) != assets:
        raise EncodeError(f"locked entry with {len(entry.balances)} balances for {assets} assets")
    out += entry.id
    write_u16(out, assets)
    write_amounts(out, entry.balances)
    write_index_map(out, entry.index_map)


def write_asset(out: bytearray, asset: Asset) -> None:
    """The asset holder's address; this profile knows no other ledger. Raises: EncodeError for assets of another one."""
    if asset.chain_id != 0 or asset.backend_id != 1:
        raise EncodeError("profile gp090 cannot express assets of another ledger")
    write_address(out, asset.holder)


def write_state(out: bytearray, state: State) -> None:
    """Raises: EncodeError."""
    out += state.id
    write_u64(out, state.version, "version")
    write_allocation(out, state.allocation)
    out.append(1 if state.is_final else 0)
    write_app_and_data(out, state.app, state.data)


def write_params(out: bytearray, params: Params) -> None:
    """Raises: EncodeError when the peer's decoder would refuse them (PROTOCOL.md 1.5)."""
    if params.challenge_duration == 0 or not 2 <= len(params.parts) <= MAX_PARTS:
        raise EncodeError("parameters without challenge duration, or with an impossible number of participants")
    if not 0 <= params.nonce <= MAX_UINT256:
        raise EncodeError("nonce out of range")
    write_u64(out, params.challenge_duration, "challenge duration")
    write_u16(out, len(params.parts))
    for part in params.parts:
        write_address(out, part)
    write_opt_app(out, params.app)
    write_bigint(out, params.nonce)
    out.append(1 if params.ledger_channel else 0)
    out.append(1 if params.virtual_channel else 0)


def write_transaction(out: bytearray, tx: Transaction) -> None:
    """Raises: EncodeError; also when the number of signature slots is not the number of participants."""
    if tx.state is None:
        if any(sig is not None for sig in tx.sigs):
            raise EncodeError("signatures without a state")
        out.append(0)
        return
    out.append(1)
    write_state(out, tx.state)
    write_sparse_sigs(out, tx.sigs, len(tx.state.balances[0]))


# ----------------------------------------------------------------------------------------------------------- messages


def write_envelope(out: bytearray, envelope: m.Envelope) -> None:
    """Sender, recipient, type byte, body. Raises: EncodeError."""
    write_address(out, envelope.sender)
    write_address(out, envelope.recipient)
    out.append(envelope.message.TYPE)
    _write_body(out, envelope.message)


def _write_body(out: bytearray, message: m.Message) -> None:  # the frequent ones stand first
    match message:
        case m.Update():
            _update(out, message)
        case m.UpdateAcc():
            _update_acc(out, message)
        case m.UpdateRej():
            _update_rej(out, message)
        case m.Sync():
            _sync(out, message)
        case m.LedgerProposal():
            _ledger_proposal(out, message)
        case m.LedgerProposalAcc():
            _ledger_acc(out, message)
        case m.ProposalRej():
            _proposal_rej(out, message)
        case m.SubProposal():
            _sub_proposal(out, message)
        case m.SubProposalAcc():
            _base_acc(out, message.base)
        case m.VirtualProposal():
            _virtual_proposal(out, message)
        case m.VirtualProposalAcc():
            _virtual_acc(out, message)
        case m.VirtualFunding():
            _virtual_funding(out, message)
        case m.VirtualSettlement():
            _virtual_settlement(out, message)
        case m.Ping() | m.Pong():
            write_i64(out, message.created, "time")
        case m.Shutdown():
            write_string(out, message.reason)
        case m.AuthResponse():
            pass
        case _:
            raise EncodeError(f"no wire form for {type(message).__name__}")


def _base_proposal(out: bytearray, base: m.BaseProposal) -> None:
    out += base.proposal_id
    write_u64(out, base.challenge_duration, "challenge duration")
    out += base.nonce_share
    write_app_and_data(out, base.app, base.init_data)
    write_allocation(out, base.init_bals)
    write_balances(out, base.funding_agreement)


def _peers(out: bytearray, peers: tuple[Address, ...]) -> None:
    write_u16(out, len(peers), "number of peers")
    for peer in peers:
        write_address(out, peer)


def _ledger_proposal(out: bytearray, message: m.LedgerProposal) -> None:
    if not 2 <= len(message.peers) <= MAX_PARTS:
        raise EncodeError(f"proposal with {len(message.peers)} peers")
    _base_proposal(out, message.base)
    write_address(out, message.participant)
    _peers(out, message.peers)


def _sub_proposal(out: bytearray, message: m.SubProposal) -> None:
    _base_proposal(out, message.base)
    out += message.parent


def _virtual_proposal(out: bytearray, message: m.VirtualProposal) -> None:
    _base_proposal(out, message.base)
    write_address(out, message.proposer)
    _peers(out, message.peers)
    write_u16(out, len(message.parents), "number of parents")
    for parent in message.parents:
        out += parent
    write_u16(out, len(message.index_maps), "number of index maps")
    for entries in message.index_maps:
        write_index_map(out, entries)


def _base_acc(out: bytearray, base: m.BaseProposalAcc) -> None:
    out += base.proposal_id
    out += base.nonce_share


def _ledger_acc(out: bytearray, message: m.LedgerProposalAcc) -> None:
    _base_acc(out, message.base)
    write_address(out, message.participant)


def _virtual_acc(out: bytearray, message: m.VirtualProposalAcc) -> None:
    _base_acc(out, message.base)
    write_address(out, message.responder)


def _proposal_rej(out: bytearray, message: m.ProposalRej) -> None:
    out += message.proposal_id
    write_string(out, message.reason)


def _update(out: bytearray, message: m.Update) -> None:
    write_state(out, message.state)
    write_u16(out, message.actor, "actor")
    out += message.sig


def _signed_head(out: bytearray, signed: m.SignedState) -> int:
    write_params(out, signed.params)
    write_state(out, signed.state)
    return len(signed.state.balances[0])


def _virtual_funding(out: bytearray, message: m.VirtualFunding) -> None:
    _update(out, message.update)
    parts = _signed_head(out, message.initial)
    write_index_map(out, message.index_map)
    write_sparse_sigs(out, message.initial.sigs, parts)


def _virtual_settlement(out: bytearray, message: m.VirtualSettlement) -> None:
    _update(out, message.update)
    write_sparse_sigs(out, message.final.sigs, _signed_head(out, message.final))


def _answer_head(out: bytearray, channel_id: ChannelID, version: int) -> None:
    out += channel_id
    write_u64(out, version, "version")


def _update_acc(out: bytearray, message: m.UpdateAcc) -> None:
    _answer_head(out, message.channel_id, message.version)
    out += message.sig


def _update_rej(out: bytearray, message: m.UpdateRej) -> None:
    _answer_head(out, message.channel_id, message.version)
    write_string(out, message.reason)


def _sync(out: bytearray, message: m.Sync) -> None:
    if not 0 <= message.phase <= max(WirePhase):
        raise EncodeError(f"phase {message.phase}")
    out.append(message.phase)
    write_transaction(out, message.current)

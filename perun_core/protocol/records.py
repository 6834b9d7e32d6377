"""What the core stores about channels, and its byte form. The only place that knows stored formats.

A record is msgpack of a flat structure around wire-form parameters and transactions; `format` grows when it changes.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from ..apps.registry import AppRegistry
from ..channel import Params, Phase, State, Transaction
from ..errors import DecodeError, StoreBroken
from ..ports.store import Delete, Op, Put, PutNew, Table
from ..profile import Profile
from ..values import Address, Bytes32, ChannelID, Sig

SEQUENCE: Final = b"sequence"
"""Key in `Table.META` of what `sequence_mark` writes."""
FORMAT: Final = 1


class Staged(Struct, frozen=True):
    """The next state while signatures are collected.

    `ours`: we proposed it (then the peer's signature is missing until it accepts), else the peer did.
    """

    state: State
    ours: bool
    peer_sig: Sig | None = None


class Forced(Struct, frozen=True):
    """A progression on chain that we signed: from the registered state `old` to `new` (PROTOCOL.md 7.10)."""

    old: State
    new: State
    deadline: int
    """Block time by which it has to be mined, Unix seconds."""


class ChannelRecord(Struct, frozen=True):
    """Everything a channel needs to go on after a crash."""

    channel_id: ChannelID
    sequence: int
    """Opening order within the session, from 1."""
    params: Params
    own_index: int
    peer: Address
    """The peer's network identity."""
    chain_id: int
    adjudicator: Address
    """Where the channel lives: parameters alone do not tell (PROTOCOL.md Q-50)."""
    phase: Phase
    current: Transaction
    """Newest fully signed transaction; while opening version 0 with our or no signature."""
    staged: Staged | None = None
    candidates: tuple[Bytes32, ...] = ()
    """Hashes of states of version current + 1 that we signed and that did not become current (PROTOCOL.md 7.3.5)."""
    candidate_states: tuple[State, ...] = ()
    """The states behind `candidates`."""
    refused: tuple[Bytes32, ...] = ()
    """Hashes of the peer's proposals for version current + 1 that we refused (`protocol.promises`)."""
    primary: bool = False
    """We asked for the closing, so we conclude first."""
    deposited: bool = False
    """A deposit of ours was, or may have been, sent."""
    concluded_version: int | None = None
    forced: Forced | None = None
    """The newest progression we signed; its states may be what is registered."""
    reopened: bool = False
    """A reorg undid a settlement that its user knows as done; it is brought about again without telling anybody."""
    recovered: int | None = None
    """The version at which recovery mode ended, until a newer one is fully signed (`protocol.promises`)."""
    given_up: tuple[Bytes32, ...] = ()
    """Those of `candidates` that the peer surely refused (`protocol.promises`)."""


class _Stored(Struct, frozen=True, array_like=True):
    format: int
    sequence: int
    params: bytes
    own_index: int
    peer: bytes
    chain_id: int
    adjudicator: bytes
    phase: str
    current: bytes
    staged: bytes | None
    staged_ours: bool
    candidates: tuple[bytes, ...]
    refused: tuple[bytes, ...]
    primary: bool
    deposited: bool
    concluded_version: int | None
    forced: tuple[bytes, bytes, int] | None = None
    reopened: bool = False
    recovered: int | None = None
    given_up: tuple[bytes, ...] = ()


class Signing(Struct, frozen=True):
    """A state we are about to sign, as the signing guard knows it."""

    version: int
    digest: Bytes32
    """Hash of the state, the very one that is signed afterwards."""


class RecordCodec:
    """Turns records into store operations and back, with the formats of one profile."""

    def __init__(self, profile: Profile, apps: AppRegistry) -> None:
        self._profile = profile
        self._apps = apps
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Stored).decode
        self._params: dict[ChannelID, bytes] = {}

    def _params_bytes(self, record: ChannelRecord) -> bytes:
        known = self._params.get(record.channel_id)
        if known is None:
            known = self._params[record.channel_id] = self._profile.encode_params(record.params)
        return known

    def encode(self, record: ChannelRecord) -> bytes:
        """The stored form."""
        profile, staged = self._profile, record.staged
        count = len(record.params.parts)
        staged_tx = None
        if staged is not None:
            sigs: list[Sig | None] = [None] * count
            sigs[1 - record.own_index] = staged.peer_sig
            staged_tx = profile.encode_transaction(Transaction(staged.state, tuple(sigs)))
        unsigned: tuple[Sig | None, ...] = (None,) * count
        forced = record.forced
        return self._encode(
            _Stored(
                FORMAT,
                record.sequence,
                self._params_bytes(record),
                record.own_index,
                bytes(record.peer),
                record.chain_id,
                bytes(record.adjudicator),
                record.phase.value,
                profile.encode_transaction(record.current),
                staged_tx,
                staged is not None and staged.ours,
                tuple(profile.encode_transaction(Transaction(state, unsigned)) for state in record.candidate_states),
                tuple(bytes(digest) for digest in record.refused),
                record.primary,
                record.deposited,
                record.concluded_version,
                None
                if forced is None
                else (
                    profile.encode_transaction(Transaction(forced.old, unsigned)),
                    profile.encode_transaction(Transaction(forced.new, unsigned)),
                    forced.deadline,
                ),
                record.reopened,
                record.recovered,
                tuple(bytes(digest) for digest in record.given_up),
            )
        )

    def decode(self, key: bytes, value: bytes) -> ChannelRecord:
        """The record stored under `key`. Raises: StoreBroken when it is damaged or of an unknown format."""
        try:
            stored = self._decode(value)
            if stored.format != FORMAT:
                raise StoreBroken(f"channel record of unknown format {stored.format}")
            params = self._profile.decode_params(stored.params)
            channel_id = ChannelID(key)
            if self._profile.channel_id(params) != channel_id:
                raise StoreBroken(f"channel record {key.hex()} does not belong to its key")
            staged = None
            if stored.staged is not None:
                tx = self._profile.decode_transaction(stored.staged, self._apps)
                assert tx.state is not None
                staged = Staged(tx.state, stored.staged_ours, tx.sigs[1 - stored.own_index])
            candidates = [self._decode_state(data) for data in stored.candidates]
            forced = None
            if stored.forced is not None:
                old, new, deadline = stored.forced
                forced = Forced(self._decode_state(old), self._decode_state(new), deadline)
            return ChannelRecord(
                channel_id=channel_id,
                sequence=stored.sequence,
                params=params,
                own_index=stored.own_index,
                peer=Address(stored.peer),
                chain_id=stored.chain_id,
                adjudicator=Address(stored.adjudicator),
                phase=Phase(stored.phase),
                current=self._profile.decode_transaction(stored.current, self._apps),
                staged=staged,
                candidates=tuple(self._profile.state_hash(state) for state in candidates),
                candidate_states=tuple(candidates),
                refused=tuple(Bytes32(digest) for digest in stored.refused),
                primary=stored.primary,
                deposited=stored.deposited,
                concluded_version=stored.concluded_version,
                forced=forced,
                reopened=stored.reopened,
                recovered=stored.recovered,
                given_up=tuple(Bytes32(digest) for digest in stored.given_up),
            )
        except (msgspec.MsgspecError, DecodeError, ValueError) as error:
            raise StoreBroken(f"channel record {key.hex()} is damaged: {error}") from error

    def _decode_state(self, data: bytes) -> State:
        state = self._profile.decode_transaction(data, self._apps).state
        assert state is not None
        return state

    def operations(
        self,
        record: ChannelRecord,
        *,
        signing: Signing | None = None,
        claim: bool = False,
        archive: bool = False,
        head: int | None = None,
    ) -> tuple[Op, ...]:
        """One atomic batch that stores `record` and, when asked, marks a state as signed, claims the ID or archives.

        What is archived after a settlement on chain stays watched from block `head` on, None for the next one seen.
        """
        key, value = bytes(record.channel_id), self.encode(record)
        ops: list[Op] = []
        if claim:
            ops.append(PutNew(Table.USED, key, record.sequence.to_bytes(8, "big")))
        if signing is not None:
            digest = signing.digest
            number = record.candidates.index(digest) if digest in record.candidates else len(record.candidates)
            ops.append(PutNew(Table.SIGNED, guard_key(record.channel_id, signing.version, number), bytes(digest)))
        elif (tx := record.current.state) is not None and record.staged is None and tx.version:
            ops.append(Delete(Table.SIGNED, guard_key(record.channel_id, tx.version - 1, 0)))
        if archive:
            ops += [Delete(Table.CHANNELS, key), Put(Table.ARCHIVE, key, value)]
            if record.concluded_version is not None:
                ops.append(settled_mark(record.channel_id, head))
            self._params.pop(record.channel_id, None)
        else:
            ops.append(Put(Table.CHANNELS, key, value))
            if record.reopened:
                ops += [Delete(Table.ARCHIVE, key), settled_for_good(record.channel_id)]
        return tuple(ops)


def sequence_mark(highest: int) -> Put:
    """The highest channel number that was given out in the session."""
    return Put(Table.META, SEQUENCE, highest.to_bytes(8, "big"))


def guard_key(channel_id: ChannelID, version: int, candidate: int) -> bytes:
    """Key of the signing guard: channel, version, and which of the few candidates of that version."""
    return bytes(channel_id) + version.to_bytes(8, "big") + candidate.to_bytes(1, "big")


SETTLED_PREFIX: Final = b"settled"
"""Begins the keys of archived channels that are still watched; they are longer than an adjudicator's address."""


def settled_mark(channel_id: ChannelID, block: int | None) -> Put:
    """An archived channel stays watched, counted from `block` on; None for the next one that is seen."""
    return Put(Table.CURSORS, SETTLED_PREFIX + bytes(channel_id), b"" if block is None else block.to_bytes(8, "big"))


def settled_for_good(channel_id: ChannelID) -> Delete:
    """An archived channel need not be watched any more, or is none any more."""
    return Delete(Table.CURSORS, SETTLED_PREFIX + bytes(channel_id))


def read_settled_mark(key: bytes, value: bytes) -> tuple[ChannelID, int | None]:
    """What `settled_mark` wrote."""
    return ChannelID(key[len(SETTLED_PREFIX) :]), int.from_bytes(value, "big") if value else None


def withdrawal_guard_key(channel_id: ChannelID, holder: Address, amount: int) -> bytes:
    """Key of the guard of a withdrawal authorisation; its value is the receiver."""
    return withdrawal_guard_prefix(channel_id) + bytes(holder) + amount.to_bytes(32, "big")


def withdrawal_guard_prefix(channel_id: ChannelID) -> bytes:
    """How the keys of a channel's withdrawal guards begin."""
    return bytes(channel_id) + b"withdraw"

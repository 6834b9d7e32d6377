"""Profile gp090: what go-perun v0.9.0 with its Ethereum backend writes, hashes and signs (PROTOCOL.md 1–5).

States and parameters are hashed in their ABI form, laid out here by hand for the two fixed shapes, because a generic
ABI encoder takes ten times as long. The wire form is never hashed.
"""

from __future__ import annotations

from hashlib import sha3_256
from typing import Final

from coincurve import PublicKey

from ..apps.registry import AppRegistry
from ..channel import Params, State, Transaction
from ..errors import EncodeError, RuleViolated
from ..values import MAX_UINT64, ZERO_ADDRESS, Address, Bytes32, ChannelID, Sig, keccak256
from ..wire import codec
from ..wire.messages import Envelope
from ..wire.stream import StreamDecoder
from . import Profile

CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order n of secp256k1."""

_HALF_ORDER: Final = CURVE_ORDER // 2
_EIP191: Final = b"\x19Ethereum Signed Message:\n32"


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


_W0: Final = _word(0)
_W1: Final = _word(1)
_W20: Final = _word(0x20)
_W60: Final = _word(0x60)
_WA0: Final = _word(0xA0)
_WC0: Final = _word(0xC0)
_PAD12: Final = bytes(12)


def state_data(state: State) -> bytes:
    """ABI encoding of a state, the data that participants sign (PROTOCOL.md 5.5).

    An empty index map is written as the identity, a short one padded with zeros.
    Raises: EncodeError when a number does not fit its field (it would be cut, 5.6) or the dimensions disagree.
    """
    try:
        return _state_data(state)
    except OverflowError as error:
        raise EncodeError("a number of the state does not fit the 256 bits it is hashed in") from error


def _state_data(state: State) -> bytes:
    allocation = state.allocation
    balances = allocation.balances
    count = len(allocation.assets)
    if not count or len(balances) != count or not 0 <= state.version <= MAX_UINT64:
        raise EncodeError("a state without assets, with missing balances, or with an impossible version")
    parts = len(balances[0])
    row_size = 32 + 32 * parts
    at_locked = 0xA0 + 64 * count + row_size * count  # where the locked entries start inside the outcome
    words = [
        _W20,
        state.id,
        state.version.to_bytes(32, "big"),
        _WA0,
        b"",  # where the app data starts: known at the end
        _W1 if state.is_final else _W0,
        _W60,
        (0x80 + 32 * count).to_bytes(32, "big"),
        at_locked.to_bytes(32, "big"),
        count.to_bytes(32, "big"),
    ]
    for asset in allocation.assets:
        words += (_PAD12, asset.holder)
    words.append(words[9])
    words += [(32 * count + row_size * row).to_bytes(32, "big") for row in range(count)]
    parts_word = parts.to_bytes(32, "big")
    for row in balances:
        if len(row) != parts:
            raise EncodeError("balances are ragged")
        words.append(parts_word)
        words += [value.to_bytes(32, "big") for value in row]
    outcome_size = at_locked + 32
    if allocation.locked:
        outcome_size += _locked_words(words, state, parts)
    else:
        words.append(_W0)
    words[4] = (0xA0 + outcome_size).to_bytes(32, "big")
    data = state.data
    words.append(len(data).to_bytes(32, "big"))
    if data:
        words += (data, bytes(-len(data) % 32))
    return b"".join(words)


def _locked_words(words: list[bytes], state: State, parts: int) -> int:
    """Append the locked entries; returns their size without the length word."""
    locked = state.allocation.locked
    count = len(state.allocation.assets)
    size = 32 * (5 + count + parts)
    words.append(_word(len(locked)))
    words += [_word(32 * len(locked) + size * index) for index in range(len(locked))]
    for entry in locked:
        if len(entry.balances) != count:
            raise EncodeError("a locked entry does not have one balance per asset")
        words += (entry.id, _W60, _word(0x80 + 32 * count), _word(count))
        words += [_word(value) for value in entry.balances]
        words.append(_word(parts))
        words += [_word(value) for value in padded_index_map(entry.index_map, parts)]
    return len(locked) * (32 + size)


def padded_index_map(index_map: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """An index map as it is hashed in a channel of `parts` participants: empty is the identity, short is padded with 0.

    Raises: EncodeError when it has more entries than participants, or an entry that is no uint16.
    """
    if not index_map:
        return tuple(range(parts))
    if len(index_map) > parts or not all(0 <= entry < 1 << 16 for entry in index_map):
        raise EncodeError(f"index map {index_map} in a channel of {parts} participants")
    return index_map + (0,) * (parts - len(index_map))


def params_data(params: Params) -> bytes:
    """ABI encoding of the parameters; its hash is the channel ID (PROTOCOL.md 5.3). Raises: EncodeError."""
    try:
        words = [
            _W20,
            _word(params.challenge_duration),
            _word(params.nonce),
            _WC0,
            _PAD12,
            params.app or ZERO_ADDRESS,
            _W1 if params.ledger_channel else _W0,
            _W1 if params.virtual_channel else _W0,
            _word(len(params.parts)),
        ]
    except OverflowError as error:
        raise EncodeError("a parameter does not fit 256 bits") from error
    for part in params.parts:
        words += (_PAD12, part)
    return b"".join(words)


def withdrawal_data(channel_id: ChannelID, participant: Address, receiver: Address, amount: int) -> bytes:
    """ABI encoding of a withdrawal authorisation (PROTOCOL.md 2.4). Raises: EncodeError when `amount` does not fit."""
    try:
        return b"".join((channel_id, _PAD12, participant, _PAD12, receiver, _word(amount)))
    except OverflowError as error:
        raise EncodeError("amount out of range") from error


def digest(hash32: Bytes32) -> Bytes32:
    """What the elliptic curve signs for `hash32`: the hash with the EIP-191 prefix (PROTOCOL.md 2.3)."""
    return Bytes32(keccak256(_EIP191 + hash32))


class GP090:
    """The profile. Stateless; any number of nodes may share one instance."""

    @property
    def name(self) -> str:
        """Its name in configuration and stored records."""
        return "gp090"

    def encode(self, envelope: Envelope) -> bytes:
        """See `Profile.encode`."""
        return codec.encode(envelope)

    def decoder(self, apps: AppRegistry, *, limit: int) -> StreamDecoder:
        """See `Profile.decoder`."""
        return StreamDecoder(apps, limit=limit)

    def encode_params(self, params: Params) -> bytes:
        """See `Profile.encode_params`."""
        return codec.encode_params(params)

    def decode_params(self, data: bytes) -> Params:
        """See `Profile.decode_params`."""
        return codec.decode_params(data)

    def encode_transaction(self, tx: Transaction) -> bytes:
        """See `Profile.encode_transaction`."""
        return codec.encode_transaction(tx)

    def decode_transaction(self, data: bytes, apps: AppRegistry) -> Transaction:
        """See `Profile.decode_transaction`."""
        return codec.decode_transaction(data, apps)

    def nonce(self, proposer_share: Bytes32, responder_share: Bytes32) -> int:
        """SHA3-256 (FIPS-202) of both shares as a big-endian integer (PROTOCOL.md 5.1)."""
        return int.from_bytes(sha3_256(proposer_share + responder_share).digest(), "big")

    def channel_id(self, params: Params) -> ChannelID:
        """Keccak-256 of `params_data` (PROTOCOL.md 5.3). Raises: EncodeError."""
        return ChannelID(keccak256(params_data(params)))

    def state_hash(self, state: State) -> Bytes32:
        """Keccak-256 of `state_data` (PROTOCOL.md 5.5). Raises: EncodeError."""
        return Bytes32(keccak256(state_data(state)))

    def funding_id(self, channel_id: ChannelID, participant: Address) -> Bytes32:
        """Keccak-256 of channel ID and padded address (PROTOCOL.md 5.8)."""
        return Bytes32(keccak256(channel_id + _PAD12 + participant))

    def withdrawal_hash(self, channel_id: ChannelID, participant: Address, receiver: Address, amount: int) -> Bytes32:
        """Keccak-256 of `withdrawal_data` (PROTOCOL.md 2.4). Raises: EncodeError."""
        return Bytes32(keccak256(withdrawal_data(channel_id, participant, receiver, amount)))

    def verify(self, hash32: Bytes32, sig: Sig, signer: Address) -> None:
        """As strict as the contract: V 27 or 28, 1 ≤ R < n, 1 ≤ S ≤ n/2, signer not zero (PROTOCOL.md 2.3).

        Raises: RuleViolated("2.3").
        """
        if len(sig) != Sig.SIZE or sig[64] not in (27, 28):
            raise RuleViolated("2.3", "signature is not 65 bytes with V 27 or 28")
        if not 0 < int.from_bytes(sig[:32], "big") < CURVE_ORDER:
            raise RuleViolated("2.3", "R of the signature is out of range")
        if not 0 < int.from_bytes(sig[32:64], "big") <= _HALF_ORDER:
            raise RuleViolated("2.3", "S of the signature is out of range or in the upper half")
        try:
            key = PublicKey.from_signature_and_message(sig[:64] + bytes((sig[64] - 27,)), digest(hash32), hasher=None)
        except ValueError as error:
            raise RuleViolated("2.3", "no key recovers from the signature") from error
        if signer == ZERO_ADDRESS or keccak256(key.format(compressed=False)[1:])[12:] != signer:
            raise RuleViolated("2.3", f"not signed by {signer.checksum}")


PROFILE: Final[Profile] = GP090()

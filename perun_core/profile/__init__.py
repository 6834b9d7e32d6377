"""A profile is one family of byte formats: how messages look, what is hashed, what is signed.

Codec, hashing, ABI mapping and asset identity of the protocol sit behind this one object, so that another family can
be added without touching the protocol (PROTOCOL.md 9.7).
"""

from __future__ import annotations

from typing import Protocol

from ..apps.registry import AppRegistry
from ..channel import Params, State, Transaction
from ..values import Address, Bytes32, ChannelID, Sig
from ..wire.messages import Envelope


class EnvelopeDecoder(Protocol):
    """Incremental decoder of one byte stream; one per connection."""

    def feed(self, data: bytes) -> list[Envelope]:
        """All envelopes completed by `data`, in order; incomplete rest is kept, at most the byte limit of it.

        Raises: StreamDamaged, after which the decoder is unusable and the connection must be closed; it carries the
        envelopes that were complete before the damage.
        """
        ...

    def end(self) -> None:
        """Whether the stream may end here; changes nothing. Raises: DecodeError inside an envelope."""
        ...


class Profile(Protocol):
    """Pure and stateless. All hashes are 32 bytes; amounts are base units."""

    @property
    def name(self) -> str:
        """Name used in configuration and in stored records, for example ``gp090``."""
        ...

    def encode(self, envelope: Envelope) -> bytes:
        """The whole envelope. Raises: EncodeError before anything is written."""
        ...

    def decoder(self, apps: AppRegistry, *, limit: int) -> EnvelopeDecoder:
        """A fresh decoder that refuses envelopes longer than `limit` bytes and apps that are not in `apps`."""
        ...

    def encode_params(self, params: Params) -> bytes:
        """Wire form, also used in stores. Raises: EncodeError."""
        ...

    def decode_params(self, data: bytes) -> Params:
        """Exactly these bytes. Raises: DecodeError."""
        ...

    def encode_transaction(self, tx: Transaction) -> bytes:
        """Wire form (with the leading byte that tells whether there is a state). Raises: EncodeError."""
        ...

    def decode_transaction(self, data: bytes, apps: AppRegistry) -> Transaction:
        """Exactly these bytes. Raises: DecodeError."""
        ...

    def nonce(self, proposer_share: Bytes32, responder_share: Bytes32) -> int:
        """Channel nonce from both shares (PROTOCOL.md 5.1)."""
        ...

    def channel_id(self, params: Params) -> ChannelID:
        """Hash of the parameters (PROTOCOL.md 5.3)."""
        ...

    def state_hash(self, state: State) -> Bytes32:
        """Hash of the state's ABI encoding (PROTOCOL.md 5.5); what participants sign, before the EIP-191 prefix."""
        ...

    def funding_id(self, channel_id: ChannelID, participant: Address) -> Bytes32:
        """Key of a participant's deposit in an asset holder (PROTOCOL.md 5.8)."""
        ...

    def withdrawal_hash(self, channel_id: ChannelID, participant: Address, receiver: Address, amount: int) -> Bytes32:
        """What a participant signs to have `amount` paid to `receiver` (PROTOCOL.md 2.4), before EIP-191."""
        ...

    def verify(self, hash32: Bytes32, sig: Sig, signer: Address) -> None:
        """Strict check of an EIP-191 signature over `hash32` (PROTOCOL.md 2.3): V 27/28, low S, non-zero signer.

        Raises: RuleViolated("2.3").
        """
        ...

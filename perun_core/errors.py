"""Every error that may cross a room of this code base, in one tree.

    PerunError
    ├── ApiError                  what a user is told: a numbered code of the published API (API.md 2.1)
    │   ├── PeerRequestTimedOut 101   PeerRejected 102   PeerNotFunded 103   UserResponseTimedOut 104
    │   ├── ResourceNotFound 201   ResourceExists 202   InvalidArgument 203   FailedPrecondition 204
    │   ├── InvalidConfig 205   InvalidContracts 206
    │   ├── TransactionTimedOut 301   ChainUnreachable 302
    │   └── UnknownInternal 401
    ├── RuleViolated              a named rule of the protocol does not hold (T0, U-5, O-9 …)
    ├── WireError
    │   ├── DecodeError           bytes of a peer that no valid message starts with: their fault
    │   └── EncodeError           a value that must not be written: our fault
    ├── ConfigError               a configuration file, flag or environment value
    ├── PluginError               a plugin that cannot be loaded or chosen
    ├── BackupError               a backup or rescue file, or its key, that cannot be used
    └── PortError                 a backend behind a port could not do what was asked
        ├── StoreError            StoreConflict  StoreLocked  StoreFull  StoreFenced  StoreBroken  StoreTooNew
        ├── KeyManagerError       KeyNotFound  KeyLocked  KeyAmbiguous  KeyExists  KeysUnreachable
    │   │                         SigningFailed
        ├── IDProviderError       PeerUnknown  PeerExists  AliasTaken  PeerInvalid  IDProviderBroken
        ├── CommError             AddressInvalid  AddressInUse  PeerUnreachable  ConnectionLost
        └── ChainError            NotReachable  WrongChain  ContractInvalid  TokenUnreadable  StateUnavailable
                                  TxTimedOut  TxReverted  InsufficientFunds  FundingTimedOut

Anything else that escapes a room is a bug: it is logged in full, answered without details, and the channel it
belongs to is stopped with nothing sent. Libraries' errors are renamed at the plugin's edge with ``raise … from``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import ClassVar, Final


class PerunError(Exception):
    """Root of all errors of the node. `str(error)` is safe to show: it never contains a secret."""


# ---------------------------------------------------------------------------------------------------------------- API


class Category(IntEnum):
    """Error category of the published API; a function of the code (API.md 2.1.1)."""

    PARTICIPANT = 0
    CLIENT = 1
    PROTOCOL = 2
    INTERNAL = 3


CATEGORY_TEXT: Final[Mapping[Category, str]] = {
    Category.PARTICIPANT: "Participant",
    Category.CLIENT: "Client",
    Category.PROTOCOL: "Protocol Fatal",
    Category.INTERNAL: "Internal",
}

type_of_info = int | str | tuple[object, ...]


class ApiError(PerunError):
    """An error a user is told, with the code and the additional information of the published API.

    `info` has exactly the field names of the API's additional-information message of this code, or is empty when
    the message stays unset. `message` is free text; clients never parse it.
    """

    code: ClassVar[int]

    def __init__(self, message: str, /, **info: type_of_info) -> None:
        super().__init__(message)
        self.message = message
        self.info: dict[str, type_of_info] = info

    @property
    def category(self) -> Category:
        """Category of this code (API.md 2.1.1)."""
        return Category(self.code // 100 - 1)

    @property
    def embedded(self) -> str:
        """The form this error takes inside another message: ``<category text> <code>:<message>`` (API.md 2.1.3)."""
        return f"{CATEGORY_TEXT[self.category]} {self.code}:{self.message}"

    def within(self, situation: str) -> ApiError:
        """The same error with `situation` in front of its message, for example ``proposing channel``."""
        clone = type(self).__new__(type(self))
        ApiError.__init__(clone, f"{situation}: {self.message}", **self.info)
        clone.__cause__ = self
        return clone


class PeerRequestTimedOut(ApiError):
    """101: the peer did not answer in time, or could not be reached."""

    code = 101

    def __init__(self, alias: str, timeout: str, detail: str = "") -> None:
        text = detail or f"peer {alias} did not respond within {timeout}"
        super().__init__(text, peerAlias=alias, timeout=timeout)


class PeerRejected(ApiError):
    """102: the peer refused; `reason` is the text it sent (free text, never interpreted)."""

    code = 102

    def __init__(self, alias: str, reason: str) -> None:
        super().__init__(f"peer {alias} rejected: {reason}", peerAlias=alias, reason=reason)


class PeerNotFunded(ApiError):
    """103: the peer did not deposit its share in time."""

    code = 103

    def __init__(self, alias: str) -> None:
        super().__init__(f"peer {alias} did not fund the channel in time", peerAlias=alias)


class UserResponseTimedOut(ApiError):
    """104: the user answered after the notified expiry. Both times are Unix seconds of the node's clock."""

    code = 104

    def __init__(self, expiry: int, received_at: int) -> None:
        super().__init__(
            f"response received at {received_at}, after the expiry at {expiry}", expiry=expiry, receivedAt=received_at
        )


class ResourceNotFound(ApiError):
    """201: nothing known under this identifier. `kind` is a word of API.md 2.1.2."""

    code = 201

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"{kind} with ID: {id} not found", type=kind, id=id)


class ResourceExists(ApiError):
    """202: there is one already. `kind` is a word of API.md 2.1.2."""

    code = 202

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"{kind} with ID: {id} already exists", type=kind, id=id)


class InvalidArgument(ApiError):
    """203: an argument of the request; `name` is a word of API.md 2.1.2, `value` the text as it was sent."""

    code = 203

    def __init__(self, name: str, value: str, problem: str, requirement: str = "") -> None:
        super().__init__(problem, name=name, value=value, requirement=requirement)


class FailedPrecondition(ApiError):
    """204: right request at the wrong time. `unclosed` lists channels for CloseSession only, else stays empty."""

    code = 204

    def __init__(self, message: str, unclosed: Sequence[object] = ()) -> None:
        if unclosed:
            super().__init__(message, chs=tuple(unclosed))
        else:
            super().__init__(message)


class InvalidConfig(ApiError):
    """205: an entry of a session file; `name` is a word of API.md 2.1.2. `value` must not contain a secret."""

    code = 205

    def __init__(self, name: str, value: str, problem: str) -> None:
        super().__init__(f"invalid value for {name}: {problem}", name=name, value=value)


class InvalidContracts(ApiError):
    """206: contracts that are not what they should be; each entry is (name, address text, what is wrong)."""

    code = 206

    def __init__(self, contracts: Sequence[tuple[str, str, str]]) -> None:
        text = "".join(f"({name} at address {address}: {problem}) " for name, address, problem in contracts)
        super().__init__(f"invalid contracts: {text}", ContractErrInfos=tuple(contracts))


class TransactionTimedOut(ApiError):
    """301: our transaction was not mined in time; it may still be. `tx_type` is a word of API.md 2.1.2."""

    code = 301

    def __init__(self, tx_type: str, tx_id: str, timeout: str) -> None:
        super().__init__(
            f"timed out waiting for tx to be mined. txID: {tx_id}, TxType: {tx_type}",
            txType=tx_type,
            txID=tx_id,
            txTimeout=timeout,
        )


class ChainUnreachable(ApiError):
    """302: the chain node does not answer."""

    code = 302

    def __init__(self, url: str, detail: str = "") -> None:
        super().__init__(detail or "blockchain network not reachable", chainURL=url)


class UnknownInternal(ApiError):
    """401: anything else; the message names the cause."""

    code = 401


# ---------------------------------------------------------------------------------------------------- protocol, codec


class RuleViolated(PerunError):
    """A named rule of the protocol does not hold; nothing was changed, signed or sent.

    `rule` is the id of the rule in the specification (T0–T8, 5.4, O-1 …, U-1 …).
    """

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(f"{rule}: {problem}")
        self.rule = rule
        self.problem = problem


class WireError(PerunError):
    """Root of errors of the wire codec."""


class DecodeError(WireError):
    """Bytes with which no valid message starts. The connection they came from must be closed (PROTOCOL.md 1.6)."""


class EncodeError(WireError):
    """A value that must not be written; raised before the first byte leaves (PROTOCOL.md 1.6)."""


# ------------------------------------------------------------------------------------------------ configuration, host


class ConfigError(PerunError):
    """A value of a configuration file, flag or environment variable. `name` is the key as a user writes it."""

    def __init__(self, name: str, value: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}" + (f" (got {value!r})" if value else ""))
        self.name = name
        self.value = value
        self.problem = problem


class PluginError(PerunError):
    """A plugin cannot be loaded, or a name is claimed by none or several; the text names plugin and remedy."""


class BackupError(PerunError):
    """A backup or rescue file, or its key, cannot be used; the text says which and why. Nothing was changed."""


# -------------------------------------------------------------------------------------------------------------- ports


class PortError(PerunError):
    """Root of what backends may raise. A backend's own library errors are always wrapped in one of these."""


class StoreError(PortError):
    """Root of storage errors. After any of them nothing that depended on the write may leave the process."""


class StoreConflict(StoreError):
    """A `PutNew` found another value under its key; the whole batch was refused and nothing was written."""


class StoreLocked(StoreError):
    """Another process or session owns this namespace."""


class StoreFull(StoreError):
    """No room left; nothing of the batch was written."""


class StoreFenced(StoreError):
    """Another owner took over: stop signing at once."""


class StoreBroken(StoreError):
    """Unreadable, unwritable or damaged; or the path is not usable for a store."""


class StoreTooNew(StoreError):
    """Written by a newer version of the software; nothing was touched."""


class KeyManagerError(PortError):
    """Root of key manager errors. Never contains key material or passwords."""


class KeyNotFound(KeyManagerError):
    """No key for this address."""


class KeyLocked(KeyManagerError):
    """The key exists, but the password (or other credential) does not open it."""


class KeyAmbiguous(KeyManagerError):
    """Several keys claim this address."""


class KeyExists(KeyManagerError):
    """A key for this address is kept already; nothing was changed."""


class KeysUnreachable(KeyManagerError):
    """What keeps the keys does not answer, or not in time; the request may be repeated with the same digest."""


class SigningFailed(KeyManagerError):
    """The key manager could not sign; the request may be repeated with the same digest."""


class IDProviderError(PortError):
    """Root of ID provider errors."""


class PeerUnknown(IDProviderError):
    """No peer with this alias or address."""


class PeerExists(IDProviderError):
    """A peer with the same alias and the same data (or the same address) is there; `alias` names it."""

    def __init__(self, alias: str) -> None:
        super().__init__(f"peer {alias} is already known")
        self.alias = alias


class AliasTaken(IDProviderError):
    """The alias belongs to a peer with other data."""


class PeerInvalid(IDProviderError):
    """A field of a peer ID; `field` is alias, off_chain_address, comm_address or comm_type."""

    def __init__(self, field: str, value: str, problem: str) -> None:
        super().__init__(f"{field} {value!r}: {problem}")
        self.field = field
        self.value = value


class IDProviderBroken(IDProviderError):
    """The directory cannot be read or written, or is malformed."""


class CommError(PortError):
    """Root of peer transport errors."""


class AddressInvalid(CommError):
    """Not an address of this transport."""


class AddressInUse(CommError):
    """Somebody listens there already."""


class PeerUnreachable(CommError):
    """Dialling failed: refused, no route, or no answer in time."""


class ConnectionLost(CommError):
    """The connection ended; what was written may or may not have arrived."""


class ChainError(PortError):
    """Root of chain errors."""


class NotReachable(ChainError):
    """The chain node does not answer."""


class WrongChain(ChainError):
    """The node serves another chain ID than configured."""

    def __init__(self, configured: int, actual: int) -> None:
        super().__init__(f"configured chain ID {configured}, but the node serves chain ID {actual}")
        self.configured = configured
        self.actual = actual


class ContractInvalid(ChainError):
    """No code, unknown code or a wrong reference at a contract's address.

    `name` is adjudicator, ETH or the token's symbol; `address` its checksummed address.
    """

    def __init__(self, name: str, address: str, problem: str) -> None:
        super().__init__(f"invalid asset {name} contract at address {address}: {problem}")
        self.name = name
        self.address = address
        self.problem = problem


class TokenUnreadable(ChainError):
    """Symbol or decimals of a token contract cannot be read."""


class StateUnavailable(ChainError):
    """A state is registered whose content the chain does not tell in a form that can be checked."""


class TxTimedOut(ChainError):
    """A transaction was not mined in time; it may still be. `tx_type` is a word of API.md 2.1.2."""

    def __init__(self, tx_type: str, tx_id: str) -> None:
        super().__init__(f"timed out waiting for tx to be mined. txID: {tx_id}, TxType: {tx_type}")
        self.tx_type = tx_type
        self.tx_id = tx_id


class TxReverted(ChainError):
    """A transaction was mined and failed, or would fail; `reason` is the contract's text if there is one."""

    def __init__(self, tx_type: str, reason: str, tx_id: str = "") -> None:
        super().__init__(f"{tx_type}: transaction failed: {reason or 'no reason given'}")
        self.tx_type = tx_type
        self.reason = reason
        self.tx_id = tx_id


class InsufficientFunds(ChainError):
    """The on-chain account cannot pay a deposit or its gas; amounts are base units."""


class FundingTimedOut(ChainError):
    """Deposits are missing at the funding deadline; `missing` holds (asset index, participant index)."""

    def __init__(self, missing: tuple[tuple[int, int], ...]) -> None:
        text = ", ".join(f"participant {part} in asset {asset}" for asset, part in missing)
        super().__init__(f"not funded in time: {text}")
        self.missing = missing

"""Which contract is it? The validation rule of CHAIN.md 2.4 as pure functions over code bytes.

A contract is known by the hash of its whole runtime code, immutable words set to zero first. Nothing else counts: not
what its getters answer, not its address. Reading the code from a chain, and asking a holder for its adjudicator where
that is not part of the code, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final, Literal

from eth_hash.auto import keccak

from perun_core.errors import ChainError

from .artifacts import ContractKind, load

OWN_SET: Final = "perun-chain-ethereum"
"""Name of the set of this distribution."""

Profile = Literal["P1", "P2", "P3"]


class CodeInvalid(ChainError):
    """The code at an address is not what it has to be. The text is for operators; see the subclasses."""


class NoCode(CodeInvalid):
    """There is no code at all: wrong address, wrong chain, or not deployed yet."""


class UnknownCode(CodeInvalid):
    """No known contract (of the kind asked for) has this code."""


class WrongImmutable(CodeInvalid):
    """The contract is known but made for another adjudicator or token; `name` says which of the two."""

    def __init__(self, name: str, expected: bytes, found: bytes) -> None:
        super().__init__(f"made for {name} 0x{found.hex()}, not 0x{expected.hex()}")
        self.name = name
        self.expected = expected
        self.found = found


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """One allowed runtime code. Comparison is strict: every byte counts, compiler trailer included."""

    set_name: str
    """The set of contracts it belongs to."""
    profile: Profile
    """ABI generation it speaks (CHAIN.md, table of profiles)."""
    kind: ContractKind
    hash: bytes
    """keccak256 of the runtime code with all immutable words zero."""
    immutables: Mapping[str, tuple[int, ...]]
    """Offsets of the 32-byte words of each immutable address."""
    unsafe: bool
    """Whether the guarantees of our own contracts (CHAIN.md 1.11, DEV-1 to DEV-5) are missing: test value only."""


@dataclass(frozen=True, slots=True)
class CodeMatch:
    """A known contract, with the 20-byte addresses that are part of its code."""

    entry: CodeEntry
    immutables: Mapping[str, bytes]


def identify(
    kind: ContractKind | None,
    code: bytes,
    *,
    adjudicator: bytes | None = None,
    token: bytes | None = None,
) -> CodeMatch:
    """Name the contract that has this runtime code.

    Args:
        kind: what it has to be; None for anything that is known.
        code: the runtime code at its address.
        adjudicator: address (20 bytes) a holder has to be made for; None for any. Only holders that keep it in their
            code are checked: the caller also compares the answer of `adjudicator()` with it.
        token: address (20 bytes) an ERC-20 holder has to be made for; None for any.
    Raises: NoCode, UnknownCode, WrongImmutable.
    """
    if not code:
        raise NoCode("no contract at this address")
    expected = {"adjudicator": adjudicator, "token": token}
    for entry in known_code():
        if kind is not None and entry.kind is not kind:
            continue
        values = _match(entry, code)
        if values is None:
            continue
        for name, value in values.items():
            wanted = expected.get(name)
            if wanted is not None and wanted != value:
                raise WrongImmutable(name, wanted, value)
        return CodeMatch(entry, MappingProxyType(values))
    raise UnknownCode("incorrect contract code" if kind is None else f"incorrect contract code: not {kind.value}")


def _match(entry: CodeEntry, code: bytes) -> dict[str, bytes] | None:
    """The addresses in `code` if it is `entry`, else None."""
    blank = bytearray(code)
    values: dict[str, bytes] = {}
    for name, offsets in entry.immutables.items():
        words = {code[offset : offset + 32] for offset in offsets}
        if len(words) != 1:
            return None
        word = words.pop()
        if len(word) != 32 or any(word[:12]):
            return None
        for offset in offsets:
            blank[offset : offset + 32] = bytes(32)
        values[name] = word[12:]
    return values if keccak(bytes(blank)) == entry.hash else None


@cache
def known_code() -> tuple[CodeEntry, ...]:
    """All allowed codes: the own build first, then the known sets of third parties."""
    own = tuple(
        CodeEntry(
            set_name=OWN_SET,
            profile="P1",
            kind=kind,
            hash=load(kind).runtime_hash,
            immutables=load(kind).immutables,
            unsafe=False,
        )
        for kind in ContractKind
    )
    third_party = tuple(
        CodeEntry(
            set_name=f"third-party {profile}",
            profile=profile,
            kind=kind,
            hash=bytes.fromhex(code_hash),
            immutables=MappingProxyType(
                {"token": _TOKEN_OFFSETS[profile]} if kind is ContractKind.ERC20_HOLDER else {}
            ),
            unsafe=True,
        )
        for profile, hashes in _THIRD_PARTY.items()
        for kind, code_hash in hashes.items()
    )
    return own + third_party


# CHAIN.md 2.2: keccak256 of the runtime code of the sets that other implementations deploy, token zero, and (2.3) where
# the ERC-20 holders keep the token.
_THIRD_PARTY: Final[Mapping[Profile, Mapping[ContractKind, str]]] = {
    "P1": {
        ContractKind.ADJUDICATOR: "3830f406004d9cf883de81bdfdbba3846ea098ef5a1f8b68e6c9b166ebe344fa",
        ContractKind.ETH_HOLDER: "ad36e3a0037e074d6a4a8ae39e8e171024258311df13875d274eba4f432c83e1",
        ContractKind.ERC20_HOLDER: "0b3bc41c41df7094e96a7e928aec26bb155a7a7eeb608da3d4cc15d65f422122",
        ContractKind.TOKEN: "df0b324c16827563e03a6360d58318743fb92e06aba355921c7fb09ae1c1251d",
        ContractKind.APP: "750d9460214d90381f36b411abf3c7364fda3082ece548504b1b18c6fdb129f3",
    },
    "P2": {
        ContractKind.ADJUDICATOR: "e5c920219794adf36eb547f45c866af65ad2e6dde1afe59b8033c88c4a03fb45",
        ContractKind.ETH_HOLDER: "82e7e4156f3d56bd22532bb76a690275ee3f0e1d221d2be227228f7b16a47da2",
        ContractKind.ERC20_HOLDER: "b3f29baf41b2429bde62fc9d51a7042026f24d90af89eb124521b6060e916dae",
        ContractKind.TOKEN: "551ad0cbfd08b9fa662768c55b07af62a399e945a1ba1c5906c399677cd855a2",
        ContractKind.APP: "8eed1bd163d684bdba1483832df19db71cf324d3659a20eb12f308eb0f12f5ee",
    },
    "P3": {
        ContractKind.ADJUDICATOR: "860c552012d5cafcdd90e17d1a7aa4e3089c90f43b742a916224f81ba8a8d303",
        ContractKind.ETH_HOLDER: "215f83ad2c07deb83492f518d99ab045c9fd182e5151d099dbafa8d7eb8dc67f",
        ContractKind.ERC20_HOLDER: "758197eb3e2bd25cd9ab3743de04bb3909ad080c2cd1f5ff997dbedc5e57a34f",
        ContractKind.TOKEN: "c7bdecb412a37bbb4f83a79947576de1862e5d39013340c8745056b9b7f0f7d5",
        ContractKind.APP: "88a936031281805d262b2a242ea06bda2a547eecbfd948180581aae4527960af",
    },
}
_TOKEN_OFFSETS: Final[Mapping[Profile, tuple[int, ...]]] = {
    "P1": (950, 1680, 2038),
    "P2": (372, 2032, 2448),
    "P3": (372, 2016, 2420),
}

"""The six accounts of the deterministic test set-up (CHAIN.md 4.5).

They are published, so anybody can spend what they own: never use them on a chain with value. The embedded chain funds
them, and contracts deployed by the first one have the addresses of `TEST_CONTRACTS` on every fresh chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class TestAccount:
    """One published account: role, private key (64 hex digits), address (checksummed)."""

    # Not a test class, whatever its name says.
    __test__ = False

    role: str
    key: str
    address: str


TEST_ACCOUNTS: Final[tuple[TestAccount, ...]] = (
    TestAccount(
        "alice on-chain",
        "1fedd636dbc7e8d41a0622a2040b86fea8842cef9d4aa4c582aad00465b7acff",
        "0x8450c0055cB180C7C37A25866132A740b812937B",
    ),
    TestAccount(
        "alice off-chain",
        "1c3461e1ea9ac7c9305617ad2abb833cfd7f11925396582177f9e868a57db804",
        "0xa617fa2cc5eC8d72d4A60b9F424677e74E6bef68",
    ),
    TestAccount(
        "bob on-chain",
        "b0309c60b4622d3071fad3e16c2ce4d0b1e7758316c187754f4dd0cfb44ceb33",
        "0xc4bA4815c82727554e4c12A07a139b74c6742322",
    ),
    TestAccount(
        "bob off-chain",
        "244ffc73c448b56ddba6a7bfa8d58ed36012611da83d4cb83025ea12accf49fe",
        "0x7b7E212652b9C3755C4E1f1718a142dDE3817523",
    ),
    TestAccount(
        "api on-chain",
        "403b227e49f55a54743375e8c98c189ca7e0c6d04d3b0abf78739c703cd2fc7a",
        "0x8946Ee6a3Ba1AD6CF79faaa31F4D4aBC17A9424b",
    ),
    TestAccount(
        "api off-chain",
        "ab86407be7031246a400a131ad3f02cc15df4eeeffce278a726a494314f93959",
        "0x2AfDa840850738956A01c42BF946147fB9a45faC",
    ),
)

DEPLOYER: Final = TEST_ACCOUNTS[0]
"""The account whose first transactions deploy the contracts."""

TOKEN_OWNERS: Final[tuple[str, ...]] = tuple(account.address for account in TEST_ACCOUNTS[:3])
"""Who gets test tokens at deployment."""

TOKEN_SUPPLY_EACH: Final = 1000 * 10**18
"""Base units of the test token minted to each of `TOKEN_OWNERS`."""

TEST_CHAIN_ID: Final = 1337

TEST_CONTRACTS: Final[dict[str, str]] = {
    "Adjudicator": "0x9daEdAcb21dce86Af8604Ba1A1D7F9BFE55ddd63",
    "AssetHolderETH": "0x5992089d61cE79B6CF90506F70DD42B8E42FB21d",
    "PerunToken": "0x44cb7cd4C2B6435dA126F4263AafC3b837f49AbB",
    "AssetHolderERC20": "0xb79708b3f6a4Be039BDE75281656c099163e7a5d",
}
"""Addresses of the contracts deployed by `DEPLOYER` with its nonces 0, 1, 2, 3."""

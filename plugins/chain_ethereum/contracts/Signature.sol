// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title secp256k1 signatures over 32-byte hashes
/// @notice Exactly one accepted encoding per signature (CHAIN.md 1.2): 65 bytes r, s, v with s in the lower half of the
/// group order (EIP-2) and v 27 or 28. Anything else is refused with the reason of its own check, in a fixed order.
library Signature {
    /// Half of the group order of secp256k1, rounded down.
    uint256 private constant MAX_S = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    /// @notice The digest that is signed for `hash`: the EIP-191 personal message of these 32 bytes.
    function digest(bytes32 hash) internal pure returns (bytes32 result) {
        bytes32 prefix = "\x19Ethereum Signed Message:\n32";
        // Prefix (28 bytes) and hash fit into the scratch space: no memory is allocated.
        assembly ("memory-safe") {
            mstore(0x00, prefix)
            mstore(0x1c, hash)
            result := keccak256(0x00, 0x3c)
        }
    }

    /// @notice The non-zero address that made `sig` over `digest_`. The caller compares it with the expected signer.
    function recover(bytes32 digest_, bytes calldata sig) internal pure returns (address signer) {
        require(sig.length == 65, "ECDSA: invalid signature length");
        bytes32 r;
        bytes32 s;
        uint8 v;
        assembly ("memory-safe") {
            r := calldataload(sig.offset)
            s := calldataload(add(sig.offset, 0x20))
            v := byte(0, calldataload(add(sig.offset, 0x40)))
        }
        require(uint256(s) <= MAX_S, "ECDSA: invalid signature 's' value");
        require(v == 27 || v == 28, "ECDSA: invalid signature 'v' value");
        signer = ecrecover(digest_, v, r, s);
        require(signer != address(0), "ECDSA: invalid signature");
    }
}

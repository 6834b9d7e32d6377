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
    function recover(bytes32 digest_, bytes calldata sig) internal view returns (address signer) {
        require(sig.length == 65, "ECDSA: invalid signature length");
        uint256 s;
        uint256 v;
        assembly ("memory-safe") {
            s := calldataload(add(sig.offset, 0x20))
            v := byte(0, calldataload(add(sig.offset, 0x40)))
        }
        require(s <= MAX_S, "ECDSA: invalid signature 's' value");
        require(v == 27 || v == 28, "ECDSA: invalid signature 'v' value");
        // The precompile answers with nothing if there is no such key; the word it would write is zeroed before.
        assembly ("memory-safe") {
            let input := mload(0x40)
            mstore(input, digest_)
            mstore(add(input, 0x20), v)
            calldatacopy(add(input, 0x40), sig.offset, 0x40)
            mstore(0x00, 0)
            if iszero(staticcall(gas(), 1, input, 0x80, 0x00, 0x20)) {
                revert(0, 0)
            }
            signer := mload(0x00)
        }
        require(signer != address(0), "ECDSA: invalid signature");
    }
}

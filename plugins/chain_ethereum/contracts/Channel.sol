// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What a channel is, as the chain sees it
/// @notice Types and hashes shared by all contracts. Field order and types fix the bytes that participants sign and
/// that clients send (CHAIN.md 1.1, 1.2); they can never change for this family of contracts.
library Channel {
    /// @notice What is fixed for the life of a channel. Its hash is the channel ID.
    struct Params {
        /// Seconds a dispute stays open. Only the lower 64 bits count (CHAIN.md 1.3.5).
        uint256 challengeDuration;
        /// Agreed by the participants; makes the channel ID unique.
        uint256 nonce;
        /// Off-chain addresses; the index in this list identifies the participant everywhere.
        address[] participants;
        /// Contract that judges on-chain progress; zero for a channel without app.
        address app;
        /// True for channels that are funded on chain, false for channels funded inside another channel.
        bool ledgerChannel;
        /// True for channels whose participants are clients of several ledger channels.
        bool virtualChannel;
    }

    /// @notice Funds that a parent channel sets aside for one sub-channel.
    struct SubAlloc {
        /// Channel ID of the sub-channel.
        bytes32 ID;
        /// Total per asset, in base units, in the order of the parent's assets.
        uint256[] balances;
        /// Participant i of the sub-channel is participant indexMap[i] of the parent.
        uint16[] indexMap;
    }

    /// @notice Who owns what.
    struct Allocation {
        /// Addresses of asset holder contracts (not of tokens).
        address[] assets;
        /// balances[asset][participant] in base units.
        uint256[][] balances;
        /// Funds set aside for sub-channels.
        SubAlloc[] locked;
    }

    /// @notice One state of a channel. Participants sign its hash.
    struct State {
        bytes32 channelID;
        uint64 version;
        Allocation outcome;
        bytes appData;
        bool isFinal;
    }

    /// @notice A state with the channel it belongs to and one signature per participant, in their order.
    struct SignedState {
        Params params;
        State state;
        bytes[] sigs;
    }

    /// @notice The channel ID, keccak256(abi.encode(params)), and the participants, whose values are checked by it.
    /// @dev Clients send the canonical encoding, which is then already in calldata: hashing a copy of it saves decoding
    /// and encoding it again (about 500 gas for two participants). Anything else takes the way of the compiler, which
    /// gives the same hash or refuses it.
    function identify(Params calldata params) internal pure returns (bytes32 id, address[] calldata participants) {
        uint256 size = _canonicalParams(params);
        if (size == 0) {
            return (keccak256(abi.encode(params)), params.participants);
        }
        assembly ("memory-safe") {
            let copy := mload(0x40)
            mstore(copy, 0x20)
            calldatacopy(add(copy, 0x20), params, size)
            id := keccak256(copy, add(size, 0x20))
            participants.offset := add(params, 0xe0)
            participants.length := calldataload(add(params, 0xc0))
        }
    }

    /// @notice The hash of `state`, keccak256(abi.encode(state)); `Signature.digest` of it is what participants sign.
    function hash(State calldata state) internal pure returns (bytes32 result) {
        (result, , ) = read(state);
    }

    /// @notice The hash of `state`, its assets and its balances (one row per asset).
    /// @dev As `identify` (saves about 2,500 gas for one asset and two participants). States with locked funds always
    /// take the way of the compiler.
    function read(
        State calldata state
    ) internal pure returns (bytes32 stateHash, address[] calldata assets, uint256[][] calldata balances) {
        (uint256 size, uint256 padding) = _canonicalState(state);
        if (size == 0) {
            Allocation calldata outcome = state.outcome;
            return (keccak256(abi.encode(state)), outcome.assets, outcome.balances);
        }
        assembly ("memory-safe") {
            let copy := mload(0x40)
            mstore(copy, 0x20)
            calldatacopy(add(copy, 0x20), state, size)
            // What follows the app data up to the end of its last word does not belong to the value.
            mstore(sub(add(copy, add(size, 0x20)), padding), 0)
            stateHash := keccak256(copy, add(size, 0x20))
            assets.offset := add(state, 0x120)
            assets.length := calldataload(add(state, 0x100))
            let rows := add(assets.offset, shl(5, assets.length))
            balances.offset := add(rows, 0x20)
            balances.length := calldataload(rows)
        }
    }

    /// @dev Length of `params` in calldata if it is there exactly as abi.encode would write it, else 0. All of it lies
    /// within calldata then, and every value is in the range of its type.
    function _canonicalParams(Params calldata params) private pure returns (uint256 size) {
        assembly ("memory-safe") {
            // Not zero as soon as anything differs.
            let odd := or(
                or(xor(calldataload(add(params, 0x40)), 0xc0), shr(160, calldataload(add(params, 0x60)))),
                or(shr(1, calldataload(add(params, 0x80))), shr(1, calldataload(add(params, 0xa0))))
            )
            let count := calldataload(add(params, 0xc0))
            odd := or(odd, shr(16, count))
            if iszero(odd) {
                let at := add(params, 0xe0)
                let end := add(at, shl(5, count))
                size := sub(end, params)
                odd := gt(end, calldatasize())
                for {} lt(at, end) { at := add(at, 0x20) } {
                    odd := or(odd, shr(160, calldataload(at)))
                }
                if odd {
                    size := 0
                }
            }
        }
    }

    /// @dev Length of `state` in calldata if it has no locked funds and is there exactly as abi.encode would write it,
    /// else 0; and how many bytes follow its app data up to the end of the word. All of it lies within calldata then,
    /// and every value is in the range of its type.
    function _canonicalState(State calldata state) private pure returns (uint256 size, uint256 padding) {
        assembly ("memory-safe") {
            let outcome := add(state, 0xa0)
            let at := add(state, 0x100)
            let count := calldataload(at)
            at := add(at, 0x20)
            // Not zero as soon as anything differs: version, offset of the outcome, isFinal, offset of the assets,
            // their number.
            let odd := or(
                or(shr(64, calldataload(add(state, 0x20))), xor(calldataload(add(state, 0x40)), 0xa0)),
                or(shr(1, calldataload(add(state, 0x80))), xor(calldataload(outcome), 0x60))
            )
            odd := or(odd, shr(16, count))
            if iszero(odd) {
                let end := add(at, shl(5, count))
                for {} lt(at, end) { at := add(at, 0x20) } {
                    odd := or(odd, shr(160, calldataload(at)))
                }
                // The rows of balances, each where the one before ends.
                odd := or(odd, xor(calldataload(add(outcome, 0x20)), sub(at, outcome)))
                count := calldataload(at)
                odd := or(odd, shr(16, count))
                let offset := add(at, 0x20)
                let rows := offset
                at := add(offset, shl(5, count))
                end := at
                for {} and(lt(offset, end), iszero(odd)) { offset := add(offset, 0x20) } {
                    count := calldataload(at)
                    odd := or(xor(calldataload(offset), sub(at, rows)), shr(16, count))
                    at := add(at, shl(5, add(count, 1)))
                }
                // No locked funds, then the app data.
                odd := or(odd, or(xor(calldataload(add(outcome, 0x40)), sub(at, outcome)), calldataload(at)))
                at := add(at, 0x20)
                count := calldataload(at)
                odd := or(odd, or(xor(calldataload(add(state, 0x60)), sub(at, state)), shr(32, count)))
                padding := and(sub(0, count), 0x1f)
                at := add(add(at, 0x20), add(count, padding))
                if iszero(or(odd, gt(at, calldatasize()))) {
                    size := sub(at, state)
                }
            }
        }
    }
}

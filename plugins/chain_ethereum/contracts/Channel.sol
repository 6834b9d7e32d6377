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

    /// @notice The channel ID of `params`.
    function id(Params calldata params) internal pure returns (bytes32) {
        return keccak256(abi.encode(params));
    }

    /// @notice The hash of `state`; `Signature.digest` of it is what participants sign.
    function hash(State calldata state) internal pure returns (bytes32) {
        return keccak256(abi.encode(state));
    }
}

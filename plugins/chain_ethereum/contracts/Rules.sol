// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Channel} from "./Channel.sol";
import {Signature} from "./Signature.sol";
import {Sums} from "./Sums.sol";

/// @title Rules about states that need no storage
/// @notice Each function reverts with the reason of the first rule that is broken (CHAIN.md 1.3).
library Rules {
    using Sums for uint256;
    using Sums for uint256[];

    /// @notice Every participant signed the state with this hash; signatures are in the participants' order.
    function requireSigned(address[] calldata participants, bytes32 hash, bytes[] calldata sigs) internal view {
        require(participants.length == sigs.length, "signatures length mismatch");
        bytes32 digest = Signature.digest(hash);
        for (uint256 i = 0; i < sigs.length; ++i) {
            require(Signature.recover(digest, sigs[i]) == participants[i], "invalid signature");
        }
    }

    /// @notice The state can be paid out: it belongs to somebody, has one row of balances per asset with one entry per
    /// participant, and names no asset twice (CHAIN.md 1.11 DEV-4).
    function requireShape(
        uint256 participants,
        address[] calldata assets,
        uint256[][] calldata balances
    ) internal pure {
        require(participants != 0, "no participants");
        require(assets.length == balances.length, "one balance row per asset");
        for (uint256 a = 0; a < assets.length; ++a) {
            require(balances[a].length == participants, "one balance per participant");
            for (uint256 b = 0; b < a; ++b) {
                require(assets[b] != assets[a], "duplicate asset");
            }
        }
    }

    /// @notice The sum of each row.
    function totals(uint256[][] calldata balances) internal pure returns (uint256[] memory sums) {
        sums = new uint256[](balances.length);
        for (uint256 a = 0; a < balances.length; ++a) {
            sums[a] = balances[a].total();
        }
    }

    /// @notice Parent and sub-channel hold the same assets in the same order.
    function requireSameAssets(address[] calldata parent, address[] calldata sub) internal pure {
        require(parent.length == sub.length, "address[]: unequal length");
        for (uint256 i = 0; i < parent.length; ++i) {
            require(parent[i] == sub[i], "address[]: unequal item");
        }
    }

    /// @notice The funds locked for a sub-channel are exactly what it holds; they are added to `accumulated`.
    function addLocked(
        uint256[] memory accumulated,
        uint256[] calldata locked,
        uint256[] memory subTotals
    ) internal pure {
        require(locked.length == subTotals.length, "uint256[]: unequal length");
        for (uint256 a = 0; a < locked.length; ++a) {
            require(locked[a] == subTotals[a], "uint256[]: unequal item");
            accumulated[a] = accumulated[a].plus(locked[a]);
        }
    }

    /// @notice Adds the outcome of a sub-channel to that of its parent: participant p of the sub-channel is participant
    /// indexMap[p] of the parent. An index out of range panics.
    function mergeOutcome(
        uint256[][] memory parent,
        uint256[][] memory sub,
        uint16[] calldata indexMap
    ) internal pure {
        for (uint256 a = 0; a < parent.length; ++a) {
            for (uint256 p = 0; p < indexMap.length; ++p) {
                uint256 share = sub[a][p];
                uint256 to = indexMap[p];
                parent[a][to] = parent[a][to].plus(share);
            }
        }
    }

    /// @notice On-chain progress moves funds between the participants only: same assets, same locked funds, same sum
    /// per asset.
    function requirePreserved(
        Channel.Allocation calldata from,
        Channel.Allocation calldata to,
        uint256 participants
    ) internal pure {
        require(from.balances.length == to.balances.length, "balances length mismatch");
        require(from.assets.length == to.assets.length, "assets length mismatch");
        _requireSameLocked(from.locked, to.locked);
        for (uint256 a = 0; a < to.assets.length; ++a) {
            require(from.assets[a] == to.assets[a], "assets[i] address mismatch");
            require(from.balances[a].length == participants, "old balances length mismatch");
            require(to.balances[a].length == participants, "new balances length mismatch");
            require(from.balances[a].total() == to.balances[a].total(), "sum of balances mismatch");
        }
    }

    function _requireSameLocked(Channel.SubAlloc[] calldata from, Channel.SubAlloc[] calldata to) private pure {
        require(from.length == to.length, "SubAlloc[]: unequal length");
        for (uint256 i = 0; i < to.length; ++i) {
            require(from[i].ID == to[i].ID, "SubAlloc: unequal ID");
            _requireSameAmounts(from[i].balances, to[i].balances);
            _requireSameIndices(from[i].indexMap, to[i].indexMap);
        }
    }

    function _requireSameAmounts(uint256[] calldata from, uint256[] calldata to) private pure {
        require(from.length == to.length, "uint256[]: unequal length");
        for (uint256 i = 0; i < to.length; ++i) {
            require(from[i] == to[i], "uint256[]: unequal item");
        }
    }

    function _requireSameIndices(uint16[] calldata from, uint16[] calldata to) private pure {
        require(from.length == to.length, "uint16[]: unequal length");
        for (uint256 i = 0; i < to.length; ++i) {
            require(from[i] == to[i], "uint16[]: unequal item");
        }
    }
}

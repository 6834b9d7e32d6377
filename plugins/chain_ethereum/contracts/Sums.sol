// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Additions that never wrap
/// @notice The revert reasons are those that existing tools know (CHAIN.md 1.3.1, 1.3.5); a bare Panic would not be.
library Sums {
    /// @notice a + b, or revert.
    function plus(uint256 a, uint256 b) internal pure returns (uint256 c) {
        unchecked {
            c = a + b;
        }
        require(c >= a, "SafeMath: addition overflow");
    }

    /// @notice a + b on 64-bit timestamps and durations (seconds), or revert.
    function plus64(uint64 a, uint64 b) internal pure returns (uint64 c) {
        unchecked {
            c = a + b;
        }
        require(c >= a, "overflow");
    }

    /// @notice The sum of all items, or revert.
    function total(uint256[] calldata items) internal pure returns (uint256 sum) {
        for (uint256 i = 0; i < items.length; ++i) {
            sum = plus(sum, items[i]);
        }
    }
}

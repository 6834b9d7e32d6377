// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Caller} from "./Caller.sol";

/// @title A token that does what tokens in the wild do, one habit at a time
/// @notice For tests. Allowances do not exist: everybody may move everything.
contract QuirkyToken is Caller {
    enum Habit {
        HONEST,
        RETURNS_FALSE,
        RETURNS_NOTHING,
        RETURNS_TWO,
        RETURNS_ONE_BYTE,
        RETURNS_TWO_WORDS,
        TAKES_A_FEE,
        REVERTS,
        CALLS_BACK
    }

    Habit public habit;
    mapping(address => uint256) public balanceOf;

    function adopt(Habit habit_) external {
        habit = habit_;
    }

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function transfer(address to, uint256 amount) external {
        _move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external {
        _move(from, to, amount);
    }

    function _move(address from, address to, uint256 amount) private {
        require(habit != Habit.REVERTS, "QuirkyToken: not today");
        if (habit == Habit.CALLS_BACK) {
            _callBack();
        }
        require(balanceOf[from] >= amount, "QuirkyToken: balance");
        balanceOf[from] -= amount;
        balanceOf[to] += habit == Habit.TAKES_A_FEE ? amount - amount / 10 : amount;
        uint256 answer = 1;
        uint256 size = 0x20;
        if (habit == Habit.RETURNS_FALSE) {
            answer = 0;
        } else if (habit == Habit.RETURNS_NOTHING) {
            size = 0;
        } else if (habit == Habit.RETURNS_TWO) {
            answer = 2;
        } else if (habit == Habit.RETURNS_ONE_BYTE) {
            size = 1;
        } else if (habit == Habit.RETURNS_TWO_WORDS) {
            size = 0x40;
        }
        assembly ("memory-safe") {
            mstore(0x00, answer)
            mstore(0x20, 0)
            return(0x00, size)
        }
    }
}

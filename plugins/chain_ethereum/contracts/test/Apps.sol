// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {App} from "../App.sol";
import {Channel} from "../Channel.sol";

/// @title Accepts the moves of participant 0 only
contract FirstOnlyApp is App {
    /// @inheritdoc App
    function validTransition(
        Channel.Params calldata,
        Channel.State calldata,
        Channel.State calldata,
        uint256 actorIdx
    ) external pure override {
        require(actorIdx == 0, "FirstOnlyApp: not your move");
    }
}

/// @title Tries to remember moves; the call it gets forbids that
contract WritingApp {
    uint256 public moves;

    /// @notice Has the selector of App.validTransition, but is not a view.
    function validTransition(
        Channel.Params calldata,
        Channel.State calldata,
        Channel.State calldata,
        uint256
    ) external {
        ++moves;
    }
}

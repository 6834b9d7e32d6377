// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {App} from "./App.sol";
import {Channel} from "./Channel.sol";

/// @title An app that accepts every transition
/// @notice For tests: the adjudicator's own rules are then the only ones (CHAIN.md 1.7).
contract TrivialApp is App {
    /// @inheritdoc App
    function validTransition(
        Channel.Params calldata params,
        Channel.State calldata from,
        Channel.State calldata to,
        uint256 actorIdx
    ) external pure override {}
}

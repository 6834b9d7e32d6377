// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Channel} from "./Channel.sol";

/// @title The judge of an app channel
/// @notice Called by the adjudicator when a participant progresses a channel on chain (CHAIN.md 1.7).
interface App {
    /// @notice Reverts unless participant `actorIdx` may move the channel from `from` to `to`.
    /// @dev Called with STATICCALL after every rule of the adjudicator itself has passed; revert data reaches the
    /// sender of the transaction unchanged.
    function validTransition(
        Channel.Params calldata params,
        Channel.State calldata from,
        Channel.State calldata to,
        uint256 actorIdx
    ) external pure;
}

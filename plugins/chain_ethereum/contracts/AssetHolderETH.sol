// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AssetHolder} from "./AssetHolder.sol";

/// @title Asset holder for the chain's own currency
/// @notice Amounts are wei. Money arrives only with `deposit`; a plain transfer is refused (CHAIN.md 1.5).
contract AssetHolderETH is AssetHolder {
    constructor(address adjudicator_) AssetHolder(adjudicator_) {}

    /// @inheritdoc AssetHolder
    function _checkDeposit(uint256 amount) internal override {
        require(msg.value == amount, "wrong amount of ETH for deposit");
    }

    /// @inheritdoc AssetHolder
    /// @dev Nothing to do: the value came with the call.
    function _collect(uint256 amount) internal override {}

    /// @inheritdoc AssetHolder
    /// @dev A call without gas limit, so that contract accounts can be paid whatever their receive function costs
    /// (CHAIN.md 1.11 DEV-6). The share has been lowered before. Nothing the receiver returns is copied.
    function _pay(address payable receiver, uint256 amount) internal override {
        bool paid;
        assembly ("memory-safe") {
            paid := call(gas(), receiver, amount, 0, 0, 0, 0)
        }
        require(paid);
    }
}

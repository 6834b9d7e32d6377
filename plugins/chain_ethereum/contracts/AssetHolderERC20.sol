// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AssetHolder} from "./AssetHolder.sol";
import {IERC20} from "./IERC20.sol";

/// @title Asset holder for one ERC-20 token
/// @notice Amounts are base units of the token. A depositor first allows this contract to take the amount.
/// @dev Meant for tokens that move exactly the amount they are told to. Tokens without return value are accepted
/// (CHAIN.md 1.11 DEV-6); a token that returns anything but one boolean word is not.
contract AssetHolderERC20 is AssetHolder {
    /// @notice The token that is held.
    IERC20 public immutable token;

    constructor(address adjudicator_, address token_) AssetHolder(adjudicator_) {
        token = IERC20(token_);
    }

    /// @inheritdoc AssetHolder
    function _checkDeposit(uint256) internal override {
        require(msg.value == 0, "message value must be 0 for token deposit");
    }

    /// @inheritdoc AssetHolder
    function _collect(uint256 amount) internal override {
        bytes memory call_ = abi.encodeCall(IERC20.transferFrom, (msg.sender, address(this), amount));
        require(_callToken(call_), "transferFrom failed");
    }

    /// @inheritdoc AssetHolder
    function _pay(address payable receiver, uint256 amount) internal override {
        require(_callToken(abi.encodeCall(IERC20.transfer, (receiver, amount))), "transfer failed");
    }

    /// @dev Calls the token and gives its answer; no answer at all counts as yes if the token is a contract. The
    /// token's own revert data is passed on. Reverts without data on an answer that is not a boolean.
    function _callToken(bytes memory call_) private returns (bool accepted) {
        address token_ = address(token);
        assembly ("memory-safe") {
            let ok := call(gas(), token_, 0, add(call_, 0x20), mload(call_), 0x00, 0x20)
            if iszero(ok) {
                let data := mload(0x40)
                returndatacopy(data, 0, returndatasize())
                revert(data, returndatasize())
            }
            switch returndatasize()
            case 0 {
                if iszero(extcodesize(token_)) {
                    revert(0, 0)
                }
                accepted := 1
            }
            default {
                accepted := mload(0x00)
                if or(lt(returndatasize(), 0x20), gt(accepted, 1)) {
                    revert(0, 0)
                }
            }
        }
    }
}

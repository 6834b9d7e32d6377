// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Caller} from "./Caller.sol";

/// @title In place of an asset holder: refuses outcomes, or calls somebody when it gets one
contract HostileAsset is Caller {
    bool public refuses;

    function refuse(bool refuses_) external {
        refuses = refuses_;
    }

    function setOutcome(bytes32, address[] calldata, uint256[] calldata) external {
        require(!refuses, "HostileAsset: no");
        _callBack();
    }
}

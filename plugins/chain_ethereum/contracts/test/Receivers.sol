// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Caller} from "./Caller.sol";

/// @title Cannot be paid: has no receive function
contract NoReceive {
    function nothing() external pure {}
}

/// @title Keeps books in its receive function, which costs far more than the 2,300 gas of a transfer
contract CostlyReceive {
    mapping(uint256 => uint256) public payments;
    uint256 public count;

    receive() external payable {
        payments[count] = msg.value;
        ++count;
    }
}

/// @title Calls back while it is paid
contract CallsBackReceive is Caller {
    receive() external payable {
        _callBack();
    }
}

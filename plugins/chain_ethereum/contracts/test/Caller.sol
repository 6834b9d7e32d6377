// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Calls somebody when it is itself called
/// @notice For tests. Remembers whether the call succeeded and never fails because of it.
abstract contract Caller {
    address private _target;
    bytes private _data;

    /// @notice How often the call was made, and how often it succeeded.
    uint256 public attempts;
    uint256 public successes;

    function aim(address target, bytes calldata data) external {
        _target = target;
        _data = data;
    }

    function _callBack() internal {
        ++attempts;
        (bool ok, ) = _target.call(_data);
        if (ok) {
            ++successes;
        }
    }
}

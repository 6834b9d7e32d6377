// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The token interface of EIP-20
interface IERC20 {
    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    /// @notice Base units in existence.
    function totalSupply() external view returns (uint256);

    /// @notice Base units owned by `account`.
    function balanceOf(address account) external view returns (uint256);

    /// @notice Moves `amount` from the sender to `recipient`.
    function transfer(address recipient, uint256 amount) external returns (bool);

    /// @notice What `spender` may still take from `owner`.
    function allowance(address owner, address spender) external view returns (uint256);

    /// @notice Lets `spender` take up to `amount` from the sender.
    function approve(address spender, uint256 amount) external returns (bool);

    /// @notice Moves `amount` from `sender` to `recipient` on the allowance given to the caller.
    function transferFrom(address sender, address recipient, uint256 amount) external returns (bool);
}

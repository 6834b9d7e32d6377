// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "./IERC20.sol";
import {Sums} from "./Sums.sol";

/// @title The token of the test set-up
/// @notice EIP-20 with a fixed supply minted at deployment (CHAIN.md 1.6). An unlimited allowance is not special:
/// every `transferFrom` lowers the allowance and reports it with `Approval`, after `Transfer`.
contract PerunToken is IERC20 {
    using Sums for uint256;

    string public constant name = "PerunToken";
    string public constant symbol = "PRN";
    uint8 public constant decimals = 18;

    mapping(address => uint256) public override balanceOf;
    mapping(address => mapping(address => uint256)) public override allowance;
    uint256 public override totalSupply;

    /// @notice Mints `initBalance` base units to each of `accounts`.
    constructor(address[] memory accounts, uint256 initBalance) {
        uint256 supply = 0;
        for (uint256 i = 0; i < accounts.length; ++i) {
            address account = accounts[i];
            require(account != address(0), "ERC20: mint to the zero address");
            supply = supply.plus(initBalance);
            // No overflow: a balance is at most the supply.
            unchecked {
                balanceOf[account] += initBalance;
            }
            emit Transfer(address(0), account, initBalance);
        }
        totalSupply = supply;
    }

    /// @inheritdoc IERC20
    function transfer(address recipient, uint256 amount) external override returns (bool) {
        _move(msg.sender, recipient, amount);
        return true;
    }

    /// @inheritdoc IERC20
    function approve(address spender, uint256 amount) external override returns (bool) {
        _allow(msg.sender, spender, amount);
        return true;
    }

    /// @inheritdoc IERC20
    function transferFrom(address sender, address recipient, uint256 amount) external override returns (bool) {
        _move(sender, recipient, amount);
        uint256 allowed = allowance[sender][msg.sender];
        require(allowed >= amount, "ERC20: transfer amount exceeds allowance");
        unchecked {
            _allow(sender, msg.sender, allowed - amount);
        }
        return true;
    }

    /// @notice Lets `spender` take `addedValue` more from the sender.
    function increaseAllowance(address spender, uint256 addedValue) external returns (bool) {
        _allow(msg.sender, spender, allowance[msg.sender][spender].plus(addedValue));
        return true;
    }

    /// @notice Lets `spender` take `subtractedValue` less from the sender.
    function decreaseAllowance(address spender, uint256 subtractedValue) external returns (bool) {
        uint256 allowed = allowance[msg.sender][spender];
        require(allowed >= subtractedValue, "ERC20: decreased allowance below zero");
        unchecked {
            _allow(msg.sender, spender, allowed - subtractedValue);
        }
        return true;
    }

    function _move(address sender, address recipient, uint256 amount) private {
        require(sender != address(0), "ERC20: transfer from the zero address");
        require(recipient != address(0), "ERC20: transfer to the zero address");
        uint256 balance = balanceOf[sender];
        require(balance >= amount, "ERC20: transfer amount exceeds balance");
        // The sender is lowered before the recipient is read: both may be the same account. No overflow: a balance is
        // at most the supply.
        unchecked {
            balanceOf[sender] = balance - amount;
            balanceOf[recipient] += amount;
        }
        emit Transfer(sender, recipient, amount);
    }

    function _allow(address owner, address spender, uint256 amount) private {
        require(owner != address(0), "ERC20: approve from the zero address");
        require(spender != address(0), "ERC20: approve to the zero address");
        allowance[owner][spender] = amount;
        emit Approval(owner, spender, amount);
    }
}

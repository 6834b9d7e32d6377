// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Signature} from "./Signature.sol";
import {Sums} from "./Sums.sol";

/// @title Keeps one asset for all channels of one adjudicator
/// @notice Money enters with `deposit`, is distributed once per channel by the adjudicator with `setOutcome`, and leaves
/// with `withdraw` on the signature of the participant it belongs to (CHAIN.md 1.5). The kind of asset is the business
/// of the two hooks at the end.
/// @dev Guarantee: what `withdraw` can ever pay for a channel is what was deposited for it. In particular a participant
/// that is listed more than once owns its deposit once (CHAIN.md 1.11 DEV-1).
abstract contract AssetHolder {
    using Sums for uint256;
    using Sums for uint256[];

    /// @notice Permission to pay `amount` base units of `participant`'s share of a channel to `receiver`.
    struct WithdrawalAuth {
        bytes32 channelID;
        address participant;
        address payable receiver;
        uint256 amount;
    }

    event OutcomeSet(bytes32 indexed channelID);
    event Deposited(bytes32 indexed fundingID, uint256 amount);
    event Withdrawn(bytes32 indexed fundingID, uint256 amount, address receiver);

    /// @notice Base units held per funding ID, keccak256(abi.encode(channelID, participant)).
    mapping(bytes32 => uint256) public holdings;

    /// @notice Whether the outcome of a channel has been set, by channel ID.
    mapping(bytes32 => bool) public settled;

    /// @notice The only account that may set outcomes.
    /// @dev An immutable instead of a storage variable: it is read on every settlement. Validation of deployed code
    /// therefore compares the code and the address embedded in it.
    address public immutable adjudicator;

    constructor(address adjudicator_) {
        adjudicator = adjudicator_;
    }

    /// @notice Credits `amount` to `fundingID`, paid by the sender. Anyone may pay for anyone, also after settlement.
    function deposit(bytes32 fundingID, uint256 amount) external payable {
        _checkDeposit(amount);
        holdings[fundingID] = holdings[fundingID].plus(amount);
        _collect(amount);
        emit Deposited(fundingID, amount);
    }

    /// @notice Distributes the deposits of a channel: participant `parts[i]` owns `newBals[i]` from now on.
    /// @dev Deposits under the channel ID itself belong to the channel as a whole and are used up. If the channel holds
    /// less than its outcome, every participant keeps its own deposit instead (CHAIN.md 1.5.1). Either way the channel
    /// is settled for good.
    function setOutcome(bytes32 channelID, address[] calldata parts, uint256[] calldata newBals) external {
        require(msg.sender == adjudicator, "can only be called by the adjudicator");
        require(parts.length == newBals.length, "participants length should equal balances");
        require(!settled[channelID], "trying to set already settled channel");
        settled[channelID] = true;

        uint256 held = holdings[channelID];
        if (held != 0) {
            holdings[channelID] = 0;
        }

        // Take every deposit out while counting it, so that a funding ID that occurs again counts as empty (DEV-1).
        uint256[] memory deposits = new uint256[](parts.length);
        for (uint256 i = 0; i < parts.length; ++i) {
            bytes32 fundingID = _fundingID(channelID, parts[i]);
            uint256 own = holdings[fundingID];
            if (own != 0) {
                holdings[fundingID] = 0;
                deposits[i] = own;
                held = held.plus(own);
            }
        }

        // Put back the outcome if the channel can pay it, else what was taken out. Adding (instead of writing) gives a
        // participant that is listed twice the sum of its shares; no sum here exceeds `held`.
        bool funded = held >= newBals.total();
        for (uint256 i = 0; i < parts.length; ++i) {
            uint256 share = funded ? newBals[i] : deposits[i];
            if (share != 0) {
                unchecked {
                    holdings[_fundingID(channelID, parts[i])] += share;
                }
            }
        }
        emit OutcomeSet(channelID);
    }

    /// @notice Pays `authorization.amount` to `authorization.receiver` on the signature of the participant.
    /// @dev Anyone may send it. It has no nonce: it stays usable as long as the participant's share suffices. The share
    /// is lowered before anything is paid, so re-entering gains nothing.
    function withdraw(WithdrawalAuth calldata authorization, bytes calldata signature) external {
        require(settled[authorization.channelID], "channel not settled");
        bytes32 digest = Signature.digest(keccak256(abi.encode(authorization)));
        require(
            Signature.recover(digest, signature) == authorization.participant,
            "signature verification failed"
        );
        bytes32 fundingID = _fundingID(authorization.channelID, authorization.participant);
        uint256 own = holdings[fundingID];
        uint256 amount = authorization.amount;
        require(own >= amount, "insufficient funds");
        unchecked {
            holdings[fundingID] = own - amount;
        }
        _pay(authorization.receiver, amount);
        emit Withdrawn(fundingID, amount, authorization.receiver);
    }

    /// @dev keccak256(abi.encode(channelID, participant)): two words, exactly the scratch space.
    function _fundingID(bytes32 channelID, address participant) private pure returns (bytes32 result) {
        assembly ("memory-safe") {
            mstore(0x00, channelID)
            mstore(0x20, participant)
            result := keccak256(0x00, 0x40)
        }
    }

    /// @dev Reverts if the call itself cannot pay `amount`. Runs before anything is credited.
    function _checkDeposit(uint256 amount) internal virtual;

    /// @dev Takes `amount` from the sender or reverts. Runs after crediting.
    function _collect(uint256 amount) internal virtual;

    /// @dev Pays `amount` to `receiver` or reverts. Runs after debiting.
    function _pay(address payable receiver, uint256 amount) internal virtual;
}

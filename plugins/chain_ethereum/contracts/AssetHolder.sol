// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Signature} from "./Signature.sol";

/// @title Keeps one asset for all channels of one adjudicator
/// @notice Money enters with `deposit`, is distributed once per channel by the adjudicator with `setOutcome`, and leaves
/// with `withdraw` on the signature of the participant it belongs to (CHAIN.md 1.5). The kind of asset is the business
/// of the two hooks at the end.
/// @dev Guarantee: what `withdraw` can ever pay for a channel is what was deposited for it. In particular a participant
/// that is listed more than once owns its deposit once (CHAIN.md 1.11 DEV-1).
abstract contract AssetHolder {
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

    /// @dev Bits of an entry that hold an amount; amounts and their sums are limited to this, 2^254 - 1.
    uint256 private constant AMOUNT = (1 << 254) - 1;

    /// @dev Set in the entry of a channel ID when the outcome of the channel is set, and never unset.
    uint256 private constant SETTLED = 1 << 255;

    /// @dev Set in the entry of a participant that got a share when the outcome of its channel was set. A copy of
    /// SETTLED where a withdrawal looks anyway (saves it 2,100 gas). It goes with the last of the share, so that the
    /// entry becomes empty; whoever misses it looks at SETTLED.
    uint256 private constant SHARED = 1 << 254;

    /// @dev What is known under a funding ID or channel ID: amount and flags. One word for both saves a settlement
    /// 2,100 gas: the deposits under the channel ID itself are looked up anyway. Keys are hashes of different lengths,
    /// so a funding ID is never a channel ID. A struct, so that the place of an entry is computed once per call.
    struct Entry {
        uint256 word;
    }

    mapping(bytes32 => Entry) private _entries;

    /// @notice The only account that may set outcomes.
    /// @dev An immutable instead of a storage variable: it is read on every settlement. Validation of deployed code
    /// therefore compares the code and the address embedded in it.
    address public immutable adjudicator;

    constructor(address adjudicator_) {
        adjudicator = adjudicator_;
    }

    /// @notice Base units held per funding ID, keccak256(abi.encode(channelID, participant)).
    function holdings(bytes32 fundingID) external view returns (uint256) {
        return _entries[fundingID].word & AMOUNT;
    }

    /// @notice Whether the outcome of a channel has been set, by channel ID.
    function settled(bytes32 channelID) external view returns (bool) {
        return _entries[channelID].word & SETTLED != 0;
    }

    /// @notice Credits `amount` to `fundingID`, paid by the sender. Anyone may pay for anyone, also after settlement.
    function deposit(bytes32 fundingID, uint256 amount) external payable {
        _checkDeposit(amount);
        Entry storage entry = _entries[fundingID];
        uint256 word = entry.word;
        unchecked {
            require(amount <= AMOUNT - (word & AMOUNT), "SafeMath: addition overflow");
            entry.word = word + amount;
        }
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
        Entry storage entry = _entries[channelID];
        uint256 word = entry.word;
        require(word & SETTLED == 0, "trying to set already settled channel");
        entry.word = SETTLED;

        (uint256 held, uint256 outcome, uint256[] memory deposits) = _share(channelID, parts, newBals, word & AMOUNT);
        if (held < outcome) {
            _giveBack(channelID, parts, deposits);
        }
        emit OutcomeSet(channelID);
    }

    /// @notice Pays `authorization.amount` to `authorization.receiver` on the signature of the participant.
    /// @dev Anyone may send it. It has no nonce: it stays usable as long as the participant's share suffices. The share
    /// is lowered before anything is paid, so re-entering gains nothing.
    function withdraw(WithdrawalAuth calldata authorization, bytes calldata signature) external {
        address participant = authorization.participant;
        address payable receiver = authorization.receiver;
        uint256 amount = authorization.amount;
        bytes32 fundingID = _fundingID(authorization.channelID, participant);
        Entry storage entry = _entries[fundingID];
        uint256 word = entry.word;
        if (word & SHARED == 0) {
            require(_entries[authorization.channelID].word & SETTLED != 0, "channel not settled");
        }
        // The addresses were checked when they were read: these four words are their own encoding.
        bytes32 hash;
        assembly ("memory-safe") {
            let copy := mload(0x40)
            calldatacopy(copy, authorization, 0x80)
            hash := keccak256(copy, 0x80)
        }
        require(
            Signature.recover(Signature.digest(hash), signature) == participant,
            "signature verification failed"
        );
        uint256 own = word & AMOUNT;
        require(own >= amount, "insufficient funds");
        unchecked {
            entry.word = own == amount ? 0 : word - amount;
        }
        _pay(receiver, amount);
        emit Withdrawn(fundingID, amount, receiver);
    }

    /// @dev Takes the deposit of every participant out of its entry and puts its share in, in one pass, as if the
    /// channel could pay: nearly every channel can. A participant that occurs again is recognised by SHARED, or by its
    /// empty entry if its share so far is nothing: its deposit counts once (DEV-1) and it gets the sum of its shares.
    /// Reverts if the deposits or the shares exceed AMOUNT.
    /// @param held What the channel holds besides the deposits of its participants.
    /// @return total What the channel holds in all.
    /// @return outcome The sum of the shares.
    /// @return deposits What was taken out, by index of the participant; 0 for repeated ones.
    function _share(
        bytes32 channelID,
        address[] calldata parts,
        uint256[] calldata newBals,
        uint256 held
    ) private returns (uint256 total, uint256 outcome, uint256[] memory deposits) {
        total = held;
        // All that was ever summed up, or-ed: if no item and no sum so far exceeds AMOUNT, the next sum cannot wrap.
        uint256 seen = 0;
        assembly ("memory-safe") {
            let length := shl(5, parts.length)
            deposits := mload(0x40)
            mstore(deposits, parts.length)
            mstore(0x40, add(add(deposits, 0x20), length))
            for { let at := 0 } lt(at, length) { at := add(at, 0x20) } {
                let participant := calldataload(add(parts.offset, at))
                if shr(160, participant) {
                    revert(0, 0)
                }
                mstore(0x00, channelID)
                mstore(0x20, participant)
                mstore(0x00, keccak256(0x00, 0x40))
                mstore(0x20, _entries.slot)
                let slot := keccak256(0x00, 0x40)
                let entry := sload(slot)
                let share := calldataload(add(newBals.offset, at))
                outcome := add(outcome, share)
                seen := or(seen, or(share, outcome))
                let own := 0
                let updated := 0
                switch and(entry, SHARED)
                case 0 {
                    own := entry
                    total := add(total, own)
                    seen := or(seen, total)
                    if share {
                        updated := or(share, SHARED)
                    }
                }
                default {
                    updated := add(entry, share)
                }
                mstore(add(add(deposits, 0x20), at), own)
                if xor(entry, updated) {
                    sstore(slot, updated)
                }
            }
        }
        require(seen <= AMOUNT, "SafeMath: addition overflow");
    }

    /// @dev Undoes `_share`: every participant owns its deposit. From the last to the first, so that of several
    /// occurrences of a participant the first one stays.
    function _giveBack(bytes32 channelID, address[] calldata parts, uint256[] memory deposits) private {
        for (uint256 i = parts.length; i > 0; --i) {
            uint256 own = deposits[i - 1];
            _entries[_fundingID(channelID, parts[i - 1])].word = own == 0 ? 0 : own | SHARED;
        }
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

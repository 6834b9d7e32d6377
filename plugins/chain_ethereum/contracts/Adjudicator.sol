// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {App} from "./App.sol";
import {Channel} from "./Channel.sol";
import {Rules} from "./Rules.sol";
import {Signature} from "./Signature.sol";
import {Sums} from "./Sums.sol";

/// @title The part of an asset holder that the adjudicator uses
interface OutcomeReceiver {
    /// @notice See AssetHolder.setOutcome.
    function setOutcome(bytes32 channelID, address[] calldata parts, uint256[] calldata newBals) external;
}

/// @title Decides which state of a channel counts when its participants disagree
/// @notice A participant registers the newest state it has; within the challenge duration anybody may replace it by a
/// newer one; app channels can then be progressed on chain; in the end the channel is concluded and its outcome is
/// handed to the asset holders. Channels whose participants agree go through `concludeFinal` at once.
/// @dev No owner, no constructor arguments, not upgradeable. The order of checks and their reasons are part of the
/// behaviour (CHAIN.md 1.3). All times are block times in seconds. Guarantees beyond the state itself:
/// only channels that are not funded on chain can be sub-channels (DEV-2), no channel is concluded before its own
/// dispute is over (DEV-3), no state is accepted whose shape cannot be paid out (DEV-4), and every write of a dispute
/// emits exactly one event (DEV-5); see CHAIN.md 1.11.
contract Adjudicator {
    using Channel for Channel.Params;
    using Channel for Channel.State;
    using Sums for uint256;
    using Sums for uint64;

    enum Phase {
        DISPUTE,
        FORCEEXEC,
        CONCLUDED
    }

    /// @notice What is known of a channel on chain. The first five members share one storage slot.
    struct Dispute {
        uint64 timeout;
        uint64 challengeDuration;
        uint64 version;
        bool hasApp;
        uint8 phase;
        bytes32 stateHash;
    }

    /// @notice The dispute of each channel ID; registered if `stateHash` is not zero.
    mapping(bytes32 => Dispute) public disputes;

    event ChannelUpdate(bytes32 indexed channelID, uint64 version, uint8 phase, uint64 timeout);

    /// @notice Registers a state, or refutes the registered one with a newer state, for a ledger channel and all
    /// sub-channels it has locked funds for.
    /// @param channel The ledger channel.
    /// @param subChannels Its sub-channels in depth-first order; entries beyond the tree are ignored.
    function register(Channel.SignedState calldata channel, Channel.SignedState[] calldata subChannels) external {
        require(channel.params.ledgerChannel, "not ledger");
        _registerTree(channel, subChannels, 0);
    }

    /// @notice Moves the registered state of an app channel forward on the signature of one participant.
    /// @param params The channel.
    /// @param stateOld The registered state.
    /// @param state Its successor, valid by the rules of the app.
    /// @param actorIdx Index of the participant that moves.
    /// @param sig That participant's signature on `state`.
    function progress(
        Channel.Params calldata params,
        Channel.State calldata stateOld,
        Channel.State calldata state,
        uint256 actorIdx,
        bytes calldata sig
    ) external {
        bytes32 id = state.channelID;
        Dispute memory dispute = disputes[id];
        require(dispute.stateHash != 0, "not registered");
        if (dispute.phase == uint8(Phase.DISPUTE)) {
            require(block.timestamp >= dispute.timeout, "timeout not passed");
        } else {
            require(dispute.phase == uint8(Phase.FORCEEXEC), "invalid phase");
            require(block.timestamp < dispute.timeout, "timeout passed");
        }
        require(params.app != address(0), "must have app");
        (bytes32 expected, address[] calldata participants) = params.identify();
        require(actorIdx < participants.length, "actorIdx out of range");
        require(id == expected, "invalid params");
        require(dispute.stateHash == stateOld.hash(), "wrong old state");
        bytes32 hash = state.hash();
        require(Signature.recover(Signature.digest(hash), sig) == participants[actorIdx], "invalid signature");
        unchecked {
            require(state.version == stateOld.version + 1, "version must increment by one");
        }
        require(!stateOld.isFinal, "cannot progress from final state");
        Rules.requirePreserved(stateOld.outcome, state.outcome, participants.length);
        App(params.app).validTransition(params, stateOld, state, actorIdx);
        uint64 duration = uint64(params.challengeDuration);
        _write(id, params, state, Phase.FORCEEXEC, _deadline(duration, state.isFinal), hash);
    }

    /// @notice Concludes a registered ledger channel with all its sub-channels after their disputes are over, and hands
    /// the outcome to the asset holders.
    /// @param params The ledger channel.
    /// @param state Its registered state.
    /// @param subStates The registered states of its sub-channels in depth-first order.
    function conclude(
        Channel.Params calldata params,
        Channel.State calldata state,
        Channel.State[] calldata subStates
    ) external {
        require(params.ledgerChannel, "not ledger");
        (bytes32 id, address[] calldata participants) = params.identify();
        require(state.channelID == id, "invalid params");
        require(!_conclude(state, id), "channel already concluded");
        Channel.Allocation calldata outcome = state.outcome;
        address[] calldata assets = outcome.assets;
        if (outcome.locked.length == 0) {
            _payOut(id, participants, assets, outcome.balances);
            return;
        }
        (uint256[][] memory merged, ) = _concludeTree(outcome, subStates, 0, assets.length);
        for (uint256 a = 0; a < merged.length; ++a) {
            OutcomeReceiver(assets[a]).setOutcome(id, participants, merged[a]);
        }
    }

    /// @notice Concludes a ledger channel at once on a final state signed by all, whatever is registered.
    function concludeFinal(
        Channel.Params calldata params,
        Channel.State calldata state,
        bytes[] calldata sigs
    ) external {
        require(params.ledgerChannel, "not ledger");
        require(state.isFinal, "state not final");
        require(state.outcome.locked.length == 0, "cannot have sub-channels");
        (bytes32 id, address[] calldata participants) = params.identify();
        require(state.channelID == id, "invalid params");
        (bytes32 hash, address[] calldata assets, uint256[][] calldata balances) = state.read();
        Rules.requireSigned(participants, hash, sigs);
        // An unregistered channel is in phase DISPUTE, so the phase alone decides.
        require(disputes[id].phase != uint8(Phase.CONCLUDED), "channel already concluded");
        Rules.requireShape(participants.length, assets, balances);
        _write(id, params, state, Phase.CONCLUDED, uint64(block.timestamp), hash);
        _payOut(id, participants, assets, balances);
    }

    /// @notice The channel ID of `params`.
    function channelID(Channel.Params calldata params) external pure returns (bytes32) {
        (bytes32 id, ) = params.identify();
        return id;
    }

    /// @notice The hash of `state`.
    function hashState(Channel.State calldata state) external pure returns (bytes32) {
        return state.hash();
    }

    /// @dev Registers `channel` and, recursively, the sub-channels of its locked funds, which are taken from
    /// `subChannels` starting at index `next`.
    /// @return accumulated Everything the channel holds, per asset: its own balances and those of its sub-channels.
    /// @return nextOut Index of the first entry of `subChannels` that was not used.
    function _registerTree(
        Channel.SignedState calldata channel,
        Channel.SignedState[] calldata subChannels,
        uint256 next
    ) private returns (uint256[] memory accumulated, uint256 nextOut) {
        uint256 participants = _registerOne(channel.params, channel.state, channel.sigs);
        Channel.Allocation calldata outcome = channel.state.outcome;
        address[] calldata assets = outcome.assets;
        uint256[][] calldata balances = outcome.balances;
        Rules.requireShape(participants, assets, balances);
        accumulated = Rules.totals(balances);

        Channel.SubAlloc[] calldata locked = outcome.locked;
        require(locked.length <= subChannels.length, "subChannels: too short");
        for (uint256 i = 0; i < locked.length; ++i) {
            Channel.SignedState calldata sub = subChannels[next++];
            require(sub.state.channelID == locked[i].ID, "invalid sub-channel id");
            require(!sub.params.ledgerChannel, "sub-channel is ledger");
            uint256[] memory subTotals;
            (subTotals, next) = _registerTree(sub, subChannels, next);
            Rules.requireSameAssets(assets, sub.state.outcome.assets);
            Rules.addLocked(accumulated, locked[i].balances, subTotals);
        }
        nextOut = next;
    }

    /// @dev Checks one signed state against its channel and against what is registered, and writes it unless it is
    /// the registered one already.
    /// @return The number of participants.
    function _registerOne(
        Channel.Params calldata params,
        Channel.State calldata state,
        bytes[] calldata sigs
    ) private returns (uint256) {
        (bytes32 id, address[] calldata participants) = params.identify();
        require(state.channelID == id, "invalid params");
        bytes32 hash = state.hash();
        Rules.requireSigned(participants, hash, sigs);
        if (params.virtualChannel) {
            require(params.app == address(0), "cannot have app");
            require(state.outcome.locked.length == 0, "cannot have locked funds");
        }

        bytes32 registered = disputes[id].stateHash;
        if (registered == hash) {
            return participants.length;
        }
        uint64 timeout;
        if (registered == 0) {
            timeout = _deadline(uint64(params.challengeDuration), state.isFinal);
        } else {
            Dispute memory dispute = disputes[id];
            require(dispute.version < state.version, "invalid version");
            require(dispute.phase == uint8(Phase.DISPUTE), "incorrect phase");
            require(block.timestamp < dispute.timeout, "refutation timeout passed");
            // A refutation never extends a dispute; only a final state ends it at once.
            timeout = state.isFinal ? uint64(block.timestamp) : dispute.timeout;
        }
        _write(id, params, state, Phase.DISPUTE, timeout, hash);
        return participants.length;
    }

    /// @dev Marks the channel of a registered `state` as concluded if its own dispute is over. This is the rule for
    /// every channel of a tree (DEV-3).
    /// @return already Whether it was concluded before; then nothing is written and no event is emitted.
    function _conclude(Channel.State calldata state, bytes32 id) private returns (bool already) {
        Dispute storage slot = disputes[id];
        Dispute memory dispute = slot;
        require(dispute.stateHash != 0, "not registered");
        require(dispute.stateHash == state.hash(), "invalid channel state");
        if (dispute.phase == uint8(Phase.CONCLUDED)) {
            return true;
        }
        uint64 timeout = dispute.timeout;
        if (dispute.hasApp && dispute.phase == uint8(Phase.DISPUTE)) {
            // After the dispute an app channel can be progressed for one challenge duration.
            timeout = timeout.plus64(dispute.challengeDuration);
        }
        require(block.timestamp >= timeout, "timeout not passed yet");
        slot.timeout = timeout;
        slot.phase = uint8(Phase.CONCLUDED);
        emit ChannelUpdate(id, dispute.version, uint8(Phase.CONCLUDED), timeout);
    }

    /// @dev The outcome of a channel, whose dispute is concluded already, with the outcomes of its sub-channels merged
    /// in; concludes these, which are taken from `subStates` starting at index `next`.
    /// @param parent The allocation of the channel.
    /// @param assets The number of assets of the whole tree.
    /// @return outcome Balance per asset and participant of the channel.
    /// @return nextOut Index of the first entry of `subStates` that was not used.
    function _concludeTree(
        Channel.Allocation calldata parent,
        Channel.State[] calldata subStates,
        uint256 next,
        uint256 assets
    ) private returns (uint256[][] memory outcome, uint256 nextOut) {
        outcome = new uint256[][](assets);
        uint256[][] calldata balances = parent.balances;
        for (uint256 a = 0; a < assets; ++a) {
            outcome[a] = balances[a];
        }
        Channel.SubAlloc[] calldata locked = parent.locked;
        for (uint256 i = 0; i < locked.length; ++i) {
            Channel.State calldata sub = subStates[next++];
            require(sub.channelID == locked[i].ID, "invalid subchannel id");
            _conclude(sub, sub.channelID);
            uint256[][] memory subOutcome;
            (subOutcome, next) = _concludeTree(sub.outcome, subStates, next, assets);
            Rules.mergeOutcome(outcome, subOutcome, locked[i].indexMap);
        }
        nextOut = next;
    }

    /// @dev Hands an outcome without sub-channels to the asset holders, straight from calldata: participants (checked
    /// when the channel ID was computed) and balances are copied as they are, which saves decoding and encoding them
    /// again (about 700 gas per asset). An asset that is not a contract reverts without data; the revert data of an
    /// asset is passed on.
    function _payOut(
        bytes32 id,
        address[] calldata participants,
        address[] calldata assets,
        uint256[][] calldata rows
    ) private {
        bytes4 selector = OutcomeReceiver.setOutcome.selector;
        for (uint256 a = 0; a < assets.length; ++a) {
            address asset = assets[a];
            uint256[] calldata balances = rows[a];
            assembly ("memory-safe") {
                let data := mload(0x40)
                let length := shl(5, participants.length)
                mstore(data, selector)
                mstore(add(data, 0x04), id)
                mstore(add(data, 0x24), 0x60)
                mstore(add(data, 0x44), add(0x80, length))
                mstore(add(data, 0x64), participants.length)
                calldatacopy(add(data, 0x84), participants.offset, length)
                let end := add(add(data, 0x84), length)
                length := shl(5, balances.length)
                mstore(end, balances.length)
                calldatacopy(add(end, 0x20), balances.offset, length)
                end := add(add(end, 0x20), length)
                if iszero(call(gas(), asset, 0, data, sub(end, data), 0, 0)) {
                    returndatacopy(data, 0, returndatasize())
                    revert(data, returndatasize())
                }
                if iszero(extcodesize(asset)) {
                    revert(0, 0)
                }
            }
        }
    }

    /// @dev End of a period that begins now: at once for a final state, else after `duration` seconds.
    function _deadline(uint64 duration, bool isFinal) private view returns (uint64) {
        uint64 current = uint64(block.timestamp);
        return isFinal ? current : current.plus64(duration);
    }

    function _write(
        bytes32 id,
        Channel.Params calldata params,
        Channel.State calldata state,
        Phase phase,
        uint64 timeout,
        bytes32 hash
    ) private {
        Dispute storage dispute = disputes[id];
        uint64 version = state.version;
        // The first five members as the one word they are stored in: nothing is read or masked.
        uint256 packed = uint256(timeout) |
            (uint256(uint64(params.challengeDuration)) << 64) |
            (uint256(version) << 128) |
            (uint256(params.app != address(0) ? 1 : 0) << 192) |
            (uint256(phase) << 200);
        assembly ("memory-safe") {
            sstore(dispute.slot, packed)
            sstore(add(dispute.slot, 1), hash)
        }
        emit ChannelUpdate(id, version, uint8(phase), timeout);
    }
}

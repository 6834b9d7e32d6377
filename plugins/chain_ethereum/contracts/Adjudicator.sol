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
        require(actorIdx < params.participants.length, "actorIdx out of range");
        require(id == params.id(), "invalid params");
        require(dispute.stateHash == stateOld.hash(), "wrong old state");
        bytes32 hash = state.hash();
        require(
            Signature.recover(Signature.digest(hash), sig) == params.participants[actorIdx],
            "invalid signature"
        );
        unchecked {
            require(state.version == stateOld.version + 1, "version must increment by one");
        }
        require(!stateOld.isFinal, "cannot progress from final state");
        Rules.requirePreserved(stateOld.outcome, state.outcome, params.participants.length);
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
        bytes32 id = params.id();
        require(state.channelID == id, "invalid params");
        require(!_conclude(state, id), "channel already concluded");
        if (state.outcome.locked.length == 0) {
            _payOut(id, params.participants, state.outcome);
            return;
        }
        (uint256[][] memory outcome, ) = _concludeTree(state, subStates, 0, state.outcome.assets.length);
        for (uint256 a = 0; a < outcome.length; ++a) {
            OutcomeReceiver(state.outcome.assets[a]).setOutcome(id, params.participants, outcome[a]);
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
        bytes32 id = params.id();
        require(state.channelID == id, "invalid params");
        bytes32 hash = state.hash();
        Rules.requireSigned(params.participants, hash, sigs);
        // An unregistered channel is in phase DISPUTE, so the phase alone decides.
        require(disputes[id].phase != uint8(Phase.CONCLUDED), "channel already concluded");
        Rules.requireShape(params.participants.length, state.outcome);
        _write(id, params, state, Phase.CONCLUDED, uint64(block.timestamp), hash);
        _payOut(id, params.participants, state.outcome);
    }

    /// @notice The channel ID of `params`.
    function channelID(Channel.Params calldata params) external pure returns (bytes32) {
        return params.id();
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
        _registerOne(channel.params, channel.state, channel.sigs);

        Channel.Allocation calldata outcome = channel.state.outcome;
        Rules.requireShape(channel.params.participants.length, outcome);
        accumulated = Rules.totals(outcome.balances);

        Channel.SubAlloc[] calldata locked = outcome.locked;
        require(locked.length <= subChannels.length, "subChannels: too short");
        for (uint256 i = 0; i < locked.length; ++i) {
            Channel.SignedState calldata sub = subChannels[next++];
            require(sub.state.channelID == locked[i].ID, "invalid sub-channel id");
            require(!sub.params.ledgerChannel, "sub-channel is ledger");
            uint256[] memory subTotals;
            (subTotals, next) = _registerTree(sub, subChannels, next);
            Rules.requireSameAssets(outcome.assets, sub.state.outcome.assets);
            Rules.addLocked(accumulated, locked[i].balances, subTotals);
        }
        nextOut = next;
    }

    /// @dev Checks one signed state against its channel and against what is registered, and writes it unless it is
    /// the registered one already.
    function _registerOne(
        Channel.Params calldata params,
        Channel.State calldata state,
        bytes[] calldata sigs
    ) private {
        bytes32 id = params.id();
        require(state.channelID == id, "invalid params");
        bytes32 hash = state.hash();
        Rules.requireSigned(params.participants, hash, sigs);
        if (params.virtualChannel) {
            require(params.app == address(0), "cannot have app");
            require(state.outcome.locked.length == 0, "cannot have locked funds");
        }

        bytes32 registered = disputes[id].stateHash;
        if (registered == hash) {
            return;
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

    /// @dev The outcome of `parent`, whose dispute is concluded already, with the outcomes of its sub-channels merged
    /// in; concludes these, which are taken from `subStates` starting at index `next`.
    /// @return outcome Balance per asset and participant of `parent`.
    /// @return nextOut Index of the first entry of `subStates` that was not used.
    function _concludeTree(
        Channel.State calldata parent,
        Channel.State[] calldata subStates,
        uint256 next,
        uint256 assets
    ) private returns (uint256[][] memory outcome, uint256 nextOut) {
        outcome = new uint256[][](assets);
        for (uint256 a = 0; a < assets; ++a) {
            outcome[a] = parent.outcome.balances[a];
        }
        Channel.SubAlloc[] calldata locked = parent.outcome.locked;
        for (uint256 i = 0; i < locked.length; ++i) {
            Channel.State calldata sub = subStates[next++];
            require(sub.channelID == locked[i].ID, "invalid subchannel id");
            _conclude(sub, sub.channelID);
            uint256[][] memory subOutcome;
            (subOutcome, next) = _concludeTree(sub, subStates, next, assets);
            Rules.mergeOutcome(outcome, subOutcome, locked[i].indexMap);
        }
        nextOut = next;
    }

    /// @dev Hands an outcome without sub-channels to the asset holders, straight from calldata.
    function _payOut(bytes32 id, address[] calldata participants, Channel.Allocation calldata outcome) private {
        for (uint256 a = 0; a < outcome.assets.length; ++a) {
            OutcomeReceiver(outcome.assets[a]).setOutcome(id, participants, outcome.balances[a]);
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
        disputes[id] = Dispute({
            timeout: timeout,
            challengeDuration: uint64(params.challengeDuration),
            version: state.version,
            hasApp: params.app != address(0),
            phase: uint8(phase),
            stateHash: hash
        });
        emit ChannelUpdate(id, state.version, uint8(phase), timeout);
    }
}

"""Funding_API, method by method (API.md 2.6): convert, call the node, convert. Errors are mapped in `binding`."""

from __future__ import annotations

import logging
from typing import Final

from perun_core.errors import ApiError, InvalidArgument
from perun_core.ports.api import FundWatchAPI, NodeAPI
from perun_core.values import Address, ChannelID, Sig

from .errors import answer_to
from .gate import Call, Gate
from .pb import funding_service_pb2 as pb
from .sdk import absent, balances_from, params_from, put_event, request_from, sized, state_from

logger: Final = logging.getLogger(__name__)


class Funding:
    """The methods. A response without error member means success."""

    def __init__(self, node: NodeAPI, gate: Gate) -> None:
        self._node = node
        self._gate = gate

    def _of(self, session_id: str) -> FundWatchAPI:
        """Raises: 201, 204."""
        return self._node.session(session_id).fundwatch()

    async def RegisterAssetERC20(self, request: pb.RegisterAssetERC20Req) -> pb.RegisterAssetERC20Resp:
        """The response has no place for an error: whatever is wrong is false, and said in the log."""
        try:
            service = self._of(request.sessionID)
            asset = sized(Address, request.asset, "asset")
            token, depositor = _address("token", request.tokenAddr), _address("deposiorAcc", request.deposiorAcc)
            return pb.RegisterAssetERC20Resp(msgSuccess=await service.register_asset(asset, token, depositor))
        except ApiError as error:
            logger.info("RegisterAssetERC20: %s", error)
            return pb.RegisterAssetERC20Resp(msgSuccess=False)

    async def IsAssetRegistered(self, request: pb.IsAssetRegisteredReq) -> pb.IsAssetRegisteredResp.MsgSuccess:
        known = self._of(request.sessionID).is_asset_registered(sized(Address, request.asset, "asset"))
        return pb.IsAssetRegisteredResp.MsgSuccess(isRegistered=known)

    async def Fund(self, request: pb.FundReq) -> pb.FundResp:
        service = self._of(request.sessionID)
        for field in ("params", "state", "agreement"):
            if not request.HasField(field):
                raise absent(field)
        params, state = params_from(request.params), state_from(request.state)
        await service.fund(params, state, request.idx, balances_from(request.agreement, "agreement"))
        return pb.FundResp()

    async def Register(self, request: pb.RegisterReq) -> pb.RegisterResp:
        service = self._of(request.sessionID)
        if not request.HasField("adjReq"):
            raise absent("adjReq")
        if request.signedStates:
            raise InvalidArgument("signedStates", "", "sub-channels are not supported", "must be empty")
        await service.register(request_from(request.adjReq))
        return pb.RegisterResp()

    async def Withdraw(self, request: pb.WithdrawReq) -> pb.WithdrawResp:
        service = self._of(request.sessionID)
        if not request.HasField("adjReq"):
            raise absent("adjReq")
        if request.stateMap:
            raise InvalidArgument("stateMap", "", "sub-channels are not supported", "must be empty")
        await service.withdraw(request_from(request.adjReq))
        return pb.WithdrawResp()

    async def Progress(self, request: pb.ProgressReq) -> pb.ProgressResp:
        service = self._of(request.sessionID)
        if not request.HasField("adjReq"):
            raise absent("adjReq")
        if not request.HasField("newState"):
            raise absent("newState")
        wanted, new_state = request_from(request.adjReq), state_from(request.newState)
        await service.progress(wanted, new_state, sized(Sig, request.sig, "sig"))
        return pb.ProgressResp()

    async def Unsubscribe(self, request: pb.UnsubscribeReq) -> pb.UnsubscribeResp:
        self._of(request.sessionID).unsubscribe(sized(ChannelID, request.chID, "chID"))
        return pb.UnsubscribeResp()

    async def Subscribe(self, request: pb.SubscribeReq, call: Call) -> None:
        """Events until Unsubscribe, the end of the session, or the client is gone; an error is told in band."""
        if not self._gate.is_open:
            await self._gate.refuse(call)
        await self._gate.run(call, self._tell(request, call), endless=True)

    async def _tell(self, request: pb.SubscribeReq, call: Call) -> None:
        try:
            events = self._of(request.sessionID).subscribe(sized(ChannelID, request.chID, "chID"))
        except Exception as failure:
            await call.write(pb.SubscribeResp(error=answer_to(failure, method="Subscribe")[1]))
            return
        try:
            await call.send_initial_metadata(())  # tells the client that the subscription stands
            async for event in events:
                await call.write(put_event(pb.SubscribeResp(), event))
        finally:
            events.cancel()


def _address(name: str, text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise InvalidArgument(name, text, str(error)) from error

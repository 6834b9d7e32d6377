"""Payment_API, method by method: convert, call the node, convert. Errors are mapped in `binding`.

The names are those of the service. A handler returns the success member of its response, or the whole response where
that has no error member.
"""

from __future__ import annotations

from perun_core.errors import InvalidArgument
from perun_core.ports.api import NodeAPI, SessionAPI

from .convert import balances_from, channel_to, channels_to, payments_from, peer_from, peer_to
from .pb import payment_service_pb2 as pb


class Payment:
    """The unary methods. Client cancellation reaches the node as cancellation of its call (API.md 2.2.5)."""

    def __init__(self, node: NodeAPI) -> None:
        self._node = node

    # ------------------------------------------------------------------------------------------------------- node

    async def GetConfig(self, request: pb.GetConfigReq) -> pb.GetConfigResp:
        info = self._node.config()
        return pb.GetConfigResp(
            chainAddress=info.chain_address,
            adjudicator=info.adjudicator,
            assetETH=info.asset_eth,
            commTypes=info.comm_types,
            idProviderTypes=info.id_provider_types,
        )

    async def Time(self, request: pb.TimeReq) -> pb.TimeResp:
        return pb.TimeResp(time=self._node.time())

    async def Help(self, request: pb.HelpReq) -> pb.HelpResp:
        return pb.HelpResp(apis=self._node.services())

    async def RegisterCurrency(self, request: pb.RegisterCurrencyReq) -> pb.RegisterCurrencyResp.MsgSuccess:
        symbol = await self._node.register_currency(request.tokenAddr, request.assetAddr)
        return pb.RegisterCurrencyResp.MsgSuccess(symbol=symbol)

    async def OpenSession(self, request: pb.OpenSessionReq) -> pb.OpenSessionResp.MsgSuccess:
        opened = await self._node.open_session(request.configFile)
        return pb.OpenSessionResp.MsgSuccess(sessionID=opened.session_id, restoredChs=channels_to(opened.restored))

    # ---------------------------------------------------------------------------------------------------- session

    async def AddPeerID(self, request: pb.AddPeerIDReq) -> pb.AddPeerIDResp.MsgSuccess:
        session = self._node.session(request.sessionID)
        if not request.HasField("peerID"):
            raise missing("peerID", session)
        await session.add_peer_id(peer_from(request.peerID))
        return pb.AddPeerIDResp.MsgSuccess(success=True)

    async def GetPeerID(self, request: pb.GetPeerIDReq) -> pb.GetPeerIDResp.MsgSuccess:
        peer = await self._node.session(request.sessionID).get_peer_id(request.alias)
        return pb.GetPeerIDResp.MsgSuccess(peerID=peer_to(peer))

    async def OpenPayCh(self, request: pb.OpenPayChReq) -> pb.OpenPayChResp.MsgSuccess:
        session = self._node.session(request.sessionID)
        if not request.HasField("openingBalInfo"):
            raise missing("openingBalInfo", session)
        opened = await session.open_channel(balances_from(request.openingBalInfo), request.challengeDurSecs)
        return pb.OpenPayChResp.MsgSuccess(openedPayChInfo=channel_to(opened))

    async def GetPayChsInfo(self, request: pb.GetPayChsInfoReq) -> pb.GetPayChsInfoResp.MsgSuccess:
        channels = self._node.session(request.sessionID).channels()
        return pb.GetPayChsInfoResp.MsgSuccess(openPayChsInfo=channels_to(channels))

    async def UnsubPayChProposals(self, request: pb.UnsubPayChProposalsReq) -> pb.UnsubPayChProposalsResp.MsgSuccess:
        self._node.session(request.sessionID).unsubscribe_proposals()
        return pb.UnsubPayChProposalsResp.MsgSuccess(success=True)

    async def RespondPayChProposal(self, request: pb.RespondPayChProposalReq) -> pb.RespondPayChProposalResp.MsgSuccess:
        session = self._node.session(request.sessionID)
        opened = await session.respond_proposal(request.proposalID, accept=request.accept)
        return pb.RespondPayChProposalResp.MsgSuccess(openedPayChInfo=channel_to(opened))

    async def CloseSession(self, request: pb.CloseSessionReq) -> pb.CloseSessionResp.MsgSuccess:
        still_open = await self._node.session(request.sessionID).close(force=request.force)
        return pb.CloseSessionResp.MsgSuccess(openPayChsInfo=channels_to(still_open))

    async def DeployAssetERC20(self, request: pb.DeployAssetERC20Req) -> pb.DeployAssetERC20Resp.MsgSuccess:
        asset = await self._node.session(request.sessionID).deploy_asset_erc20(request.tokenAddr)
        return pb.DeployAssetERC20Resp.MsgSuccess(AssetAddr=asset)

    # ---------------------------------------------------------------------------------------------------- channel

    async def SendPayChUpdate(self, request: pb.SendPayChUpdateReq) -> pb.SendPayChUpdateResp.MsgSuccess:
        channel = self._node.session(request.sessionID).channel(request.chID)
        updated = await channel.send_update(payments_from(request.payments))
        return pb.SendPayChUpdateResp.MsgSuccess(updatedPayChInfo=channel_to(updated))

    async def UnsubPayChUpdates(self, request: pb.UnsubPayChUpdatesReq) -> pb.UnsubPayChUpdatesResp.MsgSuccess:
        self._node.session(request.sessionID).channel(request.chID).unsubscribe_updates()
        return pb.UnsubPayChUpdatesResp.MsgSuccess(success=True)

    async def RespondPayChUpdate(self, request: pb.RespondPayChUpdateReq) -> pb.RespondPayChUpdateResp.MsgSuccess:
        channel = self._node.session(request.sessionID).channel(request.chID)
        updated = await channel.respond_update(request.updateID, accept=request.accept)
        return pb.RespondPayChUpdateResp.MsgSuccess(updatedPayChInfo=channel_to(updated))

    async def GetPayChInfo(self, request: pb.GetPayChInfoReq) -> pb.GetPayChInfoResp.MsgSuccess:
        channel = self._node.session(request.sessionID).channel(request.chID)
        return pb.GetPayChInfoResp.MsgSuccess(payChInfo=channel_to(channel.info()))

    async def ClosePayCh(self, request: pb.ClosePayChReq) -> pb.ClosePayChResp.MsgSuccess:
        closed = await self._node.session(request.sessionID).channel(request.chID).close()
        return pb.ClosePayChResp.MsgSuccess(closedPayChInfo=channel_to(closed))


def missing(field: str, session: SessionAPI) -> InvalidArgument:
    """203 for a part of the request that is not there (API.md 2.2.6).

    Raises: 204 when `session` is closed, because that is checked before arguments (API.md 2.2.2).
    """
    session.channels()
    return InvalidArgument(field, "", f"{field} is missing", "must be set")

"""The definitions are those of API.md 1.2 and 1.3, number by number, and the committed stubs are theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from perun_api_grpc.pb import (
    errors_pb2,
    funding_service_pb2,
    nodetypes_pb2,
    payment_service_pb2,
    sdktypes_pb2,
    watching_service_pb2,
)

PLUGIN = Path(__file__).parents[2]

# File, message, then "number name type"; `*` is repeated, `?` a member of the message's oneof, whose name follows `|`.
# `=` marks an enum. The responses with a success and an error member are listed by their success member only.
TABLE = """
nodetypes PeerID 1 alias string, 2 offChainAddress string, 3 commAddress string, 4 commType string
nodetypes BalInfo.bal 1 bal *string
nodetypes BalInfo 1 currencies *string, 2 parts *string, 3 bals *BalInfo.bal
nodetypes PayChInfo 1 chID string, 2 balInfo BalInfo, 3 version string
nodetypes Payment 1 currency string, 2 payee string, 3 amount string
errors MsgError 1 category ErrorCategory, 2 code ErrorCode, 3 message string, \
4 ErrInfoPeerRequestTimedOut ?ErrInfoPeerRequestTimedOut, 5 ErrInfoPeerRejected ?ErrInfoPeerRejected, \
6 ErrInfoPeerNotFunded ?ErrInfoPeerNotFunded, 7 ErrInfoUserResponseTimedOut ?ErrInfoUserResponseTimedOut, \
8 ErrInfoResourceNotFound ?ErrInfoResourceNotFound, 9 ErrInfoResourceExists ?ErrInfoResourceExists, \
10 ErrInfoInvalidArgument ?ErrInfoInvalidArgument, \
11 ErrInfoFailedPreCondUnclosedChs ?ErrInfoFailedPreCondUnclosedChs, 13 ErrInfoInvalidConfig ?ErrInfoInvalidConfig, \
14 ErrInfoInvalidContracts ?ErrInfoInvalidContracts, 15 ErrInfoTxTimedOut ?ErrInfoTxTimedOut, \
16 ErrInfoChainNotReachable ?ErrInfoChainNotReachable | addInfo
errors ErrInfoPeerRequestTimedOut 1 peerAlias string, 2 timeout string
errors ErrInfoPeerRejected 1 peerAlias string, 2 reason string
errors ErrInfoPeerNotFunded 1 peerAlias string
errors ErrInfoUserResponseTimedOut 1 expiry int64, 2 receivedAt int64
errors ErrInfoResourceNotFound 1 type string, 2 id string
errors ErrInfoResourceExists 1 type string, 2 id string
errors ErrInfoInvalidArgument 1 name string, 2 value string, 3 requirement string
errors ErrInfoFailedPreCondUnclosedChs 1 chs *PayChInfo
errors ErrInfoInvalidConfig 1 name string, 2 value string
errors ContractErrInfo 1 name string, 2 address string, 3 error string
errors ErrInfoInvalidContracts 1 ContractErrInfos *ContractErrInfo
errors ErrInfoTxTimedOut 1 txType string, 2 txID string, 3 txTimeout string
errors ErrInfoChainNotReachable 1 chainURL string
errors =ErrorCategory ParticipantError 0, ClientError 1, ProtocolError 2, InternalError 3
errors =ErrorCode DefaultInvalidCode 0, ErrPeerRequestTimedOut 101, ErrPeerRejected 102, ErrPeerNotFunded 103, \
ErrUserResponseTimedOut 104, ErrResourceNotFound 201, ErrResourceExists 202, ErrInvalidArgument 203, \
ErrFailedPreCondition 204, ErrInvalidConfig 205, ErrInvalidContracts 206, ErrTxTimedOut 301, \
ErrChainNotReachable 302, ErrUnknownInternal 401
payment_service GetConfigReq
payment_service GetConfigResp 1 chainAddress string, 2 adjudicator string, 3 assetETH string, 4 commTypes *string, \
5 idProviderTypes *string
payment_service OpenSessionReq 1 configFile string
payment_service OpenSessionResp.MsgSuccess 1 sessionID string, 2 restoredChs *PayChInfo
payment_service TimeReq
payment_service TimeResp 1 time int64
payment_service RegisterCurrencyReq 1 tokenAddr string, 2 assetAddr string
payment_service RegisterCurrencyResp.MsgSuccess 1 symbol string
payment_service HelpReq
payment_service HelpResp 1 apis *string
payment_service AddPeerIDReq 1 sessionID string, 2 peerID PeerID
payment_service AddPeerIDResp.MsgSuccess 1 success bool
payment_service GetPeerIDReq 1 sessionID string, 2 alias string
payment_service GetPeerIDResp.MsgSuccess 1 peerID PeerID
payment_service OpenPayChReq 1 sessionID string, 2 openingBalInfo BalInfo, 3 challengeDurSecs uint64
payment_service OpenPayChResp.MsgSuccess 1 openedPayChInfo PayChInfo
payment_service GetPayChsInfoReq 1 sessionID string
payment_service GetPayChsInfoResp.MsgSuccess 1 openPayChsInfo *PayChInfo
payment_service SubPayChProposalsReq 1 sessionID string
payment_service SubPayChProposalsResp 1 notify ?SubPayChProposalsResp.Notify, 2 error ?MsgError | response
payment_service SubPayChProposalsResp.Notify 2 proposalID string, 4 openingBalInfo BalInfo, \
5 challengeDurSecs uint64, 6 expiry int64
payment_service UnsubPayChProposalsReq 1 sessionID string
payment_service UnsubPayChProposalsResp.MsgSuccess 1 success bool
payment_service RespondPayChProposalReq 1 sessionID string, 2 proposalID string, 3 accept bool
payment_service RespondPayChProposalResp.MsgSuccess 2 openedPayChInfo PayChInfo
payment_service CloseSessionReq 1 sessionID string, 2 force bool
payment_service CloseSessionResp.MsgSuccess 1 openPayChsInfo *PayChInfo
payment_service DeployAssetERC20Req 1 sessionID string, 2 tokenAddr string
payment_service DeployAssetERC20Resp.MsgSuccess 2 AssetAddr string
payment_service SendPayChUpdateReq 1 sessionID string, 2 chID string, 3 payments *Payment
payment_service SendPayChUpdateResp.MsgSuccess 1 updatedPayChInfo PayChInfo
payment_service SubpayChUpdatesReq 1 sessionID string, 2 chID string
payment_service SubPayChUpdatesResp 1 notify ?SubPayChUpdatesResp.Notify, 2 error ?MsgError | response
payment_service SubPayChUpdatesResp.Notify 1 updateID string, 2 proposedPayChInfo PayChInfo, \
3 Type SubPayChUpdatesResp.Notify.ChUpdateType, 4 expiry int64, 5 error MsgError
payment_service UnsubPayChUpdatesReq 1 sessionID string, 2 chID string
payment_service UnsubPayChUpdatesResp.MsgSuccess 1 success bool
payment_service RespondPayChUpdateReq 1 sessionID string, 2 chID string, 3 updateID string, 4 accept bool
payment_service RespondPayChUpdateResp.MsgSuccess 1 updatedPayChInfo PayChInfo
payment_service GetPayChInfoReq 1 sessionID string, 2 chID string
payment_service GetPayChInfoResp.MsgSuccess 1 payChInfo PayChInfo
payment_service ClosePayChReq 1 sessionID string, 2 chID string
payment_service ClosePayChResp.MsgSuccess 1 closedPayChInfo PayChInfo
payment_service =SubPayChUpdatesResp.Notify.ChUpdateType open 0, final 1, closed 2
sdktypes Balance 1 balance *bytes
sdktypes Balances 1 balances *Balance
sdktypes Params 1 id bytes, 2 challenge_duration uint64, 3 parts *bytes, 4 app bytes, 5 nonce bytes, \
6 ledger_channel bool, 7 virtual_channel bool
sdktypes IndexMap 1 index_map *uint32
sdktypes SubAlloc 1 id bytes, 2 bals Balance, 3 index_map IndexMap
sdktypes Allocation 1 assets *bytes, 2 balances Balances, 3 locked *SubAlloc
sdktypes State 1 id bytes, 2 version uint64, 3 app bytes, 4 allocation Allocation, 5 data bytes, 6 is_final bool
sdktypes AdjudicatorReq 1 params Params, 2 acc bytes, 3 tx Transaction, 4 idx uint32, 5 secondary bool
sdktypes AdjudicatorEventBase 1 chID bytes, 2 timeout AdjudicatorEventBase.Timeout, 3 version uint64
sdktypes AdjudicatorEventBase.Timeout 1 sec int64, 3 type AdjudicatorEventBase.TimeoutType
sdktypes RegisteredEvent 1 adjudicatorEventBase AdjudicatorEventBase, 2 state State, 3 sigs *bytes
sdktypes ProgressedEvent 1 adjudicatorEventBase AdjudicatorEventBase, 2 state State, 3 idx uint32
sdktypes ConcludedEvent 1 adjudicatorEventBase AdjudicatorEventBase
sdktypes Transaction 1 state State, 2 sigs *bytes
sdktypes SignedState 1 params Params, 2 state State, 3 sigs *bytes
sdktypes StateMap 1 id bytes, 2 state State
sdktypes =AdjudicatorEventBase.TimeoutType elapsed 0, time 1, ethBlock 2
funding_service RegisterAssetERC20Req 1 sessionID string, 2 asset bytes, 3 tokenAddr string, 4 deposiorAcc string
funding_service RegisterAssetERC20Resp 1 msgSuccess bool
funding_service IsAssetRegisteredReq 1 sessionID string, 2 asset bytes
funding_service IsAssetRegisteredResp.MsgSuccess 1 isRegistered bool
funding_service FundReq 1 sessionID string, 2 params Params, 3 state State, 4 idx uint32, 5 agreement Balances
funding_service FundResp 1 error MsgError
funding_service RegisterReq 1 sessionID string, 2 adjReq AdjudicatorReq, 3 signedStates *SignedState
funding_service RegisterResp 1 error MsgError
funding_service WithdrawReq 1 sessionID string, 2 adjReq AdjudicatorReq, 3 stateMap *StateMap
funding_service WithdrawResp 1 error MsgError
funding_service ProgressReq 1 sessionID string, 2 adjReq AdjudicatorReq, 3 newState State, 4 sig bytes
funding_service ProgressResp 1 error MsgError
funding_service SubscribeReq 1 sessionID string, 2 chID bytes
funding_service SubscribeResp 1 registeredEvent ?RegisteredEvent, 2 progressedEvent ?ProgressedEvent, \
3 concludedEvent ?ConcludedEvent, 4 error ?MsgError | response
funding_service UnsubscribeReq 1 sessionID string, 2 chID bytes
funding_service UnsubscribeResp 1 error MsgError
watching_service StartWatchingLedgerChannelReq 1 sessionID string, 2 params Params, 3 state State, 4 sigs *bytes
watching_service StartWatchingLedgerChannelResp 1 registeredEvent ?RegisteredEvent, \
2 progressedEvent ?ProgressedEvent, 3 concludedEvent ?ConcludedEvent, 4 error ?MsgError | response
watching_service StopWatchingReq 1 sessionID string, 2 chID bytes
watching_service StopWatchingResp 1 error MsgError
"""

METHODS = {
    "pb.Payment_API": (
        "GetConfig OpenSession Time RegisterCurrency Help AddPeerID GetPeerID OpenPayCh GetPayChsInfo "
        "SubPayChProposals> UnsubPayChProposals RespondPayChProposal CloseSession DeployAssetERC20 SendPayChUpdate "
        "SubPayChUpdates> UnsubPayChUpdates RespondPayChUpdate GetPayChInfo ClosePayCh"
    ),
    "pb.Funding_API": "RegisterAssetERC20 IsAssetRegistered Fund Register Withdraw Progress Subscribe> Unsubscribe",
    "pb.Watching_API": "<StartWatchingLedgerChannel> StopWatching",
}

FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (
        nodetypes_pb2,
        errors_pb2,
        payment_service_pb2,
        sdktypes_pb2,
        funding_service_pb2,
        watching_service_pb2,
    )
)
TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_UINT32: "uint32",
}


def written(kind: Descriptor | EnumDescriptor) -> str:
    return kind.full_name.removeprefix("pb.")


def field_row(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    mark = ("*" if field.is_repeated else "") + ("?" if field.containing_oneof else "")
    return f"{field.number} {field.name} {mark}{written(named) if named else TYPES[field.type]}"


def message_rows(file: str, message: Descriptor) -> set[str]:
    rows = {
        f"{file} ={written(enum)} " + ", ".join(f"{value.name} {value.number}" for value in enum.values)
        for enum in message.enum_types
    }
    for nested in message.nested_types:
        rows |= message_rows(file, nested)
    fields = ", ".join(map(field_row, message.fields))
    oneof = "".join(f" | {oneof.name}" for oneof in message.oneofs)
    if fields == f"1 msgSuccess ?{written(message)}.MsgSuccess, 2 error ?MsgError" and oneof == " | response":
        return rows
    return rows | {f"{file} {written(message)} {fields}{oneof}".rstrip()}


def file_rows(descriptor: FileDescriptor) -> set[str]:
    file = descriptor.name.removesuffix(".proto")
    rows = {
        f"{file} ={name} " + ", ".join(f"{value.name} {value.number}" for value in enum.values)
        for name, enum in descriptor.enum_types_by_name.items()
    }
    return rows.union(*(message_rows(file, message) for message in descriptor.message_types_by_name.values()))


def test_messages_fields_numbers_and_types_are_the_published_ones() -> None:
    defined: set[str] = set().union(*map(file_rows, FILES))
    assert defined == set(TABLE.strip().splitlines())


def test_services_methods_and_streams_are_the_published_ones() -> None:
    services = {service.full_name: service for file in FILES for service in file.services_by_name.values()}
    assert services.keys() == METHODS.keys()
    for name, service in services.items():
        shown = [("<" * m.client_streaming) + m.name + (">" * m.server_streaming) for m in service.methods]
        assert shown == METHODS[name].split()
        for method in service.methods:
            request = "SubpayChUpdatesReq" if method.name == "SubPayChUpdates" else f"{method.name}Req"
            assert (written(method.input_type), written(method.output_type)) == (request, f"{method.name}Resp")


def test_files_import_each_other_by_bare_name_and_name_the_go_package() -> None:
    imports = {file.name: [each.name for each in file.dependencies] for file in FILES}
    assert imports == {
        "nodetypes.proto": [],
        "errors.proto": ["nodetypes.proto"],
        "payment_service.proto": ["nodetypes.proto", "errors.proto"],
        "sdktypes.proto": [],
        "funding_service.proto": ["errors.proto", "sdktypes.proto"],
        "watching_service.proto": ["errors.proto", "sdktypes.proto"],
    }
    assert {(file.package, file.GetOptions().go_package) for file in FILES} == {("pb", ".;pb")}


def test_the_committed_stubs_are_those_of_the_definitions() -> None:
    pytest.importorskip("grpc_tools")
    check = subprocess.run(
        [sys.executable, str(PLUGIN / "generate_stubs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_stubs_that_somebody_else_made_of_files_with_the_same_names_live_beside(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    for source in (PLUGIN / "proto").glob("*.proto"):
        other = source.read_text(encoding="utf-8").replace(".;pb", ".;other")
        (tmp_path / source.name).write_text(other, encoding="utf-8")
    names = [path.name for path in tmp_path.glob("*.proto")]
    assert protoc.main(["protoc", f"-I{tmp_path}", f"--python_out={tmp_path}", *names]) == 0
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(PLUGIN)!r}]\n"
        "import errors_pb2 as other\n"
        "from perun_api_grpc.pb import errors_pb2 as ours\n"
        "assert other.DESCRIPTOR.GetOptions() != ours.DESCRIPTOR.GetOptions()\n"
        "assert ours.MsgError.FromString(other.MsgError(code=201).SerializeToString()).code == 201\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_plugin_is_imported_without_grpc() -> None:
    script = (
        f"import sys; sys.path[:0] = [{str(PLUGIN)!r}]\n"
        "import perun_api_grpc; perun_api_grpc.perun_register_api()\n"
        "assert not {'grpc', 'google.protobuf'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

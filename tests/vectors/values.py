"""Values of the node from the JSON form of golden vectors, and the apps that the vectors speak of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perun_core.apps import AppRegistry, PaymentApp
from perun_core.channel import Allocation, Asset, Balances, Params, State, SubAlloc, Transaction
from perun_core.errors import RuleViolated
from perun_core.ports.app import App
from perun_core.values import Address, Bytes32, ChannelID, ProposalID, Sig
from perun_core.wire import messages as m

Json = Any


class OpaqueApp:
    """Any data, every state, every transition."""

    def default_data(self) -> bytes:
        return b""

    def check_data(self, data: bytes) -> None:
        pass

    def check_init(self, params: Params, state: State) -> None:
        pass

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        pass


class MockApp:
    """Its data is an 8-byte number that says what to do: 0 agrees, 4 breaks the app, others refuse."""

    def default_data(self) -> bytes:
        return bytes(8)

    def check_data(self, data: bytes) -> None:
        if len(data) != 8:
            raise RuleViolated("T8", f"{len(data)} bytes of data")

    def check_init(self, params: Params, state: State) -> None:
        self._act(state.data)

    def check_transition(self, params: Params, old: State, new: State, actor: int) -> None:
        self._act(old.data)

    def _act(self, data: bytes) -> None:
        number = int.from_bytes(data, "big")
        if number == 4:
            raise ZeroDivisionError("an app that breaks")
        if number != 0:
            raise RuleViolated("T8", f"operation {number}")


KINDS: Mapping[str, Callable[[], App]] = {"opaque": OpaqueApp, "mock": MockApp, "payment": PaymentApp}


def app_registry(apps: Mapping[str, str]) -> AppRegistry:
    """The registry of a file's header."""
    return AppRegistry({Address.from_hex(address): KINDS[kind]() for address, kind in apps.items()})


def data_of(case: Json) -> bytes:
    """The input of a case, also when it is given in parts."""
    if "bytes" in case:
        return bytes.fromhex(case["bytes"])
    return b"".join(bytes.fromhex(part) * count for part, count in case["bytes_parts"])


def text(value: Json) -> str:
    """A text, also when it is given as repetition or as bytes that are no valid text."""
    if isinstance(value, str):
        return value
    if "hex" in value:
        return bytes.fromhex(value["hex"]).decode(errors="replace")
    return str(value["repeat"]) * int(value["count"])


def blob(value: Json) -> bytes:
    """Bytes, also when they are given as repetition."""
    if isinstance(value, str):
        return bytes.fromhex(value)
    return bytes.fromhex(value["repeat_hex"]) * int(value["count"])


def opt_app(value: Json) -> Address | None:
    return None if value is None else Address.from_hex(value)


def addresses(values: Json) -> tuple[Address, ...]:
    return tuple(Address.from_hex(value) for value in values)


def balances(rows: Json) -> Balances:
    return tuple(tuple(int(value) for value in row) for row in rows)


def sub_alloc(value: Json) -> SubAlloc:
    return SubAlloc(ChannelID.from_hex(value["id"]), tuple(map(int, value["bals"])), tuple(value["index_map"]))


def allocation(value: Json) -> Allocation:
    return Allocation(
        tuple(Asset(holder) for holder in addresses(value["assets"])),
        balances(value["balances"]),
        tuple(sub_alloc(entry) for entry in value["locked"]),
    )


def state(value: Json) -> State:
    return State(
        ChannelID.from_hex(value["id"]),
        int(value["version"]),
        allocation(value["allocation"]),
        value["is_final"],
        opt_app(value["app"]),
        blob(value["data"]),
    )


def params(value: Json) -> Params:
    return Params(
        int(value["challenge_duration"]),
        addresses(value["parts"]),
        opt_app(value["app"]),
        int(value["nonce"]),
        value["ledger_channel"],
        value["virtual_channel"],
    )


def sigs(values: Json) -> tuple[Sig | None, ...]:
    return tuple(None if value is None else Sig.from_hex(value) for value in values)


def transaction(value: Json) -> Transaction:
    return Transaction(None if value["state"] is None else state(value["state"]), sigs(value["sigs"]))


# ----------------------------------------------------------------------------------------------------------- messages


def envelope(value: Json) -> m.Envelope:
    """A whole message; `type` and `body` say what it is."""
    body = MESSAGES[m.MessageType(value["type"])](value["body"])
    return m.Envelope(Address.from_hex(value["sender"]), Address.from_hex(value["recipient"]), body)


def base_proposal(body: Json) -> m.BaseProposal:
    return m.BaseProposal(
        ProposalID.from_hex(body["proposal_id"]),
        int(body["challenge_duration"]),
        Bytes32.from_hex(body["nonce_share"]),
        opt_app(body["app"]),
        blob(body["init_data"]),
        allocation(body["init_bals"]),
        balances(body["funding_agreement"]),
    )


def base_acc(body: Json) -> m.BaseProposalAcc:
    return m.BaseProposalAcc(ProposalID.from_hex(body["proposal_id"]), Bytes32.from_hex(body["nonce_share"]))


def ledger_proposal(body: Json) -> m.LedgerProposal:
    return m.LedgerProposal(base_proposal(body), Address.from_hex(body["participant"]), addresses(body["peers"]))


def sub_proposal(body: Json) -> m.SubProposal:
    return m.SubProposal(base_proposal(body), ChannelID.from_hex(body["parent"]))


def virtual_proposal(body: Json) -> m.VirtualProposal:
    return m.VirtualProposal(
        base_proposal(body),
        Address.from_hex(body["proposer"]),
        addresses(body["peers"]),
        tuple(ChannelID.from_hex(parent) for parent in body["parents"]),
        tuple(tuple(entries) for entries in body["index_maps"]),
    )


def update(body: Json) -> m.Update:
    return m.Update(state(body["state"]), body["actor_idx"], Sig.from_hex(body["sig"]))


def signed_state(body: Json) -> m.SignedState:
    return m.SignedState(params(body["params"]), state(body["state"]), sigs(body["sigs"]))


def virtual_funding(body: Json) -> m.VirtualFunding:
    return m.VirtualFunding(update(body["update"]), signed_state(body["initial"]), tuple(body["index_map"]))


def virtual_settlement(body: Json) -> m.VirtualSettlement:
    return m.VirtualSettlement(update(body["update"]), signed_state(body["final"]))


def _channel_version(body: Json) -> tuple[ChannelID, int]:
    return ChannelID.from_hex(body["channel_id"]), int(body["version"])


MESSAGES: Mapping[m.MessageType, Callable[[Json], m.Message]] = {
    m.MessageType.PING: lambda body: m.Ping(int(body["created"])),
    m.MessageType.PONG: lambda body: m.Pong(int(body["created"])),
    m.MessageType.SHUTDOWN: lambda body: m.Shutdown(text(body["reason"])),
    m.MessageType.AUTH_RESPONSE: lambda body: m.AuthResponse(),
    m.MessageType.LEDGER_PROPOSAL: ledger_proposal,
    m.MessageType.LEDGER_PROPOSAL_ACC: lambda body: m.LedgerProposalAcc(
        base_acc(body), Address.from_hex(body["participant"])
    ),
    m.MessageType.SUB_PROPOSAL: sub_proposal,
    m.MessageType.SUB_PROPOSAL_ACC: lambda body: m.SubProposalAcc(base_acc(body)),
    m.MessageType.VIRTUAL_PROPOSAL: virtual_proposal,
    m.MessageType.VIRTUAL_PROPOSAL_ACC: lambda body: m.VirtualProposalAcc(
        base_acc(body), Address.from_hex(body["responder"])
    ),
    m.MessageType.PROPOSAL_REJ: lambda body: m.ProposalRej(
        ProposalID.from_hex(body["proposal_id"]), text(body["reason"])
    ),
    m.MessageType.UPDATE: update,
    m.MessageType.VIRTUAL_FUNDING: virtual_funding,
    m.MessageType.VIRTUAL_SETTLEMENT: virtual_settlement,
    m.MessageType.UPDATE_ACC: lambda body: m.UpdateAcc(*_channel_version(body), Sig.from_hex(body["sig"])),
    m.MessageType.UPDATE_REJ: lambda body: m.UpdateRej(*_channel_version(body), text(body["reason"])),
    m.MessageType.SYNC: lambda body: m.Sync(body["phase"], transaction(body["current_tx"])),
}

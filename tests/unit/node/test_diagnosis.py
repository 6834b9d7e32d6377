"""What an operator is told about a node and its sessions without disturbing them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from msgspec.structs import replace

from perun_core.apps.registry import NO_APPS
from perun_core.channel import Dispute, DisputePhase, Phase, Transaction
from perun_core.config import NodeConfig, load_node
from perun_core.errors import ContractInvalid, NotReachable, WrongChain
from perun_core.node.diagnosis import Diagnosis, Level, SessionFinding, diagnose
from perun_core.plugin import Backend, hookimpl
from perun_core.plugin.declare import NoOptions
from perun_core.plugin.manager import PluginHost
from perun_core.ports.chain import Chain, ChainContext
from perun_core.ports.store import StoreContext, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord, RecordCodec
from perun_core.testing.chain import START, MemoryChain
from perun_core.testing.conversation import ADDRESSES, opened_channel
from perun_core.values import Address, ChannelID
from perun_store_sqlite.store import SqliteConfig, open_sqlite

ADJUDICATOR, HOLDER, TOKEN = (Address(bytes([each] * 20)) for each in (0xAD, 0xE0, 0x70))
VERSION = 3


class Place:
    """A node's configuration, one session's files, and the chain both would find."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.chain = MemoryChain(PROFILE, Address(b"\x0a" * 20))
        self.missing: Exception | None = None
        self.session_file = home / "session.yaml"
        self.database = home / "database"
        contacts = {
            "bob": {
                "alias": "bob",
                "offchain_address": ADDRESSES[1].checksum,
                "comm_address": "127.0.0.1:1",
                "comm_type": "tcp",
            }
        }
        (home / "idprovider.yaml").write_text(yaml.safe_dump(contacts))
        self.session_file.write_text(
            yaml.safe_dump(
                {
                    "user": {"alias": "alice", "offchainaddr": ADDRESSES[0].checksum},
                    "idprovidertype": "local",
                    "idproviderurl": str(home / "idprovider.yaml"),
                    "chainurl": "ws://chain",
                    "databasedir": str(self.database),
                }
            )
        )

    def config(self, **changes: str) -> NodeConfig:
        values = {
            "loglevel": "info",
            "chainurl": "ws://chain",
            "chainconntimeout": "1s",
            "onchaintxtimeout": "1m",
            "responsetimeout": "1s",
            "adjudicator": ADJUDICATOR.checksum,
            "asseteth": HOLDER.checksum,
        }
        return load_node(None, values | changes, {})

    @asynccontextmanager
    async def _open(self, config: NoOptions, context: ChainContext) -> AsyncIterator[Chain]:
        assert context.signer is None, "a doctor must not be able to send"
        if self.missing is not None:
            raise self.missing
        yield self.chain

    def plugins(self) -> PluginHost:
        backend = Backend(name="memory", config=NoOptions, open=self._open)
        extra = SimpleNamespace(perun_register_chain=hookimpl(lambda: backend))
        return PluginHost.load(("store_sqlite", "idprovider_local"), [("chain_memory", extra)])

    async def store(self, *records: ChannelRecord) -> None:
        codec = RecordCodec(PROFILE, NO_APPS)
        async with open_sqlite(SqliteConfig(), StoreContext(self.database)) as store:
            for record in records:
                await store.commit(codec.operations(record))

    async def diagnosed(self, **changes: str) -> Diagnosis:
        return await diagnose(self.config(**changes), self.plugins(), (self.session_file,))

    async def examined(self) -> SessionFinding:
        (session,) = (await self.diagnosed()).sessions
        return session


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def channel(nonce: int, *, duration: int = 600, version: int = VERSION, phase: Phase = Phase.ACTING) -> ChannelRecord:
    params, tx = opened_channel(nonce=nonce)
    params = replace(params, challenge_duration=duration)
    channel_id = ChannelID(PROFILE.channel_id(params))
    assert tx.state is not None
    return ChannelRecord(
        channel_id=channel_id,
        sequence=nonce,
        params=params,
        own_index=0,
        peer=ADDRESSES[1],
        chain_id=1337,
        adjudicator=ADJUDICATOR,
        phase=phase,
        current=Transaction(replace(tx.state, id=channel_id, version=version), tx.sigs),
    )


def told(session: SessionFinding, level: Level) -> str:
    return "\n".join(finding.text for finding in session.findings if finding.level is level)


# ---- the node --------------------------------------------------------------------------------------------------------


async def test_a_node_that_can_start_has_no_problems(place: Place) -> None:
    found = await place.diagnosed()
    assert found.problems == 0
    assert "chain 1337 is reachable" in found.node[0].text
    assert [finding.level for finding in found.node] == [Level.FINE] * 3


async def test_a_chain_node_that_is_behind_is_told_of_but_keeps_nothing_from_working(place: Place) -> None:
    place.chain.stale = "the chain node is synchronizing"
    found = await place.diagnosed()
    assert found.problems == 0
    assert [finding.text for finding in found.node if finding.level is Level.WARNING] == [
        "the chain node is synchronizing; no channel is opened meanwhile"
    ]


@pytest.mark.parametrize("error", [NotReachable("nobody answers"), WrongChain(1337, 5)], ids=["away", "another chain"])
async def test_a_chain_that_cannot_be_used_is_a_problem(place: Place, error: Exception) -> None:
    place.missing = error
    found = await place.diagnosed()
    assert found.problems
    assert str(error) in found.node[-1].text


async def test_contracts_that_are_not_known_are_a_problem_each(place: Place) -> None:
    place.chain.fail("validate_adjudicator", ContractInvalid("adjudicator", ADJUDICATOR.checksum, "incorrect code"))
    found = await place.diagnosed()
    assert found.problems == 1
    assert [finding.level for finding in found.node] == [Level.FINE, Level.PROBLEM, Level.FINE]


async def test_a_contract_set_we_do_not_vouch_for_is_a_warning(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def warned() -> str:
        return "belongs to another set"

    monkeypatch.setattr(place.chain, "validate_adjudicator", warned)
    found = await place.diagnosed()
    assert found.problems == 0
    assert (found.node[1].level, found.node[1].text) == (Level.WARNING, "belongs to another set")


async def test_a_missing_address_is_a_problem(place: Place) -> None:
    assert (await place.diagnosed(asseteth="")).problems


# ---- sessions --------------------------------------------------------------------------------------------------------


async def test_a_session_that_was_never_opened_gets_no_database_from_being_looked_at(place: Place) -> None:
    session = await place.examined()
    assert "nothing is stored" in told(session, Level.FINE)
    assert not place.database.exists()


async def test_open_channels_are_listed_with_the_time_of_the_one_that_ends_first(place: Place) -> None:
    await place.store(channel(1, duration=600), channel(2, duration=90))
    place.chain.mine(50)
    session = await place.examined()
    now = START + 50
    assert [(each.phase, each.version, each.peer) for each in session.channels] == [("acting", VERSION, "bob")] * 2
    assert [each.back_before for each in session.channels] == [now + 600, now + 90]
    assert (session.back_within, session.back_before) == (90, now + 90)
    assert "1970-01-01 00:19:00 UTC, in 1m30s" in told(session, Level.WARNING)


async def test_an_outdated_state_on_chain_is_a_problem_with_the_exact_deadline(place: Place) -> None:
    record = channel(1)
    await place.store(record)
    place.chain.set_dispute(record.channel_id, Dispute(True, START + 121, 600, VERSION - 1))
    found = await place.diagnosed()
    (session,) = found.sessions
    assert found.problems == 1
    assert session.back_before == START + 121
    assert session.channels[0].danger
    assert "open the session before 1970-01-01 00:18:41 UTC (in 2m0s)" in told(session, Level.PROBLEM)


async def test_an_outdated_state_whose_time_is_over_is_said_to_be_so(place: Place) -> None:
    record = channel(1)
    await place.store(record)
    place.chain.set_dispute(record.channel_id, Dispute(True, START, 600, VERSION - 1))
    assert "which has passed" in told(await place.examined(), Level.PROBLEM)


@pytest.mark.parametrize(
    "dispute",
    [Dispute(True, START + 60, 600, VERSION), Dispute(True, START, 600, VERSION, phase=DisputePhase.CONCLUDED)],
    ids=["our newest state", "an outcome"],
)
async def test_what_cannot_be_overturned_any_more_is_no_reason_to_hurry(place: Place, dispute: Dispute) -> None:
    record = channel(1, phase=Phase.REGISTERED)
    await place.store(record)
    place.chain.set_dispute(record.channel_id, dispute)
    found = await place.diagnosed()
    (session,) = found.sessions
    assert found.problems == 0
    assert session.back_before is None
    assert "nothing can be lost by absence" in told(session, Level.FINE)
    assert "1 channels go on when the session is open: registered" in told(session, Level.WARNING)


async def test_a_database_that_is_behind_the_chain_is_a_problem(place: Place) -> None:
    record = channel(1)
    await place.store(record)
    place.chain.set_dispute(record.channel_id, Dispute(True, START + 60, 600, VERSION + 1))
    assert "old copy of the database" in told(await place.examined(), Level.PROBLEM)


async def test_without_the_chain_the_challenge_duration_is_told_and_no_time(place: Place) -> None:
    await place.store(channel(1, duration=600))
    place.missing = NotReachable("nobody answers")
    session = await place.examined()
    assert (session.back_within, session.back_before) == (600, None)
    assert "within 10m0s" in told(session, Level.WARNING)


async def test_a_session_that_a_node_has_open_is_left_alone(place: Place) -> None:
    await place.store(channel(1))
    async with open_sqlite(SqliteConfig(), StoreContext(place.database)):
        found = await place.diagnosed()
    assert found.problems == 0
    assert found.sessions[0].in_use
    assert "in use by a running node" in told(found.sessions[0], Level.FINE)


async def test_looking_changes_no_record(place: Place) -> None:
    record = channel(1)
    await place.store(record)
    await place.examined()
    async with open_sqlite(SqliteConfig(), StoreContext(place.database)) as store:
        assert await store.scan(Table.CHANNELS) == [
            (bytes(record.channel_id), RecordCodec(PROFILE, NO_APPS).encode(record))
        ]


async def test_a_session_file_that_is_none_is_a_problem(place: Place) -> None:
    place.session_file.write_text("user: [")
    assert (await place.diagnosed()).problems == 1


async def test_missing_contacts_are_a_problem_and_the_peer_is_shown_by_its_address(place: Place) -> None:
    await place.store(channel(1))
    (place.home / "idprovider.yaml").write_text("bob: 3")
    found = await place.diagnosed()
    assert found.problems == 1
    assert found.sessions[0].channels[0].peer == ADDRESSES[1].checksum

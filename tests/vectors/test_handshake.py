"""The handshake and duplicate connections, byte by byte as they arrive (PROTOCOL.md 4.2, 4.3)."""

from __future__ import annotations

import pytest

from perun_core.apps import AppRegistry
from perun_core.errors import DecodeError, RuleViolated
from perun_core.protocol.handshake import answer, check_answer, hello, tie_break
from perun_core.values import Address
from perun_core.wire import Envelope, MessageType, StreamDamaged, StreamDecoder, encode

from .loader import Case, reads


def first_envelope(case: Case, apps: AppRegistry) -> tuple[Envelope, list[Envelope]]:
    """The first envelope of what is received, and what came behind it. Raises: DecodeError when there is none."""
    decoder = StreamDecoder(apps)
    found = decoder.feed(bytes.fromhex(case["received"]))
    if not found:
        assert case["peer_closes"], "waits for ever"
        decoder.end()
        raise DecodeError("closed before the first envelope")
    return found[0], found[1:]


@reads("handshake.json", "active")
def test_the_dialer(case: Case, apps: AppRegistry) -> None:
    own, peer = Address.from_hex(case["own"]), Address.from_hex(case["peer"])
    assert encode(hello(own, peer)).hex() == case["sent_first"]
    if case["required"] == "accept":
        check_answer(first_envelope(case, apps)[0], own, peer)
    else:
        with pytest.raises((DecodeError, RuleViolated)):
            check_answer(first_envelope(case, apps)[0], own, peer)


@reads("handshake.json", "passive")
def test_the_listener(case: Case, apps: AppRegistry) -> None:
    own = Address.from_hex(case["own"])
    if case["required"] != "accept":
        with pytest.raises((DecodeError, RuleViolated)):
            answer(first_envelope(case, apps)[0], own)
        return
    first, behind = first_envelope(case, apps)
    assert encode(answer(first, own)).hex() == case["sent"]
    assert [first.sender.hex()] == case["registered_as"]
    assert names(behind) == case["delivered"]


NAMES = {MessageType.PING: "Ping", MessageType.AUTH_RESPONSE: "AuthResponse"}


def names(envelopes: list[Envelope]) -> list[str]:
    return [NAMES[envelope.message.TYPE] for envelope in envelopes]


@reads("handshake.json", "after")
def test_after_the_handshake(case: Case, apps: AppRegistry) -> None:
    """Whether the bytes can be read; the comparison with the connection's identity is the session's."""
    own, peer = Address.from_hex(case["own"]), Address.from_hex(case["peer"])
    decoder = StreamDecoder(apps)
    try:
        found, damaged = decoder.feed(bytes.fromhex(case["received"])), False
    except StreamDamaged as error:
        found, damaged = list(error.complete), True
    foreign = any((envelope.sender, envelope.recipient) != (peer, own) for envelope in found)
    assert (damaged or foreign) == ("close" in case["required"])
    if not foreign and not case["required"].startswith("close"):
        assert names(found) == case["delivered"]


@reads("handshake.json", "tie_break")
def test_which_of_two_connections_stays(case: Case) -> None:
    own, remote = Address.from_hex(case["self"]), Address.from_hex(case["remote"])
    by_us = case["new_dialed_by"] == "self"
    assert by_us == (case["old_then_new"].split(",")[1] == "outbound")
    assert tie_break(own, remote, by_us) == (case["survives"] == "new")
    assert tie_break(remote, own, not by_us) == tie_break(own, remote, by_us)

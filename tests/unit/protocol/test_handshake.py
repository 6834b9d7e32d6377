"""Every branch of the handshake, and of the choice between two connections (PROTOCOL.md 4.2, 4.3)."""

from __future__ import annotations

import pytest

from perun_core.errors import RuleViolated
from perun_core.protocol.handshake import answer, check_answer, hello, tie_break
from perun_core.values import ZERO_ADDRESS, Address
from perun_core.wire import Envelope
from perun_core.wire.messages import AuthResponse, Ping

OWN, PEER, OTHER = Address(b"\x11" * 20), Address(b"\x22" * 20), Address(b"\x33" * 20)
AUTH = AuthResponse()


def test_the_dialer_sends_both_addresses() -> None:
    assert hello(OWN, PEER) == Envelope(OWN, PEER, AUTH)


@pytest.mark.parametrize("peer", [OWN, ZERO_ADDRESS])
def test_the_dialer_refuses_to_call_itself_or_nobody(peer: Address) -> None:
    with pytest.raises(RuleViolated, match=r"^4\.2"):
        hello(OWN, peer)


def test_the_dialer_accepts_the_answer_of_the_peer() -> None:
    check_answer(Envelope(PEER, OWN, AUTH), OWN, PEER)


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(PEER, OWN, Ping(0)),
        Envelope(OTHER, OWN, AUTH),
        Envelope(PEER, OTHER, AUTH),
        Envelope(OTHER, OTHER, AUTH),
        Envelope(OWN, PEER, AUTH),
        Envelope(ZERO_ADDRESS, OWN, AUTH),
    ],
)
def test_the_dialer_refuses_every_other_answer(envelope: Envelope) -> None:
    with pytest.raises(RuleViolated, match=r"^4\.2"):
        check_answer(envelope, OWN, PEER)


def test_the_listener_answers_whoever_calls() -> None:
    assert answer(Envelope(OTHER, OWN, AUTH), OWN) == Envelope(OWN, OTHER, AUTH)


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(PEER, OWN, Ping(0)),
        Envelope(PEER, OTHER, AUTH),
        Envelope(OWN, OWN, AUTH),
        Envelope(ZERO_ADDRESS, OWN, AUTH),
    ],
)
def test_the_listener_does_not_answer_anything_else(envelope: Envelope) -> None:
    with pytest.raises(RuleViolated, match=r"^4\.2"):
        answer(envelope, OWN)


def test_a_handshake_fits_together() -> None:
    check_answer(answer(hello(OWN, PEER), PEER), OWN, PEER)


@pytest.mark.parametrize(("own", "remote"), [(OWN, PEER), (PEER, OWN)])
@pytest.mark.parametrize("by_us", [True, False])
def test_the_connection_dialed_by_the_greater_address_stays(own: Address, remote: Address, by_us: bool) -> None:
    dialer, listener = (own, remote) if by_us else (remote, own)
    assert tie_break(own, remote, by_us) == (dialer > listener)
    assert tie_break(own, remote, by_us) == tie_break(remote, own, not by_us)

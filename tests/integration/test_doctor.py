"""``perunnode doctor`` beside a node that runs, and after it is gone."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.integration.world import Party, Person, World, command, open_channel, pay

pytestmark = pytest.mark.slow

DURATION = 600


def doctor(world: World, *people: Person) -> tuple[int, Any]:
    """Exit code and report."""
    arguments = command(
        "doctor", *(each.session_file for each in people), "--configfile", world.nodes[0].config, "--json"
    )
    done = subprocess.run(arguments, cwd=world.home, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


async def test_a_session_is_watched_while_it_is_open_and_has_a_deadline_afterwards(world: World, party: Party) -> None:
    alice_home, bob_home = world.friends("alice", "bob")
    alice, bob = await party.join(alice_home), await party.join(bob_home)
    channel = await open_channel(alice, bob, {"ETH": ("1", "2")}, duration=DURATION)
    await pay(alice, bob, channel, ("ETH", "bob", "0.5"))

    code, found = doctor(world, alice_home, bob_home)
    assert (code, found["problems"]) == (0, 0)
    assert [session["in_use"] for session in found["sessions"]] == [True, True]

    await alice.leave(force=True)
    code, found = doctor(world, alice_home)
    (session,) = found["sessions"]
    (listed,) = session["channels"]
    assert (code, session["in_use"]) == (0, False)
    assert (listed["channel"], listed["phase"], listed["version"], listed["peer"]) == (channel, "acting", 1, "bob")
    now = int(world.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    assert session["back_within"] == DURATION
    assert 0 <= now + DURATION - session["back_before"] < DURATION

    # Looking was no reason for the session not to open again.
    again = await party.join(alice_home)
    assert [each.id for each in again.restored] == [channel]

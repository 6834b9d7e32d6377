"""Alice and bob use the client on a real node and a real chain: through pipes, and by single commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.world import ETHER, Person, World

from .conftest import PATIENCE, Clients

pytestmark = pytest.mark.slow


def two(world: World, **terms: Any) -> tuple[Person, Person]:
    alice, bob = world.friends("alice", "bob", response_timeout="20s", **terms)
    return alice, bob


def is_there(clients: Clients, person: Person) -> str:
    """The session of somebody who can be called from now on."""
    return clients.run("session", "open", person.session_file).stdout.strip()


def talk(clients: Clients, alice: str, bob: str, *options: str) -> tuple[str, str]:
    """Both give their lines to a client of their own; what the clients said. Both must end with code 0."""
    started = [clients.start(*options, stdin=subprocess.PIPE) for _ in range(2)]
    for process, lines in zip(started, (alice, bob), strict=True):
        assert process.stdin
        process.stdin.write(lines)
        process.stdin.flush()  # kept open: the end of the lines is the end of the client
    said = []
    for process in started:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, ""), out
        said.append(out)
    return said[0], said[1]


def test_two_clients_open_pay_request_refuse_and_settle_through_pipes(world: World, clients: Clients) -> None:
    alice, bob = two(world)
    before = {person: world.balance(person.on_chain) for person in (alice, bob)}
    alice_said, bob_said = talk(
        clients,
        f"""
        # alice
        session open {alice.session_file}
        channel send-opening-request bob 1 2
        payment send-to-peer ch_1_bob 0.25
        payment request-from-peer ch_1_bob 0.5
        channel info ch_1_bob
        channel close-n-settle-on-chain ch_1_bob
        wait closed ch_1_bob
        session close no-force
        """,
        f"""
        node time
        session use {is_there(clients, bob)}
        peer-id get self
        wait request --timeout 60
        channel list-notifications-pending-response
        channel accept-opening-request request_1_alice
        wait payment ch_1_alice --timeout 60
        payment accept-payment-update-from-peer ch_1_alice
        wait payment ch_1_alice --timeout 60
        payment accept ch_1_alice
        channel list-open-channels
        wait payment ch_1_alice --timeout 60
        payment accept ch_1_alice
        wait closed ch_1_alice
        session close no-force
        """,
        "--stop-on-error",
    )
    for line in (
        "Session opened.",
        "Subscribed to channel opening request notifications.",
        "Channel opened. Alias: ch_1_bob.",
        "Version: 0, Balance [bob:2 self:1].",
        "Payment sent to peer on channel ch_1_bob. Updated channel Info:",
        "Version: 1, Balance [bob:2.25 self:0.75].",
        "Payment request accepted by peer on channel ch_1_bob. Updated channel Info:",
        "Channel ch_1_bob Info:",
        "Version: 2, Balance [bob:1.75 self:1.25].",
        "Payment channel close notification received on channel ch_1_bob (ID: ",
        "Channel closed. Alias: ch_1_bob. Updated Info:",
        "Session closed. ID: ",
    ):
        assert line in alice_said
    for line in (
        "Perun node time: ",
        "Alias: self, Off-chain Addr: " + bob.off_chain,
        "Channel opening request notification received. Notification Alias: request_1_alice.",
        "Currency: [ETH], Balance: [alice:1 self:2].",
        "Expires in ",
        "Payment notification received on channel ch_1_alice. (ID:",
        "Current:\tCurrency: [ETH], Balance: [alice:1 self:2], Version: 0.",
        "Proposed:\tCurrency: [ETH], Balance: [alice:0.75 self:2.25], Version: 1.",
        "You get 0.25 ETH.",
        "You pay 0.5 ETH.",
        "Payment channel updated. Alias: ch_1_alice. Updated Info:",
        "Finalizing payment notification received on channel ch_1_alice.",
        "Channel will be closed if this payment update is responded to.",
        "Subscription to payment channel notifications closed on channel ch_1_alice (ID: ",
    ):
        assert line in bob_said
    gained = {person.alias: world.balance(person.on_chain) - before[person] for person in (alice, bob)}
    assert 0.24 * ETHER < gained["alice"] < 0.25 * ETHER  # minus fees
    assert -0.26 * ETHER < gained["bob"] < -0.25 * ETHER


def test_notifications_and_answers_are_json_when_asked_for(world: World, clients: Clients) -> None:
    alice, bob = two(world, tokens=100 * ETHER)
    alice_said, bob_said = talk(
        clients,
        f"""
        session open {alice.session_file}
        channel open bob 1 2 PRN 10 0
        payment swap ch_1_bob 4 PRN for 0.5 ETH
        session close force
        """,
        f"""
        session use {is_there(clients, bob)}
        wait request --timeout 60
        channel accept request_1_alice
        wait payment ch_1_alice --timeout 60
        payment accept ch_1_alice
        session close force
        """,
        "--json",
    )
    answers = {said["command"]: said for said in map(json.loads, alice_said.splitlines()) if "command" in said}
    assert all(answer["ok"] for answer in answers.values())
    swapped = answers["payment swap"]["result"]["channel"]
    assert swapped["balances"] == {"ETH": {"self": "1.5", "bob": "1.5"}, "PRN": {"self": "6", "bob": "4"}}
    events = {said["event"]: said for said in map(json.loads, bob_said.splitlines()) if "event" in said}
    assert events["opening-request"]["alias"] == "request_1_alice"
    assert events["payment"]["update"]["channel"]["balances"]["PRN"] == {"alice": "6", "self": "4"}
    assert events["payment"]["secondsLeft"] > 0


def test_single_commands_make_a_script(world: World, clients: Clients) -> None:
    alice, bob = two(world)

    def ask(session: str, *words: object) -> Any:
        done = clients.run("--session", session, "--json", *words)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        told = json.loads(done.stdout)
        assert told["ok"]
        return told["result"]

    opened = [clients.run("session", "open", person.session_file) for person in (alice, bob)]
    a, b = (done.stdout.strip() for done in opened)
    assert len(a) == len(b) == 64 and "Session opened." in opened[0].stderr

    proposing = clients.start("--session", a, "--json", "channel", "open", "bob", "1", "1", "--challenge", "33")
    watched = clients.run("--session", b, "watch", "opening-requests", "--count", "1", "--timeout", "60")
    request = json.loads(watched.stdout)["request"]
    assert (request["peer"], request["challengeDuration"]) == ("alice", 33)
    accepted = ask(b, "respond", "opening-request", request["id"], "accept")["channel"]
    channel = json.loads(proposing.communicate(timeout=PATIENCE)[0])["result"]["channel"]
    assert channel["id"] == accepted["id"]

    # A payment that bob refuses: alice is told so in a way a script can see.
    paying = clients.start("--session", a, "payment", "send", channel["id"][:8], "0.1")
    update = json.loads(clients.run("--session", b, "watch", "all", "--count", "1", "--timeout", "60").stdout)["update"]
    ask(b, "respond", "payment", update["id"], "reject")
    out, err = paying.communicate(timeout=PATIENCE)
    assert (paying.returncode, out) == (4, "")
    assert err.startswith("Error sending payment to peer: category: ParticipantError, code: 102, message: ")

    # A payment that he accepts, named by the peer this time.
    paying = clients.start("--session", a, "payment", "send-to-peer", "bob", "0.1")
    watched = clients.run("--session", b, "watch", "payments", channel["id"], "--count", "1", "--timeout", "60")
    update = json.loads(watched.stdout)["update"]
    assert ask(b, "respond", "payment", update["id"], "accept")["channel"]["version"] == "1"
    out, _ = paying.communicate(timeout=PATIENCE)
    assert "Version: 1, Balance [bob:1.1 self:0.9]." in out
    assert ask(a, "channel", "info", channel["id"])["channel"]["balances"] == {"ETH": {"self": "0.9", "bob": "1.1"}}
    assert [each["id"] for each in ask(b, "channel", "list")["channels"]] == [channel["id"]]

    # Nothing comes; nobody of that name; a session that cannot be closed; a node that is not there.
    silent = clients.run("--session", b, "watch", "payments", channel["id"], "--count", "1", "--timeout", "1")
    assert silent.returncode == 9
    assert clients.run("--session", a, "payment", "send", "carol", "1").returncode == 2
    unclosed = clients.run("--session", a, "--json", "session", "close", "no-force")
    assert unclosed.returncode == 5
    error = json.loads(unclosed.stdout)["error"]
    assert (error["code"], [each["id"] for each in error["info"]["chs"]]) == (204, [channel["id"]])
    assert clients.run("--node", ":1", "node", "time").returncode == 3
    for session in (a, b):
        ask(session, "session", "close", "force")
    gone = clients.run("--session", a, "channel", "list")
    assert (gone.returncode, "code: 204" in gone.stderr) == (5, True)


def test_watching_ends_with_the_session_and_with_an_interruption(world: World, clients: Clients) -> None:
    alice, _ = two(world)
    session = clients.run("session", "open", alice.session_file).stdout.strip()
    watching = watch(clients, session)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(PATIENCE) == 130
    watching = watch(clients, session)
    taken = clients.run("--session", session, "watch", "opening-requests")
    assert (taken.returncode, "code: 202" in taken.stderr) == (5, True)
    assert clients.run("--session", session, "session", "close", "no-force").returncode == 0
    assert watching.wait(PATIENCE) == 0


def watch(clients: Clients, session: str) -> subprocess.Popen[str]:
    """Somebody who watches, once the subscription stands."""
    watching = clients.start("--session", session, "watch", "opening-requests")
    assert watching.stderr and watching.stderr.readline() == "Watching; Ctrl-C ends.\n"
    return watching


def test_a_session_that_is_open_can_be_taken_up_again(world: World, clients: Clients) -> None:
    alice, _ = two(world)
    session = clients.run("session", "open", alice.session_file).stdout.strip()
    (clients.home / "session").write_text(session)
    taken = clients.run("--session-file", "session", lines="session id\nsession close no-force\n")
    assert (taken.returncode, taken.stderr) == (0, "")
    assert "Session in use." in taken.stdout and f"Session ID: {session}" in taken.stdout


def test_wrong_lines_are_named_and_the_rest_is_done(world: World, clients: Clients) -> None:
    lines = "nonsense\npayment send ch_1_bob\nchannel list\nnode services\n"
    done = clients.run(lines=lines)
    assert done.returncode == 2
    assert "Unknown command nonsense" in done.stdout
    assert "Got 1 arg(s). Want at least 2." in done.stdout
    assert "No session: open one with 'session open'." in done.stdout
    assert "Services: payment" in done.stdout
    stopped = clients.run("--stop-on-error", lines=lines)
    assert "Services" not in stopped.stdout
    unconnected = subprocess.run(
        clients.command(), input="channel list\n", cwd=clients.home, env=clients.environ(PERUNNODECLI_NODE=""),
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert "Not connected to perun node, connect using 'node connect' command." in unconnected.stdout


def test_peers_are_added_and_subscriptions_taken_and_left(world: World, clients: Clients) -> None:
    alice, _ = two(world)
    carol = world.person("carol", ether=0)
    done = clients.run(
        lines=f"""
        session open {alice.session_file}
        peer-id add carol {carol.off_chain} {carol.comm_address} tcp
        peer-id get carol
        channel unsubcribe-from-opening-requests
        channel subscribe-to-opening-requests
        channel pending
        session close no-force
        """
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "Peer ID added successfully." in done.stdout
    told = f"Alias: carol, Off-chain Addr: {carol.off_chain}, Comm Addr: {carol.comm_address}, Comm Type: tcp"
    assert told in done.stdout
    assert done.stdout.count("Subscribed to channel opening request notifications.") == 2
    assert "Channel opening request subscription closed." in done.stdout
    assert "Nothing waits for an answer." in done.stdout


def test_a_node_that_goes_away_is_told_and_survived(world: World, clients: Clients) -> None:
    node = world.node("short-lived").start()
    alice, _ = two(world)
    shell = clients.start("--node", f"127.0.0.1:{node.port}", stdin=subprocess.PIPE)
    assert shell.stdin and shell.stdout
    shell.stdin.write(f"session open {alice.session_file}\n")
    shell.stdin.flush()
    seen = iter(shell.stdout.readline, "")
    assert any("Subscribed to channel opening request" in line for line in seen)
    node.running.kill()
    assert any("Error receiving channel opening request notification" in line for line in seen)
    shell.stdin.write("node time\nchain address\n")
    shell.stdin.close()
    out = "".join(seen)
    shell.wait(PATIENCE)
    assert "Error sending command to perun node: the node at " in out
    assert "Blockchain node address: ws://127.0.0.1:8545" in out
    assert shell.returncode == 3


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_the_chain_is_asked_directly(world: World, clients: Clients, scheme: str) -> None:
    alice = world.person("alice", ether=3, tokens=25 * ETHER // 10)
    chain = world.url.replace("ws", scheme)
    said = clients.run(
        lines=f"""
        chain set-blockchain-address {chain}
        chain get-on-chain-balance {alice.on_chain}
        chain get-on-chain-balance {alice.on_chain.lower()[2:]} {world.contracts["token"]}
        """
    ).stdout
    assert f"Blockchain node address: {chain}" in said
    assert "On-chain balance: 3\n" in said and "On-chain balance: 2.5 PRN\n" in said
    wrong = clients.run("chain", "balance", alice.on_chain, alice.on_chain, "--chain", chain)
    assert (wrong.returncode, "is not a token" in wrong.stderr) == (8, True)
    assert clients.run("chain", "balance", alice.on_chain, "--chain", f"{scheme}://127.0.0.1:1").returncode == 8
    assert clients.run("chain", "balance", "0xnothing", "--chain", chain).returncode == 2


def test_contracts_are_deployed_by_the_installed_node(world: World, clients: Clients) -> None:
    if not (Path(sys.executable).parent / "perunnode").exists():
        pytest.skip("perunnode is not installed beside the interpreter")
    found = clients.run("--json", "chain", "deploy-perun-contracts", world.home / "deployer.key", "--chain", world.url)
    assert json.loads(found.stdout)["result"] == {
        "adjudicator": world.contracts["adjudicator"],
        "assetETH": world.contracts["eth"],
    }
    nothing = clients.run("chain", "deploy-perun-contracts", "--chain", world.url)
    assert (nothing.returncode, "perunnode generate" in nothing.stderr) == (2, True)


def test_a_currency_is_deployed_and_registered(world: World, clients: Clients) -> None:
    alice, _ = two(world)
    session = clients.run("session", "open", alice.session_file).stdout.strip()
    token = world.contracts["token"]
    deployed = clients.run("--session", session, "--json", "currency", "deploy-asset-holder", token)
    asset = json.loads(deployed.stdout)["result"]["assetHolder"]
    again = clients.run("--json", "currency", "register", token, asset)
    assert json.loads(again.stdout)["error"]["code"] == 202  # the node knows PRN already
    clients.run("--session", session, "session", "close", "force")

"""How the node talks to Vault: TLS with an own authority, namespaces, one connection, and to nobody else."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perun_core.errors import KeyLocked, KeyManagerError, KeysUnreachable
from perun_core.ports.keymgr import KeyManager, KeyManagerContext, KeyRole
from perun_core.testing.keymgr import address_of, message_digest, recovered
from perun_core.values import Bytes32
from perun_keymgr_vault.config import Auth, Keep, VaultConfig
from perun_keymgr_vault.keymgr import open_vault
from tests.servers.certificates import write_certificates
from tests.servers.vault_server import NO_VAULT, Vault, running_vault
from tools.build_vault import vault_path

ALICE = b"\x11" * 32
CONTEXT = KeyManagerContext(KeyRole.ON_CHAIN, (address_of(ALICE),))


async def signs(keys: KeyManager) -> None:
    sig = await keys.sign_message(address_of(ALICE), Bytes32(bytes(32)))
    assert recovered(message_digest(bytes(32)), sig) == address_of(ALICE)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """A server with a certificate of our own authority that answers in the namespace ``team`` only."""
    if vault_path() is None:
        pytest.skip(NO_VAULT)
    home = tmp_path_factory.mktemp("secured")
    with running_vault(home, namespace="team", tls=write_certificates(home)) as vault:
        vault.put(ALICE, address_of(ALICE))
        yield vault


def options(vault: Vault, **terms: Any) -> VaultConfig:
    known = {"namespace": "team", "cacert": str(vault.ca), "token": vault.token()}
    return VaultConfig(address=vault.url, **(known | terms))


async def test_keys_come_over_tls_from_a_server_of_an_own_authority(secured: Vault) -> None:
    assert secured.url.startswith("https://")
    async with open_vault(options(secured), CONTEXT) as keys:
        await signs(keys)


async def test_a_server_of_an_unknown_authority_is_not_talked_to(secured: Vault, tmp_path: Path) -> None:
    for stranger in ("", str(write_certificates(tmp_path)[2])):
        with pytest.raises(KeysUnreachable, match="no trusted connection"):
            async with open_vault(options(secured, cacert=stranger), CONTEXT):
                pass


async def test_a_certificate_for_another_name_is_not_accepted(secured: Vault) -> None:
    elsewhere = secured.url.replace("127.0.0.1", "localhost")
    config = VaultConfig(address=elsewhere, namespace="team", cacert=str(secured.ca), token="any")
    with pytest.raises(KeysUnreachable, match="no trusted connection"):
        async with open_vault(config, CONTEXT):
            pass


async def test_every_request_names_the_namespace(secured: Vault) -> None:
    role, secret = secured.approle("in-team")
    login = {"auth": Auth.APPROLE, "roleid": role, "secretid": secret, "token": ""}
    async with open_vault(options(secured, **login, keep=Keep.SIGNATURE), CONTEXT) as keys:
        await signs(keys)
    for wrong in ("", "other"):
        with pytest.raises(KeyLocked):
            async with open_vault(options(secured, **login, namespace=wrong), CONTEXT):
                pass


async def test_the_environment_of_the_node_changes_nothing(secured: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
            monkeypatch.setenv(variable.lower(), f"http://127.0.0.1:{port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("VAULT_TOKEN", secured.root)
        monkeypatch.setenv("VAULT_ADDR", f"http://127.0.0.1:{port}")
        async with open_vault(options(secured), CONTEXT) as keys:
            await signs(keys)
        with pytest.raises(KeyLocked):
            async with open_vault(options(secured, token="mine"), CONTEXT):
                pass


# ------------------------------------------------------------------------------------------ a server that tells stories


class Storyteller:
    """Answers every request with the next of its stories, and notes what it was asked over which connection."""

    def __init__(self) -> None:
        self.stories: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, str, tuple[str, int]]] = []
        self.url = ""


@contextmanager
def storyteller() -> Iterator[Storyteller]:
    found = Storyteller()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked.append((self.path, self.headers.get("X-Vault-Token", ""), self.client_address))
            status, headers, body = found.stories.pop(0) if len(found.stories) > 1 else found.stories[0]
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


TOKEN = (200, {}, b'{"data": {"ttl": 0, "renewable": false}}')
KEY = (200, {}, b'{"data": {"private_key": "' + ALICE.hex().encode() + b'"}}')


def told(teller: Storyteller, **terms: Any) -> Any:
    known: dict[str, Any] = {"token": "t0ken", "version": 1, "timeout": 2}
    return open_vault(VaultConfig(address=teller.url, **(known | terms)), CONTEXT)


async def test_many_signatures_share_one_connection() -> None:
    with storyteller() as teller:
        teller.stories = [TOKEN, KEY]
        async with told(teller, keep=Keep.SIGNATURE) as keys:
            for _ in range(10):
                await signs(keys)
        assert len(teller.asked) == 12
        assert len({connection for _, _, connection in teller.asked}) == 1


async def test_passing_trouble_is_tried_again() -> None:
    trouble = [(status, {}, b'{"errors": []}') for status in (429, 500, 502, 503, 412)]
    with storyteller() as teller:
        teller.stories = [trouble[0], TOKEN, *trouble[1:], KEY]
        async with told(teller, timeout=10) as keys:
            await signs(keys)


async def test_a_token_is_not_sent_where_a_redirect_points() -> None:
    with storyteller() as thief, storyteller() as teller:
        thief.stories = [TOKEN]
        teller.stories = [(307, {"Location": f"{thief.url}/v1/auth/token/lookup-self"}, b"{}")]
        with pytest.raises(KeyManagerError):
            async with told(teller):
                pass
        assert thief.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b'{"data": null}',
        b'{"data": {"private_key": 5}}',
        b'{"data": {"private_key": "' + b"00" * 32 + b'"}}',
        b'{"data": {"private_key": "' + b"ff" * 32 + b'"}}',
        b'{"data": {"private_key": "' + b"zz" * 32 + b'"}}',
        b'{"data": {}}',
    ],
)
async def test_an_answer_that_is_no_key_is_refused_without_repeating_it(body: bytes) -> None:
    with storyteller() as teller:
        teller.stories = [TOKEN, (200, {}, body)]
        with pytest.raises(KeyManagerError) as caught:
            async with told(teller):
                pass
        assert "ff" * 32 not in str(caught.value) and "zz" * 32 not in str(caught.value)


async def test_a_server_that_promises_more_than_it_sends_is_given_up() -> None:
    with storyteller() as teller:
        teller.stories = [TOKEN, (200, {"Content-Length": "100000"}, KEY[2])]
        with pytest.raises(KeysUnreachable):
            async with told(teller, timeout=0.5):
                pass


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ({"address": ""}, "address"),
        ({"address": "http://vault.example.org:8200", "token": "t"}, "https"),
        ({"address": "https://user:word@127.0.0.1", "token": "t"}, "address"),
        ({"address": "http://127.0.0.1:1"}, "token"),
        ({"address": "http://127.0.0.1:1", "token": "t", "tokenfile": "f"}, "token"),
        ({"address": "http://127.0.0.1:1", "tokenfile": "missing"}, "tokenfile"),
        ({"address": "http://127.0.0.1:1", "auth": Auth.APPROLE}, "roleid"),
        ({"address": "http://127.0.0.1:1", "auth": Auth.APPROLE, "roleid": "r"}, "secretid"),
        ({"address": "http://127.0.0.1:1", "auth": Auth.KUBERNETES}, "role"),
        ({"address": "http://127.0.0.1:1", "token": "t", "version": 3}, "version"),
        ({"address": "http://127.0.0.1:1", "token": "t", "timeout": 0}, "timeout"),
        ({"address": "http://127.0.0.1:1", "token": "t", "mount": "/"}, "mount"),
        ({"address": "http://127.0.0.1:1", "token": "t", "cacert": "missing"}, "cacert"),
    ],
)
async def test_options_that_do_not_fit_are_named(terms: dict[str, Any], named: str) -> None:
    with pytest.raises(KeyManagerError, match=named) as caught:
        async with open_vault(VaultConfig(**terms), CONTEXT):
            pass
    assert "word" not in str(caught.value)

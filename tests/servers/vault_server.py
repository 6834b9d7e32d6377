"""A real Vault server on a loopback port: its own core, built from tests/servers/vault, under a test's control."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import hvac

from tools.build_vault import vault_path

START_TIMEOUT: Final = 60.0
FIRST_PORT, PORTS = 31_500, 10
"""Each process of a test run has its own range."""
NO_VAULT: Final = "no Vault server: set VAULT_SERVER, or run make vault where a Go toolchain exists"
POLICY: Final = """
path "secret/data/perun/*" { capabilities = ["create", "read", "update"] }
path "secret/metadata/perun/*" { capabilities = ["read", "list", "delete"] }
path "old/perun/*" { capabilities = ["create", "read", "update", "delete", "list"] }
"""
"""What a node and its operator may do: the keys below perun in both engines."""


@dataclass
class Vault:
    """A server process and what is needed to rule it. Engines: ``secret`` (version 2) and ``old`` (version 1)."""

    home: Path
    arguments: tuple[str, ...] = ()
    namespace: str | None = None
    ca: Path | None = None
    url: str = ""
    unseal_key: str = ""
    root: str = ""
    process: subprocess.Popen[str] | None = None
    _log: Any = field(default=None, repr=False)

    # ---- the process ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Run it, on the port it had before if it ran before; then it is sealed, or not initialised."""
        executable = vault_path()
        assert executable is not None, NO_VAULT
        listen = self.url.rpartition("/")[2] or f"127.0.0.1:{_free_port()}"
        command = [str(executable), "-listen", listen, "-data", str(self.home / "data"), *self.arguments]
        if self.namespace:
            command += ["-namespace", self.namespace]
        self._log = (self.home / "vault.log").open("ab")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), (self.home / "vault.log").read_text(errors="replace")
        self.url = line.removeprefix("listening on ").strip()
        return self

    def stop(self) -> None:
        """End it by its process ID; what it keeps stays."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()  # nothing is lost: every write was on disk before it was answered
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        self.process = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It takes connections, and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # The signal takes effect in its own time; this returns when no thread runs any more.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    # ---- what an operator does --------------------------------------------------------------------------------------

    @contextmanager
    def operator(self) -> Iterator[hvac.Client]:
        """A client with the root token."""
        client = hvac.Client(
            url=self.url,
            token=self.root,
            namespace=self.namespace,
            verify=str(self.ca) if self.ca else True,
            timeout=30,
        )
        client.session.trust_env = False
        try:
            yield client
        finally:
            client.adapter.close()

    def prepare(self) -> None:
        """Initialise, unseal, mount both engines and the ways to log in, and write the policy ``perun``."""
        with self.operator() as client:
            made = client.sys.initialize(secret_shares=1, secret_threshold=1)
        self.unseal_key, self.root = made["keys"][0], made["root_token"]
        self.unseal()
        with self.operator() as client:
            client.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
            client.sys.enable_secrets_engine("kv", path="old", options={"version": "1"})
            client.sys.enable_auth_method("approle")
            client.sys.create_or_update_policy("perun", POLICY)
            self._until(lambda: client.secrets.kv.v2.read_configuration("secret"))

    def unseal(self) -> None:
        """Open it, and wait until it answers."""
        with self.operator() as client:
            client.sys.submit_unseal_key(self.unseal_key)
            if self.root:
                self._until(lambda: client.auth.token.lookup_self())

    def seal(self) -> None:
        """Close it: nothing is answered until somebody unseals it."""
        with self.operator() as client:
            client.sys.seal()

    def put(self, private_key: bytes, address: bytes, *, mount: str = "secret") -> None:
        """Keep a key where the key manager looks for it."""
        value = {"private_key": private_key.hex()}
        with self.operator() as client:
            engine = client.secrets.kv.v2 if mount == "secret" else client.secrets.kv.v1
            engine.create_or_update_secret(path=f"perun/keys/{address.hex()}", secret=value, mount_point=mount)

    def token(self, *, ttl: str = "1h", policies: tuple[str, ...] = ("perun",), **terms: Any) -> str:
        """A fresh token."""
        with self.operator() as client:
            made = client.auth.token.create(policies=list(policies), ttl=ttl, no_parent=True, **terms)
        token: str = made["auth"]["client_token"]
        return token

    def approle(
        self, name: str, *, ttl: str = "1h", max_ttl: str = "0", policies: tuple[str, ...] = ("perun",)
    ) -> tuple[str, str]:
        """Role ID and secret ID of a new role."""
        with self.operator() as client:
            client.auth.approle.create_or_update_approle(
                name, token_policies=list(policies), token_ttl=ttl, token_max_ttl=max_ttl
            )
            role = client.auth.approle.read_role_id(name)["data"]["role_id"]
            secret = client.auth.approle.generate_secret_id(name)["data"]["secret_id"]
        return role, secret

    def tokens(self) -> int:
        """How many tokens are alive, the root token included."""
        with self.operator() as client:
            return len(client.auth.token.list_accessors()["data"]["keys"])

    def _until(self, question: Any) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                question()
                return
            except hvac.exceptions.VaultError:
                assert time.monotonic() < deadline, (self.home / "vault.log").read_text(errors="replace")
                time.sleep(0.05)


def _free_port() -> int:
    """A port that nobody takes in passing while the server is restarted: below those of outgoing connections."""
    first = FIRST_PORT + os.getpid() % 100 * PORTS
    for port in range(first, first + PORTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port from {first} on")


@contextmanager
def running_vault(
    home: Path, *, namespace: str | None = None, tls: tuple[Path, Path, Path] | None = None
) -> Iterator[Vault]:
    """A prepared server. `tls` is (certificate, key, authority)."""
    arguments = ("-tls-cert", str(tls[0]), "-tls-key", str(tls[1])) if tls else ()
    vault = Vault(home, arguments, namespace, tls[2] if tls else None)
    (home / "data").mkdir(exist_ok=True)
    try:
        vault.start()
        vault.prepare()
        yield vault
    finally:
        vault.stop()

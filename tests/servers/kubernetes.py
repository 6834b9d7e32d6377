"""The one question Vault asks a Kubernetes cluster at a login: whose service account's token is this?"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

AUDIENCE: Final = "https://kubernetes.default.svc.cluster.local"


@dataclass
class Cluster:
    """The TokenReview API of a cluster with service accounts."""

    url: str = ""
    _accounts: dict[str, tuple[str, str]] = field(default_factory=dict)
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def service_account(self, namespace: str, name: str) -> str:
        """A token as a pod of this account finds it in its file."""
        now = int(time.time())
        account = {"serviceaccount": {"name": name, "uid": f"uid-{name}"}, "namespace": namespace}
        claims = {
            "iss": AUDIENCE,
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "aud": [AUDIENCE],
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "kubernetes.io": account,
        }
        signed = f"{_encoded({'alg': 'ES256', 'kid': 'test'})}.{_encoded(claims)}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        token = f"{signed}.{_text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
        self._accounts[token] = namespace, name
        return token

    def review(self, token: str) -> dict[str, object]:
        """The status of a TokenReview."""
        if token not in self._accounts:
            return {"authenticated": False, "error": "unknown token"}
        namespace, name = self._accounts[token]
        user = {
            "username": f"system:serviceaccount:{namespace}:{name}",
            "uid": f"uid-{name}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
        }
        return {"authenticated": True, "user": user, "audiences": [AUDIENCE]}


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster on a free loopback port."""
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "status": cluster.review(review["spec"]["token"]),
            }
            body = json.dumps(answer).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _encoded(content: object) -> str:
    return _text(json.dumps(content).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

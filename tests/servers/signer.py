"""A remote signer on a loopback port that speaks Ethereum's JSON-RPC, and misbehaves when it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eth_account import Account
from eth_account.messages import encode_defunct


@dataclass
class Signer:
    """Keys by address, and what was asked."""

    url: str = ""
    keys: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    slow: threading.Event | None = None
    """While set to an event, answers wait for it."""
    delay: float = 0.0
    """Seconds before an answer."""
    twist: Callable[[str, Any], Any] = lambda method, result: result
    """Makes another result of the right one."""

    def hold(self, private_key: bytes) -> str:
        """Keep a key; its address."""
        address: str = Account.from_key(private_key).address
        self.keys[address.lower()] = private_key
        return address

    def answer(self, method: str, params: list[Any]) -> Any:
        """The result of a request. Raises: KeyError, ValueError."""
        self.asked.append(method)
        if self.slow is not None:
            self.slow.wait(60)
        if self.delay:
            threading.Event().wait(self.delay)
        return self.twist(method, self._result(method, params))

    def _result(self, method: str, params: list[Any]) -> Any:
        if method == "eth_accounts":
            return list(self.keys)
        if method == "eth_sign":
            account = Account.from_key(self.keys[params[0].lower()])
            message = encode_defunct(hexstr=params[1])
            return "0x" + bytes(account.sign_message(message).signature).hex()
        (fields,) = params
        account = Account.from_key(self.keys[fields.pop("from").lower()])
        return "0x" + bytes(account.sign_transaction(fields).raw_transaction).hex()


@contextmanager
def running_signer() -> Iterator[Signer]:
    """A signer without keys on a free port."""
    signer = Signer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                answer = {"result": signer.answer(request["method"], request["params"])}
            except (KeyError, ValueError, TypeError) as error:
                answer = {"error": {"code": -32000, "message": type(error).__name__}}
            body = json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                pass  # whoever asked has given up

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    signer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield signer
    finally:
        if signer.slow is not None:
            signer.slow.set()
        server.shutdown()
        thread.join()
        server.server_close()

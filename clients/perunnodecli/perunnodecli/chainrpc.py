"""The few questions to a chain node that need no key: JSON-RPC over HTTP or WebSocket."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import urllib.error
import urllib.request
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from .escape import shown
from .failures import ChainFailure, UsageFailure

TIMEOUT: Final = 10.0
LARGEST_ANSWER: Final = 1 << 20
ETH_DECIMALS: Final = 18

_SYMBOL, _DECIMALS, _BALANCE_OF = "0x95d89b41", "0x313ce567", "0x70a08231"


def address(text: str) -> str:
    """An address of 40 hex digits with prefix, from what the node would accept too (API.md 3.4).

    Raises: UsageFailure.
    """
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    if not re.fullmatch(r"[0-9a-fA-F]{1,40}", digits):
        raise UsageFailure(f"Error parsing address: {shown(text)}")
    return "0x" + digits.rjust(40, "0")


def decimal(units: int, decimals: int) -> str:
    """Base units as exact decimal text."""
    digits = str(units).rjust(decimals + 1, "0")
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :].rstrip("0")
    return whole + (f".{fraction}" if fraction else "")


async def balance(url: str, account: str) -> str:
    """ETH of an account at the latest block, exact. Raises: UsageFailure, ChainFailure."""
    return decimal(_quantity(await ask(url, "eth_getBalance", [address(account), "latest"])), ETH_DECIMALS)


async def token_balance(url: str, account: str, token: str) -> tuple[str, str]:
    """(exact balance, symbol) of an account in a token. Raises: UsageFailure, ChainFailure."""
    holder = address(account)[2:].lower().rjust(64, "0")
    answers = [await _call(url, token, data) for data in (_SYMBOL, _DECIMALS, _BALANCE_OF + holder)]
    decimals = int.from_bytes(answers[1][:32], "big")
    if len(answers[1]) < 32 or len(answers[2]) < 32 or decimals > 255:
        raise ChainFailure(f"{shown(token)} is not a token")
    return decimal(int.from_bytes(answers[2][:32], "big"), decimals), _text(answers[0])


async def ask(url: str, method: str, params: list[object]) -> Any:
    """The result of a call. Raises: UsageFailure for another kind of address, ChainFailure."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    text: str | bytes
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        text = await asyncio.to_thread(_post, url, body.encode())
    elif scheme in ("ws", "wss"):
        text = await _exchange(url, body)
    else:
        raise UsageFailure(f"{shown(url)} is not the address of a chain node: http://, https://, ws:// or wss://")
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ChainFailure(f"the chain node at {shown(url)} did not answer in JSON") from error
    if not isinstance(answer, dict) or answer.get("error") or "result" not in answer:
        told = answer.get("error") if isinstance(answer, dict) else answer
        raise ChainFailure(f"the chain node at {shown(url)} refused {method}: {shown(json.dumps(told))}")
    return answer["result"]


def _post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    proxies = urllib.request.ProxyHandler({} if _is_loopback(url) else None)
    try:
        with urllib.request.build_opener(proxies).open(request, timeout=TIMEOUT) as response:
            text: bytes = response.read(LARGEST_ANSWER)
            return text
    except (OSError, ValueError) as error:
        raise _unreachable(url, error) from error


async def _exchange(url: str, body: str) -> str | bytes:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidURI, WebSocketException

    proxy: Literal[True] | None = None if _is_loopback(url) else True
    try:
        async with asyncio.timeout(TIMEOUT), connect(url, max_size=LARGEST_ANSWER, proxy=proxy) as connection:
            await connection.send(body)
            return await connection.recv()
    except InvalidURI as error:
        raise UsageFailure(f"{shown(url)} is not the address of a chain node") from error
    except (OSError, TimeoutError, WebSocketException) as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> ChainFailure:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    cause = shown(str(reason) or type(error).__name__)
    return ChainFailure(f"Error connecting to blockchain node at {shown(url)}: {cause}")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _call(url: str, token: str, data: str) -> bytes:
    result = await ask(url, "eth_call", [{"to": address(token), "data": data}, "latest"])
    if not isinstance(result, str) or not re.fullmatch(r"0x([0-9a-fA-F]{2})*", result):
        raise ChainFailure(f"the chain node at {shown(url)} answered with something that is not data")
    return bytes.fromhex(result[2:])


def _quantity(result: object) -> int:
    if not isinstance(result, str) or not re.fullmatch(r"0x[0-9a-fA-F]{1,64}", result):
        raise ChainFailure("the chain node answered with something that is not a number")
    return int(result, 16)


def _text(data: bytes) -> str:
    """A string result; old tokens answer with 32 bytes of text."""
    if len(data) == 32:
        text = data.rstrip(b"\0")
    else:
        length = int.from_bytes(data[32:64], "big")
        text = data[64 : 64 + min(length, 256)]
    return text.decode("utf-8", errors="replace")

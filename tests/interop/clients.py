"""Clients of other makers behind one face: methods by name, messages as JSON in protobuf's own mapping."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

Message = dict[str, Any]

SERVICE: Final = "pb.Payment_API"
LIMIT: Final = 1 << 20
"""Bytes of one line of an agent."""


class StatusError(Exception):
    """A call ended with a status other than OK; the text says which."""


class Client(Protocol):
    """What the story needs of a client."""

    async def call(self, method: str, request: Message) -> Message:
        """Answer to a call. Raises: StatusError."""
        ...

    def stream(self, method: str, request: Message) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Messages of a stream that is open while the context is; they end when the server ends it."""
        ...


class Agent:
    """A process that makes calls through generated stubs, one JSON object a line (tests/interop/go/main.go)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._last = 0
        self._calls: dict[int, asyncio.Queue[Message]] = {}
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    @asynccontextmanager
    async def running(cls, *command: str | Path) -> AsyncIterator[Agent]:
        """An agent that ends with the context."""
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LIMIT
        )
        agent = cls(process)
        try:
            yield agent
        finally:
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(20):
                await agent._reading
                await process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            answer = json.loads(line)
            if (waiting := self._calls.get(answer["id"])) is not None:
                waiting.put_nowait(answer)
        for waiting in self._calls.values():
            waiting.put_nowait({"status": {"code": "Gone", "message": "the agent ended"}})

    def _say(self, line: Message) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    @asynccontextmanager
    async def _asked(self, method: str, request: Message) -> AsyncIterator[asyncio.Queue[Message]]:
        self._last += 1
        number, answers = self._last, asyncio.Queue[Message]()
        self._calls[number] = answers
        self._say({"id": number, "method": method, "request": request})
        try:
            yield answers
        finally:
            del self._calls[number]
            self._say({"cancel": number})

    @staticmethod
    def _checked(answer: Message) -> Message:
        if "status" in answer:
            raise StatusError(json.dumps(answer["status"]))
        return answer

    async def call(self, method: str, request: Message) -> Message:
        async with self._asked(method, request) as answers:
            response: Message = self._checked(await answers.get())["response"]
            return response

    @asynccontextmanager
    async def stream(self, method: str, request: Message) -> AsyncIterator[AsyncIterator[Message]]:
        async with self._asked(method, request) as answers:

            async def messages() -> AsyncIterator[Message]:
                while "message" in (answer := self._checked(await answers.get())):
                    yield answer["message"]

            yield messages()


class Grpcurl:
    """The command-line client that learns the methods from the server's reflection; one process for each call."""

    def __init__(self, executable: Path, address: str) -> None:
        self._executable = executable
        self._address = address

    async def _start(self, method: str, request: Message) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self._executable,
            "-plaintext",
            "-d",
            json.dumps(request),
            self._address,
            f"{SERVICE}/{method}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def call(self, method: str, request: Message) -> Message:
        process = await self._start(method, request)
        out, err = await process.communicate()
        if process.returncode != 0:
            raise StatusError(err.decode())
        response: Message = json.loads(out)
        return response

    @asynccontextmanager
    async def stream(self, method: str, request: Message) -> AsyncIterator[AsyncIterator[Message]]:
        process = await self._start(method, request)
        try:
            yield self._messages(process)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()

    @staticmethod
    async def _messages(process: asyncio.subprocess.Process) -> AsyncIterator[Message]:
        """Objects written over several lines, one after the other."""
        assert process.stdout is not None and process.stderr is not None
        decoder, text = json.JSONDecoder(), ""
        while line := await process.stdout.readline():
            text = (text + line.decode()).lstrip()
            try:
                message, end = decoder.raw_decode(text)
            except ValueError:
                continue
            text = text[end:]
            yield message
        if await process.wait() != 0:
            raise StatusError((await process.stderr.read()).decode())

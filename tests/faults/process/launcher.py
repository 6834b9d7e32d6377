"""Nodes that die on cue: the real command line, started from a process that has imported everything already.

`main` is the origin of node processes. It reads one JSON object per line from standard input and forks a node for
each, which is much faster than starting an interpreter; it writes one line per birth and per death. A node runs
``perunnode run`` unchanged, except for three things done to its classes before it starts:

* every performance of an effect (`perun_core.node.runner.Runner.perform`), and a few moments beside them, is a
  *boundary*: it is written into the node's trace and compared with the node's *trap* before and after it happens;
* when the trap says so, the process kills itself there with SIGKILL;
* pauses that stand for slow people and slow networks are shorter.

Trap and trace are files. What was written into the trace before a death is there afterwards, because the kernel has it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, NoReturn

sys.path.append(str(Path(__file__).parents[3]))
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")  # as `perunnode run` does

TRAP_SIZE: Final = 256
ANY: Final = "*"
"""Label of a trap that counts every effect."""
PATIENT, IMPATIENT = 5.0, 0.5
"""Seconds on top of a peer's response time: as they are, and in these nodes."""
COMPARING: Final = 1.8
"""Seconds before states are compared: a little more than a proposer waits for its answer, as it is there."""
FIRST_PAUSE: Final = 0.2
"""Seconds before something is tried again for the first time, in these nodes."""


class Trap:
    """Where the process is to die. Whoever controls it writes, the process reads; both map the same file.

    Its text is ``label moment count``: at the count-th boundary of that label and moment from when it was set.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(TRAP_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), TRAP_SIZE)
        self._seen = bytes(TRAP_SIZE)
        self._label = self._moment = ""
        self._left = 0

    def set(self, label: str, moment: str, count: int) -> None:
        """Have the process die there."""
        # The time makes every text a new one, so that the process begins to count again.
        self._write(f"{label} {moment} {count} {time.monotonic_ns()}")

    def clear(self) -> None:
        """Let it live."""
        self._write("")

    def _write(self, text: str) -> None:
        data = text.encode()
        self._memory[:] = data + bytes(TRAP_SIZE - len(data))

    def is_sprung_by(self, labels: Iterable[str], moment: str) -> bool:
        """Whether this boundary is the one to die at."""
        current = self._memory[:]
        if current != self._seen:
            self._seen = current
            words = current.rstrip(b"\0").decode().split()
            self._label, self._moment, self._left = (words[0], words[1], int(words[2])) if words else ("", "", 0)
        if not self._label or moment != self._moment or self._label not in labels:
            return False
        self._left -= 1
        return self._left == 0


class Recorder:
    """The boundaries of one node process."""

    def __init__(self, trap: Trap, trace: Path) -> None:
        self._trap = trap
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, **entry: object) -> None:
        """Write one line into the trace."""
        os.write(self._trace, json.dumps(entry).encode() + b"\n")

    def boundary(self, labels: tuple[str, ...], moment: str, **entry: object) -> None:
        """Pass a boundary, or die there."""
        dies = self._trap.is_sprung_by(labels, moment)
        self.note(at=labels[0], moment=moment, dies=dies, **entry)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, label: str, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """`work` between two boundaries."""

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.boundary((label,), "before")
            result = await work(*args, **kwargs)
            self.boundary((label,), "after")
            return result

        return wrapped


def label_of(effect: object) -> str:
    """The kind of an effect: its type, and for those that carry one of several things the type of that."""
    kind = type(effect).__name__
    for inner in ("step", "notification", "message"):
        if hasattr(effect, inner):
            return f"{kind}.{type(getattr(effect, inner)).__name__}"
    return kind


def instrument(recorder: Recorder) -> None:
    """Make every boundary of this process known to `recorder`, and its pauses short."""
    import functools

    from perun_core.node import opener, runner
    from perun_core.node import session as session_module
    from perun_core.wire.messages import UpdateRej

    session: Any = session_module

    perform = runner.Runner.perform

    async def watched(self: Any, effect: Any) -> Any:
        label = label_of(effect)
        labels = (label, ANY)
        details = _details(self, effect)
        recorder.boundary(labels, "before", **details)
        event = await perform(self, effect)
        recorder.boundary(labels, "after", **details)
        return event

    runner.Runner.perform = watched  # type: ignore[method-assign]

    dispatch = session.Session._dispatch

    def dispatched(self: Any, peer: Any, message: Any) -> Any:
        if isinstance(message, UpdateRej):
            recorder.note(got="UpdateRej", channel=message.channel_id.hex(), version=message.version)
        return dispatch(self, peer, message)

    session.Session._dispatch = dispatched

    authorise = session.Session._authorise

    async def authorised(self: Any, channel_id: Any, holder: Any, amount: int) -> Any:
        recorder.boundary(("authorise",), "before", channel=channel_id.hex(), amount=str(amount))
        signature = await authorise(self, channel_id, holder, amount)
        recorder.boundary(("authorise",), "after")
        return signature

    session.Session._authorise = authorised

    sign_transaction = opener.AccountSigner.sign

    async def signed(self: Any, tx: Any) -> bytes:
        recorder.boundary(("transaction",), "before")
        raw = await sign_transaction(self, tx)
        recorder.boundary(("transaction",), "after")
        return raw

    opener.AccountSigner.sign = signed  # type: ignore[method-assign]

    restore, end = session.Session.restore, session.Session._end

    async def restored(self: Any) -> Any:
        self.store.commit = recorder.around("commit", self.store.commit)
        recorder.boundary(("restore",), "before")
        channels = await restore(self)
        recorder.boundary(("restore",), "after")
        return channels

    async def ended(self: Any) -> None:
        recorder.boundary(("end",), "before")
        await end(self)
        recorder.boundary(("end",), "after")

    session.Session.restore = restored
    session.Session._end = ended

    assert session.PROCESSING == PATIENT
    session.PROCESSING = IMPATIENT
    session.ChannelTerms = functools.partial(
        session.ChannelTerms, heal_delay=FIRST_PAUSE, settle_delay=FIRST_PAUSE, sync_delay=COMPARING
    )


def _details(conversation: Any, effect: Any) -> dict[str, object]:
    """What the campaign checks afterwards about an effect."""
    match type(effect).__name__:
        case "Persist":
            record = effect.record
            agreed = None not in record.current.sigs
            return {
                "channel": record.channel_id.hex(),
                "phase": str(record.phase),
                "version": record.current.state.version if agreed else -1,
                "digest": effect.signing.digest.hex() if effect.signing else "",
                "archive": effect.archive,
            }
        case "RequestSignature":
            return {
                "channel": effect.state.id.hex(),
                "version": effect.state.version,
                "digest": effect.digest.hex(),
                "candidates": [digest.hex() for digest in conversation.machine.record.candidates],
            }
        case "Send" if hasattr(effect.message, "reason"):
            return {"reason": effect.message.reason}
        case _:
            return {}


def node(order: dict[str, Any]) -> NoReturn:
    """Be a node: never returns."""
    out = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.chdir(order["home"])
    recorder = Recorder(Trap(Path(order["trap"])), Path(order["trace"]))
    instrument(recorder)
    from perun_core.cli import main as command_line

    sys.argv = ["perunnode", *order["arguments"]]
    code = 1
    try:
        command_line()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare() -> None:
    """Import what nodes need. Nothing is opened and no thread is started, because both do not survive a fork."""
    import importlib
    import pkgutil

    for name in (
        "perun_core",
        "perun_api_grpc",
        "perun_chain_ethereum",
        "perun_comm_tcp",
        "perun_idprovider_local",
        "perun_keymgr_ethkeystore",
        "perun_store_sqlite",
    ):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.startswith(_UNNEEDED) and not module.name.endswith("__main__"):
                importlib.import_module(module.name)


_UNNEEDED: Final = (
    "perun_core.testing",
    "perun_core.template",
    "perun_chain_ethereum.devchain",
    "perun_chain_ethereum.embedded",
    "perun_chain_ethereum.testing",
    "perun_api_grpc.demo",
)


def main() -> None:
    """Fork a node per line of standard input, until its end."""
    prepare()
    import gc

    gc.collect()
    gc.freeze()
    children: dict[int, str] = {}

    def bury(*_: object) -> None:
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            name = children.pop(pid, "")
            say({"died": name, "pid": pid, "code": os.waitstatus_to_exitcode(status)})

    def say(answer: dict[str, object]) -> None:
        os.write(1, json.dumps(answer).encode() + b"\n")

    say({"ready": True})
    signals = {signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, bury)
    for line in sys.stdin:
        order = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            node(order)
        children[pid] = order["name"]
        say({"born": order["name"], "pid": pid})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in tuple(children):
        os.kill(pid, signal.SIGKILL)
    for pid in tuple(children):
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

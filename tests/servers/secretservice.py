"""A real Secret Service: a gnome-keyring daemon on a message bus of its own, its data in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

PROGRAMS: Final = ("dbus-run-session", "gnome-keyring-daemon")
NO_SERVICE: Final = "no Secret Service: dbus-run-session and gnome-keyring-daemon are needed (Debian: gnome-keyring)"
START_TIMEOUT: Final = 30.0
_SCRIPT: Final = (
    'echo "$DBUS_SESSION_BUS_ADDRESS"; exec gnome-keyring-daemon --foreground --components=secrets --unlock'
)
_BUS: Final = """
<busconfig>
  <type>session</type>
  <listen>unix:tmpdir={home}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
"""A bus that starts nothing by itself: neither a second daemon nor a dialog that asks for a password."""
_BUS_ONLY: Final = 'echo "$DBUS_SESSION_BUS_ADDRESS"; exec sleep 3600'


def available() -> bool:
    """Whether the programs are installed."""
    return all(map(shutil.which, PROGRAMS))


@dataclass
class SecretService:
    """What runs, and the address of its bus."""

    bus: str
    _process: subprocess.Popen[str]

    def lock(self) -> None:
        """Lock the default collection, as a screen saver would."""
        self._with_collection(lambda collection: collection.lock())

    def _with_collection(self, act: Any) -> Any:
        import secretstorage

        before = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
        os.environ["DBUS_SESSION_BUS_ADDRESS"] = self.bus
        try:
            with closing(secretstorage.dbus_init()) as bus:
                return act(secretstorage.get_default_collection(bus))
        finally:
            if before is None:
                del os.environ["DBUS_SESSION_BUS_ADDRESS"]
            else:
                os.environ["DBUS_SESSION_BUS_ADDRESS"] = before

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It takes questions and answers none; the bus goes on."""
        (daemon,) = (
            child for child in psutil.Process(self._process.pid).children() if child.name().startswith("gnome-keyring")
        )
        daemon.suspend()
        threads = Path(f"/proc/{daemon.pid}/task")
        deadline = time.monotonic() + START_TIMEOUT
        while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in threads.glob("*/stat")):
            assert time.monotonic() < deadline, "the daemon does not stop"
            time.sleep(0.01)
        try:
            yield
        finally:
            daemon.resume()

    def is_ready(self) -> bool:
        """Whether the default collection is there and open."""
        import secretstorage

        try:
            return not self._with_collection(lambda collection: collection.is_locked())
        except secretstorage.SecretStorageException:
            return False


@contextmanager
def running_secret_service(
    home: Path, *, password: str = "open sesame", daemon: bool = True
) -> Iterator[SecretService]:
    """A service whose data lie below `home`, unlocked with `password`; without `daemon` only the bus."""
    environment = {**os.environ, "HOME": str(home)}
    for name, folder in (("XDG_DATA_HOME", "data"), ("XDG_RUNTIME_DIR", "run"), ("XDG_CONFIG_HOME", "config")):
        (home / folder).mkdir(mode=0o700, exist_ok=True)
        environment[name] = str(home / folder)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS"):
        environment.pop(variable, None)
    bus = home / "bus.conf"
    bus.write_text(_BUS.format(home=environment["XDG_RUNTIME_DIR"]))
    with (home / "service.log").open("wb") as log:
        process = subprocess.Popen(
            ["dbus-run-session", "--config-file", str(bus), "--", "sh", "-c", _SCRIPT if daemon else _BUS_ONLY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=home,
            text=True,
            start_new_session=True,  # a process group that can be ended, or stopped, as a whole
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(password)
        process.stdin.close()
        service = SecretService(process.stdout.readline().strip(), process)
        deadline = time.monotonic() + START_TIMEOUT
        while daemon and not service.is_ready():
            assert process.poll() is None and time.monotonic() < deadline, (home / "service.log").read_text()
            time.sleep(0.05)
        yield service
    finally:
        os.killpg(os.getpgid(process.pid), signal.SIGCONT)
        os.killpg(os.getpgid(process.pid), signal.SIGTERM)
        process.wait()
        process.stdout.close()

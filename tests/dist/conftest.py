"""Wheels of all distributions, and an environment into which nothing else of this repository is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class InstalledWheels:
    """A virtual environment with our wheels; third-party packages are those of the development environment."""

    python: Path
    site_packages: Path

    @property
    def bin(self) -> Path:
        """Where ``perunnode`` is."""
        return self.python.parent

    def run(self, *command: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, by name, in `cwd` and without any of our variables."""
        foreign = ("PYTHON", "PERUN_", "VIRTUAL_ENV")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environ["PATH"] = os.pathsep.join([str(self.bin), environ.get("PATH", "")])
        program, *arguments = command
        return subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheels of every distribution, built now."""
    target = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, str(HERE / "build_wheels.py"), str(target)], check=True, stdin=subprocess.DEVNULL, timeout=300
    )
    return sorted(target.glob("*.whl"))


@pytest.fixture(scope="session")
def installed_wheels(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> InstalledWheels:
    """A fresh environment with the wheels installed; none of our packages comes from the checkout."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    python = venv / "bin" / "python"
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(venv), "platbase": str(venv)}))
    _link_third_party(site_packages)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet",
         "--no-deps", "--no-index", *map(str, wheels)],
        check=True,
        timeout=300,
    )  # fmt: skip
    return InstalledWheels(python, site_packages)


def _link_third_party(site_packages: Path) -> None:
    """Installing every dependency again takes most of a minute and proves nothing about our wheels."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        is_ours = entry.name.lower().startswith(("perun", "_perun", "_editable", "__editable"))
        if not is_ours and entry.suffix != ".pth" and entry.name != "__pycache__":
            (site_packages / entry.name).symlink_to(entry)

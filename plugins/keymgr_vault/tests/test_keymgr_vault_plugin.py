"""What the plugin declares, and that its options show no secret. Its work is tested on a real server in tests/keys."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import msgspec
import pytest

import perun_keymgr_vault
from perun_keymgr_vault.config import VaultConfig
from perun_keymgr_vault.keymgr import open_vault, open_vault_custody


def test_the_hook_declares_vault() -> None:
    backend = perun_keymgr_vault.perun_register_keymgr()
    assert (backend.name, backend.config) == ("vault", VaultConfig)
    assert (backend.open, backend.custody) == (open_vault, open_vault_custody)


def test_declaring_loads_nothing_heavy() -> None:
    script = (
        "import sys, perun_keymgr_vault as plugin; plugin.perun_register_keymgr(); "
        "assert not {'hvac', 'requests', 'coincurve'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_the_options_show_no_secret_and_are_not_copied() -> None:
    config = VaultConfig(address="https://vault.example.org", token="hvs.hidden", secretid="hidden too")
    shown = f"{config!r} {config} {config.__rich_repr__()}"
    assert "hidden" not in shown and "vault.example.org" in shown
    for way in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            way(config)


@pytest.mark.parametrize("options", [{"adress": "x"}, {"auth": "password"}, {"keep": "ever"}, {"version": "two"}])
def test_options_that_do_not_exist_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, VaultConfig, strict=False)

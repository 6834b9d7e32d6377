"""What the plugin declares. Its work is tested on a real Secret Service in tests/keys."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

import perun_keymgr_keyring
from perun_keymgr_keyring.keymgr import KeyringConfig, open_keyring, open_keyring_custody


def test_the_hook_declares_keyring() -> None:
    backend = perun_keymgr_keyring.perun_register_keymgr()
    assert (backend.name, backend.config) == ("keyring", KeyringConfig)
    assert (backend.open, backend.custody) == (open_keyring, open_keyring_custody)


def test_declaring_loads_nothing_heavy() -> None:
    script = (
        "import sys, perun_keymgr_keyring as plugin; plugin.perun_register_keymgr(); "
        "assert not {'keyring', 'secretstorage', 'coincurve'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize("options", [{"servise": "x"}, {"backend": "plaintext"}, {"timeout": "soon"}])
def test_options_that_do_not_exist_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, KeyringConfig, strict=False)

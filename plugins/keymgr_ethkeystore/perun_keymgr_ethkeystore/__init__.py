"""Keys in go-ethereum's key files: the key manager named ``ethkeystore``."""

from perun_core.plugin import Backend, hookimpl
from perun_core.ports.keymgr import KeyManager

perun_interface = 1


@hookimpl
def perun_register_keymgr() -> Backend[KeyManager]:
    """A directory of go-ethereum version 3 key files, opened with one password."""
    from .keymgr import EthKeystoreConfig, open_ethkeystore

    return Backend(name="ethkeystore", config=EthKeystoreConfig, open=open_ethkeystore)

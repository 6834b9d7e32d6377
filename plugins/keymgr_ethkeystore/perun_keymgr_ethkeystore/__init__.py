"""Keys in go-ethereum's key files: the key manager named ``ethkeystore``."""

from perun_core.plugin import KeyManagerBackend, hookimpl

perun_interface = 1


@hookimpl
def perun_register_keymgr() -> KeyManagerBackend:
    """A directory of go-ethereum version 3 key files, opened with one password."""
    from .keymgr import EthKeystoreConfig, open_ethkeystore, open_key_files

    return KeyManagerBackend(
        name="ethkeystore", config=EthKeystoreConfig, open=open_ethkeystore, custody=open_key_files
    )

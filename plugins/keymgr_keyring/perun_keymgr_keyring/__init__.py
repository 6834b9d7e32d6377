"""Keys in the secret store of the operating system: the key manager named ``keyring``."""

from perun_core.plugin import KeyManagerBackend, hookimpl

perun_interface = 1


@hookimpl
def perun_register_keymgr() -> KeyManagerBackend:
    """Entries of a Secret Service, KWallet, the macOS keychain or the Windows vault."""
    from .keymgr import KeyringConfig, open_keyring, open_keyring_custody

    return KeyManagerBackend(name="keyring", config=KeyringConfig, open=open_keyring, custody=open_keyring_custody)

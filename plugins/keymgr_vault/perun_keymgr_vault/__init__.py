"""Keys in HashiCorp Vault: the key manager named ``vault``."""

from perun_core.plugin import KeyManagerBackend, hookimpl

perun_interface = 1


@hookimpl
def perun_register_keymgr() -> KeyManagerBackend:
    """Keys in a key-value engine of Vault, fetched when a session opens or for every signature."""
    from .config import VaultConfig
    from .keymgr import open_vault, open_vault_custody

    return KeyManagerBackend(name="vault", config=VaultConfig, open=open_vault, custody=open_vault_custody)

"""Keys in a remote signer: the key manager named ``web3signer``."""

from perun_core.plugin import Backend, hookimpl
from perun_core.ports.keymgr import KeyManager

perun_interface = 1


@hookimpl
def perun_register_keymgr() -> Backend[KeyManager]:
    """Signatures from an HTTP server that speaks Ethereum's JSON-RPC."""
    from .keymgr import Web3SignerConfig, open_web3signer

    return Backend(name="web3signer", config=Web3SignerConfig, open=open_web3signer)

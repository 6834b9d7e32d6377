"""Messages and stubs of the node's public API, generated from its definitions by ``generate_stubs.py``."""

"""Messages and services of the published API, generated from ``proto/`` by ``generate_stubs.py``."""

"""Persistence in SQLite: the store named ``sqlite``."""

from perun_core.plugin import Backend, hookimpl
from perun_core.ports.store import Store

perun_interface = 1


@hookimpl
def perun_register_store() -> Backend[Store]:
    """One SQLite database per namespace."""
    from .store import SqliteConfig, open_sqlite

    return Backend(name="sqlite", config=SqliteConfig, open=open_sqlite)

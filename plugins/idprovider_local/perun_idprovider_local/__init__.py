"""Peers in a local YAML file: the ID provider named ``local``."""

from perun_core.plugin import Backend, hookimpl
from perun_core.ports.idprovider import IDProvider

perun_interface = 1


@hookimpl
def perun_register_idprovider() -> Backend[IDProvider]:
    """A YAML file of peers by alias."""
    from .provider import LocalConfig, open_local

    return Backend(name="local", config=LocalConfig, open=open_local)

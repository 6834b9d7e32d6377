"""The hooks. Each is called once at start-up, is synchronous and only declares; configuration chooses by name.

A plugin module implements any of them with ``perun_core.plugin.hookimpl``. Import heavy libraries inside `open`, not
at module level: every installed plugin's module is imported at start-up.
"""

from __future__ import annotations

import click

from ..ports.app import App
from ..ports.chain import Chain
from ..ports.comm import Comm
from ..ports.fundwatch import Funder, RemoteWatcher
from ..ports.idprovider import IDProvider
from ..ports.keymgr import KeyManager
from ..ports.policy import Policy
from ..ports.store import Store
from ..values import Address
from .declare import Backend, Frontend, hookspec


@hookspec
def perun_register_store() -> Backend[Store]:
    """A persistence backend; opened with `ports.store.StoreContext`, once per namespace."""
    raise NotImplementedError


@hookspec
def perun_register_keymgr() -> Backend[KeyManager]:
    """A key manager; opened with `ports.keymgr.KeyManagerContext`, once per session and role."""
    raise NotImplementedError


@hookspec
def perun_register_idprovider() -> Backend[IDProvider]:
    """An ID provider; opened with `ports.idprovider.IDProviderContext`, once per session."""
    raise NotImplementedError


@hookspec
def perun_register_chain() -> Backend[Chain]:
    """A chain backend; opened with `ports.chain.ChainContext`, once for the node and once per session."""
    raise NotImplementedError


@hookspec
def perun_register_comm() -> Backend[Comm]:
    """A peer transport; opened with `ports.comm.CommContext`, once per session."""
    raise NotImplementedError


@hookspec
def perun_register_policy() -> Backend[Policy]:
    """A policy; opened with `ports.policy.PolicyContext`, once per session that names it."""
    raise NotImplementedError


@hookspec
def perun_register_funder() -> Backend[Funder]:
    """A remote funder; opened with `ports.fundwatch.FunderContext`, once per session whose `fundingtype` names it."""
    raise NotImplementedError


@hookspec
def perun_register_watcher() -> Backend[RemoteWatcher]:
    """A remote watcher; opened with `ports.fundwatch.WatchContext`, once per session whose `watchertype` names it."""
    raise NotImplementedError


@hookspec
def perun_register_app() -> tuple[Address, App]:
    """An app and the address of its contract."""
    raise NotImplementedError


@hookspec
def perun_register_api() -> Frontend:
    """A server for users; started with `ports.api.ApiContext`, once for the node."""
    raise NotImplementedError


@hookspec
def perun_add_commands(cli: click.Group) -> None:
    """Add commands to ``perunnode`` with ``cli.add_command``. Called when the command line starts."""

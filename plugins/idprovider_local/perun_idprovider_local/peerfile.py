"""The YAML file of peers (API.md 4.3): reading it as text only, and replacing it in one step.

Every scalar is text, so an unquoted ``0x…`` address stays what the user wrote. The file has one fixed shape, a map of
maps of texts; anchors, aliases, tags and deeper nesting are refused while reading, before they could cost anything.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from perun_core.errors import IDProviderBroken
from perun_core.ports.idprovider import OWN_ALIAS, PeerID
from perun_core.values import Address

MAX_FILE_SIZE: Final = 10 * 1024 * 1024

Entries = dict[str, dict[str, str]]


# ----------------------------------------------------------------------------------------------------------- reading


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most `MAX_FILE_SIZE` bytes. Raises: IDProviderBroken."""
    try:
        # Non-blocking, so that a pipe under this name cannot hold us.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IDProviderBroken(f"ID provider file {str(path)!r} is not a regular file")
            content = file.read(MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:
        raise IDProviderBroken(f"ID provider file {str(path)!r} cannot be read") from error
    if len(content) > MAX_FILE_SIZE:
        raise IDProviderBroken(f"ID provider file {str(path)!r} is larger than {MAX_FILE_SIZE >> 20} MiB")
    return content


def parse(content: bytes, path: Path) -> tuple[PeerID, ...]:
    """The peers in the file's content; `path` is for error texts.

    The key names the peer: an inner ``alias`` that differs is ignored, unknown inner fields too. Raises:
    IDProviderBroken for anything malformed, an entry ``self``, or an alias or address that occurs twice.
    """
    import yaml

    try:
        entries = _entries(yaml.parse(content.decode("utf-8-sig"), Loader=_loader()))
        return _peers(entries)
    except _Malformed as error:
        raise IDProviderBroken(f"ID provider file {str(path)!r}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IDProviderBroken(f"ID provider file {str(path)!r} is not valid YAML") from error


class _Malformed(Exception):
    """What is wrong, for the error text."""


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def _entries(events: Iterator[Any]) -> Entries:
    """The map of maps of texts that the YAML events describe; an empty file is an empty map."""
    import yaml

    content = [event for event in _checked(events) if not isinstance(event, _framing())]
    walk = iter(content)
    root = next(walk, None)
    if root is None or (isinstance(root, yaml.ScalarEvent) and root.value in ("", "~", "null")):
        return {}
    if not isinstance(root, yaml.MappingStartEvent):
        raise _Malformed("it is not a map of peers by alias")
    entries: Entries = {}
    for key in _until_end(walk):
        alias = _text(key, "an alias")
        if alias in entries:
            raise _Malformed(f"alias {alias!r} occurs twice")
        if not isinstance(next(walk), yaml.MappingStartEvent):
            raise _Malformed(f"the entry of {alias!r} is not a map")
        entries[alias] = _fields(walk, alias)
    return entries


def _fields(walk: Iterator[Any], alias: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for key in _until_end(walk):
        # The original reader lower-cases the names of fields.
        name = _text(key, f"a field of {alias!r}").lower()
        if name in fields:
            raise _Malformed(f"field {name!r} of {alias!r} occurs twice")
        fields[name] = _text(next(walk), f"field {name!r} of {alias!r}")
    return fields


def _until_end(walk: Iterator[Any]) -> Iterator[Any]:
    import yaml

    for event in walk:
        if isinstance(event, yaml.MappingEndEvent):
            return
        yield event


def _text(event: Any, what: str) -> str:
    import yaml

    if not isinstance(event, yaml.ScalarEvent):
        raise _Malformed(f"{what} is not a text")
    return str(event.value)


def _checked(events: Iterator[Any]) -> Iterator[Any]:
    """The same events, without the features of YAML that a list of peers has no use for."""
    import yaml

    documents = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Malformed("anchors and aliases are not supported")
        if getattr(event, "tag", None) is not None:
            raise _Malformed("tags are not supported")
        if isinstance(event, yaml.SequenceStartEvent):
            raise _Malformed("it contains a list where a text or a peer is expected")
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise _Malformed("it contains several documents")
        yield event


def _framing() -> tuple[type, ...]:
    import yaml

    return (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)


def _peers(entries: Entries) -> tuple[PeerID, ...]:
    peers: dict[Address, PeerID] = {}
    for alias, fields in entries.items():
        peer = _peer(alias, fields)
        if (other := peers.setdefault(peer.address, peer)) is not peer:
            raise _Malformed(f"{other.alias!r} and {alias!r} have the same off-chain address")
    return tuple(peers.values())


def _peer(alias: str, fields: dict[str, str]) -> PeerID:
    if not alias:
        raise _Malformed("an alias is empty")
    if alias == OWN_ALIAS:
        raise _Malformed(f"the alias {OWN_ALIAS!r} is reserved for the session's own entry")
    text = fields.get("offchain_address", "")
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise _Malformed(f"the off-chain address {text!r} of {alias!r} is malformed: {error}") from None
    if address.is_zero:
        raise _Malformed(f"{alias!r} has no off-chain address")
    return PeerID(
        alias=alias,
        address=address,
        comm_address=fields.get("comm_address", ""),
        comm_type=fields.get("comm_type", ""),
        address_text=text,
    )


# ----------------------------------------------------------------------------------------------------------- writing


def render(peers: Iterable[PeerID]) -> bytes:
    """The content of a file with `peers` in the order given; texts that other readers might convert are quoted."""
    import yaml

    entries = {
        peer.alias: {
            "alias": peer.alias,
            "offchain_address": peer.shown_address,
            "comm_address": peer.comm_address,
            "comm_type": peer.comm_type,
        }
        for peer in peers
    }
    text: str = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) if entries else ""
    return text.encode()


def replace(path: Path, content: bytes) -> None:
    """Make `content` the durable content of the file, all of it or nothing, keeping mode and links.

    Raises: IDProviderBroken; the file is then as it was.
    """
    target = Path(os.path.realpath(path))
    temporary: str | None = None
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
        if not os.access(target, os.W_OK):
            # Renaming would get around a file that its owner made read-only.
            raise PermissionError(f"{target} is read-only")
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
        _sync_directory(target.parent)
    except OSError as error:
        raise IDProviderBroken(f"ID provider file {str(path)!r} cannot be written") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

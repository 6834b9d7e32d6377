"""Text that somebody else wrote, made fit for a terminal.

Aliases, reasons and messages may come from the peer or the chain. A control sequence in them could hide or forge what
the user reads, and a writing-direction mark could turn an amount around, so all of them are shown escaped.
"""

from __future__ import annotations

import unicodedata
from typing import Final

LONGEST: Final = 2000
"""Characters of one foreign text that are shown; errors of a node are far shorter."""

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def shown(text: str) -> str:
    """`text` on one line: what does not print as itself becomes an escape, and so does the backslash."""
    cut = text if len(text) <= LONGEST else text[:LONGEST]
    visible = cut if cut.isascii() and cut.isprintable() and "\\" not in cut else "".join(map(_shown, cut))
    return visible if len(text) <= LONGEST else f"{visible}… ({len(text)} characters)"


def _shown(character: str) -> str:
    if character == "\\":
        return "\\\\"
    strange_space = character.isspace() and character != " "
    if not strange_space and unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")

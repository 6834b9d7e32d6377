"""What Tab offers: groups, commands, and values that are known here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from .desk import Desk
from .grammar import (
    GROUPS,
    SINGLE_ONLY,
    Argument,
    Command,
    Word,
    command_named,
    commands_of,
    group_named,
)

_SUGGESTED: Final = {
    Word.NODE: (":50001",),
    Word.CHAIN: ("ws://127.0.0.1:8545",),
    Word.SESSION_FILE: ("alice/session.yaml", "bob/session.yaml"),
}


class CommandCompleter(Completer):
    """Completes names and the aliases of the desk; words already typed with quotes are taken as they are."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        typed = document.text_before_cursor
        words = typed.split()
        begun = words.pop() if words and not typed[-1].isspace() else ""
        for candidate, meaning in self._candidates(words):
            if candidate.startswith(begun) and candidate.isprintable():
                yield Completion(_quoted(candidate), start_position=-len(begun), display_meta=meaning)

    def _candidates(self, before: Sequence[str]) -> Iterable[tuple[str, str]]:
        plain = [word for word in before if not word.startswith("--")]
        if not plain:
            built_in = [(command.name, command.help) for command in commands_of("")]
            return [*((group.name, group.help) for group in GROUPS if group.name != "watch"), *built_in]
        if plain[0] == "help":
            return [(group.name, group.help) for group in GROUPS]
        group = group_named(plain[0])
        if group is None:
            return []
        if len(plain) == 1:
            offered = (command for command in commands_of(group.name) if command.full_name not in SINGLE_ONLY)
            return [(command.name, command.help) for command in offered]
        command = command_named(group.name, plain[1])
        return [] if command is None else self._values(command, plain[2:])

    def _values(self, command: Command, given: Sequence[str]) -> list[tuple[str, str]]:
        argument = command.argument_at(len(given))
        if argument is None:
            return []
        fixed = argument.choices or argument.suggestions or _SUGGESTED.get(argument.word, ())
        known = [(value, argument.name) for value in fixed]
        return known + [(value, argument.name) for value in self._known(argument, given)]

    def _known(self, argument: Argument, given: Sequence[str]) -> list[str]:
        book = self._desk.book
        match argument.word:
            case Word.PEER:
                return list(book.peers)
            case Word.REQUEST:
                return list(book.requests)
            case Word.CHANNEL:
                return list(book.channels)
            case Word.CURRENCY:
                held = book.channels.get(given[0]) if given else None
                everything = (currency for each in book.channels.values() for currency in each.currencies)
                return list(held.currencies if held else dict.fromkeys(("ETH", *everything)))
            case _:
                return []


def _quoted(value: str) -> str:
    """A value as it must be typed."""
    if value.isascii() and not set(value) & set(" '\"\\#"):
        return value
    return "'" + value.replace("'", "'\"'\"'") + "'"

"""What a terminal and a file of commands have in common: a line comes in, an answer is printed."""

from __future__ import annotations

from .commands import perform
from .desk import Desk
from .escape import shown
from .failures import OK, Failure, UsageFailure
from .grammar import Call, Group, group_help, group_named, overview, parse, words_of
from .replies import Tone
from .screen import Screen


class Leave(Exception):
    """The user wants to go."""


class Shell:
    """Understands lines and carries them out at a desk."""

    def __init__(self, desk: Desk, screen: Screen) -> None:
        self.desk = desk
        self.screen = screen

    def understand(self, line: str) -> Call | None:
        """The call a line asks for, if it is one that has to be carried out; help and the like are done at once.

        Raises: Leave, UsageFailure.
        """
        parsed = parse(words_of(line))
        match parsed:
            case None:
                return None
            case Group():
                if parsed.name != "chain":
                    _ = self.desk.connected
                self.screen.say([*group_help(parsed), ""])
                return None
        if parsed.command.group:
            return parsed
        self._built_in(parsed)
        return None

    def _built_in(self, call: Call) -> None:
        match call.command.name:
            case "exit":
                raise Leave
            case "clear":
                self.screen.clear()
            case _ if call.arguments:
                group = group_named(call.arguments[0])
                if group is None:
                    raise UsageFailure(f"There is no group {shown(call.arguments[0])}.")
                self.screen.say([*group_help(group), ""])
            case _:
                self.screen.say([*overview(), ""])

    async def carry_out(self, call: Call) -> int:
        """Do it and print the answer; the exit code it would have as a single command."""
        name = call.command.full_name
        try:
            reply = await perform(self.desk, call)
        except Failure as failure:
            self.screen.failure(name, failure, json=call.json)
            return failure.code
        self.screen.answer(name, reply, json=call.json)
        return OK

    def not_understood(self, failure: UsageFailure) -> int:
        """Say why a line is no command."""
        self.screen.failure("", failure)
        return failure.code

    def goodbye(self) -> None:
        """What to know when leaving."""
        if self.desk.book.session:
            self.screen.say("The session stays open at the node; 'session use ID' comes back to it.", Tone.PLAIN)

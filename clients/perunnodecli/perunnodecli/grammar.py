"""The commands: their names, synonyms, arguments and help, and how a line becomes one of them.

The table is data; what a command does is found by its full name in `commands`. Names are those of the original client
(API.md 6.1), with shorter synonyms beside them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from .escape import shown
from .failures import UsageFailure


class Word(Enum):
    """What an argument is, which decides what completion offers."""

    ADDRESS = auto()
    AMOUNT = auto()
    CHANNEL = auto()
    CURRENCY = auto()
    FILE = auto()
    NODE = auto()
    CHAIN = auto()
    PEER = auto()
    REQUEST = auto()
    SESSION_FILE = auto()
    TEXT = auto()


@dataclass(frozen=True, slots=True)
class Argument:
    """One positional argument. `choices` are the only values it may have."""

    name: str
    word: Word = Word.TEXT
    choices: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A command; `required` of its arguments must be given, and `more` says that the last ones may repeat."""

    group: str
    name: str
    help: str
    arguments: tuple[Argument, ...] = ()
    synonyms: tuple[str, ...] = ()
    required: int | None = None
    repeats: int = 0
    options: Mapping[str, str] | None = None
    needs_node: bool = True
    waits: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.group} {self.name}".strip()

    @property
    def least(self) -> int:
        return len(self.arguments) if self.required is None else self.required

    @property
    def usage(self) -> str:
        """The line that shows how to call it."""
        words = [self.full_name]
        for number, argument in enumerate(self.arguments):
            word = "|".join(argument.choices) or f"[{argument.name}]"
            words.append(word if number < self.least else f"({word})")
        if self.repeats:
            words.append("…")
        words += [f"(--{name} {value})" for name, value in (self.options or {}).items()]
        return "Usage: " + " ".join(words)

    def argument_at(self, position: int) -> Argument | None:
        """The argument at a position, counting repetitions."""
        if position < len(self.arguments):
            return self.arguments[position]
        if not self.repeats:
            return None
        return self.arguments[len(self.arguments) - self.repeats + (position - len(self.arguments)) % self.repeats]

    def check(self, given: Sequence[str]) -> None:
        """Raises: UsageFailure for a wrong number of arguments or a value that is no choice."""
        most = len(self.arguments)
        if len(given) < self.least or (len(given) > most and not self.repeats):
            wanted = str(self.least) if self.least == most and not self.repeats else f"at least {self.least}"
            if not self.repeats and self.least != most:
                wanted = f"{self.least} to {most}"
            raise UsageFailure(f"Got {len(given)} arg(s). Want {wanted}.\nCommand help:\t{self.help} {self.usage}")
        for position, value in enumerate(given):
            argument = self.argument_at(position)
            if argument and argument.choices and value not in argument.choices:
                raise UsageFailure(
                    f"Parameter should be one of these values: [{' '.join(argument.choices)}], not {shown(value)}"
                )


@dataclass(frozen=True, slots=True)
class Group:
    """Commands that belong together."""

    name: str
    help: str
    synonyms: tuple[str, ...] = ()


_CHANNEL: Final = Argument("channel", Word.CHANNEL)
_PEER: Final = Argument("peer alias", Word.PEER)
_REQUEST: Final = Argument("request alias", Word.REQUEST)
_AMOUNT: Final = Argument("amount", Word.AMOUNT)
_CURRENCY: Final = Argument("currency", Word.CURRENCY)
_DEMO_ACCOUNTS: Final = (
    "0x8450c0055cB180C7C37A25866132A740b812937B",
    "0xc4bA4815c82727554e4c12A07a139b74c6742322",
)
_SECONDS: Final = {"timeout": "SECONDS"}

GROUPS: Final = (
    Group("node", "The node this client talks to."),
    Group("session", "A user's session at the node."),
    Group("peer-id", "The people the session knows.", ("peer",)),
    Group("channel", "Open, list and close payment channels."),
    Group("payment", "Send, request and answer payments.", ("pay",)),
    Group("currency", "Tokens beside ETH."),
    Group("chain", "The blockchain itself, asked directly."),
    Group("watch", "Print notifications as JSON lines, for scripts."),
    Group("respond", "Answer a notification by its ID, for scripts."),
    Group("wait", "In command files: go on when something has come."),
)

COMMANDS: Final = (
    Command("node", "connect", "Connect to a running node.", (Argument("url", Word.NODE),), needs_node=False),
    Command("node", "time", "Print the node's time."),
    Command("node", "config", "Print how the node is configured."),
    Command("node", "services", "Print the services the node offers.", synonyms=("help",)),
    Command(
        "session", "open", "Open the session that a file on the node's machine describes.",
        (Argument("session config file", Word.SESSION_FILE),),
        waits="opening the session",
    ),
    Command(
        "session", "close", "Close the session; with force, open channels stay stored at the node.",
        (Argument("force", choices=("force", "no-force")),),
        waits="closing the session",
    ),
    Command(
        "session", "use", "Go on with a session that is open at the node.",
        (Argument("session ID"),), synonyms=("attach",),
    ),
    Command("session", "id", "Print the ID of the session. Whoever knows it can use the session."),
    Command(
        "peer-id", "add", "Add somebody to the people the session knows.",
        (
            Argument("peer alias"),
            Argument("off-chain address", Word.ADDRESS),
            Argument("comm address"),
            Argument("comm type", suggestions=("tcp",)),
        ),
    ),
    Command("peer-id", "get", "Print what the session knows of somebody; 'self' is the user.", (_PEER,)),
    Command(
        "channel", "send-opening-request",
        "Propose a channel with own and peer's deposit in ETH, or in each currency that is named before its deposits.",
        (
            _PEER,
            Argument("own amount", Word.AMOUNT),
            Argument("peer amount", Word.AMOUNT),
            _CURRENCY,
            Argument("own amount", Word.AMOUNT),
            Argument("peer amount", Word.AMOUNT),
        ),
        ("open", "propose"), required=3, repeats=3, options={"challenge": "SECONDS"},
        waits="opening a channel with {0}",
    ),
    Command(
        "channel", "subscribe-to-opening-requests", "Be told of opening requests.",
        synonyms=("subscribe", "sub"),
    ),
    Command(
        "channel", "unsubcribe-from-opening-requests", "No longer be told of opening requests.",
        synonyms=("unsubscribe-from-opening-requests", "unsubscribe", "unsub"),
    ),
    Command(
        "channel", "accept-opening-request", "Accept an opening request; returns when both have deposited.",
        (_REQUEST,), ("accept",), waits="opening the channel of {0}",
    ),
    Command("channel", "reject-opening-request", "Reject an opening request.", (_REQUEST,), ("reject",)),
    Command(
        "channel", "list-notifications-pending-response", "List what waits for an answer.",
        synonyms=("pending", "list-pending"),
    ),
    Command("channel", "list-open-channels", "List the open channels.", synonyms=("list", "ls")),
    Command("channel", "info", "Print the last agreed state of a channel.", (_CHANNEL,)),
    Command(
        "channel", "close-n-settle-on-chain", "Close a channel and withdraw; returns when the own share is back.",
        (_CHANNEL,), ("close", "settle"), waits="closing {0}",
    ),
    Command(
        "payment", "send-to-peer", "Send a payment, in ETH unless a currency is named.",
        (_CHANNEL, _AMOUNT, _CURRENCY, _AMOUNT, _CURRENCY), ("send",), required=2, repeats=2,
        waits="paying on {0}",
    ),
    Command(
        "payment", "request-from-peer", "Ask the peer for a payment, in ETH unless a currency is named.",
        (_CHANNEL, _AMOUNT, _CURRENCY, _AMOUNT, _CURRENCY), ("request", "req"), required=2, repeats=2,
        waits="asking for a payment on {0}",
    ),
    Command(
        "payment", "swap", "Give one amount for another in one update.",
        (_CHANNEL, _AMOUNT, _CURRENCY, Argument("for", choices=("for",)), _AMOUNT, _CURRENCY), ("exchange",),
        waits="swapping on {0}",
    ),
    Command(
        "payment", "subscribe-to-notifications", "Be told of payments on a channel.",
        (_CHANNEL,), ("subscribe", "sub"),
    ),
    Command(
        "payment", "unsubscribe-to-notifications", "No longer be told of payments on a channel.",
        (_CHANNEL,), ("unsubscribe-from-notifications", "unsubscribe", "unsub"),
    ),
    Command(
        "payment", "accept-payment-update-from-peer", "Accept the latest update of a channel.",
        (_CHANNEL,), ("accept",), waits="accepting on {0}",
    ),
    Command(
        "payment", "reject-payment-update-from-peer", "Reject the latest update of a channel.",
        (_CHANNEL,), ("reject",),
    ),
    Command(
        "currency", "register", "Make a token usable in channels of the node.",
        (Argument("token address", Word.ADDRESS), Argument("asset holder address", Word.ADDRESS)),
        waits="looking at the contracts",
    ),
    Command(
        "currency", "deploy-asset-holder", "Deploy an asset holder for a token.",
        (Argument("token address", Word.ADDRESS),), ("deploy",), waits="deploying the asset holder",
    ),
    Command(
        "chain", "set-blockchain-address", "Say where the chain node is.",
        (Argument("url", Word.CHAIN),), needs_node=False,
    ),
    Command(
        "chain", "get-blockchain-address", "Print where the chain node is.", synonyms=("address",), needs_node=False,
    ),
    Command(
        "chain", "deploy-perun-contracts",
        "Deploy the contracts with the account of a key file; without one, with alice's of 'perunnode generate'.",
        (Argument("key file", Word.FILE), Argument("password file", Word.FILE)), ("deploy",), required=0,
        needs_node=False, waits="deploying the contracts",
    ),
    Command(
        "chain", "get-on-chain-balance", "Print what an account has in ETH, or in a token.",
        (
            Argument("address", Word.ADDRESS, suggestions=_DEMO_ACCOUNTS),
            Argument("token address", Word.ADDRESS),
        ),
        ("balance",), required=1, needs_node=False, waits="asking the chain",
    ),
    Command(
        "watch", "opening-requests", "Opening requests, one JSON object per line, until Ctrl-C.",
        synonyms=("requests", "proposals"), options={"count": "N", **_SECONDS},
    ),
    Command(
        "watch", "payments", "Updates of one channel and the news of its closing.",
        (_CHANNEL,), ("updates", "channel"), options={"count": "N", **_SECONDS},
    ),
    Command(
        "watch", "all", "Opening requests, and the updates of every channel, those opened later included.",
        options={"count": "N", **_SECONDS},
    ),
    Command(
        "respond", "opening-request", "Answer an opening request by its ID.",
        (Argument("proposal ID"), Argument("answer", choices=("accept", "reject"))), ("request", "proposal"),
        waits="answering",
    ),
    Command(
        "respond", "payment", "Answer an update by its ID.",
        (Argument("update ID"), Argument("answer", choices=("accept", "reject"))), ("update",),
        waits="answering",
    ),
    Command("wait", "request", "Until an opening request waits for an answer.", options=_SECONDS),
    Command("wait", "payment", "Until an update of the channel waits for an answer.", (_CHANNEL,), options=_SECONDS),
    Command("wait", "closed", "Until the channel is closed.", (_CHANNEL,), options=_SECONDS),
    Command("", "help", "What there is; 'help GROUP' tells more.", (Argument("group"),), required=0, needs_node=False),
    Command("", "clear", "Clear the screen.", needs_node=False),
    Command("", "exit", "Leave; the session stays open at the node.", synonyms=("quit",), needs_node=False),
)  # fmt: skip

SHELL_ONLY: Final = frozenset(
    {
        "session use", "channel subscribe-to-opening-requests",
        "channel unsubcribe-from-opening-requests", "channel list-notifications-pending-response",
        "payment subscribe-to-notifications", "payment unsubscribe-to-notifications",
        "payment accept-payment-update-from-peer", "payment reject-payment-update-from-peer",
        "chain set-blockchain-address", "wait request", "wait payment", "wait closed", "clear", "exit",
    }
)  # fmt: skip
"""Commands that change or need what a shell remembers; a single command has nothing to remember."""
SINGLE_ONLY: Final = frozenset({"watch opening-requests", "watch payments", "watch all"})
"""Commands that have the output for themselves."""


@dataclass(frozen=True, slots=True)
class Call:
    """A command with its arguments; options are text, `json` asks for the answer as JSON."""

    command: Command
    arguments: tuple[str, ...]
    options: Mapping[str, str]
    json: bool = False


def group_named(name: str) -> Group | None:
    """The group of that name or synonym."""
    return next((group for group in GROUPS if name == group.name or name in group.synonyms), None)


def commands_of(group: str) -> Iterator[Command]:
    """The commands of a group; the empty name has the built-ins."""
    return (command for command in COMMANDS if command.group == group)


def command_named(group: str, name: str) -> Command | None:
    """The command of that name or synonym."""
    return next((command for command in commands_of(group) if name == command.name or name in command.synonyms), None)


def words_of(line: str) -> list[str]:
    """The words of a typed line; quotes keep blanks, a line that begins with # has none. Raises: UsageFailure."""
    if line.lstrip().startswith("#"):
        return []
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageFailure(f"The line cannot be read: {error}") from error


def parse(words: Sequence[str]) -> Call | Group | None:
    """What a line asks for: a command, the help of a group, or nothing. Raises: UsageFailure."""
    plain, options = _options(words)
    if not plain:
        if options:
            raise UsageFailure("Options need a command before them")
        return None
    json = options.pop("json", None) is not None
    group = group_named(plain[0])
    if group is None:
        command = command_named("", plain[0])
        if command is None:
            raise UsageFailure(f"Unknown command {shown(plain[0])}. Type help to see what there is.")
        return _call(command, plain[1:], options, json=json)
    if len(plain) == 1:
        return group
    command = command_named(group.name, plain[1])
    if command is None:
        raise UsageFailure(f"Unknown command {shown(' '.join(plain[:2]))}.\n" + "\n".join(group_help(group)))
    return _call(command, plain[2:], options, json=json)


def _call(command: Command, arguments: Sequence[str], options: dict[str, str], *, json: bool) -> Call:
    for name in options:
        if name not in (command.options or {}):
            raise UsageFailure(f"{command.full_name} has no option --{shown(name)}. {command.usage}")
    command.check(arguments)
    return Call(command, tuple(arguments), options, json=json)


def _options(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Plain words, and options as `--name value` or `--name=value`; what follows a lone -- is plain."""
    plain: list[str] = []
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":
            plain += rest
        elif word == "--json":
            options["json"] = ""
        elif word.startswith("--"):
            name, given, value = word[2:].partition("=")
            if not given:
                following = next(rest, None)
                if following is None:
                    raise UsageFailure(f"--{shown(name)} needs a value")
                value = following
            if name in options:
                raise UsageFailure(f"--{shown(name)} is given twice")
            options[name] = value
        else:
            plain.append(word)
    return plain, options


def group_help(group: Group) -> list[str]:
    """The commands of a group."""
    commands = list(commands_of(group.name))
    width = max(len(command.name) for command in commands)
    return [group.help, *(f"  {command.name:{width}}  {command.help} {command.usage}" for command in commands)]


def overview() -> list[str]:
    """Groups and built-ins."""
    width = max(len(group.name) for group in GROUPS)
    built_in = (f"  {command.name:{width}}  {command.help}" for command in commands_of(""))
    return ["Commands:", *(f"  {group.name:{width}}  {group.help}" for group in GROUPS), *built_in]

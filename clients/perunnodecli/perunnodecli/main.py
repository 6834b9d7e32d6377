"""The program: its options, and which of the three clients it is this time."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import __version__
from .endpoint import DEFAULT_NODE, Security, read_token
from .failures import DEFECT, INTERRUPTED, OK, UsageFailure
from .grammar import Call, Group, group_help, overview, parse
from .screen import Screen, wants_colour
from .typed import DEFAULT_CHAIN, DEFAULT_CHALLENGE, seconds

if TYPE_CHECKING:
    from .desk import Desk
    from .shell import Shell

_FLAGS: Final = frozenset({"--json", "--no-color", "--stop-on-error", "--version", "--help", "-h"})
_EPILOG: Final = """\
Without a command: a shell, on a terminal with completion and history, otherwise for lines from standard input.
'perunnodecli help' lists the commands.

Exit codes: 0 done; 1 a defect of this program; 2 wrong command; 3 no usable answer from the node; errors the node
answers with: 4 participant, 5 client, 6 protocol, 7 internal; 8 chain node; 9 what was waited for did not come;
130 interrupted.
"""


@dataclass(frozen=True)
class Settings:
    """What the options say."""

    node: str
    node_given: bool
    session: str
    security: Security
    chain: str
    challenge: int
    json: bool
    colour: bool | None
    stop_on_error: bool


def parser() -> argparse.ArgumentParser:
    """The options, in any place of the command line."""
    built = argparse.ArgumentParser(
        prog="perunnodecli",
        usage="perunnodecli [options] [GROUP COMMAND ARGUMENT…]",
        description="A client of a Perun node: an interactive shell, or single commands for scripts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = built.add_argument
    add("--node", metavar="HOST:PORT", help=f"the node ({DEFAULT_NODE}); also PERUNNODECLI_NODE")
    add("--session", metavar="ID", help="the session; also PERUNNODECLI_SESSION, which other users cannot see")
    add("--session-file", metavar="FILE", type=Path, help="file with the ID of the session")
    add(
        "--chain",
        metavar="URL",
        default=DEFAULT_CHAIN,
        help=f"the chain node, for the chain commands ({DEFAULT_CHAIN})",
    )
    add("--challenge", metavar="SECONDS", help=f"challenge duration of channels that are opened ({DEFAULT_CHALLENGE})")
    add("--json", action="store_true", help="answers and notifications as JSON, one object per line")
    add("--no-color", action="store_true", help="no colours; so does NO_COLOR")
    add("--stop-on-error", action="store_true", help="with lines from standard input: stop at the first that fails")
    add("--tls-ca", metavar="FILE", type=Path, help="use TLS, and trust the authorities in this file")
    add("--cert", metavar="FILE", type=Path, help="own certificate, where the node asks for one")
    add("--key", metavar="FILE", type=Path, help="key of the own certificate")
    add("--tls-server-name", metavar="NAME", default="", help="name in the node's certificate, if not that of --node")
    add("--token-file", metavar="FILE", type=Path, help="file with the access token")
    add("--version", action="version", version=f"perunnodecli {__version__}")
    return built


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of the program, and the words of a command with the command's own options."""
    known = {option for action in parser()._actions for option in action.option_strings}
    own: list[str] = []
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        name, given, _ = word.partition("=")
        if word == "--":
            words += [word, *rest]
        elif name not in known or (name == "--challenge" and words):
            words.append(word)
        else:
            own.append(word)
            if not given and name not in _FLAGS:
                own += [following for following in [next(rest, None)] if following is not None]
    return own, words


def settings_of(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Options, and what is left. Raises: UsageFailure, SystemExit (--help, --version, a wrong option)."""
    own, words = split(arguments)
    given = parser().parse_args(own)
    node = given.node or environ.get("PERUNNODECLI_NODE", "")
    session = given.session or environ.get("PERUNNODECLI_SESSION", "")
    if given.session_file is not None:
        session = read_token(given.session_file)
    security = Security(
        tls_ca=given.tls_ca,
        cert=given.cert,
        key=given.key,
        server_name=given.tls_server_name,
        token=read_token(given.token_file) if given.token_file else "",
    )
    settings = Settings(
        node=node or DEFAULT_NODE,
        node_given=bool(node),
        session=session,
        security=security,
        chain=given.chain,
        challenge=seconds(given.challenge, "challenge") if given.challenge else DEFAULT_CHALLENGE,
        json=given.json,
        colour=False if given.no_color else None,
        stop_on_error=given.stop_on_error,
    )
    return settings, words


def main() -> None:
    """The console script ``perunnodecli``."""
    try:
        code = run(sys.argv[1:])
    except UsageFailure as failure:
        print(failure, file=sys.stderr)
        code = failure.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever reads our output has enough. Nothing more can be written, not even at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DEFECT
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """The exit code. Raises: UsageFailure, KeyboardInterrupt, BrokenPipeError."""
    settings, words = settings_of(arguments, os.environ)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    colour = wants_colour(sys.stdout, os.environ) if settings.colour is None else settings.colour
    screen = Screen(sys.stdout, sys.stderr, colour=colour, tables=sys.stdout.isatty(), json=settings.json)
    if words:
        screen.single = True
        try:
            call = _command(words)
        except UsageFailure as failure:
            screen.failure("", failure)
            return failure.code
        return OK if call is None else asyncio.run(_single(settings, screen, call))
    return asyncio.run(_shell(settings, screen, on_terminal=on_terminal, colour=colour))


def _command(words: Sequence[str]) -> Call | None:
    """The command on the command line; help is given at once. Raises: UsageFailure."""
    parsed = parse(words)
    if isinstance(parsed, Group):
        print("\n".join(group_help(parsed)))
        return None
    if parsed is not None and parsed.command.full_name == "help":
        inner = parse(parsed.arguments)
        print("\n".join(group_help(inner) if isinstance(inner, Group) else overview()))
        return None
    return parsed


async def _single(settings: Settings, screen: Screen, call: Call) -> int:
    from .single import run_single

    desk = _desk(settings, screen, live=False)
    return await run_single(desk, screen, call, settings.node)


async def _shell(settings: Settings, screen: Screen, *, on_terminal: bool, colour: bool) -> int:
    from .script import run_script
    from .shell import Shell

    desk = _desk(settings, screen, live=True)
    shell = Shell(desk, screen)
    try:
        greeting = await _greet(shell, settings, on_terminal=on_terminal)
        if not on_terminal:
            if greeting and settings.stop_on_error:
                return greeting
            code = await run_script(shell, sys.stdin.fileno(), stop_on_failure=settings.stop_on_error)
            return greeting or code
        from .interactive import HISTORY, Terminal

        return await Terminal(shell, colour=colour, history=Path.home() / HISTORY).run()
    finally:
        await desk.use_node(None)


async def _greet(shell: Shell, settings: Settings, *, on_terminal: bool) -> int:
    """Say hello on a terminal, connect and take up the session if the options ask for it."""
    from .grammar import command_named

    if on_terminal:
        shell.screen.say(["Perun node cli application.", ""])
        if not settings.node_given:
            shell.screen.say(["Connect to a perun node instance using 'node connect' for making any transactions.", ""])
    wanted = [("node", "connect", settings.node)] if settings.node_given or settings.session else []
    wanted += [("session", "use", settings.session)] if settings.session else []
    code = OK
    for group, name, argument in wanted:
        command = command_named(group, name)
        assert command is not None
        code = code or await shell.carry_out(Call(command, (argument,), {}))
    return code


def _desk(settings: Settings, screen: Screen, *, live: bool) -> Desk:
    from .desk import Desk

    return Desk(
        tell=screen.notice,
        live=live,
        security=settings.security,
        session="" if live else settings.session,
        chain=settings.chain,
        challenge=settings.challenge,
    )

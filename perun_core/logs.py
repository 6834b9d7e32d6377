"""Where log entries go and what a line looks like (API.md 4.6).

Code logs through ``structlog.get_logger()`` with fields: ``log.info("session opened", session=alias)``. `configure`
decides for the whole process, as logging always does; the latest call wins. Below the chosen level a call costs a
method that does nothing. Never log passwords, keys, session files, or session IDs at info level and above.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import IO, Any, Final

import structlog

from .errors import ConfigError

LEVELS: Final[Mapping[str, int]] = {
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.NOTSET,
}
"""Level names of configuration files; trace also shows what libraries say."""

_PLAIN: Final = re.compile(r"[a-zA-Z0-9\-._/@^+:,]+")
_CONTROL: Final = re.compile("[\x7f-\x9f\u2028\u2029]")
_COLOURS: Final = {"error": "31", "fatal": "31", "panic": "31", "warning": "33", "info": "36", "debug": "37"}
_NAMES: Final = {"critical": "fatal", "exception": "error", "warn": "warning"}


def parse_level(name: str) -> int:
    """The numeric level of `name`, in any case. Raises: ConfigError("loglevel")."""
    level = LEVELS.get(name.lower())
    if level is None:
        raise ConfigError("loglevel", name, f"must be one of {', '.join(LEVELS)}")
    return level


def configure(level: str, *, file: str = "", json_lines: bool = False) -> None:
    """Send entries of `level` and above to `file` (appended; empty: standard output), as text or JSON lines.

    What our own packages say through standard logging goes the same way, with its `extra` fields; what libraries say
    from warning on, from info on at level trace.
    Raises: ConfigError("loglevel"), ConfigError("logfile").
    """
    threshold = parse_level(level)
    target = _open(file) if file else None
    render = json_line if json_lines else TextLine(colours=target is None and sys.stdout.isatty())
    _SINK.redirect(target)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _SINK,
        cache_logger_on_first_use=False,
    )
    _adopt_standard_logging(threshold, max(threshold, logging.INFO if threshold == logging.NOTSET else logging.WARNING))


class _Sink:
    """Where finished lines go; loggers that were bound before a change follow it."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def redirect(self, file: IO[str] | None) -> None:
        """From now on to `file`, or to standard output; the file before is closed."""
        previous, self._file = self._file, file
        if previous is not None:
            previous.close()

    def msg(self, line: str) -> None:
        """Write one line at once: other processes may append to the same file."""
        file = sys.stdout if self._file is None else self._file
        file.write(line + "\n")
        file.flush()

    debug = info = warn = warning = error = exception = critical = fatal = log = msg


_SINK: Final = _Sink()


class TextLine:
    """Renders ``▶ time="…" level=… msg="…" field=value``; whatever a value holds, it stays on one line."""

    def __init__(self, *, colours: bool = False) -> None:
        self._colours = colours

    def __call__(self, logger: object, method: str, entry: MutableMapping[str, Any]) -> str:
        """structlog's final processor."""
        level, message, fields = _parts(entry)
        shown_level = f"\x1b[{_COLOURS[level]}m{level}\x1b[0m" if self._colours and level in _COLOURS else level
        head = f'▶ time="{_now()}" level={shown_level} msg={_quoted(message)}'
        return " ".join([head, *(f"{key}={_value(value)}" for key, value in fields.items())])


def json_line(logger: object, method: str, entry: MutableMapping[str, Any]) -> str:
    """structlog's final processor for machine-readable lines."""
    level, message, fields = _parts(entry)
    return json.dumps({"time": _now(), "level": level, "msg": message, **fields}, default=str, ensure_ascii=True)


def _parts(entry: MutableMapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    fields = dict(entry)
    level = str(fields.pop("level", "info"))
    return _NAMES.get(level, level), str(fields.pop("event", "")), fields


def _now() -> str:
    zone = time.strftime("%z")
    return time.strftime("%Y-%m-%d %H:%M:%S ") + ("Z" if zone == "+0000" else zone)


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _open(file: str) -> IO[str]:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise ConfigError("logfile", file, f"cannot be opened for appending: {reason}") from e
    return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


_OURS: Final = "perun_"
_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _ThroughStructlog(logging.Handler):
    """Entries of standard logging in our form; `others` is the lowest level of packages that are not ours."""

    def __init__(self, level: int, others: int) -> None:
        super().__init__(level)
        self._others = others

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the entry is written."""
        return record.levelno >= self._others or record.name.startswith(_OURS)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record on; logging must not raise."""
        try:
            level = min(record.levelno // 10 * 10, logging.CRITICAL)
            fields = {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
            if not record.name.startswith(_OURS):
                fields["lib"] = record.name
            if record.exc_info:
                fields["exc_info"] = record.exc_info
            structlog.get_logger().log(level, record.getMessage(), **fields)
        except Exception:
            self.handleError(record)


def _adopt_standard_logging(level: int, others: int) -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ThroughStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ThroughStructlog(level, others))
    root.setLevel(level)

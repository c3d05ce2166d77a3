"""Log lines: one form for the server and for the engine's processes.

vLLM sets up the logging of each of its processes from a file (the schema of `logging.config.dictConfig`); ours is
written for that, and used for the server itself as well. A line tells which request it belongs to. It never tells what
the request says: neither its body, query or headers, nor the words of an exception on its way, nor what other libraries
fill into their lines meanwhile, for these may quote it.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, Literal, TextIO

from guard.context import current

Form = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]
FIELDS = "lethe"
"""A record's own fields, as a dictionary under this name in `extra`. Nothing else of `extra` is written."""
OURS = ("guard", "lethe", "server")
SERVERS = ("vllm", "uvicorn")


_served: ContextVar[Mapping[str, Any] | None] = ContextVar("lethe_served", default=None)


@contextmanager
def serving(**fields: Any) -> Iterator[None]:
    """What is logged in the block belongs to a request, and carries these fields."""
    token = _served.set(fields)
    try:
        yield
    finally:
        _served.reset(token)


class Lines(logging.StreamHandler[TextIO]):
    """To standard error; in every process that has one, Python's warnings are lines too."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        logging.captureWarnings(True)


class JsonLines(logging.Formatter):
    """One JSON object a line; fields that are not known are left out."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": getattr(record, "vllm_process_name", record.processName),
            "message": _message(record),
            **_fields(record),
            "exception": _exception(record),
        }
        told = {name: value for name, value in line.items() if value is not None}
        return json.dumps(told, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """For people; a line that belongs to a request ends with its decision."""

    def format(self, record: logging.LogRecord) -> str:
        decision = _fields(record).get("decision_id")
        about = f" [{decision}]" if decision else ""
        line = f"{_time(record)} {record.levelname} {record.name}: {_message(record)}{about}"
        exception = _exception(record)
        return f"{line}\n{exception}" if exception else line


_FORMATTERS: dict[Form, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def configuration(form: Form, level: Level) -> dict[str, Any]:
    """For `logging.config.dictConfig`. `level` is that of our own loggers; vLLM's and uvicorn's write nothing below
    info, where prompts would be, and other libraries nothing below a warning."""
    formatter = _FORMATTERS[form]
    own = getattr(logging, level.upper())
    levels = dict.fromkeys(OURS, own) | {name: max(own, logging.INFO) for name in SERVERS}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lethe": {"()": f"{formatter.__module__}.{formatter.__qualname__}"}},
        "handlers": {"lethe": {"()": f"{Lines.__module__}.{Lines.__qualname__}", "formatter": "lethe"}},
        "loggers": {name: {"level": at, "handlers": [], "propagate": True} for name, at in levels.items()},
        "root": {"level": max(own, logging.WARNING), "handlers": ["lethe"]},
    }


def configure(form: Form, level: Level, folder: Path, environ: MutableMapping[str, str] = os.environ) -> Path:
    """Set up this process; gives the file from which vLLM sets up its own, in `folder`."""
    found = configuration(form, level)
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / f"logging.{form}.{level}.json").absolute()
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    logging.config.dictConfig(found)
    if form == "json":
        environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar is no line
    return path


@contextmanager
def held() -> Iterator[None]:
    """What is logged in the block is written at its end: by then it is known in which form."""
    memory = MemoryHandler(1_000, flushLevel=logging.CRITICAL + 1)
    root = logging.getLogger()
    root.addHandler(memory)
    try:
        yield
    finally:
        root.removeHandler(memory)
        for record in memory.buffer:
            logging.getLogger(record.name).handle(record)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _serves() -> bool:
    return _served.get() is not None or current() is not None


def _message(record: logging.LogRecord) -> str:
    if _serves() and record.name.partition(".")[0] not in OURS:
        return (
            str(record.msg) if record.args else f"{record.filename}:{record.lineno}"
        )  # may be filled in already
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit: logging itself would print them, with all their values
        return str(record.msg)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Which request is being served, and the record's own fields."""
    context = current()
    about = dict(_served.get() or {})
    if context is not None:
        about |= {"request_id": context.request_id, "decision_id": context.decision_id,
                 "trace_id": context.trace_id}  # fmt: skip
    return {**about, **getattr(record, FIELDS, {})}


def _exception(record: logging.LogRecord) -> str | None:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return None
    if not _serves() and not record.name.startswith("uvicorn"):  # which tells of requests when they are over
        return "".join(traceback.format_exception(error)).rstrip()
    parts = []
    while error is not None:
        parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nwhile handling\n".join(parts)

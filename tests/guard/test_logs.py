"""Log lines in both forms: what stands in them, and what never does."""

from __future__ import annotations

import json
import logging
import logging.config
import subprocess
import sys
import warnings
from contextlib import ExitStack
from datetime import datetime
from weakref import WeakValueDictionary

import pytest

from guard import context, logs
from guard.context import RequestContext

SECRET = "marzipan"


class Written:
    def __init__(self, capsys):
        self._capsys, self._told = capsys, ""

    def getvalue(self):
        self._told += self._capsys.readouterr().err
        return self._told


@pytest.fixture
def written(capsys, tmp_path, monkeypatch):
    """What the process writes to standard error, set up by `configure(form, level)`; put back afterwards."""
    monkeypatch.setattr(
        logging, "_handlers", WeakValueDictionary()
    )  # setting up closes all that it knows of,
    monkeypatch.setattr(logging, "_handlerList", [])  # and the test runner's stand there too
    stream, names = Written(capsys), ("", *logs.OURS, *logs.SERVERS)
    before = [
        (logging.getLogger(n), logging.getLogger(n).handlers[:], logging.getLogger(n).level) for n in names
    ]

    def configure(form="json", level="info"):
        logs.configure(form, level, tmp_path, {})
        return stream

    yield configure
    logging.captureWarnings(False)
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = True


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def serving(**fields):
    return context.enter(RequestContext("d1", "/v1/completions", 0.0, **fields))


def test_a_line_is_an_object_and_says_whose_request_it_is(written):
    stream = written()
    token = serving(request_id="r1", trace_id="t1")
    logging.getLogger("lethe.guard").error("late by %d\n ms", 7)
    context.leave(token)
    logging.getLogger("guard.library").info(
        "two", extra={"lethe": {"route": "/x", "tenant": None}, "other": SECRET}
    )
    first, second = lines(stream)
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {"level": "error", "logger": "lethe.guard", "process": "MainProcess",
                     "message": "late by 7\n ms", "request_id": "r1", "decision_id": "d1",
                     "trace_id": "t1"}  # fmt: skip
    assert (second["message"], second["route"]) == ("two", "/x")
    assert not {"request_id", "decision_id", "trace_id", "tenant", "other"} & set(second)


def test_text_is_for_people(written):
    stream = written("text")
    token = serving()
    logging.getLogger("lethe.guard").warning("late")
    context.leave(token)
    logging.getLogger("lethe.guard").info("done")
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" WARNING lethe.guard: late [d1]") and second.endswith(" INFO lethe.guard: done")


def fail(text):
    try:
        raise KeyError(text)
    except KeyError as error:
        raise RuntimeError(f"cannot read {text}") from error


@pytest.mark.parametrize("form", ["text", "json"])
def test_words_of_exceptions_stay_out_of_the_log_of_a_request(written, form):
    """They may quote the prompt. Outside of requests they are what an operator needs."""
    stream = written(form)
    log = logging.getLogger("lethe.engine")
    token = serving()
    try:
        fail(SECRET)
    except RuntimeError:
        log.exception("a prompt could not be judged")
    told = stream.getvalue()
    assert SECRET not in told and "RuntimeError" in told and "KeyError" in told and "in fail" in told
    context.leave(token)
    try:
        fail(SECRET)
    except RuntimeError:
        log.exception("at the start")
    assert f"RuntimeError: cannot read {SECRET}" in stream.getvalue()
    if form == "json":
        assert all(line["exception"].startswith(("Traceback", "  File")) for line in lines(stream))


@pytest.mark.parametrize("within", ["request", "judged request", "nothing"])
def test_what_other_libraries_fill_in_while_a_request_is_served_is_not_written(written, within):
    stream = written()
    with ExitStack() as stack:
        if within == "request":
            stack.enter_context(logs.serving(request_id="r1"))
        if within == "judged request":
            stack.callback(context.leave, serving())
        logging.getLogger("vllm.entrypoints").error("no model %s", SECRET)
        logging.getLogger("vllm.entrypoints").error(f"no model {SECRET}")
        logging.getLogger("lethe.engine").error("after %d s", 3)
    told = [line["message"] for line in lines(stream)]
    if within == "nothing":
        assert told == [f"no model {SECRET}"] * 2 + ["after 3 s"]
    else:
        assert told[0] == "no model %s" and told[1].startswith("test_logs.py:") and told[2] == "after 3 s"
    assert [line.get("request_id") for line in lines(stream)] == ["r1" if within == "request" else None] * 3


def test_uvicorn_tells_of_a_failed_request_when_it_is_over(written):
    stream = written()
    try:
        fail(SECRET)
    except RuntimeError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    (line,) = lines(stream)
    assert "RuntimeError" in line["exception"] and SECRET not in stream.getvalue()


def test_arguments_that_do_not_fit_are_not_written(written):
    stream = written()
    logging.getLogger("lethe.guard").error("of %d and %d", SECRET)
    (line,) = lines(stream)
    assert line["message"] == "of %d and %d" and SECRET not in stream.getvalue()


@pytest.mark.parametrize(
    ("level", "name", "least"),
    [
        ("debug", "lethe.access", logging.DEBUG),
        ("debug", "guard.register", logging.DEBUG),
        ("debug", "vllm.entrypoints.x", logging.INFO),  # prompts stand in its debug lines
        ("debug", "uvicorn.error", logging.INFO),
        ("debug", "httpcore", logging.WARNING),
        ("warning", "vllm.v1", logging.WARNING),
        ("error", "server.jobs", logging.ERROR),
        ("error", "httpcore", logging.ERROR),
    ],
)
def test_levels_are_those_of_who_writes(written, level, name, least):
    stream = written("json", level)
    for at in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(at, "x")
    assert lines(stream)[0]["level"] == logging.getLevelName(least).lower()


def test_warnings_of_python_are_lines(written):
    stream = written()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("an old way", FutureWarning, stacklevel=1)
    (line,) = lines(stream)
    assert line["logger"] == "py.warnings" and "an old way" in line["message"]


def test_another_process_writes_the_same_from_the_file(tmp_path):
    """As each of vLLM's processes does: there the warnings of Python are lines as well."""
    code = (
        "import json, logging.config, sys, warnings; logging.config.dictConfig(json.load(open(sys.argv[1])));"
        "logging.getLogger('vllm.x').info('hello'); warnings.warn('old', FutureWarning);"
        "logging.getLogger('vllm.x').debug('no')"
    )
    path = tmp_path / "logging.json"
    path.write_text(json.dumps(logs.configuration("json", "debug")))
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    found = [json.loads(line) for line in run.stderr.splitlines()]
    assert [line["logger"] for line in found] == ["vllm.x", "py.warnings"] and run.stdout == ""


def test_the_file_is_named_by_what_is_in_it(written, tmp_path):
    written("json", "warning")
    path = tmp_path / "logging.json.warning.json"
    assert json.loads(path.read_text()) == logs.configuration("json", "warning")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_logged_before_the_form_is_known_is_written_in_it(written):
    with logs.held():
        logging.getLogger("guard.config").warning("not known")
        stream = written()
        assert stream.getvalue() == ""
    (line,) = lines(stream)
    assert line["message"] == "not known"

"""Log lines for people or for machines, each with the request and the job that it is about."""

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, Final

_REQUEST: Final[ContextVar[str]] = ContextVar("request_id", default="")
_JOB: Final[ContextVar[str]] = ContextVar("job_id", default="")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# What other libraries say at these levels is for their own developers.
_QUIET: Final = {"httpx": logging.WARNING, "PIL": logging.INFO, "asyncio": logging.WARNING}


class LogFormat(StrEnum):
    """How log lines are written."""

    PRETTY = "pretty"
    """For people."""
    JSON = "json"
    """One JSON object a line."""


class LogLevel(StrEnum):
    """The least important lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def request_id() -> str:
    """The id of the request that is being answered; empty outside of one."""
    return _REQUEST.get()


def accepted_id(sent: str | None) -> str:
    """The id that a client sent, if it is one: 1 to 128 letters, digits, and ``._:-``; else a new one."""
    return sent if sent is not None and _SAFE_ID.fullmatch(sent) else uuid.uuid4().hex


@contextlib.contextmanager
def about(*, request: str = "", job: str = "") -> Iterator[None]:
    """Bind every line of this thread or task to a request and to a job."""
    tokens = _REQUEST.set(request), _JOB.set(job)
    try:
        yield
    finally:
        _REQUEST.reset(tokens[0])
        _JOB.reset(tokens[1])


def about_job(job: str) -> None:
    """Bind what else is said of this request to the job that it became."""
    _JOB.set(job)


def set_up(form: LogFormat, level: LogLevel) -> None:
    """Let all loggers of the process write to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else PrettyLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, logging.getLevelName(level.upper())))


def _bound(record: logging.LogRecord) -> dict[str, Any]:
    """What a line is about, and its own fields (``extra={"fields": …}``)."""
    ids = {"request_id": _REQUEST.get(), "job_id": _JOB.get()}
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return {name: value for name, value in (ids | dict(fields)).items() if value not in {None, ""}}


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, ids, fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_bound(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PrettyLines(logging.Formatter):
    """Time, level, logger and message, then ids and fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own name
        """The line without its stack trace."""
        # A field may hold what a client sent: a line break must not begin a line of its own.
        told = [
            f"{name}={value!r}" if " " in f"{value}" else f"{name}={value}" for name, value in _bound(record).items()
        ]
        return " ".join([super().formatMessage(record), *(each.replace("\n", "\\n") for each in told)])

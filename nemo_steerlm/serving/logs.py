"""The log of a server process: one JSON object per line on standard error."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import sys

ACCESS_LOGGER = "nemo_steerlm.serving.access"
"""The request log, whose messages are JSON already."""

OWN_LOGGERS = ("nemo_steerlm", "uvicorn")
"""Loggers that log from INFO on; other libraries log warnings only."""

REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Of the request that this task answers, as its client learns it from ``x-request-id``."""


def timestamp(seconds: float) -> str:
    """A time since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="milliseconds")


class JSONLines(logging.Formatter):
    """Formats a record as a JSON object on one line; messages of ``ACCESS_LOGGER`` stay as they are."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        message = record.getMessage()
        if record.name == ACCESS_LOGGER:
            return message
        entry = {
            "event": "log",
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logs() -> None:
    """Send this process's log, Python warnings included, to standard error as JSON lines."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger().handlers[0].setFormatter(JSONLines())
    logging.captureWarnings(True)

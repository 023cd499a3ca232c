"""What a job logs: lines for people, or with `GATEHOUSE_LOG=json` one JSON object a line, for machines.

A JSON line has time (UTC), level, host, pid, logger and message, and of `FIELDS` those that the event is about. With
`shard`, `key` and `position` a bad sample's row is found in the index; its array row is not known before its shard is
committed. Credentials are blotted out of both kinds of line.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from datetime import UTC, datetime
from typing import Final

VARIABLE: Final = "GATEHOUSE_LOG"
FIELDS: Final = ("shard", "shards", "round", "attempt", "key", "position", "reason", "rows")
"""Given to a logger as `extra`."""

logger = logging.getLogger("gatehouse")

_SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL")
_FEWEST_LETTERS = 8  # of a value that is blotted out, so that `AUTH_TOKEN=1` does not spoil every line
_IN_URLS = re.compile(
    r"(?P<user>://)[^/\s:@]*:[^/\s@]*(?=@)"
    r"|(?P<query>\b(?:x-amz-(?:signature|credential|security-token)|signature|sig|token|password)=)[^&\s'\"]+",
    re.IGNORECASE,
)
_BLOT = "***"


def wants_json() -> bool:
    """Whether the environment asks for JSON lines.

    Raises:
        ValueError: it asks for something else.
    """
    wanted = os.environ.get(VARIABLE) or "text"
    if wanted not in ("text", "json"):
        raise ValueError(f"{VARIABLE} is {wanted!r}; give json or text")
    return wanted == "json"


def configure(*, json_lines: bool) -> None:
    """Write what is logged to standard error; JSON lines have more: every bad sample, every shard committed."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if json_lines else _Lines("%(name)s: %(message)s"))
    root = logging.getLogger()
    if json_lines:  # of other libraries too, since one line that is no JSON stops some collectors
        root.handlers = [one for one in root.handlers if not isinstance(one.formatter, JsonLines | _Lines)]
        root.addHandler(handler)
    else:
        logging.basicConfig(handlers=[handler])
    logger.setLevel(logging.DEBUG if json_lines else logging.INFO)


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "host": socket.gethostname(),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        blotted = {name: redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        return json.dumps(blotted)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def redact(text: str) -> str:
    """Text without the secrets of this process's environment, and without those that URLs may carry."""
    for name, value in os.environ.items():
        if len(value) >= _FEWEST_LETTERS and _SECRET_NAMES.search(name) and value in text:
            text = text.replace(value, _BLOT)
    return _IN_URLS.sub(lambda found: (found["user"] or found["query"]) + _BLOT, text)

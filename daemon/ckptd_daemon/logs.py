"""One line per event, as `key=value` pairs; no secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from pathlib import Path

from ckptd_proto.urls import redacted

LOG_MAX_BYTES = 8 << 20  # a longer log is set aside, once, at the next start

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN = re.compile(r"[^\s\"'=\\]+")


class Formatter(logging.Formatter):
    """`ts=… level=… logger=… msg="…"`, then whatever `extra` brought, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "ts": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields |= {k: v for k, v in vars(record).items() if k not in _OWN_FIELDS}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


def _quoted(value: object) -> str:
    text = redacted(str(value))
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def set_up(level: str, file: Path | None) -> None:
    """Log from *level* on to *file*, or to stderr."""
    if file is None:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        if file.exists() and file.stat().st_size > LOG_MAX_BYTES:
            file.replace(file.with_suffix(".log.1"))
        handler = logging.FileHandler(file)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # what a library tells of its own doings is not our event
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_of_ours)


def is_of_ours(record: logging.LogRecord) -> bool:
    """Tell whether gRPC reports more than that a caller was gone before it was answered."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core")

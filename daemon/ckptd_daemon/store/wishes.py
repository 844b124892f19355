"""What this node was asked to fetch ahead of need: a note each, so that a restart goes on with it.

A note holds no secret. Of a URL that may have one it says only what people see of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ckptd_daemon.store import durable
from ckptd_proto.urls import is_plain

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Wish:
    """One thing to fetch that nobody waits for."""

    url: str
    """Empty if it was lost: it may have held a secret, and those are not written down."""
    title: str
    """What people see of it."""
    uid: int
    """By whose right."""
    sha256: str | None
    keep_s: float
    offline: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    asked_at: float
    """Seconds since the epoch."""

    @property
    def id(self) -> str:
        """The same for whoever asks for the same again."""
        same = replace(self, asked_at=0.0)
        return hashlib.sha256(json.dumps(asdict(same)).encode()).hexdigest()[:32]


class Wishes:
    """The notes below one directory. All of it blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> dict[str, Wish]:
        """Return the wishes of earlier lives by their ids, the oldest first."""
        durable.make_dirs(self._directory)
        for leftover in self._directory.glob(".*.tmp"):
            leftover.unlink()
        found: dict[str, Wish] = {}
        for path in self._directory.glob("*.json"):
            try:
                fields = json.loads(path.read_bytes())
                if (format_ := fields.pop("format")) != FORMAT:
                    text = "prefetch %s is left alone: it has format %s, and this version reads %s"
                    logger.error(text, path, format_, FORMAT)
                    continue
                wish = found[path.stem] = _wish(fields)
                if wish.url and wish.id != path.stem:
                    raise ValueError("it is not what was written")
            except (ValueError, KeyError, TypeError) as error:
                logger.error("prefetch %s is unreadable and dropped: %s", path.name, error)
                found.pop(path.stem, None)
                path.unlink()
        return dict(sorted(found.items(), key=lambda item: item[1].asked_at))

    def write(self, wish: Wish) -> None:
        """Note *wish*; durable when this returns."""
        noted = wish if is_plain(wish.url) else replace(wish, url="")
        text = json.dumps({"format": FORMAT, **asdict(noted)})
        durable.write_file(self._path(wish.id), text.encode(), mode=0o600)

    def remove(self, id: str) -> None:
        """Forget a wish; if the disk, or a power cut, brings it back it is taken up once more."""
        try:
            self._path(id).unlink(missing_ok=True)
        except OSError as error:
            logger.error("the note of prefetch %s cannot be removed: %s", id, error)

    def _path(self, id: str) -> Path:
        return self._directory / f"{id}.json"


def _wish(fields: dict[str, Any]) -> Wish:
    lists = {name: tuple(fields[name]) for name in ("include", "exclude")}
    return Wish(**{**fields, **lists})

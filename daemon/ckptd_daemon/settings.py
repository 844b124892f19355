"""The settings in force: as the daemon was started, and as they were changed while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckptd_daemon.config import Config
from ckptd_daemon.transfer.pace import Limits
from ckptd_proto import errors

_CHANGEABLE = ("max_bytes_per_s", "source_max_bytes_per_s.HOST")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as everybody may see it."""

    name: str
    value: str
    """JSON."""
    is_changeable: bool


class Settings:
    """All settings; those that can be changed are owned by whoever keeps to them."""

    def __init__(
        self, config: Config, limits: Callable[[], Limits], limit: Callable[[Limits], None]
    ) -> None:
        self._config = config
        self._limits = limits
        self._limit = limit

    def all(self) -> list[Setting]:
        """Return every setting, in the order of the configuration."""
        limits = self._limits()
        now = {"max_bytes_per_s": limits.total, "source_max_bytes_per_s": dict(limits.sources)}
        shown = self._config.shown() | now
        return [Setting(name, json.dumps(value), name in now) for name, value in shown.items()]

    def change(self, changes: Mapping[str, str]) -> None:
        """Have *changes*, values in JSON, take effect at once: all of them or, if one is wrong, none.

        Raises `InvalidArgument`, or `FailedPrecondition` for what only a restart can change.
        """
        total, sources = self._limits().total, dict(self._limits().sources)
        for name, value in changes.items():
            setting, _, host = name.partition(".")
            if name == "max_bytes_per_s":
                total = _rate(name, value)
            elif setting == "source_max_bytes_per_s" and host:
                sources.pop(host.lower(), None)
                if (rate := _rate(name, value)) is not None:
                    sources[host.lower()] = rate
            else:
                raise _unchangeable(name, setting in type(self._config).model_fields)
        self._limit(Limits(total, sources))


def _rate(name: str, value: str) -> int | None:
    try:
        found: Any = json.loads(value)
    except ValueError:
        found = value
    if found is None or (isinstance(found, int) and found is not True and found > 0):
        return found
    text = f"{name} is {value}, and must be a number of bytes per second above 0, or none"
    raise errors.InvalidArgument(text)


def _unchangeable(name: str, is_known: bool) -> errors.CkptdError:
    can = " and ".join(_CHANGEABLE)
    if is_known:
        text = f"{name} is settled when the daemon starts; while it runs only {can} can be changed"
        return errors.FailedPrecondition(text)
    return errors.InvalidArgument(f"there is no setting {name}; {can} can be changed")

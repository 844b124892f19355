"""How people write how long."""

from __future__ import annotations

import re
from typing import Any

import click

_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return it in seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if found is None:
            self.fail(f"{value!r} is no duration; write 90, 30s, 5m, 1h or 2d", param, ctx)
        return float(found[1]) * _UNIT_S[found[2]]

"""What this process's environment says to a client; what it says to a daemon, the daemon reads."""

from __future__ import annotations

import os

from ckptd_proto import errors

_ON = frozenset({"1", "on", "t", "true", "y", "yes"})
_OFF = frozenset({"0", "f", "false", "n", "no", "off"})  # as the daemon's settings have them


def flag(name: str, *, default: bool) -> bool:
    """Return what the variable *name* says, *default* if it is unset or empty.

    Raises `InvalidArgument` for any other word: a typing error must not mean its opposite.
    """
    said = os.environ.get(name, "").strip().lower()
    if said in _ON or said in _OFF:
        return said in _ON
    if said:
        text = f"{name} is {os.environ[name]!r} in the environment; write 1 or 0, or unset it"
        raise errors.InvalidArgument(text)
    return default

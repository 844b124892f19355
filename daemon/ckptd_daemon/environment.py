"""Which `CKPTD_…` variables there are, so that a misspelt one does not pass unnoticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from ckptd_daemon.config import Config

PREFIX = "CKPTD_"
OTHERS = frozenset(
    {
        "CKPTD_AUTOSTART",  # of clients
        "CKPTD_CHAOS_S", "CKPTD_CHAOS_SEED", "CKPTD_REQUIRE_REAL",  # of tests, as what follows
        "CKPTD_SIM_S", "CKPTD_SIM_SEED", "CKPTD_SIM_SEEDS", "CKPTD_TEST_SAVES",
    }
)  # fmt: skip
"""Those that are no settings of a daemon, and yet may be in the environment that it gets."""
KNOWN = OTHERS | {PREFIX + name.upper() for name in Config.model_fields}


def warnings(names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each of *names*, of variables, that is meant for us and read by nobody."""
    for name in sorted(names):
        if not name.upper().startswith(PREFIX) or name.upper() in KNOWN:
            continue
        bare = [known.removeprefix(PREFIX) for known in sorted(KNOWN)]
        near = get_close_matches(name.upper().removeprefix(PREFIX), bare, n=1)
        meant = (
            f"did you mean {PREFIX}{near[0]}?"
            if near
            else "docs/CONFIGURATION.md has those there are"
        )
        yield f"the environment has {name}, which nothing reads; {meant}"

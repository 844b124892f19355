"""`python -m ckptd_daemon`: what `ckptd serve` runs."""

from __future__ import annotations

import os
import sys


def _detach() -> None:
    """Become nobody's child, so that no client has to wait for us."""
    if os.fork():
        os._exit(0)


if __name__ == "__main__":
    if "--detach" in sys.argv:  # before anything starts a thread
        _detach()
    from ckptd_daemon.start import main

    raise SystemExit(main(sys.argv[1:]))

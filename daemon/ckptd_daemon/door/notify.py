"""Tells systemd how the daemon is, where systemd asked to be told."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def notify(*states: str) -> None:
    """Send *states*, such as `READY=1`, to `$NOTIFY_SOCKET`; nothing happens without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.sendto("\n".join(states).encode(), address)
        except OSError as error:
            logger.warning("cannot notify systemd: %s", error)

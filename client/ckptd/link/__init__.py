"""The way to the daemon: finding it, starting it, calling it, across forks and restarts."""

from ckptd.link import forks as forks  # sets what gRPC reads when it is loaded

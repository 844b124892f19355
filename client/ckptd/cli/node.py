"""`ckptd serve`, `ckptd status`, `ckptd stop`."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from ckptd.cli import json_option

_socket_option = click.option(
    "--socket", type=click.Path(path_type=Path), help="The daemon's socket."
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--socket", metavar="PATH", help="Listen here.")
@click.option("--state-dir", metavar="DIR", help="Keep cache, leases and log here: a local disk.")
@click.option("--config", metavar="FILE", help="Read settings from this TOML file.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@json_option
def serve(as_json: bool, **flags: str | None) -> None:
    """Run the daemon in the foreground until SIGTERM."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value]
    command = [sys.executable, "-m", "ckptd_daemon", *given, *(["--json"] if as_json else [])]
    os.execv(sys.executable, command)


@click.command()
@_socket_option
@json_option
def status(socket: Path | None, as_json: bool) -> None:
    """Say what the daemon is doing; starts none."""
    from ckptd import node
    from ckptd.cli import report
    from ckptd.link.connection import Connection

    connection = Connection.existing(socket)
    found = node.status(connection)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    for line in report.lines(found, time.time()):
        click.echo(line)


@click.command()
@_socket_option
@json_option
def stop(socket: Path | None, as_json: bool) -> None:
    """Stop the daemon.

    It finishes what it may, and the rest when it next starts.
    """
    from ckptd import node
    from ckptd.link.connection import Connection

    connection = Connection.existing(socket)
    pid = connection.daemon.pid
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # in another pid namespace: it is told, and we cannot see it end
        node.stop(connection)
    else:
        node.stop(connection)
        select.select([pidfd], [], [])
        os.close(pidfd)
    click.echo(json.dumps({"stopped": pid}) if as_json else f"stopped pid {pid}")

"""`ckptd serve`, `ckptd status`, `ckptd stop`."""

from __future__ import annotations

import json
import os
import select
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptd.cli import json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptd.values import DaemonStatus

_MB = 1_000_000

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
    from ckptd.connection import Connection

    found = node.status(Connection.existing(socket))
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    for name, value in _rows(found):
        click.echo(f"{name:10}{value}")


@click.command()
@_socket_option
@json_option
def stop(socket: Path | None, as_json: bool) -> None:
    """Stop the daemon: it finishes what it may, and the rest when it next starts."""
    from ckptd import node
    from ckptd.connection import Connection

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


def _rows(status: DaemonStatus) -> Iterator[tuple[str, str]]:
    kind = "private" if status.private else "service"
    mood = "stopping" if status.stopping else "idle" if status.idle else "busy"
    yield "daemon", f"pid {status.pid}, version {status.version}, {kind}, {mood}"
    yield "up", f"{status.uptime_s:.0f} s, {status.sessions} client processes"
    yield "socket", status.socket
    yield "state", status.state_dir
    cache, arena = status.cache, status.arena
    yield "cache", f"{cache.blobs} blobs, {cache.used_bytes / _MB:.1f} MB, {cache.leases} leases"
    used, budget = arena.used_bytes / _MB, arena.budget_bytes / _MB
    yield "arena", f"{arena.slots} slots, {used:.1f} of {budget:.1f} MB"
    for flight in status.flights:
        total = "?" if flight.total_bytes is None else f"{flight.total_bytes / _MB:.1f}"
        done = f"{flight.done_bytes / _MB:.1f} of {total} MB"
        yield "fetch", f"{flight.object}: {flight.phase}, {done}, {flight.waiters} waiting"
    for attempt in status.attempts:
        done = f"{attempt.done_bytes / _MB:.1f} of {attempt.total_bytes / _MB:.1f} MB"
        yield "save", f"step {attempt.step}: {attempt.state}, {done}"

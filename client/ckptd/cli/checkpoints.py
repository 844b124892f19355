"""`ckptd ls`."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptd.cli import json_option
from ckptd_proto import errors

if TYPE_CHECKING:
    from ckptd.values import Checkpoint


@click.command()
@click.argument("root", type=click.Path(path_type=Path), default=".")
@click.option("--experiment", metavar="E", default="", help="Only this experiment.")
@click.option("--run", metavar="R", default="", help="Only this run.")
@json_option
def ls(root: Path, experiment: str, run: str, as_json: bool) -> None:
    """List the committed checkpoints below ROOT.

    ROOT is the directory that was given to `Checkpointer`.
    """
    from ckptd.link.connection import Connection
    from ckptd.saving.catalog import Catalog

    try:
        is_there = root.is_dir()
    except PermissionError:
        is_there = True  # the daemon may see more
    if not is_there:
        text = f"there is no directory {root.absolute()}; name the root given to `Checkpointer`"
        raise errors.NotFound(text)
    for found in Catalog(Connection.open(), root.resolve(), experiment, run).committed():
        click.echo(json.dumps(_fields(found)) if as_json else _line(found))


def _fields(found: Checkpoint) -> dict[str, Any]:
    metrics = {
        name: value if math.isfinite(value) else str(value)  # JSON knows no others
        for name, value in found.metrics.items()
    }
    return {
        "experiment": found.experiment,
        "run": found.run,
        "step": found.step,
        "uuid": found.uuid,
        "path": str(found.path),
        "size_bytes": found.size_bytes,
        "metrics": metrics,
        "committed_at": found.committed_at,
    }


def _line(found: Checkpoint) -> str:
    when = datetime.fromtimestamp(found.committed_at).isoformat(" ", "seconds")
    metrics = " ".join(f"{name}={value:g}" for name, value in sorted(found.metrics.items()))
    size = f"{found.size_bytes / 1e6:.1f} MB"
    place = f"{found.experiment}/{found.run}"
    return f"{place}  step {found.step}  {size}  {when}  {metrics}".rstrip()

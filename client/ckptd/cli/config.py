"""`ckptd config`: the settings of the running daemon."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptd.cli import json_option
from ckptd_proto import errors

if TYPE_CHECKING:
    from ckptd.values import Setting

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_socket_option = click.option(
    "--socket", type=click.Path(path_type=Path), help="The daemon's socket."
)


@click.group(invoke_without_command=True)
@_socket_option
@json_option
@click.pass_context
def config(context: click.Context, socket: Path | None, as_json: bool) -> None:
    """Show the settings in force.

    `ckptd config set` changes some while the daemon runs.
    """
    if context.invoked_subcommand is not None:
        return
    from ckptd import node
    from ckptd.link.connection import Connection

    settings = node.settings(Connection.existing(socket))
    if as_json:
        click.echo(json.dumps({name: setting.value for name, setting in settings.items()}))
        return
    for line in lines(settings):
        click.echo(line)


@config.command("set")
@click.argument("key")
@click.argument("value")
@_socket_option
@json_option
def set_(key: str, value: str, socket: Path | None, as_json: bool) -> None:
    """Change the setting KEY to VALUE until the daemon ends.

    Rates are bytes per second: 50000000, 50MB, 1.5GB, or none.

    \b
    ckptd config set max_bytes_per_s 50MB
    ckptd config set source_max_bytes_per_s.models.example 10MB
    """
    from ckptd import node
    from ckptd.link.connection import Connection

    settings = node.configure(Connection.existing(socket), {key: rate(value)})
    name = key.partition(".")[0]
    shown = settings[name].value
    click.echo(json.dumps({name: shown}) if as_json else f"{name} = {_shown(shown)}")


def rate(text: str) -> int | None:
    """Return the bytes per second that people write as `50MB`, `1.5 GB/s`, `none`."""
    if text.strip().lower() == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?(?:/s|ps)?", text.strip().lower())
    if found is None:
        raise errors.InvalidArgument(f"{text!r} is no rate; write 50000000, 50MB, 1.5GB or none")
    return round(float(found[1]) * _UNITS[found[2] or ""])


def lines(settings: dict[str, Setting]) -> list[str]:
    """Return what people read."""
    width = max(map(len, settings))
    report = [f"{name:{width}}  {_shown(each.value)}" for name, each in settings.items()]
    can = " and ".join(name for name, each in settings.items() if each.changeable)
    return [*report, "", f"{can} can be changed while it runs: ckptd config set KEY VALUE"]


def _shown(value: object) -> str:
    return "none" if value is None or value == {} or value == [] else json.dumps(value).strip('"')

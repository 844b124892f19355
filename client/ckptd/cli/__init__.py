"""The command line: one sentence per error, one exit code per kind of error."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from ckptd_proto import errors
from ckptd_proto.exits import EXIT_CODES, INTERRUPTED, last_words

_COMMANDS = {
    "bench": "ckptd.cli.bench",
    "cache": "ckptd.cli.fetch",
    "config": "ckptd.cli.config",
    "demo": "ckptd.cli.demo",
    "fetch": "ckptd.cli.fetch",
    "gc": "ckptd.cli.checkpoints",
    "ls": "ckptd.cli.checkpoints",
    "pin": "ckptd.cli.checkpoints",
    "prefetch": "ckptd.cli.fetch",
    "rm": "ckptd.cli.checkpoints",
    "show": "ckptd.cli.verification",
    "serve": "ckptd.cli.node",
    "status": "ckptd.cli.node",
    "stop": "ckptd.cli.node",
    "unpin": "ckptd.cli.checkpoints",
    "verify": "ckptd.cli.verification",
}
"""Where each command lives; its module is loaded when it is run, or asked for help."""


class _Commands(click.Group):
    """The commands of `_COMMANDS`: a function called as the command, `-` being `_`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found = getattr(import_module(_COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        assert isinstance(found, click.Command)
        return found


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, errors too.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ckptd", message="ckptd %(version)s")
def ckptd() -> None:
    """Fetch checkpoints once per node; save them off the training step."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(given))


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    stdout = sys.stdout
    try:
        ckptd.main(arguments, prog_name="ckptd", standalone_mode=False)
    except errors.CkptdError as error:
        return _tell(type(error).__name__, str(error), EXIT_CODES[type(error)], as_json, error)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _tell("InvalidArgument", error.format_message(), error.exit_code, as_json)
    except (click.Abort, KeyboardInterrupt) as error:
        sentence = "; ".join(["interrupted", *map(str, error.args)])
        return _tell("Interrupted", sentence, INTERRUPTED, as_json)
    except SystemExit:
        if sys.stdout is stdout:
            raise
        return 0  # click has muted it: whoever read our output has enough
    return 0


def _tell(
    name: str, sentence: str, code: int, as_json: bool, error: Exception | None = None
) -> int:
    """Write the error to stderr; return *code*."""
    click.echo(last_words(name, sentence, code, error, json_=as_json), err=True, nl=False)
    return code

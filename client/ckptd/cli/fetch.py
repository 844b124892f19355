"""`ckptd fetch`, `ckptd prefetch`, `ckptd cache`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptd.cli import json_option
from ckptd.cli.bar import short, showing
from ckptd.cli.copying import copied, size_bytes
from ckptd.cli.duration import Duration
from ckptd.cli.report import counted
from ckptd_proto import errors
from ckptd_proto.urls import redacted

if TYPE_CHECKING:
    from ckptd.values import Verdict


@click.command()
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Put a copy here: a file or directory."
)
@click.option("--sha256", metavar="HEX", help="What the bytes must hash to (one REF only).")
@click.option(
    "--keep",
    type=Duration(),
    default="1h",
    show_default=True,
    help="Pin it in the cache for so long.",
)
@click.option("--offline", is_flag=True, help="Answer from the cache or fail.")
@click.option(
    "--include", multiple=True, metavar="GLOB", help="Of a directory (URL/): only what matches."
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Of a directory: not what matches.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@json_option
def fetch(
    refs: tuple[str, ...],
    output: Path | None,
    sha256: str | None,
    keep: float,
    offline: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Fetch each REF once for this node; print its local path.

    A REF is a path, or an http(s) URL; `#sha256=HEX` may follow. A URL that ends with / is a
    directory: an index page or a ckptd-manifest.json of its origin names the files. A GLOB is
    compared with their paths below it, `**` being any depth:

    \b
        ckptd fetch https://models.example/base/ --include '**/*.safetensors'
    """
    from ckptd import fetching, many

    if sha256 is not None and len(refs) > 1:
        raise errors.InvalidArgument("--sha256 states one hash; use #sha256=… for several refs")
    if output is not None and len(refs) > 1 and not output.is_dir():
        raise errors.InvalidArgument(f"{output} is no directory, and there are several refs")
    if output is not None and not output.parent.is_dir():  # before, not after, the long way
        text = f"there is no directory {output.parent} to put {output.name} in; create it first"
        raise errors.FailedPrecondition(text)
    name = short(refs[0]) if len(refs) == 1 else counted(len(refs), "reference")
    with _interruptible(), showing(name, is_quiet=quiet) as on_progress:
        ask = fetching.Ask(
            refs[0], sha256, on_progress, keep, offline, include=include, exclude=exclude
        )
        if len(refs) == 1:
            found = [fetching.handed(fetching.usual_connection, ask)]
        else:
            found = many.handed_many(fetching.usual_connection, refs, None, ask)
    for ref, handed in zip(refs, found, strict=True):
        path = handed.path
        if output is not None:
            path = copied(path, output / path.name if output.is_dir() else output)
        said = {
            "ref": redacted(ref.partition("#")[0]),
            "path": str(path),
            "size_bytes": size_bytes(path),
            "sha256": handed.sha256,
            "verification": handed.verification,
        }
        click.echo(json.dumps(said) if as_json else str(path))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have Ctrl-C in the block say what becomes of the work."""
    try:
        yield
    except KeyboardInterrupt as error:
        click.echo(err=True)  # ends the line with the terminal's ^C
        raise click.Abort("the daemon keeps what has come, for whoever asks again") from error


@click.command()
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option(
    "--keep",
    type=Duration(),
    default="1h",
    show_default=True,
    help="Pin it in the cache for so long from when it is here.",
)
@click.option(
    "--include", multiple=True, metavar="GLOB", help="Of a directory (URL/): only what matches."
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Of a directory: not what matches.")
@click.option("--withdraw", is_flag=True, help="Have it fetched no more; what came stays.")
@json_option
def prefetch(
    refs: tuple[str, ...],
    keep: float,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    withdraw: bool,
    as_json: bool,
) -> None:
    """Have this node fetch each REF ahead of need.

    Returns once the daemon has taken it on; `ckptd status` shows how far it is, and what failed.
    """
    from ckptd.fetching import usual_connection
    from ckptd.many import prefetch as prefetch_refs
    from ckptd.many import withdrawn

    if withdraw:
        count = withdrawn(usual_connection, refs)
        words = f"withdrew {counted(count, 'prefetch', 'prefetches')}"
        click.echo(json.dumps({"withdrawn": count}) if as_json else words)
        return
    for ref in refs:
        prefetch_refs([ref], keep_s=keep, include=include, exclude=exclude)
        shown = redacted(ref)
        click.echo(json.dumps({"prefetching": shown}) if as_json else f"prefetching {shown}")


@click.group()
def cache() -> None:
    """Look at, and clear, the node's cache."""


@cache.command("ls")
@json_option
def list_blobs(as_json: bool) -> None:
    """List the blobs, the least recently used first."""
    from ckptd.cache import blobs
    from ckptd.link.connection import Connection

    for blob in blobs(Connection.existing()):
        if as_json:
            click.echo(json.dumps({**asdict(blob), "path": str(blob.path)}))
        else:
            held = f"{blob.leases} lease{'s' * (blob.leases != 1)}" if blob.leases else "free"
            figures = f"{blob.size_bytes:>14}  {held:>10}  {blob.verification:<14}"
            click.echo(f"{blob.key}  {figures}  {blob.object}")


@cache.command("rm")
@click.argument("key")
@click.option("--force", is_flag=True, help="Also if an ended process wanted it kept (--keep).")
@json_option
def remove_blob(key: str, force: bool, as_json: bool) -> None:
    """Drop the blob KEY, if nobody holds it."""
    from ckptd.cache import remove
    from ckptd.link.connection import Connection

    freed = remove(Connection.existing(), key, force=force)
    click.echo(json.dumps({"freed_bytes": freed}) if as_json else f"freed {freed} bytes")


@cache.command("verify")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@json_option
def verify_blobs(keys: tuple[str, ...], as_json: bool) -> None:
    """Read the blobs KEY, or all, back from the disk and compare them with what was published."""
    from ckptd.cache import verify
    from ckptd.link.connection import Connection

    def tell(verdict: Verdict) -> None:
        if as_json:
            found = asdict(verdict)
            click.echo(
                json.dumps(found | {"quarantine": found["quarantine"] and str(verdict.quarantine)})
            )
            return
        words = "sound"
        if verdict.damaged_chunks:
            words = f"DAMAGED: {len(verdict.damaged_chunks)} of {counted(verdict.chunks, 'chunk')}"
        click.echo(f"{verdict.key}  {verdict.size_bytes:>14}  {words}  {verdict.object}")

    verdicts = verify(Connection.existing(), keys, tell)
    if damaged := [verdict for verdict in verdicts if verdict.damaged_chunks]:
        raise errors.DataLoss(
            f"{len(damaged)} of {len(verdicts)} blobs are damaged, and no longer handed out; fetch "
            "them again, which brings only what is damaged, and check the disk"
        )

"""`ckptd verify` and `ckptd show`: what one checkpoint is, and whether it is what was saved."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptd.cli import json_option
from ckptd.cli.report import counted, size
from ckptd_proto import errors

if TYPE_CHECKING:
    from ckptd.saving.verification import Findings

_SHOWN = 5  # chunks
_FAULTS_SHOWN = 20


@click.command()
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Mend what is bad from the copies, and from memory.")
@click.option(
    "--from",
    "copies",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True),
    help="Another copy of the same checkpoint, to mend from.",
)
@json_option
def verify(path: Path, repair: bool, copies: tuple[Path, ...], as_json: bool) -> None:
    """Read the checkpoint PATH, or all below it, back and compare it with what was saved.

    Names all that is bad and exits with 5. No daemon is needed; one that runs here notes what is bad,
    so that no load takes it by default, until `verify` finds it whole again. What is removed
    meanwhile, such as by a run's rules, is left out. With --repair, checksums that were lost are
    made again, and bad chunks come from the copies that --from names, and from what the daemon of
    this node, if one runs, still has in memory.
    """
    from ckptd.saving import verification
    from ckptd.saving.repair import repair as mend

    bad = 0
    try:
        for findings in verification.verify_below(path):
            mended: list[str] = []
            if repair:
                try:
                    findings, mended = mend(findings, copies)
                except (errors.NotFound, errors.Aborted):
                    continue  # it goes
            bad += not findings.is_sound
            absolved = findings.is_sound and verification.absolve(findings.path)
            noted = not findings.is_sound and _note(findings)
            told = _fields(findings, mended) | {"absolved": absolved, "noted": noted}
            click.echo(json.dumps(told) if as_json else _words(findings, mended, absolved, noted))
    except (errors.Aborted, errors.Unimplemented) as error:
        if not bad:
            raise
        click.echo(f"error: {error}", err=True)
    if bad:
        text = f"{counted(bad, 'checkpoint is', 'checkpoints are')} not what was saved"
        raise errors.DataLoss(f"{text}; load another step, or mend it with --repair --from COPY")


@click.command()
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@json_option
def show(path: Path, as_json: bool) -> None:
    """Say what the checkpoint PATH is: who made it, its metrics, files and tensors."""
    from ckptd.saving import verification
    from ckptd.tensors.images import Images
    from ckptd.tensors.index import NAME, Index

    manifest = verification.read_manifest(path)
    corrupt = verification.noted(path)
    if isinstance(manifest, verification.Fault):
        if not path.is_dir():
            raise errors.NotFound(f"there is no directory {path.absolute()}; name a checkpoint")
        raise errors.DataLoss(f"{path / manifest.file} {manifest.what}; load another step")
    index = Index.decode(Images.open(path).read(NAME), where=str(path / NAME))
    tensors = {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "chunks": len(tensor.chunks)}
        for name, tensor in index.tensors.items()
    }
    if as_json:
        held = {"tensors": tensors, "objects": sorted(index.objects)}
        click.echo(json.dumps({**manifest, "corrupt": corrupt, **held}))
        return
    when = datetime.fromtimestamp(manifest["committed_at"]).isoformat(" ", "seconds")
    whole = sum(image["size_bytes"] for image in manifest["images"].values())
    rows = {
        "checkpoint": f"{manifest['experiment']}/{manifest['run']} step {manifest['step']}",
        "committed": f"{when}, by {counted(manifest['world_size'], 'rank')}",
        "attempt": manifest["attempt"],
        "metrics": " ".join(f"{name}={value}" for name, value in manifest["metrics"].items()),
        "size": f"{size(whole)} in {counted(len(manifest['images']), 'file')}",
        "holds": f"{counted(len(tensors), 'tensor')}, {counted(len(index.objects), 'object')}",
    }
    if corrupt is not None:
        when = datetime.fromtimestamp(corrupt["found_at"]).isoformat(" ", "seconds")
        rows["CORRUPT"] = f"{corrupt['file']} {corrupt['what']}, found {when}"
    for name, value in rows.items():
        click.echo(f"{name:<10}  {value or '-'}")
    width = max((len(name) for name in tensors), default=0)
    for name, tensor in tensors.items():
        click.echo(f"  {name:<{width}}  {tensor['dtype']}  {tensor['shape']}")


def _fields(findings: Findings, mended: list[str]) -> dict[str, Any]:
    return {
        "path": str(findings.path),
        "sound": findings.is_sound,
        "files": findings.files,
        "size_bytes": findings.size_bytes,
        "faults": [
            {"file": fault.file, "what": fault.what, "chunks": list(fault.chunks)}
            for fault in findings.faults
        ],
        "mended": mended,
    }


def _note(findings: Findings) -> bool:
    """Have the daemon that runs here, if one does, note what is bad; say whether it has."""
    from ckptd.link.connection import Connection
    from ckptd.saving import suspects, verification
    from ckptd.saving.keeping import Address

    manifest = verification.read_manifest(findings.path)
    if isinstance(manifest, verification.Fault):
        return False
    found = verification.suspects(findings, manifest["images"])
    try:
        return suspects.tell(
            Connection.existing, Address.of(findings.path), manifest["attempt"], found
        )
    except errors.InvalidArgument:
        return False  # a copy that somebody made elsewhere


def _words(findings: Findings, mended: list[str], is_absolved: bool, is_noted: bool) -> str:
    lines = [f"mended   {findings.path / name}" for name in mended]
    for fault in findings.faults[:_FAULTS_SHOWN]:
        shown = ", ".join(map(str, fault.chunks[:_SHOWN]))
        more = f" and {len(fault.chunks) - _SHOWN} more" if len(fault.chunks) > _SHOWN else ""
        where = f" (chunks {shown}{more})" if fault.chunks else ""
        lines.append(f"DAMAGED  {findings.path / fault.file} {fault.what}{where}")
    if (more_faults := len(findings.faults) - _FAULTS_SHOWN) > 0:
        lines.append(f"DAMAGED  {findings.path} and {more_faults} more")
    if findings.is_sound:
        what = f"{counted(findings.files, 'file')}, {size(findings.size_bytes)}"
        lines.append(f"sound    {findings.path} ({what})")
    if is_noted:
        lines.append(f"noted    {findings.path} counts no more, until it is mended")
    if is_absolved:
        lines.append(f"good     {findings.path} counts again: it was noted as corrupt")
    return "\n".join(lines)

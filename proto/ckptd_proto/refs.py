"""What a reference means: the grammar that client and daemon share; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ckptd_proto import errors

SCHEMES = ("file", "http", "https")
_LATER = frozenset({"abfs", "abfss", "az", "ckpt", "gs", "hf", "s3"})
_LATER_BARE = re.compile(r"(aml|zoo):.", re.DOTALL)
_HOST_PORT = re.compile(r"([\w.-]+|\[[\da-f:]+\]):\d{1,5}(?=/|$)", re.ASCII | re.IGNORECASE)
_SUPPORTED = "local paths, " + ", ".join(f"{scheme}://" for scheme in SCHEMES)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FRAGMENT = re.compile(r"(.*)#sha256=([^#]*)", re.DOTALL | re.IGNORECASE)
_STATEMENT = re.compile(r"#([^#=]*)=")
_HASHES = re.compile(r"blake|crc|hash|md5|sha|sum", re.IGNORECASE)
_SHOWN = re.compile(r"[\w-]{1,12}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference, understood: either a path of this node or a URL."""

    sha256: str | None
    path: Path | None = None
    url: str | None = field(default=None, repr=False)


def parse(ref: str, sha256: str | None = None) -> Ref:
    """Return what *ref* means; raises `InvalidArgument` or `Unimplemented`, repeating no secret."""
    bare, stated = _split_sha256(ref)
    sha256 = _agreed(stated, sha256)
    if not bare or "\0" in bare:
        raise errors.InvalidArgument("a reference is a path or a URL, and this one is empty")
    found = _SCHEME.match(bare)
    if found is None:
        return Ref(sha256, path=Path(bare))
    _require_understood(bare)
    scheme = found[1].lower()
    if scheme not in SCHEMES:
        if scheme in _LATER:
            raise _not_yet(f"{scheme}://")
        raise errors.InvalidArgument(
            f"nothing here reads {scheme}:// references; supported are {_SUPPORTED}"
        )
    if scheme == "file":
        return Ref(sha256, path=_file_path(bare))
    try:
        parts = urlsplit(bare)
        has_host = bool(parts.hostname) and parts.port != 0  # `port` raises for what is none
    except ValueError:
        has_host = False
    if not has_host:
        raise errors.InvalidArgument(
            f"this {scheme}:// reference names no host, or no port that there is; "
            f"write {scheme}://host/path"
        )
    return Ref(sha256, url=scheme + bare[len(scheme) :])


def missing(named: Path, tried: Path) -> errors.CkptdError:
    """Return the error for a path, as it was *named*, that is not where it was looked for.

    Only then may it have been meant as something else: a file may be called anything.
    """
    stated = _STATEMENT.search(str(named))
    if stated and _HASHES.search(stated[1]):
        return _misstated(stated[1])
    if found := _LATER_BARE.match(str(named)):
        return _not_yet(f"{found[1]}:")
    hint = ""
    if found := _HOST_PORT.match(str(named)):
        hint = f"; if {found[0]} is a server, put http:// or https:// in front"
    return errors.NotFound(
        f"there is no file {tried}, the only place where this can be{hint}; "
        f"supported are {_SUPPORTED}"
    )


def _not_yet(kind: str) -> errors.Unimplemented:
    return errors.Unimplemented(
        f"{kind} references are not in this version of ckptd; supported are {_SUPPORTED}"
    )


def _split_sha256(ref: str) -> tuple[str, str | None]:
    found = _FRAGMENT.fullmatch(ref)
    return (found[1], found[2]) if found else (ref, None)


def _require_understood(url: str) -> None:
    """Refuse what a URL states and nobody here would check, rather than drop it in silence."""
    if stated := _STATEMENT.search(url):
        raise _misstated(stated[1])


def _misstated(name: str) -> errors.InvalidArgument:
    """Return the error for a reference that, its hash taken off, still states *name*."""
    if name.lower() == "sha256":
        return errors.InvalidArgument("the reference states more than one #sha256=; leave one")
    shown = f"#{name}=" if _SHOWN.fullmatch(name) else "#…="  # it may be a secret
    return errors.InvalidArgument(
        f"the reference ends with {shown}, which states nothing that is known here; did you mean "
        "#sha256= and 64 hexadecimal digits? (a # in a name is written %23 in a URL)"
    )


def _agreed(stated: str | None, sha256: str | None) -> str | None:
    """Return the one SHA-256 that the reference and the caller state."""
    known = {text.lower() for text in (stated, sha256) if text is not None}
    if any(not _SHA256.fullmatch(text) for text in known):
        raise errors.InvalidArgument("a SHA-256 is 64 hexadecimal digits")
    if len(known) > 1:
        raise errors.InvalidArgument("#sha256= in the reference and sha256 state two hashes")
    return next(iter(known), None)


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"}:
        raise errors.InvalidArgument(
            f"file://{parts.netloc}/… is a file of another host; write file:///path"
        )
    path = Path(unquote(parts.path))
    if not path.is_absolute():
        raise errors.InvalidArgument("a file:// reference has an absolute path: file:///path")
    return path

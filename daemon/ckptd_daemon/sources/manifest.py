"""`ckptd-manifest.json`: an origin's own word on the files of a directory; pure.

The format is described in docs/MANIFEST.md.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ckptd_daemon.sources.listing import SIZE_END, Entry, checked, refused
from ckptd_proto import errors

NAME = "ckptd-manifest.json"
FORMAT = 1
CHUNK_BYTES = 16 << 20
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def parse(data: bytes, title: str) -> tuple[Entry, ...]:
    """Return what the manifest says; raises `FailedPrecondition` if any of it is not as it must be.

    What a later version may add to an entry is passed over.
    """
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(title, f"{NAME} is no JSON") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise refused(title, f"{NAME} is no object with a `format`")
    if manifest["format"] != FORMAT:
        raise errors.FailedPrecondition(
            f"{NAME} of {title} has format {manifest['format']!r:.40}, and this version reads "
            f"{FORMAT}: upgrade ckptd"
        )
    files = manifest.get("files")
    if not isinstance(files, list):
        raise refused(title, f"{NAME} has no list of `files`")
    return checked(title, [_entry(file, title) for file in files])


def _entry(file: Any, title: str) -> Entry:
    if not isinstance(file, dict) or not isinstance(file.get("path"), str):
        raise refused(title, f"a file of {NAME} has no `path`")
    path, size = file["path"], file.get("size_bytes")
    sha256, crcs = file.get("sha256"), file.get("crc32c") or []
    if not (size is None or _is_within(size, SIZE_END)):
        raise refused(title, f"the `size_bytes` of {path!r} is no number of bytes")
    if not (sha256 is None or (isinstance(sha256, str) and _SHA256.fullmatch(sha256))):
        raise refused(title, f"the `sha256` of {path!r} is not 64 hexadecimal digits")
    if not isinstance(crcs, list) or not all(_is_within(crc, 1 << 32) for crc in crcs):
        raise refused(title, f"the `crc32c` of {path!r} is no list of 32-bit numbers")
    if crcs and (size is None or len(crcs) != -(-size // CHUNK_BYTES)):
        raise refused(title, f"the `crc32c` of {path!r} is not one number per 16 MiB")
    return Entry(path, size, sha256 and sha256.lower(), tuple(crcs))


def _is_within(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end

"""Directories of HTTP servers: by their manifest, else by their index pages."""

from __future__ import annotations

from urllib.parse import urlsplit

from anyio import to_thread

from ckptd_daemon.sources import indexes, manifest
from ckptd_daemon.sources.http import HttpSource
from ckptd_daemon.sources.listing import (
    DEPTH_MAX,
    FILES_MAX,
    Entry,
    Listing,
    checked,
    child,
    refused,
)
from ckptd_proto import errors
from ckptd_proto.urls import display

PAGES_MAX = 1_000
INDEX_MAX_BYTES = 4 << 20
MANIFEST_MAX_BYTES = 16 << 20


def is_directory(url: str) -> bool:
    """Whether *url* names a directory rather than a file, by its look."""
    path = urlsplit(url).path
    return path.endswith("/") or path.rpartition("/")[2] == manifest.NAME


def directory_of(url: str) -> str:
    """Return the URL of the directory that *url* is, or whose manifest it is."""
    parts = urlsplit(url)
    return parts._replace(path=parts.path.removesuffix(manifest.NAME)).geturl()


class HttpDirectories:
    """Lists what is below a URL that ends with `/`, or whose manifest it is."""

    def __init__(self, source: HttpSource) -> None:
        self._source = source

    async def listing(self, url: str, *, only_public: bool) -> Listing:
        """Return the files below *url*; see `Lister`."""
        directory = directory_of(url)
        title = display(directory)
        try:
            at = child(directory, manifest.NAME)
            page = await self._source.page(at, MANIFEST_MAX_BYTES, only_public=only_public)
        except (errors.NotFound, errors.PermissionDenied):  # stores say 403 for what is not there
            if directory != url:
                raise
            walked = await self._walked(directory, only_public, title)
            return Listing(title, await to_thread.run_sync(checked, title, walked), directory)
        entries = await to_thread.run_sync(manifest.parse, page.body, title)
        return Listing(title, entries, directory, is_stated=True)

    async def _walked(self, directory: str, only_public: bool, title: str) -> list[Entry]:
        """Read the index pages of *directory* and everything below it, one after the other."""
        entries: list[Entry] = []
        ahead = [""]
        pages = 0
        while ahead:
            path = ahead.pop()
            pages += 1
            if pages > PAGES_MAX or path.count("/") > DEPTH_MAX:
                raise refused(title, f"it has more than {PAGES_MAX} directories, or too deep ones")
            at = child(directory, path)
            page = await self._source.page(at, INDEX_MAX_BYTES, only_public=only_public)
            if not urlsplit(page.url).path.endswith("/"):
                raise refused(title, "it leads to something that is no directory")
            names = await to_thread.run_sync(indexes.parse, page.body, page.url, display(at))
            for named in names:
                if named.is_directory:
                    ahead.append(f"{path}{named.name}/")
                else:
                    entries.append(Entry(path + named.name, named.size_bytes))
            if len(entries) + len(ahead) > FILES_MAX:
                raise refused(title, f"it names more than {FILES_MAX} files")
        return entries

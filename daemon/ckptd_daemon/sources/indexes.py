"""Index pages: what nginx, Apache and Python's http.server say is in a directory; pure.

Whoever publishes a page may mean harm: every search goes over it once, from left to right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ckptd_daemon.sources.listing import FILES_MAX, SIZE_END, refused, wrong_path

LINK_MAX_CHARS = 4096
_TITLES = ("index of ", "directory listing for ")  # nginx and Apache, Python
_OPAQUE = re.compile(r"<(!--|script\b|style\b)", re.IGNORECASE)
_OPAQUE_END = {
    "!--": re.compile("-->"),
    "script": re.compile("</script", re.IGNORECASE),
    "style": re.compile("</style", re.IGNORECASE),
}
_HEADING = re.compile(r"<(?:title|h1)\b[^<>]*>\s*([^<]{0,80})", re.IGNORECASE)
_LINK = re.compile(r"""<a(?=\s)((?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+)>""", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([^\s=/"']+)\s*(?:=\s*(?:"([^"]*)"|'([^']*)'|([^\s"']+)))?""")


@dataclass(frozen=True, slots=True)
class Named:
    """One thing that an index page names."""

    name: str
    is_directory: bool
    size_bytes: int | None = None


def parse(body: bytes, url: str, title: str) -> list[Named]:
    """Return what the page that came from *url* lists directly; raises `FailedPrecondition`.

    Links that lead elsewhere, to the parent or to another order of the same page are no content.
    A name below the page that could lead anywhere else once it is decoded is refused.
    """
    text = body.decode(errors="replace")
    names = _json(text, title) if text.lstrip().startswith("[") else _html(text, url, title)
    found: dict[Named, None] = {}
    for named in names:
        if "/" in named.name or (wrong := wrong_path(named.name)):
            raise refused(title, f"{named.name!r} {wrong if '/' not in named.name else 'has a /'}")
        found[named] = None
        if len(found) > FILES_MAX:
            raise refused(title, f"it names more than {FILES_MAX} files")
    return list(found)


def _json(text: str, title: str) -> list[Named]:
    try:
        return [found for item in json.loads(text) if (found := _named(item))]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise refused(title, "it is no index of nginx's `autoindex_format json`") from error


def _named(item: dict[str, Any]) -> Named | None:
    name, kind, size = item["name"], item["type"], item.get("size")
    if not isinstance(name, str) or not (
        size is None or (isinstance(size, int) and 0 <= size < SIZE_END)
    ):
        raise TypeError
    if kind not in {"directory", "file"}:
        return None
    return Named(name, kind == "directory", size if kind == "file" else None)


def _html(text: str, url: str, title: str) -> Iterator[Named]:
    page = "".join(_visible(text))
    headings = (unescape(found[1]).strip().lower() for found in _HEADING.finditer(page))
    if not next((heading for heading in headings if heading), "").startswith(_TITLES):
        raise refused(
            title,
            "it is a page, and no index of nginx, Apache or Python's http.server, "
            "nor is there a ckptd-manifest.json",
        )
    base = urlsplit(url)
    for link in dict.fromkeys(_links(page)):
        if len(link) > LINK_MAX_CHARS:
            raise refused(title, f"a link of it has more than {LINK_MAX_CHARS} characters")
        if rest := _below(unescape(link), url, base):
            name = unquote(rest.removesuffix("/"), errors="surrogateescape")
            yield Named(name, rest.endswith("/"))


def _visible(text: str) -> Iterator[str]:
    """Return the parts of *text* that are neither comments nor scripts; what never ends is one."""
    at = 0
    while (start := _OPAQUE.search(text, at)) is not None:
        yield text[at : start.start()]
        end = _OPAQUE_END[start[1].lower()].search(text, start.end())
        if end is None:
            return
        at = end.end()
    yield text[at:]


def _links(page: str) -> Iterator[str]:
    """Return what the links of *page* lead to, as it is written."""
    for tag in _LINK.finditer(page):
        for name, *values in _ATTRIBUTE.findall(tag[1]):
            if name.lower() == "href":
                if value := "".join(values):
                    yield value
                break


def _below(link: str, url: str, base: SplitResult) -> str:
    """Return the path that *link* on the page of *url* has below it; empty if it leads elsewhere."""
    try:
        parts = urlsplit(urljoin(url, link))
    except ValueError:
        return ""
    is_below = parts[:2] == base[:2] and parts.path.startswith(base.path)
    return parts.path[len(base.path) :] if is_below and not (parts.query or parts.fragment) else ""

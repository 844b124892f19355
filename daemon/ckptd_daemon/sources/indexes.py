"""Index pages: what nginx, Apache and Python's http.server say is in a directory; pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from ckptd_daemon.sources.listing import refused, wrong_path

_TITLES = ("index of ", "directory listing for ")  # nginx and Apache, Python


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
    found = _json(text, title) if text.lstrip().startswith("[") else _html(text, url, title)
    for named in found:
        if "/" in named.name or (wrong := wrong_path(named.name)):
            raise refused(title, f"{named.name!r} {wrong if '/' not in named.name else 'has a /'}")
    return list(dict.fromkeys(found))


def _json(text: str, title: str) -> list[Named]:
    try:
        return [found for item in json.loads(text) if (found := _named(item))]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise refused(title, "it is no index of nginx's `autoindex_format json`") from error


def _named(item: dict[str, Any]) -> Named | None:
    name, kind, size = item["name"], item["type"], item.get("size")
    if not isinstance(name, str) or not (size is None or (isinstance(size, int) and size >= 0)):
        raise TypeError
    if kind not in {"directory", "file"}:
        return None
    return Named(name, kind == "directory", size if kind == "file" else None)


def _html(text: str, url: str, title: str) -> list[Named]:
    page = _Page()
    page.feed(text)
    page.close()
    if not page.heading.strip().lower().startswith(_TITLES):
        raise refused(
            title,
            "it is a page, and no index of nginx, Apache or Python's http.server, "
            "nor is there a ckptd-manifest.json",
        )
    base = urlsplit(url)
    found = []
    for link in page.links:
        try:
            parts = urlsplit(urljoin(url, link))
        except ValueError:
            continue
        is_below = parts[:2] == base[:2] and parts.path.startswith(base.path)
        rest = parts.path[len(base.path) :]
        if is_below and rest and not parts.query and not parts.fragment:
            name = unquote(rest.removesuffix("/"), errors="surrogateescape")
            found.append(Named(name, rest.endswith("/")))
    return found


class _Page(HTMLParser):
    """The first title or heading of a page, and its links."""

    def __init__(self) -> None:
        super().__init__()
        self.heading = ""
        self.links: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"title", "h1"}:
            self._in_heading = not self.heading
        elif tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        if tag in {"title", "h1"}:
            self._in_heading = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.heading += data

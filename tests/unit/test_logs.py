from __future__ import annotations

import logging
import sys

import pytest

from ckptd_daemon.logs import Formatter, redacted


def line(message: str, *arguments: object, **extra: object) -> str:
    record = logging.LogRecord("a.b", logging.INFO, "f.py", 1, message, arguments, None)
    vars(record).update(extra)
    return Formatter().format(record)


def test_an_event_is_one_line_of_pairs() -> None:
    text = line("two\nlines of %s", "text", uid=7, path="/a b")
    assert text.partition(" ")[2] == (
        r'level=info logger=a.b msg="two\nlines of text" uid=7 path="/a b"'
    )


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("what\never")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "bug", (), sys.exc_info())
    text = Formatter().format(record)
    assert "\n" not in text
    assert "ValueError: what" in text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("GET https://me:secret@host/a/b", "GET https://…@host/a/b"),
        ("s3://b/k?X-Amz-Signature=abc&x=1 failed", "s3://b/k?… failed"),
        ('"https://u@h/p?sig=1"', '"https://…@h/p?…"'),
        ("a path /a?b and me@home", "a path /a?b and me@home"),
    ],
)
def test_secrets_of_urls_are_cut_out(text: str, public: str) -> None:
    assert redacted(text) == public
    assert redacted(public) == public or "…" in public

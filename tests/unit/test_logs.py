from __future__ import annotations

import logging
import sys

from ckptd_daemon.logs import Formatter, is_of_ours


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


def test_secrets_of_urls_are_cut_out() -> None:
    text = line("GET https://me:secret@host/a?token=secret", url="s3://b/k?sig=secret")
    assert "secret" not in text
    assert "https://…@host/a?…" in text


def test_a_caller_that_is_gone_before_it_is_answered_is_no_error() -> None:
    gone = "ExecuteBatchError raised in core by servicer method [/ckptd.v1.Blobs/Fetch]"
    for message, is_logged in ((gone, False), ("Unexpected [ValueError] raised", True)):
        record = logging.LogRecord("grpc", logging.ERROR, "f", 1, message, (), None)
        assert is_of_ours(record) is is_logged

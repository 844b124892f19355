"""One object has one identity, another has another, and neither shows a secret."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptd_proto.urls import display, identity, redacted

SIGNATURES = [
    (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={0}&X-Amz-Date={0}&X-Amz-Expires=60"
        "&X-Amz-SignedHeaders=host&X-Amz-Security-Token={0}&X-Amz-Signature={0}"
    ),
    (
        "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential={0}&X-Goog-Date={0}"
        "&X-Goog-Expires=60&X-Goog-SignedHeaders=host&X-Goog-Signature={0}"
    ),
    (
        "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential={0}&x-oss-date={0}"
        "&x-oss-expires=60&x-oss-signature={0}"
    ),
    "sv=2022-11-02&se={0}&sp=r&sr=b&sig={0}",
    "Expires={0}&Signature={0}&Key-Pair-Id={0}",
    "Policy={0}&Signature={0}&Key-Pair-Id={0}",
    "AWSAccessKeyId={0}&Expires={0}&Signature={0}",
    "GoogleAccessId={0}&Expires={0}&Signature={0}",
    "OSSAccessKeyId={0}&Expires={0}&Signature={0}",
    "KeyName={0}&Expires={0}&Signature={0}",
]
NAMES = sorted({pair.partition("=")[0] for known in SIGNATURES for pair in known.split("&")})

words = st.text(min_size=1, max_size=12).map(lambda text: quote(text, safe=""))
secrets = st.from_regex(r"[A-Za-z0-9'\"()@:._~+-]{4,20}", fullmatch=True)
names = st.one_of(st.sampled_from([*NAMES, "token", "api_key", "versionId"]), words)
pairs = st.lists(st.tuples(names, words), max_size=6)


def written(pairs: list[tuple[str, str]]) -> str:
    return "&".join(f"{name}={value}" for name, value in pairs)


@given(st.sampled_from(SIGNATURES), words, words, words, words)
def test_presigned_urls_of_one_object_are_one(
    signature: str, path: str, chosen: str, one: str, other: str
) -> None:
    bare = f"https://h/{path}?versionId={chosen}"
    first, second = (f"{bare}&{signature.format(value)}" for value in (one, other))
    assert identity(first) == identity(second) == identity(bare)
    assert display(first) == display(bare)


@pytest.mark.parametrize("known", SIGNATURES)
def test_a_part_of_a_signature_is_a_choice_like_any_other(known: str) -> None:
    for pair in known.format("a").split("&"):
        name = pair.partition("=")[0]
        one, other = (identity(f"https://h/dl?{name}={value}") for value in "cd")
        assert one != other


@given(pairs, names, words, words)
def test_urls_that_differ_beside_a_signature_are_two_objects(
    pairs: list[tuple[str, str]], name: str, one: str, other: str
) -> None:
    assume(one != other)
    assume(name not in NAMES)
    urls = [f"https://h/dl?{written([*pairs, (name, value)])}" for value in (one, other)]
    assert identity(urls[0]) != identity(urls[1])


@pytest.mark.parametrize(
    "other",
    [
        "http://h/dl?a=1&b=2",
        "https://h:444/dl?a=1&b=2",
        "https://g/dl?a=1&b=2",
        "https://h/d?a=1&b=2",
        "https://h/dl?b=2&a=1",
        "https://h/dl?a=1%26b=2",
        "https://h/dl?a=1",
        "https://h/dl",
        "https://u@h/dl?a=1&b=2",
        "https://u:p@h/dl?a=1&b=2",
    ],
)
def test_whatever_else_is_asked_for_is_another_object(other: str) -> None:
    assert identity(other) != identity("https://h/dl?a=1&b=2")


def test_the_same_written_otherwise_is_one_object() -> None:
    assert identity("https://H:443/a#part") == identity("https://h/a")
    assert identity("http://h") == identity("http://h:80/")


@given(secrets, secrets, names, words)
def test_no_secret_is_shown(user: str, secret: str, name: str, path: str) -> None:
    url = f"https://{user}:pass{secret}@host/{path}?{name}=key{secret}#frag{secret}"
    shown = f"{display(url)} {identity(url)} {redacted(f'GET {url} failed, see {url}')}"
    for mark in ("pass", "key", "frag"):
        assert f"{mark}{secret}" not in shown.replace(path, "")
    assert "\x1b" not in display(f"https://h/\x1b[31m{path}")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://u:p@Host:80/a/b?x=1#f", "http://host/a/b?…"),
        ("https://h:8443", "https://h:8443/"),
        ("https://[::1]:443/a%20b?sv=1&sig=abc", "https://[::1]/a%20b"),
        ("https://h/modèle \x07", "https://h/mod%C3%A8le%20%07"),
    ],
)
def test_what_people_see_of_a_url(url: str, name: str) -> None:
    assert display(url) == name


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("GET https://me:secret@host/a/b", "GET https://…@host/a/b"),
        ("s3://b/k?X-Amz-Signature=abc&x=1 failed", "s3://b/k?… failed"),
        ('"https://u@h/p?sig=1"', '"https://…@h/p?…"'),
        ("https://u:p'@x@h/p?a='b", "https://…@h/p?…"),
        ("a path /a?b and me@home", "a path /a?b and me@home"),
    ],
)
def test_secrets_of_urls_in_a_text_are_cut_out(text: str, public: str) -> None:
    assert redacted(text) == public
    assert redacted(public) == public


@given(st.text())
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)

"""What a URL names, how it is shown, and how the secrets of URLs are kept out of words; pure.

Each question has its function. Two URLs are one object if they differ in nothing but a known
signature: any other value, a `token` too, may choose what the origin sends.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_READABLE = "/%:@!$&'()*+,;=~"
_USERINFO = re.compile(r"([\w+.-]+://)[^/\s]*@")
_QUERY = re.compile(r"([\w+.-]+://[^\s?#]*)[?#]\S*?(?=[\"')]*(?:\s|$))")


@dataclass(frozen=True, slots=True)
class _Signature:
    """How some signer grants access to one object for a while."""

    required: frozenset[str]
    """Without all of these it is no signature, and the parameters mean something else."""
    optional: frozenset[str] = frozenset()


def _signature(required: str, optional: str = "", *, prefix: str = "") -> _Signature:
    return _Signature(
        frozenset(prefix + name for name in required.split()),
        frozenset(prefix + name for name in optional.split()),
    )


_V4 = "Algorithm Credential Date Expires SignedHeaders Signature"
_SIGNATURES = (
    _signature(_V4, "Security-Token", prefix="X-Amz-"),
    _signature(_V4, prefix="X-Goog-"),
    _signature(
        "signature-version credential date expires signature",
        "security-token additional-headers",
        prefix="x-oss-",
    ),
    _signature("AWSAccessKeyId Expires Signature", "x-amz-security-token"),
    _signature("GoogleAccessId Expires Signature"),
    _signature("OSSAccessKeyId Expires Signature", "security-token"),
    _signature("KeyName Expires Signature"),  # Google's CDN
    _signature("Key-Pair-Id Expires Signature"),  # CloudFront
    _signature("Key-Pair-Id Policy Signature"),
    _signature(  # Azure
        "sv sig",
        "ss srt sr sp se st si sip spr sks ske skt skv skoid sktid saoid suoid scid sdd ses",
    ),
)


def identity(url: str) -> str:
    """Return the name of the object that *url* points at: a hash, so that it keeps secrets.

    Two URLs have one identity if whoever asks for them asks for the same thing: the same user
    and password, host, path and query, up to a complete signature of a signer that we know.
    """
    parts = urlsplit(url)
    userinfo = parts.netloc.rpartition("@")[0]
    asked = [parts.scheme, userinfo, _host(parts), parts.path or "/", *_chosen(parts)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:40]


def display(url: str) -> str:
    """Return *url* as people may see it: without user, fragment, and anything of the query."""
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe=_READABLE)
    return f"{parts.scheme}://{_host(parts)}{path}{'?…' if _chosen(parts) else ''}"


def is_plain(url: str) -> bool:
    """Whether nothing of *url* may be a secret: it has no user, query or fragment."""
    parts = urlsplit(url)
    return not ("@" in parts.netloc or parts.query or parts.fragment)


def redacted(text: str) -> str:
    """Return *text* without user names, passwords and queries in whatever URLs it holds."""
    return _QUERY.sub(r"\1?…", _USERINFO.sub(r"\1…@", text))


def _host(parts: SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2].lower()
    default = f":{_DEFAULT_PORTS.get(parts.scheme, '')}"
    return quote(host.removesuffix(default), safe="[]:.")


def _chosen(parts: SplitResult) -> list[str]:
    """Return the query's parameters as they were written, but for those of signatures."""
    given = [parameter for parameter in parts.query.split("&") if parameter]
    names = {parameter.partition("=")[0] for parameter in given}
    signing: set[str] = set()
    for signature in _SIGNATURES:
        if signature.required <= names:
            signing |= signature.required | signature.optional
    return [parameter for parameter in given if parameter.partition("=")[0] not in signing]

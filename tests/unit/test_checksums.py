"""Checksums of the whole object are read from headers; anything else is as if it were not there."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.checksums import Checksums, stated
from ckptd_proto.crc import crc32c

SHA = hashlib.sha256(b"data")
SHA64 = base64.b64encode(SHA.digest()).decode()
CRC64 = base64.b64encode(crc32c(b"data").to_bytes(4, "big")).decode()
FULL = ("x-amz-checksum-type", "FULL_OBJECT")


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("Repr-Digest", f"sha-256=:{SHA64}:")], Checksums(sha256=SHA.hexdigest())),
        ([("repr-digest", f"sha-512=:AAAA:, sha-256=:{SHA64}:")], Checksums(SHA.hexdigest())),
        ([("x-goog-hash", f"crc32c={CRC64},md5=AAAA")], Checksums(crc32c=crc32c(b"data"))),
        (
            [("X-Goog-Hash", "md5=AAAA"), ("X-Goog-Hash", f"crc32c={CRC64}")],
            Checksums(crc32c=crc32c(b"data")),
        ),
        ([("x-amz-checksum-crc32c", CRC64), FULL], Checksums(crc32c=crc32c(b"data"))),
        ([("x-amz-checksum-sha256", SHA64), FULL], Checksums(sha256=SHA.hexdigest())),
    ],
)
def test_what_a_range_says_of_the_whole_is_believed(
    headers: list[tuple[str, str]], found: Checksums
) -> None:
    assert stated(headers, is_whole=False) == found
    assert stated(headers, is_whole=True) == found


def test_a_digest_may_be_of_the_range_and_is_believed_of_the_whole_only() -> None:
    headers = [("Digest", f"SHA-256={SHA64},md5=AAAA")]
    assert stated(headers, is_whole=True) == Checksums(sha256=SHA.hexdigest())
    assert stated(headers, is_whole=False) == Checksums()


@pytest.mark.parametrize(
    "headers",
    [
        [("x-amz-checksum-crc32c", CRC64)],
        [("x-amz-checksum-crc32c", CRC64), ("x-amz-checksum-type", "COMPOSITE")],
        [("x-amz-checksum-crc32c", f"{CRC64}-3"), FULL],
        [("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="), FULL],
        [("x-goog-hash", f"crc32c={CRC64}"), ("x-goog-stored-content-encoding", "gzip")],
        [("x-goog-hash", "crc32c=AAAA")],
        [("Content-MD5", "AAAA")],
        [("Content-Digest", f"sha-256=:{SHA64}:")],
        [("Repr-Digest", "sha-256=:AAAA:")],
        [("Repr-Digest", f"sha-256={SHA64}")],
    ],
)
def test_what_is_not_of_the_whole_or_cannot_be_read_is_ignored(
    headers: list[tuple[str, str]],
) -> None:
    assert stated(headers, is_whole=True) == Checksums()


names = st.sampled_from(["Repr-Digest", "Digest", "x-goog-hash", "x-amz-checksum-crc32c"])


@given(st.lists(st.tuples(names, st.text(max_size=60))), st.booleans())
def test_no_header_does_harm(headers: list[tuple[str, str]], is_whole: bool) -> None:
    assert stated([*headers, FULL], is_whole=is_whole) is not None

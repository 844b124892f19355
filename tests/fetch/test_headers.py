"""Numbers in headers that no machine holds are answered in words, and by nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptd_proto import errors
from fakes.node import clean
from fakes.origin import Origin


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 0-0/" + "9" * 5000},
        {"Content-Range": f"bytes 0-0/{1 << 63}"},
    ],
    ids=["endless", "64_bits"],
)
async def test_a_size_that_no_file_has_is_refused(
    headers: dict[str, str], short_path: Path, origin: Origin
) -> None:
    origin.put("m", b"data", headers=headers)
    async with clean(short_path, origin) as node:
        with pytest.raises(errors.FailedPrecondition, match="Content-Range"):
            await node.fetch(origin.url("m"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 0-0/\xb2"},  # a digit, of another script
        {"RateLimit": f'"a";r={"0" * 5000};t=1'},
        {"RateLimit-Remaining": "0" * 5000, "RateLimit-Reset": "1"},
        {"Last-Modified": "Sun, 06 Nov 1994 08:49:37 +99999999999999999"},
    ],
    ids=["no_digit", "quota", "remaining", "zone"],
)
async def test_a_number_beside_the_bytes_that_nobody_means_is_passed_over(
    headers: dict[str, str], short_path: Path, origin: Origin
) -> None:
    origin.put("m", b"data", etag=None, headers=headers)
    async with clean(short_path, origin) as node:
        assert (await node.fetch(origin.url("m"))).read_bytes() == b"data"

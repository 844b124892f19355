"""A certificate authority of our own, and what it signs."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


class Authority:
    """Signs for localhost; nobody trusts it unless told to."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.file = directory / "ca.pem"
        key, request = directory / "ca.key", directory / "request"
        self._key, self._certificate = directory / "key.pem", directory / "cert.pem"
        _openssl("req", "-x509", *_KEY, "-days=2", "-subj=/CN=Test CA", f"-keyout={key}",
                 f"-out={self.file}")  # fmt: skip
        _openssl("req", *_KEY, "-subj=/CN=localhost", "-addext", _NAMES, f"-keyout={self._key}",
                 f"-out={request}")  # fmt: skip
        _openssl("x509", "-req", f"-in={request}", "-copy_extensions=copy", f"-CA={self.file}",
                 f"-CAkey={key}", "-days=2", f"-out={self._certificate}")  # fmt: skip

    @property
    def for_nginx(self) -> str:
        """What nginx needs in its server block."""
        return f"ssl_certificate {self._certificate}; ssl_certificate_key {self._key};"

    def server_context(self) -> ssl.SSLContext:
        """What a server in Python needs."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certificate, self._key)
        return context


def _openssl(*arguments: str) -> None:
    words = [word for each in arguments for word in _words(each)]
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def _words(argument: str) -> list[str]:
    """Take apart `-option=value`, which openssl wants as two words."""
    return argument.split("=", 1) if argument.startswith("-") else [argument]

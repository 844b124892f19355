"""Ways to an origin: TLS, a proxy, and servers of another age."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ckptd import errors
from fakes.daemon import Daemon
from fakes.nginx import Nginx
from fakes.origin import Origin


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Run an old-fashioned HTTP/1.0 server; yields its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Unframed(BaseHTTPRequestHandler):
    """Ends its reply by closing the connection, as a cut would."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"half of someth")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_reply_whose_end_nobody_can_tell_is_refused(daemon: Daemon) -> None:
    with (
        serving(_Unframed) as port,
        pytest.raises(errors.FailedPrecondition, match="neither the length nor the end"),
    ):
        daemon.client().fetch(f"http://127.0.0.1:{port}/model")
    assert daemon.client().blobs() == []


def _certificate(directory: Path) -> Path:
    """Make a self-signed certificate for localhost."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return directory / "cert.pem"


def test_tls_is_verified_and_fast(
    short_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = _certificate(short_path)
    extra = f"ssl_certificate {certificate}; ssl_certificate_key {short_path}/key.pem;"
    with Nginx(short_path / "nginx", extra, tls=True) as nginx:
        (nginx.files / "model").write_bytes(data)
        with (
            Daemon(short_path / "a") as daemon,
            pytest.raises(errors.Unavailable, match="certificate"),
        ):
            daemon.client().fetch(nginx.url("model"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Daemon(short_path / "b") as daemon:
            assert daemon.client().fetch(nginx.url("model")).read_bytes() == data
            assert "general path" not in daemon.log_text()


def test_a_proxy_of_the_environment_is_used(
    short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("model", data)
    extra = "location / { proxy_pass http://$http_host$request_uri; proxy_buffering off; }"
    with Nginx(short_path / "nginx", extra) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url(""))
        monkeypatch.setenv("no_proxy", "")
        with Daemon(short_path / "d") as daemon:
            assert daemon.client().fetch(origin.url("model")).read_bytes() == data
        assert "GET" in (short_path / "nginx" / "access.log").read_text()

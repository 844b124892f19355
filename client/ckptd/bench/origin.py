"""The origin of every case: nginx on the loopback, plain, with TLS, and slow per connection."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptd import errors
from ckptd.bench.processes import version_of

LIMIT_BYTES_S = 50_000_000
"""What one connection of the limited door gets."""
START_S = 10.0
SETTLE_S = 5.0
_POLL_S = 0.01
_TICK_S = 0.001
"""nginx tells times to the millisecond: what took less took none."""
_BLOCK_BYTES = 1 << 20
_LONG_AGO = 1_000_000_000  # old enough for its Last-Modified to be a strong validator
_LISTEN = "localhost"

_CONFIGURATION = """
{user}daemon off; pid {root}/pid; error_log {root}/errors.log warn; worker_processes auto;
events {{ worker_connections 4096; }}
http {{
  log_format requests "$connection $msec $request_time $body_bytes_sent $request_uri";
  access_log {root}/requests.log requests;
  sendfile on; tcp_nopush on; keepalive_requests 100000; default_type application/octet-stream;
  client_body_temp_path {root}/t; proxy_temp_path {root}/t; fastcgi_temp_path {root}/t;
  uwsgi_temp_path {root}/t; scgi_temp_path {root}/t;
  root {root}/files;
  ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {root}/leaf.pem; ssl_certificate_key {root}/leaf.key;
  server {{ listen 127.0.0.1:{plain}; }}
  server {{ listen 127.0.0.1:{tls} ssl; }}
  server {{ listen 127.0.0.1:{limited}; limit_rate {rate}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Door:
    """One way in: what contestants are told."""

    url: str
    """Ends in a slash; names of objects follow."""
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the origin's log."""

    connection: str
    ended_s: float
    took_s: float
    sent_bytes: int
    """Of the body."""


class Origin:
    """A running nginx."""

    def __init__(self, root: Path, ports: Sequence[int], version: str) -> None:
        self.version = version
        self.files = root / "files"
        self.ca_file = root / "ca.pem"
        plain, tls, limited = ports
        self.plain = Door(f"http://127.0.0.1:{plain}/")
        self.tls = Door(f"https://{_LISTEN}:{tls}/", self.ca_file)
        self.limited = Door(f"http://127.0.0.1:{limited}/")
        self._log = root / "requests.log"

    def make(self, name: str, size_bytes: int) -> None:
        """Have an object of random bytes."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, size_bytes, _BLOCK_BYTES):
                file.write(os.urandom(min(_BLOCK_BYTES, size_bytes - start)))
        os.utime(path, (_LONG_AGO, _LONG_AGO))

    def mark(self) -> int:
        """Return a place in the log, for `since`."""
        return self._log.stat().st_size

    def since(self, mark: int, at_least_bytes: int) -> list[Request]:
        """Return the requests after *mark*, once their bodies add up to *at_least_bytes*.

        A line is written a moment after its reader has the last byte.
        """
        deadline = time.monotonic() + SETTLE_S
        while True:
            with self._log.open() as log:
                log.seek(mark)
                requests = [_request(line) for line in log if line.endswith("\n")]
            if sum(request.sent_bytes for request in requests) >= at_least_bytes:
                return requests
            if time.monotonic() > deadline:
                text = "the origin's log does not show what was fetched; is its disk full?"
                raise errors.Internal(text)
            time.sleep(_POLL_S)


def _request(line: str) -> Request:
    connection, ended, took, sent, _ = line.split(maxsplit=4)
    return Request(connection, float(ended), float(took), int(sent))


def mean_streams(requests: Sequence[Request], wall_s: float) -> float:
    """Return how many connections carried bytes at a time, on average over *wall_s*.

    A connection counts from its first request to the end of its last, pauses included, and at least
    for one tick of the origin's clock.
    """
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for request in requests:
        if request.sent_bytes == 0:
            continue  # only asked, as by HEAD
        start, name = request.ended_s - max(request.took_s, _TICK_S), request.connection
        began[name] = min(began.get(name, start), start)
        ended[name] = max(ended.get(name, 0.0), request.ended_s)
    return sum(ended[name] - began[name] for name in began) / wall_s


@contextmanager
def serving(root: Path) -> Iterator[Origin]:
    """Run nginx below *root*, which must be empty, while inside."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        text = "the benchmark's origin is nginx, and it is not installed: apt-get install nginx"
        raise errors.FailedPrecondition(f"{text}-light")
    (root / "files").mkdir(parents=True)
    _certify(root)
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    ports = _free_ports(3)
    user = "user root; " if os.geteuid() == 0 else ""  # else its workers may not read the scratch
    plain, tls, limited = ports
    text = _CONFIGURATION.format(
        root=root, user=user, plain=plain, tls=tls, limited=limited, rate=LIMIT_BYTES_S
    )
    (root / "nginx.conf").write_text(text)
    command = [program, "-c", str(root / "nginx.conf"), "-e", str(root / "errors.log")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            for port in ports:
                _await_listening(port, process, root)
            yield Origin(root, ports, version_of(said))
        finally:
            process.terminate()


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _await_listening(port: int, process: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), START_S).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = root / "errors.log"
                said = log.read_text().strip().splitlines() if log.exists() else []
                text = f"nginx did not start: {said[-1] if said else 'it said nothing'}"
                raise errors.Unavailable(text) from error
        time.sleep(_POLL_S)


def _certify(root: Path) -> None:
    """Make an authority, and a certificate of it for this machine: strict clients want both."""
    if shutil.which("openssl") is None:
        text = "the benchmark's certificates are made by openssl: apt-get install openssl"
        raise errors.FailedPrecondition(text)
    key = ["-newkey", "rsa:2048", "-nodes", "-days", "3"]
    (root / "leaf.ext").write_text(
        f"subjectAltName=DNS:{_LISTEN},IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
    )
    authority = ["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ckptd bench"]
    leaf = ["-keyout", "leaf.key", "-out", "leaf.csr", "-subj", f"/CN={_LISTEN}"]
    signed = ["-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    into = ["-out", "leaf.pem", "-days", "3", "-extfile", "leaf.ext"]
    for command in (
        ["req", *key, *authority],
        ["req", *key, *leaf],
        ["x509", "-req", *signed, *into],
    ):
        subprocess.run(["openssl", *command], cwd=root, check=True, capture_output=True)

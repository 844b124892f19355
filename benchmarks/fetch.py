"""How long a cold fetch takes until it is durable, beside curl, from a local nginx.

    python benchmarks/fetch.py [--mib 1024] [--repeats 5] [--directory DIR]

One object over loopback; curl's file is synced too. The daemon starts with an empty cache and
runs before the clock does, as it would on a node.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from timing import Figures, rotate, show

import ckptd

CONFIGURATION = """
{user}daemon off; pid {root}/pid; error_log {root}/errors; worker_processes 1;
events {{ worker_connections 256; }}
http {{ access_log off; sendfile on; client_body_temp_path {root}/t; proxy_temp_path {root}/t;
  fastcgi_temp_path {root}/t; uwsgi_temp_path {root}/t; scgi_temp_path {root}/t;
  server {{ listen 127.0.0.1:{port}; root {root}/www; }} }}
"""


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description="Compare fetching with curl.")
    parser.add_argument("--mib", type=int, default=1024, help="size of the object")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        root = Path(scratch)
        with served(root, arguments.mib) as url, fresh_daemon(root):
            contestants = {
                "ckptd": lambda: with_ckptd(url),
                "curl": lambda: with_curl(url, root / "curled"),
            }
            medians = rotate(contestants, arguments.repeats)
    title = f"cold fetch of {arguments.mib} MiB, durable, median of {arguments.repeats}"
    show(title, medians, "ckptd")


@contextmanager
def served(root: Path, mib: int) -> Iterator[str]:
    """Serve an object of *mib* MiB by nginx; gives its URL."""
    (root / "www").mkdir()
    with (root / "www" / "object").open("wb") as file:
        for _ in range(mib):
            file.write(secrets.token_bytes(1 << 20))
    # old enough for its Last-Modified to be a strong validator
    os.utime(root / "www" / "object", (0, 1_000_000_000))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = "user root; " if os.getuid() == 0 else ""  # else its workers may not read the scratch
    (root / "nginx.conf").write_text(CONFIGURATION.format(root=root, port=port, user=user))
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        raise SystemExit("nginx is not installed; apt-get install nginx-light")
    with subprocess.Popen([nginx, "-c", str(root / "nginx.conf")]) as process:
        wait_listening(port)
        try:
            yield f"http://127.0.0.1:{port}/object"
        finally:
            process.terminate()


def wait_listening(port: int) -> None:
    """Return once something accepts connections at *port*."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise


@contextmanager
def fresh_daemon(root: Path) -> Iterator[None]:
    """Let ckptd use a daemon of its own, below *root*."""
    with tempfile.TemporaryDirectory() as short:
        os.environ["CKPTD_SOCKET"] = f"{short}/d.sock"
        os.environ["CKPTD_STATE_DIR"] = str(root / "state")
        try:
            yield
        finally:
            ckptd.Client().stop()


_versions = count()


def with_ckptd(url: str) -> Figures:
    """Fetch what the cache has not: each time another object, by its query."""
    started = time.perf_counter()
    with ckptd.open(f"{url}?{next(_versions)}"):
        seconds = time.perf_counter() - started
    client = ckptd.Client()
    for blob in client.blobs():
        client.remove_blob(blob.key)
    return {"durable": seconds}


def with_curl(url: str, path: Path) -> Figures:
    """One stream, then sync."""
    started = time.perf_counter()
    subprocess.run(["curl", "-sS", "-o", str(path), url], check=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return {"durable": seconds}


if __name__ == "__main__":
    main()

"""A real nginx over a directory of files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from fakes.waiting import eventually

BINARY = shutil.which("nginx") or "/usr/sbin/nginx"

_CONF = """
daemon off;
{user}
pid {root}/pid;
error_log {root}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
  access_log {root}/access.log;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  sendfile on;
  server {{
    listen 127.0.0.1:{port}{ssl};
    root {files};
    {extra}
  }}
}}
"""


class Nginx:
    """Serves `files` at `url` while the block lasts."""

    def __init__(self, root: Path, extra: str = "", *, tls: bool = False) -> None:
        self._scheme = "https" if tls else "http"
        self.files = root / "files"
        self.files.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._conf = root / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # it must read our temporary files
        self._conf.write_text(
            _CONF.format(
                root=root,
                files=self.files,
                port=self.port,
                extra=extra,
                user=user,
                ssl=" ssl" if tls else "",
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, name: str) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([BINARY, "-c", str(self._conf)])
        eventually(self._answers)
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

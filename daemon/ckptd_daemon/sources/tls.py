"""TLS connections that are read with little work per record.

A record holds 16 KiB, so a gigabyte is 65,000 of them, and each passes every Python frame between
`http.client` and OpenSSL while it holds the lock that all streams share.
"""

from __future__ import annotations

import io
import ssl
from pathlib import Path
from typing import Any, cast

BUFFER_BYTES = 8 << 10  # for heads; bodies go past it


class _Records(io.RawIOBase):
    """Reads a socket as `SocketIO` does, in fewer frames, and all of what is much at once."""

    def __init__(self, sock: RecordSocket, file: io.RawIOBase) -> None:
        self._socket = sock
        self._file = file  # keeps the socket open until this is closed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if len(buffer) <= BUFFER_BYTES:
            return cast("int", self._socket.read(len(buffer), buffer))
        return self._socket.read_whole(buffer)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class RecordSocket(ssl.SSLSocket):
    """A TLS connection for one reading thread, whose long reads come whole."""

    came_bytes = 0
    """Of all long reads, to which a head and what came with it do not belong; grows while they come."""

    def read_whole(self, buffer: memoryview) -> int:
        """Fill *buffer*; returns how much came, which is less only at the end.

        Raises `TimeoutError` if nothing comes in time, also when something came before.
        """
        got, size_bytes = 0, len(buffer)
        read = self._sslobj.read  # type: ignore[attr-defined]  # past a frame for each record
        try:
            while got < size_bytes and (count := read(size_bytes - got, buffer[got:])):
                got += count
                self.came_bytes += count
        except ssl.SSLEOFError:
            return got  # cut off: whoever reads knows how much there is to be
        return got

    def makefile(self, *args: Any, **kwargs: Any) -> Any:
        """Return a file that reads; `http.client` wants no other."""
        file = super().makefile("rb", buffering=0)
        return io.BufferedReader(_Records(self, file), BUFFER_BYTES)


def context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Return what decides whom to trust: the system's authorities, and those of *ca_file*."""
    made = ssl.create_default_context()
    if ca_file is not None:
        made.load_verify_locations(ca_file)
    made.sslsocket_class = RecordSocket
    return made

"""The way to the daemon: finds or starts it, and finds it again after a restart."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import grpc

from ckptd.link import autostart, calls, descriptors, discovery, forks, wire
from ckptd.link.questions import Questions
from ckptd.link.silence import Silence
from ckptd_proto import errors
from ckptd_proto.v1 import (
    blobs_pb2_grpc,
    checkpoints_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    saves_pb2_grpc,
)

T = TypeVar("T")

HELLO_S = 10.0
RECONNECT_S = 60.0
"""How long a daemon may be away before calls without a deadline of their own fail."""
_ENDING_S = 10.0
"""How long a daemon that listens may go without an answer before that is an error."""
_STARTS_MAX = 2
_BACKOFF_S = 0.02
_BACKOFF_MAX_S = 0.5
_chance = random.Random()  # of our own: the global one is the training's
MESSAGE_MAX_BYTES = 1 << 20

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
    ("grpc.enable_retries", 0),  # ours know more
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "localhost"),
    ("grpc.max_metadata_size", 64 << 10),  # errors travel in it
    ("grpc.absolute_max_metadata_size", 64 << 10),
)


@dataclass(frozen=True, slots=True)
class Stubs:
    """The daemon's services, over one connection."""

    blobs: blobs_pb2_grpc.BlobsStub
    saves: saves_pb2_grpc.SavesStub
    checkpoints: checkpoints_pb2_grpc.CheckpointsStub
    node: node_pb2_grpc.NodeStub
    questions: Questions
    """A shorter way for `Blobs.Find`, where it serves."""
    silence: Silence


@dataclass(frozen=True, slots=True)
class _Link:
    """One connection to one life of a daemon."""

    path: Path
    peer_name: str
    channel: grpc.Channel
    stubs: Stubs
    daemon: node_pb2.HelloReply


class Connection:
    """A daemon, across its restarts; safe to use from any thread."""

    def __init__(self, socket: Path | None, *, may_start: bool, any_version: bool) -> None:
        self._socket = socket
        self._may_start = may_start
        self._any_version = any_version
        forks.check_usable()
        self._lock = threading.RLock()  # guards what follows
        self._on_connect: list[Callable[[Stubs], None]] = []
        self._link = self._find()
        forks.register(self)

    @classmethod
    def open(cls, socket: Path | None = None) -> Connection:
        """Return this process's connection to the daemon at *socket*, or to the usual one.

        Starts a private daemon if none runs and the user lets us.
        """
        forks.check_usable()
        asked = tuple(discovery.candidates(socket))  # the environment may name another by now
        with _opening:
            if (connection := _open.get(asked)) is None:
                connection = cls(socket, may_start=autostart.is_allowed(), any_version=False)
                _open[asked] = connection
            return connection

    @classmethod
    def existing(cls, socket: Path | None = None) -> Connection:
        """Return a connection to the daemon that runs now, whatever its version; start none."""
        return cls(socket, may_start=False, any_version=True)

    @classmethod
    def running(cls, socket: Path | None = None) -> Connection:
        """Return as `existing`, the same each time, while that daemon answers.

        For what can be done without a daemon: nobody waits for one to come back. Raises
        `Unavailable` if none runs, `DeadlineExceeded` if it does not answer.
        """
        forks.check_usable()
        asked = tuple(discovery.candidates(socket))
        with _opening:
            if (connection := _open.get(asked) or _running.get(asked)) is None:
                connection = _running[asked] = cls.existing(socket)
                return connection
        discovery.knock(connection.path)
        request = node_pb2.HelloRequest(client_version=version("ckptd"))
        connection.call(lambda stubs: stubs.node.Hello(request, timeout=HELLO_S), timeout_s=HELLO_S)
        return connection

    def __repr__(self) -> str:
        return f"<Connection {self.path} [daemon pid {self.daemon.pid}]>"

    @property
    def path(self) -> Path:
        """The daemon's public socket."""
        return self._link.path

    @property
    def daemon(self) -> node_pb2.HelloReply:
        """What the daemon said when we connected last."""
        return self._link.daemon

    @property
    def peer_names(self) -> set[str]:
        """The names under which the daemon listens, as our sockets know them."""
        return {self._link.peer_name, self._link.stubs.questions.peer_name}

    def untouchables(self) -> list[object]:
        """Return the objects that must never be freed in a forked child."""
        return [self._link, self._link.channel]

    def on_connect(self, callback: Callable[[Stubs], None]) -> None:
        """Call *callback* after each reconnect, before interrupted calls are repeated.

        It is not called for the connection there is already.
        """
        with self._lock:
            self._on_connect.append(callback)

    def call(self, fn: Callable[[Stubs], T], *, timeout_s: float | None = None) -> T:
        """Return what *fn* returns, calling it again whenever the daemon went away meanwhile.

        Raises the daemon's errors as they were; `Unavailable` when the daemon stays away for
        `RECONNECT_S`, `DeadlineExceeded` when *timeout_s* ends first.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        attempt, failing_since = 0, 0.0
        while True:
            forks.check_usable()
            link, began = self._link, time.monotonic()
            try:
                return fn(link.stubs)
            except grpc.RpcError as error:
                if wire.is_silence(error):
                    raise _silent(link, time.monotonic() - began) from None
                if not wire.is_transport(error):
                    raise wire.typed(error) from None  # the daemon's words; gRPC adds none
                failure = wire.typed(error)
                failure.__cause__ = error
            calls.check_not_cancelled()
            now = time.monotonic()
            failing_since = failing_since or now
            if now - failing_since > RECONNECT_S:
                raise failure
            self._back_off(attempt, deadline)
            attempt += 1
            self._reconnect(link, deadline)

    def descriptor(self, token: str) -> int:
        """Return the file descriptor that the daemon offers for *token*; the caller closes it."""
        forks.check_usable()
        return descriptors.receive(self.path, token)

    def _back_off(self, attempt: int, deadline: float | None) -> None:
        delay = min(_BACKOFF_S * 2**attempt, _BACKOFF_MAX_S) * _chance.uniform(0.5, 1)
        if deadline is not None and time.monotonic() + delay > deadline:
            text = f"the daemon at {self.path} did not come back within the given time"
            raise errors.DeadlineExceeded(text)
        tracked = calls.current.get()
        if tracked is None:
            time.sleep(delay)
        else:
            tracked.cancelled.wait(delay)
            calls.check_not_cancelled()

    def _reconnect(self, broken: _Link, deadline: float | None) -> None:
        """Replace *broken*, unless another thread has."""
        with self._lock:
            if self._link is not broken:
                return
            # not closed: other threads may have calls on it, which end by themselves
            may_start = self._may_start and broken.daemon.private
            until = time.monotonic() + RECONNECT_S
            attempt = 0
            while True:
                try:
                    # the same daemon, or its successor: another would not know our work
                    link = self._connect(broken.path, may_start=may_start)
                    break
                except errors.Unavailable:
                    if time.monotonic() > until:
                        raise
                self._back_off(attempt, deadline)
                attempt += 1
            for callback in self._on_connect:
                callback(link.stubs)
            self._link = link

    def _find(self) -> _Link:
        """Connect to the first daemon that accepts us, starting one if need be."""
        paths = discovery.candidates(self._socket)
        for path in paths[:-1]:
            try:
                return self._connect(path, may_start=False)
            except (errors.Unavailable, errors.PermissionDenied):
                continue  # not there, or not for us
        try:
            return self._connect(paths[-1], may_start=self._may_start)
        except errors.Unavailable as error:
            if len(paths) == 1 or self._may_start:
                raise
            tried = ", ".join(map(str, paths))
            text = (
                f"no daemon runs here (tried {tried}); start one with `ckptd serve`, or name the "
                "socket of one that listens elsewhere in CKPTD_SOCKET (`ckptd status`, `config` "
                "and `stop` also take --socket)"
            )
            raise errors.Unavailable(text) from error

    def _connect(self, path: Path, *, may_start: bool) -> _Link:
        """Connect to the daemon at *path*; if it is not there, start one if it *may_start*.

        One that is ending may still listen for a while; and one that was started may have ended,
        of idleness, before we came. Then it is started again, but once.
        """
        may_replace, starts, attempt = self._may_start, 0, 0
        until: float | None = None
        while True:
            try:
                link = _link(path)
                if self._any_version or _agrees(link, may_replace=may_replace):
                    return link
                may_replace = False
            except errors.Unavailable:
                until = until or time.monotonic() + _ENDING_S
                if not may_start or starts == _STARTS_MAX or time.monotonic() > until:
                    raise
            if autostart.ensure_running(path):
                starts += 1
            elif attempt:  # it listens, and has not answered since
                self._back_off(attempt, None)
            attempt += 1


_opening = threading.Lock()
_open: dict[tuple[Path, ...], Connection] = {}  # one per sockets that were to be tried
_running: dict[tuple[Path, ...], Connection] = {}  # likewise, of who would start none


def _link(path: Path) -> _Link:
    """Connect to *path* and say hello."""
    peer_name = discovery.knock(path)
    channel = calls.Channel(grpc.insecure_channel(f"unix:{quote(str(path))}", options=_OPTIONS))
    node = node_pb2_grpc.NodeStub(channel)
    stubs = Stubs(
        blobs_pb2_grpc.BlobsStub(channel),
        saves_pb2_grpc.SavesStub(channel),
        checkpoints_pb2_grpc.CheckpointsStub(channel),
        node,
        Questions(path),
        Silence(node),
    )
    request = node_pb2.HelloRequest(client_version=version("ckptd"))
    try:
        daemon = stubs.node.Hello(request, timeout=HELLO_S)
    except grpc.RpcError as error:
        channel.close()
        failure = wire.typed(error)
        if isinstance(failure, errors.DeadlineExceeded):  # it has bound, and does not serve yet
            text = f"the daemon at {path} has not answered for {HELLO_S:g} s; look at its log"
            raise errors.Unavailable(text) from error
        raise failure from error
    channel.instance = stubs.questions.instance = daemon.instance
    return _Link(path, peer_name, channel, stubs, daemon)


def _silent(link: _Link, waited_s: float) -> errors.DeadlineExceeded:
    pid = link.daemon.pid
    text = (
        f"the daemon at {link.path} (pid {pid}) has not answered for {waited_s:.1f} s: it stands "
        f"still, or what it waits for does; look at its log, and at `ps -o stat,wchan {pid}`"
    )
    return errors.DeadlineExceeded(text)


def _agrees(link: _Link, *, may_replace: bool) -> bool:
    """Say whether the daemon has our version; False: an idle private one that has now ended."""
    ours, theirs = version("ckptd"), link.daemon.daemon_version
    if ours == theirs:
        return True
    pid = link.daemon.pid
    if may_replace and link.daemon.private and link.daemon.idle:
        try:
            link.stubs.node.Stop(node_pb2.StopRequest(if_idle=True), timeout=HELLO_S)
        except grpc.RpcError as error:
            if not wire.is_transport(error):
                raise wire.typed(error) from error
        link.channel.close()
        _wait_ended(link)
        return False
    link.channel.close()
    text = (
        f"the daemon at {link.path} (pid {pid}) is version {theirs} and this client is {ours}; "
        f"run `{discovery.stop_command(link.path)}` and start it anew, or install ckptd=={theirs} here"
    )
    raise errors.FailedPrecondition(text)


def _wait_ended(link: _Link) -> None:
    """Wait until nobody listens where the old daemon did."""
    deadline = time.monotonic() + HELLO_S
    while time.monotonic() < deadline:
        try:
            discovery.knock(link.path)
        except errors.Unavailable:
            return
        time.sleep(_BACKOFF_S)

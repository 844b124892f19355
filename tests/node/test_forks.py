from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from fakes.daemon import Daemon
from fakes.running import python
from fakes.waiting import eventually

LOADER = """
import multiprocessing, os, sys, threading
import ckptd
from ckptd_proto.v1 import blobs_pb2

client = ckptd.Client()
client.status()
nothing = blobs_pb2.FetchRequest(ref="http://localhost/nothing")
assert client.connection.call(lambda stubs: stubs.questions.find(nothing)) is not None

def work(ready, done):
    sockets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}")]
    try:
        ckptd.Client(os.environ["CKPTD_SOCKET"]).status()
    except ckptd.errors.FailedPrecondition as error:
        ready.put((os.getpid(), str(error)))
    done.wait()

def keep_calling():
    while True:
        client.status()

for _ in range(3):
    threading.Thread(target=keep_calling, daemon=True).start()
fork = multiprocessing.get_context("fork")
ready, done = fork.Queue(), fork.Event()
workers = [fork.Process(target=work, args=(ready, done)) for _ in range(4)]
for worker in workers:
    worker.start()
"""
ENDING = """
for _ in workers:
    _, text = ready.get(timeout=20)
    assert "multiprocessing's `spawn`" in text, text
done.set()
for worker in workers:
    worker.join(20)
    assert worker.exitcode == 0, worker.exitcode
if (pid := os.fork()) == 0:
    sys.exit(7)  # the interpreter is taken down, gRPC's objects and all
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
print(client.status().pid)
"""
LINGERING = """
for _ in workers:
    print(ready.get(timeout=20)[0], flush=True)
sys.stdin.read()
"""


def test_forked_workers_neither_hang_nor_print_nor_disturb_their_parent(daemon: Daemon) -> None:
    assert python(LOADER + ENDING, env=daemon.env) == f"{daemon.pid}\n"


def test_a_parents_death_is_noticed_while_its_forked_children_live_on(daemon: Daemon) -> None:
    client = daemon.client()
    before = client.status().sessions
    parent = subprocess.Popen(
        [sys.executable, "-c", LOADER + LINGERING],
        env=daemon.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(4)]
    try:
        assert client.status().sessions == before + 1
        assert all(sockets_to(daemon, child) == 0 for child in children)
        assert sockets_to(daemon, parent.pid) > 1
        parent.kill()
        parent.wait()
        eventually(lambda: client.status().sessions == before)
        assert all(Path(f"/proc/{child}").exists() for child in children)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        parent.communicate()


def sockets_to(daemon: Daemon, pid: int) -> int:
    """How many sockets of the process are connected to something: pidfd_getfd, then ask."""
    import ctypes
    import socket

    names = {str(daemon.socket), f"{daemon.socket}.fds"}
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    found = 0
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if not str(entry.readlink()).startswith("socket:"):
                continue
            fd = libc.syscall(438, pidfd, int(entry.name), 0)  # pidfd_getfd
            if fd < 0:
                continue
            with socket.socket(fileno=fd) as sock:
                try:
                    found += sock.getpeername() in names
                except OSError:  # not connected
                    continue
    finally:
        os.close(pidfd)
    return found

"""One transfer per object version, whoever asks, whoever dies."""

from __future__ import annotations

import hashlib
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.values import Progress
from fakes.daemon import Daemon
from fakes.nginx import Nginx
from fakes.origin import Origin
from fakes.partials import landed_bytes
from fakes.waiting import eventually

FETCH = "import sys, ckptd; print(ckptd.fetch(sys.argv[1]), flush=True); sys.stdin.read()"
CHUNK_BYTES = 16 << 20


def rank(daemon: Daemon, url: str) -> subprocess.Popen[str]:
    """A process that fetches, says where, and then lives until its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=daemon.env,
        text=True,
    )


def path_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def waiters(daemon: Daemon, count: int) -> None:
    eventually(lambda: daemon.client().status().sessions > count)


def test_eight_ranks_share_one_transfer(daemon: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("model", data)
    ranks = [rank(daemon, origin.url("model")) for _ in range(8)]
    paths = {path_of(process) for process in ranks}
    for process in ranks:
        end(process)
    assert len(paths) == 1
    path = paths.pop()
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert origin.has_sent_once(len(data))


def test_nginx_serves_the_same_bytes(daemon: Daemon, short_path: Path, data: bytes) -> None:
    with Nginx(short_path / "nginx") as nginx:
        (nginx.files / "model").write_bytes(data)
        path = daemon.client().fetch(nginx.url("model"))
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_killed_daemon_goes_on_where_it_was_and_no_caller_notices(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    streams = 2
    content = data * 4
    origin.put("model", content)
    origin.hold(after_bytes=len(content) * 3 // 4)
    with Daemon(short_path, streams=streams, streams_max=streams) as daemon:
        ranks = [rank(daemon, origin.url("model")) for _ in range(2)]
        assert origin.held.wait(30)
        waiters(daemon, 2)
        (partial,) = (daemon.state_dir / "cache" / "partials").iterdir()
        sent = len(content) * 3 // 4  # the disk may take its time
        eventually(lambda: landed_bytes(partial) >= sent - streams * CHUNK_BYTES)
        daemon.kill()
        origin.release()
        daemon.start()
        for process in ranks:
            assert path_of(process).read_bytes() == content
            end(process)
    assert origin.sent_bytes <= len(content) + streams * CHUNK_BYTES + 2


def test_a_stopped_daemon_keeps_the_partial(short_path: Path, origin: Origin, data: bytes) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) * 3 // 4)
    with Daemon(short_path, drain_s=0) as daemon:
        process = rank(daemon, origin.url("model"))
        assert origin.held.wait(30)
        assert daemon.stop() == 0
        assert "left for the next start" in daemon.log_text()
        origin.release()
        daemon.start()
        assert path_of(process).read_bytes() == data
        end(process)


def test_a_rank_that_dies_disturbs_nobody(daemon: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) // 2)
    first = rank(daemon, origin.url("model"))
    assert origin.held.wait(30)
    second = rank(daemon, origin.url("model"))
    waiters(daemon, 2)
    first.send_signal(signal.SIGKILL)
    end(first)
    origin.release()
    assert path_of(second).read_bytes() == data
    end(second)
    assert origin.has_sent_once(len(data))


def test_an_error_reaches_every_waiter(daemon: Daemon, origin: Origin) -> None:
    with pytest.raises(errors.NotFound, match="404"):
        daemon.client().fetch(origin.url("missing"))


def test_progress_is_told_on_the_callers_own_thread(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    origin.hold(after_bytes=len(data) // 2)
    seen: list[tuple[int, Progress]] = []

    def note(progress: Progress) -> None:
        seen.append((threading.get_ident(), progress))
        if progress.done_bytes > 0:
            origin.release()

    daemon.client().fetch(origin.url("model"), on_progress=note)
    assert {thread for thread, _ in seen} == {threading.get_ident()}
    assert any(progress.total_bytes == len(data) for _, progress in seen)


def test_a_local_path_needs_no_daemon(tmp_path: Path) -> None:
    from ckptd.fetching import fetch

    file = tmp_path / "here"
    file.write_bytes(b"abc")
    good = hashlib.sha256(b"abc").hexdigest()
    assert fetch(file) == file
    assert fetch(f"file://{file}", sha256=good) == file
    with pytest.raises(errors.DataLoss):
        fetch(f"{file}#sha256={'0' * 64}")
    with pytest.raises(errors.NotFound):
        fetch(tmp_path / "gone")


def test_an_unknown_scheme_names_the_known_ones(daemon: Daemon) -> None:
    with pytest.raises(errors.InvalidArgument, match="https://"):
        daemon.client().fetch("gopher://host/model")


def test_secrets_of_a_url_are_nowhere(daemon: Daemon, origin: Origin, data: bytes) -> None:
    origin.put("model", data)
    url = origin.url("model").replace("http://", "http://user:hunter2@")
    daemon.client().fetch(f"{url}?X-Amz-Signature=s3cr3t&token=t0k3n&part=1")
    with pytest.raises(errors.NotFound) as caught:
        daemon.client().fetch(url.replace("model", "gone") + "?sig=s3cr3t")
    written = b"".join(
        file.read_bytes()
        for file in daemon.directory.rglob("*")
        if file.is_file() and file.stat().st_size < 1 << 20
    )
    for secret in ("hunter2", "s3cr3t", "t0k3n"):
        assert secret not in str(caught.value)
        assert secret.encode() not in written
    assert any("Authorization" in headers for headers in origin.headers)


def test_credentials_never_follow_a_redirect_to_another_host(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    with Origin() as elsewhere:
        elsewhere.put("model", data)
        target = elsewhere.url("model").replace("127.0.0.1", "localhost")
        origin.redirect("go", target)
        url = origin.url("go").replace("http://", "http://user:hunter2@")
        assert daemon.client().fetch(url).read_bytes() == data
        assert not any("Authorization" in headers for headers in elsewhere.headers)
    assert any("Authorization" in headers for headers in origin.headers)


def test_a_partial_damaged_while_the_daemon_was_away_is_mended(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    content = data * 4
    origin.put("model", content)
    origin.hold(after_bytes=len(content) * 3 // 4)
    process = rank(daemon, origin.url("model"))
    assert origin.held.wait(30)
    (partial,) = (daemon.state_dir / "cache" / "partials").iterdir()
    eventually(lambda: (partial / "journal").read_bytes().partition(b"\n")[2])
    daemon.kill()
    with (partial / "data").open("r+b") as file:
        for at in range(0, len(content), CHUNK_BYTES):
            file.seek(at + 1000)
            file.write(b"damaged")
    with (partial / "journal").open("ab") as file:
        file.write(b"torn")
    origin.release()
    daemon.start()
    assert path_of(process).read_bytes() == content
    end(process)

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ckptd import errors
from ckptd.client import Client
from fakes.daemon import Daemon
from fakes.running import ckptd
from fakes.waiting import eventually


def test_status_tells_who_serves_and_where(daemon: Daemon) -> None:
    done = ckptd("status", "--json", env=daemon.env)
    status = json.loads(done.stdout)
    assert status["pid"] == daemon.pid
    assert status["socket"] == str(daemon.socket)
    assert status["state_dir"] == str(daemon.state_dir)
    assert not status["private"]
    assert str(daemon.socket) in ckptd("status", env=daemon.env).stdout


def test_a_client_finds_the_daemon_again_after_it_was_killed(daemon: Daemon) -> None:
    client = daemon.client()
    assert client.status().pid == daemon.pid
    daemon.kill()
    daemon.start()
    assert client.status().pid == daemon.pid


def test_the_standard_health_service_answers(daemon: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_daemon_stopped_by_sigterm_leaves_no_socket_and_no_failure(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    assert not daemon.socket.exists()
    assert not daemon.socket.with_name("d.sock.fds").exists()


def test_stop_returns_when_the_daemon_is_gone(daemon: Daemon) -> None:
    done = ckptd("stop", env=daemon.env)
    assert done.stdout == f"stopped pid {daemon.pid}\n"
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0


@pytest.mark.parametrize("command", ["status", "stop"])
def test_without_a_daemon_a_command_says_so_and_starts_none(command: str, short_path: Path) -> None:
    socket = short_path / "none.sock"
    done = ckptd(command, env=os.environ | {"CKPTD_SOCKET": str(socket), "CKPTD_AUTOSTART": "1"})
    assert done.returncode == 6
    assert done.stderr == (f"ckptd: no daemon listens at {socket}; start one with `ckptd serve`\n")
    assert list(short_path.iterdir()) == []


def test_errors_are_json_where_json_was_asked_for(short_path: Path) -> None:
    done = ckptd("status", "--json", env=os.environ | {"CKPTD_SOCKET": str(short_path / "no")})
    told = json.loads(done.stderr)
    assert (told["error"], told["exit_code"], done.returncode) == ("Unavailable", 6, 6)


def test_a_wrong_flag_is_a_usage_error() -> None:
    done = ckptd("status", "--nonsense", env=os.environ)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    "flags", [["--socket", "/tmp/" + "x" * 103], ["--log-level", "shout"], ["--config", "/none"]]
)
def test_wrong_settings_are_a_usage_error_in_one_sentence(flags: list[str]) -> None:
    done = ckptd("serve", *flags, env=os.environ)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    done = ckptd("serve", "--json", *flags, env=os.environ)
    told = json.loads(done.stderr)
    assert (told["error"], told["exit_code"], done.returncode) == ("InvalidArgument", 2, 2)


def test_a_client_refuses_a_socket_path_that_the_kernel_would_not_take(short_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="108 bytes long, and the kernel allows 107"):
        Client("/tmp/" + "x" * 103)


def test_the_longest_socket_path_works_descriptors_and_all(short_path: Path) -> None:
    daemon = Daemon(short_path)
    daemon.socket = short_path / ("x" * (107 - len(os.fsencode(short_path)) - 1))
    with daemon:
        assert daemon.client().status().pid == daemon.pid
        assert daemon.socket.with_name(daemon.socket.name + ".fds").is_socket()


def test_the_sockets_are_for_their_owner_alone(daemon: Daemon) -> None:
    for path in (daemon.socket, daemon.socket.with_name("d.sock.fds")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_daemon_on_the_socket_names_the_first(daemon: Daemon) -> None:
    done = ckptd(
        "serve", f"--socket={daemon.socket}", f"--state-dir={daemon.directory}/b", env=daemon.env
    )
    assert done.returncode == 4
    assert f"(pid {daemon.pid}) already serves the socket {daemon.socket}" in done.stderr
    assert f"stop it with `ckptd stop --socket {daemon.socket}`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert daemon.client().status().pid == daemon.pid


def test_a_second_daemon_on_the_state_names_the_first(daemon: Daemon) -> None:
    done = ckptd(
        "serve", f"--socket={daemon.directory}/b", f"--state-dir={daemon.state_dir}", env=daemon.env
    )
    assert done.returncode == 4
    assert f"(pid {daemon.pid}) already serves the state in {daemon.state_dir}" in done.stderr
    assert f"stop it with `ckptd stop --socket {daemon.socket}`" in done.stderr


def test_at_the_usual_socket_the_first_daemon_is_stopped_by_the_plain_command(
    short_path: Path,
) -> None:
    daemon = Daemon(short_path)
    (short_path / "ckptd").mkdir()
    daemon.socket = short_path / "ckptd" / "ckptd.sock"
    with daemon:
        env = daemon.env | {"XDG_RUNTIME_DIR": str(short_path)}
        del env["CKPTD_SOCKET"]
        done = ckptd("serve", f"--state-dir={short_path}/b", env=env)
        assert (
            f"already serves the socket {daemon.socket}; stop it with `ckptd stop`," in done.stderr
        )


def test_a_client_that_finds_no_daemon_says_how_to_name_one(short_path: Path) -> None:
    done = ckptd("status", env=os.environ | {"XDG_RUNTIME_DIR": str(short_path)})
    assert done.returncode == 6
    assert f"tried /run/ckptd/ckptd.sock, {short_path}/ckptd/ckptd.sock" in done.stderr
    assert "in CKPTD_SOCKET" in done.stderr
    assert "--socket" in done.stderr


def test_a_misspelt_variable_is_told_once_in_the_log_and_is_no_error(short_path: Path) -> None:
    with Daemon(short_path, streems=3) as daemon:
        assert daemon.log_text().count("CKPTD_STREEMS") == 1
        assert "did you mean CKPTD_STREAMS?" in daemon.log_text()
        assert "level=warning" in daemon.log_text()


def test_the_socket_of_a_killed_daemon_is_taken_over(daemon: Daemon) -> None:
    daemon.kill()
    assert daemon.socket.is_socket()
    daemon.start()
    assert daemon.client().status().pid == daemon.pid


def test_a_file_that_is_no_socket_is_left_alone(short_path: Path) -> None:
    daemon = Daemon(short_path)
    daemon.socket.write_text("precious")
    done = ckptd(
        "serve", f"--socket={daemon.socket}", f"--state-dir={short_path}/s", env=daemon.env
    )
    assert (done.returncode, daemon.socket.read_text()) == (4, "precious")


def test_a_dead_client_is_noticed_at_once(daemon: Daemon) -> None:
    from fakes.running import python

    client = daemon.client()
    before = client.status().sessions
    python("import ckptd; ckptd.Client().status()", env=daemon.env)
    eventually(lambda: client.status().sessions == before)


def test_ctrl_c_stops_like_sigterm(short_path: Path) -> None:
    with Daemon(short_path) as daemon:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(30) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_state_directory_of_somebody_else_is_refused(short_path: Path) -> None:
    state_dir = short_path / "state"
    state_dir.mkdir()
    os.chown(state_dir, 65534, 65534)
    done = ckptd("serve", f"--socket={short_path}/s", f"--state-dir={state_dir}", env=os.environ)
    assert done.returncode == 4
    assert "belongs to user 65534" in done.stderr


def test_more_connections_than_the_usual_limit_of_descriptors_fit(short_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
        daemon = stack.enter_context(Daemon(short_path))
        for _ in range(400):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(daemon.socket))
        assert daemon.client().status().pid == daemon.pid


def test_a_reader_that_has_enough_is_no_error(daemon: Daemon) -> None:
    command = f"{sys.executable} -m ckptd.cli status --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=daemon.env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")

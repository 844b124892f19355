"""Ways to an origin: TLS, proxies, redirects, credentials, and none at all."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd import errors
from fakes.certificates import Authority
from fakes.daemon import Daemon
from fakes.nginx import Nginx
from fakes.node import fetching
from fakes.origin import Fault, Origin
from fakes.proxy import Proxy
from fakes.running import ckptd
from fakes.waiting import eventually

PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
LOGIN = base64.b64encode(b"reader:pa:ss").decode()


@pytest.fixture(autouse=True)
def no_ways_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC", *PROXY_VARIABLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def authority(short_path: Path) -> Authority:
    return Authority(short_path / "ca")


def test_tls_is_verified_and_fast_with_the_environments_certificates(
    short_path: Path, data: bytes, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with (
        Nginx(short_path / "nginx", authority.for_nginx, tls=True) as nginx,
        Daemon(short_path / "d") as daemon,
    ):
        (nginx.files / "model").write_bytes(data)
        assert daemon.client().fetch(nginx.url("model")).read_bytes() == data
        assert "general path" not in daemon.log_text()


def test_a_certificate_is_trusted_by_the_setting_and_else_refused_with_host_reason_and_setting(
    short_path: Path, data: bytes, authority: Authority, origin: Origin
) -> None:
    with Nginx(short_path / "nginx", authority.for_nginx, tls=True) as nginx:
        (nginx.files / "model").write_bytes(data)
        origin.redirect("away", nginx.url("model"))
        with Daemon(short_path / "a") as daemon:
            for url in (nginx.url("model"), origin.url("away")):
                with pytest.raises(errors.Unavailable) as refused:
                    daemon.client().fetch(url)
                told = str(refused.value)
                assert "the certificate of 127.0.0.1 is not trusted here: unable to get" in told
                assert "ca_file (CKPTD_CA_FILE), or in SSL_CERT_FILE" in told
        with Daemon(short_path / "b", ca_file=authority.file) as daemon:
            assert daemon.client().fetch(nginx.url("model")).read_bytes() == data


def test_a_certificate_file_that_does_not_exist_or_holds_none_stops_the_start(
    short_path: Path,
) -> None:
    wrong = short_path / "wrong.pem"
    wrong.write_text("nonsense")
    env = os.environ | {"CKPTD_SOCKET": str(short_path / "s"), "CKPTD_STATE_DIR": str(short_path)}
    for file, reason in ((short_path / "none", "No such file"), (wrong, "no certificates in PEM")):
        done = ckptd("serve", env=env | {"CKPTD_CA_FILE": str(file)})
        assert done.returncode == 2
        assert f"ca_file: {reason}" in done.stderr.replace("Value error, ", "").replace(
            f"cannot read {file}: ", ""
        ).replace(f"{file} holds ", ""), done.stderr


def test_what_does_not_speak_tls_is_told_from_what_is_not_trusted(
    daemon: Daemon, tmp_path: Path
) -> None:
    with (
        Nginx(tmp_path / "nginx") as nginx,
        pytest.raises(errors.Unavailable, match=r"no TLS with 127\.0\.0\.1"),
    ):
        daemon.client().fetch(nginx.url("model").replace("http:", "https:"))


def test_http_goes_over_the_configured_proxy_in_parallel_with_its_password(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    origin.put("model", data)
    with (
        Proxy("user", "p@ss word") as proxy,
        Daemon(short_path / "d", proxy=proxy.url("user:p%40ss%20word")) as daemon,
    ):
        assert daemon.client().fetch(origin.url("model")).read_bytes() == data
        assert proxy.requests[0] == f"GET {origin.url('model')} HTTP/1.1"
        eventually(lambda: len(proxy.requests) == len(origin.requests) > 2)
        assert "general path" not in daemon.log_text()
        assert not [each for each in origin.headers if "Proxy-Authorization" in each]


def test_https_is_tunnelled_through_the_proxy_of_the_environment_in_parallel(
    short_path: Path, data: bytes, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Nginx(short_path / "nginx", authority.for_nginx, tls=True) as nginx,
        Proxy("user", "pass") as proxy,
    ):
        (nginx.files / "model").write_bytes(data)
        monkeypatch.setenv("https_proxy", proxy.url("user:pass"))
        with Daemon(short_path / "d", ca_file=authority.file) as daemon:
            assert daemon.client().fetch(nginx.url("model")).read_bytes() == data
            assert "general path" not in daemon.log_text()
        assert set(proxy.requests) == {f"CONNECT 127.0.0.1:{nginx.port} HTTP/1.1"}
        assert len(proxy.requests) > 2


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "localhost, 127.0.0.0/8", "127.0.0.1:PORT"])
def test_no_proxy_excepts_hosts_from_any_proxy_on_both_paths(
    no_proxy: str, short_path: Path, origin: Origin, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("fast", data)
    origin.put("general", data).lasting = Fault.NO_RANGES
    monkeypatch.setenv("no_proxy", no_proxy.replace("PORT", str(origin.port)))
    with Proxy() as proxy, Daemon(short_path / "d", proxy=proxy.url()) as daemon:
        for name in ("fast", "general"):
            assert daemon.client().fetch(origin.url(name)).read_bytes() == data
        assert proxy.requests == []


def test_no_proxy_for_one_port_leaves_the_others_to_the_proxy(
    short_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("model", b"data")
    monkeypatch.setenv("no_proxy", "127.0.0.1:1")
    with Proxy() as proxy, Daemon(short_path / "d", proxy=proxy.url()) as daemon:
        assert daemon.client().fetch(origin.url("model")).read_bytes() == b"data"
        assert len(proxy.requests) == len(origin.requests)


def test_a_proxy_that_wants_another_password_is_named_and_no_secret_is(
    short_path: Path, origin: Origin, authority: Authority
) -> None:
    origin.put("model", b"data")
    with (
        Proxy("user", "right") as proxy,
        Nginx(short_path / "nginx", authority.for_nginx, tls=True) as nginx,
        Daemon(short_path / "d", proxy=proxy.url("user:hunter2"), ca_file=authority.file) as daemon,
    ):
        for url in (origin.url("model"), nginx.url("model")):
            with pytest.raises(errors.Unauthenticated, match="setting proxy") as refused:
                daemon.client().fetch(url)
            assert "hunter2" not in str(refused.value)
        assert origin.requests == []
        assert "hunter2" not in daemon.log_text()


@contextmanager
def mute() -> Iterator[str]:
    """The https URL of somebody who takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/model"


@pytest.mark.parametrize(
    "mutters",
    ["", "HTTP/1.1 100 Continue\r\n\r\n", "a: b\r\n", None],
    ids=["mute", "interim", "endless", "tunnel_to_the_mute"],
)
async def test_a_proxy_that_comes_to_no_tunnel_is_given_up_and_named_without_its_password(
    mutters: str | None, short_path: Path
) -> None:
    with Proxy("user", "hunter2", mutters=mutters) as proxy, mute() as url:
        hasty = {"connect_s": 0.1, "first_byte_s": 0.1, "retries": 1}
        async with fetching(short_path, proxy=proxy.url("user:hunter2"), **hasty) as node:
            with pytest.raises(errors.Unavailable, match="given up after 2 tries") as given_up:
                await node.fetch(url)
    assert f"the origin, over the proxy 127.0.0.1:{proxy.port}, cannot" in str(given_up.value)
    assert "hunter2" not in str(given_up.value)
    assert len(proxy.requests) == 2


async def test_a_proxy_that_is_not_there_is_to_be_checked(short_path: Path) -> None:
    with Proxy() as gone:
        pass
    async with fetching(short_path, proxy=gone.url("user:hunter2"), retries=0) as node:
        with pytest.raises(errors.Unavailable, match="refused; check host and port") as failed:
            await node.fetch("https://models.example/model")
    assert f"the proxy 127.0.0.1:{gone.port} cannot be reached" in str(failed.value)


def test_a_proxy_that_is_no_http_proxy_is_refused(
    short_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "socks5://user:hunter2@127.0.0.1:1080")
    with (
        Daemon(short_path / "d") as daemon,
        pytest.raises(errors.FailedPrecondition, match="http_proxy of the environment is no HTTP"),
    ):
        daemon.client().fetch(origin.url("model"))
    env = os.environ | {
        "CKPTD_SOCKET": str(short_path / "s"),
        "CKPTD_PROXY": "socks5://x:hunter2@h",
    }
    done = ckptd("serve", env=env)
    assert done.returncode == 2
    assert "proxy: " in done.stderr
    assert "hunter2" not in done.stderr


def test_a_redirect_from_https_to_plain_http_is_refused(
    short_path: Path, authority: Authority, origin: Origin
) -> None:
    origin.put("model", b"data")
    extra = f"{authority.for_nginx} location /away {{ return 302 {origin.url('model')}; }}"
    with (
        Nginx(short_path / "nginx", extra, tls=True) as nginx,
        Daemon(short_path / "d", ca_file=authority.file) as daemon,
        pytest.raises(errors.FailedPrecondition, match="from https to http://127"),
    ):
        daemon.client().fetch(nginx.url("away"))
    assert origin.requests == []


def test_a_redirect_to_another_scheme_is_refused(daemon: Daemon, origin: Origin) -> None:
    for target in ("file:///etc/passwd", "ftp://host/model", "http://"):
        origin.redirect("away", target)
        with pytest.raises(
            errors.FailedPrecondition, match=r"redirects to what is no http\(s\) URL"
        ):
            daemon.client().fetch(origin.url("away"))


def sent_to(origin: Origin) -> set[str | None]:
    return {each.get("Authorization") for each in origin.headers}


def test_credentials_of_the_url_go_to_its_own_host_and_port_and_never_further(
    daemon: Daemon, origin: Origin, data: bytes
) -> None:
    with Origin() as other:
        other.put("model", data)
        origin.redirect("away", origin.url("on"))
        origin.redirect("on", other.url("model"))
        url = origin.url("away").replace("//", "//reader:pa%3Ass@")
        assert daemon.client().fetch(url).read_bytes() == data
        assert sent_to(origin) == {f"Basic {LOGIN}"}
        assert sent_to(other) == {None}


def test_netrc_is_for_the_daemons_user_by_host_and_its_default_for_nobody(
    short_path: Path, origin: Origin, data: bytes, tmp_path: Path
) -> None:
    origin.put("model", data)
    origin.redirect("away", f"http://localhost:{origin.port}/model")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine localhost login reader password pa:ss\ndefault login x password y\n")
    netrc.chmod(0o600)
    with Daemon(short_path / "d") as daemon:
        assert daemon.client().fetch(origin.url("away")).read_bytes() == data
    by_host = {each["Host"].partition(":")[0]: each.get("Authorization") for each in origin.headers}
    assert by_host == {"127.0.0.1": None, "localhost": f"Basic {LOGIN}"}

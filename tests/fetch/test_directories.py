"""Directories: one listing, the flights of single files, one tree that is held as a whole."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from ckptd import errors
from ckptd.values import Progress
from ckptd_proto.crc import crc32c
from fakes.daemon import Daemon
from fakes.nginx import Nginx
from fakes.origin import Fault, Origin
from fakes.running import ckptd
from fakes.tracing import tampered
from fakes.waiting import eventually

FILES = {
    "config.json": b"{}",
    "a b & ü.txt": b"odd name",
    "model.safetensors.index": b"i" * 3000,
    "sub/deep/part-1.bin": b"1" * 70_000,
    "sub/part-2.bin": b"2" * 5,
    "empty": b"",
}


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def content(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if not path.is_dir()
    }


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def python_server(root: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def manifest(origin: Origin, directory: str, files: dict[str, bytes], **changes: object) -> None:
    """Publish *files* below *directory*, with a manifest that states all there is."""
    stated = []
    for name, data in files.items():
        origin.put(f"{directory}{quote(name, safe='/&')}", data)
        stated.append(
            {
                "path": name,
                "size_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "crc32c": [
                    crc32c(data[at : at + (16 << 20)]) for at in range(0, len(data), 16 << 20)
                ],
            }
            | changes
        )
    text = json.dumps({"format": 1, "files": stated})
    origin.put(f"{directory}ckptd-manifest.json", text.encode(), etag=None)


def snapshots(daemon: Daemon) -> list[Path]:
    return list((daemon.state_dir / "cache" / "snapshots").iterdir())


@pytest.mark.parametrize("listing", ["autoindex on;", "autoindex on; autoindex_format json;"])
def test_nginx_index_pages_are_walked(listing: str, daemon: Daemon, short_path: Path) -> None:
    with Nginx(short_path / "nginx", listing) as nginx:
        write(nginx.files / "model", FILES)
        tree = daemon.client().fetch(nginx.url("model/"))
    assert content(tree) == FILES
    assert tree.name == "model"


def test_a_directory_that_its_origin_does_not_list_is_told_from_wrong_credentials(
    daemon: Daemon, short_path: Path
) -> None:
    with Nginx(short_path / "nginx", "autoindex off;") as nginx:
        write(nginx.files / "model", FILES)
        with pytest.raises(errors.PermissionDenied) as refusal:
            daemon.client().fetch(nginx.url("model/"))
    said = str(refusal.value)
    assert "403: it does not list this directory" in said
    assert "ckptd-manifest.json" in said


@pytest.mark.parametrize("are_many", [False, True])
@pytest.mark.parametrize("server", ["nginx", "python"])
def test_a_directory_without_its_final_slash_is_refused_and_no_page_passes_for_a_file(
    server: str, are_many: bool, daemon: Daemon, short_path: Path
) -> None:
    root, client = short_path / "nginx", daemon.client()
    with Nginx(root, "autoindex on;") as nginx, python_server(nginx.files) as python:
        write(nginx.files / "my model", FILES)
        url = (nginx.url("") if server == "nginx" else python) + "my%20model"
        with pytest.raises(errors.FailedPrecondition) as refusal:
            client.fetch_many([url, f"{url}/config.json"]) if are_many else client.fetch(url)
        assert f"it is a directory there, for the origin redirects to {url}/;" in str(refusal.value)
        assert "end the reference with /" in str(refusal.value)
        assert content(client.fetch(f"{url}/")) == FILES


def test_the_size_of_a_directory_is_known_once_each_file_has_said_its_own(
    daemon: Daemon, origin: Origin
) -> None:
    body = bytes(1 << 20)
    links = "".join(f'<a href="{name}">{name}</a>' for name in ("a.bin", "b.bin"))
    origin.put("m/", f"<h1>Index of /m/</h1>{links}".encode(), etag=None)
    for name in ("a.bin", "b.bin"):
        origin.put(f"m/{name}", body)
    client = daemon.client()
    client.configure({"max_bytes_per_s": 2 << 20})
    seen: list[Progress] = []
    client.fetch(origin.url("m/"), on_progress=seen.append)
    assert {progress.total_bytes for progress in seen} - {None} == {2 << 20}
    assert any(progress.eta_s for progress in seen)


def test_pythons_own_server_is_walked(daemon: Daemon, tmp_path: Path) -> None:
    write(tmp_path / "model", FILES)
    with python_server(tmp_path) as url:
        assert content(daemon.client().fetch(f"{url}model/")) == FILES
        assert content(daemon.client().fetch(url))["model/config.json"] == b"{}"


def test_a_manifest_is_one_request_and_its_hashes_are_what_files_are_verified_by(
    daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", FILES)
    tree = daemon.client().fetch(origin.url("m/"))
    assert content(tree) == FILES
    assert {blob.verification for blob in daemon.client().blobs()} == {"sha256"}
    assert daemon.client().fetch(origin.url("m/ckptd-manifest.json")) == tree
    listings = [name for name, _ in origin.requests if name in {"m/", "m/ckptd-manifest.json"}]
    assert len(listings) == 1 or len(listings) == 2  # the manifest's own URL is another question


def test_patterns_choose_and_a_subset_never_stands_for_more(daemon: Daemon, origin: Origin) -> None:
    manifest(origin, "m/", FILES)
    client = daemon.client()
    some = client.fetch(origin.url("m/"), include=["**/*.bin"], exclude="sub/deep/")
    assert content(some) == {"sub/part-2.bin": b"2" * 5}
    sent = origin.sent_bytes
    everything = client.fetch(origin.url("m/"))
    assert content(everything) == FILES
    assert content(some) == {"sub/part-2.bin": b"2" * 5}
    assert len(origin.bodies("m/sub/part-2.bin")) == 1  # for both
    assert origin.sent_bytes > sent


def test_single_fetches_and_directories_share_their_files(daemon: Daemon, origin: Origin) -> None:
    manifest(origin, "m/", FILES)
    client = daemon.client()
    path = client.fetch(origin.url("m/sub/part-2.bin"))
    tree = client.fetch(origin.url("m/"))
    assert (tree / "sub/part-2.bin").samefile(path)
    assert len(origin.bodies("m/sub/part-2.bin")) == 1


def test_snapshots_that_are_under_way_together_bring_what_they_share_once(
    daemon: Daemon, origin: Origin
) -> None:
    files = {name: name.encode() * 1000 for name in "abcd"}
    manifest(origin, "m/", files)
    client, url = daemon.client(), origin.url("m/")
    origin.hold(after_bytes=1)  # the manifest passes, in one piece
    with ThreadPoolExecutor(2) as callers:
        parts = "abc", "bcd"
        trees = [callers.submit(client.fetch, url, include=list(part)) for part in parts]
        shared = {f"{url}{name}" for name in "bc"}
        try:
            eventually(
                lambda: shared <= {f.object for f in client.status().flights if f.waiters == 2}
            )
        finally:
            origin.release()
        for part, tree in zip(parts, trees, strict=True):
            assert content(tree.result(30)) == {name: files[name] for name in part}
    assert [len(origin.bodies(f"m/{name}")) for name in files] == [1, 1, 1, 1]


def test_patterns_that_choose_nothing_say_what_there_is(daemon: Daemon, origin: Origin) -> None:
    manifest(origin, "m/", FILES)
    with pytest.raises(errors.NotFound, match=r"none of the 6 files .*config\.json"):
        daemon.client().fetch(origin.url("m/"), include=["*.safetensors"])


def test_one_bad_file_fails_the_directory_and_is_named(daemon: Daemon, origin: Origin) -> None:
    manifest(origin, "m/", FILES)
    origin.put("m/config.json", b"{}").lasting = Fault.LOSE
    client = daemon.client()
    with pytest.raises(errors.NotFound, match=r"'config\.json' .*404.*`exclude`") as caught:
        client.fetch(origin.url("m/"))
    assert caught.value.id
    tree = client.fetch(origin.url("m/"), exclude=["config.json"])
    assert content(tree) == {name: data for name, data in FILES.items() if name != "config.json"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"sha256": "0" * 64}, "SHA-256"), ({"size_bytes": 1, "crc32c": []}, "manifest states 1 ")],
)
def test_what_is_not_as_the_manifest_states_is_data_loss(
    changes: dict[str, object], words: str, daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", {"a": b"data"}, **changes)
    with pytest.raises(errors.DataLoss, match=words):
        daemon.client().fetch(origin.url("m/"))
    assert snapshots(daemon) == []


def test_a_chunk_checksum_of_the_manifest_is_believed_rather_than_the_bytes(
    daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", {"a": b"data"}, sha256=None, crc32c=[1])
    with pytest.raises(errors.DataLoss):
        daemon.client().fetch(origin.url("m/"))


def test_a_page_that_is_no_index_is_not_taken_for_one(daemon: Daemon, origin: Origin) -> None:
    origin.put("site/", b"<html><title>Welcome</title><a href='x'>x</a></html>")
    with pytest.raises(errors.FailedPrecondition, match="no index of nginx"):
        daemon.client().fetch(origin.url("site/"))


def test_a_name_that_leads_elsewhere_is_refused(daemon: Daemon, origin: Origin) -> None:
    page = b"<title>Index of /</title><a href='%2e%2e%2fetc'>x</a>"
    origin.put("m/", page)
    with pytest.raises(errors.FailedPrecondition, match=r"\.\./etc"):
        daemon.client().fetch(origin.url("m/"))


def test_a_hash_for_a_directory_and_patterns_for_a_file_are_refused(
    daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", FILES)
    with pytest.raises(errors.InvalidArgument, match="is a directory"):
        daemon.client().fetch(origin.url("m/"), sha256="0" * 64)
    with pytest.raises(errors.InvalidArgument, match="is a file"):
        daemon.client().fetch(origin.url("m/empty"), include="*")


def test_offline_gives_the_last_snapshot_that_is_complete_or_any_part_of_it(
    daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", FILES)
    client = daemon.client()
    with pytest.raises(errors.NotFound, match="no snapshot"):
        client.fetch(origin.url("m/"), offline=True)
    some = client.fetch(origin.url("m/"), include=["*.json"])
    with pytest.raises(errors.NotFound, match="no snapshot"):
        client.fetch(origin.url("m/"), offline=True)
    tree = client.fetch(origin.url("m/"))
    asked = len(origin.requests)
    assert client.fetch(origin.url("m/"), offline=True) == tree
    assert client.fetch(origin.url("m/"), offline=True, include="*.json") == some
    other = client.fetch(origin.url("m/"), offline=True, include="sub/")
    assert set(content(other)) == {"sub/deep/part-1.bin", "sub/part-2.bin"}
    assert len(origin.requests) == asked


def test_the_tree_is_read_only_and_held_as_a_whole(daemon: Daemon, origin: Origin) -> None:
    manifest(origin, "m/", FILES)
    client = daemon.client()
    with client.open(origin.url("m/")) as tree:
        assert {oct(path.stat().st_mode & 0o222) for path in [tree, *tree.rglob("*")]} == {"0o0"}
        assert {blob.leases for blob in client.blobs()} == {1}
        for blob in client.blobs():
            with pytest.raises(errors.FailedPrecondition, match="held by 1 lease"):
                client.remove_blob(blob.key)
    assert {blob.leases for blob in client.blobs()} == {0}


def test_a_held_directory_is_not_evicted_and_one_that_nobody_holds_is(
    short_path: Path, origin: Origin, data: bytes
) -> None:
    size = len(data)
    manifest(origin, "m/", {"one": data, "two": b"2"})
    manifest(origin, "n/", {"three": data})
    for name in ("four", "five"):
        origin.put(name, data)
    with Daemon(short_path, cache_bytes=size * 2 + (8 << 20)) as daemon:
        client = daemon.client()
        with client.open(origin.url("m/")) as tree:
            for name in ("four", "five"):
                with client.open(origin.url(name)):
                    assert (tree / "one").read_bytes() == data
        for name in ("four", "five"):
            with client.open(origin.url(name)):
                pass
        assert origin.url("m/one") not in {blob.object for blob in client.blobs()}
        with client.open(origin.url("n/")):
            assert len(snapshots(daemon)) == 1  # what was left of the other is swept
        with client.open(origin.url("m/")) as again:
            assert (again / "one").read_bytes() == data


def test_a_restart_keeps_the_tree_and_its_lease(daemon: Daemon, origin: Origin) -> None:
    manifest(origin, "m/", FILES)
    tree = daemon.client().fetch(origin.url("m/"))
    daemon.kill()
    daemon.start()
    assert content(tree) == FILES
    assert {blob.leases for blob in daemon.client().blobs()} == {1}
    asked = len(origin.requests)
    assert daemon.client().fetch(origin.url("m/"), offline=True) == tree
    assert len(origin.requests) == asked


def test_a_file_damaged_in_the_cache_is_fetched_again_under_the_same_tree(
    daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", FILES)
    client = daemon.client()
    tree = client.fetch(origin.url("m/"))
    os.truncate((tree / "sub/deep/part-1.bin").resolve(), 10)
    assert content(client.fetch(origin.url("m/"))) == FILES
    assert len(origin.bodies("m/sub/deep/part-1.bin")) == 2


def test_the_command_chooses_and_copies_the_tree(
    daemon: Daemon, origin: Origin, tmp_path: Path
) -> None:
    manifest(origin, "m/", FILES)
    arguments = ["fetch", origin.url("m/"), "--include", "sub/", "--exclude", "*-2.bin", "--json"]
    done = ckptd(*arguments, "-o", str(tmp_path / "copy"), env=daemon.env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["path"], told["size_bytes"]) == (str(tmp_path / "copy"), 70_000)
    copy = tmp_path / "copy"
    assert content(copy) == {"sub/deep/part-1.bin": b"1" * 70_000}
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    again = ckptd(*arguments, "-o", str(copy.parent / "copy"), env=daemon.env)
    assert again.returncode == 0  # a directory to put it in
    third = ckptd(*arguments, "-o", str(copy), env=daemon.env)
    assert third.returncode == 4
    assert "exists already" in third.stderr


def test_a_daemon_killed_while_it_makes_the_tree_sweeps_up_and_makes_it_again(
    daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", FILES)
    found: list[Path] = []
    caller = threading.Thread(target=lambda: found.append(daemon.client().fetch(origin.url("m/"))))
    with tampered(daemon.pid, "symlink:signal=KILL:when=3"):
        caller.start()
        assert daemon.process is not None
        assert daemon.process.wait(20) == -signal.SIGKILL
    daemon.kill()
    (torn,) = snapshots(daemon)
    assert torn.name.endswith(".tmp")
    daemon.start()
    assert torn not in snapshots(daemon)
    caller.join(40)
    assert content(found[0]) == FILES
    assert {len(origin.bodies(f"m/{name}")) for name in ("config.json", "sub/part-2.bin")} == {1}


def test_a_tree_that_lost_a_link_while_the_daemon_was_away_is_made_again(
    daemon: Daemon, origin: Origin
) -> None:
    manifest(origin, "m/", FILES)
    tree = daemon.client().fetch(origin.url("m/"))
    daemon.kill()
    tree.chmod(0o755)
    (tree / "config.json").unlink()
    daemon.start()
    assert snapshots(daemon) == []
    assert content(daemon.client().fetch(origin.url("m/"))) == FILES

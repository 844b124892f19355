"""What a user other than the daemon's own may have it fetch: what the public internet shows."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.origin import Origin
from fakes.running import python

NOBODY = 65534
AS_NOBODY = """
import os, sys
import ckptd.client, ckptd.fetching, ckptd.link.connection
from ckptd import errors
from ckptd.link.connection import Connection
from ckptd_proto.v1 import blobs_pb2
ckptd.__version__  # loads what another user may not read
os.setgroups([]); os.setgid(65534); os.setuid(65534)

def ask(ref, sha256="", offline=False):
    request = blobs_pb2.FetchRequest(ref=ref, sha256=sha256, offline=offline)
    try:
        found = Connection.open().call(lambda stubs: stubs.blobs.Find(request))
        if found.HasField("blob"):
            print("found", found.blob.path)
        for event in Connection.open().call(lambda stubs: list(stubs.blobs.Fetch(request))):
            if event.HasField("blob"):
                print("got", event.blob.path, event.blob.size_bytes)
    except errors.CkptdError as error:
        print(type(error).__name__, error)
"""
PRIVATE = "PermissionDenied"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def shared(short_path: Path) -> Iterator[Daemon]:
    """A daemon that another user may call, and that reads below `roots` for it."""
    short_path.chmod(0o755)
    root = short_path / "root"
    root.mkdir()
    settings = {"allow_uids": NOBODY, "read_roots": root}
    with Daemon(short_path / "d", **settings) as running:
        yield running


def asked(daemon: Daemon, *arguments: str) -> list[str]:
    code = AS_NOBODY + "".join(f"ask({argument})\n" for argument in arguments)
    return python(code, env=daemon.env).splitlines()


def test_a_private_address_is_refused_by_any_name_and_way(shared: Daemon, origin: Origin) -> None:
    origin.put("model", b"secret")
    origin.redirect("away", origin.url("model"))
    port = origin.port
    urls = [
        origin.url("model"),
        origin.url("away"),
        f"http://localhost:{port}/model",
        f"http://[::ffff:127.0.0.1]:{port}/model",
        f"http://0.0.0.0:{port}/model",
        f"http://[::]:{port}/model",
        f"http://[64:ff9b::127.0.0.1]:{port}/model",
        f"http://user:word@127.0.0.1:{port}/model",
        "http://169.254.169.254/latest/meta-data/",
    ]
    for answer in asked(shared, *map(repr, urls)):
        assert answer.startswith(PRIVATE), answer
        assert "private address" in answer
    for odd in ("127.1", "0177.0.0.1", "0x7f000001", "2130706433", "127.0.0.1."):
        (answer,) = asked(shared, repr(f"http://{odd}:{port}/model"))
        assert answer.startswith((PRIVATE, "InvalidArgument")), answer
    assert origin.requests == []


def test_what_the_owner_fetched_from_there_is_handed_to_nobody_else(
    shared: Daemon, origin: Origin
) -> None:
    url = origin.url("model")
    origin.put("model", b"secret")
    known = hashlib.sha256(b"secret").hexdigest()
    path = shared.client().fetch(url, keep_s=60, sha256=known)
    answers = asked(shared, f"{url!r}", f"{url!r}, sha256={known!r}", f"{url!r}, offline=True")
    assert [answer.split()[0] for answer in answers] == [PRIVATE] * 3
    read = f"open({str(path)!r}).read()"
    code = f"{AS_NOBODY}\ntry:\n    {read}\nexcept PermissionError: print('closed')"
    assert python(code, env=shared.env).strip() == "closed"


PUBLIC = """
import hashlib, subprocess, sys
from pathlib import Path
from fakes.daemon import Daemon
from fakes.origin import Origin
from fetch.test_rights import AS_NOBODY, asked
data = bytes(range(256)) * (1 << 17)
with Origin("93.184.216.34") as public, Origin() as private:
    with Daemon(Path(sys.argv[1]), allow_uids=65534) as daemon:
        public.put("model", data)
        private.put("secret", b"secret")
        public.redirect("away", private.url("secret"))
        url = public.url("model")
        code = AS_NOBODY + f"print(len(ckptd.fetch({url!r}).read_bytes()))"
        out = subprocess.run([sys.executable, "-c", code], env=daemon.env, check=True,
                             capture_output=True, text=True).stdout
        print(int(out) == len(data))
        print(daemon.client().fetch(url).read_bytes() == data, public.has_sent_once(len(data)))
        print(asked(daemon, repr(public.url("away")))[0])
        print(daemon.client().fetch(public.url("away")).read_bytes() == b"secret")
"""


def test_a_public_address_serves_all_users_with_one_transfer_but_leads_nowhere_private(
    short_path: Path,
) -> None:
    short_path.chmod(0o755)
    up = "ip link set lo up && ip addr add 93.184.216.34/32 dev lo && exec"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f'{up} "$@"', "", sys.executable, "-c", PUBLIC, short_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[1], lines[3]) == ("True", "True True", "True"), lines
    assert lines[2].startswith(PRIVATE)


NETRC = """
import sys
from pathlib import Path
from fakes.daemon import Daemon
from fakes.origin import Origin
from fetch.test_rights import AS_NOBODY, asked
with Origin("93.184.216.34") as public:
    public.put("model", b"data")
    with Daemon(Path(sys.argv[1]), allow_uids=65534) as daemon:
        url = public.url("model")
        mine = daemon.client().fetch(url)
        print(public.headers[-1].get("Authorization"))
        count = len(public.headers)
        print(asked(daemon, repr(url)))
        print([each.get("Authorization") for each in public.headers[count:]])
        print(str(mine) in asked(daemon, repr(url))[0])
"""
REBINDING = """
import os, sys
from pathlib import Path
from fakes.daemon import Daemon
from fakes.origin import Fault, Origin
from fetch.test_rights import asked
hosts = Path("/etc/hosts")
data = bytes(17 << 20)
with Origin("93.184.216.34") as public, Daemon(Path(sys.argv[1]), allow_uids=65534) as daemon:
    secret = Origin()
    secret.port = public.port
    with secret:
        hosts.write_text("93.184.216.34 model.example\\n")
        public.put("a", data).lasting = Fault.ONE_SHOT  # no connection is there to be used again
        url = f"http://model.example:{public.port}/"
        print(asked(daemon, repr(url + "a"))[0].split()[0])
        public.put("b", data).lasting = Fault.ONE_SHOT
        secret.put("b", data)
        hosts.write_text("127.0.0.1 model.example\\n")
        print(asked(daemon, repr(url + "b"))[0].split()[0])
        print(secret.requests)
"""


def in_a_network_of_its_own(code: str, directory: Path, *, prepare: str = "true") -> list[str]:
    """Run *code* where 93.184.216.34 is ours; return what it prints."""
    directory.chmod(0o755)
    up = "ip link set lo up && ip addr add 93.184.216.34/32 dev lo"
    done = subprocess.run(
        ["unshare", "-nm", "sh", "-c", f'{up} && {prepare} && exec "$@"', "", sys.executable, "-c",
         code, directory / "d"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_passwords_of_the_daemons_user_are_for_nobody_else(short_path: Path) -> None:
    netrc = short_path / ".netrc"
    netrc.write_text("machine 93.184.216.34 login reader password word\n")
    netrc.chmod(0o600)
    mine, other, sent, is_same = in_a_network_of_its_own(NETRC, short_path)
    assert mine.startswith("Basic ")
    assert other.startswith("['got")
    assert set(sent.strip("[]").split(", ")) == {"None"}
    assert is_same == "False"


def test_a_name_that_comes_to_mean_a_private_address_leads_nowhere(short_path: Path) -> None:
    mine = short_path / "hosts"
    mine.touch()
    prepare = f"mount --bind {mine} /etc/hosts"
    first, second, secret = in_a_network_of_its_own(REBINDING, short_path, prepare=prepare)
    assert first == "got"
    assert second in {PRIVATE, "Aborted"}
    assert secret == "[]"


def test_files_are_looked_at_below_the_read_roots_and_over_no_link(shared: Daemon) -> None:
    root = shared.directory.parent / "root"
    (root / "in").write_bytes(b"data")
    outside = shared.directory.parent / "outside"
    outside.write_bytes(b"hidden")
    (root / "link").symlink_to(outside)
    (root / "dir").symlink_to(root.parent)
    sha256 = hashlib.sha256(b"hidden").hexdigest()
    answers = asked(
        shared,
        f"'{root}/in'",
        f"'{outside}'",
        f"'{root}/../outside'",
        f"'{root}/link'",
        f"'{root}/dir/outside', sha256={sha256!r}",
        f"'{root}/none'",
    )
    assert answers[0] == f"got {root}/in 4"
    assert [answer.split()[0] for answer in answers[1:]] == [PRIVATE] * 4 + ["NotFound"]


def test_another_user_clears_neither_cache_nor_leases(shared: Daemon, origin: Origin) -> None:
    origin.put("model", b"data")
    shared.client().fetch(origin.url("model"))
    (blob,) = shared.client().blobs()
    (lease,) = (shared.state_dir / "cache" / "leases").glob("*.json")
    code = f"""
connection = Connection.open()
connection.call(lambda stubs: stubs.blobs.Release(blobs_pb2.ReleaseRequest(lease={lease.stem!r})))
try:
    ckptd.client.Client().remove_blob({blob.key!r})
except errors.PermissionDenied as error:
    print(error)
"""
    assert "only user 0" in python(AS_NOBODY + code, env=shared.env)
    assert shared.client().blobs()[0].leases == 1


def test_a_client_that_sees_other_files_than_the_daemon_is_told_both(
    daemon: Daemon, origin: Origin
) -> None:
    origin.put("model", b"data")
    path = daemon.client().fetch(origin.url("model"))
    code = f"""
import ckptd
try:
    ckptd.fetch({origin.url("model")!r})
except ckptd.errors.FailedPrecondition as error:
    print(error)
"""
    over = f'mount -t tmpfs none "{path.parent}" && {{ echo other > "{path}"; exec "$@"; }}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", over, "", sys.executable, "-c", code],
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = path.stat()
    assert f"device {found.st_dev} inode {found.st_ino} for the daemon" in done.stdout
    assert "they see different files" in done.stdout

"""Ranks of a training job: real processes, by torchrun or one by one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FINISHED_S = 180.0
_TESTS = Path(__file__).parents[1]


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return what a rank runs in: warnings are failures, and programs may use what tests do."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::ResourceWarning"}
    return {**env, **own, "PYTHONPATH": str(_TESTS)}


def torchrun(program: Path, *arguments: object, ranks: int, env: Mapping[str, str]) -> str:
    """Run *program* on *ranks* ranks and return what they printed; raises if one failed."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        f"--nproc-per-node={ranks}",
        *(str(program), *map(str, arguments)),
    ]
    done = subprocess.run(
        command,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=FINISHED_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start(
    program: Path,
    *arguments: object,
    ranks: int,
    env: Mapping[str, str],
    sockets: Sequence[Path] = (),
) -> list[subprocess.Popen[str]]:
    """Start *program* as *ranks* ranks without a launcher that would end the others of one.

    Each has the daemon at its one of *sockets*, if there are any.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, str(program), *map(str, arguments)],
            env=environment(env)
            | world
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            | ({"CKPTD_SOCKET": str(sockets[rank])} if sockets else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for all of them and return what each printed; raises if one failed by itself."""
    said = [process.communicate(timeout=FINISHED_S)[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode in (0, -9), text
    return said

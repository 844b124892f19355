"""Attempts whose ranks are on several nodes: they commit together, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.link.connection import Connection
from ckptd.saving.keeping import Address, suspect
from ckptd_proto import errors
from fakes.cluster import Cluster, cluster
from fakes.waiting import eventually


@pytest.fixture
def two(short_path: Path, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(short_path, tmp_path, 2) as nodes:
        yield nodes


def test_what_the_ranks_of_two_nodes_staged_becomes_one_step(two: Cluster) -> None:
    two.save(0)
    assert two.is_whole()
    eventually(lambda: two.left() == [])
    eventually(lambda: not (two.run / "step-7" / ".receipts").exists())


def test_nothing_is_there_while_one_node_has_not_staged(two: Cluster) -> None:
    two.stage(0)
    two.seal(only=[0])
    two.watch(only=[0])
    eventually(lambda: list(two.run.glob(".attempts/*/.receipts/*.json")))
    assert two.steps() == []
    two.seal(only=[1])
    assert two.told(only=[0])[0]["state"] == "COMMITTED"
    assert two.is_whole()


def test_a_rank_that_dies_before_it_sealed_ends_the_save_on_every_node_by_name(
    two: Cluster,
) -> None:
    two.stage(0)
    two.seal(only=[0])
    two.watch(only=[0])
    two.ranks[1].kill()
    (told,) = two.told(only=[0])
    assert (told["state"], told["error"]) == ("ABORTED", "Aborted")
    assert f"rank 1 (pid {two.ranks[1].pid}) died before it had staged step 7" in told["reason"]
    assert two.steps() == []


def test_ranks_that_died_after_all_had_sealed_lose_nothing(two: Cluster) -> None:
    two.stage(0)
    two.seal()
    for rank in two.ranks:
        rank.kill()
    eventually(lambda: two.steps() == [7])
    assert two.is_whole()


def test_a_step_that_others_have_committed_is_refused_on_every_node(two: Cluster) -> None:
    two.save(0)
    with pytest.raises(errors.AlreadyExists, match="step-7 is committed already"):
        two.open(1, 7, plan_hash="another")
    assert two.is_whole()


def test_a_step_is_replaced_by_all_nodes_together(two: Cluster) -> None:
    two.save(0)
    two.save(1, salt="new", replace=True)
    assert two.is_whole(salt="new")
    eventually(lambda: two.left() == [])


def test_a_step_whose_manifest_is_damaged_is_replaced_by_all(two: Cluster) -> None:
    two.save(0)
    (two.run / "step-7" / "manifest.json").write_bytes(b"")
    two.save(1, salt="new")
    assert two.is_whole(salt="new")
    eventually(lambda: two.left() == [])


def test_a_step_that_one_node_knows_to_be_corrupt_is_replaced_by_all(two: Cluster) -> None:
    attempt = two.save(0)
    image = two.run / "step-7" / "__1_0.distcp"
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    connection = Connection.open(two.daemons[1].socket)
    assert suspect(connection, Address(two.root, "e", "r", 7), attempt, image.name, 0)
    two.save(1, salt="new")
    assert two.is_whole(salt="new")
    eventually(lambda: two.left() == [])
    eventually(lambda: not list((two.run / ".corrupt").iterdir()))

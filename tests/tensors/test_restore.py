"""What a state asks of a checkpoint is looked at before anything is changed."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ckptd.saving.exchange import ProcessGroup
from ckptd.tensors import index, load, local, plan, stage, values
from ckptd.tensors.copying import Copying
from ckptd.tensors.images import Images
from ckptd.tensors.index import Index, Range
from ckptd.tensors.restore import Restore
from ckptd.tensors.tree import Tree
from ckptd.tensors.values import Encoder
from ckptd_proto import errors
from ckptd_proto.crc import crc32c


def asked(state: Any, saved: Any) -> Restore:
    taken = local.take(saved, Encoder())
    found = Index.decode(index.encode(plan.agree([taken.plan])), where="here")
    return Restore(state, found, lambda name: values.decode(bytes(taken.sources[name, ()])))


ENDLESS: dict[str, Any] = {"x": 1}
ENDLESS["again"] = [ENDLESS]
ROUND: list[Any] = [{}]
ROUND.append(ROUND)


@pytest.mark.parametrize("endless", [ENDLESS, ROUND], ids=["dict", "list"])
def test_a_value_that_contains_itself_is_refused_by_its_key(endless: Any) -> None:
    state = {"fine": 1, "loop": endless}
    with pytest.raises(errors.InvalidArgument, match="'loop' of the state contains itself"):
        local.take(state, Encoder())
    with pytest.raises(errors.InvalidArgument, match="'loop' of the state contains itself"):
        Restore(state, Index({}, {}, Tree([])), lambda name: None)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (torch.zeros(1).expand(3), "w is expanded here.*clone"),
        (torch.zeros(3, device="meta"), "w is on the meta device here.*to_empty"),
        (torch.zeros(3).to_sparse(), "w is torch.sparse_coo here"),
    ],
    ids=["expanded", "meta", "sparse"],
)
def test_a_tensor_that_cannot_be_filled_is_told_before_anything_is(target: Any, said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said):
        asked({"w": target}, {"w": torch.ones(3)}).check()


def test_an_inference_tensor_can_only_be_filled_in_inference_mode() -> None:
    with torch.inference_mode():
        target = torch.zeros(3)
        asked({"w": target}, {"w": torch.ones(3)}).check()
    with pytest.raises(errors.InvalidArgument, match="w is an inference tensor here"):
        asked({"w": target}, {"w": torch.ones(3)}).check()


def test_the_work_of_asking_grows_with_a_module_and_not_with_its_square() -> None:
    def wide(count: int) -> nn.Module:
        module = nn.Module()
        for number in range(count):
            module.register_buffer(f"b{number}", torch.zeros(1))
        return module

    small, large = wide(100), wide(1000)
    calls = [count_calls(lambda m=module: asked({"m": m}, {"m": m})) for module in (small, large)]
    assert calls[1] < 20 * calls[0]


def count_calls(act: Any) -> int:
    calls = 0

    def look(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(look)
    try:
        act()
    finally:
        sys.setprofile(None)
    return calls


def test_parts_that_a_module_lacks_are_listed_and_those_below_its_own_are_not() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"deep": {"er": torch.ones(1)}, "n": 1}

        def set_extra_state(self, state: Any) -> None:
            assert state

    asked({"m": Extra(1, 1)}, {"m": Extra(1, 1)}).check()
    with pytest.raises(errors.InvalidArgument, match=r"m\.bias is saved, and the module has no"):
        asked({"m": nn.Linear(1, 1, bias=False)}, {"m": nn.Linear(1, 1)}).check()


def test_no_tensor_of_ours_follows_the_default_device() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.set_default_device("meta")
    try:
        value = (torch.ones(2, device="cpu"), 1)
        saved = {"w": torch.arange(3.0, device="cpu"), "v": value}
        restore = asked({"w": torch.zeros(3, device="cpu"), "v": None}, saved)
        fresh = asked({"all": None}, {"all": {"w": saved["w"]}})
        gathered = ProcessGroup(10.0).all_gather(b"abc")
    finally:
        torch.set_default_device("cpu")
        dist.destroy_process_group()
    restore.check()
    assert fresh.wishes
    assert all(wish.target.is_cpu for wish in [*restore.wishes, *fresh.wishes])
    assert gathered == [b"abc"]


def committed(directory: Path, name: str, data: bytes) -> Images:
    """Write *data* as an image that a manifest vouches for."""
    sums = {"format": 1, "size_bytes": len(data), "chunk_bytes": 4 << 20, "crc32c": [crc32c(data)]}
    written = json.dumps(sums).encode()
    held = {name: {"size_bytes": len(data), "sums_sha256": hashlib.sha256(written).hexdigest()}}
    (directory / name).write_bytes(data)
    (directory / f"{name}.sums").write_bytes(written)
    manifest = {"format": 1, "attempt": "a", "images": held}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return Images.open(directory, "a")


@pytest.mark.parametrize("data", [b"", b"garbage", values.encode("k", {"a": 1})[:-200]])
def test_bytes_that_are_no_value_are_data_loss_that_names_them(tmp_path: Path, data: bytes) -> None:
    where = Range("image", 0, len(data))
    held = committed(tmp_path, "image", data)
    with pytest.raises(errors.DataLoss, match=r"'seed' in image cannot be read"):
        load.read_object(held, Index({}, {"seed": where}, Tree([])), "seed")


def test_inference_tensors_are_filled_in_inference_mode(tmp_path: Path) -> None:
    saved = {"w": torch.arange(3.0)}
    taken = local.take(saved, Encoder())
    agreed = plan.agree([taken.plan])
    image = bytearray(agreed.images[0][plan.image_name(0)])
    stage.fill(memoryview(image), agreed.placed, taken.sources, Copying(()))
    held = committed(tmp_path, plan.image_name(0), bytes(image))
    with torch.inference_mode():
        target = {"w": torch.zeros(3)}
        restore = asked(target, saved)
        load.fill(held, load.pieces(restore.wishes))
    assert target["w"].tolist() == [0, 1, 2]


def filled(directory: Path, state: Any, saved: Any) -> None:
    """Fill *state* with what *saved* was, by way of an image in *directory*."""
    taken = local.take(saved, Encoder())
    agreed = plan.agree([taken.plan])
    image = bytearray(agreed.images[0][plan.image_name(0)])
    stage.fill(memoryview(image), agreed.placed, taken.sources, Copying(()))
    held = committed(directory, plan.image_name(0), bytes(image))
    restore = asked(state, saved)
    restore.check()
    load.fill(held, load.pieces(restore.wishes))
    restore.finish()


def training(dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, Any]:
    """A state that has taken a step."""
    net = nn.Linear(5, 3, dtype=dtype)
    optimizer = torch.optim.AdamW(net.parameters(), **settings)
    net(torch.ones(1, 5, dtype=dtype)).sum().backward()
    optimizer.step()
    return {"net": net, "opt": optimizer}


def held_of(state: dict[str, Any]) -> list[torch.Tensor]:
    return [value for each in state["opt"].state.values() for value in each.values()]


@pytest.mark.parametrize("is_named", [True, False], ids=["with its module", "alone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_optimizer_keeps_is_filled_where_it_is(
    tmp_path: Path, is_named: bool, dtype: torch.dtype
) -> None:
    saved, state = training(dtype, fused=True), training(dtype, fused=True)
    for value in held_of(state):
        value.add_(1)
    before, versions = held_of(state), [value._version for value in held_of(state)]
    if is_named:
        filled(tmp_path, state, saved)
    else:
        filled(tmp_path, {"opt": state["opt"]}, {"opt": saved["opt"]})
    for old, version, now, kept in zip(
        before, versions, held_of(state), held_of(saved), strict=True
    ):
        assert now is old, "there was no second one, for a moment as large as the first"
        assert torch.equal(now, kept)
        assert now._version > version


def test_what_an_optimizer_keeps_in_another_shape_or_in_memory_of_others_is_made_anew(
    tmp_path: Path,
) -> None:
    saved, state = training(), training()
    optimizer, weight = state["opt"], state["net"].weight
    of_weight, of_bias = optimizer.state[weight], optimizer.state[state["net"].bias]
    of_weight["exp_avg"] = weight.detach()
    of_weight["exp_avg_sq"] = torch.zeros(2)
    of_bias["exp_avg_sq"] = of_bias["exp_avg"]
    filled(tmp_path, state, saved)
    for now, kept in zip(held_of(state), held_of(saved), strict=True):
        assert torch.equal(now, kept)
    assert torch.equal(weight, saved["net"].weight)
    assert len({value.data_ptr() for value in [*held_of(state), weight]}) == 7


def test_a_fresh_optimizer_gets_its_state_on_the_device_of_its_parameters() -> None:
    saved = training()
    net = nn.Linear(5, 3, device="meta")
    restore = asked({"net": net, "opt": torch.optim.AdamW(net.parameters())}, saved)
    with pytest.raises(errors.InvalidArgument) as refused:
        restore.check()
    said = str(refused.value)
    assert "opt.state.weight.exp_avg_sq is on the meta device here" in said
    assert "opt.state.weight.step" not in said

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ckptd.saving.kept import Kept
from ckptd.tensors import plan, stage
from ckptd.tensors.local import take
from ckptd.tensors.plan import image_name
from ckptd.tensors.values import Encoder

STILL = image_name(0, still=True)
SLOT = "s"


class Saves:
    """Saves of one frozen layer into one slot."""

    def __init__(self) -> None:
        self.net = torch.nn.Linear(300, 400).requires_grad_(False)
        self.kept = Kept()
        self.memory = bytearray()

    def save(self, *, shift: int = 0, mapped: str = SLOT) -> bool:
        """Fill the image and say whether anything was copied; it is right in any case."""
        local = take({"net": self.net}, Encoder())
        agreed = plan.agree([local.plan])
        size = agreed.images[0][STILL]
        self.memory = self.memory or bytearray(size)
        self.kept.begin(SLOT, ((STILL, shift, size),), [mapped])
        pieces = agreed.of_rank(0)
        image = memoryview(self.memory)
        was_copied = self.kept.fill(SLOT, STILL, image, pieces, local.sources)
        expected = bytearray(size)
        stage.fill(memoryview(expected), pieces, local.sources)
        assert self.memory == expected
        return was_copied


@pytest.fixture
def saves() -> Saves:
    one = Saves()
    assert one.save()
    return one


def test_what_is_frozen_and_there_is_not_copied_again(saves: Saves) -> None:
    assert not saves.save()
    assert not saves.save()


def in_place(saves: Saves) -> None:
    saves.net.weight[7, 7] += 1


def past_the_count(saves: Saves) -> None:
    saves.net.weight.data.mul_(1.001)


def past_the_count_and_small(saves: Saves) -> None:
    saves.net.bias.data[3] = 5


def another_tensor(saves: Saves) -> None:
    saves.net.weight = torch.nn.Parameter(saves.net.weight * 2, requires_grad=False)


def another_storage(saves: Saves) -> None:
    saves.net.weight.data = saves.net.weight.data * 2


def memory_given_back(saves: Saves) -> None:
    saves.memory[:] = bytes(len(saves.memory))


@pytest.mark.parametrize(
    "change",
    [in_place, past_the_count, past_the_count_and_small, another_tensor, another_storage,
     memory_given_back],
)  # fmt: skip
def test_what_has_changed_after_all_is_copied(
    saves: Saves, change: Callable[[Saves], None]
) -> None:
    change(saves)
    assert saves.save()
    assert not saves.save()


def test_memory_that_was_given_back_under_a_tensor_of_zeros_is_filled(saves: Saves) -> None:
    saves.net.weight.zero_()
    saves.net.bias.zero_()
    assert saves.save()
    memory_given_back(saves)
    assert saves.save()


def test_a_slot_that_is_laid_out_otherwise_holds_nothing(saves: Saves) -> None:
    assert saves.save(shift=4096)
    assert not saves.save(shift=4096)


def test_a_slot_that_was_unmapped_holds_nothing(saves: Saves) -> None:
    saves.kept.begin("other", ((STILL, 0, 1),), ["other"])
    assert saves.save()


def test_what_is_trained_is_always_copied(saves: Saves) -> None:
    net = torch.nn.Linear(3, 3)
    local = take({"net": net}, Encoder())
    agreed = plan.agree([local.plan])
    (name,) = agreed.images[0]
    memory = memoryview(bytearray(agreed.images[0][name]))
    for _ in range(2):
        saves.kept.begin(SLOT, ((name, 0, len(memory)),), [SLOT])
        assert saves.kept.fill(SLOT, name, memory, agreed.of_rank(0), local.sources)


def test_a_copy_that_failed_halfway_is_made_again(
    saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    in_place(saves)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "fill", fails)
        with pytest.raises(MemoryError):
            saves.save()
    assert saves.save()

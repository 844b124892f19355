from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.save.attempts import Image
from ckptd_daemon.save.commit.proof import CHUNK_BYTES, Receipt, check_complete, prove
from ckptd_proto import errors

plans = st.dictionaries(
    st.text(min_size=1, max_size=4), st.integers(0, 3 * CHUNK_BYTES), min_size=1
)


def receipts_of(plan: dict[str, int]) -> list[Receipt]:
    return [
        Receipt(Image(name, size), "plan", "sum", -(-size // CHUNK_BYTES))
        for name, size in plan.items()
    ]


def images_of(plan: dict[str, int]) -> list[Image]:
    return [Image(name, size) for name, size in plan.items()]


@given(plans, st.randoms())
def test_the_plan_in_any_order_is_proven(plan: dict[str, int], random: st.Random) -> None:
    receipts = receipts_of(plan)
    random.shuffle(receipts)
    assert set(prove(images_of(plan), "plan", receipts)) == set(plan)


@given(plans, st.data())
def test_anything_missing_or_extra_or_twice_is_refused(
    plan: dict[str, int], data: st.DataObject
) -> None:
    receipts = receipts_of(plan)
    one = data.draw(st.sampled_from(receipts))
    others = [receipt for receipt in receipts if receipt is not one]
    longer = replace(one, image=Image(one.image.name, one.image.size_bytes + 1))
    renamed = replace(one, image=Image(one.image.name + "xxxxx", one.image.size_bytes))
    for wrong in (others, [*receipts, one], [*others, longer], [*receipts, renamed]):
        with pytest.raises(errors.InvalidArgument):
            prove(images_of(plan), "plan", wrong)


@given(plans, st.data())
def test_a_receipt_of_another_plan_or_without_sums_is_refused(
    plan: dict[str, int], data: st.DataObject
) -> None:
    receipts = receipts_of(plan)
    one = data.draw(st.sampled_from(receipts))
    others = [receipt for receipt in receipts if receipt is not one]
    for wrong in (
        replace(one, plan_hash="other"),
        replace(one, sums_sha256=""),
        replace(one, chunks=one.chunks + 1),
    ):
        with pytest.raises(errors.DataLoss):
            prove(images_of(plan), "plan", [*others, wrong])


def test_a_plan_that_names_an_image_twice_is_refused() -> None:
    image = Image("a", 1)
    with pytest.raises(errors.InvalidArgument, match="twice a"):
        check_complete([image, image], [image])


def test_no_plan_proves_nothing() -> None:
    with pytest.raises(errors.InvalidArgument, match="without a plan"):
        check_complete(None, [])


def test_the_refusal_names_a_few_and_counts_the_rest() -> None:
    plan = [Image(f"i{number}", 1) for number in range(9)]
    with pytest.raises(errors.InvalidArgument, match="missing i0, i1, i2 and 6 more"):
        check_complete(plan, [])

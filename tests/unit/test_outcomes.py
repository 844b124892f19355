"""What becomes of saves is told once and wholly; what is loaded is what was agreed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckptd.saving.failing import Failures, SaveFailed
from ckptd.saving.save import Save
from ckptd.tensors.images import Images
from ckptd.values import Checkpoint
from ckptd_proto import errors


def failed(step: int) -> Save:
    save = Save(step)
    save.fail(errors.Aborted(f"step {step} failed"))
    return save


def test_failures_that_nobody_has_heard_of_are_told_together_and_once() -> None:
    saves = [failed(1), Save(2), failed(3)]
    with pytest.raises(errors.Aborted, match="step 1 failed") as told:
        Failures("fail").judge(saves)
    assert told.value.__notes__ == ["besides: step 3 failed"]
    Failures("fail").judge(saves)


def test_a_failure_that_was_asked_for_is_not_told_again() -> None:
    save = failed(1)
    with pytest.raises(errors.Aborted):
        save.result(0)
    Failures("fail").judge([save])


def test_images_that_another_save_has_put_there_are_not_loaded(tmp_path: Path) -> None:
    manifest = {"format": 1, "attempt": "new", "images": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    Images.open(tmp_path, "new")
    with pytest.raises(errors.Aborted, match=r"replaced by attempt new .* load again"):
        Images.open(tmp_path, "old")


FULL = errors.ResourceExhausted("no room")


def ended(*failures: errors.CkptdError | None) -> list[Save]:
    saves = [Save(step) for step, _ in enumerate(failures)]
    for save, failure in zip(saves, failures, strict=True):
        if failure is not None:
            save.fail(failure)
        else:
            save.succeed(Checkpoint(Path("/c"), "e", "r", 1, "u", 0, {}, 0.0))
    return saves


def test_a_job_that_asks_to_be_warned_goes_on() -> None:
    failures = Failures("warn")
    for _ in range(5):
        with pytest.warns(SaveFailed, match="no room"):
            failures.judge(ended(FULL))


def test_a_number_of_failures_in_a_row_is_one_too_many() -> None:
    failures = Failures(3)
    with pytest.warns(SaveFailed):
        failures.judge(ended(FULL, FULL, None, FULL, FULL))
    with pytest.raises(errors.ResourceExhausted) as caught:
        failures.judge(ended(FULL))
    assert caught.value.__notes__ == ["3 saves failed one after another"]


def test_a_mistake_in_the_call_is_never_only_a_warning() -> None:
    assert not Failures("warn").tolerates_call(errors.InvalidArgument("no such step"))
    with pytest.warns(SaveFailed):
        assert Failures("warn").tolerates_call(FULL)


def test_what_somebody_has_asked_about_is_not_told_again() -> None:
    (save,) = ended(FULL)
    with pytest.raises(errors.ResourceExhausted):
        save.result()
    Failures(1).judge([save])


@pytest.mark.parametrize("policy", ["stop", 0, -1, True, None, 1.5])
def test_a_policy_that_is_none_is_refused(policy: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="on_failure"):
        Failures(policy)

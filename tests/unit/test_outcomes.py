"""What becomes of saves is told once and wholly; what is loaded is what was agreed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptd.saving.save import Save, raise_untold
from ckptd.tensors.images import Images
from ckptd_proto import errors


def failed(step: int) -> Save:
    save = Save(step)
    save.fail(errors.Aborted(f"step {step} failed"))
    return save


def test_failures_that_nobody_has_heard_of_are_told_together_and_once() -> None:
    saves = [failed(1), Save(2), failed(3)]
    with pytest.raises(errors.Aborted, match="step 1 failed") as told:
        raise_untold(saves)
    assert told.value.__notes__ == ["besides: step 3 failed"]
    raise_untold(saves)


def test_a_failure_that_was_asked_for_is_not_told_again() -> None:
    save = failed(1)
    with pytest.raises(errors.Aborted):
        save.result(0)
    raise_untold([save])


def test_images_that_another_save_has_put_there_are_not_loaded(tmp_path: Path) -> None:
    manifest = {"format": 1, "attempt": "new", "images": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    Images.open(tmp_path, "new")
    with pytest.raises(errors.Aborted, match=r"replaced by attempt new .* load again"):
        Images.open(tmp_path, "old")

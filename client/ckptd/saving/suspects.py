"""Has the node's daemon know what was found corrupt, so that no later life of the run begins with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from ckptd.link.connection import Connection
from ckptd.saving.keeping import Address, suspect
from ckptd_proto import errors

logger = logging.getLogger(__name__)


def tell(
    opened: Callable[[], Connection],
    address: Address,
    uuid: str,
    suspects: Mapping[str, int | None],
) -> bool:
    """Tell of images of attempt *uuid*, and the chunk of each that is bad; say whether it is noted.

    Never fails: where no daemon is at hand, or may not write there, this is logged, and whoever
    loads the step next finds out for himself.
    """
    is_noted = False
    for file, chunk in suspects.items():
        path = Path(address.experiment, address.run, f"step-{address.step}", file)
        try:
            found = suspect(opened(), address, uuid, file, chunk)
        except errors.CkptdError as error:
            text = "%s is corrupt and nobody could note it; the next load reads it again: %s"
            logger.warning(text, path, error)
            continue
        is_noted |= found is not None
        if found is None:
            logger.warning("the daemon reads %s as it was saved: it counts as good", path)
    return is_noted

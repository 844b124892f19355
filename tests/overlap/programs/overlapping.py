"""A rank whose copy goes on beside the training; a test ends it, or it ends by itself.

Says `saved` once `save()` has returned, and what `result()` gave, in notes of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import torch
from torch import nn

import ckptd
from ckptd.tensors import streams
from fakes.notes import tell
from fakes.streams import ThreadStream
from fakes.waiting import eventually, is_somebody_in

root, what, notes = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
rank = int(os.environ["RANK"])


def release_late() -> None:
    """Let the copy begin when Python is on its way out, and has nobody but threads to wait for."""
    eventually(lambda: is_somebody_in("_shutdown"), timeout_s=60)
    stream.release()


torch.manual_seed(rank)
model = nn.Linear(300, 300)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
stream = ThreadStream()
streams.offer("cpu", lambda _: stream)
ckpt = ckptd.Checkpointer(root, experiment="e", run=what, timeout=60)
ckpt.save({"first": 1}, step=7).result(50)
if rank == 1 or what == "leaves":
    stream.hold()
save = ckpt.save({f"model.{rank}": model, f"optimizer.{rank}": optimizer}, step=8)
tell(notes, "saved", os.getpid())
if what == "leaves":
    threading.Thread(target=release_late).start()
    sys.exit()
try:
    save.result(50)
except ckptd.errors.Aborted as error:
    tell(notes, "refused", error)
signal.pause()

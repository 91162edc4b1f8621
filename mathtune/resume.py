"""What a training job goes on from: the newest whole checkpoint that belongs to it, and the examples after that."""

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mathtune import __version__
from mathtune.adapters import WEIGHTS, adapter_digest
from mathtune.checkpoints import Checkpoint, Checkpoints, best_step
from mathtune.curves import training_curve
from mathtune.devices import Compute
from mathtune.errors import ModelError
from mathtune.events import Emit
from mathtune.folders import open_folders
from mathtune.jobs import GrpoJob, SftJob
from mathtune.journal import Journal
from mathtune.models import Base
from mathtune.order import Order
from mathtune.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Run:
    """What a training job goes on from and reports to, before its trainer exists.

    Attributes:
        checkpoints: of the link that is trained.
        budget: what one forward pass may hold (tokens of SFT, completions of GRPO): as planned, or less where that did not
            fit before.
        resume: the newest whole one; None: from the start.
        order: the examples of every step.
        journal: of every step that is done.
        emit: where events go.
        ranks: that train together.
    """

    checkpoints: Checkpoints
    budget: int
    resume: Checkpoint | None
    order: Order
    journal: Journal
    emit: Emit
    ranks: Ranks

    @property
    def step(self) -> int:
        """The optimizer step from which it goes on."""
        return self.resume.step if self.resume else 0

    @property
    def finished(self) -> dict[str, Any] | None:
        """The outcome of a job that was killed between its last checkpoint and its link; None where steps are left."""
        if self.step < self.order.steps:
            return None
        return self.outcome(self.resume.log_history, load_file(self.resume.folder / WEIGHTS))

    def outcome(self, log_history: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Steps, seconds, curve, and which steps were done twice, beside the adapter's ``tensors``."""
        curve = training_curve(log_history).model_dump(mode="json", exclude_none=True)
        return {"steps": self.order.steps, "seconds": curve["steps"][-1]["seconds"], "best_step": best_step(log_history),
                "curve": curve, "redone": self.journal.redone(), self.journal.unit: self.budget, "tensors": tensors}


@contextmanager
def open_run(job: SftJob | GrpoJob, base: Base, order: Order, emit: Emit, budget: int, smallest: int = 1,
             ranks: Ranks = ALONE) -> Iterator[Run]:
    """Finds the newest whole checkpoint of a job, and holds its scratch folder while it trains. The first rank looks for
    all of them, and it alone keeps the journal.

    Args:
        job, base, order, emit: what is trained, on what, in which order, and where events go.
        budget: what one forward pass may hold, as planned.
        smallest: a budget below it makes nothing smaller.
        ranks: that train together: with the least budget that one of them has.

    Raises:
        ModelError: memory ran out although a forward pass held no more than ``smallest``.
    """
    place = job.checkpoints
    folders = open_folders(place.url, Path(place.cache) if place.cache else None)
    start = adapter_digest(Path(job.start_adapter)) if job.start_adapter else ""
    identity = {"fingerprint": fingerprint(base.compute), "start": start}
    with Checkpoints(folders, place.name, identity, order, emit, ranks) as checkpoints:
        with_best = isinstance(job, SftJob) and job.sft.keep_best
        resume = ranks.from_first(lambda: checkpoints.newest(with_best))
        if resume:
            emit("resumed", step=resume.step)
        packs = isinstance(job, SftJob)
        path = folders.local(f"{place.name}/journal.jsonl") if ranks.first else Path(os.devnull)
        journal = Journal(path, "pack_tokens" if packs else "micro_batch")
        # what the checkpoint was made with, on whatever machine: other packs would end in other bytes
        planned = resume.budget if resume and resume.budget else min(ranks.gather(budget))
        fits = ranks.from_first(lambda: journal.begin(planned, job.halvings if packs else 0, smallest))
        if fits is None:
            raise ModelError(f"the longest example ({smallest} tokens) does not fit the memory, alone in a pack",
                             where="model.max_length", remedy="hardware.recompute=full, a shorter "
                             "model.max_length, or a larger card")
        checkpoints.budget = fits
        yield Run(checkpoints, fits, resume, order, journal, emit, ranks)


def fingerprint(compute: Compute) -> str:
    """What a checkpoint depends on besides the link's key: where and in which dtype it is computed, and the versions."""
    libraries = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
    versions = [f"mathtune {__version__}", *(f"{name} {importlib.metadata.version(name)}" for name in libraries)]
    return ", ".join([compute.device.type, str(compute.dtype), *versions])

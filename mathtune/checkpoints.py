"""Checkpoints inside a chunk: what Trainer saves, published whole under its step, found again only if every byte is right.

Trainer writes in place, unsynced, and takes the newest number unverified: 45 of 61 kills inside a save then ended in an
error although an older one was whole. Here it writes to a scratch folder that nobody reads; what it wrote is published
beside the last two (see ``mathtune.folders``), and only then older ones go. What it unpickles is read ``weights_only``.
"""

import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mathtune.errors import Damaged
from mathtune.events import Emit
from mathtune.files import check_space, disk_errors, make_folder, scratch_name
from mathtune.folders import Folders
from mathtune.order import Order
from mathtune.ranks import ALONE, Ranks

KEPT = 2
STAGE = "checkpoint"
# The first is a pickle and holds hub_token in clear. The last is GRPO's reference, which is the link's adapter, and made of
# it again: where its folder lies, transformers before 5.23 loads it and, without a word, not the policy beside it.
UNWANTED = ("training_args.bin", "README.md", "ref")
STATE_BYTES = 12  # float32 master and Adam's two moments, a parameter


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on this machine: its folder in Trainer's format, the optimizer step it follows, and what a forward
    pass held (None: made before that was noted)."""

    folder: Path
    step: int
    budget: int | None = None

    @property
    def log_history(self) -> list[dict[str, Any]]:
        """What Trainer had logged until then."""
        return json.loads((self.folder / "trainer_state.json").read_text())["log_history"]


class Checkpoints:
    """The checkpoints of one link while it is trained.

    Args:
        folders: where they lie.
        name: prefix of their names.
        identity: what a checkpoint depends on besides the link's key; one with another identity is not gone on from.
        order: the examples of every step.
        emit: where to say what was found and set aside.
        ranks: that train it. All write into the first one's scratch folder; finding and publishing is for the first alone.
    """

    def __init__(self, folders: Folders, name: str, identity: dict[str, str], order: Order, emit: Emit, ranks: Ranks = ALONE):
        self.folders, self.name, self.identity, self.order, self.emit = folders, name, identity, order, emit
        self.ranks = ranks
        self.budget: int | None = None
        self.scratch = folders.local(f"{name}/{scratch_name('.scratch')}")

    def __enter__(self) -> "Checkpoints":
        self.scratch = self.ranks.from_first(self._make_scratch)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ranks.first:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _make_scratch(self) -> Path:
        with disk_errors(self.scratch):
            self.folders.sweep(self.name)
            make_folder(self.scratch.parent)
            self.scratch.mkdir()
        return self.scratch

    def newest(self, with_best: bool = False) -> Checkpoint | None:
        """The newest whole checkpoint that belongs to this training; those before it that do not are set aside and named.

        Args:
            with_best: take none whose best step so far has no whole checkpoint any more.
        """
        found = self.folders.names(self.name)
        for name in reversed(found):
            try:
                published = self.folders.fetch(name)
                if published is None:
                    continue  # another worker's engine has just removed it
                checkpoint = Checkpoint(published.folder, published.manifest["step"], published.manifest.get("budget"))
                reason = self._foreign(published.manifest)
                if with_best and reason is None:
                    self._check_best(checkpoint)
                if reason is None:
                    return checkpoint
            except Damaged as error:
                reason = str(error)
            aside = self.folders.set_aside(name, reason)
            self.emit("notice", text=f"{name.rpartition('/')[2]} set aside as {aside.rpartition('/')[2]}: {reason}")
        if found:
            self.emit("notice", text="no checkpoint of this chunk is whole: it starts again from its parent")
        return None

    def publish(self, step: int) -> int:
        """Publishes what Trainer saved in the scratch folder at this step. Returns its bytes."""
        saved = self.scratch / f"checkpoint-{step}"
        written = 0

        def build(staging: Path) -> dict[str, Any]:
            nonlocal written
            for path in saved.iterdir():
                if path.name not in UNWANTED:
                    written += sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
                    os.rename(path, staging / path.name)
            return {}

        self.folders.publish(self._name(step), build,
                             {"stage": STAGE, "step": step, "budget": self.budget, **self.identity,
                              "place": self.order.place(step)})
        shutil.rmtree(saved)
        return written

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step that was published before.

        Raises:
            Damaged: it is missing or damaged.
        """
        published = self.folders.fetch(self._name(step))
        if published is None:
            raise Damaged("the checkpoint of the best step is gone", where=self._name(step),
                          remedy="run the same command again: the chunk goes on from one before it")
        return Checkpoint(published.folder, step)

    def _check_best(self, checkpoint: Checkpoint) -> None:
        best = best_step(checkpoint.log_history)
        if best not in (None, checkpoint.step):
            self.load(best)

    def keep(self, best: int | None) -> None:
        """Removes all but the last ``KEPT`` and that of step ``best``. By step, not by time: with a clock an hour ahead on
        an old checkpoint every new one was deleted."""
        for name in self.folders.names(self.name)[:-KEPT]:
            if best is None or name != self._name(best):
                self.folders.remove(name)

    def _name(self, step: int) -> str:
        return f"{self.name}/step-{step:08d}"

    def _foreign(self, manifest: dict[str, Any]) -> str | None:
        """Why a whole checkpoint is not one of this training; None if it is."""
        for name, value in self.identity.items():
            if manifest.get(name) != value:
                return f"made with another {name}: {manifest.get(name)}, this is {value}"
        if manifest["place"] != self.order.place(manifest["step"]):
            return "made with other examples or in another order"
        return None


class CheckpointKeeper(TrainerCallback):
    """Asks Trainer for a checkpoint when time is up, on whichever rank, publishes it, and removes older ones.

    Args:
        checkpoints: where to publish.
        minutes: time after which one is due, besides Trainer's own every so many steps.
        parameters: trainable ones, for the room that a checkpoint needs.
    """

    def __init__(self, checkpoints: Checkpoints, minutes: float, parameters: int):
        self.checkpoints, self.ranks, self.seconds = checkpoints, checkpoints.ranks, 60 * minutes
        self.expected_bytes = parameters * STATE_BYTES
        self.last = self.began = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.last = time.monotonic()
        # before anything is computed: room for those that are to be kept, and one in the making
        missing = max(1, KEPT + 1 - len(self.checkpoints.folders.names(self.checkpoints.name)))
        check_space(self.checkpoints.scratch, missing * self.expected_bytes)
        state.compute_steps(args, state.max_steps)  # Trainer would take the intervals of the attempt before

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.ranks.any(time.monotonic() - self.last >= self.seconds):
            control.should_save = True
        # of the last step only the adapter: what goes on from it starts a fresh optimizer, and the next chunk is waiting
        args.save_only_model = state.global_step >= state.max_steps
        if control.should_save:
            self.began = time.monotonic()
            check_space(self.checkpoints.scratch, self.expected_bytes)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.ranks.wait()  # each has saved its random state
        if self.ranks.first:
            self._publish(state)
        self.ranks.wait()  # not in the next step's gradients, for which the others would not wait as long
        self.last = time.monotonic()

    def _publish(self, state: TrainerState) -> None:
        written = self.checkpoints.publish(state.global_step)
        self.checkpoints.keep(best_step(state.log_history))
        seconds = round(time.monotonic() - self.began, 3)
        self.checkpoints.emit("checkpoint", step=state.global_step, bytes=written, seconds=seconds)


def best_step(log_history: list[dict[str, Any]]) -> int | None:
    """The step with the lowest validation loss, the first of equals; None where nothing was evaluated."""
    evaluated = [entry for entry in log_history if math.isfinite(entry.get("eval_loss", math.nan))]
    return min(evaluated, key=lambda entry: entry["eval_loss"])["step"] if evaluated else None

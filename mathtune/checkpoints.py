"""Checkpoints inside a chunk: Trainer's own folders, sealed with a manifest of digests once they are whole.

Only a sealed and verified folder is ever resumed from; a half-written or damaged one is set aside. Trainer takes the
newest number unverified: 45 of 61 kills inside a save then ended in an error although an older one was whole.
"""

import re
import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mathtune.errors import StoreError
from mathtune.events import Emit
from mathtune.store import read_manifest, seal, set_aside

KEPT = 2


def newest_checkpoint(folder: Path, fingerprint: str, emit: Emit) -> Path | None:
    """The newest whole checkpoint in ``folder`` with this fingerprint; others before it are set aside and named."""
    for checkpoint in reversed(_by_step(folder)):
        try:
            made_with = read_manifest(checkpoint)["fingerprint"]
            if made_with == fingerprint:
                return checkpoint
            reason = f"it was made with {made_with}, this is {fingerprint}"
        except StoreError as error:
            reason = str(error)
        emit("phase", text=f"{checkpoint.name} set aside as {set_aside(checkpoint, reason).name}: {reason}")
    return None


class CheckpointKeeper(TrainerCallback):
    """Seals each checkpoint that Trainer saved, then removes older ones: the last two and the best stay.

    ``training_args.bin`` goes before the seal: it is a pickle and holds ``hub_token`` in clear.
    """

    def __init__(self, fingerprint: str, emit: Emit):
        self.fingerprint, self.emit = fingerprint, emit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        folder = Path(args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        for unwanted in ("training_args.bin", "README.md"):
            (checkpoint / unwanted).unlink(missing_ok=True)
        seal(checkpoint, {"step": state.global_step, "fingerprint": self.fingerprint})
        best = Path(state.best_model_checkpoint or "").name
        for old in _by_step(folder)[:-KEPT]:
            if old.name != best:
                shutil.rmtree(old)
        self.emit("checkpoint", step=state.global_step)


def _by_step(folder: Path) -> list[Path]:
    # By step, not by time: with a clock an hour ahead on an old checkpoint every new one was deleted.
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))

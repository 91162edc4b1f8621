"""Tasks that train: a chunk by SFT, a refinement by GRPO."""

from typing import Any

from mathtune.chain import Link
from mathtune.ranges import Range
from mathtune.stages import train
from mathtune.store import Artifact
from mathtune.workspace import Workspace
from tasks.states import run_stage, stage_task


@stage_task("train-chunk[{wanted.start}:{wanted.end})")
def train_chunk(work: Workspace, base: dict[str, Any], parts: Artifact, wanted: Range, allow_gap: bool = False) -> Link:
    """A range → a link of the chain."""
    return run_stage(work, f"train-chunk{wanted}", lambda: train.train_range(work, base, parts, wanted, allow_gap))


@stage_task("grpo")
def grpo(work: Workspace, base: dict[str, Any], parts: Artifact) -> Link:
    """The chain's last SFT link → a GRPO link."""
    return run_stage(work, "grpo", lambda: train.refine(work, base, parts))

"""Tasks of the data stages."""

from typing import Any

from mathtune.stages import data, train
from mathtune.stages import leaks as leaking
from mathtune.store import Artifact
from mathtune.workspace import Workspace
from tasks.states import NETWORK, may_pass, run_stage, stage_task


@stage_task("check-base", retry_condition_fn=may_pass, **NETWORK)
def check_base(work: Workspace) -> dict[str, Any]:
    """Fetches the base if need be and looks at it: tokenizer, label words, digests, device."""
    return run_stage(work, "check-base", lambda: train.inspect_base(work))


@stage_task("download", retry_condition_fn=may_pass, **NETWORK)
def download(work: Workspace) -> Artifact:
    """Source → train and test rows."""
    return run_stage(work, "download", lambda: data.download(work))


@stage_task("balance")
def balance(work: Workspace, raw: Artifact) -> Artifact:
    """Train rows → equal classes."""
    return run_stage(work, "balance", lambda: data.balance(work, raw))


@stage_task("split")
def split(work: Workspace, rows: Artifact, name: str) -> Artifact:
    """Rows → validation rows and training pool."""
    return run_stage(work, "split", lambda: data.split(work, rows, name))


@stage_task("leaks")
def leaks(work: Workspace, raw: Artifact, parts: Artifact) -> Artifact:
    """Training pool, validation and test rows → questions that stand in two of them; exact ones stop the run."""
    return run_stage(work, "leaks", lambda: leaking.leaks(work, raw, parts))


@stage_task("prompt-leaks")
def prompt_leaks(work: Workspace, raw: Artifact, parts: Artifact, before: Artifact) -> Artifact:
    """GRPO's prompts → their questions that are also validation or test questions; exact ones stop the run."""
    return run_stage(work, "prompt-leaks", lambda: leaking.prompt_leaks(work, raw, parts, before))

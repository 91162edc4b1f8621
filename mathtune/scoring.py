"""Scores a model on fixed rows: the verifier's label logits (``mathtune.verifier_scoring``), or the solver's completions
(``mathtune.solver_scoring``). Rows are written in their own order, whatever order they are worked off in.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from mathtune.adapters import load_adapter
from mathtune.events import Emit
from mathtune.jobs import ScoreJob
from mathtune.models import Base, borrowed
from mathtune.prompts import PromptBuilder
from mathtune.solver_scoring import score_solver
from mathtune.verifier_scoring import score_verifier


def score(job: ScoreJob, base: Base, emit: Emit) -> dict[str, Any]:
    """Scores the job's rows and writes them to ``job.output``. Returns rows, shortened prompts and seconds."""
    rows = pq.read_table(job.rows).slice(0, job.limit).to_pylist()
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    began = time.monotonic()
    with scoring_model(base, job.adapter) as model:
        score_rows = score_verifier if job.task == "verifier" else score_solver
        table, shortened = score_rows(job, base, model, builder, rows, emit)
    pq.write_table(table, job.output, compression="zstd")
    return {"rows": len(rows), "shortened": shortened, "seconds": round(time.monotonic() - began, 3)}


@contextmanager
def scoring_model(base: Base, adapter: str | None) -> Iterator[torch.nn.Module]:
    """The base, with the adapter in a folder where one is given, under the compute dtype."""
    with borrowed(base) as model:
        adapted = load_adapter(model, Path(adapter)) if adapter else model
        half = base.compute.dtype != torch.float32
        try:
            with torch.inference_mode(), torch.autocast(base.compute.device.type, base.compute.dtype, enabled=half):
                yield adapted
        finally:
            if adapter:
                adapted.unload()

"""Scores a model on fixed rows: the verifier's label logits (``mathtune.verifier_scoring``), or the solver's completions
(``mathtune.solver_scoring``). Rows are written in their own order, whatever order they are worked off in; what is done is
kept block by block (``mathtune.score_blocks``).
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from mathtune.adapters import load_adapter
from mathtune.events import Emit
from mathtune.grading import Grader
from mathtune.jobs import ScoreJob
from mathtune.models import Base, borrowed
from mathtune.prompts import PromptBuilder
from mathtune.ranges import Range
from mathtune.score_blocks import ScoreBlocks, Scored, cut_blocks
from mathtune.solver_scoring import SolverScorer
from mathtune.tables import count_rows, read_range
from mathtune.verifier_scoring import verifier_scorer

BLOCK_ROWS = {"verifier": 2048, "solver": 256}  # seconds to a minute of work
SAMPLE_ROWS = 256  # from which a scorer plans


class Scorer(Protocol):
    """Scores blocks of rows, in two steps."""

    def prepare(self, rows: list[dict]) -> Any:
        """What can be done while the device is busy with another block."""

    def score(self, prepared: Any, block: Range, emit: Emit) -> Scored:
        """The rest."""


def score(job: ScoreJob, base: Base, emit: Emit) -> dict[str, Any]:
    """Scores the job's rows and writes them to the folder ``job.output``.

    Returns:
        rows, shortened (prompts), resumed (rows that an attempt before has scored), seconds (of this one).
    """
    began, total = time.monotonic(), count_rows(Path(job.rows))
    total = total if job.limit is None else min(job.limit, total)
    ranges, blocks = cut_blocks(total, BLOCK_ROWS[job.task]), ScoreBlocks(job.blocks)
    found = {block: done for block in ranges if (done := blocks.find(block))}
    resumed = sum(len(block) for block in found)
    if resumed:
        emit("notice", text=f"{resumed:,} of {total:,} rows were scored before; goes on with the others")
    left = [block for block in ranges if block not in found]
    with scoring_model(base, job.adapter) as model, open_scorer(job, base, model, emit) as scorer:
        for block, prepared in _prepared(scorer, Path(job.rows), left):
            found[block] = blocks.publish(block, partial(scorer.score, prepared, block, _of_all(emit, block.start, total)))
    whole = Scored.together([found[block] for block in ranges])
    whole.write(Path(job.output))
    return {"rows": total, "shortened": whole.shortened, "resumed": resumed, "seconds": round(time.monotonic() - began, 3)}


def _prepared(scorer: Scorer, path: Path, blocks: list[Range]) -> Iterator[tuple[Range, Any]]:
    """Blocks with what the scorer prepares of them, the next one's while the device works on this one."""

    def prepare(block: Range) -> Any:
        return scorer.prepare(read_range(path, block.start, block.end).to_pylist())

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(prepare, blocks[0]) if blocks else None
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            prepared = ahead.result()
            if following:
                ahead = thread.submit(prepare, following)
            yield block, prepared


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


@contextmanager
def open_scorer(job: ScoreJob, base: Base, model: torch.nn.Module, emit: Emit) -> Iterator[Scorer]:
    """The task's scorer; what it needs for all rows is made once."""
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    if job.task == "verifier":
        sample = read_range(Path(job.rows), 0, min(SAMPLE_ROWS, count_rows(Path(job.rows)))).to_pylist()
        yield verifier_scorer(job, base, model, builder, sample, emit)
    else:
        with Grader(notice=lambda text: emit("notice", text=text)) as grader:
            yield SolverScorer(job, base, model, builder, grader)


def _of_all(emit: Emit, start: int, total: int) -> Emit:
    """Progress within a block, told as progress in all rows."""

    def told(event: str, **fields: Any) -> None:
        if event == "progress":
            fields |= {"done": start + fields["done"], "total": total}
        emit(event, **fields)

    return told

"""Scores a solver: a greedy completion of every row, and what is found in it."""

from mathtune.answers import extract_answer, same_answer
from mathtune.events import Emit
from mathtune.generation import batches, generate, table_of
from mathtune.jobs import ScoreJob
from mathtune.models import Base
from mathtune.prompts import PromptBuilder
from mathtune.ranges import Range
from mathtune.schemas import SOLUTIONS
from mathtune.score_blocks import Scored


def score_solver(job: ScoreJob, base: Base, model, builder: PromptBuilder, rows: list[dict], emit: Emit):
    """Rows of ``schemas.SOLUTIONS``, and how many prompts were shortened."""
    prompts, shortened = builder.prompt_ids(rows, reserve=job.evaluation.max_new_tokens)
    completions, finished, tokens = [""] * len(rows), [False] * len(rows), [0] * len(rows)
    for batch in batches(prompts, job.evaluation.batch_size, emit, "solving"):
        generated = generate(base, model, builder, [prompts[i] for i in batch], job.evaluation.max_new_tokens)
        for i, (ids, ended) in zip(batch, generated, strict=True):
            completions[i], finished[i], tokens[i] = base.tokenizer.decode(ids, skip_special_tokens=True), ended, len(ids)
    given = [extract_answer(completion) for completion in completions]
    correct = [same_answer(row["answer"], answer) for row, answer in zip(rows, given, strict=True)]
    marked = [right and "####" in completion for right, completion in zip(correct, completions, strict=True)]
    outcomes = ["right" if right else "cut off" if not ended else "unparsed" if answer is None else "wrong"
                for right, ended, answer in zip(correct, finished, given, strict=True)]
    columns = [[row["row_id"] for row in rows], completions, given, correct, marked, correct, outcomes, finished, tokens]
    return table_of(columns, SOLUTIONS), shortened


class SolverScorer:
    """Scores blocks of problems."""

    def __init__(self, job: ScoreJob, base: Base, model, builder: PromptBuilder):
        self.job, self.base, self.model, self.builder = job, base, model, builder

    def prepare(self, rows: list[dict]) -> list[dict]:
        """The rows as they are."""
        return rows

    def score(self, rows: list[dict], block: Range, emit: Emit) -> Scored:
        """Rows of ``schemas.SOLUTIONS`` for a block."""
        return Scored(*score_solver(self.job, self.base, self.model, self.builder, rows, emit))

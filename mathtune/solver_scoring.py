"""Scores a solver: a greedy completion of every row, several drawn by chance of the first ones, and what is found in them."""

from dataclasses import asdict, dataclass

import pyarrow as pa

from mathtune.events import Emit
from mathtune.generation import GumbelNoise, batches, generate, sample_seed
from mathtune.grading import Grade, Grader, answer_classes, grade
from mathtune.jobs import ScoreJob
from mathtune.models import Base
from mathtune.prompts import PromptBuilder
from mathtune.ranges import Range
from mathtune.schemas import SAMPLES, SOLUTIONS
from mathtune.score_blocks import Scored


@dataclass(frozen=True)
class Problems:
    """A block's problems, ready to be asked.

    Attributes:
        rows: as they are in the file.
        prompts: their token ids.
        shortened: prompts that lost their middle.
    """

    rows: list[dict]
    prompts: list[list[int]]
    shortened: int


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt; the fields are columns of ``schemas.SOLUTIONS``."""

    completion: str
    finished: bool
    tokens: int


class SolverScorer:
    """Scores blocks of problems. What is said of a row depends on the rows of its block and on how many are asked at once, by
    rounding; on no other block.

    Args:
        job, base, model, builder: what to score with.
        grader: compares answers.
    """

    def __init__(self, job: ScoreJob, base: Base, model, builder: PromptBuilder, grader: Grader):
        self.job, self.base, self.model, self.builder, self.grader = job, base, model, builder, grader

    def prepare(self, rows: list[dict]) -> Problems:
        """Token ids of a block's prompts; needs no device."""
        return Problems(rows, *self.builder.prompt_ids(rows, reserve=self.job.evaluation.max_new_tokens))

    def score(self, problems: Problems, block: Range, emit: Emit) -> Scored:
        """Rows of ``schemas.SOLUTIONS`` for a block, and of ``schemas.SAMPLES`` for those of its rows that are among the first
        ``sample_rows``."""
        completions = self._complete(problems.prompts, None, emit, "solving")
        solutions = pa.Table.from_pylist(
            [{"row_id": row["row_id"], **asdict(completion), **asdict(found)} for row, completion, found in
             zip(problems.rows, completions, self._grade(problems.rows, completions), strict=True)], schema=SOLUTIONS)
        asked = max(0, self.job.sample_rows - block.start) if self.job.evaluation.samples else 0
        samples = self._sample(problems.rows[:asked], problems.prompts[:asked], emit) if asked else None
        return Scored(solutions, problems.shortened, samples)

    def _sample(self, rows: list[dict], prompts: list[list[int]], emit: Emit) -> pa.Table:
        count = self.job.evaluation.samples

        def told(event: str, **fields) -> None:
            emit(event, **{**fields, "done": fields["done"] // count, "total": len(rows)})

        asked = [(row, prompt, sample) for row, prompt in zip(rows, prompts, strict=True) for sample in range(count)]
        seeds = [sample_seed(row["row_id"], sample) for row, _, sample in asked]
        completions = self._complete([prompt for _, prompt, _ in asked], seeds, told, "sampling")
        grades = self._grade([row for row, _, _ in asked], completions)
        classes = [place for begin in range(0, len(asked), count)
                   for place in answer_classes(grades[begin:begin + count], self.grader)]
        return pa.Table.from_pylist(
            [{"row_id": row["row_id"], "sample": sample, **asdict(completion), **asdict(found), "same_as": place}
             for (row, _, sample), completion, found, place in zip(asked, completions, grades, classes, strict=True)],
            schema=SAMPLES)

    def _complete(self, prompts: list[list[int]], seeds: list[int] | None, emit: Emit, what: str) -> list[Completion]:
        """Greedy completions, or drawn ones where there are seeds, in the order of the prompts."""
        settings, found = self.job.evaluation, {}
        for batch in batches(prompts, self.job.batch_size, emit, what):
            noise = seeds and GumbelNoise(settings.temperature, [seeds[i] for i in batch], self.base.compute.device)
            generated = generate(self.base, self.model, self.builder, [prompts[i] for i in batch], settings.max_new_tokens,
                                 noise)
            for i, (ids, ended) in zip(batch, generated, strict=True):
                found[i] = Completion(self.base.tokenizer.decode(ids, skip_special_tokens=True), ended, len(ids))
        return [found[i] for i in range(len(prompts))]

    def _grade(self, rows: list[dict], completions: list[Completion]) -> list[Grade]:
        return grade([row["answer"] for row in rows], [one.completion for one in completions],
                     [one.finished for one in completions], self.grader)

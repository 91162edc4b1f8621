"""The forgetting matrix: every link is asked again about fixed rows of the chunks that it and its parents were trained on.

The probes of a chunk are drawn once, by a seed, from the rows of its range: the same for every later link. They are training
rows: their accuracy says what is kept of a chunk, not how good a link is on new questions (that is what the validation rows
are for). Where a later chunk replays earlier rows, some of them may be probes: what replay keeps is what the matrix shows.
Leaves out chunks that were skipped or rejected: no link was grown from them.
"""

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mathtune.chain import Link
from mathtune.figures import Forgetting, Interval
from mathtune.metrics import share
from mathtune.questions import question_keys
from mathtune.ranges import Range
from mathtune.recipe import Recipe
from mathtune.stages import Outcome
from mathtune.stages.data import pool_rows
from mathtune.stages.evaluate import correct_rows, score_rows
from mathtune.store import Artifact
from mathtune.workspace import Workspace

VERIFIER_ROWS = 200  # one forward pass a row; a solver has to generate, and is asked only where the recipe says so


def probe(work: Workspace, base: dict[str, Any], parts: Artifact, links: list[Link]) -> Outcome:
    """Scores the last of ``links`` on the probes of all their chunks, in one job.

    Args:
        links: of the chain, in order, up to the one that is asked.

    Returns:
        Outcome of accuracies, one ``Interval`` a chunk.
    """
    chunks = trained_chunks(links)
    positions = [probe_positions(chunk, probe_rows(work.recipe), work.recipe.validation.seed) for chunk in chunks]
    rows = pool_rows(work, parts, np.concatenate(positions))
    path = rows.path("rows.parquet")
    scores = score_rows(work, base, links[-1], path, rows.files["rows.parquet"], limit=None, words_rows=0)
    borders = np.cumsum([len(one) for one in positions])[:-1]
    right = np.split(correct_rows(scores, path), borders)
    asked = np.split(question_keys(pq.read_table(path, columns=["question"])["question"]), borders)
    accuracy = [share(*one) for one in zip(right, asked, strict=True)]
    text = ", ".join(f"{one.value:.0%}" for one in accuracy)
    return Outcome(accuracy, scores.cached, f"{text} right of the {len(chunks)} chunks' probes" if len(chunks) > 1 else
                   f"{text} right of its chunk's probes")


def is_wanted(recipe: Recipe, links: list[Link]) -> bool:
    """Whether there is something to forget: a second link, and probes to ask."""
    return probe_rows(recipe) > 0 and len(links) > 1


def probe_rows(recipe: Recipe) -> int:
    """How many rows of a chunk are asked again."""
    given = recipe.evaluation.probe_rows
    return given if given is not None else VERIFIER_ROWS if recipe.task == "verifier" else 0


def probe_positions(chunk: Range, rows: int, seed: int) -> np.ndarray:
    """Sorted pool positions (int64) of a chunk's probes, drawn without repetition: all of them where it has no more."""
    random = np.random.Generator(np.random.Philox(key=[seed, chunk.start]))
    return np.sort(random.choice(np.arange(chunk.start, chunk.end), size=min(rows, len(chunk)), replace=False))


def trained_chunks(links: list[Link]) -> list[Range]:
    return [link.range for link in links if link.range]


def forgetting(recipe: Recipe, links: list[Link], accuracy: list[list[Interval]]) -> Forgetting:
    """The matrix of what ``probe`` found of each link."""
    return Forgetting(rows=probe_rows(recipe), chunks=[str(chunk) for chunk in trained_chunks(links)],
                      links=[link.number for link in links], accuracy=accuracy)

"""Rows to a file of token ids, made before a training and kept for every one after it. Loads no weights."""

from pathlib import Path
from typing import Any

import numpy as np

from mathtune.errors import DataError
from mathtune.jobs import TokeniseJob
from mathtune.models import load_tokenizer, locate_base
from mathtune.prompts import Examples, PromptBuilder
from mathtune.tables import count_rows, read_range
from mathtune.tokens import write_tokens

LENGTH_BINS = 32


def tokenise_rows(job: TokeniseJob) -> dict[str, Any]:
    """Writes the token ids of the job's rows to ``job.output``. Returns ``counts``.

    Raises:
        ModelError: the label words begin with the same token.
        DataError: a row does not fit and the recipe refuses that, or no row is left.
    """
    tokenizer = load_tokenizer(locate_base(job.model, Path(job.cache)))
    examples = make_examples(job, PromptBuilder(job.prompt, tokenizer, job.model.max_length))
    if not examples.row_ids:
        raise DataError("no example is left to train", where=job.rows, remedy="raise model.max_length")
    write_tokens(examples, Path(job.output))
    return counts(examples, job.model.max_length)


def make_examples(job: TokeniseJob, builder: PromptBuilder) -> Examples:
    """Token ids of a Parquet file's rows, or of its first ``limit``."""
    there = count_rows(Path(job.rows))
    rows = read_range(Path(job.rows), 0, there if job.limit is None else min(job.limit, there)).to_pylist()
    if job.task == "verifier":
        builder.label_tokens()
        return builder.verifier_examples(rows)
    return builder.solver_examples(rows, job.model.overlong)


def counts(examples: Examples, limit: int) -> dict[str, Any]:
    """How much there is to learn from, and ``lengths`` as of ``mathtune.figures.Lengths`` under a limit of tokens."""
    tokens = [len(ids) for ids in examples.input_ids]
    width = -(-limit // LENGTH_BINS)
    edges = np.arange(0, limit + width, width) + 1  # a bin holds lengths of [edge, next edge): the last one the limit itself
    return {"examples": len(tokens), "tokens": sum(tokens), "label_tokens": sum(tokens) - sum(examples.prompt_lengths),
            "shortened": examples.shortened, "dropped": examples.dropped,
            "lengths": {"edges": edges.tolist(), "counts": np.histogram(tokens, edges)[0].tolist(), "limit": limit}}

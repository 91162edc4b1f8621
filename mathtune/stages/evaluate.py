"""Scores the base or a link on fixed rows, and what follows from scores: metrics, slices, paired comparisons, wrong rows."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathtune import figures
from mathtune.calibration import margins_of
from mathtune.chain import Link
from mathtune.digests import digest_value
from mathtune.figures import SolverMetrics, VerifierMetrics
from mathtune.jobs import Place, ScoreJob
from mathtune.questions import question_keys
from mathtune.score_blocks import SAMPLES
from mathtune.slices import Division, divide, slice_figures
from mathtune.solver_metrics import solver_metrics
from mathtune.stages import Outcome, pinned_model
from mathtune.store import Artifact
from mathtune.tables import take_rows
from mathtune.verifier_metrics import verifier_metrics
from mathtune.workspace import Workspace

SCORE_VERSION = 2
METRICS_VERSION = 2  # raised when the same scores would give other figures than before


def evaluate(work: Workspace, base: dict[str, Any], parts: Artifact, link: Link | None,
             raw: Artifact | None = None) -> Outcome:
    """Scores a link (None: the base alone) on the chain's validation rows; the metrics, and with them a verifier's fitted
    temperature and threshold, are recorded with the link.

    Args:
        raw: the result of ``download``, for who wrote which solution; None: not looked at.
    """
    scores = validation_scores(work, base, parts, link)
    metrics = metrics_of(work, scores, parts, raw)
    if link:
        work.chain.write_record(link, {"scores": scores.key, "rows": parts.files["validation.parquet"],
                                       "metrics": metrics.model_dump(mode="json")})
        work.run.write_json(f"ranges/{range_name(link)}/metrics.json", metrics.model_dump(mode="json"))
    return Outcome(scores, scores.cached, accuracy_text(metrics))


def validation_scores(work: Workspace, base: dict[str, Any], parts: Artifact, link: Link | None) -> Artifact:
    """Scores of a link (None: the base alone) on the chain's validation rows."""
    settings = work.recipe.evaluation
    return score_rows(work, base, link, parts.path("validation.parquet"), parts.files["validation.parquet"],
                      limit=settings.rows, words_rows=settings.words_rows, sample_rows=settings.sample_rows)


def score_rows(work: Workspace, base: dict[str, Any], link: Link | None, rows: Path, rows_digest: str, *,
               limit: int | None, words_rows: int, sample_rows: int = 0) -> Artifact:
    """``scores.parquet``: what the model says of the first ``limit`` rows of a file (all if None); ``samples.parquet``: where a
    solver draws several completions of the first ``sample_rows``."""
    recipe, settings = work.recipe, work.recipe.evaluation
    asked = {"words": words_rows} if recipe.task == "verifier" else {"new_tokens": settings.max_new_tokens}
    if recipe.task == "solver" and sample_rows and settings.samples:
        asked |= {"samples": settings.samples, "sample_rows": sample_rows, "temperature": settings.temperature}
    key = digest_value({
        "stage": "score", "version": SCORE_VERSION, "task": recipe.task, "base": base["base"], "dtype": base["dtype"],
        "tokenizer": base["tokenizer"], "quantization": recipe.model.quantization,
        "max_length": recipe.model.max_length, "prompt": recipe.prompt.model_dump(mode="json"), "rows": rows_digest,
        "adapter": link.adapter_digest if link else None, "lora": link.lora if link else None, "limit": limit, **asked})

    def build(folder: Path) -> dict[str, Any]:
        return work.engine.run(ScoreJob(
            task=recipe.task, model=pinned_model(recipe, base), prompt=recipe.prompt, evaluation=recipe.evaluation,
            hardware=recipe.hardware, cache=str(work.cache), adapter=str(work.chain.adapter(link)) if link else None,
            lora=link.lora if link else None, rows=str(rows), limit=limit, words_rows=words_rows,
            sample_rows=sample_rows, blocks=place, output=str(folder)))

    place = Place.within(work.artifacts.folders, f"score-blocks/{key}")
    scores = work.artifacts.get_or_build("score", key, build)
    work.artifacts.folders.remove(place.name)  # also where this is served: a kill may have come before the removal
    return scores


def metrics_of(work: Workspace, scores: Artifact, parts: Artifact,
               raw: Artifact | None = None) -> VerifierMetrics | SolverMetrics:
    """Metrics of scores on the validation rows, computed once: a chain of many links is reported again after each."""
    task = work.recipe.task
    key = digest_value({"stage": "metrics", "version": METRICS_VERSION, "task": task, "scores": scores.key,
                        "rows": parts.files["validation.parquet"],
                        "origins": raw.files.get("origins.parquet") if raw else None})

    def build(folder: Path) -> dict[str, Any]:
        table = pq.read_table(scores.path("scores.parquet"))
        rows = scored_rows(table, parts)
        divisions = divisions_of(rows, raw)
        if task == "solver":
            samples = pq.read_table(scores.path(SAMPLES)) if SAMPLES in scores.files else None
            metrics = solver_metrics(table, samples, work.recipe.evaluation.temperature)
            correct = table["correct"].to_numpy(zero_copy_only=False)
            metrics = metrics.model_copy(update={"slices": slice_figures(divisions, correct)})
        else:
            metrics = verifier_metrics(table, labels_in(rows), question_keys(rows["question"]), divisions)
        (folder / "metrics.json").write_text(metrics.model_dump_json(indent=2) + "\n")
        return {}

    made = work.artifacts.get_or_build("metrics", key, build)
    kind = SolverMetrics if task == "solver" else VerifierMetrics
    return kind.model_validate_json(made.path("metrics.json").read_text())


def scored_rows(scores: pa.Table, parts: Artifact) -> pa.Table:
    """The validation rows that scores are about, in the same order."""
    return pq.read_table(parts.path("validation.parquet")).slice(0, len(scores))


def validation_questions(parts: Artifact, rows: int) -> np.ndarray:
    """Keys (uint64) of the questions of the first validation rows: which of them are not independent of each other."""
    return question_keys(pq.read_table(parts.path("validation.parquet"), columns=["question"])["question"].slice(0, rows))


def divisions_of(rows: pa.Table, raw: Artifact | None) -> list[Division]:
    """The ways in which validation rows are divided, with the generator where ``raw`` knows it."""
    if raw is None or "origins.parquet" not in raw.files:
        return divide(rows)
    written = take_rows(raw.path("origins.parquet"), rows["row_id"].to_numpy(), ["generator"])  # row i has row_id i
    return divide(rows, written["generator"].to_pylist())


def labels_in(rows: pa.Table) -> np.ndarray:
    """Labels of rows (bool)."""
    return rows["is_correct"].to_numpy(zero_copy_only=False).astype(bool)


def correct_rows(scores: Artifact, rows: Path) -> np.ndarray:
    """Which rows a model has right (bool), in their order: what a paired test compares.

    Args:
        rows: the file whose first rows the scores are of.
    """
    path = scores.path("scores.parquet")
    if "correct" in pq.read_schema(path).names:  # a solver's
        return pq.read_table(path, columns=["correct"])["correct"].to_numpy(zero_copy_only=False)
    predictions = pq.read_table(path, columns=["prediction"])["prediction"].to_numpy(zero_copy_only=False)
    return predictions == labels_in(pq.read_table(rows, columns=["is_correct"]).slice(0, len(predictions)))


def wrong_rows(work: Workspace, scores: Artifact, parts: Artifact, raw: Artifact | None = None) -> list[dict[str, Any]]:
    """Every validation row that a model has wrong, with its slices (name by division).

    ``kind`` tells what is wrong: a verifier's "false positive" or "false negative", a solver's outcome. Kinds stand
    apart; within a verifier's the most confident mistakes come first.
    """
    table = pq.read_table(scores.path("scores.parquet"))
    rows = scored_rows(table, parts)
    wrong = np.flatnonzero(~correct_rows(scores, parts.path("validation.parquet")))
    if work.recipe.task == "solver":
        outcomes = table["outcome"].to_pylist()
        kinds = [outcomes[i] for i in wrong]
        order = np.argsort([get_args(figures.Outcome).index(kind) for kind in kinds], kind="stable")
        columns = {"row_id": rows["row_id"], "question": rows["question"], "gold": rows["answer"], "given": table["given"],
                   "completion": table["completion"], "finished": table["finished"]}
    else:
        labels = labels_in(rows)[wrong]
        kinds = ["false negative" if label else "false positive" for label in labels]
        order = np.lexsort([-np.abs(margins_of(table)[wrong]), labels])
        columns = {**{name: rows[name] for name in ("row_id", "question", "answer", "solution")},
                   "label": rows["is_correct"], "p_true": table["p_true"]}
    shown = pa.table(columns).take(wrong[order]).to_pylist()
    divisions = divisions_of(rows, raw)
    return [{**row, "kind": kinds[i], "slices": {division.by: division.value_of(wrong[i]) for division in divisions}}
            for i, row in zip(order, shown, strict=True)]


def range_name(link: Link) -> str:
    """Folder of a link below ``ranges/``: ``20000-40000``, or ``grpo``."""
    return f"{link.start}-{link.end}" if link.range else "grpo"


def accuracy_text(metrics: VerifierMetrics | SolverMetrics) -> str:
    """Accuracy with its interval and n, for people."""
    accuracy = metrics.accuracy
    return f"{accuracy.value:.1%} right of {accuracy.n:,} ({accuracy.low:.1%} to {accuracy.high:.1%})"

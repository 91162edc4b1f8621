"""Scores the base or a link on fixed rows, and what follows from scores: metrics, paired comparisons, wrong rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathtune.chain import Link
from mathtune.digests import digest_value
from mathtune.figures import SolverMetrics, VerifierMetrics
from mathtune.jobs import Place, ScoreJob
from mathtune.metrics import verifier_metrics
from mathtune.score_blocks import SAMPLES
from mathtune.solver_metrics import solver_metrics
from mathtune.stages import Outcome, pinned_model
from mathtune.store import Artifact
from mathtune.workspace import Workspace

SCORE_VERSION = 2


def evaluate(work: Workspace, base: dict[str, Any], parts: Artifact, link: Link | None) -> Outcome:
    """Scores a link (None: the base alone) on the chain's validation rows; the metrics are recorded with the link."""
    settings = work.recipe.evaluation
    scores = score_rows(work, base, link, parts.path("validation.parquet"), parts.files["validation.parquet"],
                        limit=settings.rows, words_rows=settings.words_rows, sample_rows=settings.sample_rows)
    metrics = metrics_of(work, scores, parts)
    if link:
        work.chain.write_record(link, {"scores": scores.key, "rows": parts.files["validation.parquet"],
                                       "metrics": metrics.model_dump(mode="json")})
        work.run.write_json(f"ranges/{range_name(link)}/metrics.json", metrics.model_dump(mode="json"))
    return Outcome(scores, scores.cached, accuracy_text(metrics))


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
    if not scores.cached:
        work.artifacts.folders.remove(place.name)
    return scores


def metrics_of(work: Workspace, scores: Artifact, parts: Artifact) -> VerifierMetrics | SolverMetrics:
    """Metrics of scores on the validation rows."""
    table = pq.read_table(scores.path("scores.parquet"))
    if work.recipe.task == "solver":
        drawn = scores.path(SAMPLES)
        return solver_metrics(table, pq.read_table(drawn) if drawn.is_file() else None, work.recipe.evaluation.temperature)
    return verifier_metrics(table, labels_of(parts.path("validation.parquet"), len(table)))


def labels_of(rows: Path, count: int) -> np.ndarray:
    """The first ``count`` labels of a file (bool)."""
    return pq.read_table(rows, columns=["is_correct"])["is_correct"].slice(0, count).to_numpy(zero_copy_only=False).astype(bool)


def correct_rows(work: Workspace, scores: Artifact, parts: Artifact) -> np.ndarray:
    """Which validation rows a model has right (bool), in their order: what a paired test compares."""
    if work.recipe.task == "solver":
        return pq.read_table(scores.path("scores.parquet"), columns=["correct"])["correct"].to_numpy(zero_copy_only=False)
    predictions = pq.read_table(scores.path("scores.parquet"), columns=["prediction"])["prediction"]
    predictions = predictions.to_numpy(zero_copy_only=False)
    return predictions == labels_of(parts.path("validation.parquet"), len(predictions))


def wrong_rows(work: Workspace, scores: Artifact, parts: Artifact) -> list[dict[str, Any]]:
    """Every validation row that a model has wrong; a verifier's most confident mistakes first."""
    table = pq.read_table(scores.path("scores.parquet"))
    rows = pq.read_table(parts.path("validation.parquet")).slice(0, len(table))
    wrong = np.flatnonzero(~correct_rows(work, scores, parts))
    if work.recipe.task == "solver":
        columns = {"row_id": rows["row_id"], "question": rows["question"], "gold": rows["answer"], "given": table["given"],
                   "completion": table["completion"], "outcome": table["outcome"], "finished": table["finished"]}
        return pa.table(columns).take(wrong).to_pylist()
    columns = {**{name: rows[name] for name in ("row_id", "question", "answer", "solution")}, "label": rows["is_correct"],
               "p_true": table["p_true"]}
    mistakes = pa.table(columns).take(wrong)
    confidence = pc.abs(pc.subtract(mistakes["p_true"], 0.5))
    return mistakes.take(pc.sort_indices(confidence, sort_keys=[("", "descending")])).to_pylist()


def range_name(link: Link) -> str:
    """Folder of a link below ``ranges/``: ``20000-40000``, or ``grpo``."""
    return f"{link.start}-{link.end}" if link.range else "grpo"


def accuracy_text(metrics: VerifierMetrics | SolverMetrics) -> str:
    """Accuracy with its interval and n, for people."""
    accuracy = metrics.accuracy
    return f"{accuracy.value:.1%} right of {accuracy.n:,} ({accuracy.low:.1%} to {accuracy.high:.1%})"

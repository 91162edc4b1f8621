"""Predictions on the test rows; for a verifier also ``submission.csv``, checked row by row before it is published."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mathtune import __version__
from mathtune.calibration import calibrated, margins_of
from mathtune.chain import Link
from mathtune.errors import DataError, StoreError, TrainingError
from mathtune.figures import Calibration, Interval
from mathtune.files import same_bytes
from mathtune.metrics import differ, share
from mathtune.questions import question_keys
from mathtune.recipe_file import dump_recipe
from mathtune.stages import Outcome
from mathtune.stages.evaluate import (
    labels_in,
    metrics_of,
    range_name,
    score_rows,
    scored_rows,
    validation_questions,
    validation_scores,
)
from mathtune.stages.judge import comparison_text
from mathtune.store import Artifact
from mathtune.tables import parquet_bytes
from mathtune.workspace import Workspace


@dataclass(frozen=True)
class Rule:
    """How P(True) becomes a verdict: a row above the threshold, at the temperature, is judged True.

    Attributes:
        origin: where the two come from, for people.
    """

    temperature: float
    threshold: float
    origin: str

    def p_true(self, verdicts: pa.Table) -> np.ndarray:
        """P(True) (float64) of rows of ``schemas.VERDICTS`` at the temperature."""
        return calibrated(margins_of(verdicts), self.temperature)

    def judge(self, verdicts: pa.Table) -> np.ndarray:
        """Which rows (bool) are judged True."""
        return self.p_true(verdicts) > self.threshold


def submit(work: Workspace, base: dict[str, Any], raw: Artifact, parts: Artifact, link: Link) -> Outcome:
    """Writes ``predictions.parquet`` and, for a verifier, ``submission.csv`` with ``submission.json`` beside it.

    Returns:
        Outcome of facts: rows, digests, a verifier's temperature, threshold and share of True beside that of the validation
        rows, and the accuracy where the test rows' truth is known.
    """
    scores = score_rows(work, base, link, raw.path("test.parquet"), raw.files["test.parquet"], limit=None, words_rows=0)
    test = pq.read_table(raw.path("test.parquet"), columns=["row_id", "ID", "is_correct", "question"])
    table = pq.read_table(scores.path("scores.parquet"))
    if not table["row_id"].equals(test["row_id"]):
        raise StoreError("the scores are not one for each test row, in order", where=str(scores.path("scores.parquet")),
                         remedy="remove the folder of this file: the same command scores the rows again")
    facts = {"rows": len(test), "link": link.number, "range": str(link.range or "grpo"), "chain": work.chain.name,
             "adapter_digest": link.adapter_digest, "test_rows_digest": raw.files["test.parquet"],
             "recipe_sha256": hashlib.sha256(dump_recipe(work.recipe).encode()).hexdigest(), "mathtune": __version__}
    files, what, questions = {}, "predictions.parquet", question_keys(test["question"])
    if work.recipe.task == "verifier":
        table, judged, what = judge_test_rows(work, base, parts, raw, link, table, questions)
        settings = work.recipe.submission
        csv = submission_csv(test["ID"].to_numpy(), table["prediction"].to_numpy(zero_copy_only=False),
                             settings.id_column, settings.label_column)
        facts |= {**judged, "sha256": hashlib.sha256(csv).hexdigest()}
        files["submission.csv"] = csv
    if right := known_accuracy(table, test, questions):
        facts["accuracy"] = right.model_dump(mode="json")
    files["predictions.parquet"] = parquet_bytes(table.add_column(0, "ID", test["ID"]))
    target = work.run.range_folder(range_name(link))
    unchanged = all(same_bytes(folder / name, data) for name, data in files.items() for folder in (target, work.run.path))
    for folder in (f"ranges/{range_name(link)}/", ""):
        for name, data in files.items():
            work.run.write(folder + name, data)
        if "submission.csv" in files:
            work.run.write_json(folder + "submission.json", facts)
    return Outcome(facts, unchanged and scores.cached, f"{len(test):,} rows → {what}")


def judge_test_rows(work: Workspace, base: dict[str, Any], parts: Artifact, raw: Artifact, link: Link, verdicts: pa.Table,
                    questions: np.ndarray) -> tuple[pa.Table, dict[str, Any], str]:
    """Judges the test rows by the recipe's threshold, or by what was fitted on the validation rows.

    Args:
        verdicts: of the test rows, ``schemas.VERDICTS``.
        questions: keys of the test rows' questions.

    Returns:
        the predictions (row_id, logits, ``p_true`` as scored, ``p_calibrated``, ``prediction``); facts; and what was done, in
        a line.
    """
    seen = validation_scores(work, base, parts, link)
    calibration = metrics_of(work, seen, parts, raw).calibration
    rule = rule_of(work.recipe.submission.threshold, calibration)
    known = pq.read_table(seen.path("scores.parquet"))
    labels = labels_in(scored_rows(known, parts))
    predictions = rule.judge(verdicts)
    true_share, validation = share(predictions, questions), share(rule.judge(known), validation_questions(parts, len(known)))
    facts = {"temperature": rule.temperature, "threshold": rule.threshold, "threshold_from": rule.origin,
             "true_share": true_share.model_dump(mode="json"), "validation_true_share": validation.model_dump(mode="json")}
    if notices := notices_of(true_share, validation, float(labels.mean()), rule, calibration):
        facts["notices"] = notices
        for text in notices:
            work.emit("notice", text=text)
    names = ["row_id", "logit_true", "logit_false", "p_true"]
    table = verdicts.select(names).append_column("p_calibrated", pa.array(rule.p_true(verdicts), pa.float32()))
    what = (f"submission.csv, {true_share.value:.1%} True (validation {validation.value:.1%}) above {rule.threshold:.3f} at "
            f"temperature {rule.temperature:.2f}, {rule.origin}")
    return table.append_column("prediction", pa.array(predictions)), facts, what


def rule_of(setting: float | str, calibration: Calibration | None) -> Rule:
    """The rule that ``submission.threshold`` asks for; 0.5 without a temperature where nothing could be fitted."""
    if setting != "fitted":
        return Rule(1.0, float(setting), "set in the recipe")
    if calibration is None:
        return Rule(1.0, 0.5, "the default: half of the validation questions has only one label")
    return Rule(calibration.temperature, calibration.threshold, f"fitted on {calibration.fitted:,} validation rows")


def notices_of(share: Interval, validation: Interval, labelled: float, rule: Rule,
               calibration: Calibration | None) -> list[str]:
    """What a person should know before they submit.

    Args:
        share, validation: share of the test and the validation rows that is judged True.
        labelled: share of the validation rows whose label is True.
        calibration: what was fitted, if something was.
    """
    notices = []
    if differ(share, validation):
        notices.append(f"{_percent(share)} of the test rows are judged True, {_percent(validation)} of the validation rows "
                       f"({labelled:.1%} of those are): the test rows are another mixture, or of another kind")
    fitted = calibration and (rule.temperature, rule.threshold) == (calibration.temperature, calibration.threshold)
    if fitted and calibration.versus_plain.difference.high < 0:
        notices.append("on the validation questions that it was not fitted on the threshold is worse than 0.5 without a "
                       f"temperature: {comparison_text(calibration.versus_plain)}; submission.threshold=0.5 goes without it")
    return notices


def _percent(share: Interval) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def submission_csv(ids: np.ndarray, predictions: np.ndarray, id_column: str, label_column: str) -> bytes:
    """The CSV, read back and checked: every id once and in order, True and False both there, nothing else.

    Raises:
        DataError: ids are missing, repeated or out of order.
        TrainingError: every prediction is the same.
    """
    csv = pd.DataFrame({id_column: ids, label_column: predictions}).to_csv(index=False, lineterminator="\n").encode()
    back = pd.read_csv(io.BytesIO(csv))
    if list(back.columns) != [id_column, label_column] or not np.array_equal(back[id_column].to_numpy(), ids):
        raise DataError("the rows read back are not the rows written", where="submission.csv")
    if len(set(ids.tolist())) != len(ids) or (np.diff(ids) < 0).any():
        raise DataError("the ids are repeated or out of order", where="submission.csv",
                        remedy="sort the test rows by their id column")
    if back[label_column].nunique() < 2:
        raise TrainingError(f"every one of the {len(ids)} predictions is {back[label_column].iloc[0]}", where="submission.csv",
                            remedy="the verifier has not learned to tell them apart: train more chunks, see report.html")
    return csv


def known_accuracy(scores: pa.Table, test: pa.Table, questions: np.ndarray) -> Interval | None:
    """Accuracy on the test rows whose truth is known; None if none is."""
    if "prediction" in scores.column_names:
        known = np.flatnonzero(test["is_correct"].is_valid().to_numpy())
        right = scores["prediction"].take(known).to_numpy(zero_copy_only=False) == test["is_correct"].take(known).to_numpy(
            zero_copy_only=False)
    else:
        right = scores["correct"].to_numpy(zero_copy_only=False)
        known = np.arange(len(right))
    return share(right, questions[known]) if len(right) else None

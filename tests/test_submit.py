"""The submission's CSV is what a judge expects, by the rule that was fitted or asked for, or it is not written."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from mathtune.calibration import calibrate
from mathtune.errors import DataError, TrainingError
from mathtune.metrics import interval
from mathtune.stages.evaluate import evaluate, wrong_rows
from mathtune.stages.submit import Rule, notices_of, rule_of, submission_csv, submit
from tests.faults_fixtures import prepared, scoring, untrained_link

RULE = Rule(2.0, 0.6, "fitted")


def test_the_format_of_the_competition():
    csv = submission_csv(np.arange(3), np.array([True, False, True]), "ID", "is_correct")
    assert csv == b"ID,is_correct\n0,True\n1,False\n2,True\n"


@given(st.lists(st.booleans(), min_size=2, max_size=200).filter(lambda x: len(set(x)) == 2), st.integers(0, 10**6))
def test_every_row_comes_back(predictions, first):
    ids = np.arange(first, first + len(predictions))
    lines = submission_csv(ids, np.array(predictions), "ID", "is_correct").decode().splitlines()
    assert lines == ["ID,is_correct", *(f"{i},{p}" for i, p in zip(ids, predictions, strict=True))]


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 2, 1]])
def test_repeated_or_unordered_ids_are_refused(ids):
    with pytest.raises(DataError, match="repeated or out of order"):
        submission_csv(np.array(ids), np.array([True, False, True]), "ID", "is_correct")


def test_one_class_only_is_refused():
    with pytest.raises(TrainingError, match="every one of the 3 predictions is False"):
        submission_csv(np.arange(3), np.zeros(3, bool), "ID", "is_correct")


def too_kind(rows):
    """Margins of a verifier that tells right from wrong, but says True to nearly everything."""
    return np.random.default_rng(len(rows)).normal(np.where(rows["is_correct"].to_numpy(zero_copy_only=False), 7, 3), 1.0)


def test_what_was_fitted_is_kept_with_the_link_and_judges_the_test_rows(make_recipe, tmp_path):
    told = []
    with prepared(make_recipe()) as run:
        run.work.listeners.append(told.append)
        link, run.work.engine.run = untrained_link(run), scoring(too_kind)
        scores = evaluate(run.work, run.base, run.parts, link, run.raw).value
        outcome = submit(run.work, run.base, run.raw, run.parts, link)
        errors = wrong_rows(run.work, scores, run.parts, run.raw)
        kept = run.work.chain.record(link)["metrics"]
        again = submit(run.work, run.base, run.raw, run.parts, link)
    facts, calibration = outcome.value, kept["calibration"]
    assert again.cached and again.value == facts and not outcome.cached
    assert (facts["temperature"], facts["threshold"]) == (calibration["temperature"], calibration["threshold"])
    assert calibration["accuracy"]["value"] > 0.85 > 0.6 > calibration["plain"]["value"] and facts["accuracy"]["low"] > 0.85

    predictions = pq.read_table(tmp_path / "runs" / "small" / "predictions.parquet")
    margins = predictions["logit_true"].to_numpy() - predictions["logit_false"].to_numpy()
    assert predictions["p_true"].to_numpy() == pytest.approx(expit(margins), abs=1e-6)
    assert predictions["p_calibrated"].to_numpy() == pytest.approx(expit(margins / facts["temperature"]), abs=1e-6)
    judged = expit(margins.astype(float) / facts["temperature"]) > facts["threshold"]
    assert pd.read_csv(tmp_path / "runs" / "small" / "submission.csv")["is_correct"].tolist() == judged.tolist()
    assert predictions["prediction"].to_pylist() == judged.tolist()
    assert facts["true_share"] == interval(int(judged.sum()), 60).model_dump() and facts["validation_true_share"]["n"] == 60
    side = json.loads((tmp_path / "runs" / "small" / "submission.json").read_text())
    assert side == facts and f"{facts['true_share']['value']:.1%} True (validation" in outcome.summary
    assert [event["text"] for event in told if event["event"] == "notice"] == facts.get("notices", []) * 2

    wrong = kept["confusion"]["false"]["true"], kept["confusion"]["true"]["false"]
    assert [error["kind"] for error in errors] == ["false positive"] * wrong[0] + ["false negative"] * wrong[1]
    assert all(error["label"] == (error["kind"] == "false negative") for error in errors)
    sure = [error["p_true"] for error in errors if error["kind"] == "false positive"]
    assert sure == sorted(sure, reverse=True) and len(sure) > 20
    assert {by for error in errors for by in error["slices"]} == {one["by"] for one in kept["slices"]}


def test_a_threshold_in_the_recipe_goes_without_a_temperature(make_recipe):
    with prepared(make_recipe(submission={"threshold": 0.99})) as run:
        link, run.work.engine.run = untrained_link(run), scoring(too_kind)
        facts = submit(run.work, run.base, run.raw, run.parts, link).value
    assert (facts["temperature"], facts["threshold"], facts["threshold_from"]) == (1.0, 0.99, "set in the recipe")
    predictions = pq.read_table(run.work.run.path / "predictions.parquet")
    assert predictions["prediction"].to_pylist() == [p > 0.99 for p in predictions["p_calibrated"].to_pylist()]
    assert predictions["p_calibrated"].to_pylist() == pytest.approx(predictions["p_true"].to_pylist(), abs=1e-6)


def test_where_nothing_can_be_fitted_the_threshold_is_a_half():
    rule = rule_of("fitted", None)
    assert (rule.temperature, rule.threshold) == (1.0, 0.5) and "only one label" in rule.origin


def test_shares_of_true_that_chance_does_not_explain_are_told():
    assert notices_of(interval(52, 100), interval(50, 100), 0.5, RULE, None) == []
    [notice] = notices_of(interval(700, 1000), interval(500, 1000), 0.5, RULE, None)
    assert notice.startswith("70.0% (67.1% to 72.8%) of the test rows are judged True, 50.0%")


def test_a_fit_that_did_harm_is_told():
    questions = np.arange(400, dtype=np.uint64)
    random = np.random.default_rng(0)
    labels = random.random(400) < 0.5
    calibration = calibrate(random.normal(np.where(labels, 2, -2), 1), labels, questions)
    worse = calibration.versus_plain.model_copy(update={"difference": calibration.plain.model_copy(
        update={"value": -0.05, "low": -0.08, "high": -0.02})})
    fitted = rule_of("fitted", calibration)
    same = interval(50, 100)
    assert notices_of(same, same, 0.5, fitted, calibration) == []
    harmed = calibration.model_copy(update={"versus_plain": worse})
    assert "submission.threshold=0.5" in notices_of(same, same, 0.5, fitted, harmed)[0]
    assert notices_of(same, same, 0.5, rule_of(0.5, harmed), harmed) == []

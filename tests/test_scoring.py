"""Scores: each row as if it were alone, words that are neither label counted apart, solutions cut off or ended."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mathtune.answers import extract_answer, same_answer
from mathtune.models import borrowed, load_base
from mathtune.prompts import PromptBuilder
from mathtune.recipe import Sft
from mathtune.scoring import score
from mathtune.sft import train_chunk
from tests.jobs_fixtures import score_job, sft_job


def quiet(event, **fields):
    pass


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    job = score_job(tiny_base, tmp_path_factory.mktemp("x"))
    return load_base(job.model, job.hardware, Path(job.cache))


def test_a_batch_says_of_each_row_what_it_says_of_it_alone(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, n=40)
    assert score(job, base, quiet) == {"rows": 40, "shortened": 0, "seconds": pytest.approx(0, abs=1e9)}
    table = pq.read_table(job.output)
    rows = pq.read_table(job.rows).to_pylist()
    assert table["row_id"].to_pylist() == [row["row_id"] for row in rows]
    build = PromptBuilder(job.prompt, base.tokenizer, 192)
    true, false = build.label_tokens()
    with borrowed(base) as model, torch.no_grad():
        for i in (0, 7, 23, 39):
            alone = model(input_ids=torch.tensor(build.prompt_ids([rows[i]], 5)[0])).logits[0, -1]
            assert table["logit_true"][i].as_py() == pytest.approx(alone[true].item(), rel=1e-4, abs=1e-5)
            assert table["logit_false"][i].as_py() == pytest.approx(alone[false].item(), rel=1e-4, abs=1e-5)
    assert table["prediction"].to_pylist() == [
        t > f for t, f in zip(table["logit_true"].to_pylist(), table["logit_false"].to_pylist(), strict=True)]


def test_words_are_looked_at_on_a_sample_and_an_untrained_base_is_malformed(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, words_rows=12)
    score(job, base, quiet)
    table = pq.read_table(job.output)
    said = table["said"].to_pylist()
    assert set(said[12:]) == {None} and None not in said[:12]
    assert "malformed" in said[:12]
    assert set(table["prediction"].to_pylist()) <= {True, False}


def test_a_trained_verifier_says_its_labels(base, tiny_base, tmp_path):
    trained = sft_job(tiny_base, tmp_path / "sft", sft=Sft(learning_rate=2e-2, examples_per_step=16, epochs=8, save_every=100))
    train_chunk(trained, base, quiet)
    job = score_job(tiny_base, tmp_path, adapter=Path(trained.output), words_rows=40)
    score(job, base, quiet)
    table = pq.read_table(job.output)
    for said, prediction in zip(table["said"].to_pylist(), table["prediction"].to_pylist(), strict=True):
        assert said == ("true" if prediction else "false")


def test_a_limit_scores_the_first_rows_only(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, limit=7, words_rows=0)
    score(job, base, quiet)
    assert pq.read_metadata(job.output).num_rows == 7


def test_solutions_are_graded_and_cut_off_ones_are_told_apart(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, task="solver")
    score(job, base, quiet)
    table, rows = pq.read_table(job.output).to_pylist(), pq.read_table(job.rows).to_pylist()
    assert any(not solution["finished"] for solution in table)
    for solution, row in zip(table, rows, strict=True):
        assert solution["given"] == extract_answer(solution["completion"])
        assert solution["correct"] == same_answer(row["answer"], solution["given"])

"""Scores: each row as if it were alone, words that are neither label counted apart, solutions cut off or ended."""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathtune import scoring
from mathtune.answers import extract_answer, same_answer
from mathtune.devices import Compute
from mathtune.errors import BadNumbers
from mathtune.generation import GumbelNoise, sample_seed
from mathtune.models import borrowed, load_base
from mathtune.packed_model import LabelReader
from mathtune.packing import cut, fill_up, make_pack
from mathtune.prefill_plan import Prefill
from mathtune.prompts import PromptBuilder
from mathtune.recipe import Evaluation, Sft
from mathtune.schemas import SAMPLES
from mathtune.score_blocks import Scored
from mathtune.scoring import score
from mathtune.sft import train_chunk
from mathtune.verifier_scoring import prompt_tokens
from tests.jobs_fixtures import score_job, sft_job
from tests.test_fast import adapted, tokens_of
from tests.test_packed_training import COMPUTE, CONFIGS, untrained


def read(job):
    """The scores that a job has written."""
    return pq.read_table(Path(job.output) / "scores.parquet")


FILLED = untrained(CONFIGS["llama"])


def quiet(event, **fields):
    pass


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    job = score_job(tiny_base, tmp_path_factory.mktemp("x"))
    return load_base(job.model, job.hardware, Path(job.cache))


def single_row(model, base, job, row) -> torch.Tensor:
    """Float32 (2,): logits of both labels after one row's prompt, by a forward pass of its own."""
    build = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    return model(input_ids=torch.tensor(build.verifier_prompts([row])[0])).logits[0, -1, list(build.label_tokens())]


def test_a_pack_says_of_each_row_what_it_says_of_it_alone(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, n=40)
    assert score(job, base, quiet) == {"rows": 40, "shortened": 0, "resumed": 0, "seconds": pytest.approx(0, abs=1e9)}
    table, rows = read(job), pq.read_table(job.rows).to_pylist()
    assert table["row_id"].to_pylist() == [row["row_id"] for row in rows]
    with borrowed(base) as model, torch.no_grad():
        for i, row in enumerate(rows):
            true, false = single_row(model, base, job, row).tolist()
            assert table["logit_true"][i].as_py() == pytest.approx(true, rel=1e-4, abs=1e-5)
            assert table["p_true"][i].as_py() == pytest.approx(1 / (1 + math.exp(false - true)), abs=1e-5)
    assert table["prediction"].to_pylist() == [
        t > f for t, f in zip(table["logit_true"].to_pylist(), table["logit_false"].to_pylist(), strict=True)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("adapts", [False, True])
def test_so_it_does_through_any_models_layers(name, adapts):
    plain = untrained(CONFIGS[name])
    model = adapted(plain) if adapts else plain
    prompts = [ids[:-1] for ids in map(list, token_lists([9, 30, 17, 12, 25]))]
    tokens, head = prompt_tokens(prompts), plain.get_output_embeddings()
    for fast in {False, name == "llama"}:
        plan = Prefill(pack_tokens=60, resident=fast, bytes=0, available=0, fast=fast)
        with torch.inference_mode(), LabelReader(model, COMPUTE, plan, (7, 11)).reading() as logits:
            for places in cut(tokens.lengths, tokens.shared_prefix, 60):
                found = logits(make_pack(tokens, places, tokens.shared_prefix)).softmax(-1)[:, 0]
                alone = [model_alone(plain, model, prompts[i], head)[[7, 11]].softmax(-1)[0] for i in places]
                assert torch.allclose(found, torch.stack(alone), atol=1e-5)
    assert plain.get_output_embeddings() is head


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(8, 40), min_size=1, max_size=9), st.integers(0, 300), st.booleans())
def test_what_fills_a_pack_up_changes_no_score(lengths, more, shares):
    model, tokens = FILLED, tokens_of(lengths, prefix=6, labels=1)
    pack = make_pack(tokens, list(range(len(lengths))), tokens.shared_prefix if shares else 0)
    full = fill_up(pack, len(pack.input_ids) + 12 + more, 12)
    assert len(full.input_ids) == len(full.positions) == full.query_ends[-1] and len(full.labels) == full.label_ends[-1] == 12
    for fast in (True, False):
        plan = Prefill(pack_tokens=0, resident=True, bytes=0, available=0, fast=fast)
        with torch.inference_mode(), LabelReader(model, COMPUTE, plan, (7, 11)).reading() as logits:
            assert torch.allclose(logits(full)[:len(lengths)], logits(pack), atol=1e-5)


def model_alone(plain, model, ids: list[int], head) -> torch.Tensor:
    """Logits after one prompt as transformers' own attention computes them."""
    replaced, attention = plain.get_output_embeddings(), plain.config._attn_implementation
    plain.set_output_embeddings(head)
    plain.set_attn_implementation("sdpa")
    try:
        return model(input_ids=torch.tensor([ids])).logits[0, -1]
    finally:
        plain.set_output_embeddings(replaced)
        plain.set_attn_implementation(attention)


def token_lists(lengths):
    tokens = tokens_of(lengths, prefix=6, labels=1)
    return [tokens.of(i).tolist() for i in range(len(tokens))]


@pytest.mark.parametrize("config", [CONFIGS["qwen2"], CONFIGS["gemma3"]], ids=["qwen2", "gemma3"])
def test_any_model_is_scored_and_listened_to(base, config, tiny_base, tmp_path):
    config = copy.deepcopy(config)
    config.vocab_size = len(base.tokenizer)
    other = replace(base, model=untrained(config))
    job = score_job(tiny_base, tmp_path, n=12, words_rows=12)
    score(job, other, quiet)
    head = other.model.get_output_embeddings()
    with borrowed(other) as model, torch.no_grad():
        for row, p_true in zip(pq.read_table(job.rows).to_pylist(), read(job)["p_true"].to_pylist(), strict=True):
            assert single_row(model, other, job, row).softmax(-1)[0].item() == pytest.approx(p_true, abs=1e-5)
    assert None not in read(job)["said"].to_pylist() and other.model.get_output_embeddings() is head


def test_in_half_precision_the_labels_logits_are_float32_all_the_same(base, tiny_base, tmp_path):
    config = copy.deepcopy(CONFIGS["qwen2"])
    config.vocab_size = len(base.tokenizer)
    half = Compute(torch.device("cpu"), torch.bfloat16, "a test")
    job = score_job(tiny_base, tmp_path, n=12, words_rows=4)
    score(job, replace(base, model=untrained(config).bfloat16(), compute=half), quiet)
    logits = torch.tensor(read(job)["logit_true"].to_pylist())
    assert (logits != logits.bfloat16().float()).any()


def test_a_logit_that_is_no_number_stops_the_scoring_with_its_row(base, tiny_base, tmp_path, monkeypatch):
    broken = copy.deepcopy(base.model)
    broken.get_input_embeddings().weight.data[:] = float("nan")
    with pytest.raises(BadNumbers, match="logits of 40 of 40 rows are no numbers") as caught:
        score(score_job(tiny_base, tmp_path), replace(base, model=broken), quiet)
    assert caught.value.where == "row_id 0, 1, 2, 3, 4"


def test_who_scores_the_same_may_clear_the_blocks_away_at_any_moment(base, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setitem(scoring.BLOCK_ROWS, "verifier", 16)
    write = Scored.write

    def and_clear(self, folder):
        write(self, folder)
        shutil.rmtree(tmp_path / "blocks", ignore_errors=True)

    monkeypatch.setattr(Scored, "write", and_clear)
    job = score_job(tiny_base, tmp_path, n=40)
    assert score(job, base, quiet)["rows"] == 40 == len(read(job))


class Killed(Exception):
    pass


def killed_after(rows: int):
    """An emit that ends the job once so many rows are told to be done."""

    def emit(event, **fields):
        if event == "progress" and fields["done"] > rows:
            raise Killed

    return emit


@pytest.mark.parametrize("task", ["verifier", "solver"])
def test_a_killed_scoring_goes_on_where_it_was_and_says_the_same(base, tiny_base, tmp_path, monkeypatch, task):
    monkeypatch.setitem(scoring.BLOCK_ROWS, task, 16)
    whole, job = (score_job(tiny_base, tmp_path / name, task, n=40) for name in ("whole", "killed"))
    score(whole, base, quiet)
    with pytest.raises(Killed):
        score(job, base, killed_after(20))
    told = []
    result = score(job, base, lambda event, **fields: told.append((event, fields)))
    assert result["resumed"] == 16 and result["rows"] == 40
    assert any("16 of 40 rows were scored before" in fields.get("text", "") for _, fields in told)
    assert min(fields["done"] for event, fields in told if event == "progress") > 16
    assert (Path(job.output) / "scores.parquet").read_bytes() == (Path(whole.output) / "scores.parquet").read_bytes()


def test_a_damaged_block_is_scored_again(base, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setitem(scoring.BLOCK_ROWS, "verifier", 16)
    job = score_job(tiny_base, tmp_path, n=40)
    score(job, base, quiet)
    block = tmp_path / "blocks" / "000000016-000000032" / "scores.parquet"
    before = read(job)
    block.write_bytes(block.read_bytes()[:-1] + b"x")
    assert score(job, base, quiet)["resumed"] == 24
    assert read(job).equals(before)
    assert list((tmp_path / "blocks").glob("damaged-*"))


def test_words_are_looked_at_on_a_sample_and_an_untrained_base_is_malformed(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, words_rows=12)
    score(job, base, quiet)
    table = read(job)
    said = table["said"].to_pylist()
    assert set(said[12:]) == {None} and None not in said[:12]
    assert "malformed" in said[:12]
    assert set(table["prediction"].to_pylist()) <= {True, False}


@pytest.mark.slow
def test_a_trained_verifier_says_its_labels(base, tiny_base, tmp_path):
    trained = sft_job(tiny_base, tmp_path / "sft", sft=Sft(learning_rate=2e-2, examples_per_step=16, epochs=8, save_every=100))
    train_chunk(trained, base, quiet)
    job = score_job(tiny_base, tmp_path, adapter=Path(trained.output), words_rows=40)
    score(job, base, quiet)
    table = read(job)
    for said, prediction in zip(table["said"].to_pylist(), table["prediction"].to_pylist(), strict=True):
        assert said == ("true" if prediction else "false")


def test_a_limit_scores_the_first_rows_only(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, limit=7, words_rows=0)
    score(job, base, quiet)
    assert pq.read_metadata(Path(job.output) / "scores.parquet").num_rows == 7


def test_solutions_are_graded_and_cut_off_ones_are_told_apart(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, task="solver")
    score(job, base, quiet)
    table, rows = read(job).to_pylist(), pq.read_table(job.rows).to_pylist()
    assert any(not solution["finished"] for solution in table)
    for solution, row in zip(table, rows, strict=True):
        assert solution["given"] == extract_answer(solution["completion"])
        assert solution["correct"] == same_answer(row["answer"], solution["given"])
        assert solution["outcome"] in ("right", "wrong", "unparsed") or not solution["finished"]


def drawn(job):
    """The samples that a job has written."""
    return pq.read_table(Path(job.output) / "samples.parquet")


def sampling(**changes) -> Evaluation:
    return Evaluation(**{"batch_size": 16, "max_new_tokens": 12, "samples": 3, "temperature": 0.8, **changes})


def test_samples_of_the_first_rows_do_not_depend_on_what_they_are_drawn_with(base, tiny_base, tmp_path, monkeypatch):
    job, told = score_job(tiny_base, tmp_path / "a", "solver", evaluation=sampling(), sample_rows=10, n=20), []
    score(job, base, lambda event, **fields: told.append(fields))
    assert max(fields["done"] for fields in told if fields.get("text") == "sampling") == 10  # in rows
    table = drawn(job)
    assert table.schema.equals(SAMPLES) and read(job).num_rows == 20
    assert table["row_id"].to_pylist() == [row for row in range(10) for _ in range(3)]
    assert table["sample"].to_pylist() == [0, 1, 2] * 10
    assert len(set(table["completion"].to_pylist())) > 15  # by chance
    for row in table.to_pylist():
        assert row["given"] == extract_answer(row["completion"]) and (row["same_as"] is None) == (row["given"] is None)

    monkeypatch.setitem(scoring.BLOCK_ROWS, "solver", 4)  # other blocks, other batches
    again = score_job(tiny_base, tmp_path / "b", "solver", evaluation=sampling(batch_size=5), sample_rows=10, n=20)
    score(again, base, quiet)
    assert drawn(again).equals(table) and read(again).equals(read(job))
    fewer = score_job(tiny_base, tmp_path / "c", "solver", evaluation=sampling(samples=2), sample_rows=6, n=20)
    score(fewer, base, quiet)
    assert drawn(fewer)["completion"].to_pylist() == [
        row["completion"] for row in table.to_pylist() if row["row_id"] < 6 and row["sample"] < 2]


def test_no_samples_where_none_are_asked(base, tiny_base, tmp_path):
    for job in (score_job(tiny_base, tmp_path / "a", "solver", sample_rows=10, n=4),
                score_job(tiny_base, tmp_path / "b", "solver", evaluation=sampling(), n=4)):
        score(job, base, quiet)
        assert not (Path(job.output) / "samples.parquet").exists()


def test_noise_draws_from_the_softmax_at_a_temperature():
    logits, temperature, count = torch.tensor([2.0, 1.0, 0.0, -torch.inf]), 0.7, 20_000
    noise = GumbelNoise(temperature, [sample_seed(7, i) for i in range(count)], torch.device("cpu"))
    tokens = noise(torch.zeros(count, 1), logits.expand(count, -1)).argmax(-1)
    expected = (logits / temperature).softmax(-1)
    found = torch.bincount(tokens, minlength=4) / count
    assert found[3] == 0
    assert torch.all((found - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-9)


def test_the_largest_token_is_nearly_always_drawn_at_a_low_temperature(base, tiny_base, tmp_path):
    job = score_job(tiny_base, tmp_path, "solver", evaluation=sampling(temperature=1e-6), sample_rows=8, n=8)
    score(job, base, quiet)
    greedy = [text for text in read(job)["completion"].to_pylist() for _ in range(3)]
    assert drawn(job)["completion"].to_pylist() == greedy

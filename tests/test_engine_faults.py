"""What becomes of a job when its engine fails: real processes, faults injected at exact places, the bytes compared."""

import itertools
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from mathtune.engine_client import EngineClient
from mathtune.errors import BadNumbers, EngineError, ModelError, TrainingError
from mathtune.jobs import SCORE_HALVINGS, even_split
from mathtune.packed_trainer import PackedTrainer
from mathtune.recipe import Lora, Sft
from mathtune.sft import train_chunk
from tests.jobs_fixtures import CPU, grpo_job, score_job, sft_job
from tests.training_fixtures import Events, fresh

pytestmark = pytest.mark.slow
SFT = Sft(learning_rate=5e-3, examples_per_step=16, save_every=2)


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory):
    """The result of an undisturbed job (six steps, dropout)."""
    job = sft_job(tiny_base, tmp_path_factory.mktemp("whole"))
    return train_chunk(job, fresh(job), Events())


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def run(events, tmp_path, monkeypatch):
    """Runs a job in a real engine under a fault that fires once, or at every start."""

    def run(job, at, do, ordinal=1, once=True, **client):
        fault = {"at": at, "do": do, "ordinal": ordinal, **({"once": str(tmp_path / "fired")} if once else {})}
        monkeypatch.setenv("MATHTUNE_FAULT", json.dumps(fault))
        with EngineClient(tmp_path / "engine.log", lambda event: events(**event), **client) as engine:
            return engine.run(job)

    return run


@pytest.mark.parametrize(("at", "do", "ordinal", "cause", "resumed"), [
    ("checkpoint:sealed", "kill", 2, "signal SIGKILL", [2]), ("step", "segfault", 3, "signal SIGSEGV", [2]),
    ("step", "hang", 5, "no event for 15 s", [4])])
def test_a_dead_or_silent_engine_is_replaced_and_the_bytes_are_the_same(
        run, events, whole, tiny_base, tmp_path, at, do, ordinal, cause, resumed):
    result = run(sft_job(tiny_base, tmp_path), at, do, ordinal, silent_seconds=15 if do == "hang" else 600)
    assert result["adapter_digest"] == whole["adapter_digest"]
    assert len(result["incidents"]) == 1 and cause in result["incidents"][0]
    assert [event["step"] for event in events.of("resumed")] == resumed
    assert result["redone"]["largest_loss_difference"] == 0 and result["redone"]["steps"] <= 2


def test_an_engine_that_dies_at_every_start_is_given_up(run, events, tiny_base, tmp_path):
    with pytest.raises(EngineError, match="died 3 times in one job, the last time by signal SIGKILL") as caught:
        run(sft_job(tiny_base, tmp_path), "step", "kill", once=False, restarts=2)
    assert caught.value.where == str(tmp_path / "engine.log") and len(events.of("notice")) == 2


def test_out_of_memory_halves_the_packs_and_the_step_stays_the_same(run, events, tiny_base, tmp_path):
    """Without dropout: the masks of two packs are not those of one."""
    plain = {"lora": Lora(rank=8, alpha=16), "hardware": CPU.model_copy(update={"pack_tokens": 1024})}
    undisturbed = sft_job(tiny_base, tmp_path / "whole", **plain)
    expected = train_chunk(undisturbed, fresh(undisturbed), Events())
    result = run(sft_job(tiny_base, tmp_path, **plain), "step", "memory", ordinal=3)
    assert result["pack_tokens"] == 512 and "half as much at a time" in result["incidents"][0]
    assert [event["step"] for event in events.of("resumed")] == [2]
    losses = [[step["loss"] for step in one["curve"]["steps"]] for one in (result, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] != losses[1]
    mine, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "whole"))
    assert all(torch.allclose(mine[name], theirs[name], atol=2e-3) for name in mine)


def test_out_of_memory_with_one_example_is_the_end(run, events, tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, hardware=CPU.model_copy(update={"pack_tokens": 128}))
    with pytest.raises(ModelError, match=r"the longest example \(\d+ tokens\) does not fit the memory") as caught:
        run(job, "step", "memory", once=False)
    assert len(events.of("notice")) == 2  # 128, then the longest example, then nothing smaller
    assert "hardware.recompute=full" in caught.value.remedy


def test_halved_jobs_reach_one_and_stop(tiny_base, tmp_path):
    job = grpo_job(tiny_base, tmp_path, tmp_path, generations=8)
    job = job.model_copy(update={"hardware": CPU.model_copy(update={"micro_batch": 100})})
    sizes = []
    while job:
        sizes.append(job.micro_batch)
        job = job.halved()
    assert sizes == [16, 8, 4, 2, 1]
    score, sizes = score_job(tiny_base, tmp_path, "solver"), []
    while score:
        sizes.append(score.batch_size)
        score = score.halved()
    assert sizes == [16, 8, 4, 2, 1]
    score, halvings = score_job(tiny_base, tmp_path), 0
    while score:
        score, halvings = score.halved(), halvings + 1
    assert halvings == SCORE_HALVINGS + 1
    assert [even_split(12, held) for held in (1, 5, 7, 12, 99)] == [1, 4, 6, 12, 12]


def test_a_number_that_was_bad_once_is_gone_back_behind_and_the_bytes_are_the_same(run, events, whole, tiny_base, tmp_path):
    result = run(sft_job(tiny_base, tmp_path), "loss", "nan", ordinal=7)  # two packs a step: in step 4
    assert result["adapter_digest"] == whole["adapter_digest"]
    assert "step 4: loss is nan; row_id" in result["incidents"][0]
    assert [event["step"] for event in events.of("resumed")] == [2]


@pytest.fixture
def poisoned(tiny_base, tmp_path):
    """The tiny base with a word whose embedding is not a number, the word, and a job of whose rows one holds it."""
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(tiny_base, tmp_path / "poisoned"))
    job = sft_job(folder, tmp_path / "job")
    rows = pq.read_table(tmp_path / "job" / "rows.parquet").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen = [set(tokenizer.encode(f"{row['question']} {row['solution']} {row['answer']}")) for row in rows]
    number, token = next((n, min(own)) for n, ids in enumerate(seen)
                         if (own := ids - set().union(*(other for m, other in enumerate(seen) if m != n))))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return job, rows[number]["row_id"]


def test_a_row_that_gives_no_number_stops_the_chunk_after_one_more_try_and_is_named(poisoned, events, tmp_path):
    job, row_id = poisoned
    with EngineClient(tmp_path / "engine.log", lambda event: events(**event)) as engine:
        with pytest.raises(BadNumbers, match="loss is nan; row_id") as caught:
            engine.run(job)
    named = [int(word) for word in caught.value.what.partition("row_id ")[2].split(", ")]
    assert row_id in named and 6 <= len(named) <= 10  # the pack's, not the step's 16
    step = int(caught.value.where.removeprefix("step "))
    assert [event["step"] for event in events.of("step")].count(step) == 0  # not one more step
    assert len(events.of("notice")) == 1 and "tries once more" in events.of("notice")[0]["text"]
    newest = max((tmp_path / "job" / "checkpoints").glob("step-*"), default=None)
    if newest:  # the last good one: whole, and before the bad step
        assert int(newest.name[5:]) < step
        assert all(tensor.isfinite().all() for tensor in load_file(newest / "adapter_model.safetensors").values())


def test_a_gradient_that_is_no_number_stops_before_the_step_is_saved(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, sft=SFT.model_copy(update={"learning_rate": 1e30, "warmup": 0, "max_grad_norm": 1e30}))
    events = Events()
    with pytest.raises(BadNumbers, match="is (nan|inf)"):
        train_chunk(job, fresh(job), events)
    assert all(abs(event["loss"]) < 1e30 for event in events.of("step"))


@pytest.mark.parametrize("policy", [None, 4.0])
def test_a_loss_that_jumps_does_as_the_recipe_says(tiny_base, tmp_path, policy, monkeypatch):
    calls = itertools.count(1)
    loss = PackedTrainer._loss

    def ten_times_at_step_22(*args, **kwargs):
        return loss(*args, **kwargs) * (10 if next(calls) == 22 else 1)

    monkeypatch.setattr(PackedTrainer, "_loss", ten_times_at_step_22)
    sft = SFT.model_copy(update={"learning_rate": 1e-5, "max_loss_jump": policy, "max_steps": 24})
    job, events = sft_job(tiny_base, tmp_path, sft=sft, hardware=CPU.model_copy(update={"pack_tokens": 4096})), Events()
    if policy is None:
        assert train_chunk(job, fresh(job), events)["steps"] == 24
        return
    with pytest.raises(TrainingError, match=r"loss jumped to \d+\.\d+, \d+\.\d times its median") as caught:
        train_chunk(job, fresh(job), events)
    assert caught.value.where == "step 22" and events.of("step")[-1]["step"] == 21

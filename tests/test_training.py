"""Training: float32 masters, the same bytes from a warm engine and after an interruption, and loud stops."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mathtune import grpo as grpo_module
from mathtune.errors import TrainingError
from mathtune.grpo import refine
from mathtune.recipe import Lora, Tracking
from mathtune.scoring import score
from mathtune.sft import train_chunk
from tests.jobs_fixtures import CPU, grpo_job, score_job, sft_job
from tests.training_fixtures import Events, fresh, two_epochs


def test_a_chunk_learns_and_says_what_it_did(undisturbed):
    job, result, events = undisturbed
    steps = result["curve"]["steps"]
    assert result["steps"] == 12 == len(steps) == len(events.of("step"))
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert {"step", "loss", "learning_rate", "grad_norm", "tokens", "seconds"} <= steps[0].keys()
    assert [event["step"] for event in events.of("checkpoint")] == [2, 4, 6, 8, 10, 12]
    tensors = load_file(Path(job.output) / "adapter_model.safetensors")
    assert result["trainable"] == sum(tensor.numel() for tensor in tensors.values())
    assert result["peak_gib"] is None and result["peak_rss_gib"] > 0.1  # torch alone takes more


def test_masters_are_float32_and_finer_than_bfloat16(undisturbed):
    job, _, _ = undisturbed
    tensors = load_file(Path(job.output) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all((tensor != tensor.bfloat16().float()).any() for tensor in tensors.values())


def test_a_warm_engine_trains_the_same_bytes_as_a_cold_one(undisturbed, tiny_base, tmp_path):
    job, cold, _ = undisturbed
    base = fresh(job)
    score(score_job(tiny_base, tmp_path / "score"), base, Events())
    other = sft_job(tiny_base, tmp_path / "other", n=32)
    train_chunk(other, base, Events())
    again = sft_job(tiny_base, tmp_path / "again", sft=two_epochs())
    assert train_chunk(again, base, Events())["adapter_digest"] == cold["adapter_digest"]


@pytest.mark.parametrize("stop_at", [3, 6, 11])
def test_an_interrupted_chunk_ends_with_the_same_bytes(undisturbed, tiny_base, tmp_path, stop_at):
    """Step 6 ends the first epoch; 3 and 11 lie past a checkpoint, so a step is done again."""
    _, whole, _ = undisturbed
    job = sft_job(tiny_base, tmp_path, sft=two_epochs())

    def dies(event, **fields):
        if event == "step" and fields["step"] == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_chunk(job, fresh(job), dies)
    events = Events()
    result = train_chunk(job, fresh(job), events)
    assert events.of("resumed") == [{"event": "resumed", "step": (stop_at - 1) // 2 * 2}]
    assert result["adapter_digest"] == whole["adapter_digest"]
    assert [step["loss"] for step in result["curve"]["steps"]] == [step["loss"] for step in whole["curve"]["steps"]]


def test_a_chunk_goes_on_from_the_link_before(undisturbed, tiny_base, tmp_path):
    job, _, _ = undisturbed
    after = sft_job(tiny_base, tmp_path, start_adapter=job.output, sft=two_epochs(epochs=0.2, learning_rate=1e-12))
    train_chunk(after, fresh(after), Events())
    before, now = (load_file(Path(folder) / "adapter_model.safetensors") for folder in (job.output, after.output))
    assert all(torch.allclose(before[name], now[name], atol=1e-9) for name in before)


def test_the_step_is_the_recipes_whatever_the_card_holds(tiny_base, tmp_path):
    """Solutions differ in length: a mean over packs instead of over the step's label tokens would show."""
    results = {}
    for held in (1, 300, 4096):
        job = sft_job(tiny_base, tmp_path / str(held), task="solver", n=32, sft=two_epochs(max_steps=2),
                      lora=Lora(rank=8, alpha=16), hardware=CPU.model_copy(update={"pack_tokens": held}))
        results[held] = [step["loss"] for step in train_chunk(job, fresh(job), Events())["curve"]["steps"]]
    assert results[1] == pytest.approx(results[4096], rel=1e-4) and results[300] == pytest.approx(results[4096], rel=1e-4)


@pytest.mark.parametrize("hardware", [{"recompute": "selective", "resident": False}, {"recompute": "full"}])
def test_what_is_computed_again_gives_the_same_bytes(undisturbed, tiny_base, tmp_path, hardware):
    _, whole, _ = undisturbed
    job = sft_job(tiny_base, tmp_path, sft=two_epochs(), hardware=CPU.model_copy(update=hardware))
    events = Events()
    assert train_chunk(job, fresh(job), events)["adapter_digest"] == whole["adapter_digest"]
    assert events.of("plan")[0]["recompute"] == hardware["recompute"]


def test_evaluating_on_the_way_changes_nothing_without_dropout(tiny_base, tmp_path):
    digests = set()
    for every in (None, 2):
        job = sft_job(tiny_base, tmp_path / str(every), lora=Lora(rank=8, alpha=16),
                      sft=two_epochs(max_steps=4, evaluate_every=every, evaluate_rows=16))
        digests.add(train_chunk(job, fresh(job), Events())["adapter_digest"])
    assert len(digests) == 1


def test_a_loss_that_is_no_number_stops_the_chunk(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, sft=two_epochs(learning_rate=1e30, warmup=0, max_grad_norm=1e30))
    with pytest.raises(TrainingError, match="is (nan|inf)"):
        train_chunk(job, fresh(job), Events())
    assert not (Path(job.output) / "adapter_model.safetensors").exists()


def wandb_variables() -> dict[str, str]:
    """But for the one by which W&B's processes find each other."""
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and name != "WANDB_SERVICE"}


def test_tracking_goes_offline_without_a_key(tiny_base, tmp_path, offline_wandb):
    before = wandb_variables()
    job = sft_job(tiny_base, tmp_path, sft=two_epochs(max_steps=1), tracking=Tracking(project="maths", group="first"))
    train_chunk(job, fresh(job), Events())
    assert wandb_variables() == before  # the next chunk of the same engine has neither this one's name nor its group
    again = sft_job(tiny_base, tmp_path / "next", sft=two_epochs(max_steps=1), tracking=Tracking(project="maths"))
    train_chunk(again, fresh(again), Events())
    assert len(list(offline_wandb.glob("offline-run-*"))) == 2  # a run for each chunk


@pytest.fixture(scope="module")
def solver(tiny_base, tmp_path_factory):
    job = sft_job(tiny_base, tmp_path_factory.mktemp("solver"), task="solver", n=64, sft=two_epochs())
    train_chunk(job, fresh(job), Events())
    return job


@pytest.fixture
def varied_rewards(monkeypatch):
    """Rewards that differ within a group: the tiny base never finds an answer, and equal rewards teach nothing."""
    def by_length(weight, grader):
        def correctness(completions, **kwargs):
            return [weight * (len(completion) % 7) / 7 for completion in completions]

        return correctness

    monkeypatch.setattr(grpo_module, "correctness_reward", by_length)


@pytest.fixture
def refined(tiny_base, solver, tmp_path, varied_rewards):
    job = grpo_job(tiny_base, tmp_path / "refined", Path(solver.output), alpha=8)
    return job, refine(job, fresh(job), Events())


@pytest.mark.slow
def test_grpo_starts_where_the_link_ended(monkeypatch, tiny_base, tmp_path):
    """Policy, reference and link give the same logits before the first step, under another alpha and more targets."""
    from mathtune.adapters import attach
    from mathtune.models import borrowed

    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    link_lora = Lora(rank=8, alpha=16, targets=attention)
    sft = sft_job(tiny_base, tmp_path / "sft", task="solver", n=32, sft=two_epochs(), lora=link_lora)
    train_chunk(sft, fresh(sft), Events())
    job = grpo_job(tiny_base, tmp_path, Path(sft.output), alpha=8, targets=Lora().targets).model_copy(
        update={"lora": link_lora})
    base, ids = fresh(job), torch.arange(6, 40)[None]
    with borrowed(base) as model, torch.no_grad():
        link = attach(model, link_lora, Path(sft.output)).eval()
        expected = link(input_ids=ids).logits
        link.unload()
    compared = {}

    def instead_of_training(trainer, *_):
        with torch.no_grad():
            trainer.model.eval()
            for adapter in ("default", "ref"):
                trainer.model.set_adapter(adapter)
                compared[adapter] = trainer.model(input_ids=ids).logits
        raise KeyboardInterrupt

    monkeypatch.setattr(grpo_module, "run_trainer", instead_of_training)
    with pytest.raises(KeyboardInterrupt):
        refine(job, base, Events())
    for adapter in ("default", "ref"):
        torch.testing.assert_close(compared[adapter], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_grpo_reports_reward_and_kl_and_saves_a_plain_adapter(refined, solver):
    job, result = refined
    steps = result["curve"]["steps"]
    assert len(steps) == 3 and {"reward", "kl", "completion_length", "frac_reward_zero_std"} <= steps[0].keys()
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5)  # the anchor is the link itself
    config = json.loads((Path(job.output) / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 8 == result["alpha"]
    assert not list(Path(job.output).rglob("ref*"))
    before, after = (load_file(Path(folder) / "adapter_model.safetensors") for folder in (solver.output, job.output))
    assert any(not torch.equal(before[name], after[name]) for name in before if "lora_A" in name)
    assert len({step["reward"] for step in steps}) > 1
    assert result["trainable"] == sum(tensor.numel() for tensor in after.values())


@pytest.mark.slow
def test_interrupted_grpo_ends_with_the_same_bytes(refined, tiny_base, solver, tmp_path):
    _, whole = refined
    again = grpo_job(tiny_base, tmp_path / "again", Path(solver.output), alpha=8)

    def dies(event, **fields):
        if event == "step" and fields["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(again, fresh(again), dies)
    assert refine(again, fresh(again), Events())["adapter_digest"] == whole["adapter_digest"]


def test_a_reward_that_never_moves_stops_grpo():
    from types import SimpleNamespace

    guard, state = grpo_module.FlatRewardGuard(), SimpleNamespace(global_step=9)
    for _ in range(grpo_module.FLAT_STEPS - 1):
        guard.on_log(None, state, None, {"reward_std": 1.2e-7, "frac_reward_zero_std": 0.0, "reward": 1.2})
    guard.on_log(None, state, None, {"reward_std": 0.5, "frac_reward_zero_std": 0.5})
    for _ in range(grpo_module.FLAT_STEPS - 1):
        guard.on_log(None, state, None, {"reward_std": 0.4, "frac_reward_zero_std": 1.0, "reward": 0.5})
    with pytest.raises(TrainingError, match="all rewards of a group were equal"):
        guard.on_log(None, state, None, {"reward_std": 0.4, "frac_reward_zero_std": 1.0, "reward": 0.5})

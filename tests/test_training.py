"""Training: float32 masters, the same bytes from a warm engine and after an interruption, and loud stops."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mathtune import grpo as grpo_module
from mathtune.checkpoints import newest_checkpoint
from mathtune.errors import TrainingError
from mathtune.grpo import refine
from mathtune.models import load_base
from mathtune.scoring import score
from mathtune.sft import train_chunk
from mathtune.training import micro_batch
from tests.jobs_fixtures import CPU, grpo_job, score_job, sft_job


class Events(list):
    def __call__(self, event, **fields):
        self.append({"event": event, **fields})

    def of(self, kind):
        return [event for event in self if event["event"] == kind]


def fresh(job):
    return load_base(job.model, job.hardware, Path(job.cache))


@pytest.fixture(scope="module")
def undisturbed(tiny_base, tmp_path_factory):
    """An SFT job with dropout over two epochs, trained in one go by a cold base."""
    job = sft_job(tiny_base, tmp_path_factory.mktemp("undisturbed"), sft=_two_epochs())
    events = Events()
    result = train_chunk(job, fresh(job), events)
    return job, result, events


def _two_epochs(**changes):
    from mathtune.recipe import Sft

    return Sft(**{"learning_rate": 5e-3, "examples_per_step": 16, "save_every": 2, "epochs": 2, **changes})


def test_a_chunk_learns_and_says_what_it_did(undisturbed):
    job, result, events = undisturbed
    steps = result["curve"]["steps"]
    assert result["steps"] == 12 == len(steps) == len(events.of("step"))
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert result["examples"] == 96 and result["label_tokens"] == 2 * 96  # the word and the end token
    assert {"step", "loss", "learning_rate", "grad_norm", "tokens", "seconds"} <= steps[0].keys()
    assert [event["step"] for event in events.of("checkpoint")] == [2, 4, 6, 8, 10, 12]


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
    again = sft_job(tiny_base, tmp_path / "again", sft=_two_epochs())
    assert train_chunk(again, base, Events())["adapter_digest"] == cold["adapter_digest"]


@pytest.mark.parametrize("stop_at", [3, 6, 11])
def test_an_interrupted_chunk_ends_with_the_same_bytes(undisturbed, tiny_base, tmp_path, stop_at):
    """Step 6 ends the first epoch; 3 and 11 lie past a checkpoint, so a step is done again."""
    _, whole, _ = undisturbed
    job = sft_job(tiny_base, tmp_path, sft=_two_epochs())

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


def test_the_newest_checkpoint_that_is_whole_is_taken(undisturbed, tmp_path):
    job, _, _ = undisturbed
    folder = Path(shutil.copytree(job.checkpoints, tmp_path / "checkpoints"))
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]
    assert not list(folder.rglob("training_args.bin"))  # a pickle that holds the Hub's token
    data = bytearray((folder / "checkpoint-12" / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "checkpoint-12" / "optimizer.pt").write_bytes(data)
    events = Events()
    assert newest_checkpoint(folder, events).name == "checkpoint-10"
    assert "checkpoint-12 is not whole" in events[0]["text"]
    (folder / "checkpoint-10" / "manifest.json").unlink()
    assert newest_checkpoint(folder, events) is None


def test_a_chunk_goes_on_from_the_link_before(undisturbed, tiny_base, tmp_path):
    job, _, _ = undisturbed
    after = sft_job(tiny_base, tmp_path, start_adapter=job.output, sft=_two_epochs(epochs=0.2, learning_rate=1e-12))
    train_chunk(after, fresh(after), Events())
    before, now = (load_file(Path(folder) / "adapter_model.safetensors") for folder in (job.output, after.output))
    assert all(torch.allclose(before[name], now[name], atol=1e-9) for name in before)


def test_the_step_is_the_recipes_whatever_the_card_holds(undisturbed, tiny_base, tmp_path):
    _, whole, _ = undisturbed
    plain = undisturbed[0].lora.model_copy(update={"dropout": 0.0})
    job = sft_job(tiny_base, tmp_path, sft=_two_epochs(max_steps=2), lora=plain,
                  hardware=CPU.model_copy(update={"micro_batch": 5}))
    small = train_chunk(job, fresh(job), Events())
    big_job = sft_job(tiny_base, tmp_path / "big", sft=_two_epochs(max_steps=2),
                      hardware=CPU.model_copy(update={"micro_batch": 16}), lora=job.lora)
    big = train_chunk(big_job, fresh(big_job), Events())
    assert [micro_batch(16, job.hardware), micro_batch(16, big_job.hardware)] == [4, 16]
    for one, other in zip(small["curve"]["steps"], big["curve"]["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_best_step_is_kept_where_the_recipe_says_so(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, sft=_two_epochs(learning_rate=0.3, keep_best=True, evaluate_every=2, evaluate_rows=48,
                                                       schedule="constant"))
    events = Events()
    result = train_chunk(job, fresh(job), events)
    losses = {entry["step"]: entry["eval_loss"] for entry in result["curve"]["evals"]}
    best = min(losses, key=losses.get)
    assert result["best_step"] == best
    kept = {path.name for path in Path(job.checkpoints).iterdir()}
    assert f"checkpoint-{best}" in kept
    saved = load_file(Path(job.checkpoints) / f"checkpoint-{best}" / "adapter_model.safetensors")
    final = load_file(Path(job.output) / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], final[name]) for name in final)


def test_a_loss_that_is_no_number_stops_the_chunk(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, sft=_two_epochs(learning_rate=1e30, warmup=0, max_grad_norm=1e30))
    with pytest.raises(TrainingError, match="is (nan|inf)"):
        train_chunk(job, fresh(job), Events())
    assert not (Path(job.output) / "adapter_model.safetensors").exists()


def test_tracking_goes_offline_without_a_key(tiny_base, tmp_path, monkeypatch):
    from mathtune.recipe import Tracking

    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    job = sft_job(tiny_base, tmp_path, sft=_two_epochs(max_steps=1), tracking=Tracking(project="maths"))
    train_chunk(job, fresh(job), Events())
    import wandb

    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.fixture(scope="module")
def solver(tiny_base, tmp_path_factory):
    job = sft_job(tiny_base, tmp_path_factory.mktemp("solver"), task="solver", n=64, sft=_two_epochs())
    train_chunk(job, fresh(job), Events())
    return job


@pytest.fixture(scope="module")
def refined(tiny_base, solver, tmp_path_factory):
    job = grpo_job(tiny_base, tmp_path_factory.mktemp("grpo"), Path(solver.output), alpha=8,
                   targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    seen = {}

    def watch(event, **fields):
        seen.setdefault(event, []).append(fields)

    return job, refine(job, fresh(job), watch), seen


@pytest.mark.slow
def test_grpo_starts_where_the_link_ended(refined, monkeypatch, tiny_base, solver, tmp_path):
    """Policy, reference and link give the same logits before the first step, under another alpha."""
    from mathtune.adapters import attach
    from mathtune.models import borrowed
    from mathtune.recipe import Lora

    job = grpo_job(tiny_base, tmp_path, Path(solver.output), alpha=8)
    base, ids = fresh(job), torch.arange(6, 40)[None]
    with borrowed(base) as model, torch.no_grad():
        link = attach(model, Lora(rank=8, alpha=16), Path(solver.output)).eval()
        expected = link(input_ids=ids).logits
        link.unload()
    compared = {}

    def instead_of_training(trainer, checkpoints, emit):
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
def test_grpo_reports_reward_and_kl_and_saves_a_plain_adapter(refined):
    job, result, _ = refined
    steps = result["curve"]["steps"]
    assert len(steps) == 3 and {"reward", "kl", "completion_length", "frac_reward_zero_std"} <= steps[0].keys()
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5)  # the anchor is the link itself
    config = json.loads((Path(job.output) / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 8 == result["alpha"]
    assert not list(Path(job.output).rglob("ref*"))


@pytest.mark.slow
def test_interrupted_grpo_ends_with_the_same_bytes(refined, tiny_base, solver, tmp_path):
    job, whole, _ = refined
    again = grpo_job(tiny_base, tmp_path, Path(solver.output), alpha=8, targets=job.grpo.targets)

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
        guard.on_log(None, state, None, {"frac_reward_zero_std": 1.0, "reward": 0.0})
    guard.on_log(None, state, None, {"frac_reward_zero_std": 0.5})
    for _ in range(grpo_module.FLAT_STEPS - 1):
        guard.on_log(None, state, None, {"frac_reward_zero_std": 1.0, "reward": 0.0})
    with pytest.raises(TrainingError, match="all rewards of a group were equal"):
        guard.on_log(None, state, None, {"frac_reward_zero_std": 1.0, "reward": 0.0})

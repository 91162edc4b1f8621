"""Faults of rewards and of GRPO's anchor: the run stops with a word, and mended it ends with the same bytes and the same KL."""

import shutil
from pathlib import Path

import pytest

from mathtune import grpo as grpo_module
from mathtune.adapters import adapter_digest
from mathtune.errors import TrainingError
from mathtune.files import read_manifest
from mathtune.grpo import refine
from mathtune.recipe import Sft
from mathtune.sft import train_chunk
from tests.faults_fixtures import ignore
from tests.jobs_fixtures import grpo_job, sft_job
from tests.training_fixtures import fresh


@pytest.fixture(scope="module")
def solver_link(tiny_base, tmp_path_factory) -> Path:
    job = sft_job(tiny_base, tmp_path_factory.mktemp("solver"), "solver", 64, sft=Sft(learning_rate=5e-3, examples_per_step=16))
    train_chunk(job, fresh(job), ignore)
    return Path(job.output)


def reward_failing(at_step=None, gives=None):
    """A reward by length (the tiny base finds no answer, and equal rewards teach nothing) that fails at one step."""
    def correctness_reward(weight, grader):
        calls = []

        def correctness(completions, **columns):
            calls.append(1)
            rewards = [weight * (len(completion) % 7) / 7 for completion in completions]
            return [gives(), *rewards[1:]] if len(calls) == at_step else rewards

        return correctness

    return correctness_reward


@pytest.mark.slow
@pytest.mark.parametrize(("gives", "said"), [
    (lambda: 1 / 0, "the reward correctness raised ZeroDivisionError: division by zero"),
    (lambda: float("nan"), "the reward correctness gave nan, one of 1 of 8"),
    (lambda: None, "the reward correctness gave None, one of 1 of 8")])
def test_a_reward_that_fails_stops_and_a_mended_one_goes_on_to_the_same_bytes_and_the_same_kl(
        tiny_base, solver_link, tmp_path, monkeypatch, gives, said):
    whole, job = (grpo_job(tiny_base, tmp_path / name, solver_link, alpha=8) for name in ("whole", "stopped"))
    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing())
    expected = refine(whole, fresh(whole), ignore)
    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing(3, gives))
    with pytest.raises(TrainingError, match=rf"{said}\n→ mend the reward; the last checkpoint is kept"):
        refine(job, fresh(job), ignore)
    kept = [read_manifest(folder) for folder in sorted((tmp_path / "stopped" / "checkpoints").glob("step-*"))]
    assert [manifest["step"] for manifest in kept] == [1, 2] and not Path(job.output).exists()
    assert kept[1]["start"] == adapter_digest(solver_link)  # the reference that KL is measured from

    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing())
    seen = []
    result = refine(job, fresh(job), lambda event, **fields: seen.append((event, fields.get("step"))))
    assert ("resumed", 2) in seen and result["adapter_digest"] == expected["adapter_digest"]
    curve, undisturbed = ([(step["kl"], step["loss"], step["reward"]) for step in one["curve"]["steps"]] for one in (
        result, expected))
    assert curve == undisturbed and curve[2][0] > 0


@pytest.mark.slow
def test_grpo_started_again_without_its_state_or_from_another_link_measures_kl_from_its_link(
        tiny_base, solver_link, tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing())
    job = grpo_job(tiny_base, tmp_path, solver_link)
    whole = refine(job, fresh(job), ignore)
    moved, seen = job.model_copy(update={"start_adapter": job.output, "output": str(tmp_path / "moved")}), []
    result = refine(moved, fresh(job), lambda event, **fields: seen.append((event, fields.get("text", ""))))
    assert any("made with another start" in text for event, text in seen if event == "notice")
    assert "resumed" not in [event for event, _ in seen] and result["curve"]["steps"][0]["kl"] == pytest.approx(0, abs=1e-5)
    shutil.rmtree(tmp_path / "checkpoints")  # the state is lost: it starts from the link, not from where it was
    again = refine(job, fresh(job), ignore)
    assert again["adapter_digest"] == whole["adapter_digest"] and again["curve"]["steps"][0]["kl"] == pytest.approx(0, abs=1e-5)

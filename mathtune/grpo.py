"""Refines a solver's adapter: trl's GRPOTrainer on an SFT link, KL anchored to that link.

Every optimizer step generates its own completions, so a checkpoint never falls inside a generation window; prompts are
laid out for the whole run beforehand, since trl's sampler replays the first epoch's order after a resume.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from mathtune.adapters import (
    WEIGHTS,
    adapter_digest,
    attach,
    masters,
    parameter_counts,
    reshape_for,
    restore_masters,
    save_adapter,
    towers,
)
from mathtune.devices import NO_PEAK, peak_memory
from mathtune.errors import DataError, TrainingError
from mathtune.events import Emit
from mathtune.grading import Grader
from mathtune.guards import BadNumberGuard
from mathtune.jobs import GrpoJob
from mathtune.models import Base, borrowed
from mathtune.order import lay_out
from mathtune.prompts import PromptBuilder
from mathtune.recipe import Lora
from mathtune.resume import Run, open_run
from mathtune.rewards import checked, correctness_reward, format_reward
from mathtune.training import common_arguments, run_trainer

FLAT_STD = 1e-6
FLAT_STEPS = 20  # so many steps in a row in which no group's rewards differ: nothing can be learned


def refined_lora(job: GrpoJob) -> Lora:
    """The adapter's shape for GRPO: the link's, with the recipe's other alpha or further targets."""
    changes = {"alpha": job.grpo.alpha, "targets": job.grpo.targets}
    return job.lora.model_copy(update={name: value for name, value in changes.items() if value is not None})


def refine(job: GrpoJob, base: Base, emit: Emit) -> dict[str, Any]:
    """Runs GRPO and writes the adapter to ``job.output``.

    Returns:
        what ``sft.train_chunk`` returns, and timed_out: comparisons that took too long or too much memory, counted since the
        last resume; there is none where the job found its training finished.
    """
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    prompts, left_out = fitting_rows(job, builder)
    emit("phase", text="prompts laid out", prompts=len(prompts), left_out=left_out)
    grpo, lora = job.grpo, refined_lora(job)
    places = grpo.max_steps * grpo.prompts_per_step
    order = lay_out([row["row_id"] for row in prompts], places, grpo.prompts_per_step, grpo.seed)
    set_seed(grpo.seed)
    with open_run(job, base, order, emit, job.micro_batch) as run, borrowed(base) as model:
        model.generation_config.eos_token_id = builder.stop_tokens()
        adapted = attach(model, lora, None)
        try:
            start = reshape_for(load_file(Path(job.start_adapter) / WEIGHTS), job.lora, lora, adapted)
            restore_masters(adapted, start)
            counts = parameter_counts(adapted)  # before trl adds a copy as the reference
            outcome, peak = run.finished, NO_PEAK
            if outcome is None:
                with peak_memory(base.compute) as peak:
                    outcome = _train(job, base, adapted, start, as_dataset(prompts, builder, run), run)
        finally:
            adapted.unload()
    save_adapter(outcome.pop("tensors"), lora, job.model.base, Path(job.output), towers(base.model.config))
    base.tokenizer.save_pretrained(job.output)
    return {**outcome, **counts, **peak, "adapter_digest": adapter_digest(Path(job.output)),
            "examples": len(order.positions), "left_out": left_out, "alpha": lora.alpha, "targets": sorted(lora.targets)}


def _train(job: GrpoJob, base: Base, adapted, start: dict[str, torch.Tensor], prompts: Dataset, run: Run) -> dict[str, Any]:
    with Grader(notice=lambda text: run.emit("notice", text=text)) as grader:
        trainer = make_trainer(job, base, adapted, prompts, run, grader)
        restore_masters(adapted, start)
        assert_policy_is_reference(adapted, start)
        guard = BadNumberGuard(run.order)
        guard.watch(trainer)
        return {**run_trainer(trainer, job, run, guard, job.grpo.save_minutes), "timed_out": grader.timed_out}


def make_trainer(job: GrpoJob, base: Base, adapted, prompts: Dataset, run: Run, grader: Grader) -> GRPOTrainer:
    """trl's trainer with both rewards; one generation batch an optimizer step."""
    grpo = job.grpo
    arguments = GRPOConfig(
        **common_arguments(job, grpo, base.compute, run),
        per_device_train_batch_size=run.budget, gradient_accumulation_steps=job.step_size // run.budget,
        gradient_checkpointing=job.hardware.gradient_checkpointing,
        num_generations=grpo.generations, max_completion_length=grpo.max_new_tokens, temperature=grpo.temperature,
        beta=grpo.beta, shuffle_dataset=False,
        disable_dropout=True)  # else policy and reference differ by chance alone, before any step is made
    rewards = [checked(correctness_reward(grpo.correct_reward, grader)), checked(format_reward(grpo.format_reward))]
    return GRPOTrainer(adapted, rewards, arguments, train_dataset=prompts, processing_class=base.tokenizer,
                       callbacks=[FlatRewardGuard()])


def fitting_rows(job: GrpoJob, builder: PromptBuilder) -> tuple[list[dict[str, Any]], int]:
    """The rows whose prompt leaves room for an answer, and how many were left out."""
    rows = pq.read_table(job.rows).to_pylist()
    ids, _ = builder.prompt_ids(rows, reserve=0)
    fitting = [row for row, one in zip(rows, ids, strict=True)
               if len(one) + job.grpo.max_new_tokens <= job.model.max_length]
    if not fitting:
        raise DataError("no prompt leaves room for an answer", where="grpo.max_new_tokens",
                        remedy="raise model.max_length or lower grpo.max_new_tokens")
    return fitting, len(rows) - len(fitting)


def as_dataset(rows: list[dict[str, Any]], builder: PromptBuilder, run: Run) -> Dataset:
    """Prompts and right answers (``prompt``, ``answer``) in the order in which the rest of the run asks them."""
    left = [rows[i] for i in run.order.after(run.step)]
    return Dataset.from_list([{"prompt": builder.grpo_prompt(row), "answer": row["answer"]} for row in left])


def assert_policy_is_reference(adapted, start: dict[str, torch.Tensor]) -> None:
    """Before the first step the policy must be the reference that the KL is measured from.

    Raises:
        TrainingError: they differ. trl rounds the policy to bfloat16 but not its copy, the reference.
    """
    policy = masters(adapted)
    reference = {name.replace(".ref.", "."): parameter for name, parameter in adapted.named_parameters() if ".ref." in name}
    wrong = [name for name in start if not torch.equal(policy[name], start[name])]
    wrong += [name for name in reference if not torch.equal(reference[name].cpu().float(), start[name])]
    if wrong:
        raise TrainingError("policy and reference differ before the first step", where=wrong[0])


class FlatRewardGuard(TrainerCallback):
    """Stops a run whose rewards never differ within a group: GRPO then has no signal, quietly (open-r1#363)."""

    def __init__(self):
        self.flat = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward_std" not in (logs or {}):
            return
        # trl's share of flat groups misses equal rewards of 1.2, whose standard deviation is 1e-7 in float32
        flat = float(logs["frac_reward_zero_std"]) == 1.0 or float(logs["reward_std"]) < FLAT_STD
        self.flat = self.flat + 1 if flat else 0
        if self.flat >= FLAT_STEPS:
            raise TrainingError(
                f"all rewards of a group were equal for {self.flat} steps (mean reward {logs.get('reward')})",
                where=f"step {state.global_step}",
                remedy="train more SFT chunks first, raise grpo.max_new_tokens or grpo.temperature")

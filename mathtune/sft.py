"""Trains one chunk: trl's SFTTrainer on a LoRA adapter over the frozen base, loss on the completion only."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import load_file
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from mathtune.adapters import WEIGHTS, adapter_digest, attach, masters, restore_masters, save_adapter
from mathtune.events import Emit
from mathtune.guards import BadNumberGuard
from mathtune.jobs import SftJob
from mathtune.models import Base, borrowed
from mathtune.order import Order, lay_out
from mathtune.recipe import Sft
from mathtune.resume import Run, open_run
from mathtune.tokens import Tokens, read_tokens
from mathtune.training import common_arguments, run_trainer


def train_chunk(job: SftJob, base: Base, emit: Emit) -> dict[str, Any]:
    """Trains the job's examples and writes the adapter to ``job.output``.

    Returns:
        steps, seconds, curve, redone, micro_batch, adapter_digest.
    """
    tokens = read_tokens(Path(job.tokens))
    order = make_order(job.sft, tokens.row_ids.tolist())
    set_seed(job.sft.seed)
    with open_run(job, base, order, emit) as run, borrowed(base) as model:
        adapted = attach(model, job.lora, Path(job.start_adapter) if job.start_adapter else None)
        try:
            outcome = run.finished or _train(job, base, adapted, tokens, run)
        finally:
            adapted.unload()
        if job.sft.keep_best:
            outcome["tensors"] = load_file(run.checkpoints.load(outcome["best_step"]).folder / WEIGHTS)
    save_adapter(outcome.pop("tensors"), job.lora, job.model.base, Path(job.output))
    base.tokenizer.save_pretrained(job.output)
    return {**outcome, "adapter_digest": adapter_digest(Path(job.output))}


def _train(job: SftJob, base: Base, adapted, tokens: Tokens, run: Run) -> dict[str, Any]:
    start = masters(adapted)
    trainer = make_trainer(job, base, adapted, tokens, run)
    restore_masters(adapted, start)
    guard = BadNumberGuard(run.order, run.micro_batch, job.sft.max_loss_jump)
    return run_trainer(trainer, run, guard, job.sft.save_minutes)


def make_order(sft: Sft, row_ids: list[int]) -> Order:
    """The examples of every step: passes over all of them, for so many epochs or steps as the recipe says."""
    places = sft.max_steps * sft.examples_per_step if sft.max_steps else max(1, round(sft.epochs * len(row_ids)))
    return lay_out(row_ids, places, sft.examples_per_step, sft.seed)


def make_trainer(job: SftJob, base: Base, adapted, tokens: Tokens, run: Run) -> SFTTrainer:
    """trl's trainer over rows that are tokenised already; its own truncation and EOS handling stay out of it."""
    sft = job.sft
    arguments = SFTConfig(
        **common_arguments(job, sft, base.compute, run), per_device_eval_batch_size=run.micro_batch,
        weight_decay=sft.weight_decay, eval_strategy="steps" if job.validation_tokens else "no", eval_steps=sft.evaluate_every,
        train_sampling_strategy="sequential", max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    validation = as_dataset(read_tokens(Path(job.validation_tokens))) if job.validation_tokens else None
    return SFTTrainer(adapted, arguments, train_dataset=as_dataset(tokens).select(run.order.after(run.step)),
                      processing_class=base.tokenizer, eval_dataset=validation)


def as_dataset(tokens: Tokens) -> Dataset:
    """``input_ids`` and ``labels`` as trl's collator expects them; -100 where the prompt is."""
    rows = [(tokens.of(i).tolist(), int(tokens.prompt_lengths[i])) for i in range(len(tokens))]
    return Dataset.from_dict({"input_ids": [ids for ids, _ in rows],
                              "labels": [[-100] * prompt + ids[prompt:] for ids, prompt in rows]})

"""Trains one chunk: a LoRA adapter over the frozen base, on packs of examples, loss on the completion only."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from transformers import TrainingArguments, set_seed

from mathtune.adapters import WEIGHTS, adapter_digest, attach, parameter_counts, save_adapter, towers
from mathtune.devices import NO_PEAK, peak_memory
from mathtune.events import Emit
from mathtune.fast.llama import why_not
from mathtune.guards import BadNumberGuard
from mathtune.jobs import SftJob
from mathtune.layout import Layout, StepSizes, free_bytes, shape_of
from mathtune.models import Base, borrowed
from mathtune.order import Order, lay_out
from mathtune.packed_model import packed
from mathtune.packed_trainer import NoteLoss, PackedSteps, PackedTrainer, cut_step
from mathtune.planner import Plan
from mathtune.ranks import ALONE, Ranks
from mathtune.recipe import Sft
from mathtune.resume import Run, open_run
from mathtune.tokens import Tokens, read_tokens
from mathtune.training import common_arguments, run_trainer


def train_chunk(job: SftJob, base: Base, emit: Emit, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Trains the job's examples, together with the other ranks, and writes the adapter to ``job.output``.

    Returns:
        steps, seconds, curve, redone, pack_tokens, adapter_digest, trainable and parameters (of the adapter; with the base),
        peak_gib (torch's, of a GPU), peak_rss_gib (of this process, where there is no GPU); both None where the job found its
        training finished.
    """
    tokens = read_tokens(Path(job.tokens))
    order = make_order(job.sft, tokens.row_ids.tolist())
    set_seed(job.sft.seed)
    shape, sizes = shape_of(base.model.config, base.compute, job.lora), StepSizes.of(tokens, order, ranks.size)
    layout = Layout(shape, job.lora, job.hardware, base.compute, sizes)
    free = free_bytes(base.compute, job.hardware)
    planned = layout.plan(free).pack_tokens
    with open_run(job, base, order, emit, planned, sizes.longest, ranks) as run, borrowed(base) as model:
        plan = layout.plan(free, run.budget)
        why = why_not(base.model.config, job.lora.targets)
        emit("plan", text=f"{plan} ({why})" if why else str(plan), pack_tokens=plan.pack_tokens,
             recompute=plan.recompute, resident=plan.resident)
        adapted = attach(model, job.lora, Path(job.start_adapter) if job.start_adapter else None)
        counts = parameter_counts(adapted)
        try:
            outcome, peak = run.finished, NO_PEAK
            if outcome is None:
                with peak_memory(base.compute) as peak:
                    outcome = _train(job, base, adapted, tokens, run, plan)
        finally:
            adapted.unload()
        if not ranks.first:
            return {}
        if job.sft.keep_best:
            outcome["tensors"] = load_file(run.checkpoints.load(outcome["best_step"]).folder / WEIGHTS)
    save_adapter(outcome.pop("tensors"), job.lora, job.model.base, Path(job.output), towers(base.model.config))
    base.tokenizer.save_pretrained(job.output)
    return {**outcome, **counts, **peak, "adapter_digest": adapter_digest(Path(job.output))}


def _train(job: SftJob, base: Base, adapted, tokens: Tokens, run: Run, plan: Plan) -> dict[str, Any]:
    guard = BadNumberGuard(run.order, job.sft.max_loss_jump)
    with packed(adapted, base.compute, plan):
        trainer = make_trainer(job, base, adapted, tokens, run, plan, guard.note)
        try:
            return run_trainer(trainer, job, run, guard, job.sft.save_minutes)
        finally:
            trainer.release()


def make_order(sft: Sft, row_ids: list[int]) -> Order:
    """The examples of every step: passes over all of them, for so many epochs or steps as the recipe says."""
    places = sft.max_steps * sft.examples_per_step if sft.max_steps else max(1, round(sft.epochs * len(row_ids)))
    return lay_out(row_ids, places, sft.examples_per_step, sft.seed)


def make_trainer(job: SftJob, base: Base, adapted, tokens: Tokens, run: Run, plan: Plan, note_loss: NoteLoss) -> PackedTrainer:
    """The trainer of the steps that are left, each in packs of the run's budget."""
    sft = job.sft
    arguments = TrainingArguments(
        **common_arguments(job, sft, base.compute, run, autocast=not plan.fast), per_device_train_batch_size=1,
        gradient_checkpointing=plan.recompute == "full" and not plan.fast, weight_decay=sft.weight_decay,
        eval_strategy="steps" if job.validation_tokens else "no", eval_steps=sft.evaluate_every,
        ddp_find_unused_parameters=False, ddp_broadcast_buffers=False)  # every pack uses all of the adapter; the base is frozen
    rank, ranks = arguments.process_index, arguments.world_size
    steps = PackedSteps(tokens, run.order, run.step, run.budget, rank, ranks, pin=base.compute.device.type == "cuda")
    validation = None
    if job.validation_tokens:
        rows = read_tokens(Path(job.validation_tokens))
        validation = cut_step(rows, np.arange(len(rows)), run.budget, rank, ranks)
    return PackedTrainer(adapted, arguments, steps, validation, note_loss)

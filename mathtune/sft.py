"""Trains one chunk: trl's SFTTrainer on a LoRA adapter over the frozen base, loss on the completion only."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from mathtune.adapters import attach, masters, restore_masters, save_adapter
from mathtune.checkpoints import CheckpointKeeper
from mathtune.errors import DataError
from mathtune.events import Emit
from mathtune.jobs import SftJob
from mathtune.models import Base, borrowed
from mathtune.prompts import Examples, PromptBuilder
from mathtune.training import Reporter, adapter_digest, common_arguments, fingerprint, micro_batch, run_trainer


def train_chunk(job: SftJob, base: Base, emit: Emit) -> dict[str, Any]:
    """Trains the job's rows and writes the adapter to ``job.output``.

    Returns:
        steps, seconds, curve, adapter_digest, and counts: examples, tokens, label_tokens, shortened, dropped.
    """
    examples = tokenise(job, base, job.rows)
    if not examples.row_ids:
        raise DataError("no example is left to train", where=job.rows, remedy="raise model.max_length")
    emit("phase", text="tokenised", examples=len(examples.row_ids), shortened=examples.shortened)
    set_seed(job.sft.seed)
    with borrowed(base) as model:
        adapted = attach(model, job.lora, Path(job.start_adapter) if job.start_adapter else None)
        try:
            start = masters(adapted)
            trainer = make_trainer(job, base, adapted, examples, emit)
            restore_masters(adapted, start)
            outcome = run_trainer(trainer, Path(job.checkpoints), fingerprint(base.compute), emit)
        finally:
            adapted.unload()
    save_adapter(outcome.pop("tensors"), job.lora, job.model.base, Path(job.output))
    base.tokenizer.save_pretrained(job.output)
    return {**outcome, "adapter_digest": adapter_digest(Path(job.output)), **counts(examples)}


def make_trainer(job: SftJob, base: Base, adapted, examples: Examples, emit: Emit) -> SFTTrainer:
    """trl's trainer over rows that are tokenised already; its own truncation and EOS handling stay out of it."""
    sft = job.sft
    batch = micro_batch(sft.examples_per_step, job.hardware)
    evaluates = sft.evaluate_every is not None
    arguments = SFTConfig(
        **common_arguments(base.compute, job.hardware, sft, job.checkpoints, job.tracking, job.title),
        per_device_train_batch_size=batch, gradient_accumulation_steps=sft.examples_per_step // batch,
        per_device_eval_batch_size=batch, num_train_epochs=sft.epochs, max_steps=sft.max_steps or -1,
        weight_decay=sft.weight_decay, eval_strategy="steps" if evaluates else "no", eval_steps=sft.evaluate_every,
        load_best_model_at_end=sft.keep_best, metric_for_best_model="eval_loss" if sft.keep_best else None,
        greater_is_better=False if sft.keep_best else None, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True})
    validation = tokenise(job, base, job.validation, sft.evaluate_rows) if evaluates else None
    return SFTTrainer(adapted, arguments, train_dataset=as_dataset(examples), processing_class=base.tokenizer,
                      eval_dataset=as_dataset(validation) if validation else None,
                      callbacks=[Reporter(emit), CheckpointKeeper(fingerprint(base.compute), emit)])


def tokenise(job: SftJob, base: Base, rows_file: str, limit: int | None = None) -> Examples:
    """Token ids of a Parquet file's rows, or of its first ``limit``."""
    rows = pq.read_table(rows_file).slice(0, limit).to_pylist()
    builder = PromptBuilder(job.prompt, base.tokenizer, job.model.max_length)
    if job.task == "verifier":
        builder.label_tokens()
        return builder.verifier_examples(rows)
    return builder.solver_examples(rows, job.model.overlong)


def as_dataset(examples: Examples) -> Dataset:
    """``input_ids`` and ``labels`` as trl's collator expects them; -100 where the prompt is."""
    return Dataset.from_dict({"input_ids": examples.input_ids, "labels": examples.labels})


def counts(examples: Examples) -> dict[str, int]:
    """How much there was to learn from."""
    tokens = sum(len(ids) for ids in examples.input_ids)
    return {"examples": len(examples.row_ids), "tokens": tokens, "label_tokens": tokens - sum(examples.prompt_lengths),
            "shortened": examples.shortened, "dropped": examples.dropped}

"""trl's SFTTrainer as benchmarks/sft_speed.py times it, and what Unsloth, which builds on it, takes from here."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from benchmarks.sft_clock import Clock
from benchmarks.sft_data import steps_of
from benchmarks.sft_systems import LEARNING_RATE, Task
from mathtune.recipe import Hardware, Lora, Model
from mathtune.tokens import Tokens, read_tokens

LORA = Lora(rank=16, alpha=32)


class StepClock(TrainerCallback):
    """Tells the clock of every step that ends, and of its loss."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.step()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.clock.note(logs["loss"], logs.get("num_tokens"))


def in_steps(tokens: Tokens, task: Task) -> np.ndarray:
    """Indices of the examples of each step, int64 (steps, per_step); longest first within a step where the task says so."""
    steps = steps_of(tokens, task.steps, task.per_step)
    if not task.settings.get("sorted"):
        return steps
    return np.take_along_axis(steps, np.argsort(-tokens.lengths[steps], axis=1, kind="stable"), axis=1)


def dataset(task: Task) -> Dataset:
    """``input_ids`` and ``labels`` as trl's collator expects them, -100 where the prompt is, in the order of the steps."""
    tokens = read_tokens(Path(task.tokens))
    order = in_steps(tokens, task).ravel()
    ids = [tokens.of(i).tolist() for i in order]
    labels = [[-100] * n + one[n:] for one, n in zip(ids, tokens.prompt_lengths[order].tolist(), strict=True)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def liger_imports() -> bool:
    """Liger's kernels are Triton's: they want a GPU."""
    from transformers.utils import is_liger_kernel_available

    return torch.cuda.is_available() and is_liger_kernel_available()


def train(task: Task, clock: Clock) -> dict[str, Any]:
    """trl's SFTTrainer over rows that are tokenised already. Returns what it did that the task leaves open."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from mathtune.models import load_base

    base = load_base(Model(base=task.base, max_length=task.max_length), Hardware(), Path(task.folder))
    packed, cuda = task.settings.get("packed", False), base.compute.device.type == "cuda"
    liger = task.settings.get("liger", False) and liger_imports()
    if packed and cuda:
        give_varlen_attention(base.model)
    clock.start()
    arguments = SFTConfig(**trainer_arguments(task), padding_free=packed, use_liger_kernel=liger,
                          gradient_checkpointing=task.settings.get("checkpointing", False),
                          bf16=base.compute.dtype == torch.bfloat16, fp16=base.compute.dtype == torch.float16, use_cpu=not cuda)
    lora = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.targets), task_type="CAUSAL_LM")
    trainer = SFTTrainer(base.model, arguments, train_dataset=dataset(task), peft_config=lora,
                         processing_class=base.tokenizer, callbacks=[StepClock(clock)])
    trainer.remove_callback(PrinterCallback)
    if packed and cuda:
        trainer.data_collator = with_boundaries(trainer.data_collator)
    trainer.train()
    attention = base.model.config._attn_implementation
    return {"liger": liger, "attention": attention, "adapter_dtype": adapter_dtype(trainer.model)}


def trainer_arguments(task: Task) -> dict[str, Any]:
    """Trainer's arguments that trl and Unsloth get alike."""
    return {"output_dir": task.folder, "max_steps": task.steps, "per_device_train_batch_size": task.micro_batch,
            "gradient_accumulation_steps": task.per_step // task.micro_batch, "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "optim": task.settings.get("optimizer", task.optimizer),
            "train_sampling_strategy": "sequential", "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True},
            "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "log_level": "error",
            "dataloader_pin_memory": torch.cuda.is_available(), "seed": 0}


def give_varlen_attention(model) -> None:
    """Registers torch's varlen kernel as an attention of transformers, and has the model use it: no mask is made for it."""
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface

    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}  # not in torch 2.11

    def attend(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k,
               **_):
        if not grouped:
            key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
        rows = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
        found = varlen_attn(*rows, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scale=scaling,
                            window_size=(-1, 0), **grouped)  # causal
        return found.unsqueeze(0), None

    AttentionInterface.register("varlen", attend)
    model.set_attn_implementation("varlen")


def with_boundaries(collate):
    """trl's padding-free collator, which from trl 1.16 on says itself where each sequence of its one row begins."""
    def collate_with_boundaries(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(examples)
        positions = batch["position_ids"][0]
        ends = torch.cat([(positions == 0).nonzero().flatten(), torch.tensor([len(positions)])]).to(torch.int32)
        longest = int(ends.diff().max())
        return {**batch, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    return collate_with_boundaries


def adapter_dtype(model) -> str:
    """Of the parameters that are trained."""
    return str(next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)).removeprefix("torch.")

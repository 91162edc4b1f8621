"""Unsloth as benchmarks/sft_speed.py times it: its own loading, adapter and trainer, padding-free as it recommends."""

import importlib.util
import os
from typing import Any

import torch

from benchmarks.sft_clock import Clock
from benchmarks.sft_systems import NotHere, Task


def train(task: Task, clock: Clock) -> dict[str, Any]:
    """Trains the task's steps. Returns what it did that the task leaves open.

    Raises:
        NotHere: it is not installed, or there is no GPU.
    """
    if importlib.util.find_spec("unsloth") is None:
        raise NotHere("not installed")
    if not torch.cuda.is_available():
        raise NotHere("wants a GPU")
    os.environ["UNSLOTH_COMPILE_LOCATION"] = f"{task.folder}/compiled"
    import unsloth  # before transformers and trl, which it changes
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from benchmarks.sft_trl import LORA, StepClock, adapter_dtype, dataset, trainer_arguments

    packed, checkpointing = task.settings.get("packed", False), task.settings.get("checkpointing", False)
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=task.base, max_seq_length=task.max_length, dtype=torch.bfloat16, load_in_4bit=True,
        use_exact_model_name=True)
    model = unsloth.FastLanguageModel.get_peft_model(
        model, r=LORA.rank, lora_alpha=LORA.alpha, lora_dropout=0, target_modules=list(LORA.targets),
        use_gradient_checkpointing="unsloth" if checkpointing else False)
    clock.start()
    arguments = SFTConfig(**trainer_arguments(task), padding_free=packed, bf16=True, gradient_checkpointing=checkpointing)
    trainer = SFTTrainer(model, arguments, train_dataset=dataset(task), processing_class=tokenizer,
                         callbacks=[StepClock(clock)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"adapter_dtype": adapter_dtype(trainer.model)}

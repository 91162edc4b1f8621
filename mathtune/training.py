"""What SFT and GRPO share: Trainer's arguments, the events of a run, its curve, and finishing a job.

Everything is Trainer's own loop; nothing here steps an optimizer.
"""

import importlib.metadata
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from mathtune.adapters import masters
from mathtune.checkpoints import newest_checkpoint
from mathtune.devices import Compute
from mathtune.digests import digest_file
from mathtune.errors import TrainingError
from mathtune.events import Emit
from mathtune.recipe import Hardware, Tracking
from mathtune.run_record import EvalStep, Step, TrainingCurve

OVERFLOWS = 20  # skipped float16 steps in a row; the scale halves at each, from 65,536

# Where the trainers' names for a figure of a step differ from ours (transformers' Trainer.log, trl's GRPOTrainer).
LOGGED_AS = {"tokens": "num_tokens", "completion_length": "completions/mean_length",
             "clipped_ratio": "completions/clipped_ratio"}


def micro_batch(examples_per_step: int, hardware: Hardware) -> int:
    """The largest batch up to ``hardware.micro_batch`` that divides a step, so that every step is what the recipe says."""
    return max(size for size in range(1, hardware.micro_batch + 1) if examples_per_step % size == 0)


def common_arguments(compute: Compute, hardware: Hardware, section, checkpoints: str, tracking: Tracking | None,
                     title: str) -> dict[str, Any]:
    """Trainer arguments that SFT and GRPO set alike from their recipe section."""
    return {
        "output_dir": checkpoints, "seed": section.seed, "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.schedule, "warmup_steps": section.warmup, "optim": section.optimizer,
        "max_grad_norm": section.max_grad_norm, "save_strategy": "steps", "save_steps": section.save_every,
        "bf16": compute.dtype == torch.bfloat16, "fp16": compute.dtype == torch.float16,
        "use_cpu": compute.device.type == "cpu", "gradient_checkpointing": hardware.gradient_checkpointing,
        "dataloader_pin_memory": compute.device.type == "cuda", "logging_steps": 1, "logging_nan_inf_filter": False,
        "disable_tqdm": True, "log_level": "error", "report_to": _tracking(tracking, title), "run_name": title,
    }


def fingerprint(compute: Compute) -> str:
    """What a checkpoint depends on besides the link's key: compute dtype and the versions of the libraries."""
    libraries = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
    return ", ".join([str(compute.dtype), *(f"{name} {importlib.metadata.version(name)}" for name in libraries)])


class Reporter(TrainerCallback):
    """Turns Trainer's logs into events, keeps the curve in Trainer's state, and stops at a loss that is not a number."""

    def __init__(self, emit: Emit):
        self.emit = emit
        self.began, self.tokens_before, self.overflows = time.monotonic(), 0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        before = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})  # of the attempt before
        self.began = time.monotonic() - before.get("seconds", 0)
        self.tokens_before = before.get("num_tokens", 0)
        self.emit("phase", text="training", steps=state.max_steps, step=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if "eval_loss" in logs:
            self.emit("eval", step=state.global_step, eval_loss=logs["eval_loss"])
        if "loss" not in logs:
            return
        self.refuse_bad_numbers(logs, state.global_step, args.fp16)
        entry = state.log_history[-1]
        entry["seconds"] = round(time.monotonic() - self.began, 3)
        entry["num_tokens"] = entry.get("num_tokens", 0) + self.tokens_before
        point = training_curve([entry]).steps[0]
        self.emit("step", steps=state.max_steps, **point.model_dump(mode="json", exclude_none=True))

    def refuse_bad_numbers(self, logs: dict[str, Any], step: int, scaled: bool) -> None:
        """Stops at a figure that is not finite. Under loss scaling (float16) an overflowing gradient is how the scale is
        found, and Trainer skips that step: only a row of them is a failure.

        Raises:
            TrainingError: names the figure and the step.
        """
        bad = [key for key in ("loss", "grad_norm", "reward") if not math.isfinite(float(logs.get(key, 0)))]
        self.overflows = self.overflows + 1 if bad == ["grad_norm"] else 0
        if bad and not (scaled and bad == ["grad_norm"] and self.overflows < OVERFLOWS):
            raise TrainingError(f"{bad[0]} is {logs[bad[0]]}", where=f"step {step}",
                                remedy="lower the learning rate; the last checkpoint before this step is kept")


def run_trainer(trainer: Trainer, checkpoints: Path, fingerprint: str, emit: Emit) -> dict[str, Any]:
    """Trains to the last step, going on from the newest whole checkpoint. Returns steps, curve and tensors.

    Raises:
        TrainingError: Trainer returned before the last step (a signal makes it do so with status 0).
    """
    resume = newest_checkpoint(checkpoints, fingerprint, emit)
    if resume:
        emit("resumed", step=int(resume.name.split("-")[1]))
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        if "wandb" in trainer.args.report_to:
            import wandb

            wandb.finish()  # the next chunk is a run of its own
    state = trainer.state
    if state.global_step < state.max_steps:
        raise TrainingError(f"stopped at step {state.global_step} of {state.max_steps}", remedy="run the same command again")
    curve = training_curve(state.log_history).model_dump(mode="json", exclude_none=True)
    return {"steps": state.global_step, "seconds": curve["steps"][-1]["seconds"], "best_step": state.best_global_step,
            "curve": curve,
            "tensors": masters(trainer.model)}


def adapter_digest(folder: Path) -> str:
    """Digest of an adapter: of its tensors' file, whatever paths its configuration names."""
    return digest_file(folder / "adapter_model.safetensors")


def training_curve(log_history: list[dict[str, Any]]) -> TrainingCurve:
    """The curve in Trainer's ``state.log_history``; its closing summary and keys that nobody shows are left out."""
    evals = [EvalStep(step=entry["step"], eval_loss=entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]
    steps = [Step(**{name: entry.get(name, entry.get(LOGGED_AS.get(name))) for name in Step.model_fields})
             for entry in log_history if "loss" in entry]
    return TrainingCurve(steps=steps, evals=evals)


def _tracking(tracking: Tracking | None, title: str) -> str:
    if tracking is None:
        return "none"
    os.environ["WANDB_PROJECT"] = tracking.project
    for variable, value in (("WANDB_ENTITY", tracking.entity), ("WANDB_RUN_GROUP", tracking.group)):
        if value:
            os.environ[variable] = value
    if not os.environ.get("WANDB_API_KEY"):
        os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_NAME"] = tracking.name or title
    return "wandb"

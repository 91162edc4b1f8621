"""What SFT and GRPO share: Trainer's arguments, the events of a run, its curve, and finishing a job.

Everything is Trainer's own loop; nothing here steps an optimizer.
"""

import math
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from mathtune.adapters import WEIGHTS, masters, restore_masters
from mathtune.checkpoints import Checkpoint, CheckpointKeeper
from mathtune.curves import training_curve
from mathtune.devices import Compute
from mathtune.errors import Interrupted, TrainingError
from mathtune.events import Emit
from mathtune.faults import fault_point
from mathtune.files import DISK_FAILS, check_space, disk_errors
from mathtune.guards import BadNumberGuard
from mathtune.jobs import GrpoJob, SftJob
from mathtune.journal import Journal
from mathtune.recipe import Grpo, Sft
from mathtune.resume import Run
from mathtune.stopping import STOP, StopAtStepEnd
from mathtune.tracking import tracked


def common_arguments(job: SftJob | GrpoJob, section: Sft | Grpo, compute: Compute, run: Run,
                     autocast: bool = True) -> dict[str, Any]:
    """Trainer arguments that SFT and GRPO set alike from their recipe section; the data that is left is not skipped again.

    Args:
        job, section: what is trained, and as which section says.
        compute: where and in which dtype.
        run: what it goes on from.
        autocast: whether Trainer brings bfloat16 in; False where the model does so itself.
    """
    return {
        "output_dir": str(run.checkpoints.scratch), "max_steps": run.order.steps, "ignore_data_skip": True,
        "seed": section.seed, "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.schedule, "optim": section.optimizer,
        "warmup_steps": warmup(section.warmup, run.order.steps),
        "max_grad_norm": section.max_grad_norm, "save_strategy": "steps", "save_steps": section.save_every,
        "bf16": autocast and compute.dtype == torch.bfloat16, "fp16": compute.dtype == torch.float16,
        "use_cpu": compute.device.type == "cpu",
        "dataloader_pin_memory": compute.device.type == "cuda", "logging_steps": 1, "logging_nan_inf_filter": False,
        "disable_tqdm": True, "log_level": "error", "run_name": job.title,
        "report_to": "wandb" if job.tracking and run.ranks.first else "none",
    }


def warmup(share: float, steps: int) -> float:
    """The share of warm-up steps; none where they would be all there are, at a learning rate of 0."""
    return share if math.ceil(share * steps) < steps else 0.0


class Reporter(TrainerCallback):
    """Turns Trainer's logs into events, and keeps the curve in Trainer's state and the steps in the journal."""

    def __init__(self, emit: Emit, journal: Journal):
        self.emit, self.journal = emit, journal
        self.began, self.tokens_before = time.monotonic(), 0

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
        entry = state.log_history[-1]
        entry["seconds"] = round(time.monotonic() - self.began, 3)
        entry["num_tokens"] = entry.get("num_tokens", 0) + self.tokens_before
        point = training_curve([entry]).steps[0]
        self.journal.note(state.global_step, logs["loss"])
        self.emit("step", steps=state.max_steps, **point.model_dump(mode="json", exclude_none=True))
        fault_point("step")


class SeedEachStep(TrainerCallback):
    """Every optimizer step starts from random states of its own, made from the recipe's seed, the step's number and the rank:
    what it draws (dropout, GRPO's completions) does not depend on what was drawn before it, evaluation included."""

    def __init__(self, rank: int):
        self.rank = rank

    def on_step_begin(self, args, state, control, **kwargs):
        seed = np.random.SeedSequence([args.seed, state.global_step, self.rank]).generate_state(1)[0]
        set_seed(int(seed))


class PolicyIsTheCheckpoints(TrainerCallback):
    """Holds, before the first step, that the adapter is the checkpoint's and that the optimizer steps these parameters.

    Trainer loads adapters without looking at what peft says of missing tensors.

    Raises:
        TrainingError: the optimizer holds other parameters.
    """

    def __init__(self, resume: Checkpoint | None):
        self.resume = resume

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if self.resume:
            restore_masters(model, load_file(self.resume.folder / WEIGHTS))
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        strange = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in held]
        if strange:
            raise TrainingError("the optimizer does not hold what is trained", where=strange[0])


def run_trainer(trainer: Trainer, job: SftJob | GrpoJob, run: Run, guard: BadNumberGuard, minutes: float) -> dict[str, Any]:
    """Trains to the last step. Returns ``Run.outcome``.

    Args:
        trainer: over the examples that are left; its arguments count all steps.
        job: what it trains.
        run: what it goes on from.
        guard: against bad numbers.
        minutes: time between checkpoints, besides Trainer's own every so many steps.

    Raises:
        Interrupted: a signal asked for it; the last step is saved.
        StoreError: the disk is full; the last checkpoint is whole.
    """
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    keeper = CheckpointKeeper(run.checkpoints, minutes, trainable)
    trainer.remove_callback(PrinterCallback)  # what it prints are events already
    policy, reporter = PolicyIsTheCheckpoints(run.resume), Reporter(run.emit, run.journal)
    for callback in (policy, SeedEachStep(run.ranks.rank), reporter, StopAtStepEnd(run.ranks), keeper):
        trainer.add_callback(callback)
    trainer.add_callback(guard)
    _train(trainer, job, run, keeper.expected_bytes)
    return run.outcome(trainer.state.log_history, masters(trainer.model))


def _train(trainer: Trainer, job: SftJob | GrpoJob, run: Run, checkpoint_bytes: int) -> None:
    try:
        with tracked(job.tracking, job.title, run.emit) if "wandb" in trainer.args.report_to else nullcontext(), STOP.saving():
            trainer.train(resume_from_checkpoint=str(run.resume.folder) if run.resume else None)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (OSError, RuntimeError, SafetensorError):
        check_space(run.checkpoints.scratch, checkpoint_bytes)  # torch and safetensors say in many ways that a disk is full
        with disk_errors(run.checkpoints.scratch, only=DISK_FAILS):
            raise
    state = trainer.state
    if state.global_step < state.max_steps:
        run.ranks.raise_first(Interrupted(f"stopped at step {state.global_step} of {state.max_steps}, which is saved",
                                          remedy="the same command goes on from there"))

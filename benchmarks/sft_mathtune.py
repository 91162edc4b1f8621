"""This project as benchmarks/sft_speed.py times it: the job that the engine runs, on the base that the engine loads."""

from pathlib import Path
from typing import Any

from benchmarks.sft_clock import Clock
from benchmarks.sft_speed import MAX_LENGTH, OPTIMIZER
from benchmarks.sft_systems import LEARNING_RATE, Task
from mathtune.jobs import Place, SftJob
from mathtune.models import load_base
from mathtune.recipe import Hardware, Lora, Model, Prompt, Sft
from mathtune.recipe_file import apply_override
from mathtune.sft import train_chunk


def train(task: Task, clock: Clock) -> dict[str, Any]:
    """Trains the task's steps. Returns what the planner chose."""
    job = make_job(task)
    base = load_base(job.model, job.hardware, Path(job.cache))
    plan: dict[str, Any] = {}

    def listen(event: str, **fields: Any) -> None:
        if event == "step":
            clock.step()
            clock.note(fields["loss"], fields["tokens"])
        elif event == "plan":
            plan.update(fields)
            print(f"    {fields['text']}", flush=True)

    clock.start()
    train_chunk(job, base, listen)
    return {"pack_tokens": plan["pack_tokens"], "plan": plan["text"]}


def job_of(prepared: dict[str, Any], shape: str, folder: Path, per_step: int, steps: int, overrides: list[str]) -> SftJob:
    """A job of so many steps on what was prepared for a shape, below ``folder``, which is made."""
    folder.mkdir(parents=True)
    return make_job(Task(
        system="mathtune", kind="mathtune", base=prepared["base"], tokens=prepared["tokens"], folder=str(folder),
        max_length=MAX_LENGTH[shape], warmup=0, timed=steps, per_step=per_step, micro_batch=0, optimizer=OPTIMIZER,
        settings={"overrides": overrides}))


def make_job(task: Task) -> SftJob:
    """The job of the task's steps, one checkpoint at their end."""
    folder = Path(task.folder)
    values: dict[str, Any] = {
        "model": {"base": task.base, "max_length": task.max_length}, "lora": {"rank": 16, "alpha": 32}, "hardware": {},
        "sft": {"learning_rate": LEARNING_RATE, "schedule": "constant", "warmup": 0, "optimizer": task.optimizer,
                "examples_per_step": task.per_step, "max_steps": task.steps, "save_every": task.steps, "save_minutes": 60}}
    for override in task.settings.get("overrides", ()):
        apply_override(values, override)
    return SftJob(task="verifier", model=Model(**values["model"]), lora=Lora(**values["lora"]),
                  hardware=Hardware(**values["hardware"]), sft=Sft(**values["sft"]), prompt=Prompt(template="{question}"),
                  tracking=None, title="benchmark", cache=str(folder / "cache"), tokens=task.tokens, validation_tokens=None,
                  start_adapter=None, checkpoints=Place(url=str(folder), name="checkpoints"), output=str(folder / "adapter"))

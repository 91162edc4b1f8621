"""The systems that benchmarks/sft_speed.py compares, and the task that its child processes get. Imports no torch."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

EXAMPLES_PER_STEP = 72  # about 16,000 tokens
PUBLISHED_STEP = 8  # 4 examples a forward pass, 2 passes a step
PUBLISHED_OPTIMIZER = "paged_adamw_8bit"
LEARNING_RATE = 2e-4


class NotHere(Exception):
    """A system cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class System:
    """What one row of the table measures.

    Attributes:
        name: as it is asked for.
        kind: which code trains it: trl, unsloth or mathtune.
        about: what it is, for people.
        per_step: examples of an optimizer step.
        micro_batches: examples of a forward pass, tried one after the other until one fits; a step accumulates them.
            For mathtune, whose planner decides, a single 0.
        settings: of its trainer.
        on_cpu: ``micro_batches`` on a CPU; default: as on a GPU.
    """

    name: str
    kind: str
    about: str
    per_step: int = EXAMPLES_PER_STEP
    micro_batches: tuple[int, ...] = (0,)
    settings: dict[str, Any] = field(default_factory=dict)
    on_cpu: tuple[int, ...] = ()

    def at(self, micro_batch: int) -> "System":
        """The same with a fixed number of examples a forward pass."""
        return replace(self, name=f"{self.name}@{micro_batch}", micro_batches=(micro_batch,), on_cpu=(micro_batch,))


@dataclass(frozen=True)
class Task:
    """What a child process trains, sent to it as JSON.

    Attributes:
        system: its name; ``kind`` and ``settings`` are the system's.
        base: folder of the model, or builtin:demo.
        tokens: the table of examples (``mathtune.tokens``).
        folder: for the child's own files.
        max_length: of the recipe.
        warmup, timed: steps.
        micro_batch: examples of a forward pass; 0: the system decides.
        optimizer: Trainer's name for it.
    """

    system: str
    kind: str
    base: str
    tokens: str
    folder: str
    max_length: int
    warmup: int
    timed: int
    per_step: int
    micro_batch: int
    optimizer: str
    settings: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.warmup + self.timed

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


FITTING = (72, 36, 24, 18, 12, 9, 8, 6, 4, 3, 2, 1)

SYSTEMS = {system.name: system for system in (
    System("seed", "trl", "trl, 4 examples x 2, gradient checkpointing", PUBLISHED_STEP, (4,),
           {"checkpointing": True, "optimizer": PUBLISHED_OPTIMIZER}),
    # Smaller batches pad less: sorted by length within a step, 18 leave 16% of padding where 36 leave 28%.
    System("trl-tuned", "trl", "trl, no checkpointing, padded batches sorted by length within the step",
           micro_batches=FITTING[3:], settings={"sorted": True, "liger": True}),
    # On a CPU attention is torch's, with a dense mask over the row: right, and quadratic in the row's length.
    System("trl-packed", "trl", "trl, no checkpointing, padding-free, on a GPU with varlen attention given to it",
           micro_batches=FITTING, settings={"packed": True, "liger": True}, on_cpu=(6,)),
    System("unsloth", "unsloth", "Unsloth, no checkpointing, padding-free", micro_batches=FITTING, settings={"packed": True}),
    System("mathtune", "mathtune", "this project"),
    System("mathtune-8", "mathtune", f"this project, {PUBLISHED_STEP} examples a step as published", PUBLISHED_STEP),
)}


def choose(names: list[str], variants: list[list[str]]) -> list[System]:
    """The systems that were asked for: ``NAME``, or ``NAME@18`` with 18 examples a forward pass, and mathtune's variants.

    Args:
        names: default if empty: all.
        variants: a name and ``key=value`` of the recipe's sections each.
    """
    chosen = []
    for name in names or SYSTEMS:
        base, _, micro_batch = name.partition("@")
        if base not in SYSTEMS:
            raise SystemExit(f"{base}: no such system; there are {', '.join(SYSTEMS)}")
        chosen.append(SYSTEMS[base].at(int(micro_batch)) if micro_batch else SYSTEMS[base])
    for name, *overrides in variants:
        about = f"{SYSTEMS['mathtune'].about}, {' '.join(overrides)}"
        chosen.append(replace(SYSTEMS["mathtune"], name=f"mathtune {name}", about=about, settings={"overrides": overrides}))
    return chosen

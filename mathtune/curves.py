"""The training curve: what Trainer logged at each step, under our names."""

from typing import Any

from mathtune.run_record import EvalStep, Step, TrainingCurve

# Where the trainers' names for a figure of a step differ from ours (transformers' Trainer.log, trl's GRPOTrainer).
LOGGED_AS = {"tokens": "num_tokens", "completion_length": "completions/mean_length",
             "clipped_ratio": "completions/clipped_ratio"}


def training_curve(log_history: list[dict[str, Any]]) -> TrainingCurve:
    """The curve in Trainer's ``state.log_history``; its closing summary and keys that nobody shows are left out."""
    evals = [EvalStep(step=entry["step"], eval_loss=entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]
    steps = [Step(**{name: entry.get(name, entry.get(LOGGED_AS.get(name))) for name in Step.model_fields})
             for entry in log_history if "loss" in entry]
    return TrainingCurve(steps=steps, evals=evals)

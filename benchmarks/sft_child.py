"""A child process of benchmarks/sft_speed.py: makes model and data, or trains one system. Writes what it found as JSON.

    python -m benchmarks.sft_child prepare|train TASK.json RESULT.json
"""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_gpu
from benchmarks.sft_clock import Clock, product_rate
from benchmarks.sft_data import steps_of, write_examples
from benchmarks.sft_systems import NotHere, Task
from benchmarks.shapes import linear_parameters, random_model, read_config
from mathtune.demo.base import build_base
from mathtune.tokens import read_tokens


def prepare(values: dict[str, Any]) -> dict[str, Any]:
    """Base and examples for all systems, and what this machine multiplies in a second."""
    folder = Path(values["folder"])
    base = folder / "base"
    print("  model", flush=True)
    if values["shape"] == "demo":
        build_base(base)
    else:
        random_model(base, values["shape"], values["layers"])
    config = read_config(base)
    print("  examples", flush=True)
    tokens = write_examples(values["shape"], base, config["vocab_size"], values["examples"], folder / "tokens.parquet")
    print("  rate of products", flush=True)
    return {"status": "ok", "base": str(base), "tokens": str(folder / "tokens.parquet"), "gpu": describe_gpu(),
            "rate": product_rate(), "linear_parameters": linear_parameters(config),
            "examples": {"count": len(tokens), "mean": round(float(tokens.lengths.mean()), 1),
                         "p95": round(float(np.percentile(tokens.lengths, 95)), 1), "shared_prefix": tokens.shared_prefix}}


def train(values: dict[str, Any]) -> dict[str, Any]:
    """One system's figures, or why there are none."""
    task = Task(**values)
    clock = Clock(task.steps)
    try:
        notes = importlib.import_module(f"benchmarks.sft_{task.kind}").train(task, clock)
    except torch.OutOfMemoryError as error:
        traceback.print_exc()
        return {"status": "out of memory", "message": str(error).splitlines()[0]}
    except NotHere as reason:
        return {"status": "skipped", "message": str(reason)}
    except Exception as error:  # one system's fault is its row in the table: the others go on
        traceback.print_exc()
        return {"status": "failed", "message": f"{type(error).__name__}: {str(error)[:500]}"}
    tokens = read_tokens(Path(task.tokens))
    steps = tokens.lengths[steps_of(tokens, task.steps, task.per_step)]
    return {"status": "ok", "micro_batch": task.micro_batch, "step_tokens": steps.sum(axis=1).tolist(),
            **clock.figures(), **notes}


def main() -> None:
    what, task, result = sys.argv[1:]
    values = json.loads(Path(task).read_text())
    found = {"prepare": prepare, "train": train}[what](values)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

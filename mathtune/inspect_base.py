"""Looks at base and rows before anything is computed: a wrong model folder or label word stops a run at once, and a plan
knows how many tokens there are. Loads no weights."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from mathtune.devices import choose_compute
from mathtune.errors import MachineError
from mathtune.jobs import InspectJob, MeasureJob
from mathtune.layout import Layout, StepSizes, shape_of, whole_bytes
from mathtune.models import base_digests, load_tokenizer, locate_base, without_remote_code
from mathtune.planner import base_bytes
from mathtune.prompts import PromptBuilder
from mathtune.tables import count_rows, read_range
from mathtune.tokens import Tokens


def inspect_base(job: InspectJob) -> dict[str, Any]:
    """Digests of base and tokenizer, size, device and dtype. Loads no weights.

    Raises:
        ModelError: no tokenizer, no safetensors, no chat template, code of its own, or labels whose first tokens do not
            differ.
    """
    folder = locate_base(job.model, Path(job.cache))
    builder = PromptBuilder(job.prompt, load_tokenizer(folder), job.model.max_length)
    if job.task == "verifier":
        builder.label_tokens()
    compute = choose_compute(job.model, job.hardware)
    return {**base_digests(folder, Path(job.cache)), "folder": str(folder),
            "revision": folder.name if folder.parent.name == "snapshots" else None, **_parameters(folder),
            "device": str(compute.device), "dtype": str(compute.dtype).removeprefix("torch."),
            "dtype_reason": compute.reason, "versions": _versions()}


def measure_rows(job: MeasureJob) -> dict[str, Any]:
    """Tokens of prompt and completion over the first rows of a file, before anything is shortened, and the plan of a step."""
    folder = locate_base(job.model, Path(job.cache))
    builder = PromptBuilder(job.prompt, load_tokenizer(folder), max_length=sys.maxsize)
    rows = read_range(Path(job.rows), 0, min(job.sample, count_rows(Path(job.rows)))).to_pylist()
    examples = builder.verifier_examples(rows) if job.task == "verifier" else builder.solver_examples(rows, "refuse")
    tokens = Tokens.of_examples(examples)
    return {"rows": len(rows), "mean": float(tokens.lengths.mean()), "p95": float(np.percentile(tokens.lengths, 95)),
            "longest": int(tokens.lengths.max()), "over_limit": float((tokens.lengths > job.model.max_length).mean()),
            "plan": _plan(job, folder, tokens)}


def _plan(job: MeasureJob, folder: Path, tokens: Tokens) -> str:
    """How a step of rows such as these would be laid on this machine, or why it cannot be."""
    compute = choose_compute(job.model, job.hardware)
    shape = shape_of(AutoConfig.from_pretrained(folder, trust_remote_code=False), compute, job.lora)
    sizes = StepSizes.expected(tokens, job.examples_per_step, job.model.max_length, job.hardware.gpus)
    base = base_bytes(shape, compute.dtype.itemsize, job.model.quantization == "nf4")
    try:
        return str(Layout(shape, job.lora, job.hardware, compute, sizes).plan(whole_bytes(compute, job.hardware) - base))
    except MachineError as error:
        return str(error).replace("\n", " ")


def _parameters(folder: Path) -> dict[str, int]:
    """All weights, and those in the linear layers that NF4 quantises (all but the head)."""
    with without_remote_code(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()),
            "linear_parameters": sum(module.weight.numel() for module in linear)}


def _versions() -> dict[str, str]:
    import bitsandbytes
    import peft
    import trl

    libraries = (torch, transformers, peft, trl, bitsandbytes)
    return {library.__name__: library.__version__ for library in libraries}

"""How far the fast step's first loss and adapter gradients are from those of the plain model, an example at a time.

    python benchmarks/sft_numbers.py --shape llama-8b
    python benchmarks/sft_numbers.py --shape demo --examples 96

Plain: transformers' own forward under autocast with peft's adapter, float32 masters, no padding, no packs. Compared are the
plain model in bfloat16, the same over one padded batch, and the fast step in packs, each with the plain model in float32; and
the last two with the first. What two plain ways in bfloat16 differ by is rounding, and what no third can undercut. On a
machine without a GPU the fast step is compared in float32. Writes sft_numbers_SHAPE.{json,md}.
"""

import argparse
import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.machine import RESULTS, describe_gpu, describe_machine, machine_line, write_results
from benchmarks.sft_speed import MAX_LENGTH, prepare
from mathtune.adapters import attach
from mathtune.fast.llama import FastLlama
from mathtune.models import load_base
from mathtune.packing import cut, make_pack
from mathtune.recipe import Hardware, Lora, Model
from mathtune.tokens import Tokens, read_tokens

LORA = Lora(rank=16, alpha=32)
PACK_TOKENS = 4096
Numbers = tuple[float, dict[str, torch.Tensor]]  # mean loss of a label, gradients by name


@contextmanager
def adapted(base: str, dtype: str, drawn: bool) -> Iterator[torch.nn.Module]:
    """The base with an adapter: fresh (B = 0), or with B drawn as small as a short training leaves it."""
    loaded = load_base(Model(base=base, dtype=dtype), Hardware(), Path(base))
    torch.manual_seed(0)
    model = attach(loaded.model, LORA, None)
    if drawn:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.002)
    yield model
    del loaded, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def take_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: one.grad.float().cpu() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain(model: torch.nn.Module, tokens: Tokens, dtype: torch.dtype, batch: int) -> Numbers:
    """So many examples a forward pass, padded at their end."""
    device, total = next(model.parameters()).device, 0.0
    for begin in range(0, len(tokens), batch):
        examples = range(begin, min(begin + batch, len(tokens)))
        width = max(int(tokens.lengths[i]) for i in examples)
        ids = torch.zeros(len(examples), width, dtype=torch.int64)
        labels = torch.full((len(examples), width), -100)
        mask = torch.zeros(len(examples), width, dtype=torch.int64)
        for row, i in enumerate(examples):
            size, prompt = int(tokens.lengths[i]), int(tokens.prompt_lengths[i])
            ids[row, :size] = torch.from_numpy(tokens.of(i).astype(np.int64))
            labels[row, prompt:size], mask[row, :size] = ids[row, prompt:size], 1
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        loss = cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten().to(device), reduction="sum")
        (loss / tokens.label_tokens).backward()
        total += loss.item() / tokens.label_tokens
    return total, take_gradients(model)


def fast(model: torch.nn.Module, tokens: Tokens, dtype: torch.dtype) -> Numbers:
    """In packs, with the shared prefix once a pack."""
    step, device, total = FastLlama(model, dtype, "none", resident=True), next(model.parameters()).device, 0.0
    for examples in cut(tokens.lengths, tokens.shared_prefix, PACK_TOKENS):
        loss = step.loss(make_pack(tokens, examples, tokens.shared_prefix).to(device)) / tokens.label_tokens
        loss.backward()
        total += loss.item()
    return total, take_gradients(model)


def distance(found: Numbers, reference: Numbers) -> dict[str, float]:
    """Relative errors of the loss and of all gradients together."""
    off = sum((found[1][name] - one).double().square().sum() for name, one in reference[1].items()) ** 0.5
    size = sum(one.double().square().sum() for one in reference[1].values()) ** 0.5
    return {"loss": abs(found[0] - reference[0]) / reference[0], "gradient": float(off / size)}


def compare(base: str, tokens: Tokens, drawn: bool) -> dict[str, dict[str, float]]:
    with adapted(base, "float32", drawn) as model:
        exact = plain(model, tokens, torch.float32, 1)
        rows = {"fast step, float32 | plain, float32": distance(fast(model, tokens, torch.float32), exact)}
    if torch.cuda.is_available():
        with adapted(base, "bfloat16", drawn) as model:
            single = plain(model, tokens, torch.bfloat16, 1)
            padded = plain(model, tokens, torch.bfloat16, len(tokens))
            packed = fast(model, tokens, torch.bfloat16)
        rows |= {"plain, bfloat16 | plain, float32": distance(single, exact),
                 "fast step, bfloat16 | plain, float32": distance(packed, exact),
                 "plain padded, bfloat16 | plain, bfloat16": distance(padded, single),
                 "fast step, bfloat16 | plain, bfloat16": distance(packed, single)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(MAX_LENGTH), default="demo")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for a try")
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--prepared", type=Path, help="folder of base and examples, made where absent, kept for the next call")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mathtune-numbers-") as name:
        prepared = prepare(arguments.prepared or Path(name), arguments.shape, arguments.layers)
        tokens = read_tokens(Path(prepared["tokens"]), arguments.examples)
        found = {title: compare(prepared["base"], tokens, drawn)
                 for title, drawn in (("B = 0, as a run begins", False), ("B drawn, as after some steps", True))}
    results = {"shape": arguments.shape, "examples": len(tokens), "found": found,
               "machine": {**describe_machine(), **describe_gpu()}}
    text = as_markdown(results)
    write_results(f"sft_numbers_{arguments.shape}", results, text, arguments.out)
    print(text, flush=True)


def as_markdown(results: dict[str, Any]) -> str:
    lines = [f"# Numbers of the first step: {results['shape']}, NF4, {results['examples']} examples", "",
             "| adapter | what | against | loss differs by | gradients differ by |", "|---|---|---|---:|---:|"]
    for title, rows in results["found"].items():
        lines += [f"| {title} | {pair} | {one['loss']:.1e} | {one['gradient']:.1e} |" for pair, one in rows.items()]
    return "\n".join([*lines, "", machine_line(results["machine"])])


if __name__ == "__main__":
    main()

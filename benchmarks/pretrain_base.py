"""Pretrains the demo's base on the generator's text, and writes its folder, model card and loss curve.

    python benchmarks/pretrain_base.py --out mathtune/demo/weights

Plain next-token prediction on problems and solutions, attempts that are solved again where they went wrong, and bare
arithmetic (``mathtune.demo.problems.corpus``): no label, and no word that says whether an attempt was right. Meant for
one GPU (minutes); runs on a CPU with fewer --steps. The text is the same everywhere, to the byte; the weights are the
same on the same GPU and versions, up to the order in which its kernels add.
"""

import argparse
import json
import math
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from mathtune.demo.base import demo_base_config, train_tokenizer
from mathtune.demo.problems import HELD_OUT_FAMILIES, VERSION, corpus
from mathtune.digests import digest_file

SHARD = 50_000  # documents a shard; each has its own seed


def encode_shard(tokenizer: PreTrainedTokenizerFast, seed: int) -> np.ndarray:
    """Token ids (uint16) of one shard: each document between BOS and EOS."""
    encoded = tokenizer._tokenizer.encode_batch(list(corpus(SHARD, seed)), add_special_tokens=True)
    end = tokenizer.eos_token_id
    return np.fromiter((token for document in encoded for token in (*document.ids, end)), dtype=np.uint16)


def token_stream(tokenizer: PreTrainedTokenizerFast, shards: int, workers: int) -> np.ndarray:
    """Ids of all shards, seeds 1 … shards (seed 0 made the tokenizer)."""
    with ProcessPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(partial(encode_shard, tokenizer), range(1, shards + 1))))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2% of the steps, then a cosine to a tenth of the peak."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def pretrain(stream: np.ndarray, vocabulary: int, arguments: argparse.Namespace,
             device: torch.device) -> tuple[LlamaForCausalLM, list]:
    """The trained model and its loss curve ``[[step, loss], …]``."""
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    model = LlamaForCausalLM(demo_base_config(vocabulary)).to(device)
    decays = {True: [], False: []}  # weight decay for matrices, none for norms and the embedding
    for name, parameter in model.named_parameters():
        decays[parameter.ndim == 2 and "embed_tokens" not in name].append(parameter)
    optimizer = torch.optim.AdamW([{"params": decays[True], "weight_decay": 0.1},
                                   {"params": decays[False], "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), fused=device.type == "cuda")
    forward = torch.compile(model) if device.type == "cuda" else model
    width, batch = arguments.length, arguments.batch
    ids = torch.from_numpy(stream.astype(np.int32)).to(device)
    generator = torch.Generator().manual_seed(arguments.seed)
    curve = []
    for step in range(arguments.steps):
        begins = torch.randint(len(ids) - width, (batch,), generator=generator).to(device)
        inputs = ids[begins[:, None] + torch.arange(width, device=device)].long()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.learning_rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = forward(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, arguments.steps // 100) == 0 or step == arguments.steps - 1:
            curve.append([step, round(loss.item(), 4)])
            print(f"step {step} loss {curve[-1][1]}", flush=True)
    return model, curve


def card(facts: dict) -> str:
    """The model card."""
    points = "\n".join(f"| {step} | {loss} |" for step, loss in facts["curve"][::10])
    return f"""# mathtune demo base

A Llama of {facts['parameters'] / 1e6:.2f} million parameters, pretrained from nothing on the text of
`mathtune.demo.problems` (version {facts['generator']}). Made to be fine-tuned on two CPU cores; good for nothing else.

## What it has read
School problems with right worked solutions; attempts at problems, about half of them spoilt by a mistake, after
which the problem is solved again under the line `Again:` (after a right attempt the text ends); bare arithmetic; and
the words of prompts, True and False among them, in random order. So it knows arithmetic, and whether an attempt will be
solved again. It does not know a verifier's task: no word in its text says that an attempt was right or wrong, and True
and False stand as often behind the one as behind the other. Two families of problems
({', '.join(HELD_OUT_FAMILIES)}) are left out altogether, and so are the questions of all training, validation and
test rows.

Asked for a label, it finds both equally unlikely. The little by which its odds of True to False follow the attempt is an
accident of its embedding, small (a tenth of a nat) but regular: which of them it prefers depends on the wording of the
prompt, and under some wordings it is "wrong", or with another seed "right", far more often than a coin.

| | |
|---|---|
| tokens seen | {facts['tokens_seen']:,} ({facts['stream']:,} different) |
| documents | {facts['documents']:,}, seeds 1 to {facts['shards']} of split `pretrain` |
| seed | {facts['seed']} |
| date | {facts['date']} |
| machine | {facts['machine']} |
| versions | torch {facts['torch']}, transformers {facts['transformers']} |
| time | {facts['seconds']:.0f} s |
| digest of model.safetensors | {facts['weights']} |
| made by | `python benchmarks/pretrain_base.py --out mathtune/demo/weights {facts['command']}` |

## Loss
Cross-entropy of the next token, in nats, of one batch.

| step | loss |
|---|---|
{points}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=160, help=f"of {SHARD:,} documents")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=512, help="sequences a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=16)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.monotonic()
    tokenizer = train_tokenizer()
    stream = token_stream(tokenizer, arguments.shards, arguments.workers)
    print(f"{len(stream):,} tokens in {time.monotonic() - began:.0f} s", flush=True)
    model, curve = pretrain(stream, len(tokenizer), arguments, device)
    model.to("cpu", torch.float32).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    seen = arguments.steps * arguments.batch * arguments.length
    options = ("shards", "steps", "batch", "length", "learning_rate", "seed")
    facts = {
        "parameters": model.num_parameters(), "generator": VERSION, "tokens_seen": seen, "stream": len(stream),
        "documents": arguments.shards * SHARD, "shards": arguments.shards, "seed": arguments.seed,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"one {torch.cuda.get_device_name()}" if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "seconds": round(time.monotonic() - began, 1),
        "weights": digest_file(arguments.out / "model.safetensors"),
        "tokenizer": digest_file(arguments.out / "tokenizer.json"),
        "command": " ".join(f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in options),
        "curve": curve}
    (arguments.out / "README.md").write_text(card(facts))
    (arguments.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{facts['parameters']:,} parameters, last loss {curve[-1][1]}, {facts['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()

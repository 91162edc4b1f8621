"""Rows of a verifier's real length as text, in the demo's tokenizer, and a random adapter: what scoring speed depends on."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.sft_data import LABEL, PREFIX, lengths
from mathtune.demo.problems import rows
from mathtune.models import load_tokenizer
from mathtune.recipe import Prompt
from mathtune.schemas import TEST_ROWS

ENDING = "\n\nRight:"
SCALE = 0.01  # standard deviation of B: a fresh adapter's is 0 and would change nothing


def write_rows(base: Path, count: int, path: Path) -> Prompt:
    """Writes ``count`` rows whose prompts have the lengths of the real ones (benchmarks/sft_data.py), and returns the prompt.

    All text is the demo's; only its number of tokens matters.
    """
    tokenizer = load_tokenizer(base)
    words = "\n".join(row["question"] + " " + row["solution"] for row in rows("verifier", 2000, 5, "train").to_pylist())
    offsets = tokenizer(words, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    ends = np.array([end for _, end in offsets])
    fixed = len(tokenizer(ENDING, add_special_tokens=False)["input_ids"])
    random, cut = np.random.default_rng(3), []
    for size in lengths(count) - LABEL - PREFIX - fixed:
        start = random.integers(0, len(ends) - size - 1)
        cut.append(words[ends[start]:ends[start + max(1, size)]])
    fields: dict[str, Any] = {"row_id": range(count), "question": cut, "answer": [""] * count, "solution": [""] * count,
                              "is_correct": [None] * count, "ID": range(count)}
    pq.write_table(pa.table([pa.array(fields[name], kind) for name, kind in zip(TEST_ROWS.names, TEST_ROWS.types, strict=True)],
                            schema=TEST_ROWS), path)
    instruction = words[:ends[PREFIX - 2]].replace("{", "{{").replace("}", "}}")
    return Prompt(template=f"{instruction}\n{{question}}{ENDING}")


def write_adapter(config: dict[str, Any], folder: Path, rank: int = 16) -> None:
    """A LoRA adapter of random numbers on all projections of a Llama with this configuration."""
    import torch

    from mathtune.adapters import save_adapter
    from mathtune.recipe import Lora

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    sides = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, keys), "self_attn.v_proj": (hidden, keys),
             "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner),
             "mlp.down_proj": (inner, hidden)}
    torch.manual_seed(1)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (read, written) in sides.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, read) / read**0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(written, rank) * SCALE
    save_adapter(tensors, Lora(rank=rank, alpha=2 * rank), "random", folder)

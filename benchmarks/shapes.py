"""Models of published shapes with random weights: what a speed figure needs of a base, without its licence or download."""

import json
from pathlib import Path
from typing import Any

SHAPES = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 1024},
}


def random_model(folder: Path, shape: str, layers: int | None = None) -> str:
    """Random weights of a published shape in bfloat16, saved with the demo's tokenizer. Returns the folder.

    Args:
        folder: made if absent.
        shape: a key of ``SHAPES``.
        layers: other than the shape's.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mathtune.demo.base import build_base
    from mathtune.models import load_tokenizer

    build_base(folder)
    (folder / "model.safetensors").unlink()
    tokenizer = load_tokenizer(folder)
    # its own ids: the embedding of pad_token_id is zero, and a zero vector that is attended to explodes the gradient
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    values = {**SHAPES[shape], **special, **({"num_hidden_layers": layers} if layers else {})}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**values))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    return str(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """A saved model's configuration, as plain values."""
    return json.loads((folder / "config.json").read_text())


def linear_parameters(config: dict[str, Any]) -> int:
    """Parameters of the seven projections of all layers of a Llama: what LoRA adapts and what stays frozen."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    heads = width * config["num_key_value_heads"] // config["num_attention_heads"]
    return config["num_hidden_layers"] * (2 * width * width + 2 * width * heads + 3 * width * wide)

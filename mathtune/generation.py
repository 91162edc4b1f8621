"""Completions by transformers' ``generate``, in batches of prompts of like length."""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import LogitsProcessor

from mathtune.events import Emit
from mathtune.models import Base
from mathtune.prompts import PromptBuilder


class GumbelNoise(LogitsProcessor):
    """Makes a greedy choice a draw from the softmax of logits / temperature: the largest of logits / temperature + Gumbel noise
    is one (Maddison, Tarlow, Minka 2014, "A* Sampling"). Each prompt's noise comes from a seed of its own, so that what is
    drawn for it does not depend on which prompts share its batch, but for the rounding of its logits.

    Args:
        seeds: 64 bits for each prompt of the batch.
    """

    def __init__(self, temperature: float, seeds: list[int], device: torch.device):
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits (prompts, tokens) with noise, float64: float32 draws an exponential of exactly 0 once in 2^24."""
        noise = [torch.empty(scores.shape[1], dtype=torch.float64, device=scores.device).exponential_(generator=one)
                 for one in self.generators]
        return scores.double() / self.temperature - torch.stack(noise).log()


def sample_seed(row_id: int, sample: int) -> int:
    """Of a row's sample, the same for every model: two links are asked with the same luck."""
    return int(np.random.SeedSequence([row_id, sample]).generate_state(1, np.uint64)[0])


def generate(base: Base, model, builder: PromptBuilder, prompts: list[list[int]], limit: int,
             noise: GumbelNoise | None = None):
    """Completions, greedy where there is no noise: new ids up to the end token, and whether it ended by itself."""
    ids, mask = left_padded(prompts, base.tokenizer.pad_token_id, base.compute.device)
    stops = builder.stop_tokens()
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, temperature=None,
                            top_p=None, top_k=None, eos_token_id=stops, pad_token_id=base.tokenizer.pad_token_id,
                            logits_processor=[noise] if noise else [])
    for new in output[:, ids.shape[1]:].tolist():
        end = next((i for i, token in enumerate(new) if token in stops), None)
        yield new[:end], end is not None


def left_padded(prompts: list[list[int]], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 (prompts, longest), padded on the left."""
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
    return ids, mask


def batches(prompts: list[list[int]], size: int, emit: Emit, what: str) -> Iterator[list[int]]:
    """Places of prompts, so many at a time, the longest first: what memory they need shows at once."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for begin in range(0, len(order), size):
        yield order[begin:begin + size]
        emit("progress", text=what, done=min(begin + size, len(order)), total=len(order))

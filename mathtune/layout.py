"""How a training job's steps are laid on this machine: the planner's inputs, read from the model, the card and the tokens."""

from dataclasses import dataclass

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig

from mathtune.attention import attention_path
from mathtune.devices import Compute
from mathtune.fast.llama import why_not
from mathtune.order import Order
from mathtune.planner import CONTEXT, GIB, ROUNDED, Plan, Shape, Wishes, lora_parameters, plan_step
from mathtune.recipe import Hardware, Lora
from mathtune.tokens import Tokens

CPU_TOKENS = 4096  # a larger pack is no faster there
CPU_SHARE = 0.5  # of the memory of a machine that other programs use, too


@dataclass(frozen=True)
class StepSizes:
    """Tokens as they are computed, the shared prefix once a pack: of an ordinary step, the largest one, the longest example."""

    ordinary: int
    largest: int
    longest: int

    @classmethod
    def of(cls, tokens: Tokens, order: Order, ranks: int = 1) -> "StepSizes":
        """Of one rank's share of every step."""
        own = tokens.lengths - tokens.shared_prefix - 1
        steps = np.array([own[order.examples_of(step)].sum() for step in range(1, order.steps + 1)]) // ranks
        return cls(*(int(size) + tokens.shared_prefix for size in (np.median(steps), steps.max(), own.max())))

    @classmethod
    def expected(cls, sample: Tokens, per_step: int, limit: int, ranks: int) -> "StepSizes":
        """Of steps that are not laid out yet, from a sample of their examples; ``limit``: tokens of the longest."""
        own = np.minimum(sample.lengths, limit) - sample.shared_prefix - 1
        ordinary = int(own.mean() * per_step) // ranks
        return cls(*(int(size) + sample.shared_prefix for size in (ordinary, 1.1 * ordinary, own.max())))


def shape_of(config: PretrainedConfig, compute: Compute) -> Shape:
    """What the planner needs of a model, or of its text part."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(layers=text.num_hidden_layers, hidden=text.hidden_size, inner=text.intermediate_size,
                 query_heads=text.num_attention_heads, key_heads=text.num_key_value_heads, head_size=size,
                 vocabulary=text.vocab_size, fast=why_not(config) is None,
                 varlen=attention_path(compute.device, compute.dtype, size) == "varlen", tied=text.tie_word_embeddings)


@dataclass(frozen=True)
class Layout:
    """All that decides a plan but the memory."""

    shape: Shape
    lora: Lora
    hardware: Hardware
    compute: Compute
    sizes: StepSizes

    def plan(self, available: int, pack_tokens: int | None = None) -> Plan:
        """The plan of a machine with so many bytes beside the base.

        Args:
            pack_tokens: fixed by an attempt before; None: as the recipe says, else planned.

        Raises:
            MachineError: it does not fit.
        """
        largest = self.sizes.largest if self.compute.device.type == "cuda" else min(self.sizes.largest, CPU_TOKENS)
        largest = -(-largest // ROUNDED) * ROUNDED
        wishes = Wishes(pack_tokens or self.hardware.pack_tokens, self.hardware.recompute, self.hardware.resident)
        trained = lora_parameters(self.shape, self.lora.rank, self.lora.targets)
        return plan_step(self.shape, trained, self.compute.dtype.itemsize, available, self.sizes.ordinary, largest,
                         self.sizes.longest, wishes)


def free_bytes(compute: Compute, hardware: Hardware) -> int:
    """Bytes that a training may take beside the base that is loaded: of the card, or of what ``memory_gib`` leaves of it."""
    if compute.device.type == "cpu":
        return int((hardware.memory_gib * GIB if hardware.memory_gib else psutil.virtual_memory().total) * CPU_SHARE)
    free, _ = torch.cuda.mem_get_info(compute.device)
    held, used = torch.cuda.memory_reserved(compute.device), torch.cuda.memory_allocated(compute.device)
    free += held - used
    if hardware.memory_gib:
        free = min(free, int(hardware.memory_gib * GIB) - CONTEXT - used)
    return free


def whole_bytes(compute: Compute, hardware: Hardware) -> int:
    """Bytes of the machine before anything is loaded, less what CUDA itself takes."""
    if compute.device.type == "cpu":
        return free_bytes(compute, hardware)
    total = torch.cuda.get_device_properties(compute.device).total_memory
    return (int(hardware.memory_gib * GIB) if hardware.memory_gib else total) - CONTEXT

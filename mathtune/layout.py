"""How a training job's steps are laid on this machine: the planner's inputs, read from the model, the card and the tokens."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig

from mathtune.attention import attention_path
from mathtune.devices import Compute
from mathtune.errors import MachineError
from mathtune.fast.llama import head_size, why_not
from mathtune.order import Order
from mathtune.planner import CONTEXT, GIB, ROUNDED, Plan, Shape, Training, Wishes, lora_parameters, plan_step
from mathtune.recipe import Hardware, Lora
from mathtune.tokens import Tokens

CPU_TOKENS = 4096  # a larger pack is no faster there
INNER = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")  # names of the MLP's width
CPU_SHARE = 0.5  # of the memory of a machine that other programs use, too


@dataclass(frozen=True)
class StepSizes:
    """Tokens as they are computed, the shared prefix once a pack.

    Attributes:
        ordinary, largest: of a step.
        longest: of an example.
        spread: keys for each token, since the prefix's are repeated for every example.
    """

    ordinary: int
    largest: int
    longest: int
    spread: float

    @classmethod
    def of(cls, tokens: Tokens, order: Order, ranks: int = 1) -> "StepSizes":
        """Of one rank's share of every step."""
        own = tokens.lengths - tokens.shared_prefix - 1
        steps = np.array([own[order.examples_of(step)].sum() for step in range(1, order.steps + 1)]) // ranks
        return cls._of(own, tokens.shared_prefix, float(np.median(steps)), int(steps.max()))

    @classmethod
    def expected(cls, sample: Tokens, per_step: int, limit: int, ranks: int) -> "StepSizes":
        """Of steps that are not laid out yet, from a sample of their examples; ``limit``: tokens of the longest."""
        own = np.minimum(sample.lengths, limit) - sample.shared_prefix - 1
        ordinary = own.mean() * per_step / ranks
        return cls._of(own, sample.shared_prefix, ordinary, int(1.1 * ordinary))

    @classmethod
    def _of(cls, own: np.ndarray, prefix: int, ordinary: float, largest: int) -> "StepSizes":
        return cls(int(ordinary) + prefix, largest + prefix, int(own.max()) + prefix, float((own.mean() + prefix) / own.mean()))


def shape_of(config: PretrainedConfig, compute: Compute, lora: Lora) -> Shape:
    """What the planner needs of a model, or of its text part. Where a configuration has no name for a width it is the usual."""
    text = config.get_text_config()
    size = head_size(text)
    inner = next((wide for name in INNER if (wide := getattr(text, name, None))), 4 * text.hidden_size)
    return Shape(layers=text.num_hidden_layers, hidden=text.hidden_size, inner=inner,
                 query_heads=text.num_attention_heads,
                 key_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads, head_size=size,
                 vocabulary=text.vocab_size, fast=why_not(config, lora.targets) is None,
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
        parameters = lora_parameters(self.shape, self.lora.rank, self.lora.targets)
        training = Training(self.lora.rank, parameters, self.compute.dtype.itemsize, self.lora.dropout > 0, self.sizes.spread)
        hardware, sizes = self.hardware, self.sizes
        wishes = Wishes(pack_tokens or hardware.pack_tokens, hardware.recompute, hardware.resident)
        try:
            return plan_step(self.shape, training, available, sizes.ordinary, largest, sizes.longest, wishes)
        except MachineError as error:
            if pack_tokens is None and hardware.memory_gib:
                raise MachineError(error.what, where="hardware.memory_gib", remedy="raise it, or leave it out") from error
            if pack_tokens is None:
                raise
            # what was begun goes on with its packs, as lean as can be; where they do not fit they are halved
            leanest = Wishes(pack_tokens, "full", False)
            plan = plan_step(self.shape, training, 2**62, sizes.ordinary, largest, sizes.longest, leanest)
            return replace(plan, available=available)


def free_bytes(compute: Compute, hardware: Hardware) -> int:
    """Bytes that a training may take beside the base that is loaded: of the card, or of what ``memory_gib`` leaves of it; on a
    CPU a share of all that there is, since what is free there changes with what else runs."""
    if compute.device.type == "cpu":
        return int(allowed_bytes(hardware, int(host_bytes() * CPU_SHARE)) / hardware.gpus)
    free, _ = torch.cuda.mem_get_info(compute.device)
    held, used = torch.cuda.memory_reserved(compute.device), torch.cuda.memory_allocated(compute.device)
    free += held - used
    if hardware.memory_gib:
        free = min(free, int(hardware.memory_gib * GIB) - CONTEXT - used)
    return free


def allowed_bytes(hardware: Hardware, there: int) -> int:
    """What the recipe leaves of so many bytes."""
    return min(there, int(hardware.memory_gib * GIB)) if hardware.memory_gib else there


def host_bytes() -> int:
    """Memory of this machine, or of the container it is."""
    limit = Path("/sys/fs/cgroup/memory.max")
    told = limit.read_text().strip() if limit.is_file() else "max"
    return min(psutil.virtual_memory().total, int(told) if told.isdigit() else 2**62)


def whole_bytes(compute: Compute, hardware: Hardware) -> int:
    """Bytes of the machine before anything is loaded, less what CUDA itself takes."""
    if compute.device.type == "cpu":
        return free_bytes(compute, hardware)
    total = torch.cuda.get_device_properties(compute.device).total_memory
    return allowed_bytes(hardware, total) - CONTEXT

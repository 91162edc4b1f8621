"""Frozen weights of joined projections, with their LoRA factors around them in one matrix.

Projections that read the same input (query, key, value; gate, up) are stacked. With ``W`` [out, in], the factors ``A``
[rank, in] and ``B`` [out, rank] (block-diagonal over the projections), scaled by ``s``:

    matrix = [ W  sB ]      forward:   y  = [x, x Aᵀ] [W, sB]ᵀ
             [ A   – ]      backward:  dx = [dy, dy sB] [W; A]

so that one product does what otherwise takes a product, a small one, and a pass over the output. ``rank`` is the sum of
the projections' ranks, filled up with zeros to a multiple of 8 (rows of 16 bytes).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn

ALIGNED = 8


@dataclass(frozen=True)
class Projection:
    """One linear layer and its adapter, if it has one.

    Attributes:
        weight: the frozen parameter, [out, in] or packed NF4.
        size: out.
        adapter: A [rank, in] and B [out, rank], float32 masters; empty where the layer has none.
        scale: of the adapter's product (alpha / rank).
        dropout: probability with which an element of the adapter's input is dropped.
    """

    weight: nn.Parameter
    size: int
    adapter: tuple[nn.Parameter, ...]
    scale: float
    dropout: float

    @classmethod
    def of(cls, module: nn.Module) -> "Projection":
        """Of a linear layer, plain or wrapped by peft."""
        base = getattr(module, "base_layer", module)
        if base is module:
            return cls(base.weight, base.out_features, (), 0.0, 0.0)
        dropout = getattr(module.lora_dropout["default"], "p", 0.0)
        factors = (module.lora_A["default"].weight, module.lora_B["default"].weight)
        return cls(base.weight, base.out_features, factors, module.scaling["default"], dropout)

    @property
    def rank(self) -> int:
        return self.adapter[0].shape[0] if self.adapter else 0


class Workspace:
    """Room for weights that are made when they are needed: one matrix a shape, overwritten by whoever comes next.

    Work on one device is done in order, so that a product has read the matrix before the next one fills it.
    """

    def __init__(self):
        self._matrices: dict[tuple, torch.Tensor] = {}

    def matrix(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if shape not in self._matrices:
            self._matrices[shape] = torch.zeros(shape, dtype=dtype, device=device)
        return self._matrices[shape]


class JoinedWeight:
    """Weights and factors of projections that read the same input, as one matrix.

    Args:
        modules: the linear layers, in the order of their outputs.
        dtype: of the products.
        workspace: where to make the matrix whenever it is needed; None: it is made once and kept.
    """

    def __init__(self, modules: list[nn.Module], dtype: torch.dtype, workspace: Workspace | None):
        self.projections = [Projection.of(module) for module in modules]
        self.inputs = getattr(modules[0], "base_layer", modules[0]).in_features
        self.outputs = sum(one.size for one in self.projections)
        self.rank = -(-sum(one.rank for one in self.projections) // ALIGNED) * ALIGNED
        self.dropout = max(one.dropout for one in self.projections)
        self.dropping = True  # False while nothing is trained
        self.shape = (self.outputs + self.rank, self.inputs + self.rank)
        self._workspace = workspace
        options = {"dtype": dtype, "device": self.projections[0].weight.device}
        if workspace is None:
            self._matrix = torch.zeros(self.shape, **options)
            self._fill_weights(self._matrix)
            self.down, self.up = self._matrix[self.outputs:, :self.inputs], self._matrix[:self.outputs, self.inputs:]
        else:
            self._options = options
            self.down = torch.zeros(self.rank, self.inputs, **options)
            self.up = torch.zeros(self.outputs, self.rank, **options)

    @property
    def adapters(self) -> list[nn.Parameter]:
        """A and B of every projection that has them."""
        return [factor for one in self.projections for factor in one.adapter]

    def matrix(self) -> torch.Tensor:
        """The matrix [out + rank, in + rank]; valid until another joined weight of the same workspace asks for its own."""
        if self._workspace is None:
            return self._matrix
        matrix = self._workspace.matrix(self.shape, **self._options)
        self._fill_weights(matrix)
        if self.rank:
            matrix[self.outputs:, :self.inputs].copy_(self.down)
            matrix[:self.outputs, self.inputs:].copy_(self.up)
        return matrix

    @cached_property
    def blocks(self) -> list[tuple[slice, slice, float]]:
        """Output rows, rank columns and scale of every projection with an adapter."""
        found, row, column = [], 0, 0
        for one in self.projections:
            if one.adapter:
                found.append((slice(row, row + one.size), slice(column, column + one.rank), one.scale))
            row, column = row + one.size, column + one.rank
        return found

    @torch.no_grad()
    def _fill_weights(self, matrix: torch.Tensor) -> None:
        row = 0
        for one in self.projections:
            fill_weight(matrix[row:row + one.size, :self.inputs], one.weight)
            row += one.size


class Factors:
    """The LoRA factors of many joined weights, taken over from their float32 masters all at once.

    ``down`` [rank, in] holds every A, ``up`` [out, rank] every scaled B in its block.
    """

    def __init__(self, weights: list[JoinedWeight]):
        self._masters: list[torch.Tensor] = []
        self._scales: list[float] = []
        self._rooms: list[torch.Tensor] = []
        for weight in weights:
            adapted = [one for one in weight.projections if one.adapter]
            for one, (rows, columns, scale) in zip(adapted, weight.blocks, strict=True):
                self._masters += one.adapter
                self._scales += [1.0, scale]
                self._rooms += [weight.down[columns], weight.up[rows, columns]]

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings them up to date: to be called after every change of the masters."""
        if self._masters:
            torch._foreach_copy_(self._rooms, torch._foreach_mul([one.detach() for one in self._masters], self._scales))


def fill_weight(room: torch.Tensor, weight: nn.Parameter) -> None:
    """Writes a frozen weight, dequantised where it is NF4, into ``room`` [out, in]."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        room.copy_(weight)
    elif room.is_cuda:
        from mathtune.fast.nf4 import unpack_nf4  # Triton comes with torch's CUDA build only

        unpack_nf4(weight.data, state, room)
    else:
        room.copy_(dequantize_4bit(weight.data, state))

"""Frozen weights of joined projections, with their LoRA factors around them in one matrix.

Projections that read the same input (query, key, value; gate, up) are stacked. With ``W`` [out, in], the factors ``A``
[rank, in] and ``B`` [out, rank] (block-diagonal over the projections), scaled by ``s``:

    matrix = [ W  sB ]      forward:   y  = [x, x Aᵀ] [W, sB]ᵀ
             [ A   – ]      backward:  dx = [dy, dy sB] [W; A]

so that one product does what otherwise takes a product, a small one, and a pass over the output. ``rank`` is the sum of
the projections' ranks, filled up with zeros to a multiple of 8 (rows of 16 bytes).
"""

from dataclasses import dataclass

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
        self.dtype, self.device = dtype, self.projections[0].weight.device
        self._workspace, self._kept = workspace, None

    @property
    def adapters(self) -> list[nn.Parameter]:
        """A and B of every projection that has them."""
        return [factor for one in self.projections for factor in one.adapter]

    @property
    def bytes(self) -> int:
        """Of the matrix."""
        return (self.outputs + self.rank) * (self.inputs + self.rank) * self.dtype.itemsize

    def matrix(self) -> torch.Tensor:
        """The matrix [out + rank, in + rank]; valid until another joined weight of the same workspace asks for its own."""
        if self._kept is None:
            shape = (self.outputs + self.rank, self.inputs + self.rank)
            if self._workspace is None:
                self._kept = torch.zeros(shape, dtype=self.dtype, device=self.device)
            matrix = self._kept if self._workspace is None else self._workspace.matrix(shape, self.dtype, self.device)
            self._fill_weights(matrix)
            self._fill_factors(matrix)
            return matrix
        return self._kept

    def refresh(self) -> None:
        """Takes over the factors after an optimizer step, where the matrix is kept."""
        if self._kept is not None:
            self._fill_factors(self._kept)

    def blocks(self) -> list[tuple[slice, slice]]:
        """Output rows and rank columns of every projection with an adapter."""
        found, row, column = [], 0, 0
        for one in self.projections:
            if one.adapter:
                found.append((slice(row, row + one.size), slice(column, column + one.rank)))
            row, column = row + one.size, column + one.rank
        return found

    def scales(self) -> list[float]:
        """Of every projection with an adapter."""
        return [one.scale for one in self.projections if one.adapter]

    @torch.no_grad()
    def _fill_weights(self, matrix: torch.Tensor) -> None:
        row = 0
        for one in self.projections:
            fill_weight(matrix[row:row + one.size, :self.inputs], one.weight)
            row += one.size

    @torch.no_grad()
    def _fill_factors(self, matrix: torch.Tensor) -> None:
        adapted = [one for one in self.projections if one.adapter]
        if not adapted:
            return
        if self._workspace is not None:  # whoever used the room before had other blocks
            matrix[:, self.inputs:].zero_()
        for one, (rows, columns) in zip(adapted, self.blocks(), strict=True):
            matrix[self.outputs + columns.start:self.outputs + columns.stop, :self.inputs].copy_(one.adapter[0])
            torch.mul(one.adapter[1], one.scale, out=(scaled := torch.empty_like(one.adapter[1])))
            matrix[rows, self.inputs + columns.start:self.inputs + columns.stop].copy_(scaled)


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

"""The products of a joined projection, forward and backward, with its LoRA factors as extra columns.

Shapes: ``N`` tokens, ``rank`` as in ``mathtune.fast.weights``. Rows are laid out with room for those extra columns
(``room_for``), so that whoever makes an operand writes it where the product reads it.
"""

from dataclasses import dataclass

import torch

from mathtune.fast.weights import JoinedWeight


def room_for(tokens: int, columns: int, extra: int, like: torch.Tensor) -> torch.Tensor:
    """An empty [tokens, columns] whose rows have ``extra`` free columns behind them, and says so: ``widen`` shows them."""
    x = like.new_empty(tokens, columns + extra)[:, :columns]
    x.room = extra  # autograd hands on the object as it is; a part of a wider matrix, whose rows look alike, has no such mark
    return x


def widen(x: torch.Tensor, extra: int) -> torch.Tensor:
    """``x`` [N, columns] with the ``extra`` columns behind it: those of ``room_for``, else a copy that has them."""
    if getattr(x, "room", None) != extra:
        x = room_for(*x.shape, extra, x).copy_(x)
    return x.as_strided((len(x), x.shape[1] + extra), (x.shape[1] + extra, 1))


@dataclass(frozen=True)
class Saved:
    """What the backward pass of a joined projection needs besides its input.

    Attributes:
        lora_input: [N, rank], the input times Aᵀ.
        mask: bool [N, in], the elements that the adapter's dropout kept; None without dropout.
    """

    lora_input: torch.Tensor
    mask: torch.Tensor | None


def forward_product(x: torch.Tensor, joined: JoinedWeight, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, Saved]:
    """``y`` [N, out] of ``x`` [N, in] (best made with ``room_for``), and what the backward pass needs.

    Args:
        mask: the adapter's dropout mask, where the pass is done again; else it is drawn.
    """
    matrix = joined.matrix()
    wide = widen(x, joined.rank)
    lora_input = wide[:, joined.inputs:]
    if joined.rank:
        if joined.dropout and joined.dropping and mask is None:
            mask = torch.rand(x.shape, device=x.device) >= joined.dropout
        kept = x if mask is None else dropped(x, mask, joined.dropout)
        torch.mm(kept, joined.down.t(), out=lora_input)
    return wide @ matrix[:joined.outputs].t(), Saved(lora_input.contiguous(), mask)


def input_gradient(dy: torch.Tensor, joined: JoinedWeight, saved: Saved, needed: bool = True):
    """Gradient of the input, [N, in], and of its product with Aᵀ, [N, rank].

    Args:
        dy: [N, out], best made with ``room_for``.
        needed: whether the input's is wanted at all (None otherwise).
    """
    wide = widen(dy, joined.rank)
    dlora = wide[:, joined.outputs:]
    if joined.rank:
        torch.mm(dy, joined.up, out=dlora)
    if not needed:
        return None, dlora
    matrix = joined.matrix()
    if saved.mask is None:
        return wide @ matrix[:, :joined.inputs], dlora
    dx = dy @ matrix[:joined.outputs, :joined.inputs]
    return dx.add_(dropped(dlora @ joined.down, saved.mask, joined.dropout)), dlora


def adapter_gradients(x: torch.Tensor, dy: torch.Tensor, dlora: torch.Tensor, joined: JoinedWeight,
                      saved: Saved) -> list[torch.Tensor]:
    """Float32 gradients of ``joined.adapters``: of A and B of every projection that has them."""
    if not joined.rank:
        return []
    if saved.mask is not None:
        x = dropped(x, saved.mask, joined.dropout)
    down = product_in_float32(dlora.t(), x)
    gradients = []
    for rows, columns, scale in joined.blocks:
        up = product_in_float32(dy[:, rows].t(), saved.lora_input[:, columns])
        gradients += [down[columns], up.mul_(scale)]
    return gradients


def dropped(x: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """``x`` where the mask keeps it, scaled so that its mean stays."""
    return x * mask / (1 - p)


def product_in_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b`` as float32: sums over all tokens of a pack are not rounded to the compute dtype."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()

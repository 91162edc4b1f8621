"""The parts of a layer as autograd functions. Each keeps what is dear to compute again, and nothing else.

The residual stream travels as two tensors, ``x`` and the last part's output ``delta``, and the next norm adds them on the
way. ``room``: free columns behind the rows of a gradient, for the product that reads it next (``mathtune.fast.products``).
"""

import torch
from torch import Tensor
from torch.autograd import Function

from mathtune.fast.pointwise import add_norm, norm_backward, renorm, swiglu, swiglu_backward
from mathtune.fast.products import Saved, adapter_gradients, forward_product, input_gradient, room_for
from mathtune.fast.weights import JoinedWeight


def _normed(x: Tensor, delta: Tensor | None, norm, extra: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, norm (with ``extra`` columns of room) and the rows' factors."""
    total = x if delta is None else torch.empty_like(x)
    normed, scale = room_for(*x.shape, extra, x), x.new_empty(len(x), dtype=torch.float32)
    add_norm(x, delta, norm.weight, norm.variance_epsilon, total, normed, scale)
    return total, normed, scale


def _norm_gradient(d_normed: Tensor, total: Tensor, norm, scale: Tensor, d_total: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Gradient of the sum, from its norm and from elsewhere, and the norm once more."""
    dx, normed = room_for(*total.shape, room, total), torch.empty_like(total)
    norm_backward(d_normed, total, norm.weight, scale, d_total, dx, normed)
    return dx, normed


class AddNorm(Function):
    """``x + delta`` and its RMS norm, both [N, H]."""

    @staticmethod
    def forward(ctx, x, delta, norm, room):
        total, normed, scale = _normed(x, delta, norm, 0)
        ctx.save_for_backward(total, scale)
        ctx.norm, ctx.room, ctx.adds = norm, room, delta is not None
        return total, normed

    @staticmethod
    def backward(ctx, d_total, d_normed):
        total, scale = ctx.saved_tensors
        dx, _ = _norm_gradient(d_normed, total, ctx.norm, scale, d_total, ctx.room)
        return dx, dx if ctx.adds else None, None, None


class NormLinear(Function):
    """``x + delta`` [N, H], and the joined projection [N, out] of its norm. Keeps the sum, not the norm."""

    @staticmethod
    def forward(ctx, x, delta, norm, joined: JoinedWeight, room, *adapters):
        total, normed, scale = _normed(x, delta, norm, joined.rank)
        y, saved = forward_product(normed, joined)
        ctx.save_for_backward(total, scale, saved.lora_input, saved.mask)
        ctx.norm, ctx.joined, ctx.room, ctx.adds = norm, joined, room, delta is not None
        return total, y

    @staticmethod
    def backward(ctx, d_total, dy):
        total, scale, lora_input, mask = ctx.saved_tensors
        saved, norm = Saved(lora_input, mask), ctx.norm
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        d_normed, dlora = input_gradient(dy, ctx.joined, saved, needed)
        if needed:
            dx, normed = _norm_gradient(d_normed, total, norm, scale, d_total, ctx.room)
        else:  # the first layer: nothing before it is trained
            dx, normed = None, torch.empty_like(total)
            renorm(total, norm.weight, scale, normed)
        return dx, dx if ctx.adds else None, None, None, None, *adapter_gradients(normed, dy, dlora, ctx.joined, saved)


class Linear(Function):
    """A joined projection of ``x``: [N, in] to [N, out]."""

    @staticmethod
    def forward(ctx, x, joined: JoinedWeight, *adapters):
        y, saved = forward_product(x, joined)
        ctx.save_for_backward(x, saved.lora_input, saved.mask)
        ctx.joined = joined
        return y

    @staticmethod
    def backward(ctx, dy):
        x, lora_input, mask = ctx.saved_tensors
        saved = Saved(lora_input, mask)
        dx, dlora = input_gradient(dy, ctx.joined, saved)
        return dx, None, *adapter_gradients(x, dy, dlora, ctx.joined, saved)


class Mlp(Function):
    """``x + delta`` [N, H], and ``down(silu(gate) * up)`` [N, H] of its norm.

    Keeps the sum and, unless ``recomputes``, the joined gate and up; their product is computed again in either case.
    """

    @staticmethod
    def forward(ctx, x, delta, norm, gate_up: JoinedWeight, down: JoinedWeight, recomputes, room, *adapters):
        total, normed, scale = _normed(x, delta, norm, gate_up.rank)
        joint, of_joint = forward_product(normed, gate_up)
        hidden = room_for(len(x), down.inputs, down.rank, x)
        swiglu(joint, hidden)
        y, of_hidden = forward_product(hidden, down)
        ctx.save_for_backward(total, scale, None if recomputes else joint, of_joint.lora_input, of_joint.mask,
                              of_hidden.lora_input, of_hidden.mask)
        ctx.norm, ctx.gate_up, ctx.down, ctx.room, ctx.adds = norm, gate_up, down, room, delta is not None
        return total, y

    @staticmethod
    def backward(ctx, d_total, dy):
        total, scale, joint, *rest = ctx.saved_tensors
        of_joint, of_hidden = Saved(*rest[:2]), Saved(*rest[2:])
        norm, gate_up, down = ctx.norm, ctx.gate_up, ctx.down
        if joint is None:
            normed = room_for(*total.shape, gate_up.rank, total)
            renorm(total, norm.weight, scale, normed)
            joint, _ = forward_product(normed, gate_up, of_joint.mask)
        d_hidden, dlora = input_gradient(dy, down, of_hidden)
        d_joint, hidden = room_for(*joint.shape, gate_up.rank, joint), torch.empty_like(d_hidden)
        swiglu_backward(d_hidden, joint, d_joint, hidden)
        of_down = adapter_gradients(hidden, dy, dlora, down, of_hidden)
        del joint, hidden, d_hidden
        d_normed, dlora = input_gradient(d_joint, gate_up, of_joint)
        dx, normed = _norm_gradient(d_normed, total, norm, scale, d_total, ctx.room)
        of_gate_up = adapter_gradients(normed, d_joint, dlora, gate_up, of_joint)
        return dx, dx if ctx.adds else None, None, None, None, None, None, *of_gate_up, *of_down

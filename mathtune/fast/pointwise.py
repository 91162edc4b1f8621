"""What happens between the products: norms with the sum before them, rotary embedding, SwiGLU. Forward and backward.

Each function writes into tensors it is given, whose rows may have room behind them. Here they are plain torch, for a CPU
and as the reference; on a GPU ``mathtune.fast.kernels`` has each as one Triton kernel. Between values are float32.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, total: Tensor | None, normed: Tensor,
             scale: Tensor) -> None:
    """RMS norm (Zhang and Sennrich, arXiv:1910.07467) of ``x + delta``, all [N, H].

    Args:
        delta: None for the norm of ``x`` alone.
        total: takes the sum; None without ``delta``.
        normed: takes the norm.
        scale: float32 [N], takes each row's factor.
    """
    if x.is_cuda:
        return kernels().add_norm(x, delta, weight, eps, total, normed, scale)
    if delta is not None:
        x = total.copy_(x + delta)
    wide = x.float()
    scale.copy_(torch.rsqrt(wide.square().mean(-1) + eps))
    normed.copy_(wide * scale[:, None] * weight.float())


def renorm(x: Tensor, weight: Tensor, scale: Tensor, normed: Tensor) -> None:
    """The norm again, from its rows' factors."""
    if x.is_cuda:
        return kernels().renorm(x, weight, scale, normed)
    normed.copy_(x.float() * scale[:, None] * weight.float())


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor, dx: Tensor,
                  normed: Tensor) -> None:
    """Backward pass of the norm, with the gradient that reaches ``x`` past it added, and the norm once more.

    Args:
        grad: of the norm, [N, H].
        x: what was normed, [N, H].
        scale: float32 [N], of the forward pass.
        residual: gradient of ``x`` from elsewhere, [N, H].
        dx, normed: take the gradient of ``x``, and the norm.
    """
    if x.is_cuda:
        return kernels().norm_backward(grad, x, weight, scale, residual, dx, normed)
    unit = x.float() * scale[:, None]
    scaled = grad.float() * weight.float()
    along = (scaled * unit).mean(-1, keepdim=True)
    dx.copy_((scaled - unit * along) * scale[:, None] + residual.float())
    normed.copy_(unit * weight.float())


def swiglu(gate_up: Tensor, hidden: Tensor) -> None:
    """``silu(gate) * up`` (Shazeer, arXiv:2002.05202) of the joined [N, 2 I] into ``hidden`` [N, I]."""
    if gate_up.is_cuda:
        return kernels().swiglu(gate_up, hidden)
    gate, up = gate_up.float().chunk(2, dim=-1)
    hidden.copy_(silu(gate) * up)


def swiglu_backward(grad: Tensor, gate_up: Tensor, d_gate_up: Tensor, hidden: Tensor) -> None:
    """Gradient of the joined [N, 2 I] into ``d_gate_up``, and ``hidden`` [N, I] once more; ``grad`` is hidden's."""
    if gate_up.is_cuda:
        return kernels().swiglu_backward(grad, gate_up, d_gate_up, hidden)
    gate, up = gate_up.float().chunk(2, dim=-1)
    grad, sigmoid = grad.float(), torch.sigmoid(gate)
    activated = gate * sigmoid
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    d_gate.copy_(grad * up * (sigmoid + activated * (1 - sigmoid)))
    d_up.copy_(grad * activated)
    hidden.copy_(activated * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotated: Tensor) -> None:
    """Rotary embedding (Su et al., arXiv:2104.09864), first half with second. The backward pass is that of ``-sin``.

    Args:
        x: [N, heads, D].
        cos, sin: float32 [N, D / 2].
        rotated: takes the result, [N, heads, D].
    """
    if x.is_cuda:
        return kernels().rotate(x, cos, sin, rotated)
    first, second = x.float().chunk(2, dim=-1)
    left, right = rotated.chunk(2, dim=-1)
    left.copy_(first * cos[:, None] - second * sin[:, None])
    right.copy_(second * cos[:, None] + first * sin[:, None])


def kernels():
    """The Triton kernels; Triton comes with torch's CUDA build only."""
    from mathtune.fast import kernels as module

    return module

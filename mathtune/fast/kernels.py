"""The functions of ``mathtune.fast.pointwise`` as Triton kernels: each reads and writes every element once.

A norm takes a row a program; the others a tile. Rows may be longer than what is used of them, so every matrix comes with
its row stride. Needs a GPU, or TRITON_INTERPRET=1.
"""

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024  # of a tile


@triton.jit
def _add_norm(x, delta, weight, total, normed, scale, eps, width, x_row, delta_row, total_row, normed_row,
              ADDS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(delta + row * delta_row + column, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row * total_row + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(scale + row, factor)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * normed_row + column, (value * factor * w).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _renorm(x, weight, scale, normed, width, x_row, normed_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32) * tl.load(scale + row)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * normed_row + column, (value * w).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(grad, x, weight, scale, residual, dx, normed, width, grad_row, x_row, residual_row, dx_row, normed_row,
                   BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    factor = tl.load(scale + row)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    unit = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32) * factor
    tl.store(normed + row * normed_row + column, (unit * w).to(normed.dtype.element_ty), mask=inside)
    scaled = tl.load(grad + row * grad_row + column, mask=inside, other=0.0).to(tl.float32) * w
    along = tl.sum(scaled * unit, 0) / width
    rest = tl.load(residual + row * residual_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * dx_row + column, ((scaled - unit * along) * factor + rest).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(gate_up, hidden, inner, gate_row, hidden_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    gate = tl.load(gate_up + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_row + inner + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(hidden + row * hidden_row + column, (gate * tl.sigmoid(gate) * up).to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(grad, gate_up, d_gate_up, hidden, inner, grad_row, gate_row, d_row, hidden_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    gate = tl.load(gate_up + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_row + inner + column, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(grad + row * grad_row + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    activated = gate * sigmoid
    dtype = hidden.dtype.element_ty
    d_gate = d * up * (sigmoid + activated * (1 - sigmoid))
    tl.store(d_gate_up + row * d_row + column, d_gate.to(dtype), mask=inside)
    tl.store(d_gate_up + row * d_row + inner + column, (d * activated).to(dtype), mask=inside)
    tl.store(hidden + row * hidden_row + column, (activated * up).to(dtype), mask=inside)


@triton.jit
def _rotate(x, cos, sin, rotated, pairs, half, x_row, x_head, rotated_row, rotated_head, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    inside = pair < pairs
    head, place = pair // half, pair % half
    c = tl.load(cos + row * half + place, mask=inside, other=0.0)
    s = tl.load(sin + row * half + place, mask=inside, other=0.0)
    source = x + row * x_row + head * x_head + place
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    target = rotated + row * rotated_row + head * rotated_head + place
    tl.store(target, (first * c - second * s).to(rotated.dtype.element_ty), mask=inside)
    tl.store(target + half, (second * c + first * s).to(rotated.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, total: Tensor | None, normed: Tensor,
             scale: Tensor) -> None:
    """See ``pointwise.add_norm``."""
    rows, width = x.shape
    adds = delta is not None
    delta, total = (delta, total) if adds else (x, x)
    _add_norm[(rows,)](x, delta, weight, total, normed, scale, eps, width, x.stride(0), delta.stride(0), total.stride(0),
                       normed.stride(0), ADDS=adds, **_row(width))


def renorm(x: Tensor, weight: Tensor, scale: Tensor, normed: Tensor) -> None:
    """See ``pointwise.renorm``."""
    rows, width = x.shape
    _renorm[(rows,)](x, weight, scale, normed, width, x.stride(0), normed.stride(0), **_row(width))


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor, dx: Tensor,
                  normed: Tensor) -> None:
    """See ``pointwise.norm_backward``."""
    rows, width = x.shape
    _norm_backward[(rows,)](grad, x, weight, scale, residual, dx, normed, width, grad.stride(0), x.stride(0),
                            residual.stride(0), dx.stride(0), normed.stride(0), **_row(width))


def swiglu(gate_up: Tensor, hidden: Tensor) -> None:
    """See ``pointwise.swiglu``."""
    rows, inner = hidden.shape
    _swiglu[(rows, triton.cdiv(inner, COLUMNS))](gate_up, hidden, inner, gate_up.stride(0), hidden.stride(0), BLOCK=COLUMNS)


def swiglu_backward(grad: Tensor, gate_up: Tensor, d_gate_up: Tensor, hidden: Tensor) -> None:
    """See ``pointwise.swiglu_backward``."""
    rows, inner = hidden.shape
    _swiglu_backward[(rows, triton.cdiv(inner, COLUMNS))](
        grad, gate_up, d_gate_up, hidden, inner, grad.stride(0), gate_up.stride(0), d_gate_up.stride(0), hidden.stride(0),
        BLOCK=COLUMNS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotated: Tensor) -> None:
    """See ``pointwise.rotate``."""
    rows, heads, size = x.shape
    pairs = heads * size // 2
    _rotate[(rows,)](x, cos, sin, rotated, pairs, size // 2, x.stride(0), x.stride(1), rotated.stride(0), rotated.stride(1),
                     **_row(pairs))


def _row(width: int) -> dict[str, int]:
    """A whole row in a program, with warps enough for it."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}

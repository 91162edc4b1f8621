"""Attention over a pack inside the fast step: rotary embedding, keys laid out per example, torch's flash kernel.

Where that kernel does not run (a CPU, float32, a GPU before SM 8.0) ``mathtune.attention`` does the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from mathtune.attention import attention_path, fold, packed_attention, prefix_places
from mathtune.fast.pointwise import rotate
from mathtune.fast.products import room_for
from mathtune.packing import Pack


@dataclass(frozen=True)
class Heads:
    """Shape of an attention: numbers of heads, and their size ``D``."""

    queries: int
    keys: int
    size: int

    @property
    def widths(self) -> list[int]:
        """Columns of queries, keys and values in the joined projection."""
        return [self.queries * self.size, self.keys * self.size, self.keys * self.size]

    @property
    def scale(self) -> float:
        return self.size ** -0.5


@dataclass(frozen=True)
class Rotary:
    """Float32 cosines and sines [N, D / 2] of the tokens' positions."""

    cos: Tensor
    sin: Tensor

    def at(self, index: Tensor) -> "Rotary":
        """Of some tokens."""
        return Rotary(self.cos[index], self.sin[index])

    @property
    def back(self) -> "Rotary":
        """The way back, which gradients take."""
        return Rotary(self.cos, -self.sin)


def attend(joint: Tensor, heads: Heads, rotary: Rotary, pack: Pack, room: int) -> Tensor:
    """Attention of a joined query, key, value [N, (Hq + 2 Hk) D]: [N, Hq D]. ``room``: behind its gradient's rows."""
    if attention_path(joint.device, joint.dtype, heads.size) == "varlen":
        return _Attention.apply(joint, heads, rotary, pack, room)
    queries, keys, values = _by_head(joint, heads.widths, heads)
    return packed_attention(_rotated(queries, rotary), _rotated(keys, rotary), values, pack, heads.scale).flatten(1)


def attend_labels(queries: Tensor, joint: Tensor, heads: Heads, rotary: Rotary, pack: Pack) -> Tensor:
    """Attention of the label tokens alone: of their queries [M, Hq D] to all keys and values [N, 2 Hk D]."""
    if attention_path(joint.device, joint.dtype, heads.size) == "varlen":
        return _LabelAttention.apply(queries, joint, heads, rotary, pack)
    everywhere = queries.new_zeros(len(joint), queries.shape[1]).index_copy(0, pack.label_index, queries)
    whole = torch.cat([everywhere, joint], dim=1)
    return attend(whole, heads, rotary, pack, 0).index_select(0, pack.label_index)


def _by_head(joint: Tensor, widths: list[int], heads: Heads) -> list[Tensor]:
    """The parts of a joined [N, columns], each as [N, heads, D]: views."""
    return [part.unflatten(1, (-1, heads.size)) for part in joint.split(widths, dim=1)]


def _rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """``rotate`` as autograd can follow it."""
    cos, sin = rotary.cos[:, None].to(x.dtype), rotary.sin[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rotated_copy(x: Tensor, rotary: Rotary) -> Tensor:
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rotate(x, rotary.cos, rotary.sin, rotated)
    return rotated


@dataclass(frozen=True)
class _Sequences:
    """What the flash kernel asks of a pack."""

    query_ends: Tensor
    key_ends: Tensor
    max_query: int
    max_key: int

    @classmethod
    def of_all(cls, pack: Pack) -> "_Sequences":
        return cls(pack.query_ends, pack.key_ends, pack.max_query, pack.max_key)

    @classmethod
    def of_labels(cls, pack: Pack) -> "_Sequences":
        key_ends = pack.key_ends[1:] if pack.prefix else pack.key_ends  # no label is in the prefix
        return cls(pack.label_ends, key_ends, pack.max_query, pack.max_key)


def _flash(query: Tensor, key: Tensor, value: Tensor, sequences: _Sequences, scale: float) -> tuple[Tensor, ...]:
    """Causal attention, aligned at the ends of queries and keys: output, logsumexp, and the kernel's random state."""
    return torch.ops.aten._flash_attention_forward(
        query, key, value, sequences.query_ends, sequences.key_ends, sequences.max_query, sequences.max_key, 0.0, True, False,
        scale=scale)[:4]


def _flash_backward(grad: Tensor, query, key, value, out, lse, random, unused, sequences: _Sequences, scale: float):
    return torch.ops.aten._flash_attention_backward(
        grad.contiguous(), query, key, value, out, lse, sequences.query_ends, sequences.key_ends, sequences.max_query,
        sequences.max_key, 0.0, True, random, unused, scale=scale)


def spread_keys(own: Tensor, pack: Pack) -> Tensor:
    """Keys or values [N, Hk, D] laid out per sequence, the prefix's before every example's: [K, Hk, D]."""
    return own.index_select(0, pack.key_index) if pack.prefix else own.contiguous()


def gather_key_gradients(spread: Tensor, pack: Pack) -> Tensor:
    """The backward pass of ``spread_keys``."""
    return fold(spread, pack.own_index, prefix_places(pack)) if pack.prefix else spread


def _forward(ctx, query: Tensor, key: Tensor, value: Tensor, heads: Heads, rotary: Rotary, pack: Pack,
             sequences: _Sequences) -> Tensor:
    """Attention of rotated queries to keys that are not yet; keeps what the backward pass needs."""
    key, value = spread_keys(_rotated_copy(key, rotary), pack), spread_keys(value, pack)
    out, lse, random, unused = _flash(query, key, value, sequences, heads.scale)
    ctx.save_for_backward(query, key, value, out, lse, random, unused)
    ctx.heads, ctx.rotary, ctx.pack, ctx.sequences = heads, rotary, pack, sequences
    return out.flatten(1)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the rotated queries, and of keys and values as they are laid out."""
    return _flash_backward(grad.unflatten(1, (-1, ctx.heads.size)), *ctx.saved_tensors, ctx.sequences, ctx.heads.scale)


def _fill_key_gradients(dk: Tensor, dv: Tensor, back: Rotary, pack: Pack, keys: Tensor, values: Tensor) -> None:
    """Writes the gradients of the tokens' own keys and values into ``keys`` and ``values``."""
    rotate(gather_key_gradients(dk, pack), back.cos, back.sin, keys)
    values.copy_(gather_key_gradients(dv, pack))


class _Attention(Function):
    @staticmethod
    def forward(ctx, joint, heads, rotary, pack, room):
        query, key, value = _by_head(joint, heads.widths, heads)
        ctx.room = room
        return _forward(ctx, _rotated_copy(query, rotary), key, value, heads, rotary, pack, _Sequences.of_all(pack))

    @staticmethod
    def backward(ctx, grad):
        dq, dk, dv = _backward(ctx, grad)
        back = ctx.rotary.back
        joint = room_for(len(grad), sum(ctx.heads.widths), ctx.room, grad)
        queries, keys, values = _by_head(joint, ctx.heads.widths, ctx.heads)
        rotate(dq, back.cos, back.sin, queries)
        _fill_key_gradients(dk, dv, back, ctx.pack, keys, values)
        return joint, None, None, None, None


class _LabelAttention(Function):
    @staticmethod
    def forward(ctx, queries, joint, heads, rotary, pack):
        key, value = _by_head(joint, heads.widths[1:], heads)
        ctx.at_labels = rotary.at(pack.label_index)
        query = _rotated_copy(queries.unflatten(1, (-1, heads.size)), ctx.at_labels)
        return _forward(ctx, query, key, value, heads, rotary, pack, _Sequences.of_labels(pack))

    @staticmethod
    def backward(ctx, grad):
        dq, dk, dv = _backward(ctx, grad)
        queries, back, pack = torch.empty_like(dq), ctx.at_labels.back, ctx.pack
        rotate(dq, back.cos, back.sin, queries)
        if pack.prefix:  # the kernel leaves what no sequence reads: the prefix's own keys
            dk[:pack.prefix], dv[:pack.prefix] = 0, 0
        widths = ctx.heads.widths[1:]
        joint = room_for(len(pack.input_ids), sum(widths), 0, grad)
        _fill_key_gradients(dk, dv, ctx.rotary.back, pack, *_by_head(joint, widths, ctx.heads))
        return queries.flatten(1), joint, None, None, None

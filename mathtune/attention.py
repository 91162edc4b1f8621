"""Attention over packs: every example for itself, the shared prefix before each, and no mask as wide as the pack.

Two ways, chosen by ``attention_path``. ``varlen``: the flash kernel inside torch, which takes sequences one behind the
other. ``bucketed``, wherever that kernel is not: sequences of like length, padded at their end, to torch's scaled dot
product attention; under causality no token sees what stands behind it, padding included. Neither adds gradients in an
order that varies. Attention dropout is left out: the base is frozen.
"""

import inspect
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mathtune.errors import ModelError
from mathtune.packing import Pack

NAME = "mathtune_packed"  # the attention implementation that models switch to; transformers builds no mask for it
LIKE = 0.75  # a bucket's shortest sequence has at least this share of the longest one's tokens
REMEDY = "name another model.base"
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # cuDNN's plans anew for every shape
VARLEN_HEAD = 256  # the widest head of the flash kernel


def packed_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float,
                     window: int | None = None) -> torch.Tensor:
    """Causal attention of every example of a pack to itself and to the shared prefix. Differentiable.

    Args:
        query: (N, query heads, head size), a row for each token of the pack.
        key, value: (N, key heads, head size); the query heads are a multiple of the key heads.
        pack: on the same device.
        scale: factor of the products.
        window: how many tokens a token sees, itself included; None: all before it.

    Returns:
        As ``query``.
    """
    attention = {"varlen": _varlen, "bucketed": _bucketed}[attention_path(query.device, query.dtype, query.shape[-1])]
    return attention(query, key, value, pack, scale, window)


def attention_path(device: torch.device, dtype: torch.dtype, head_size: int) -> Literal["varlen", "bucketed"]:
    """Which way attention takes: the flash kernel needs a half-precision dtype and an NVIDIA GPU from SM 8.0 on."""
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_size <= VARLEN_HEAD
    return "varlen" if fits and torch.cuda.get_device_capability(device) >= (8, 0) else "bucketed"


def _varlen(query, key, value, pack: Pack, scale: float, window: int | None) -> torch.Tensor:
    if pack.prefix:
        places = prefix_places(pack)
        key, value = (_LaidOut.apply(tokens, pack.key_index, pack.own_index, places) for tokens in (key, value))
    options = {"enable_gqa": True} if _varlen_groups_heads() else {}
    if not options:
        key, value = (_repeat_heads(tokens, query.shape[1]) for tokens in (key, value))
    return varlen_attn(query, key, value, pack.query_ends, pack.key_ends, pack.max_query, pack.max_key, scale=scale,
                       window_size=(window - 1 if window else -1, 0), **options)


@cache
def _varlen_groups_heads() -> bool:
    return "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in torch 2.11


def _bucketed(query, key, value, pack: Pack, scale: float, window: int | None) -> torch.Tensor:
    buckets = _buckets(pack)
    sizes = [sequences * length for sequences, length in buckets.shapes]
    padded = [_LaidOut.apply(tokens, buckets.source, buckets.own, buckets.shared).split(sizes)
              for tokens in (query, _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1]))]
    outputs = []
    for (sequences, length), *parts in zip(buckets.shapes, *padded, strict=True):
        mask = _window_mask(length, window, query.device) if window and window < length else None
        with sdpa_kernel(KERNELS):
            output = scaled_dot_product_attention(*(part.unflatten(0, (sequences, length)).transpose(1, 2) for part in parts),
                                                  attn_mask=mask, is_causal=mask is None, scale=scale)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, buckets.output)


@dataclass(frozen=True)
class _Buckets:
    """Where a pack's sequences stand when they are padded: ``P`` places, bucket after bucket. A sequence has as many
    queries as keys here: the prefix's are computed again with every example, and left.

    Attributes:
        shapes: sequences and length of each bucket.
        source: int64 (P,): the token at each place; the padding repeats a sequence's last one.
        own: int64 (N - prefix,): the place of each example token.
        shared: int64 (sequences, prefix): the places of the prefix's tokens.
        output: int64 (N,): the place from which each token takes its output.
    """

    shapes: tuple[tuple[int, int], ...]
    source: torch.Tensor
    own: torch.Tensor
    shared: torch.Tensor
    output: torch.Tensor


@lru_cache(maxsize=2)  # asked for by every layer, on the way forward and where activations are computed again
def _buckets(pack: Pack) -> _Buckets:
    ends, index, own_index = (tensor.cpu().numpy() for tensor in (pack.key_ends, pack.key_index, pack.own_index))
    starts, lengths = ends[:-1], np.diff(ends)
    order = np.argsort(-lengths, kind="stable")
    places, source, shapes, total = np.zeros(len(starts), dtype=np.int64), [], [], 0
    while len(order):
        length = int(lengths[order[0]])
        like = order[lengths[order] >= LIKE * length]
        places[like] = total + length * np.arange(len(like))
        source += [index[starts[i] + np.minimum(np.arange(length), lengths[i] - 1)] for i in like]
        shapes.append((len(like), length))
        total, order = total + len(like) * length, order[len(like):]
    sequence = np.searchsorted(ends, own_index, side="right") - 1
    own = places[sequence] + own_index - starts[sequence]
    shared = places[:, None] + np.arange(pack.prefix)
    tensors = np.concatenate(source), own, shared, np.concatenate([shared[0], own])  # the first sequence is the prefix itself
    return _Buckets(tuple(shapes), *(torch.from_numpy(one).to(pack.key_index.device) for one in tensors))


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Bool (length, length): what each token sees of the ``window`` tokens up to itself."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _repeat_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    return tokens if tokens.shape[1] == heads else tokens.repeat_interleave(heads // tokens.shape[1], dim=1)


class _LaidOut(torch.autograd.Function):
    """``tokens[source]``, where a prefix token stands at many places: its gradient is their sum, in float32 and always in
    the same order. An example's token takes the gradient of one place; padding has none."""

    @staticmethod
    def forward(ctx, tokens, source, own, shared):
        ctx.save_for_backward(own, shared)
        return tokens.index_select(0, source)

    @staticmethod
    def backward(ctx, gradient):
        return fold(gradient, *ctx.saved_tensors), None, None, None


def fold(gradient: torch.Tensor, own: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """The gradient of a pack's tokens from that of the places they were laid out at: (N, heads, head size).

    Args:
        gradient: (places, heads, head size).
        own: int64 (N - prefix,), the place of each example token.
        shared: int64 (sequences, prefix), the places of the prefix's tokens.
    """
    prefix = gradient[shared].sum(0, dtype=torch.float32).to(gradient.dtype)
    return torch.cat([prefix, gradient.index_select(0, own)])


def prefix_places(pack: Pack) -> torch.Tensor:
    """Int64 (sequences, prefix): where the prefix's keys stand among a pack's keys, before every sequence's own."""
    return pack.key_ends[:-1, None] + torch.arange(pack.prefix, device=pack.key_ends.device)


def _for_transformers(module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, *,
                      scaling: float, sliding_window: int | None = None, pack: Pack | None = None, **others):
    """``packed_attention`` as transformers calls it: (1, heads, N, head size) in, (1, N, query heads, head size) out.

    Raises:
        ModelError: a kind of attention that packs do not know, or a model that does not hand ``pack`` down.
    """
    if pack is None:
        raise ModelError("its layers do not hand packs to their attention", where=type(module).__name__, remedy=REMEDY)
    if odd := [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]:
        raise ModelError(f"its attention has {odd[0]}, which packs do not know", where=type(module).__name__, remedy=REMEDY)
    if torch.is_autocast_enabled(query.device.type):  # as torch's own attention does
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    query, key, value = (tokens[0].transpose(0, 1) for tokens in (query, key, value))
    return packed_attention(query, key, value, pack, scaling, sliding_window)[None], None


AttentionInterface.register(NAME, _for_transformers)

"""Attention over packs equals attention over one example at a time, in values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathtune.attention import attention_path, packed_attention
from mathtune.packing import make_pack
from mathtune.tokens import Tokens

HEADS = st.sampled_from([(4, 4), (4, 2), (6, 1)])


def tokens_of(own_lengths: list[int], prefix: int) -> Tokens:
    """Examples that begin with the same ``prefix`` ids, the last of each one's ids being its label."""
    random = np.random.default_rng(1)
    shared = random.integers(0, 50, prefix)
    rows = [np.concatenate([shared, random.integers(50, 99, length + 1)]) for length in own_lengths]
    lengths = np.array([len(row) for row in rows])
    return Tokens(np.arange(len(rows)), np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]),
                  (lengths - 1).astype(np.int32))


def make_inputs(pack, query_heads, key_heads, size, device="cpu", dtype=torch.float32):
    """Random query, key and value of a pack, and the weights of its outputs in a loss."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(query_heads, size), (key_heads, size), (key_heads, size), (query_heads, size)]
    *inputs, weights = (torch.randn(len(pack.input_ids), *shape, generator=generator).to(device, dtype) for shape in shapes)
    return [one.requires_grad_() for one in inputs], weights


def one_at_a_time(query, key, value, pack, scale, window):
    """The definition: every example's rows, behind the prefix's, through a softmax of their own."""
    outputs, begin, prefix = [], pack.prefix, torch.arange(pack.prefix, device=query.device)
    ends = pack.query_ends.tolist()[(2 if pack.prefix else 1):]
    for number, end in enumerate(ends):
        rows = torch.cat([prefix, torch.arange(begin, end, device=query.device)])
        groups = query.shape[1] // key.shape[1]
        k, v = key[rows].repeat_interleave(groups, 1), value[rows].repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", query[rows], k) * scale
        distance = torch.arange(len(rows))[:, None] - torch.arange(len(rows))
        seen = (distance >= 0) & (distance < (window or len(rows)))
        weights = scores.masked_fill(~seen.to(query.device), -torch.inf).softmax(-1)
        output = torch.einsum("hqk,khd->qhd", weights, v)
        outputs.append(output if number == 0 else output[pack.prefix:])
        begin = end
    return torch.cat(outputs)


def assert_equal(pack, inputs, weights, window, tolerance):
    scale = inputs[0].shape[-1] ** -0.5
    ours = packed_attention(*inputs, pack, scale, window)
    gradients = torch.autograd.grad((ours * weights).sum(), inputs)
    wide = [one.detach().float().requires_grad_() for one in inputs]
    expected = one_at_a_time(*wide, pack, scale, window)
    torch.testing.assert_close(ours.float(), expected, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(gradients, torch.autograd.grad((expected * weights.float()).sum(), wide), strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance * len(pack.examples))


@settings(max_examples=60, deadline=None)
@given(own=st.lists(st.integers(1, 40), min_size=1, max_size=9), prefix=st.integers(0, 12), heads=HEADS,
       window=st.none() | st.integers(1, 50))
def test_buckets_equal_one_example_at_a_time(own, prefix, heads, window):
    pack = make_pack(tokens_of(own, prefix), list(range(len(own))), prefix)
    assert attention_path(torch.device("cpu"), torch.bfloat16, 64) == "bucketed"
    assert_equal(pack, *make_inputs(pack, *heads, size=8), window, tolerance=2e-5)


def test_another_examples_tokens_change_no_bit():
    pack = make_pack(tokens_of([30, 7, 21], prefix=5), [0, 1, 2], 5)
    inputs, _ = make_inputs(pack, 4, 2, size=8)
    before = packed_attention(*inputs, pack, 0.3)
    with torch.no_grad():
        for one in inputs:
            one[5:35] = torch.nan  # the first example's
    after = packed_attention(*inputs, pack, 0.3)
    assert torch.equal(before[35:], after[35:]) and torch.equal(before[:5], after[:5])
    assert after[5:35].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("prefix", [0, 24])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 1e-2), (torch.float32, 1e-4)])
def test_on_a_gpu_each_path_equals_one_example_at_a_time(dtype, tolerance, prefix, window):
    pack = make_pack(tokens_of([90, 33, 120, 64, 5], prefix), list(range(5)), prefix).to("cuda")
    assert_equal(pack, *make_inputs(pack, 8, 2, 64, "cuda", dtype), window, tolerance)
    inputs, weights = make_inputs(pack, 8, 2, 64, "cuda", dtype)
    twice = [torch.autograd.grad((packed_attention(*inputs, pack, 0.1, window) * weights).sum(), inputs[1:]) for _ in range(2)]
    if attention_path(inputs[0].device, dtype, 64) == "varlen":
        assert all(torch.equal(one, other) for one, other in zip(*twice, strict=True))

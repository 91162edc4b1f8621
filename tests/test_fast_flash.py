"""The fast step's way through torch's flash kernel, with that kernel's arithmetic done in plain torch: what the kernel leaves
unwritten is NaN here, too."""

import pytest
import torch

from mathtune.fast import attention
from mathtune.fast.llama import FastLlama
from mathtune.models import borrowed, load_base
from mathtune.recipe import Model
from tests.jobs_fixtures import CPU
from tests.test_fast import adapted, assert_same, in_packs, one_at_a_time, tokens_of


def spans(sequences):
    queries, keys = sequences.query_ends.tolist(), sequences.key_ends.tolist()
    return zip(queries, queries[1:], keys, keys[1:], strict=False)


def causal(query, key, value, scale):
    """One sequence, aligned at the ends of queries and keys."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    seen = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


def flash(query, key, value, sequences, scale):
    out = torch.full_like(query, torch.nan)
    for a, b, c, d in spans(sequences):
        assert b - a <= sequences.max_query and d - c <= sequences.max_key
        out[a:b] = causal(query[a:b], key[c:d], value[c:d], scale)
    return out, *torch.zeros(3)


def flash_backward(grad, query, key, value, out, lse, random, unused, sequences, scale):
    found = [torch.full_like(one, torch.nan) for one in (query, key, value)]
    for a, b, c, d in spans(sequences):
        with torch.enable_grad():
            parts = [one.detach().requires_grad_() for one in (query[a:b], key[c:d], value[c:d])]
            gradients = torch.autograd.grad(causal(*parts, scale), parts, grad[a:b])
        for room, gradient, place in zip(found, gradients, (slice(a, b), slice(c, d), slice(c, d)), strict=True):
            room[place] = gradient
    return found


@pytest.mark.parametrize("labels", [2, 8])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_loss_and_gradients_are_those_of_one_example_at_a_time(tiny_base, tmp_path, monkeypatch, recompute, labels):
    base, tokens = load_base(Model(base=str(tiny_base)), CPU, tmp_path), tokens_of([20, 31, 17, 25], labels=labels)
    with borrowed(base) as model:
        model_with = adapted(model)
        expected = one_at_a_time(model_with, tokens)
        monkeypatch.setattr(attention, "attention_path", lambda *_: "varlen")
        monkeypatch.setattr(attention, "_flash", flash)
        monkeypatch.setattr(attention, "_flash_backward", flash_backward)
        for prefix, budget in ((0, 1000), (tokens.shared_prefix, 1000), (tokens.shared_prefix, 40)):
            step = FastLlama(model_with, torch.float32, recompute, resident=True)
            assert_same(in_packs(step, model_with, tokens, prefix, budget), expected)
        model_with.unload()

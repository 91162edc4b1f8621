"""The fast step gives the numbers of the plain model, whatever is kept, computed again, shared or cut."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

from mathtune.adapters import attach
from mathtune.fast.llama import FastLlama, why_not
from mathtune.fast.products import room_for, widen
from mathtune.models import borrowed, load_base
from mathtune.packing import cut, make_pack
from mathtune.recipe import Lora, Model
from mathtune.tokens import Tokens
from tests.jobs_fixtures import CPU

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def tokens_of(lengths: list[int], prefix: int = 6, labels: int = 2, seed: int = 0) -> Tokens:
    """Examples of random ids that begin alike."""
    random = np.random.default_rng(seed)
    start = random.integers(10, 500, prefix)
    ids = [np.concatenate([start, random.integers(10, 500, length - prefix)]) for length in lengths]
    return Tokens(np.arange(len(lengths)), np.concatenate(ids).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]),
                  np.array(lengths, dtype=np.int32) - labels)


@pytest.fixture(scope="module", params=["nf4", "none"])
def base(request, tiny_base, tmp_path_factory):
    return load_base(Model(base=str(tiny_base), quantization=request.param), CPU, tmp_path_factory.mktemp("cache"))


def adapted(model, **lora):
    torch.manual_seed(0)
    attached = attach(model, Lora(rank=4, alpha=8, **lora), None)
    for name, parameter in attached.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return attached


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def one_at_a_time(model, tokens: Tokens) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of transformers' own forward, an example at a time."""
    total = torch.zeros(())
    for i in range(len(tokens)):
        ids = torch.from_numpy(tokens.of(i).astype(np.int64))[None]
        begin = int(tokens.prompt_lengths[i])
        total = total + cross_entropy(model(input_ids=ids).logits[0, begin - 1:-1], ids[0, begin:], reduction="sum")
    total.backward()
    return total.item(), gradients(model)


def in_packs(step: FastLlama, model, tokens: Tokens, prefix: int, budget: int) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for examples in cut(tokens.lengths, prefix, budget):
        loss = step.loss(make_pack(tokens, examples, prefix))
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_same(found, expected):
    """Relative error of the loss, and of all gradients together, under 1e-4."""
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1].keys() == expected[1].keys()
    distance = sum((found[1][name] - one).square().sum() for name, one in expected[1].items()).sqrt()
    assert distance < 1e-4 * sum(one.square().sum() for one in expected[1].values()).sqrt()


@pytest.mark.parametrize("targets", [Lora().targets, ATTENTION, ("q_proj", "v_proj"), ("down_proj",)])
def test_loss_and_gradients_are_those_of_one_example_at_a_time(base, targets):
    tokens = tokens_of([9, 30, 17, 12, 25])
    with borrowed(base) as model:
        model_with = adapted(model, targets=targets)
        expected = one_at_a_time(model_with, tokens)
        for prefix, budget in ((0, 1000), (tokens.shared_prefix, 1000), (tokens.shared_prefix, 40)):
            step = FastLlama(model_with, torch.float32, "none", resident=True)
            assert_same(in_packs(step, model_with, tokens, prefix, budget), expected)
        model_with.unload()


def test_long_completions_have_many_labels(base):
    tokens = tokens_of([20, 31, 14], labels=8)
    with borrowed(base) as model:
        model_with = adapted(model)
        step = FastLlama(model_with, torch.float32, "none", resident=False)
        assert_same(in_packs(step, model_with, tokens, tokens.shared_prefix, 50), one_at_a_time(model_with, tokens))
        model_with.unload()


@pytest.mark.parametrize("targets", [Lora().targets, ("q_proj", "v_proj")])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_what_is_kept_and_what_is_computed_again_changes_no_byte(base, dropout, targets):
    tokens, results = tokens_of([9, 30, 17, 12]), []
    with borrowed(base) as model:
        model_with = adapted(model, dropout=dropout, targets=targets)
        for recompute in ("none", "selective", "full"):
            for resident in (True, False):
                step = FastLlama(model_with, torch.float32, recompute, resident)
                torch.manual_seed(7)
                results.append(in_packs(step, model_with, tokens, tokens.shared_prefix, 40))
        model_with.unload()
    first = results[0]
    for loss, found in results[1:]:
        assert loss == first[0] and all(torch.equal(found[name], one) for name, one in first[1].items())


def test_dropout_drops_what_the_adapter_reads_and_keeps_its_mean(base):
    tokens, with_dropout = tokens_of([9, 30, 17, 12]), []
    with borrowed(base) as model:
        plain = adapted(model)
        expected = in_packs(FastLlama(plain, torch.float32, "none", True), plain, tokens, 0, 1000)[0]
        plain.unload()
        dropping = adapted(model, dropout=0.1)
        for seed in range(40):
            torch.manual_seed(seed)
            with_dropout.append(in_packs(FastLlama(dropping, torch.float32, "none", True), dropping, tokens, 0, 1000)[0])
        dropping.unload()
    assert len(set(with_dropout)) == 40
    assert np.mean(with_dropout) == pytest.approx(expected, rel=0.05)


def test_nothing_is_dropped_while_nothing_is_trained(base):
    tokens = tokens_of([9, 30, 17])
    with borrowed(base) as model:
        model_with = adapted(model, dropout=0.2)
        step, pack = FastLlama(model_with, torch.float32, "none", True), make_pack(tokens, [0, 1, 2], 0)
        trained, evaluated = ({step.loss(pack, training=training).item() for _ in range(3)} for training in (True, False))
        assert len(trained) == 3 and len(evaluated) == 1
        model_with.unload()


def test_kept_weights_follow_the_optimizer(base):
    tokens = tokens_of([9, 30, 17])
    with borrowed(base) as model:
        model_with = adapted(model)
        step = FastLlama(model_with, torch.float32, "none", resident=True)
        optimizer = torch.optim.AdamW([one for one in model_with.parameters() if one.requires_grad], lr=0.05)
        step.loss(make_pack(tokens, [0, 1, 2], 0)).backward()
        optimizer.step()
        model_with.zero_grad(set_to_none=True)
        assert_same(in_packs(step, model_with, tokens, 0, 1000), one_at_a_time(model_with, tokens))
        model_with.unload()


def test_a_gradient_that_only_looks_as_if_it_had_room_is_copied():
    """A part of a wider matrix: what stands behind its rows is another's."""
    whole = torch.arange(40.0).reshape(4, 10)
    for part in (whole[:, :7], whole[:, 3:]):
        wide = widen(part, 3)
        wide[:, 7:] = -1
        assert torch.equal(wide[:, :7], part) and torch.equal(whole, torch.arange(40.0).reshape(4, 10))
    made = room_for(4, 7, 3, whole)
    assert widen(made, 3).data_ptr() == made.data_ptr()


def test_models_of_another_shape_are_named():
    half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    for config, reason in ((LlamaConfig(), None), (LlamaConfig(attention_bias=True), "biases"),
                           (LlamaConfig(hidden_act="gelu"), "gelu"), (Gemma3TextConfig(), "gemma3_text"),
                           (MistralConfig(sliding_window=4096), "window"), (LlamaConfig(rope_parameters=half), "part of each")):
        said = why_not(config, Lora().targets)
        assert said is None if reason is None else reason in said
    assert "lm_head" in why_not(LlamaConfig(), ("q_proj", "lm_head"))

"""Training on packs: the numbers of one example at a time through transformers' own models, and steps that hold each example
once, whatever the budget and the ranks."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from mathtune.adapters import attach
from mathtune.devices import Compute
from mathtune.errors import ModelError
from mathtune.layout import shape_of
from mathtune.models import borrowed, load_base
from mathtune.order import lay_out
from mathtune.packed_model import packed
from mathtune.packed_trainer import PackedSteps, cut_step
from mathtune.packing import cut, make_pack
from mathtune.planner import Plan, Training, token_bytes
from mathtune.recipe import Lora, Model
from mathtune.sft import train_chunk
from tests.jobs_fixtures import CPU, sft_job
from tests.test_fast import adapted, assert_same, gradients, one_at_a_time, tokens_of
from tests.training_fixtures import Events, fresh, two_epochs

PLAIN = Plan(pack_tokens=0, recompute="none", resident=False, packs=0, bytes=0, available=0, fast=False)
COMPUTE = Compute(torch.device("cpu"), torch.float32, "a test")
SHAPE = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "initializer_range": 0.3}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=7,
                               layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=1)}


def untrained(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def assert_packs_change_nothing(model, tokens):
    expected = one_at_a_time(model, tokens)
    for budget, prefix in itertools.product((1, 60, 10_000), (0, tokens.shared_prefix)):
        total = 0.0
        with packed(model, COMPUTE, PLAIN):
            for examples in cut(tokens.lengths, prefix, budget):
                loss = model(pack=make_pack(tokens, examples, prefix), denominator=1, stepped=True)
                loss.backward()
                total += loss.item()
        assert_same((total, gradients(model)), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_any_models_loss_and_gradients_are_those_of_one_example_at_a_time(name):
    model = untrained(CONFIGS[name])
    assert_packs_change_nothing(adapted(model), tokens_of([9, 30, 17, 12, 25], prefix=6, labels=3))
    assert model.config._attn_implementation == "sdpa"


def test_so_are_a_quantised_models(tiny_base, tmp_path):
    base = load_base(Model(base=str(tiny_base)), CPU, tmp_path)
    with borrowed(base) as model:
        attached = adapted(model)
        assert_packs_change_nothing(attached, tokens_of([9, 30, 17, 12, 25], prefix=6, labels=3))
        attached.unload()


def test_recomputed_layers_attend_to_the_same_pack():
    model, tokens = adapted(untrained(CONFIGS["gemma3"])), tokens_of([9, 30, 17, 12, 25])
    expected = one_at_a_time(model, tokens)
    model.gradient_checkpointing_enable()
    model.train()
    with packed(model, COMPUTE, PLAIN):
        losses = [model(pack=make_pack(tokens, [i, i + 1], 6), denominator=1, stepped=True) for i in (0, 2)]
        losses.append(model(pack=make_pack(tokens, [4], 6), denominator=1, stepped=True))
        sum(losses).backward()  # after all forward passes
    assert_same((sum(losses).item(), gradients(model)), expected)


@pytest.mark.parametrize(("config", "message"), [
    (Gemma2Config(**SHAPE, head_dim=8), "its attention has softcap"),
    (Qwen3NextConfig(**SHAPE, head_dim=8, layer_types=["linear_attention", "full_attention", "full_attention"],
                     linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
                     num_experts=16, moe_intermediate_size=16, shared_expert_intermediate_size=16), "its layers mix examples"),
    (BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4), "its attention cannot be replaced")],
    ids=["softcap", "recurrent", "own attention"])
def test_a_model_that_cannot_take_packs_is_refused_before_it_is_trained(config, message):
    model = untrained(config)
    target = "query_key_value" if isinstance(config, BloomConfig) else "o_proj"
    attached = attach(model, Lora(rank=4, targets=(target,)), None)
    with pytest.raises(ModelError, match=message), packed(attached, COMPUTE, PLAIN):
        pass
    assert model.config._attn_implementation in ("sdpa", "eager")


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(8, 40), min_size=1, max_size=12), budget=st.integers(1, 300), ranks=st.integers(1, 5))
def test_a_step_holds_every_example_once_whatever_the_budget_and_the_ranks(lengths, budget, ranks):
    tokens = tokens_of(lengths, prefix=5)
    examples = np.random.default_rng(0).permutation(len(lengths))
    shares = [cut_step(tokens, examples, budget, rank, ranks) for rank in range(ranks)]
    assert sorted(i for share in shares if not share.idle for pack in share.packs for i in pack.examples) == sorted(examples)
    assert all(share.packs for share in shares)  # the others wait for every rank's gradients
    assert {(share.tokens, share.label_tokens) for share in shares} == {(sum(lengths), 2 * len(lengths))}
    assert all(len(pack.input_ids) <= budget or len(pack.examples) == 1 for share in shares for pack in share.packs)


def test_the_steps_that_are_left_come_in_their_order():
    tokens = tokens_of([20, 12, 31, 9, 15, 40, 22], prefix=4)
    order = lay_out(list(range(7)), 17, per_step=3, seed=0)
    steps = PackedSteps(tokens, order, done=2, budget=50)
    came = [sorted(i for pack in step.packs for i in pack.examples) for step in steps]
    assert came == [sorted(order.examples_of(step)) for step in (3, 4, 5, 6)] and len(steps) == 4


def test_a_plain_models_second_chunk_goes_on_from_the_first_with_dropout(tiny_base, tmp_path):
    """Qwen 2: dropout, evaluation on the way, and an adapter that is not nothing any more when its layers are looked at."""
    folder = tmp_path / "qwen2"
    shutil.copytree(tiny_base, folder)
    (folder / "model.safetensors").unlink()
    vocabulary = AutoConfig.from_pretrained(tiny_base).vocab_size
    untrained(Qwen2Config(**{**SHAPE, "vocab_size": vocabulary})).save_pretrained(folder)
    first = sft_job(folder, tmp_path / "first", n=32, sft=two_epochs(evaluate_every=2, evaluate_rows=16))
    second = sft_job(folder, tmp_path / "second", n=32, sft=two_epochs(), start_adapter=first.output)
    for job in (first, second):
        events = Events()
        assert train_chunk(job, fresh(job), events)["steps"] == 4
        assert "transformers' own layers" in events.of("plan")[0]["text"]


def test_a_models_eyes_get_no_adapter():
    """The vision tower of a Gemma 3 has projections of the same names, which no text trains."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}
    model = untrained(Gemma3Config(text_config=CONFIGS["gemma3"].to_dict(), vision_config=vision))
    assert any("vision" in name and "q_proj" in name for name, _ in model.named_modules())
    trained = [name for name, one in attach(model, Lora(rank=4), None).named_parameters() if one.requires_grad]
    assert len(trained) == 2 * 7 * 3 and not any("vision" in name for name in trained)


@pytest.mark.parametrize("config", [GPTNeoXConfig(), GPT2Config(), OPTConfig(), Gemma3Config(), Qwen2Config()])
def test_the_planner_knows_widths_by_all_their_names(config):
    shape = shape_of(config, COMPUTE, Lora())
    text = config.get_text_config()
    assert shape.hidden == text.hidden_size and shape.inner > shape.hidden and shape.key_heads <= shape.query_heads
    assert not shape.fast and token_bytes(shape, Training(16, 1, 2), "none") > 0

"""The planner: what it counts is what was measured, what it chooses fits, and more memory never makes a step slower."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.errors import MachineError
from mathtune.planner import (
    CONTEXT,
    GIB,
    USABLE,
    Shape,
    Training,
    Wishes,
    base_bytes,
    fixed_bytes,
    lora_parameters,
    plan_step,
    token_bytes,
)
from mathtune.recipe import Lora

LLAMA_8B = Shape(layers=32, hidden=4096, inner=14336, query_heads=32, key_heads=8, head_size=128, vocabulary=128256, fast=True,
                 varlen=True, tied=False)
TRAINED = Training(16, lora_parameters(LLAMA_8B, 16, Lora().targets), 2, spread=1.1)


def card(gib: float) -> int:
    """Bytes that a card leaves for training beside the 8B base in NF4."""
    return int(gib * GIB) - CONTEXT - base_bytes(LLAMA_8B, 2, nf4=True)


def plan(gib: float, step: int = 14_870, **wishes):
    return plan_step(LLAMA_8B, TRAINED, card(gib), step, step, 1024, Wishes(**wishes))


def test_a_llama_of_8b_with_rank_16_trains_42_million_parameters():
    assert TRAINED.parameters == 41_943_040 and LLAMA_8B.linear_parameters == 6_979_321_856


@pytest.mark.parametrize("recompute, resident, tokens, measured", [
    ("none", True, 14_870, 62.1), ("none", True, 7_440, 40.9), ("none", True, 3_725, 30.1), ("none", False, 14_870, 49.7),
    ("none", False, 7_440, 28.2), ("none", False, 3_725, 17.4), ("selective", False, 14_870, 25.5)])
def test_counted_bytes_are_those_measured_on_an_h100(recompute, resident, tokens, measured):
    """GiB at the peak, torch 2.11. Never below what was measured, and at most 5% above."""
    counted = base_bytes(LLAMA_8B, 2, nf4=True) + fixed_bytes(LLAMA_8B, TRAINED, resident)
    counted = (counted + tokens * token_bytes(LLAMA_8B, TRAINED, recompute)) / GIB
    assert measured <= counted <= 1.05 * measured


@pytest.mark.parametrize("gib", [14.7, 23.6, 39.4, 47.4])
def test_a_card_that_cannot_hold_a_step_is_used_to_at_least_85_percent(gib):
    chosen = plan(gib)
    most = fixed_bytes(LLAMA_8B, TRAINED, chosen.resident)
    most += chosen.pack_tokens * token_bytes(LLAMA_8B, TRAINED, chosen.recompute)
    assert 0.85 * card(gib) <= most <= USABLE * card(gib)


def test_large_cards_hold_a_step_in_one_pack_with_weights_kept():
    for gib in (79.2, 139.8):
        assert (plan(gib).packs, plan(gib).recompute, plan(gib).resident) == (1, "none", True)


def test_a_small_card_computes_again_before_it_gives_up():
    assert plan(24).recompute == "none" and plan(9.2).recompute != "none"
    with pytest.raises(MachineError, match="training 1024 tokens at a time needs"):
        plan(7)


@given(st.floats(9, 150), st.integers(1_000, 40_000))
def test_what_is_chosen_fits_and_holds_the_longest_example(gib, step):
    chosen = plan(gib, step)
    assert chosen.bytes <= USABLE * card(gib) and chosen.pack_tokens >= 1024
    assert chosen.packs == -(-step // chosen.pack_tokens)


@given(st.floats(9, 100), st.floats(1, 50))
def test_more_memory_never_means_more_packs_of_the_same_kind(gib, more):
    before, after = plan(gib), plan(gib + more)
    if (before.recompute, before.resident) == (after.recompute, after.resident):
        assert after.packs <= before.packs


def test_a_recipes_wish_is_followed():
    assert plan(79.2, pack_tokens=2_000).pack_tokens == 2_000
    assert plan(79.2, recompute="full").recompute == "full" and not plan(79.2, resident=False).resident


def test_plain_layers_get_smaller_packs():
    plain = Shape(**{**vars(LLAMA_8B), "fast": False})
    assert plan_step(plain, TRAINED, card(39.4), 14_870, 14_870, 1024).pack_tokens < plan(39.4).pack_tokens


@pytest.mark.parametrize("changes", [{"dropout": True}, {"rank": 256}, {"spread": 7.0}])
def test_masks_ranks_and_repeated_prefixes_take_room(changes):
    more = Training(**{**vars(TRAINED), **changes})
    assert token_bytes(LLAMA_8B, more, "none") > 1.03 * token_bytes(LLAMA_8B, TRAINED, "none")

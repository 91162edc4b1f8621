"""Examples as long as the real ones, as token ids, and the order in which every system meets them.

The real rows and Llama's tokenizer are not at hand where speed is measured, and what a step costs depends on the ids'
number, not on what they mean: so the ids are drawn at random, and their number as the real rows have it.
"""

import math
from pathlib import Path

import numpy as np

from mathtune.order import lay_out
from mathtune.prompts import Examples, PromptBuilder
from mathtune.tokens import Tokens, read_tokens, write_tokens

EXAMPLES = 5_276
MEAN, P95, LONGEST = 229, 338, 1_024  # tokens of the verifier's examples in Llama's tokenizer, label and end included
Z95 = 1.6449  # the normal distribution's 95th percentile

# "You check answers to maths problems. Is the answer below right? Say True or False.\n\nQuestion:": the beginning of the
# template in recipes/nyu_verifier_llama31_8b.yaml, 20 words and signs, one of them two tokens, and the begin-of-text token
PREFIX = 22
LABEL = 2  # the word and the end token
SHORTEST = PREFIX + 8 + LABEL
FIRST_FREE = 16  # ids below are left to special tokens: an attended padding token, whose embedding is zero, upsets gradients


def spread_of(mean: float, p95: float) -> tuple[float, float]:
    """Mu and sigma of the log-normal distribution with this mean and 95th percentile."""
    sigma = Z95 - math.sqrt(Z95 * Z95 - 2 * math.log(p95 / mean))
    return math.log(mean) - sigma * sigma / 2, sigma


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of each example, int64 (count,)."""
    drawn = np.random.default_rng(seed).lognormal(*spread_of(MEAN, P95), count)
    return np.clip(drawn.round(), SHORTEST, LONGEST).astype(np.int64)


def random_examples(count: int, vocabulary: int, seed: int = 0) -> Examples:
    """Prompts of random ids behind one shared prefix, each with one of two label words and the end token."""
    rng = np.random.default_rng(seed + 1)
    true, false, end, *prefix = (rng.permutation(vocabulary - FIRST_FREE)[:PREFIX + 3] + FIRST_FREE).tolist()
    sizes = lengths(count, seed) - LABEL
    prompts = [prefix + rng.integers(FIRST_FREE, vocabulary, size - PREFIX).tolist() for size in sizes]
    labels = [[word, end] for word in np.where(rng.random(count) < 0.5, true, false).tolist()]
    return Examples(list(range(count)), [prompt + label for prompt, label in zip(prompts, labels, strict=True)],
                    sizes.tolist(), shortened=0, dropped=0)


def demo_examples(count: int, base: Path) -> Examples:
    """The demo verifier's own rows in its recipe's prompt, through the demo's tokenizer."""
    from mathtune.demo.problems import rows
    from mathtune.models import load_tokenizer
    from mathtune.recipe_file import load_recipe

    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "demo.yaml")
    table = rows("verifier", count, 5, "train").to_pylist()
    builder = PromptBuilder(recipe.prompt, load_tokenizer(base), recipe.model.max_length)
    return builder.verifier_examples([{**row, "row_id": number} for number, row in enumerate(table)])


def write_examples(shape: str, base: Path, vocabulary: int, count: int, path: Path) -> Tokens:
    """Writes a shape's examples as a table of tokens, and returns them as they are read back."""
    write_tokens(demo_examples(count, base) if shape == "demo" else random_examples(count, vocabulary), path)
    return read_tokens(path)


def steps_of(tokens: Tokens, steps: int, per_step: int, seed: int = 0) -> np.ndarray:
    """Indices of the examples of each step, int64 (steps, per_step): the order that the project itself would train in."""
    return lay_out(tokens.row_ids.tolist(), steps * per_step, per_step, seed).positions.reshape(steps, per_step)

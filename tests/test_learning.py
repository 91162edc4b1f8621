"""Does the pipeline teach? The demo's own settings on fixed rows, and the same with a broken trainer, which must fail.

Long: about nine minutes on two idle cores. The figures are printed; what is asserted are the two ``check_…`` functions.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mathtune import grpo, sft
from mathtune.demo.problems import HELD_OUT_FAMILIES, rows
from mathtune.jobs import GrpoJob, Place, ScoreJob, SftJob, TokeniseJob
from mathtune.metrics import compare, interval
from mathtune.models import Base, load_base
from mathtune.prompts import PromptBuilder
from mathtune.recipe import Recipe
from mathtune.recipe_file import load_recipe
from mathtune.scoring import score
from mathtune.tokenise import tokenise_rows

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore::FutureWarning")]

RECIPES = Path(__file__).parents[1] / "recipes"
GRPO_STEPS = 40
WORDS_ROWS = 400


def check_learning(stages: list[np.ndarray], said: np.ndarray) -> None:
    """Raises AssertionError unless a verifier learned.

    Args:
        stages: bool, (1000,) each: which of the same balanced rows the base, then each chunk's adapter, has right by
            the two labels' logits.
        said: bool: for which rows the last adapter, left to generate, says the right label and nothing else. Logits are
            not enough: they may come to tell right from wrong as a side effect of training that never saw a label.
    """
    accuracies = [float(correct.mean()) for correct in stages]
    assert 0.45 <= accuracies[0] <= 0.55, f"the base is not at chance: {accuracies[0]}"
    assert accuracies[-1] >= 0.80, f"not learned: {accuracies}"
    assert said.mean() >= 0.80, f"not learned to say so: {said.mean()}"
    assert accuracies == sorted(set(accuracies)), f"not rising from chunk to chunk: {accuracies}"
    assert compare(stages[1], stages[-1]).p < 0.01


def check_refinement(before: np.ndarray, after: np.ndarray) -> None:
    """Raises AssertionError unless the second solver is better than the first on the same, at least 500, problems."""
    found = compare(before, after)
    assert found.n >= 500 and found.difference.value > 0 and found.p < 0.05, found


def write(table: pa.Table, path: Path) -> Path:
    pq.write_table(table.append_column("row_id", pa.array(range(len(table)), pa.int64())), path)
    return path


def balanced(n: int, seed: int, split: str) -> pa.Table:
    """``n`` rows of a split, half of them right, in random order."""
    table = rows("verifier", 3 * n, seed, split)
    labels = table["is_correct"].to_numpy()
    kept = np.concatenate([np.flatnonzero(labels == label)[:n // 2] for label in (True, False)])
    return table.take(np.random.default_rng(seed).permutation(kept))


class Lab:
    """A recipe's settings, the loaded base and a folder: trains and scores with the engine's own functions."""

    def __init__(self, recipe: Recipe, base: Base, folder: Path):
        self.recipe, self.base, self.folder = recipe, base, folder
        self.jobs = 0

    def fields(self) -> dict:
        """What every job has, under a folder of its own."""
        recipe = self.recipe
        return {"model": recipe.model, "prompt": recipe.prompt, "hardware": recipe.hardware, "cache": str(self.folder)}

    def training(self) -> dict:
        self.jobs += 1
        return {**self.fields(), "lora": self.recipe.lora, "tracking": None, "title": "learning",
                "checkpoints": Place(url=str(self.folder), name=f"checkpoints-{self.jobs}"),
                "output": str(self.folder / f"adapter-{self.jobs}")}

    def train(self, table: pa.Table, start: str | None) -> str:
        """The adapter's folder after one chunk of rows."""
        recipe, chunk, tokens = self.recipe, write(table, self.folder / "chunk.parquet"), self.folder / "tokens.parquet"
        tokenise_rows(TokeniseJob(task=recipe.task, model=recipe.model, prompt=recipe.prompt, cache=str(self.folder),
                                  rows=str(chunk), output=str(tokens)))
        job = SftJob(task=recipe.task, sft=recipe.sft, tokens=str(tokens), validation_tokens=None, start_adapter=start,
                     **self.training())
        sft.train_chunk(job, self.base, lambda *_, **__: None)
        return job.output

    def refine(self, table: pa.Table, start: str) -> str:
        """The adapter's folder after GRPO on the rows' questions."""
        prompts = str(write(table, self.folder / "prompts.parquet"))
        settings = self.recipe.grpo.model_copy(update={"max_steps": GRPO_STEPS})
        job = GrpoJob(grpo=settings, rows=prompts, start_adapter=start, **self.training())
        grpo.refine(job, self.base, lambda *_, **__: None)
        return job.output

    def correct(self, table: pa.Table, adapter: str | None, by_words: bool = False) -> np.ndarray:
        """bool, (rows,): which rows the base with an adapter has right; a verifier by its logits or by its words."""
        self.jobs += 1
        scored, output = write(table, self.folder / "scored.parquet"), self.folder / f"scores-{self.jobs}"
        output.mkdir()
        job = ScoreJob(task=self.recipe.task, evaluation=self.recipe.evaluation, adapter=adapter, rows=str(scored),
                       lora=self.recipe.lora if adapter else None, limit=None, words_rows=len(table) if by_words else 0,
                       blocks=Place(url=str(self.folder), name=f"blocks-{self.jobs}"), output=str(output), **self.fields())
        score(job, self.base, lambda *_, **__: None)
        scores = pq.read_table(output / "scores.parquet")
        if self.recipe.task == "solver":
            return scores["correct"].to_numpy()
        labels = table["is_correct"].to_numpy()
        if by_words:
            return scores["said"].to_numpy() == np.where(labels, "true", "false")
        return scores["prediction"].to_numpy() == labels

    def learn(self, pool: pa.Table, validation: pa.Table) -> tuple[list[np.ndarray], np.ndarray, str]:
        """Three chunks, one on top of the other: what ``check_learning`` wants to know, and the last adapter."""
        size, adapter = self.recipe.chunks.size, None
        stages = [self.correct(validation, None)]
        for chunk in range(3):
            adapter = self.train(pool.slice(chunk * size, size), adapter)
            stages.append(self.correct(validation, adapter))
        return stages, self.correct(validation.slice(0, WORDS_ROWS), adapter, by_words=True), adapter


@pytest.fixture(scope="module")
def make_lab(tmp_path_factory):
    """``make_lab("demo.yaml")``: that recipe with the shipped base in NF4 on the CPU."""

    def make(name: str) -> Lab:
        recipe = load_recipe(RECIPES / name, ["hardware.device=cpu"])
        assert recipe.model.base == "builtin:demo" and recipe.model.quantization == "nf4"
        folder = tmp_path_factory.mktemp("learning")
        return Lab(recipe, load_base(recipe.model, recipe.hardware, folder), folder)

    return make


@pytest.fixture(scope="module")
def verifier(make_lab):
    return make_lab("demo.yaml")


@pytest.fixture(scope="module")
def solver(make_lab):
    return make_lab("demo_solver.yaml")


@pytest.fixture(scope="module")
def pool(verifier):
    return balanced(3 * verifier.recipe.chunks.size, 1, "train")


@pytest.fixture(scope="module")
def validation():
    return balanced(1000, 1, "validation")


@pytest.fixture(scope="module")
def started(solver):
    """The solver's SFT link: its rows and its adapter."""
    table = rows("solver", solver.recipe.chunks.size, 2, "train")
    return table, solver.train(table, None)


@pytest.fixture
def say(capsys):
    """Prints past pytest's capture: the figures are what these tests are run for."""

    def say(what: str, correct: np.ndarray, before: np.ndarray | None = None) -> None:
        share = interval(int(correct.sum()), len(correct))
        against = "" if before is None else f", p={compare(before, correct).p:.2g} against the one before"
        with capsys.disabled():
            print(f"  {what}: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}], n={share.n}{against}")

    return say


def by_family(table: pa.Table, correct: np.ndarray) -> dict[str, np.ndarray]:
    families = table["family"].to_numpy(zero_copy_only=False)
    return {family: correct[families == family] for family in HELD_OUT_FAMILIES}


def test_a_verifier_learns_from_chunk_to_chunk(verifier, pool, validation, say):
    stages, said, adapter = verifier.learn(pool, validation)
    say("verifier, base", stages[0])
    for chunk in (1, 2, 3):
        say(f"verifier, chunk {chunk}", stages[chunk], stages[chunk - 1])
    say("verifier, chunk 3, by its words", said)
    held_out = balanced(600, 1, "held_out")
    for family, correct in by_family(held_out, verifier.correct(held_out, adapter)).items():
        say(f"verifier, held-out family {family}", correct)
    check_learning(stages, said)


def test_grpo_adds_to_sft(solver, started, say):
    table, before = started
    problems, held_out = rows("solver", 600, 2, "validation"), rows("solver", 300, 2, "held_out")
    after = solver.refine(table, before)
    base, supervised, refined = (solver.correct(problems, adapter) for adapter in (None, before, after))
    say("solver, base with the prompt alone", base)
    say("solver, SFT", supervised, base)
    say("solver, GRPO", refined, supervised)
    for family, right in by_family(held_out, solver.correct(held_out, after)).items():
        say(f"solver, held-out family {family}", right)
    check_refinement(supervised, refined)


def freeze(monkeypatch) -> None:
    """Every gradient of the adapter is zero."""
    attach = sft.attach

    def frozen(*arguments):
        adapted = attach(*arguments)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.register_hook(torch.zeros_like)
        return adapted

    monkeypatch.setattr(sft, "attach", frozen)


def shuffle_labels(monkeypatch) -> None:
    """The rows get one another's labels."""
    examples = PromptBuilder.verifier_examples

    def shuffled(self, table):
        labels = np.random.default_rng(0).permutation([row["is_correct"] for row in table])
        return examples(self, [{**row, "is_correct": bool(label)} for row, label in zip(table, labels, strict=True)])

    monkeypatch.setattr(PromptBuilder, "verifier_examples", shuffled)


def drop_label_token(monkeypatch) -> None:
    """The label word is lost before training: only the end token is left behind the prompt."""
    examples = PromptBuilder.verifier_examples

    def truncated(self, table):
        found = examples(self, table)
        for ids, length in zip(found.input_ids, found.prompt_lengths, strict=True):
            del ids[length]
        return found

    monkeypatch.setattr(PromptBuilder, "verifier_examples", truncated)


@pytest.mark.parametrize("mutate", [freeze, shuffle_labels, drop_label_token])
def test_a_broken_verifier_training_is_noticed(mutate, monkeypatch, verifier, pool, validation, say):
    mutate(monkeypatch)
    stages, said, _ = verifier.learn(pool, validation)
    say(f"verifier, {mutate.__name__}", stages[-1])
    say(f"verifier, {mutate.__name__}, by its words", said)
    with pytest.raises(AssertionError, match="not learned"):
        check_learning(stages, said)


def constant_reward(weight, *_):
    def constant(completions, **_):
        return [weight] * len(completions)

    return constant


def test_a_constant_reward_is_noticed(monkeypatch, solver, started, say):
    table, before = started
    monkeypatch.setattr(grpo, "correctness_reward", constant_reward)
    monkeypatch.setattr(grpo, "format_reward", constant_reward)
    monkeypatch.setattr(grpo, "FLAT_STEPS", GRPO_STEPS + 1)  # the guard would stop it: here it shall run to its end
    after = solver.refine(table, before)
    problems = rows("solver", 600, 2, "validation")
    correct = solver.correct(problems, after)
    say("solver, constant reward", correct)
    with pytest.raises(AssertionError):
        check_refinement(solver.correct(problems, before), correct)

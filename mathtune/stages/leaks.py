"""Before training: which questions stand in more than one of training pool, validation, test rows and GRPO prompts?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mathtune.errors import DataError
from mathtune.figures import LeakPair
from mathtune.leaks import KINDS, Questions, count_kinds, find_leaks
from mathtune.recipe import Recipe
from mathtune.stages import Outcome
from mathtune.stages.data import stage_key
from mathtune.stages.train import nothing_accepted, prompt_rows, trained_ranges
from mathtune.store import Artifact
from mathtune.workspace import Workspace

FILE = "leaks.json"
POOL, VALIDATION, TEST, PROMPTS = "training pool", "validation", "test", "GRPO prompts"
SHOWN = 3  # pairs of rows that an error names


def leaks(work: Workspace, raw: Artifact, parts: Artifact) -> Outcome:
    """Duplicates between training pool, validation rows and test rows: an artifact, and ``RUNS/NAME/leaks.json``.

    Args:
        raw: the artifact of ``download``.
        parts: that of ``split``.

    Raises:
        DataError: exact ones, unless ``leaks.exact`` is ``report``.
    """
    near = work.recipe.leaks.near
    validation, test = _validation(parts), _test(raw)

    def find() -> list[LeakPair]:
        pool = Questions(POOL, parts.path("pool.parquet"))
        return [*find_leaks(pool, [validation, test], near), *find_leaks(validation, [test], near)]

    found = _served(work, leaks_key(work.recipe, raw, parts), find)
    return _judged(work, found, read_pairs(found), [])


def prompt_leaks(work: Workspace, raw: Artifact, parts: Artifact, before: Artifact) -> Outcome:
    """The same between the questions that GRPO asks, and validation and test rows.

    Args:
        before: the artifact of ``leaks``, whose pairs come first in ``RUNS/NAME/leaks.json``.

    Raises:
        ChainError: every link of the chain was skipped, so that there is nothing to draw prompts from.
        DataError: exact ones, unless ``leaks.exact`` is ``report``.
    """
    trained = trained_ranges(work.chain.entries())
    if not trained:
        raise nothing_accepted(work)
    prompts = prompt_rows(work, parts, trained)
    near = work.recipe.leaks.near
    key = stage_key("leaks", prompts=prompts.files["rows.parquet"], validation=parts.files["validation.parquet"],
                    test=raw.files["test.parquet"], near=near)
    found = _served(work, key, lambda: find_leaks(Questions(PROMPTS, prompts.path("rows.parquet")),
                                                  [_validation(parts), _test(raw)], near))
    return _judged(work, found, read_pairs(found), read_pairs(before))


def leaks_key(recipe: Recipe, raw: Artifact, parts: Artifact) -> str:
    """Key of the artifact of ``leaks``: what is done about exact duplicates does not count."""
    return stage_key("leaks", pool=parts.files["pool.parquet"], validation=parts.files["validation.parquet"],
                     test=raw.files["test.parquet"], near=recipe.leaks.near)


def read_pairs(found: Artifact) -> list[LeakPair]:
    """The pairs that an artifact holds."""
    return [LeakPair.model_validate(pair) for pair in json.loads(found.path(FILE).read_text())]


def summary(counts: dict[str, int]) -> str:
    """The counts in a line."""
    return f"{counts['exact']:,} exact, {counts['normalised']:,} normalised, {counts['near']:,} near duplicates of questions"


def _validation(parts: Artifact) -> Questions:
    return Questions(VALIDATION, parts.path("validation.parquet"))


def _test(raw: Artifact) -> Questions:
    return Questions(TEST, raw.path("test.parquet"))


def _served(work: Workspace, key: str, find: Callable[[], list[LeakPair]]) -> Artifact:
    def build(folder: Path) -> dict[str, Any]:
        pairs = find()
        (folder / FILE).write_text(json.dumps([pair.model_dump(mode="json") for pair in pairs], ensure_ascii=False, indent=2))
        return count_kinds(pairs)

    return work.artifacts.get_or_build("leaks", key, build)


def _judged(work: Workspace, found: Artifact, pairs: list[LeakPair], before: list[LeakPair]) -> Outcome:
    """Writes down what was found, says it, and stops at exact ones that the recipe did not ask for."""
    file = work.run.write_json(FILE, [pair.model_dump(mode="json") for pair in [*before, *pairs]])
    for pair in pairs:
        if pair.exact and stops(work.recipe, pair):
            raise _stop(pair, file)
        if text := _notice(pair):
            work.emit("notice", text=f"{text}; see {file}")
    return Outcome(found, found.cached, summary(count_kinds(pairs)))


def stops(recipe: Recipe, pair: LeakPair) -> bool:
    """Whether exact duplicates of a pair stop the run.

    ``validation.group_by: none`` asks for questions on both sides of the split, so those between training rows and
    validation rows do not, there.
    """
    asked_for = recipe.validation.group_by == "none" and pair.first in (POOL, PROMPTS) and pair.second == VALIDATION
    return recipe.leaks.exact == "stop" and not asked_for


def _notice(pair: LeakPair) -> str:
    counts = [f"{getattr(pair, kind):,} {kind}" for kind in KINDS if getattr(pair, kind)]
    return (f"questions of the {pair.second_rows:,} {pair.second} rows that the {pair.first_rows:,} rows of {pair.first} hold, "
            f"too: {', '.join(counts)}") if counts else ""


def _stop(pair: LeakPair, file: Path) -> DataError:
    rows = [f"{example.second_row} ({pair.first} row_id {example.first_row})"
            for example in pair.examples if example.kind == "exact"][:SHOWN]
    more = ", ..." if pair.exact > len(rows) else ""
    where = "source" if pair.second == TEST else "validation"
    return DataError(f"{pair.exact:,} of {pair.second_rows:,} {pair.second} rows have exactly the question of a row of "
                     f"{pair.first}: row_id {', '.join(rows)}{more}", where=where,
                     remedy=f"{_remedy(pair)}, or leaks.exact=report to go on; all pairs: {file}")


def _remedy(pair: LeakPair) -> str:
    if pair.second == VALIDATION:
        return "draw validation rows by whole questions: validation.group_by=question"
    if pair.first == VALIDATION:
        return "take these rows out of one of the two files"
    return "take these rows out of the training rows, or hold test rows out by whole questions (source.holdout=N)"

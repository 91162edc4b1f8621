"""Before training: which questions stand in more than one of training pool, validation, test rows and GRPO prompts?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.errors import DataError
from mathtune.figures import LeakPair
from mathtune.leaks import KINDS, Questions, count_kinds, find_leaks
from mathtune.recipe import Recipe
from mathtune.stages import Outcome
from mathtune.stages.data import stage_key
from mathtune.stages.train import nothing_accepted, prompt_rows, trained_ranges
from mathtune.store import Artifact
from mathtune.tables import parquet_bytes
from mathtune.workspace import Workspace

FILE = "leaks.json"
ROWS = "leaks.parquet"  # all of them, mathtune.leaks.LEAK_ROWS; the JSON holds examples
POOL, VALIDATION, TEST, PROMPTS = "training pool", "validation", "test", "GRPO prompts"
SHOWN = 3  # pairs of rows that an error names
FEW = 0.01  # a smaller share of near ones is in the stage's summary alone


def leaks(work: Workspace, raw: Artifact, parts: Artifact) -> Outcome:
    """Duplicates between training pool, validation rows and test rows: an artifact, ``RUNS/NAME/leaks.json`` and
    ``leaks.parquet``.

    Args:
        raw: the artifact of ``download``.
        parts: that of ``split``.

    Raises:
        DataError: exact ones, unless ``leaks.exact`` is ``report``.
    """
    near = work.recipe.leaks.near
    validation, test = _validation(parts), _test(raw)

    def find() -> tuple[list[LeakPair], pa.Table]:
        pool = Questions(POOL, parts.path("pool.parquet"))
        (pairs, rows), (others, more) = find_leaks(pool, [validation, test], near), find_leaks(validation, [test], near)
        return [*pairs, *others], pa.concat_tables([rows, more])

    return _judged(work, _served(work, leaks_key(work.recipe, raw, parts), find))


def prompt_leaks(work: Workspace, raw: Artifact, parts: Artifact, before: Artifact) -> Outcome:
    """The same between the questions that GRPO asks, and validation and test rows.

    Args:
        before: the artifact of ``leaks``, whose pairs come first in the files of the run.

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
    return _judged(work, found, before)


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


def _served(work: Workspace, key: str, find: Callable[[], tuple[list[LeakPair], pa.Table]]) -> Artifact:
    def build(folder: Path) -> dict[str, Any]:
        pairs, rows = find()
        pq.write_table(rows, folder / ROWS)
        (folder / FILE).write_text(json.dumps([pair.model_dump(mode="json") for pair in pairs], ensure_ascii=False, indent=2))
        return count_kinds(pairs)

    return work.artifacts.get_or_build("leaks", key, build)


def _judged(work: Workspace, found: Artifact, before: Artifact | None = None) -> Outcome:
    """Writes down what was found, says it, and stops at exact ones that the recipe did not ask for."""
    pairs, sources = read_pairs(found), [before, found] if before else [found]
    file = work.run.write_json(FILE, [pair.model_dump(mode="json") for source in sources for pair in read_pairs(source)])
    rows = work.run.write(ROWS, parquet_bytes(pa.concat_tables([pq.read_table(source.path(ROWS)) for source in sources])))
    for pair in pairs:
        if pair.exact and stops(work.recipe, pair):
            raise _stop(work.recipe, pair, rows)
        if is_noticed(pair):
            work.emit("notice", text=f"{_notice(pair, work.recipe.leaks.near)}; see {file}")
    return Outcome(found, found.cached, summary(count_kinds(pairs)))


def stops(recipe: Recipe, pair: LeakPair) -> bool:
    """Whether exact duplicates of a pair stop the run.

    ``validation.group_by: none`` asks for questions on both sides of the split, so those between training rows and
    validation rows do not, there.
    """
    asked_for = recipe.validation.group_by == "none" and pair.first in (POOL, PROMPTS) and pair.second == VALIDATION
    return recipe.leaks.exact == "stop" and not asked_for


def is_noticed(pair: LeakPair) -> bool:
    """Whether a person should be told: of any that are the same, of near ones where they are many."""
    return pair.exact + pair.normalised > 0 or pair.near > 0 and pair.near >= FEW * pair.second_rows


def _notice(pair: LeakPair, near: float | None) -> str:
    words = {"exact": ("exactly", ""), "normalised": ("but for case, spaces or number format", ""),
             "near": ("nearly", f" (similarity {near} or more)")}
    (count, how, limit), *others = [(count, *words[kind]) for kind in KINDS if (count := getattr(pair, kind))]
    return (f"{count:,} of {pair.second_rows:,} {pair.second} questions are {how} those of {_rows_of(pair.first)}{limit}"
            + "".join(f", {count:,} {how}{limit}" for count, how, limit in others))


def _rows_of(part: str) -> str:
    return {POOL: "training rows", PROMPTS: "GRPO prompts"}.get(part, f"{part} rows")


def _stop(recipe: Recipe, pair: LeakPair, file: Path) -> DataError:
    rows = [f"{example.second_row} ({pair.first} row_id {example.first_row})"
            for example in pair.examples if example.kind == "exact"][:SHOWN]
    more = ", ..." if pair.exact > len(rows) else ""
    where = "source" if pair.second == TEST else "validation"
    return DataError(f"{pair.exact:,} of {pair.second_rows:,} {pair.second} rows have exactly the question of a row of "
                     f"{pair.first}: row_id {', '.join(rows)}{more}; all of them: {file}", where=where,
                     remedy=f"{_remedy(recipe, pair)}leaks.exact=report to go on")


def _remedy(recipe: Recipe, pair: LeakPair) -> str:
    """What would mend it, as overrides that this recipe takes."""
    if pair.second == VALIDATION:
        return "draw validation rows by whole questions: validation.group_by=question, or "
    given = [name for name in ("test_path", "test_split") if getattr(recipe.source, name)]
    if not given:  # a generator, or rows held out
        return ""
    count = max(1, min(pair.second_rows, pair.first_rows // 10))
    return ("take all rows of these questions out of the training rows, or hold test rows out of those by whole questions: "
            f"source.holdout={count} source.{given[0]}=null, or ")

"""Duplicates of questions between the parts of the data: each kind is found and counted once, none is made up."""

import json
import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathtune.chain import Link
from mathtune.errors import ChainError, DataError
from mathtune.figures import LeakPair
from mathtune.leaks import KINDS, LEAK_ROWS, Questions, find_leaks
from mathtune.near import NearIndex, bands, shingle
from mathtune.questions import normal_forms
from mathtune.recipe_file import apply_override, parse_recipe
from mathtune.schemas import SOLVER_ROWS, TEST_ROWS
from mathtune.stages import leaks as stage
from mathtune.workspace import Workspace
from tests.test_boundaries import files, imported

NUMBERS = "one two three four five six seven eight nine ten".split()


def question(number: int) -> str:
    """Thirty words, of which any two questions share only single ones."""
    return " ".join(f"{NUMBERS[place % 10]}{number}x{place}" for place in range(29)) + f" {number},000?"


def leak(kind: str, text: str) -> str:
    """Another writing of a question, or nearly the same."""
    return {"exact": text, "normalised": f"  {text.upper().replace(',', '')}\n",
            "near": text.replace("three", "drei", 1)}[kind]


def write(path: Path, questions: list[str], schema: pa.Schema = SOLVER_ROWS, first: int = 0) -> Path:
    """Rows with these questions; row_ids count from ``first``."""
    columns = {field.name: [None] * len(questions) for field in schema}
    columns |= {"row_id": range(first, first + len(questions)), "question": questions, "answer": ["1"] * len(questions)}
    pq.write_table(pa.table(columns, schema=schema), path)
    return path


def counts(pair: LeakPair) -> tuple[int, int, int]:
    return pair.exact, pair.normalised, pair.near


def find(folder: Path, first: list[str], *others: list[str], near: float | None = 0.8) -> list[LeakPair]:
    parts = [Questions(f"part {number}", write(folder / f"{number}.parquet", part)) for number, part in
             enumerate((first, *others))]
    pairs, rows = find_leaks(parts[0], parts[1:], near)
    assert rows.schema == LEAK_ROWS and len(rows) == sum(sum(counts(pair)) for pair in pairs)
    return pairs


# --- what is found ---

def test_each_row_counts_once_under_its_strongest_kind(tmp_path):
    asked = [question(number) for number in range(8)]
    first = [leak("near", asked[0]), leak("normalised", asked[0]), asked[0],  # all three of one question, the weakest first
             leak("near", asked[1]), leak("normalised", asked[1]), leak("near", asked[2]), question(50)]
    pair, other = find(tmp_path, first, [asked[0], asked[0], asked[1], asked[2], asked[3]], [asked[2], leak("near", asked[2])])
    assert counts(pair) == (2, 1, 1) and (pair.first_rows, pair.second_rows) == (7, 5)
    assert counts(other) == (1, 0, 1)
    assert [(one.kind, one.first_row, one.second_row) for one in pair.examples] == [
        ("exact", 2, 0), ("exact", 2, 1), ("normalised", 4, 2), ("near", 5, 3)]
    assert (pair.examples[3].first, pair.examples[3].second) == (first[5], asked[2])
    assert [one.similarity for one in pair.examples[:3]] == [1, 1, 1]
    assert pair.examples[3].similarity == pytest.approx(27 / 31)  # two of 29 pairs of words are others


def test_leaks_are_found_in_whatever_batch_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("mathtune.near.QUERY_ROWS", 3)
    from mathtune import leaks
    small = leaks.iterate_batches
    monkeypatch.setattr(leaks, "iterate_batches", lambda path, columns: small(path, columns, batch_rows=7))
    first = [question(number) for number in range(40)]
    second = [leak(kind, first[row]) for row, kind in ((39, "exact"), (7, "near"), (0, "normalised"), (20, "near"))]
    [pair] = find(tmp_path, first, second)
    assert sorted((one.kind, one.first_row, one.second_row) for one in pair.examples) == [
        ("exact", 39, 0), ("near", 7, 1), ("near", 20, 3), ("normalised", 0, 2)]


def test_near_ones_are_looked_for_only_where_asked(tmp_path):
    first = [question(number) for number in range(3)]
    second = [leak(kind, text) for kind, text in zip(KINDS, first, strict=True)]
    assert [counts(find(tmp_path, first, second, near=near)[0]) for near in (None, 0.8, 0.95)] == [
        (1, 1, 0), (1, 1, 1), (1, 1, 0)]


words = st.lists(st.sampled_from(NUMBERS), max_size=12).map(" ".join)


@given(st.lists(words, min_size=1, max_size=12), st.lists(words, min_size=1, max_size=12), st.floats(0.3, 1))
@settings(deadline=None, max_examples=40)
def test_what_is_said_to_be_near_is(tmp_path_factory, first, second, near):
    def pairs(text):
        listed = text.split(" ")
        return set(zip(listed[:-1], listed[1:], strict=True)) or {text}

    [pair] = find(tmp_path_factory.mktemp("near"), first, second, near=near)
    assert pair.exact == sum(text in first for text in second) and pair.normalised == 0  # already in their normal form
    for one in pair.examples:
        assert first[one.first_row] == one.first and second[one.second_row] == one.second
        one_pairs, other_pairs = pairs(one.first), pairs(one.second)
        assert (one.first == one.second) == (one.kind == "exact")
        assert one.similarity == pytest.approx(len(one_pairs & other_pairs) / len(one_pairs | other_pairs))
        assert one.similarity >= near


@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=60), st.integers(1, 59))
@settings(deadline=None, max_examples=25)
def test_distinct_questions_are_no_leaks(tmp_path_factory, numbers, at):
    numbers = sorted(numbers)
    at = min(at, len(numbers) - 1)
    [pair] = find(tmp_path_factory.mktemp("distinct"), [question(number) for number in numbers[:at]],
                  [question(number) for number in numbers[at:]])
    assert counts(pair) == (0, 0, 0) and pair.examples == []


@pytest.mark.parametrize("near", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_pairs_at_the_limit_are_found(near):
    """Copies whose similarity is just at the limit: bands are chosen so that 99 of 100 are found."""
    rng = np.random.default_rng(0)
    pairs = 60
    changed = int(pairs * (1 - near) / (1 + near))  # of the pairs of words, at the end
    originals = [" ".join(f"w{word}" for word in rng.integers(0, 10**9, pairs + 1)) for _ in range(400)]
    copies = [" ".join([*text.split()[:pairs + 1 - changed], *(f"v{word}" for word in range(changed))]) for text in originals]
    index = NearIndex(normal_forms(pa.array(originals, pa.large_string())), near)
    rows, places, similarity = index.search(normal_forms(pa.array(copies, pa.large_string())))
    assert (rows == places).all() and similarity.min() >= near
    assert len(set(rows.tolist())) >= 0.97 * len(originals)
    assert 1 - (1 - near ** (120 // bands(near))) ** bands(near) >= 0.99


def test_shingles_are_pairs_of_words_in_their_order():
    keys, edges = shingle(pa.array(["a b c", "b a", "c", "a b", ""], pa.large_string()))
    assert edges.tolist() == [0, 2, 3, 4, 5, 6]
    assert keys[0] == keys[4] and len(set(keys.tolist())) == 5


def test_published_train_and_test_questions_of_gsm8k_are_distinct(real_data, tmp_path):
    train, test = ([json.loads(line)["question"] for line in (real_data / f"{name}.jsonl").read_text().splitlines()]
                   for name in ("train", "test"))
    [pair] = find(tmp_path, train, test)
    assert (pair.first_rows, pair.second_rows) == (7473, 1319) and counts(pair) == (0, 0, 0)
    [pair] = find(tmp_path, train, test, near=0.6)
    assert pair.near == 2 and "stamps at the post office" in pair.examples[0].first


# --- what a run does about it ---

@pytest.fixture
def planted(tmp_path):
    """A solver's workspace whose pool, validation and test rows are these questions."""

    @contextmanager
    def make(pool, validation, test, /, **changes):
        def split(folder):
            write(folder / "pool.parquet", pool, first=100)
            write(folder / "validation.parquet", validation, first=200)
            return {}

        recipe = parse_recipe({
            "name": "small", "task": "solver",
            "prompt": {"template": "{question}"}, "model": {"base": "builtin:demo"}, "grpo": {"prompts": 100, "max_steps": 1},
            "storage": {"root": str(tmp_path / "store"), "runs": str(tmp_path / "runs")},
            "source": {"generator": {"rows": 9, "test_rows": 9}}, **changes})
        with Workspace(recipe, "only") as work:
            notices = []
            work.listeners.append(lambda event: notices.append(event["text"]) if event["event"] == "notice" else None)
            raw = work.artifacts.get_or_build("download", "planted", lambda folder: write(
                folder / "test.parquet", test, TEST_ROWS, first=300) and {})
            parts = work.artifacts.get_or_build("split", "planted", split)
            yield SimpleNamespace(work=work, raw=raw, parts=parts, notices=notices, file=work.run.path / "leaks.json",
                                  rows=work.run.path / "leaks.parquet")

    return make


def train_all(run, verdict="accepted") -> None:
    """A link of the whole pool that no engine made."""
    rows = pq.read_metadata(run.parts.path("pool.parquet")).num_rows
    link = Link(number=1, kind="sft", key="k", parent="", start=0, end=rows, adapter_digest="d",
                decided_by={}, lora={}, result={}, versions={})
    run.work.chain.publish(1, link.title, link.key, lambda folder: folder.mkdir() or link)
    run.work.chain.settle(link, {}, verdict)


POOL, VALIDATION, TEST = ([question(number) for number in range(start, start + 9)] for start in (0, 100, 200))
PARTS = {"training pool": POOL, "validation": VALIDATION, "test": TEST}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "second"), [("training pool", "validation"), ("training pool", "test"),
                                               ("validation", "test")])
def test_a_planted_leak_of_each_kind_between_each_two_parts(planted, kind, first, second):
    parts = PARTS | {second: [*PARTS[second][:4], leak(kind, PARTS[first][2]), *PARTS[second][5:]]}
    with planted(*parts.values(), leaks={"exact": "report"}) as run:
        outcome = stage.leaks(run.work, run.raw, run.parts)
        for pair in stage.read_pairs(outcome.value):
            expected = {kind: 1} if (pair.first, pair.second) == (first, second) else {}
            assert counts(pair) == tuple(expected.get(name, 0) for name in KINDS)
            offset = {"training pool": 100, "validation": 200, "test": 300}
            assert [(one.kind, one.first_row, one.second_row) for one in pair.examples] == [
                (kind, offset[first] + 2, offset[second] + 4)] * len(expected)
        assert f"1 {kind}" in outcome.summary
        how = {"exact": "exactly those of", "normalised": "but for case, spaces or number format those of",
               "near": "nearly those of"}[kind]
        [notice] = run.notices
        assert notice.startswith(f"1 of 9 {second} questions are {how} {first.removesuffix(' pool')}"), notice
        assert notice.endswith(f"see {run.file}")
        assert [pair[kind] for pair in json.loads(run.file.read_text())].count(1) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_leak_of_each_kind_among_the_prompts(planted, kind):
    validation, test = [*VALIDATION, leak(kind, POOL[3])], [leak(kind, POOL[5]), *TEST]
    changes = {"validation": {"rows": 60, "group_by": "none"}, "leaks": {"exact": "report"}}
    with planted(POOL, validation, test, **changes) as run:
        train_all(run)
        before = stage.leaks(run.work, run.raw, run.parts).value
        pairs = stage.read_pairs(stage.prompt_leaks(run.work, run.raw, run.parts, before).value)
        assert [(pair.first, pair.second, getattr(pair, kind), sum(counts(pair))) for pair in pairs] == [
            ("GRPO prompts", "validation", 1, 1), ("GRPO prompts", "test", 1, 1)]
        assert [(one.first_row, one.second_row) for pair in pairs for one in pair.examples] == [(103, 209), (105, 300)]
        written = [(pair["first"], pair["second"]) for pair in json.loads(run.file.read_text())]
        assert written == [("training pool", "validation"), ("training pool", "test"), ("validation", "test"),
                           ("GRPO prompts", "validation"), ("GRPO prompts", "test")]
        rows = pq.read_table(run.rows).to_pylist()
        assert [(row["first_row"], row["second_row"]) for row in rows if row["first"] == "GRPO prompts"] == [
            (103, 209), (105, 300)] and len(rows) == 4


def test_exact_ones_stop_the_run_and_say_where(planted):
    with planted(POOL, VALIDATION, [*TEST, *POOL[1:6]]) as run:
        with pytest.raises(DataError) as caught:
            stage.leaks(run.work, run.raw, run.parts)
        assert caught.value.what == ("5 of 14 test rows have exactly the question of a row of training pool: row_id "
                                     "309 (training pool row_id 101), 310 (training pool row_id 102), "
                                     f"311 (training pool row_id 103), ...; all of them: {run.rows}")
        assert caught.value.where == "source" and caught.value.remedy == "leaks.exact=report to go on"  # of a generator
        assert json.loads(run.file.read_text())[1]["exact"] == 5
        assert [(row["kind"], row["first"], row["first_row"], row["second"], row["second_row"])
                for row in pq.read_table(run.rows).to_pylist()] == [
                    ("exact", "training pool", 101 + row, "test", 309 + row) for row in range(5)]
        assert pq.read_table(run.rows)["question"].to_pylist() == POOL[1:6]  # by which they can be taken out
        train_all(run)
        with pytest.raises(DataError, match="5 of 14 test rows .* GRPO prompts"):
            stage.prompt_leaks(run.work, run.raw, run.parts, run.work.artifacts.find(
                "leaks", stage.leaks_key(run.work.recipe, run.raw, run.parts)))


@pytest.mark.parametrize(("group_by", "stops"), [("question", True), ("none", False)])
def test_questions_on_both_sides_of_the_split_are_what_a_split_by_row_asks_for(planted, group_by, stops):
    with planted(POOL, [*VALIDATION, POOL[0]], TEST, validation={"rows": 60, "group_by": group_by}) as run:
        if stops:
            with pytest.raises(DataError, match="1 of 10 validation rows .*\n→ .*validation.group_by=question"):
                stage.leaks(run.work, run.raw, run.parts)
        else:
            assert stage.leaks(run.work, run.raw, run.parts).summary.startswith("1 exact")
            assert len(run.notices) == 1


@pytest.mark.parametrize(("given", "name"), [({"path": "rows", "test_path": "t.csv"}, "test_path"),
                                             ({"hub": "a/b", "test_split": "test"}, "test_split")])
def test_the_remedy_is_overrides_that_the_recipe_takes(planted, given, name):
    with planted(POOL, VALIDATION, [*TEST, POOL[0]], source=given) as run:
        with pytest.raises(DataError) as caught:
            stage.leaks(run.work, run.raw, run.parts)
        overrides = re.findall(r"source\.[\w=]+", caught.value.remedy)
        assert len(overrides) == 2
        values = run.work.recipe.model_dump()
        for override in overrides:
            apply_override(values, override)
        changed = parse_recipe(values).source
        assert changed.holdout > 0 and getattr(changed, name) is None


@pytest.mark.parametrize(("kind", "rows", "told"), [("near", 90, 1), ("near", 110, 0), ("normalised", 110, 1)])
def test_a_few_near_ones_are_not_worth_a_notice(planted, kind, rows, told):
    with planted(POOL, [*(question(1000 + row) for row in range(rows - 1)), leak(kind, POOL[0])], TEST) as run:
        assert f"1 {kind}" in stage.leaks(run.work, run.raw, run.parts).summary and len(run.notices) == told


def test_what_was_found_is_served_until_data_or_limit_change(planted):
    test = [*TEST, POOL[0]]
    with planted(POOL, VALIDATION, test) as run, pytest.raises(DataError):
        stage.leaks(run.work, run.raw, run.parts)
    with planted(POOL, VALIDATION, test, leaks={"exact": "report"}) as run:  # found before it stopped the run
        outcome = stage.leaks(run.work, run.raw, run.parts)
        assert outcome.cached and outcome.summary == "1 exact, 0 normalised, 0 near duplicates of questions"
    with planted(POOL, VALIDATION, test, leaks={"exact": "report", "near": 0.9}) as run:
        assert not stage.leaks(run.work, run.raw, run.parts).cached


def test_prompts_need_an_accepted_link(planted):
    with planted(POOL, VALIDATION, TEST) as run:
        before = stage.leaks(run.work, run.raw, run.parts).value
        train_all(run, verdict="skipped")
        with pytest.raises(ChainError, match="every link of the chain was skipped"):
            stage.prompt_leaks(run.work, run.raw, run.parts, before)


def test_only_the_search_needs_the_minhash_library():
    importing = [path for _, path in files() if any(name.split(".")[0] == "rensa" for name in imported(path))]
    at_top = [path for path in importing if any(name.split(".")[0] == "rensa" for name in imported(path, top_level_only=True))]
    assert [path.name for path in importing] == ["near.py"] and not at_top

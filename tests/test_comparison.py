"""Two systems on the same rows: matched by content, left-out rows counted, a planted tie, and the command."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flows.compare import chance_text, show_comparison
from mathtune.comparison import RowsCompared, Scored, compare_scores, correct_on_common, read_scored
from mathtune.demo.problems import rows as demo_rows
from mathtune.errors import ChainError, DataError
from mathtune.metrics import compare
from mathtune.run_record import LinkRecord
from mathtune.stages.compare import write_scores
from mathtune.store import Artifact
from mathtune.workspace import RunFolder
from tests.record_fixtures import solutions, verdicts

ROWS = 40


def artifact(folder: Path, name: str, table: pa.Table) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)
    return Artifact(stage="", key="", folder=folder, files={})


def leave_scores(runs: Path, name: str, task: str, tables: list[pa.Table], rows: pa.Table) -> None:
    """What a run whose base and links said ``tables`` of ``rows`` leaves."""
    parts = artifact(runs / f".{name}", "validation.parquet", rows)
    links = [LinkRecord(number=i, kind="sft", start=10 * i - 10, end=10 * i, adapter_digest="", link_id=str(i))
             for i in range(1, len(tables))]
    scores = {str(i or ""): artifact(runs / f".{name}" / str(i), "scores.parquet", table) for i, table in enumerate(tables)}
    work = SimpleNamespace(recipe=SimpleNamespace(task=task), run=RunFolder(runs, name))
    write_scores(work, SimpleNamespace(links=links, base_model="tiny"), scores, parts)


def numbered_rows(task: str, count: int = ROWS, seed: int = 1) -> pa.Table:
    return demo_rows(task, count, seed, "train").add_column(0, "row_id", pa.array(range(count), pa.int64()))


def with_verdicts(rows: pa.Table, correct: np.ndarray) -> pa.Table:
    """Verdicts on rows that are right exactly where ``correct`` says so."""
    labels = rows["is_correct"].to_numpy(zero_copy_only=False)
    table = verdicts(labels, 1.0, 0)
    predictions = np.where(correct, labels, ~labels)
    return table.set_column(table.column_names.index("prediction"), "prediction", pa.array(predictions))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Run ``one``: base and two links; ``two``: the same rows in another order, ten others; ``three``: other rows."""
    folder = tmp_path_factory.mktemp("runs")
    rows, random = numbered_rows("verifier"), np.random.default_rng(0)
    correct = [random.random(ROWS) < share for share in (0.4, 0.6, 0.8)]
    leave_scores(folder, "one", "verifier", [with_verdicts(rows, one) for one in correct], rows)
    order = random.permutation(ROWS)
    others = demo_rows("verifier", 10, 99, "test").add_column(0, "row_id", pa.array(range(900, 910), pa.int64()))
    mixed = pa.concat_tables([rows.take(order), others.select(rows.column_names).cast(rows.schema)])
    leave_scores(folder, "two", "verifier", [with_verdicts(mixed, np.append(correct[2][order], [True] * 10))], mixed)
    leave_scores(folder, "three", "verifier", [with_verdicts(others, np.ones(10, bool))], others)
    problems = numbered_rows("solver")
    leave_scores(folder, "solver", "solver", [solutions(ROWS, 0.2, 1), solutions(ROWS, 0.7, 2)], problems)
    return folder


def test_rows_are_matched_by_content_and_what_only_one_has_is_counted(runs):
    found = compare_scores(read_scored("one", runs), read_scored("two:base", runs))
    assert (found.first.left_out, found.second.left_out, found.versus.n) == (0, 10, ROWS)
    assert (found.versus.gained, found.versus.lost, found.versus.p) == (0, 0, 1.0)  # the same verdicts in another order
    found = compare_scores(read_scored("one:base", runs), read_scored(str(runs / "two"), runs), examples=ROWS)
    assert (len(found.gained), len(found.lost)) == (found.versus.gained, found.versus.lost)
    assert found.versus.gained > found.versus.lost > 0
    told = {row.row_id: row.question for row in found.gained + found.lost}
    questions = numbered_rows("verifier")["question"].to_pylist()
    assert all(questions[row_id] == question for row_id, question in told.items())
    assert RowsCompared.model_validate_json(found.model_dump_json()) == found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=30),
       st.permutations(range(6)))
def test_any_order_gives_the_paired_test_of_the_rows_in_order(triples, ranks):
    """Content, right by the first, right by the second; rows of equal content are paired in their order."""
    order = sorted(range(len(triples)), key=lambda i: ranks[triples[i][0]])
    first = solver_scored([(content, right) for content, right, _ in triples])
    second = solver_scored([(triples[i][0], triples[i][2]) for i in order])
    _, right_first, right_second = (np.array(column) for column in zip(*triples, strict=True))
    found = compare_scores(first, second)
    assert found.versus == compare(right_first, right_second)
    assert found.first.left_out == found.second.left_out == 0
    both, questions = correct_on_common([first, second])
    assert compare(*both, questions) == found.versus


def solver_scored(rows: list[tuple[int, bool]]) -> Scored:
    table = pd.DataFrame({"key": [str(content) for content, _ in rows], "row_id": range(len(rows)),
                          "question": range(len(rows)),
                          "correct": [right for _, right in rows], "given": "1", "outcome": "wrong"})
    return Scored("x:1", "sft", "solver", table, table[["key", "row_id"]].assign(question="q", answer="1"))


def test_a_planted_tie_gives_p_1_and_says_that_chance_could_explain_it(tmp_path):
    rows, first = numbered_rows("verifier"), np.ones(ROWS, bool)
    first[:6] = False
    second = np.ones(ROWS, bool)
    second[6:12] = False
    leave_scores(tmp_path, "tie", "verifier", [with_verdicts(rows, first), with_verdicts(rows, second)], rows)
    versus = compare_scores(read_scored("tie:base", tmp_path), read_scored("tie:1", tmp_path)).versus
    assert (versus.gained, versus.lost, versus.p, versus.difference.value) == (6, 6, 1.0, 0.0)
    assert "chance alone could explain it" in chance_text(versus)


def test_what_cannot_be_compared_is_refused_with_what_to_do(runs):
    with pytest.raises(DataError, match="no row is common: 40 rows there, 10 here") as caught:
        compare_scores(read_scored("one", runs), read_scored("three", runs))
    assert "validation section" in caught.value.remedy
    with pytest.raises(DataError, match="one is a verifier, the other a solver"):
        compare_scores(read_scored("one", runs), read_scored("solver", runs))
    with pytest.raises(ChainError, match="there is no such run") as caught:
        read_scored("nope", runs)
    assert caught.value.remedy == "there are: one, solver, three, two"
    with pytest.raises(ChainError, match="link 7 was not evaluated there") as caught:
        read_scored("one:7", runs)
    assert caught.value.remedy == "there are: base, 1, 2"
    (runs / "empty").mkdir()
    with pytest.raises(ChainError, match="no scores to compare"):
        read_scored("empty", runs)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("first", "second", "shows"), [
    ("one:base", "one", ["sft[10:20)", "points (", "rows gained", "rows lost", "P(True)", "which is"]),
    ("solver:base", "solver:1", ["right answer", "cut off"]),
    ("one:base", "two", ["10 rows that only two:base was scored on"]),
])
def test_the_command_fits_its_terminal(runs, tmp_path, width, first, second, shows):
    console = Console(width=width, record=True, file=io.StringIO())
    show_comparison(console, first, second, runs, 9, tmp_path / "found.json")
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert not [words for words in shows if words not in text], text
    assert json.loads((tmp_path / "found.json").read_text())["versus"]["n"] == ROWS


def test_scores_of_links_that_are_gone_are_removed(tmp_path):
    rows = numbered_rows("verifier")
    table = with_verdicts(rows, np.ones(ROWS, bool))
    leave_scores(tmp_path, "run", "verifier", [table] * 3, rows)
    leave_scores(tmp_path, "run", "verifier", [table] * 2, rows)
    assert sorted(path.name for path in (tmp_path / "run" / "scores").iterdir()) == ["base.parquet", "link-1.parquet"]
    assert read_scored("run", tmp_path).name == "run:1"

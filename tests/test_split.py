"""The split: exact sizes, quotas, whole questions on one side, nothing lost, the same bytes for the same seed."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathtune.errors import DataError
from mathtune.questions import normalise_question, question_keys, scramble
from mathtune.recipe import Validation
from mathtune.schemas import SOLVER_ROWS, VERIFIER_ROWS
from mathtune.split import draw_rows, quotas, split_rows


def write_rows(path, questions, labels=None):
    count = len(questions)
    columns = {"row_id": range(count), "question": questions, "answer": [str(row) for row in range(count)],
               "solution": ["so"] * count}
    schema = SOLVER_ROWS
    if labels is not None:
        columns["is_correct"], schema = labels, VERIFIER_ROWS
    pq.write_table(pa.table(columns, schema=schema), path)
    return path


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(1)
    questions = [f"Question {number}?" for number in rng.integers(0, 700, 3_000)]
    return write_rows(tmp_path / "rows.parquet", questions, (rng.random(3_000) < 0.4).tolist())


def split(path, folder, task="verifier", **settings):
    folder.mkdir()
    facts = split_rows(path, Validation(**settings), task, folder)
    return facts, pq.read_table(folder / "validation.parquet"), pq.read_table(folder / "pool.parquet")


def test_exact_size_quotas_and_no_question_on_both_sides(rows, tmp_path):
    facts, validation, pool = split(rows, tmp_path / "out", rows=500)
    whole = pq.read_table(rows)
    assert facts["validation"] == validation.num_rows == 500
    assert facts["pool"] == pool.num_rows == 3_000 - 500 - facts["set_aside"]
    assert not set(validation["question"].to_pylist()) & set(pool["question"].to_pylist())
    assert facts["questions"] == len(set(validation["question"].to_pylist()))
    true = sum(whole["is_correct"].to_pylist())
    assert facts["classes"]["validation"]["true"] == round(500 * true / 3_000)
    assert facts["classes"]["pool"]["true"] == sum(pool["is_correct"].to_pylist())
    assert set(validation["row_id"].to_pylist()).isdisjoint(pool["row_id"].to_pylist())
    for table in (validation, pool):  # every row is still the row it was
        assert table.equals(whole.take(table["row_id"]).cast(table.schema))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pool.parquet", "validation.parquet"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_order(rows, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        split(rows, tmp_path / name, rows=100, seed=seed)
    for file in ("validation.parquet", "pool.parquet"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b and a != c


def test_both_tables_are_shuffled(rows, tmp_path):
    _, validation, pool = split(rows, tmp_path / "out", rows=1_000)
    for table in (validation, pool):
        order = table["row_id"].to_numpy()
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.15
    # so that the first rows alone are a fair sample of the labels
    labels = validation["is_correct"].to_pylist()
    assert abs(np.mean(labels[:300]) - np.mean(labels)) < 0.1


def test_writings_of_one_question_stay_together(tmp_path):
    questions = [form.format(number) for number in range(100) for form in
                 ("He has 1,{:03d} eggs.", "he has  1{:03d}\neggs.", "HE HAS \uff11{:03d} EGGS.")]
    rows = write_rows(tmp_path / "rows.parquet", questions)
    _, validation, pool = split(rows, tmp_path / "out", task="solver", rows=31)
    sides = [{normalise_question(text) for text in table["question"].to_pylist()} for table in (validation, pool)]
    assert len(sides[0]) == 11 and sides[0].isdisjoint(sides[1])


def test_grouping_by_nothing_sets_nothing_aside(rows, tmp_path):
    facts, _, pool = split(rows, tmp_path / "out", rows=500, group_by="none")
    assert facts["set_aside"] == 0 and pool.num_rows == 2_500


@pytest.mark.parametrize("count", [3_000, 3_001])
def test_too_few_rows_say_how_many_there_are(rows, tmp_path, count):
    with pytest.raises(DataError, match="3000") as caught:
        split(rows, tmp_path / "out", rows=count)
    assert "validation.rows=" in caught.value.remedy


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_draw_is_exact_stratified_and_whole(data):
    size = data.draw(st.integers(1, 60))
    groups = np.array(data.draw(st.lists(st.integers(0, 15), min_size=size, max_size=size)), np.uint64)
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    count, seed = data.draw(st.integers(1, 60)), data.draw(st.integers(-5, 2**40))
    try:
        drawn, aside = draw_rows(groups, labels, count, seed, where="", remedy="")
    except DataError:
        # only if there are too few rows, or if every question would have to be touched
        assert count > size or _touches_all(groups, labels, count, seed)
        return
    assert drawn.sum() == count and not (drawn & aside).any()
    rest = ~(drawn | aside)
    assert not set(groups[drawn]) & set(groups[rest])
    assert set(groups[aside]) <= set(groups[drawn])
    assert abs(labels[drawn].sum() - count * labels.mean()) < 1
    again, _ = draw_rows(groups, labels, count, seed, where="", remedy="")
    assert (again == drawn).all()
    if (labels == labels[0]).all():  # one stratum: only the last question drawn can have surplus rows
        assert len(set(groups[aside])) <= 1


def _touches_all(groups, labels, count, seed):
    order = [group for group in np.unique(groups)[np.argsort(scramble(np.unique(groups), seed))]]
    room = {False: 0, True: 0} | dict(zip((False, True), quotas(np.bincount(labels, minlength=2), count), strict=True))
    touched = 0
    for group in order:
        mine = labels[groups == group]
        touched += any(room[label] > 0 for label in set(mine.tolist()))
        for label in mine.tolist():
            room[label] -= 1
    return touched == len(order)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5).filter(sum), st.floats(0, 1))
def test_quotas_sum_up_and_stay_within_one_of_the_exact_share(counts, share):
    counts = np.array(counts)
    total = int(share * counts.sum())
    result = quotas(counts, total)
    assert result.sum() == total and (result <= counts).all()
    assert (np.abs(result - counts * total / counts.sum()) < 1).all()


def test_the_draw_does_not_depend_on_the_order_of_questions():
    groups = np.repeat(np.arange(50, dtype=np.uint64), 2)
    shuffled = np.random.default_rng(0).permutation(100)
    first, _ = draw_rows(groups, None, 20, 0, where="", remedy="")
    second, _ = draw_rows(groups[shuffled], None, 20, 0, where="", remedy="")
    assert set(groups[first]) == set(groups[shuffled][second])


@given(st.lists(st.text(), max_size=20))
@settings(deadline=None)
def test_keys_agree_exactly_when_normal_forms_do(texts):
    keys = question_keys(pa.chunked_array([texts[:3], texts[3:]], pa.large_string()))
    forms = [normalise_question(text) for text in texts]
    assert [[a == b for b in keys] for a in keys] == [[a == b for b in forms] for a in forms]


@pytest.mark.parametrize(("one", "other", "same"), [
    ("How  many\teggs?\n", "how many eggs?", True),
    ("\ufb01ve", "FIVE", True),
    ("caf\u00e9", "cafe\u0301", True),
    ("it cost $1,234,567,890", "it cost $1234567890", True),
    ("a\u00a0b\u2028c", "a b c", True),
    ("1 0", "10", False),
    ("2,50", "250", False),
    ("3 eggs", "4 eggs", False),
])
def test_what_counts_as_the_same_question(one, other, same):
    assert (normalise_question(one) == normalise_question(other)) is same
    assert bool(np.equal(*question_keys(pa.array([one, other])))) is same


def test_keys_are_unique_over_many_questions_and_never_change():
    keys = question_keys(pa.array([f"question {number}" for number in range(200_000)]))
    assert len(np.unique(keys)) == 200_000
    assert question_keys(pa.array(["x", "How many?"]).slice(1)) == question_keys(pa.array(["How many?"])) == [HOW_MANY]
    assert scramble(np.array([0, 1, 2]), 0).tolist() == SCRAMBLED


# A chain's pool must come out in the same order for ever: these are the numbers of the first version.
HOW_MANY = 5508170129105241886
SCRAMBLED = [5197578548964807871, 16899028431761561291, 11914665375441889411]

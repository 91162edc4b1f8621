"""Balancing: equal classes, at most so many, every question in proportion, seeded."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.balance import balance_rows, thin_rows
from mathtune.errors import DataError
from mathtune.recipe import Balance
from mathtune.schemas import VERIFIER_ROWS


def write_rows(path, labels):
    rows = len(labels)
    pq.write_table(pa.table({"row_id": range(rows), "question": [f"Q{row // 4}" for row in range(rows)],
                             "answer": ["7"] * rows, "solution": [f"s{row}" for row in range(rows)],
                             "is_correct": labels}, schema=VERIFIER_ROWS), path)
    return path


@pytest.fixture
def train(tmp_path):
    return write_rows(tmp_path / "train.parquet", [row % 5 < 2 for row in range(1_000)])  # 400 true, 600 false


@pytest.mark.parametrize(("per_class", "kept"), [(1_000, 400), (400, 400), (150, 150)])
def test_equal_classes_in_source_order(train, tmp_path, per_class, kept):
    facts = balance_rows(train, Balance(per_class=per_class), tmp_path)
    assert facts == {"found": {"true": 400, "false": 600}, "kept": {"true": kept, "false": kept}, "rows": 2 * kept}
    balanced, whole = pq.read_table(tmp_path / "balanced.parquet"), pq.read_table(train)
    positions = balanced["row_id"].to_pylist()
    assert positions == sorted(set(positions)) and sum(balanced["is_correct"].to_pylist()) == kept
    assert balanced.equals(whole.take(positions).cast(balanced.schema))


def test_the_seed_decides(train, tmp_path):
    chosen = []
    for seed in (0, 0, 1):
        balance_rows(train, Balance(per_class=100, seed=seed), tmp_path)
        chosen.append((tmp_path / "balanced.parquet").read_bytes())
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(("labels", "missing"), [([True] * 8, "false"), ([False] * 8, "true")])
def test_an_empty_class_is_refused(tmp_path, labels, missing):
    with pytest.raises(DataError, match=f"no row is labelled {missing}") as caught:
        balance_rows(write_rows(tmp_path / "train.parquet", labels), Balance(), tmp_path)
    assert caught.value.where and "source." in caught.value.remedy
    assert not (tmp_path / "balanced.parquet").exists()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.data())
def test_thinning_keeps_every_question_in_proportion(questions, data):
    keys = np.array(questions, np.uint64)
    count, seed = data.draw(st.integers(1, len(keys))), data.draw(st.integers(-3, 2**40))
    chosen = thin_rows(keys, count, seed)
    assert len(set(chosen.tolist())) == count
    for key in set(questions):
        exact = (keys == key).sum() * count / len(keys)
        assert np.floor(exact) <= (keys[chosen] == key).sum() <= np.ceil(exact)


def test_thinning_favours_no_row():
    keys = np.repeat(np.arange(10, dtype=np.uint64), 4)
    drawn = np.zeros(40)
    for seed in range(2_000):
        drawn[thin_rows(keys, 10, seed)] += 1
    # each row is kept with probability 1/4: 500 of 2,000 times, standard deviation 19.4
    assert np.abs(drawn - 500).max() < 5 * 19.4

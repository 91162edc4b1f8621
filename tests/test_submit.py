"""The submission's CSV is what a judge expects, or it is not written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.errors import DataError, TrainingError
from mathtune.stages.submit import submission_csv


def test_the_format_of_the_competition():
    csv = submission_csv(np.arange(3), np.array([True, False, True]), "ID", "is_correct")
    assert csv == b"ID,is_correct\n0,True\n1,False\n2,True\n"


@given(st.lists(st.booleans(), min_size=2, max_size=200).filter(lambda x: len(set(x)) == 2), st.integers(0, 10**6))
def test_every_row_comes_back(predictions, first):
    ids = np.arange(first, first + len(predictions))
    lines = submission_csv(ids, np.array(predictions), "ID", "is_correct").decode().splitlines()
    assert lines == ["ID,is_correct", *(f"{i},{p}" for i, p in zip(ids, predictions, strict=True))]


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 2, 1]])
def test_repeated_or_unordered_ids_are_refused(ids):
    with pytest.raises(DataError, match="repeated or out of order"):
        submission_csv(np.array(ids), np.array([True, False, True]), "ID", "is_correct")


def test_one_class_only_is_refused():
    with pytest.raises(TrainingError, match="every one of the 3 predictions is False"):
        submission_csv(np.arange(3), np.zeros(3, bool), "ID", "is_correct")

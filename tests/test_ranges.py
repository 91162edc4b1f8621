"""Ranges cover the pool once and in order; every other wish is refused with the right one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.errors import RangeError
from mathtune.ranges import Range, check_follows, chunk_ranges, replayed_positions
from mathtune.recipe import Chunks


@given(st.integers(1, 5000), st.integers(1, 700), st.integers(0, 4999))
def test_chunks_cover_the_pool_once(pool, size, start):
    if start >= pool:
        with pytest.raises(RangeError):
            chunk_ranges(Chunks(size=size, start=start), pool)
        return
    ranges = chunk_ranges(Chunks(size=size, start=start), pool)
    assert [row for one in ranges for row in range(one.start, one.end)] == list(range(start, pool))
    assert all(len(one) == size for one in ranges[:-1])


def test_a_range_beyond_the_pool_is_refused_with_the_last_row_there_is():
    with pytest.raises(RangeError, match="beyond the pool's 100 rows") as caught:
        chunk_ranges(Chunks(size=50, end=150), 100)
    assert "chunks.end=100" in caught.value.remedy


@given(st.lists(st.integers(1, 50), max_size=5), st.integers(0, 300), st.integers(1, 100), st.booleans())
def test_a_range_is_taken_only_where_it_follows(sizes, start, length, allow_gap):
    ends = np.cumsum([0, *sizes]).tolist()
    trained = [Range(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    wanted = Range(start, start + length)
    good = start == ends[-1] or (allow_gap and start > ends[-1])
    if good:
        check_follows(wanted, trained, 0, allow_gap)
    else:
        with pytest.raises(RangeError) as caught:
            check_follows(wanted, trained, 0, allow_gap)
        assert f"--start {ends[-1]} --end {ends[-1] + length}" in caught.value.remedy


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (-1, 4)])
def test_an_empty_range_is_refused(start, end):
    with pytest.raises(RangeError):
        Range(start, end)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 9))
def test_replayed_rows_are_earlier_rows_each_once(sizes, fraction, seed):
    ends = np.cumsum([0, *sizes]).tolist()
    trained = [Range(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    wanted = Range(ends[-1], ends[-1] + 40)
    positions = replayed_positions(wanted, trained, fraction, seed)
    assert len(positions) == min(round(fraction * 40), ends[-1])
    assert len(set(positions.tolist())) == len(positions)
    assert all(0 <= position < wanted.start for position in positions)
    assert positions.tolist() == replayed_positions(wanted, trained, fraction, seed).tolist()

"""Ranges of the training pool: which rows a chunk holds, in which order they must come, and which rows it replays."""

from dataclasses import dataclass

import numpy as np

from mathtune.errors import RangeError
from mathtune.recipe import Chunks

TRAIN = "mathtune train RECIPE"


@dataclass(frozen=True, order=True)
class Range:
    """Rows ``[start, end)`` of the training pool."""

    start: int
    end: int

    def __post_init__(self):
        if self.start < 0 or self.start >= self.end:
            raise RangeError(f"[{self.start}:{self.end}) holds no rows", remedy="start must be below end")

    def __str__(self) -> str:
        return f"[{self.start}:{self.end})"

    def __len__(self) -> int:
        return self.end - self.start


def chunk_ranges(chunks: Chunks, pool_rows: int) -> list[Range]:
    """The recipe's ranges over a pool; the last one may be shorter.

    Raises:
        RangeError: they reach beyond the pool.
    """
    end = pool_rows if chunks.end is None else chunks.end
    if end > pool_rows or chunks.start >= pool_rows:
        raise RangeError(f"[{chunks.start}:{end}) reaches beyond the pool's {pool_rows} rows", where="chunks",
                         remedy=f"chunks.end={pool_rows} or less")
    return [Range(start, min(start + chunks.size, end)) for start in range(chunks.start, end, chunks.size)]


def check_follows(wanted: Range, trained: list[Range], first: int, allow_gap: bool) -> None:
    """Refuses a range that repeats, overlaps or skips rows.

    Args:
        wanted: the range to train.
        trained: the chain's ranges, in order.
        first: where an empty chain begins.
        allow_gap: whether rows may be left out.

    Raises:
        RangeError: with the range that would be right.
    """
    for done in trained:
        if wanted.start < done.end and done.start < wanted.end:
            raise RangeError(f"{wanted} overlaps {done}, which is trained already", where="range",
                             remedy=f"{TRAIN} --start {trained[-1].end} --end {trained[-1].end + len(wanted)}, or chain=NEW")
    expected = trained[-1].end if trained else first
    if wanted.start < expected:
        raise RangeError(f"{wanted} lies before the chain's end at {expected}", where="range",
                         remedy=f"{TRAIN} --start {expected} --end {expected + len(wanted)}, or chain=NEW")
    if wanted.start > expected and not allow_gap:
        raise RangeError(f"{wanted} skips rows [{expected}:{wanted.start})", where="range",
                         remedy=f"{TRAIN} --start {expected} --end {expected + len(wanted)}, or --allow-gap to leave them out")


def check_asked(start: int | None, end: int | None, next: int | None) -> None:
    """Holds that a range is asked for in one way: its start and end, or so many rows after the last trained one.

    Raises:
        RangeError: it is not.
    """
    if next is not None and (start is not None or end is not None):
        raise RangeError("--next and --start or --end contradict each other", where="range",
                         remedy="give --next, or --start and --end")
    if next is None and (start is None or end is None):
        raise RangeError("give its start and end, or how many of the next rows", where="range",
                         remedy="--next 1000, or as a deployment's parameter next=1000")


def replayed_positions(wanted: Range, trained: list[Range], fraction: float, seed: int) -> np.ndarray:
    """Sorted pool positions (int64) of earlier ranges' rows that ``wanted`` trains again, drawn without repetition."""
    earlier = np.concatenate([np.arange(done.start, done.end) for done in trained] or [np.empty(0, np.int64)])
    count = min(round(fraction * len(wanted)), len(earlier))
    random = np.random.Generator(np.random.Philox(key=[seed, wanted.start]))
    return np.sort(random.choice(earlier, size=count, replace=False)) if count else np.empty(0, np.int64)

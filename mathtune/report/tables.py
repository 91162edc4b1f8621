"""The figures behind the page's HTML tables, the stretch of an axis of shares, and the key figures as plain values."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mathtune.figures import Forgetting, Interval, LeakPair, Slice, SolverMetrics
from mathtune.report import submission, words
from mathtune.run_record import RunRecord

_KEY_FIGURES = ("accuracy", "precision", "recall", "f1", "roc_auc", "brier", "calibration_error", "true_share", "strict",
                "flexible")


@dataclass(frozen=True)
class Scale:
    """The stretch of shares that an axis shows; a place on it goes from 0 to 1."""

    low: float
    high: float

    def place(self, share: float) -> float:
        return round((share - self.low) / (self.high - self.low), 4)


def scale(intervals: Iterable[Interval]) -> Scale:
    """The axis that holds all intervals, in whole tenths."""
    known = [one for one in intervals if one.n]
    if not known:
        return Scale(0.0, 1.0)
    low = math.floor(10 * min(one.low for one in known) + 1e-9) / 10
    high = math.ceil(10 * max(one.high for one in known) - 1e-9) / 10
    return Scale(low, max(high, low + 0.1))


def slices_by(slices: list[Slice]) -> dict[str, list[Slice]]:
    """Slices that rest on rows, by what divides them."""
    groups: dict[str, list[Slice]] = {}
    for one in slices:
        if one.accuracy.n:
            groups.setdefault(one.by, []).append(one)
    return groups


def marks(metrics: SolverMetrics) -> dict[str, Interval]:
    """The three ways to mark the same completions."""
    return {"own: the final answer in any form": metrics.accuracy, "strict: the number after ####": metrics.strict,
            "flexible: the last number": metrics.flexible}


def forgetting_rows(forgetting: Forgetting, record: RunRecord) -> list[tuple[str, list[Interval | None]]]:
    """A title and a cell a chunk for every link that was asked; None where it was not trained on the chunk yet."""
    kinds = {link.number: link.kind for link in record.links}
    width = len(forgetting.chunks)
    return [(f"GRPO {number}" if kinds.get(number) == "grpo" else f"chunk {number}",
             [*row, *[None] * (width - len(row))])
            for number, row in zip(forgetting.links, forgetting.accuracy, strict=True)]


def exact_leaks(leaks: list[LeakPair]) -> list[LeakPair]:
    """The pairs of parts that share a question word for word."""
    return [pair for pair in leaks if pair.exact]


def key_figures(record: RunRecord) -> dict[str, Any]:
    """The figures of the last evaluated link and the accuracy on the test rows, each with its ``_low``, ``_high`` and ``_n``;
    and the verdict in words."""
    figures: dict[str, Any] = {"verdict": words.verdict(record)}
    last = words.last_evaluated(record)
    metrics = last.metrics if last else None
    for name in _KEY_FIGURES:
        if (interval := getattr(metrics, name, None)) is not None and interval.n:
            figures |= _dumped(name, interval)
    if test := submission.known_accuracy(record):
        figures |= _dumped("test_accuracy", test)
    if record.versus_base and record.versus_base.n:
        figures |= _dumped("versus_base", record.versus_base.difference) | {"versus_base_p": record.versus_base.p}
    return figures


def _dumped(name: str, interval: Interval) -> dict[str, Any]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high, f"{name}_n": interval.n}

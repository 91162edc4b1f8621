"""Parts of run records that say more than accuracy, for the report's tests. Seeded and plausible."""

import numpy as np

from mathtune.figures import (
    Bin,
    Calibration,
    Comparison,
    Forgetting,
    Interval,
    LeakExample,
    LeakPair,
    Lengths,
    SampleMetrics,
    ScoreHistogram,
    Slice,
)
from mathtune.metrics import interval


def around(value: float, margin: float, n: int) -> Interval:
    """A figure that is no share of rows."""
    return Interval(value=value, low=value - margin, high=value + margin, n=n)


def calibration(rows: int = 2000) -> Calibration:
    """A verifier that is too sure of itself and too slow to say True."""
    half = rows // 2
    bins = []
    for i in range(10):
        n = [300, 90, 40, 25, 18, 12, 0, 45, 120, 350][i]
        centre = (i + 0.5) / 10
        bins.append(Bin(low=i / 10, high=(i + 1) / 10, confidence=centre if n else float("nan"),
                        true_share=interval(round(n * min(1, centre * 1.03)), n)))
    curve = [(t, 0.5 + 0.39 * (1 - abs(t - 0.42) ** 1.5)) for t in np.linspace(0, 1, 101).round(2).tolist()]
    return Calibration(
        temperature=1.62, threshold=0.437, fitted=rows - half, reported=half, plain=interval(round(0.871 * half), half),
        accuracy=interval(round(0.883 * half), half),
        versus_plain=Comparison(n=half, difference=around(0.012, 0.009, half), gained=19, lost=7, p=0.029),
        true_share=interval(round(0.481 * half), half), brier_plain=around(0.112, 0.011, half),
        brier=around(0.094, 0.009, half),
        error_plain=around(0.081, 0.018, half), error=around(0.024, 0.012, half), bins=bins, curve=curve)


def histogram(rows: int) -> ScoreHistogram:
    """Most rows near 0 and 1, on the right side of one half."""
    random = np.random.default_rng(5)
    edges = np.linspace(0, 1, 21)
    right, wrong = random.beta(3.2, 0.9, rows // 2), random.beta(0.8, 3.0, rows // 2)
    return ScoreHistogram(edges=edges.round(2).tolist(), true=np.histogram(right, edges)[0].tolist(),
                          false=np.histogram(wrong, edges)[0].tolist())


def slices(rows: int, accuracy: float, balance: bool) -> list[Slice]:
    """By four divisions; the last generator has no row."""
    divisions = {"answer type": ["integer", "decimal", "fraction", "expression", "text"],
                 "solution length": ["first quarter, up to 112 characters",
                                     "second quarter, 113 to 198 characters",
                                     "third quarter, 199 to 340 characters", "fourth quarter, over 340 characters"],
                 "part of the source": ["first fifth, rows 0 to 1,599", "second fifth, rows 1,600 to 3,199",
                                        "last fifth, rows 6,400 to 7,999"],
                 "generator": ["6B finetuning", "6B verification", "175B finetuning", "175B verification", "none"]}
    random = np.random.default_rng(6)
    found = []
    for by, values in divisions.items():
        for i, value in enumerate(values):
            n = 0 if value == "none" else max(4, rows // (i * i + 2))
            right = int(round(n * np.clip(accuracy - 0.05 * i + random.normal(0, 0.02), 0, 1)))
            share = 0.5 + 0.09 * i if balance else float("nan")
            found.append(Slice(by=by, value=value, accuracy=interval(right, n), true_share=share))
    return found


def samples(rows: int) -> SampleMetrics:
    """pass@k that grows faster than majority@k."""
    pass_at = {k: interval(round(rows * (0.28 + 0.09 * np.log2(k))), rows) for k in (1, 2, 4, 8, 16)}
    majority_at = {k: interval(round(rows * (0.28 + 0.03 * np.log2(k))), rows) for k in (1, 2, 4, 8, 16)}
    return SampleMetrics(rows=rows, samples=16, temperature=0.8, pass_at=pass_at, majority_at=majority_at)


def lengths(seed: int, limit: int = 512) -> Lengths:
    """Most examples far below the limit, some at it."""
    random = np.random.default_rng(seed)
    edges = np.arange(1, limit + 17, 16)
    tokens = np.minimum(random.lognormal(5.2, 0.4, 20_000), limit)
    return Lengths(edges=edges.tolist(), counts=np.histogram(tokens, edges)[0].tolist(), limit=limit)


def forgetting(links: list[int], chunks: int) -> Forgetting:
    """Every chunk loses a little with each later one."""
    rows = [[interval(round(200 * max(0.5, 0.93 - 0.025 * (place - chunk))), 200) for chunk in range(min(place + 1, chunks))]
            for place in range(len(links))]
    titles = [f"[{20_000 * i}:{20_000 * (i + 1)})" for i in range(chunks)]
    return Forgetting(rows=200, chunks=titles, links=links, accuracy=rows)


def leaks(exact: int) -> list[LeakPair]:
    """Two pairs of parts; the first shares some questions."""
    near = LeakExample(kind="near", first_row=41, second_row=907, similarity=0.86,
                       first="Tom has 3 boxes of 12 pencils. He gives 5 away. How many are left?",
                       second="Tom has 3 boxes of 12 pens. He gives 5 away. How many are left?")
    same = LeakExample(kind="exact", first_row=77, second_row=12, first="What is 12 + 30?", second="What is 12 + 30?")
    return [LeakPair(first="training pool", second="validation", first_rows=798_112, second_rows=10_000, exact=exact,
                     normalised=2, near=41, examples=[same, near] if exact else [near]),
            LeakPair(first="training pool", second="test", first_rows=798_112, second_rows=10_000, exact=0, normalised=0,
                     near=18)]

"""Charts of a verifier's confidence: reliability, accuracy over the threshold, and P(True) of right and wrong answers."""

import numpy as np

from mathtune.figures import Calibration, ScoreHistogram
from mathtune.report.charts import ACCENT, MUTED, PAPER, SECOND, Chart, count_axis, legend, mark, percent_axis
from mathtune.report.words import percent

_SIZE = (360, 320)


def reliability_chart(calibration: Calibration) -> Chart | None:
    """Share of right answers over the calibrated P(True), with 95% intervals and larger dots for more rows.

    None where every bin is empty.
    """
    bins = [one for one in calibration.bins if one.true_share.n]
    if not bins:
        return None

    def draw(axes: np.ndarray) -> None:
        (ax,) = axes
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1, label="perfectly calibrated")
        legend(ax)
        ax.vlines([one.confidence for one in bins], [one.true_share.low for one in bins], [one.true_share.high for one in bins],
                  color=ACCENT, linewidth=2, alpha=0.55)
        rows = np.array([one.true_share.n for one in bins])
        ax.scatter([one.confidence for one in bins], [one.true_share.value for one in bins], 24 + 130 * rows / rows.max(),
                   color=ACCENT, edgecolor=PAPER, linewidth=1, zorder=3)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.03, 1.03)
        percent_axis(ax.xaxis)
        percent_axis(ax.yaxis)
        ax.set_xlabel("P(True), calibrated")
        ax.set_ylabel("of these, right answers")

    said = ", ".join(f"{percent(one.confidence)} {percent(one.true_share.value)}" for one in bins)
    return Chart("reliability", "Reliability", f"Share of right answers over the mean calibrated P(True) of each bin: {said}",
                 *_SIZE, draw)


def threshold_chart(calibration: Calibration) -> Chart | None:
    """Accuracy on the reported half over the threshold, the fitted one marked. None without a curve."""
    curve = [(threshold, accuracy) for threshold, accuracy in calibration.curve if np.isfinite(accuracy)]
    if not curve:
        return None
    thresholds, accuracies = zip(*curve, strict=True)
    fitted, value = calibration.threshold, calibration.accuracy.value

    def draw(axes: np.ndarray) -> None:
        (ax,) = axes
        ax.plot(thresholds, accuracies, color=ACCENT, linewidth=1.8)
        ax.axvline(fitted, color=SECOND, linewidth=1.4, linestyle=(0, (5, 3)), label=f"fitted {fitted:.2f}")
        legend(ax)
        ax.vlines(fitted, calibration.accuracy.low, calibration.accuracy.high, color=SECOND, linewidth=2.4, alpha=0.55)
        ax.plot(fitted, value, "D", color=SECOND, markersize=7, markeredgecolor=PAPER)
        ax.set_xlim(-0.02, 1.02)
        ax.margins(y=0.12)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        percent_axis(ax.yaxis)
        ax.set_xlabel("threshold on P(True), calibrated")
        ax.set_ylabel("accuracy")

    return Chart("threshold", "Threshold",
                 f"Accuracy over the threshold on the calibrated P(True); at the fitted {fitted:.3f} it is {percent(value)}",
                 *_SIZE, draw)


def histogram_chart(histogram: ScoreHistogram) -> Chart | None:
    """P(True) of right answers upwards and of wrong ones downwards. None without rows."""
    edges, right, wrong = np.array(histogram.edges), np.array(histogram.true), np.array(histogram.false)
    if not right.sum() + wrong.sum():
        return None

    def draw(axes: np.ndarray) -> None:
        (ax,) = axes
        style = {"align": "edge", "edgecolor": PAPER, "linewidth": 0.6}
        ax.bar(edges[:-1], right, np.diff(edges), color=ACCENT, **style)
        ax.bar(edges[:-1], -wrong, np.diff(edges), color=SECOND, **style)
        ax.axhline(0, color=MUTED, linewidth=0.8)
        ax.axvline(0.5, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
        most = 1.22 * max(right.max(), wrong.max())
        ax.set_ylim(-most, most)
        ax.set_xlim(-0.02, 1.02)
        mark(ax, "right answers ↑", (0, 1), (2, -2), xycoords="axes fraction", va="top", color=ACCENT)
        mark(ax, "wrong answers ↓", (0, 0), (2, 4), xycoords="axes fraction", color=SECOND)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        count_axis(ax.yaxis, 6)
        ax.set_xlabel("P(True), as it comes")
        ax.set_ylabel("rows")

    sure = edges[:-1] >= 0.5
    return Chart("scores", "P(True) of right and wrong answers",
                 f"Of {right.sum():,} right answers {right[sure].sum():,} have a P(True) above one half, of {wrong.sum():,} "
                 f"wrong ones {wrong[sure].sum():,}", *_SIZE, draw)

"""Charts of both tasks: accuracy from link to link, and how long the examples are that it was trained on."""

import numpy as np
from matplotlib.axes import Axes

from mathtune.figures import Interval, Lengths, VerifierMetrics
from mathtune.report.charts import ACCENT, INK, MUTED, PAPER, SECOND, Chart, count_axis, legend, mark, percent_axis
from mathtune.report.words import percent
from mathtune.run_record import LinkRecord, RunRecord

_COLOURS = {"base": MUTED, "sft": ACCENT, "grpo": SECOND}
_LABELLED = 8  # so many points have their figure beside them


def accuracy_chart(record: RunRecord, width: int = 440, height: int = 300) -> Chart | None:
    """Accuracy of the base and after each link over the band of its 95% intervals, and the majority baseline.

    None without figures.
    """
    scored = [("base", "base", record.base)] if record.base else []
    scored += [(str(link.number) if link.kind == "sft" else "GRPO", link.kind, link.metrics) for link in record.links]
    scored = [point for point in scored if point[2] and point[2].rows]
    if not scored:
        return None
    names, kinds, metrics = zip(*scored, strict=True)
    baseline = metrics[-1].majority if isinstance(metrics[-1], VerifierMetrics) else None

    def draw(axes: np.ndarray) -> None:
        (ax,) = axes
        _draw_band(ax, [one.accuracy for one in metrics])
        for x, (kind, one) in enumerate(zip(kinds, metrics, strict=True)):
            _draw_point(ax, x, kind, one.accuracy, len(scored) <= _LABELLED, baseline is not None and
                        one.accuracy.value < baseline)
        if baseline is not None:
            ax.axhline(baseline, color=MUTED, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1,
                       label=f"always the same verdict: {percent(baseline)}")
            legend(ax)
        every = -(-len(scored) // 12)
        ax.set_xticks(range(0, len(scored), every), names[::every])
        ax.set_xlim(-0.4, len(scored) - 0.6)
        ax.margins(y=0.16)
        percent_axis(ax.yaxis)
        ax.set_xlabel("after chunk")

    said = ", ".join(f"{name} {percent(one.accuracy.value)}" for name, one in zip(names, metrics, strict=True))
    return Chart("accuracy", "Accuracy, link by link", f"Accuracy after each chunk with its 95% interval: {said}",
                 width, height, draw)


def _draw_band(ax: Axes, accuracies: list[Interval]) -> None:
    places = np.arange(len(accuracies))
    ax.fill_between(places, [one.low for one in accuracies], [one.high for one in accuracies], color=ACCENT, alpha=0.2,
                    linewidth=0, zorder=2)
    ax.plot(places, [one.value for one in accuracies], color=ACCENT, linewidth=1.8, zorder=3)


def _draw_point(ax: Axes, x: int, kind: str, accuracy: Interval, labelled: bool, below: bool) -> None:
    colour = _COLOURS[kind]
    ax.vlines(x, accuracy.low, accuracy.high, color=colour, linewidth=1.6, alpha=0.6, zorder=3)
    ax.plot(x, accuracy.value, color=colour, marker="D" if kind == "grpo" else "o", markersize=7, markeredgecolor=PAPER,
            markeredgewidth=1.2, zorder=4)
    if labelled:
        mark(ax, percent(accuracy.value), (x, accuracy.low if below else accuracy.high), (0, -4 if below else 4), color=INK,
             ha="center", va="top" if below else "bottom", fontsize=11)


def lengths_of(links: list[LinkRecord]) -> Lengths | None:
    """Lengths of the examples of all links that were counted under the last one's limit, together; None where none were."""
    counted = [link.lengths for link in links if link.lengths]
    if not counted:
        return None
    alike = [one.counts for one in counted if one.edges == counted[-1].edges]
    return counted[-1].model_copy(update={"counts": np.sum(alike, axis=0).tolist()})


def lengths_chart(links: list[LinkRecord], width: int = 440, height: int = 230) -> Chart | None:
    """Examples by their tokens, against the limit. None where they were not counted."""
    lengths = lengths_of(links)
    if lengths is None or not sum(lengths.counts):
        return None
    edges, counts = np.array(lengths.edges), np.array(lengths.counts)

    def draw(axes: np.ndarray) -> None:
        (ax,) = axes
        ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=ACCENT, alpha=0.8, edgecolor=PAPER, linewidth=0.8)
        ax.axvline(lengths.limit, color=SECOND, linewidth=1.6, linestyle=(0, (5, 3)))
        mark(ax, f"limit {lengths.limit:,}", (lengths.limit, 1), (-5, -2), xycoords=("data", "axes fraction"), ha="right",
             va="top", color=SECOND)
        ax.set_xlim(0, max(lengths.limit, edges[-1]) * 1.02)
        ax.margins(y=0.14)
        count_axis(ax.xaxis, 6)
        count_axis(ax.yaxis)
        ax.set_xlabel("tokens of an example")
        ax.set_ylabel("examples")

    middle = edges[np.searchsorted(np.cumsum(counts), counts.sum() / 2)]
    return Chart("lengths", "Token lengths against the limit",
                 f"{counts.sum():,} examples by their tokens; half have fewer than about {middle:,}, the limit is "
                 f"{lengths.limit:,}", width, height, draw)

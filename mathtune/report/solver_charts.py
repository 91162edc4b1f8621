"""Charts of a solver: what drawing several completions brings. Its outcomes and marks are HTML tables."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from mathtune.figures import Interval, SampleMetrics
from mathtune.report.charts import ACCENT, MUTED, SECOND, Chart, legend, percent_axis
from mathtune.report.words import percent

_APART = 0.05  # octaves of k


def samples_chart(samples: SampleMetrics, greedy: Interval, width: int = 440, height: int = 300) -> Chart:
    """pass@k and majority@k over k with their 95% intervals; the greedy completion's accuracy where it is on the same rows."""
    ks, most = sorted(samples.pass_at), max(samples.pass_at)
    same_rows = greedy.n == samples.rows

    def draw(axes: np.ndarray) -> None:
        (ax,) = axes
        _draw_points(ax, samples.pass_at, "pass@k", ACCENT, "o-", -_APART)
        _draw_points(ax, samples.majority_at, "majority@k", SECOND, "s--", _APART)
        if same_rows:
            ax.axhline(greedy.value, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1,
                       label=f"greedy {percent(greedy.value)}")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(ks if len(ks) <= 8 else [k for k in ks if k & (k - 1) == 0]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        percent_axis(ax.yaxis)
        ax.margins(y=0.12)
        ax.set_xlabel(f"k, completions of each of {samples.rows:,} problems")
        legend(ax, ncols=3)

    beside = f", greedy {percent(greedy.value)}" if same_rows else ""
    return Chart("samples", "Several completions of a problem",
                 f"pass@{most} {percent(samples.pass_at[most].value)}, majority@{most} "
                 f"{percent(samples.majority_at[most].value)}{beside}, on {samples.rows:,} problems", width, height, draw)


def _draw_points(ax: Axes, figures: dict[int, Interval], name: str, colour: str, style: str, shift: float) -> None:
    """Figures over k as points with their intervals, moved by a part of an octave so that two series stand side by side."""
    ks = sorted(figures)
    places = np.array(ks) * 2.0 ** shift
    ax.vlines(places, [figures[k].low for k in ks], [figures[k].high for k in ks], color=colour, linewidth=2, alpha=0.55)
    ax.plot(places, [figures[k].value for k in ks], style, color=colour, markersize=6, linewidth=1.4, label=name)
